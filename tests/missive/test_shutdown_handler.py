"""The shutdown handler, by itself and in an adapter."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from missive.conftest import AnyProcessor, Run
from postage import errors, missive
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from postage.missive.adapters.stdin import StdinAdapter
from postage.missive.shutdown_handler import ShutdownHandler
from postage.missive.state import State
from postage.secret import Secret
from support.messaging import TIMEOUT, Bench, eventually
from support.programs import Program


def test_it_can_be_asked_and_told() -> None:
    with ShutdownHandler() as shutdown:
        assert not shutdown.should_exit()
        assert shutdown.wait_for(lambda: 1) == 1
        shutdown.set_flag()
        assert shutdown.should_exit()
        assert shutdown.wait_for(lambda: 1) is None


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_told_to_the_callback_before_the_flag_is_set(number: signal.Signals) -> None:
    told: list[tuple[int, bool]] = []
    shutdown = ShutdownHandler(callback=lambda number: told.append((number, shutdown.should_exit())))
    shutdown.enable()
    try:
        os.kill(os.getpid(), number)
        shutdown.wait_for_flag()
    finally:
        shutdown.disable()
    assert told == [(number, False)]
    assert shutdown.should_exit()


def test_a_callback_that_raises_does_not_keep_the_flag_from_being_set() -> None:
    def fail(number: int) -> None:
        raise KeyError(number)

    shutdown = ShutdownHandler(fail)
    shutdown.enable()
    try:
        with pytest.raises(KeyError):
            signal.raise_signal(signal.SIGTERM)
    finally:
        shutdown.disable()
    assert shutdown.should_exit()


def test_every_thread_that_waits_for_the_flag_is_released_once_it_is_set() -> None:
    shutdown = ShutdownHandler()
    threads = [threading.Thread(target=shutdown.wait_for_flag) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(shutdown._waiting) == 3)
    shutdown.set_flag()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    shutdown.wait_for_flag()  # no longer blocks


def test_the_flag_of_an_adapters_handler_ends_its_run(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run]
) -> None:
    bench.bare.queue_declare('jobs', durable=True)
    adapter = RabbitMQAdapter(missive.RawMessage, processor, ['jobs'])
    running = run(adapter)
    eventually(lambda: bench.consumers('jobs') == 1)
    adapter.shutdown_handler.set_flag()
    running.wait()


def test_signals_are_left_to_the_program_where_it_says_so(bench: Bench, run_program: Callable[..., Program]) -> None:
    program = run_program(
        """
import signal, threading
from postage import missive
from postage.missive.adapters.rabbitmq import RabbitMQAdapter

processor = missive.Processor()
adapter = RabbitMQAdapter(missive.RawMessage, processor, ['jobs'], disable_shutdown_handler=True)
processor.before_processing(lambda ctx: print('ready', flush=True))

def on_signal(number, frame):
    print('own handler', flush=True)
    threading.Thread(target=adapter.stop).start()

signal.signal(signal.SIGTERM, on_signal)
adapter.run()
print('ended', signal.getsignal(signal.SIGTERM) is on_signal)
"""
    )
    program.expect('ready')
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0, program.output
    assert program.lines == ['ready', 'own handler', 'ended True']


class KombuConnection:
    """What is needed of one."""

    ssl = False

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def as_uri(self, include_password: bool = False) -> str:
        assert include_password
        return self._uri


def test_a_connection_of_kombu_leads_to_its_broker(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('POSTAGE_URL')
    broker = bench.broker
    vhost = '/' if broker.vhost == '/' else broker.vhost
    connection = KombuConnection(f'pyamqp://guest:guest@{broker.host}:{broker.port}/{vhost}')
    running = run(RabbitMQAdapter(missive.RawMessage, processor, ['jobs'], connection))
    eventually(lambda: 'jobs' in broker.queues() and bench.consumers('jobs') == 1)
    running.stop()


def test_a_connection_of_kombu_to_another_transport_is_refused(processor: AnyProcessor) -> None:
    adapter: Any = RabbitMQAdapter(missive.RawMessage, processor, ['jobs'], KombuConnection('redis://h//'))
    with pytest.raises(errors.ConfigurationError, match='redis'):
        adapter.run()


def test_an_encrypted_connection_of_kombu_stays_encrypted() -> None:
    from postage.missive.adapters.rabbitmq import _broker_of

    connection: Any = KombuConnection('amqp://u:p%40@h:5671//my/x%20y')
    connection.ssl = True
    assert _broker_of(Secret(connection)) == (Secret('amqps://u:p%40@h:5671'), '/my/x y')


def test_the_handler_may_be_replaced_before_a_run(processor: AnyProcessor) -> None:
    read, write = os.pipe()
    told: list[int] = []
    with os.fdopen(read, 'rb') as lines:
        adapter: Any = StdinAdapter(missive.RawMessage, processor, lines)
        adapter.shutdown_handler = ShutdownHandler(callback=told.append)
        processor.before_processing(lambda ctx: signal.raise_signal(signal.SIGTERM))
        adapter.run()
    os.close(write)
    assert told == [signal.SIGTERM]


def test_the_state_of_contexts_has_its_module() -> None:
    state = State()
    state.any = 1
    assert state.any == 1
    assert not hasattr(sys, 'any')
