"""An exchange, or a binding, that is deleted under programs which use it.

The broker tells no consumer, and what is published to an exchange without bindings is confirmed and gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from postage.amqp import upkeep
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, echo_producer
from support.programs import ECHO, Program

PROMPT = 0.3
"""Seconds between the looks after the bindings, in these tests."""

NUMBER = 20


def published(producer: Any, numbers: range) -> None:
    """Publish these, and see that each is confirmed."""
    receipts = [producer.message_echo(number) for number in numbers]
    for receipt in receipts:
        receipt.wait(TIMEOUT)
        assert receipt.confirmed


def test_what_is_confirmed_is_delivered_after_the_exchange_was_deleted_under_one_program(bench: Bench) -> None:
    first, second = Echo(), Echo([(EchoExchange, [('other-queue', 'echo-rk'), ('other-queue', 'other-rk')])])
    bench.run(first, second)
    producer, other = bench.producer(), bench.producer(echo_producer('other-rk'))
    published(producer, range(1))
    assert [echo.seen.next() for echo in (first, second)] == [0, 0]
    bench.bare.exchange_delete(EchoExchange.name)

    published(producer, range(1, NUMBER))
    published(other, range(NUMBER, NUMBER + 1))
    assert first.seen.take(NUMBER - 1) == list(range(1, NUMBER))
    assert second.seen.take(NUMBER) == list(range(1, NUMBER + 1))
    assert first.seen.empty()
    assert len(bench.log.find('WARNING', f"exchange '{EchoExchange.name}' was gone", 'other programs')) == 1
    assert not bench.log.find('ERROR'), bench.log.text


def test_a_receipt_whose_message_waited_for_its_exchange_is_confirmed_after_the_bindings_are_back(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    for number in range(NUMBER):
        bench.bare.exchange_delete(EchoExchange.name)
        producer.message_echo(number).wait(TIMEOUT)
        assert echo.seen.next() == number, 'of each the first message that is confirmed is there'


CONSUMER = (
    ECHO
    + f"""
from postage.amqp import upkeep
upkeep.CHECK_SECONDS = {PROMPT}

class Echo(messaging.MessageProcessor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        print('got', content['parameters'], flush=True)

scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(Echo({{}}, [(EchoExchange, [('echo-queue', 'echo-rk')])]))
print('consuming', flush=True)
scheduler.run()
"""
)


def until_delivered(bench: Bench, delivered: Callable[[], bool]) -> float:
    """Publish until what is published is delivered again. Returns the seconds that took."""
    producer = bench.producer()
    begun = time.monotonic()
    while time.monotonic() < begun + TIMEOUT:
        producer.message_echo('again').wait(TIMEOUT)
        if delivered():
            return time.monotonic() - begun
        time.sleep(0.02)
    raise AssertionError(f'nothing was delivered in {TIMEOUT} s: {bench.log.text}')


def test_another_program_repairs_its_bindings_within_its_bound(
    bench: Bench, run_program: Callable[..., Program]
) -> None:
    program = run_program(CONSUMER)
    program.expect('consuming')
    producer = bench.producer()
    published(producer, range(1))
    program.expect('got 0')
    bench.bare.exchange_delete(EchoExchange.name)
    published(producer, range(1, 2))
    bench.log.expect('WARNING', 'those of other programs may be missing')
    assert until_delivered(bench, lambda: program.count('got again') > 0) < PROMPT + 2


def test_a_consumer_whose_exchange_is_gone_declares_it_again_within_its_bound(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, 'CHECK_SECONDS', PROMPT)
    echo = Echo()
    bench.run(echo)
    published(bench.producer(), range(1))
    assert echo.seen.next() == 0
    bench.bare.exchange_delete(EchoExchange.name)
    bench.log.expect('WARNING', f"exchange '{EchoExchange.name}' was gone")
    # It is declared, and bound to a moment later.
    assert until_delivered(bench, lambda: not echo.seen.empty()) < PROMPT + 2


def test_a_binding_that_another_program_has_removed_is_back_within_the_bound(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, 'CHECK_SECONDS', PROMPT)
    consumer = bench.consumer(EQK)
    bench.bare.queue_unbind('echo-queue', EchoExchange.name, 'echo-rk')
    assert until_delivered(bench, lambda: bench.count('echo-queue') > 0) < PROMPT + 2
    consumer.queue_unbind(EchoExchange, 'echo-queue', 'echo-rk')
    bench.bare.queue_purge('echo-queue')
    time.sleep(2 * PROMPT)
    published(bench.producer(), range(1))
    assert bench.count('echo-queue') == 0, 'one that the program itself removed stays away'
