"""No client takes the embedded broker down: it goes on, takes no more memory, and serves the good ones between."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from postage import messaging
from support.messaging import EQK, TIMEOUT, EchoProducer, Processor, Running, eventually
from support.programs import Module
from support.soak import IS_SOAK, SEED

from .hostile_clients import CLIENTS, Hostile

ROUNDS = 200 if IS_SOAK else 2  # of all of them
KEPT = 12  # which stay connected, while others come
MEGABYTES = 128  # that the broker may take more: 64 of messages, and what Python makes of all the rest
LIMITS = {
    'max-connections': 60,
    'max-handshakes': 40,
    'max-channels': 1000,
    'max-queues': 400,
    'max-exchanges': 100,
    'max-bindings': 1000,
    'max-consumers': 400,
    'max-memory': '64MiB',
}


class Broker:
    """An embedded broker in a process of its own, whose memory can be told from that of the test."""

    def __init__(self, run_module: Callable[..., Module]) -> None:
        options = [f'--{name}={value}' for name, value in LIMITS.items()]
        self.process = run_module('postage.broker', ['--port', '0', *options])
        line = self.process.expect('for development and tests')
        self.port = int(line.rstrip('/').rpartition(':')[2])
        self.url = f'amqp://guest:guest@127.0.0.1:{self.port}/'

    def memory(self, field: str) -> float:
        """A field of its status, in megabytes."""
        found = re.search(rf'{field}:\s+(\d+) kB', Path(f'/proc/{self.process.pid}/status').read_text())
        assert found is not None, 'the broker has ended'
        return int(found.group(1)) / 1024


@pytest.fixture
def broker(run_module: Callable[..., Module]) -> Broker:
    return Broker(run_module)


class Component(Processor):
    """The good one."""

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        self.seen.put(content['parameters'])


@contextlib.contextmanager
def component() -> Iterator[tuple[Component, EchoProducer]]:
    with contextlib.ExitStack() as stack:
        component = Component(EQK)
        running = Running((component,))
        stack.callback(running.stop)
        yield component, stack.enter_context(EchoProducer())


def close_all(clients: list[Hostile]) -> None:
    while clients:
        clients.pop().close()


def test_there_are_many_of_them() -> None:
    assert len(CLIENTS) >= 30


@pytest.mark.timeout(1800 if IS_SOAK else 90)
def test_good_messages_between_hostile_clients_are_all_handled(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, record_note: Callable[[str], None]
) -> None:
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    numbers, kept = random.Random(SEED), list[Hostile]()
    with contextlib.ExitStack() as stack:
        good, producer = stack.enter_context(component())
        stack.callback(close_all, kept)
        link = good.consumer.conn_broker.link, producer.conn_broker.link
        before = broker.memory('VmRSS')
        for number in range(ROUNDS):
            for name in numbers.sample(sorted(CLIENTS), len(CLIENTS)):
                address = '127.0.0.2' if name == 'wrong_passwords' else '127.0.0.1'
                with contextlib.suppress(OSError):
                    kept.append(Hostile(broker.port, numbers, address))
                    CLIENTS[name](kept[-1])
                if len(kept) > KEPT:
                    kept.pop(numbers.randrange(len(kept))).close()
                producer.message_echo(f'{number} {name}')
                assert good.seen.get(timeout=TIMEOUT) == f'{number} {name}', f'seed {SEED}'
        assert (good.consumer.conn_broker.link, producer.conn_broker.link) == link, f'seed {SEED}'
        grown = broker.memory('VmHWM') - before
        close_all(kept)
        producer.message_echo('the last')
        assert good.seen.get(timeout=TIMEOUT) == 'the last'
    record_note(f'{ROUNDS * len(CLIENTS)} hostile clients, {grown:.0f} MB more at the highest, seed {SEED}')
    assert grown < MEGABYTES, f'seed {SEED}'
    assert 'error of the broker itself' not in broker.process.output, broker.process.output


def test_a_client_that_holds_many_connections_keeps_nobody_out(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    numbers = random.Random(SEED)
    held = []
    for _ in range(300):
        with contextlib.suppress(OSError):
            held.append(Hostile(broker.port, numbers))
    with component() as (good, producer):
        producer.message_echo('in between')
        assert good.seen.get(timeout=TIMEOUT) == 'in between'
    close_all(held)


def test_guessing_from_elsewhere_keeps_nobody_out(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    guessing = []
    for _ in range(30):
        with contextlib.suppress(OSError):
            guessing.append(Hostile(broker.port, random.Random(SEED), '127.0.0.2'))
            guessing[-1].start(password='guess')
    with component() as (good, producer):
        producer.message_echo('in between')
        assert good.seen.get(timeout=TIMEOUT) == 'in between'
    eventually(lambda: 'login refused' in broker.process.output)
    close_all(guessing)
