"""Fifty components are asked at once, while one computes for ever and others are stopped."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from postage.cli.main import postage
from support.brokers import Broker
from support.programs import Program
from support.soak import IS_SOAK, runs

PROCESSES, EACH = (5, 10) if IS_SOAK else (2, 25)
LAST = PROCESSES - 1
LOADED = 10.0  # seconds that a loaded machine may take

SHOPS = f"""
import sys, threading
from postage import messaging, microthreads

class ShopExchange(messaging.Exchange):
    name = 'shop-exchange'
    exchange_type = 'direct'

class Shop(messaging.MessageProcessor):
    control = True

    def start_consuming(self):
        super().start_consuming()
        print('ready', self.fingerprint['name'], flush=True)

    @messaging.MessageHandler('command', 'busy')
    def msg_busy(self, content):
        print('busy', flush=True)
        while True:
            pass

scheduler = microthreads.MicroScheduler()
for number in range({EACH}):
    name = f'shop-{{sys.argv[1]}}-{{number}}'
    scheduler.add_microthread(Shop(messaging.Fingerprint(name), [(ShopExchange, [(name, name)])]))
scheduler.run()
"""


@pytest.fixture
def shops(broker: Broker, run_program: Callable[..., Program]) -> list[Program]:
    """Fifty components in a few processes, one of which is kept busy by a handler that never ends."""
    # One machine, one clock: what is late by anything is late.
    environment = {'POSTAGE_URL': broker.url, 'POSTAGE_CLOCK_TOLERANCE': '0'}
    programs = [run_program(SHOPS, [str(number)], environment=environment) for number in range(PROCESSES)]
    for program in programs:
        program.expect('ready', 60, times=EACH)
    return programs


def ask(*words: str) -> tuple[int, Any, str]:
    result = CliRunner().invoke(postage, words)
    return result.exit_code, json.loads(result.stdout), result.stderr


def test_ps_has_all_of_fifty_while_one_of_them_computes_for_ever(
    broker: Broker, shops: list[Program], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '60')
    result = CliRunner().invoke(postage, ['send', 'shop-0-0', 'busy', '--exchange', 'shop-exchange', '--timeout', '20'])
    assert result.exit_code == 0, result.output
    shops[0].expect('busy', 60)
    rounds = runs(2, 20)
    slowest = []
    for _ in range(rounds):
        status, found, _ = ask('ps', '--json', '--expect', '50', '--timeout', str(LOADED))
        assert status == 0
        assert len({stats['fingerprint']['name'] for stats in found}) == PROCESSES * EACH
        slowest.append(max(stats['seconds'] for stats in found))
    with capsys.disabled():
        print(f'\n  the last of 50 answers came after {min(slowest):.3f} to {max(slowest):.3f} s')


def test_those_that_are_stopped_are_named_and_do_not_answer_late(
    broker: Broker, shops: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '60')
    names = ','.join(f'shop-{process}-{number}' for process in range(PROCESSES) for number in range(EACH))
    shops[LAST].send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        status, found, said = ask('ps', '--json', '--expect', names, '--timeout', '3')
        assert time.monotonic() - began < LOADED
        assert status == 1
        assert len(found) == (PROCESSES - 1) * EACH
        assert said == f'no answer from {", ".join(f"shop-{LAST}-{number}" for number in range(EACH))}\n'
    finally:
        shops[LAST].send_signal(signal.SIGCONT)
    shops[LAST].expect('is not answered: its deadline passed', 60, times=EACH)
    status, found, _ = ask('ps', '--json', '--expect', names, '--timeout', str(LOADED))
    assert status == 0
