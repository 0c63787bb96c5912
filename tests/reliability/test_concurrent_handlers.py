"""A thousand handlers in flight at once; handlers that wait through reconnects, and at the end of their program."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from postage import messaging, microthreads
from support.messaging import (
    GUARDED_EQK,
    TIMEOUT,
    Bench,
    EchoExchange,
    EchoProducer,
    Processor,
    Seen,
    eventually,
)
from support.programs import ECHO, Program
from support.recovery import await_reconnect

MANY = 1000


class AnswerProducer(EchoProducer):
    eks = [(EchoExchange, 'answer-rk')]


class Answering(Processor):
    """Answers each ``answer`` when it is told to.

    :ivar seen: the parameters of each request
    :ivar go_on: answers wait for this, and then for :attr:`delay` seconds
    """

    concurrency = 10 * MANY
    delay = 0.0

    def __init__(self) -> None:
        self.go_on: Future[None] = Future()
        super().__init__([(EchoExchange, [('answer-queue', 'answer-rk')])])

    @messaging.RpcHandler('command', 'answer')
    def rpc_answer(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> Any:
        self.seen.put(content['parameters'])
        yield self.go_on
        yield microthreads.sleep(self.delay)
        return content['parameters']


# A thousand in flight

ASKING = (
    ECHO
    + """
import json, re, sys, threading

class AnswerProducer(messaging.GenericProducer):
    eks = [(EchoExchange, 'answer-rk')]

def kilobytes(name):
    with open('/proc/self/status') as status:
        return int(re.search(name + r':\\s+(\\d+)', status.read())[1])

class Asking(messaging.MessageProcessor):
    concurrency = 1000
    in_flight = most = redelivered = 0
    answers = []
    threads = set()

    @messaging.MessageHandler('command', 'work')
    def msg_work(self, content):
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self.redelivered += messaging.current_delivery().redelivered
        self.threads.add(threading.get_ident())
        answer = yield producer.rpc_future_answer(content['parameters'])
        self.answers.append(answer.body['content']['value'])
        self.in_flight -= 1

    @messaging.RpcHandler('command', 'idle')
    def rpc_idle(self, content, reply_func):
        self.idle = kilobytes('VmRSS')
        reply_func(self.idle)

    @messaging.RpcHandler('command', 'answers')
    def rpc_answers(self, content, reply_func):
        return len(self.answers)

producer = AnswerProducer()
asking = Asking({}, [(EchoExchange, [('work-queue', 'work-rk')])])
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(asking)
for _ in scheduler.main():
    pass
