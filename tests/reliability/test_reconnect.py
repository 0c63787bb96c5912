"""The broker closes every connection, again and again, while everything is under way: nothing confirmed is lost."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from postage import messaging
from support.messaging import EQK, TIMEOUT, Bench, EchoExchange, EchoProducer, Processor, eventually
from support.proxy import Proxy

MESSAGES = 2000
EACH = 400
"""Messages from one loss to the next."""

LONG = 30.0
"""Seconds that everything together may take; it takes two or three."""


class Counting(Processor):
    """Remembers how often it has handled each number, and answers RPCs."""

    def __init__(self) -> None:
        self.handled: dict[int, int] = {}
        super().__init__(EQK)

    @messaging.MessageHandler('command', 'count')
    def msg_count(self, content: dict[str, Any]) -> None:
        number = content['parameters']
        self.handled[number] = self.handled.get(number, 0) + 1

    @messaging.RpcHandler('command', 'double')
    def rpc_double(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        reply_func(2 * content['parameters'])


class Asking(EchoProducer):
    """Each loss costs a call under way one attempt, and there may be a loss at every attempt."""

    rpc_timeout = 5.0
    max_retry = 10


class Publisher:
    """Publishes numbers in a thread of its own, and makes losses happen on the way."""

    def __init__(self, producer: Any, lose: Callable[[], object]) -> None:
        self.receipts: dict[int, Any] = {}
        self._producer = producer
        self._lose = lose
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in range(MESSAGES):
            self.receipts[number] = self._producer.message_count(number)
            if number % EACH == EACH // 2:
                # The connection of now, not one that is just being made again.
                self.receipts[number - EACH // 4].wait(LONG)
                self._lose()

    def join(self) -> None:
        self._thread.join(LONG)
        assert len(self.receipts) == MESSAGES


class Asker:
    """Asks RPC after RPC in a thread of its own."""

    def __init__(self, producer: Any) -> None:
        self.answered = 0
        self.wrong: list[Any] = []
        self._producer = producer
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._enough.is_set():
            result = self._producer.rpc_double(self.answered)
            if not result or result.body['content']['value'] != 2 * self.answered:
                self.wrong.append((self.answered, result))
            self.answered += 1

    def stop(self) -> None:
        self._enough.set()
        self._thread.join(LONG)
        assert not self._thread.is_alive()


def check_that_nothing_is_lost(bench: Bench, lose: Callable[[], object]) -> Counting:
    """Publish, consume and ask while losses happen; everything goes on with the objects that there are."""
    processor = Counting()
    bench.run(processor)
    producer = bench.producer(Asking)
    asker = Asker(producer)
    publisher = Publisher(producer, lose)
    publisher.join()
    producer.flush(LONG)
    confirmed = {number for number, receipt in publisher.receipts.items() if receipt.confirmed}
    assert confirmed == set(range(MESSAGES))
    eventually(lambda: confirmed <= processor.handled.keys())
    before = asker.answered
    eventually(lambda: asker.answered > before + 1)
    asker.stop()
    assert asker.wrong == []
    producer.message_count(MESSAGES).wait(TIMEOUT)
    eventually(lambda: MESSAGES in processor.handled)
    return processor


def test_nothing_confirmed_is_lost_when_the_broker_closes_every_connection(bench: Bench) -> None:
    check_that_nothing_is_lost(bench, bench.broker.close_all_connections)
    assert len(bench.log.find('was lost', 'publishing')) == MESSAGES // EACH
    assert len(bench.log.find('was lost', 'consuming')) > 0


@pytest.mark.parametrize('reset', [True, False])
def test_nothing_confirmed_is_lost_when_connections_are_cut(bench: Bench, proxied: Proxy, reset: bool) -> None:
    check_that_nothing_is_lost(bench, lambda: proxied.cut(reset))


def test_nothing_confirmed_is_lost_when_connections_are_cut_in_the_middle_of_a_frame(
    bench: Bench, proxied: Proxy
) -> None:
    sizes = itertools.cycle([1000, 4001, 77, 10_010])

    def lose() -> None:
        size = next(sizes)
        proxied.cut_after(size, towards='broker')
        proxied.cut_after(size + 3, towards='client')

    check_that_nothing_is_lost(bench, lose)


def test_nothing_confirmed_is_lost_when_the_broker_cannot_be_reached_for_a_while(bench: Bench, proxied: Proxy) -> None:
    coming_back = []

    def lose() -> None:
        proxied.refuse()
        proxied.cut()
        coming_back.append(threading.Timer(0.1, proxied.accept))
        coming_back[-1].start()

    check_that_nothing_is_lost(bench, lose)
    for timer in coming_back:
        timer.join(TIMEOUT)


def test_what_a_handler_publishes_survives_losses_of_the_whole_chain(bench: Bench) -> None:
    """First queue → handler → second queue → handler: what came in at one end comes out at the other."""

    class Last(Processor):
        def __init__(self) -> None:
            self.arrived: set[int] = set()
            super().__init__([(EchoExchange, [('last-queue', 'last-rk')])])

        @messaging.MessageHandler('command', 'forwarded')
        def msg_forwarded(self, content: dict[str, Any]) -> None:
            self.arrived.add(content['parameters'])

    class First(Processor):
        @messaging.MessageHandler('command', 'count')
        def msg_count(self, content: dict[str, Any]) -> None:
            producer.message_forwarded(content['parameters'], _key='last-rk')

    producer = bench.producer()
    last = Last()
    bench.run(First(), last)
    publisher = Publisher(producer, bench.broker.close_all_connections)
    publisher.join()
    producer.flush(LONG)
    eventually(lambda: len(last.arrived) == MESSAGES)


def test_rpc_futures_are_all_answered_across_losses(bench: Bench) -> None:
    bench.run(Counting())
    producer = bench.producer(Asking)
    futures = []
    for number in range(500):
        futures.append(producer.rpc_future_double(number))
        if number % 200 == 100:
            bench.broker.close_all_connections()
    values = [future.result(LONG).body['content']['value'] for future in futures]
    assert values == [2 * number for number in range(500)]


def test_a_handler_under_way_at_a_loss_ends_and_its_message_comes_again(bench: Bench) -> None:
    handling, go_on = threading.Event(), threading.Event()

    class Slow(Processor):
        @messaging.MessageHandler('command', 'slow')
        def msg_slow(self, content: dict[str, Any]) -> None:
            self.seen.put(messaging.current_delivery().redelivered)  # type: ignore[union-attr]
            handling.set()
            assert go_on.wait(TIMEOUT)

    slow = Slow()
    bench.run(slow)
    bench.producer().message_slow().wait(TIMEOUT)
    assert handling.wait(TIMEOUT)
    bench.close_all_connections()
    bench.log.expect('again (consuming)')
    go_on.set()
    assert slow.seen.take(2) == [False, True]
    eventually(lambda: bench.consumers('echo-queue') == 1)
