"""Programs that end in good order: ``quit``, SIGTERM, SIGINT, and the time of grace."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from postage import messaging
from support.messaging import (
    TIMEOUT,
    Bench,
    Echo,
    EchoExchange,
    GreedyConsumer,
    Processor,
    Seen,
    echo_producer,
    eventually,
)
from support.programs import ECHO, Program

SIGNALS = [signal.SIGTERM, signal.SIGINT]

WORKER = (
    ECHO
    + """
import logging, sys, time

logging.basicConfig(format='%(levelname)s %(message)s')

class Producer(messaging.GenericProducer):
    eks = [(EchoExchange, 'done-rk')]

class Worker(messaging.MessageProcessor):
    consumer_class = Greedy

    @messaging.MessageHandler('command', 'work')
    def msg_work(self, content):
        number, seconds = content['parameters']
        print('begun', number)
        time.sleep(seconds)
        producer.message_done(number)
        print('done', number)

class Neighbour(microthreads.MicroThread):
    def main(self):
        try:
            while True:
                yield microthreads.sleep(3600)
        finally:
            print('the neighbour was closed')

producer = Producer()
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(Worker({}, [(EchoExchange, [('work', 'work-rk')])]))
scheduler.add_microthread(Neighbour())
print('ready')
scheduler.run(grace=float(sys.argv[1]))
print('run() has returned')
"""
)


class Site:
    """A worker in a process of its own, and what there is for it to do.

    :ivar done: the queue to which it reports what it has done
    """

    def __init__(self, bench: Bench, run_program: Callable[..., Program], grace: float) -> None:
        self.bench = bench
        self.done = bench.collect(key='done-rk')
        self.worker = run_program(WORKER, [str(grace)])
        self.worker.expect('ready')
        self._producer = bench.producer(echo_producer('work-rk'))

    def give(self, *seconds: float) -> None:
        """Give it pieces of work, numbered from 1, that take so long each; wait until it has begun the first."""
        for number, each in enumerate(seconds, 1):
            self._producer.message_work([number, each])
        self.worker.expect('begun 1')

    def left(self) -> list[tuple[int, bool]]:
        """Take what is left of the work: each piece's number, and whether it has been delivered before."""
        self._producer.flush(TIMEOUT)
        left = []
        for _ in range(self.bench.count('work')):
            message = self.bench.get('work')
            left.append((message.parameters[0], message.method.redelivered))
        return left


# A signal


@pytest.mark.parametrize(('number', 'seconds'), [(signal.SIGTERM, 2.0), (signal.SIGINT, 0.5)])
def test_at_a_signal_the_handler_ends_and_the_rest_is_handed_back(
    bench: Bench, run_program: Callable[..., Program], number: signal.Signals, seconds: float
) -> None:
    site = Site(bench, run_program, grace=10)
    site.give(seconds, 0, 0)
    site.worker.send_signal(number)
    assert site.worker.wait() == 0, site.worker.output
    assert site.worker.lines == [
        'ready',
        'begun 1',
        'done 1',
        'the neighbour was closed',
        'run() has returned',
    ]
    assert site.left() == [(2, True), (3, True)], 'the first is acknowledged, the others were only prefetched'


def test_what_the_last_handler_published_is_confirmed_before_the_end(
    bench: Bench, run_program: Callable[..., Program]
) -> None:
    site = Site(bench, run_program, grace=10)
    site.give(0.5)
    site.worker.send_signal(signal.SIGTERM)
    assert site.worker.wait() == 0
    assert bench.get(site.done).parameters == 1


@pytest.mark.parametrize('number', SIGNALS)
def test_an_idle_program_ends_at_once(
    bench: Bench, run_program: Callable[..., Program], number: signal.Signals
) -> None:
    site = Site(bench, run_program, grace=30)
    eventually(lambda: bench.consumers('work') == 1)
    begun = time.monotonic()
    site.worker.send_signal(number)
    assert site.worker.wait() == 0
    assert time.monotonic() - begun < 3
    assert site.worker.lines[-1] == 'run() has returned'


@pytest.mark.parametrize('number', SIGNALS)
def test_a_second_signal_ends_the_program_at_once(
    bench: Bench, run_program: Callable[..., Program], number: signal.Signals
) -> None:
    site = Site(bench, run_program, grace=30)
    site.give(30)
    site.worker.send_signal(number)
    with pytest.raises(AssertionError, match='still running'):
        site.worker.wait(0.3)
    site.worker.send_signal(number)
    assert site.worker.wait(3) == -number
    assert 'done 1' not in site.worker.lines
    eventually(lambda: bench.count('work') == 1)
    assert site.left() == [(1, True)]