print(json.dumps({
    'most': asking.most, 'redelivered': asking.redelivered, 'answers': sorted(asking.answers),
    'threads': len(asking.threads), 'grown': kilobytes('VmHWM') - asking.idle,
}))
"""
)


class WorkProducer(EchoProducer):
    eks = [(EchoExchange, 'work-rk')]


@pytest.mark.skipif(sys.platform != 'linux', reason='reads its memory in /proc')
def test_a_thousand_handlers_wait_for_their_answers_at_the_same_time(
    bench: Bench, run_program: Callable[..., Program]
) -> None:
    answering = Answering()
    answering.delay = 0.2
    bench.run(answering)
    program = run_program(ASKING)
    bench.await_consumed('work-queue')
    producer = bench.producer(WorkProducer)
    assert producer.rpc_idle(), 'it is idle, and has measured its memory'
    for number in range(MANY):
        producer.message_work(number)
    assert sorted(answering.seen.take(MANY)) == list(range(MANY)), 'each has asked, and none is answered'
    answering.go_on.set_result(None)
    eventually(lambda: producer.rpc_answers().body['content']['value'] == MANY)
    producer.message_quit()
    assert program.wait() == 0, program.output
    told = json.loads(program.lines[-1])
    assert told['most'] == MANY, 'all of them in flight together'
    assert told['threads'] == 1
    assert told['answers'] == list(range(MANY))
    assert told['redelivered'] == 0
    assert bench.broker.queues() == {'answer-queue': 0, 'work-queue': 0}, 'every message is acknowledged'
    assert answering.seen.empty(), 'nothing was asked twice'
    assert told['grown'] < 50 * 1024, 'kilobytes'


# Reconnects


class Asking(Processor):
    """Asks for each ``work``, and notes what it gets."""

    concurrency = 10 * MANY
    options: dict[str, Any] = {}

    def __init__(self, producer: Any) -> None:
        self.producer = producer
        self.began = Seen()
        super().__init__([(EchoExchange, [('work-queue', 'work-rk')])])

    @messaging.MessageHandler('command', 'work')
    def msg_work(self, content: dict[str, Any]) -> Any:
        number = content['parameters']
        delivery = messaging.current_delivery()
        assert delivery is not None
        self.began.put((number, delivery.redelivered))
        answer = yield self.producer.rpc_future_answer(number, **self.options)
        self.seen.put((number, answer.body['content']['value']))


def parked(bench: Bench, number: int, **options: Any) -> tuple[Asking, Answering]:
    """So many handlers that wait for answers, which nobody gives yet."""
    answering = Answering()
    asking = Asking(bench.producer(AnswerProducer))
    asking.options = options
    bench.run(answering)
    bench.run(asking)
    producer = bench.producer(WorkProducer)
    for each in range(number):
        producer.message_work(each)
    producer.flush(TIMEOUT)
    answering.seen.take(number)
    assert sorted(asking.began.take(number)) == [(each, False) for each in range(number)]
    return asking, answering


def test_handlers_that_wait_through_a_reconnect_get_the_answers_to_their_next_attempts(bench: Bench) -> None:
    asking, answering = parked(bench, 100, _max_retry=5)
    bench.close_all_connections()
    await_reconnect(bench.log)
    # The attempts that were under way have failed and the next begin; the messages in hand are delivered again, too.
    assert sorted(asking.began.take(100)) == [(number, True) for number in range(100)]
    answering.go_on.set_result(None)
    got = asking.seen.take(200)
    assert sorted(got) == sorted(2 * [(number, number) for number in range(100)]), 'none hangs, none fails'
    bench.log.expect('WARNING', 'acknowledgements of messages delivered before the connection was lost')
    eventually(lambda: not asking.is_busy and not answering.is_busy)
    for running in (asking, answering):
        running.scheduler.stop()  # type: ignore[union-attr]
    eventually(lambda: bench.broker.queues() == {'answer-queue': 0, 'work-queue': 0})
    assert asking.seen.empty()


def test_handlers_whose_last_attempt_is_lost_are_told_and_none_hangs(bench: Bench) -> None:
    asking, _ = parked(bench, 100, _max_retry=0, _timeout=60)
    bench.close_all_connections()
    got = asking.seen.take(100)
    assert sorted(got) == [(number, 'TimeoutError') for number in range(100)], 'long before the 60 seconds are over'


def test_a_handler_of_every_colour_goes_on_through_a_reconnect(bench: Bench) -> None:
    begun = Seen()
    go_on = threading.Event()
    unparked: list[Future[None]] = []

    class Colours(Processor):
        concurrency = 10

        def park(self, name: str) -> Future[None]:
            unparked.append(Future())
            begun.put(name)
            return unparked[-1]

        @messaging.MessageHandler('command', 'generator')
        def msg_generator(self, content: Any) -> Any:
            yield self.park('generator')
            self.seen.put('generator')

        @messaging.MessageHandler('command', 'coroutine')
        async def msg_coroutine(self, content: Any) -> None:
            await asyncio.wrap_future(self.park('coroutine'))
            self.seen.put('coroutine')

        @messaging.MessageHandler('command', 'threaded')
        @messaging.Threaded
        def msg_threaded(self, content: Any) -> None:
            begun.put('threaded')
            go_on.wait(TIMEOUT)
            self.seen.put('threaded')

    names = ['coroutine', 'generator', 'threaded']
    colours = Colours(GUARDED_EQK)
    bench.dead()
    bench.run(colours)
    producer = bench.producer()
    for name in names:
        getattr(producer, f'message_{name}')()
    assert sorted(begun.take(3)) == names
    bench.close_all_connections()
    assert sorted(begun.take(3)) == names, 'all three are delivered again'
    go_on.set()
    for future in unparked:
        future.set_result(None)
    assert sorted(colours.seen.take(6)) == sorted(2 * names)
    bench.log.expect('WARNING', 'acknowledgements of messages delivered before the connection was lost')
    eventually(lambda: not colours.is_busy)
    colours.scheduler.stop()  # type: ignore[union-attr]
    eventually(lambda: bench.broker.queues() == {'dead': 0, 'echo-queue': 0})


def test_a_chain_of_components_under_load_survives_reconnects(bench: Bench) -> None:
    """Every request is answered, with its own answer, while the broker closes all connections again and again."""

    class Link(Processor):
        concurrency = 100

        def __init__(self, number: int) -> None:
            self.number = number
            super().__init__([(EchoExchange, [(f'link-{number}', f'link-{number}')])])

        @messaging.RpcHandler('command', 'pass_on')
        def rpc_pass_on(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> Any:
            value = content['parameters']
            if self.number == 0:
                return value
            answer = yield producer.rpc_future_pass_on(value, _key=f'link-{self.number - 1}', _timeout=2, _max_retry=20)
            return answer.body['content']['value']

    producer = bench.producer()
    links = [Link(number) for number in range(3)]
    bench.run(*links)
    calls = [producer.rpc_future_pass_on(number, _key='link-2', _timeout=5, _max_retry=10) for number in range(300)]
    for times in range(1, 4):
        bench.close_all_connections()
        await_reconnect(bench.log, times)
    answers = [call.result(5 * TIMEOUT).body['content']['value'] for call in calls]
    assert answers == list(range(300))
    eventually(lambda: not any(link.is_busy for link in links))


# The end of the program

WORKER = (
    ECHO
    + """
