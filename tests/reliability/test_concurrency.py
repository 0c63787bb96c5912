"""Many threads, many processors, one flood: every message once, every answer to its asker, everybody gets a turn."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from postage import messaging
from postage.microthreads import MicroScheduler, MicroThread, sleep
from support.brokers import Broker
from support.loops import Loop
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, EchoProducer, Processor, eventually
from support.rabbitmq_versions import find_server

THREADS = 8
MESSAGES_EACH = 500
ASKERS = 4
QUESTIONS_EACH = 200


def in_threads(number: int, call: Callable[[int], Any]) -> list[Any]:
    """Call it with 0, 1, 2 … in as many threads at once, and return what it returned."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(call, range(number), timeout=30))


# Threads


def test_eight_threads_publish_through_one_producer_and_every_message_arrives_once(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()

    def publish(thread: int) -> list[Any]:
        return [producer.message_echo([thread, number]) for number in range(MESSAGES_EACH)]

    receipts = [receipt for each in in_threads(THREADS, publish) for receipt in each]
    producer.flush(TIMEOUT)
    assert all(receipt.confirmed for receipt in receipts)
    assert len({receipt.message_id for receipt in receipts}) == THREADS * MESSAGES_EACH
    got = echo.seen.take(THREADS * MESSAGES_EACH)
    for thread in range(THREADS):
        assert [number for publisher, number in got if publisher == thread] == list(range(MESSAGES_EACH))
    assert echo.seen.empty()


def test_four_threads_ask_at_once_and_each_gets_its_own_answers(bench: Bench) -> None:
    bench.run(Echo())
    producer = bench.producer()

    def ask(thread: int) -> list[Any]:
        return [producer.rpc_echo([thread, number]).body['content']['value'] for number in range(QUESTIONS_EACH)]

    for thread, answers in enumerate(in_threads(ASKERS, ask)):
        assert answers == [[thread, number] for number in range(QUESTIONS_EACH)]


def test_eight_threads_publish_while_four_ask(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()

    def work(thread: int) -> list[Any]:
        if thread < THREADS:
            return [producer.message_echo([thread, number]) for number in range(MESSAGES_EACH)]
        return [producer.rpc_echo([thread, number]).body['content']['value'] for number in range(QUESTIONS_EACH)]

    results = in_threads(THREADS + ASKERS, work)
    producer.flush(TIMEOUT)
    for thread in range(THREADS, THREADS + ASKERS):
        assert results[thread] == [[thread, number] for number in range(QUESTIONS_EACH)]
    got = Counter(map(tuple, echo.seen.take(THREADS * MESSAGES_EACH)))
    assert got == Counter((thread, number) for thread in range(THREADS) for number in range(MESSAGES_EACH))


def test_producers_may_be_made_used_and_closed_in_many_threads_at_once(bench: Bench) -> None:
    queue = bench.collect()

    def publish(thread: int) -> None:
        for number in range(10):
            with EchoProducer() as producer:
                producer.message_echo([thread, number])

    in_threads(THREADS, publish)
    assert bench.count(queue) == THREADS * 10


def test_answers_may_come_from_other_threads_in_any_order(bench: Bench) -> None:
    class Delayed(Processor):
        @messaging.RpcHandler('command', 'later')
        def rpc_later(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
            number = content['parameters']
            timer = threading.Timer(0.001 * (20 - number), reply_func, (number,))
            timers.append(timer)
            timer.start()

    timers: list[threading.Timer] = []
    bench.run(Delayed())
    producer = bench.producer()
    futures = [producer.rpc_future_later(number) for number in range(20)]
    assert [future.result(TIMEOUT).body['content']['value'] for future in futures] == list(range(20))
    for timer in timers:
        timer.join(TIMEOUT)


# One scheduler

FLOOD = 10_000


class Counting(MicroThread):
    """Counts its turns."""

    turns = 0

    def step(self) -> None:
        self.turns += 1


class Ticking(MicroThread):
    """Notes how late it is woken, a hundred times a second."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def main(self) -> Any:
        while True:
            due = time.monotonic() + 0.01
            yield sleep(0.01)
            self.delays.append(time.monotonic() - due)


@pytest.fixture
def flooded(bench: Bench) -> Any:
    """A queue with thousands of messages in it."""
    bench.consumer([(EchoExchange, [('flooded-queue', 'flood-rk')])]).close()
    producer = bench.producer()
    for number in range(FLOOD):
        producer.message_echo(number, _key='flood-rk')
    producer.flush(30)
    return [(EchoExchange, [('flooded-queue', 'flood-rk')])]


class Busy(Echo):
    """Takes so long for each message that the flood lasts for seconds."""

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        time.sleep(0.0005)
        self.seen.put(content['parameters'])


def test_three_processors_and_a_microthread_all_progress_while_one_queue_is_flooded(bench: Bench, flooded: Any) -> None:
    busy = Busy(flooded)
    first = Echo([(EchoExchange, [('first-queue', 'first-rk')])])
    second = Echo([(EchoExchange, [('second-queue', 'second-rk')])])
    counting, ticking = Counting(), Ticking()
    scheduler = MicroScheduler()
    for microthread in (busy, first, second, counting, ticking):
        scheduler.add_microthread(microthread)
    producer = bench.producer()
    loop = Loop(scheduler)
    try:
        handled = len(busy.seen.take(100))
        turns, ticks = counting.turns, len(ticking.delays)
        for number in range(5):
            for key, processor in (('first-rk', first), ('second-rk', second)):
                producer.message_echo(number, _key=key)
                assert processor.seen.next() == number
                assert producer.rpc_echo(number, _key=key).body['content']['value'] == number
        assert counting.turns > turns + 10
        assert len(ticking.delays) > ticks
        assert max(ticking.delays) < 0.5
        handled += busy.seen.qsize()
        assert 100 < handled < FLOOD, 'either the flood stood still or it was over too early to say anything'
    finally:
        loop.stop()
        for processor in (busy, first, second):
            processor.close()


def test_the_messages_of_a_flooded_queue_are_handled_in_their_order(bench: Bench, flooded: Any) -> None:
    echo = Echo(flooded)
    bench.run(echo)
    assert echo.seen.take(FLOOD) == list(range(FLOOD))


def test_two_processors_share_one_queue_and_every_message_is_handled_once(bench: Bench) -> None:
    first, second = Echo(), Echo()
    bench.run(first)
    bench.run(second)
    eventually(lambda: bench.consumers('echo-queue') == 2)
    producer = bench.producer()
    for number in range(1000):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    eventually(lambda: first.seen.qsize() + second.seen.qsize() == 1000)
    got = [first.seen.take(first.seen.qsize()), second.seen.take(second.seen.qsize())]
    assert sorted(got[0] + got[1]) == list(range(1000))
    assert all(got)


# Slow handlers

HEARTBEAT = 4
SLOW = 15.0


class Sleeping(Processor):
    """Its handler takes much longer than the heartbeat."""

    @messaging.MessageHandler('command', 'sleep')
    def msg_sleep(self, content: dict[str, Any]) -> None:
        self.seen.put(content['parameters'])
        time.sleep(content['parameters'])


@pytest.fixture
def all_brokers(request: pytest.FixtureRequest) -> list[Broker]:
    """Every broker that there is, for one test that is too slow to be run twice."""
    names = ['embedded', 'rabbitmq'] if find_server() else ['embedded']
    return [request.getfixturevalue(name) for name in names]


def test_a_handler_that_outlasts_the_heartbeat_runs_once_and_the_connection_is_kept(
    all_brokers: list[Broker], caplog: pytest.LogCaptureFixture
) -> None:
    processors, loops, producers = [], [], []
    for broker in all_brokers:
        url = f'{broker.url}?heartbeat={HEARTBEAT}'
        processors.append(Sleeping(EQK, hup=url))
        producers.append(EchoProducer(None, url))
        scheduler = MicroScheduler()
        scheduler.add_microthread(processors[-1])
        loops.append(Loop(scheduler))
        producers[-1].message_sleep(SLOW)
        producers[-1].message_sleep(0)
    try:
        for processor in processors:
            assert processor.seen.next() == SLOW
        for processor in processors:
            assert processor.seen.get(timeout=SLOW + TIMEOUT) == 0
    finally:
        for loop, processor, producer in zip(loops, processors, producers, strict=True):
            loop.stop()
            processor.close()
            producer.close()
    assert 'was lost' not in caplog.text
    for broker, processor in zip(all_brokers, processors, strict=True):
        assert processor.seen.empty()
        assert broker.queues()['echo-queue'] == 0