def test_a_second_signal_may_be_another_one(bench: Bench, run_program: Callable[..., Program]) -> None:
    site = Site(bench, run_program, grace=30)
    site.give(30)
    site.worker.send_signal(signal.SIGINT)
    with pytest.raises(AssertionError, match='still running'):
        site.worker.wait(0.3)
    site.worker.send_signal(signal.SIGTERM)
    assert site.worker.wait(3) == -signal.SIGTERM


@pytest.mark.parametrize('number', SIGNALS)
def test_what_has_not_ended_within_the_time_of_grace_is_interrupted_and_delivered_again(
    bench: Bench, run_program: Callable[..., Program], number: signal.Signals
) -> None:
    site = Site(bench, run_program, grace=0.5)
    site.give(30, 0)
    site.worker.send_signal(number)
    assert site.worker.wait(5) == 0, site.worker.output
    assert site.worker.expect('ERROR').endswith('did not end within 0.5 s of the signal, and was interrupted')
    assert site.worker.lines[-1] == 'run() has returned'
    assert 'done 1' not in site.worker.lines
    assert 'Traceback' not in site.worker.output
    assert site.left() == [(1, True), (2, True)]


def test_a_flood_of_quick_messages_does_not_delay_the_end(bench: Bench, run_program: Callable[..., Program]) -> None:
    site = Site(bench, run_program, grace=10)
    site.give(*2000 * [0])
    site.worker.send_signal(signal.SIGTERM)
    assert site.worker.wait() == 0, site.worker.output
    handled = {int(line.split()[1]) for line in site.worker.lines if line.startswith('done')}
    left = {number for number, _ in site.left()}
    assert handled | left == set(range(1, 2001))
    assert not handled & left, 'something that was handled is delivered again'
    assert bench.count(site.done) == len(handled), 'something that was handled is not reported'


def test_signals_are_handled_as_before_once_run_has_returned(run_program: Callable[..., Program]) -> None:
    program = run_program("""
import signal
from postage import microthreads
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
microthreads.MicroScheduler(autoquit=True).run()
print(before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))
""")
    assert program.wait() == 0
    assert program.lines == ['True']


# quit


class Slow(Processor):
    """Notes what it begins, and goes on when it is told to."""

    consumer_class = GreedyConsumer

    def __init__(self) -> None:
        super().__init__()
        self.go_on = Seen()

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        self.seen.put(content['parameters'])
        self.go_on.next()


def test_quit_hands_back_what_was_prefetched(bench: Bench) -> None:
    slow = Slow()
    running = bench.run(slow)
    producer = bench.producer()
    producer.message_echo('first')
    assert slow.seen.next() == 'first'
    producer.message_quit()
    for number in range(10):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    eventually(lambda: bench.count('echo-queue') == 0)  # all of it is prefetched
    slow.go_on.put('on')
    running.wait()
    assert bench.count('echo-queue') == 10, 'what was handed back is there as soon as the loop has ended'

    other = Echo()
    bench.run(other)
    assert other.seen.take(10) == list(range(10)), 'in the order in which it was sent'
    assert slow.seen.empty()


def test_quit_itself_is_acknowledged(bench: Bench) -> None:
    running = bench.run(Echo())
    bench.producer().message_quit()
    running.wait()
    assert bench.broker.queues() == {'echo-queue': 0}


def test_quit_cancels_the_consumers_of_every_processor_in_the_loop(bench: Bench) -> None:
    queues = ['first-queue', 'second-queue']
    processors = [Echo([(EchoExchange, [(queue, queue)])]) for queue in queues]
    running = bench.run(*processors)
    producer = bench.producer()
    eventually(lambda: [bench.consumers(queue) for queue in queues] == [1, 1])
    producer.message_quit(_key='first-queue')
    running.wait()
    assert [bench.consumers(queue) for queue in queues] == [0, 0]


def test_a_program_goes_on_after_quit_and_may_run_its_processor_again(bench: Bench) -> None:
    echo = Echo()
    running = bench.run(echo)
    producer = bench.producer()
    producer.message_quit()
    running.wait()
    producer.message_echo('later').wait()
    bench.run(echo)
    assert echo.seen.next() == 'later'