import asyncio, logging, sys, threading

logging.basicConfig(format='%(levelname)s %(message)s')

class Worker(messaging.MessageProcessor):
    @messaging.MessageHandler('command', 'generator')
    def msg_generator(self, content):
        print('begun')
        try:
            yield microthreads.sleep(content['parameters'])
            print('done')
        finally:
            print('finally')

    @messaging.MessageHandler('command', 'coroutine')
    async def msg_coroutine(self, content):
        print('begun')
        try:
            await asyncio.sleep(content['parameters'])
            print('done')
        finally:
            print('finally')

    @messaging.MessageHandler('command', 'threaded')
    @messaging.Threaded
    def msg_threaded(self, content):
        print('begun')
        end.wait(content['parameters'])
        print('done')
        print('finally')

end = threading.Event()
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(Worker({}, [(EchoExchange, [('work', 'work-rk')])]))
print('ready')
scheduler.run(grace=float(sys.argv[1]))
end.set()
print('run() has returned')
"""
)

COLOURS = ['generator', 'coroutine', 'threaded']


def give(bench: Bench, run_program: Callable[..., Program], colour: str, seconds: float, grace: float) -> Program:
    """A worker with one message in hand and another one that waits."""
    worker = run_program(WORKER, [str(grace)])
    worker.expect('ready')
    producer = bench.producer(WorkProducer)
    for _ in range(2):
        getattr(producer, f'message_{colour}')(seconds)
    worker.expect('begun')
    return worker


@pytest.mark.parametrize('colour', COLOURS)
def test_at_a_signal_what_is_in_flight_finishes_within_the_time_of_grace(
    bench: Bench, run_program: Callable[..., Program], colour: str
) -> None:
    worker = give(bench, run_program, colour, seconds=1, grace=10)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.lines == ['ready', 'begun', 'done', 'finally', 'run() has returned']
    assert bench.count('work') == 1, 'the first is acknowledged, the second was never begun'


@pytest.mark.parametrize('colour', COLOURS)
def test_at_the_end_of_the_time_of_grace_what_is_in_flight_is_closed_and_handed_back(
    bench: Bench, run_program: Callable[..., Program], colour: str
) -> None:
    worker = give(bench, run_program, colour, seconds=60, grace=0.5)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0, worker.output
    worker.expect('did not end within 0.5 s of the signal, and was interrupted')
    assert worker.count('finally') == 1
    assert worker.count('begun') == 1
    eventually(lambda: bench.count('work') == 2)
    assert sorted(bench.get('work').method.redelivered for _ in range(2))[-1] is True


@pytest.mark.parametrize('colour', COLOURS)
def test_a_handler_in_flight_when_its_program_is_killed_is_delivered_again(
    bench: Bench, run_program: Callable[..., Program], colour: str
) -> None:
    worker = give(bench, run_program, colour, seconds=60, grace=1)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    eventually(lambda: bench.count('work') == 2)
