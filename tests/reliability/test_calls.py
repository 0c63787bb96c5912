"""Calls among many: what is wanted no longer ends everywhere, and calls of every kind leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable

import pytest

from postage import messaging, microthreads
from postage.amqp.cancelled import cancelled
from postage.generic_application import GenericApplicationExchange
from support.messaging import TIMEOUT, Bench, EchoExchange, EchoProducer, Processor, eventually
from support.programs import Program
from support.soak import IS_SOAK

LINKS = 5
ALLOWED = 1.0
"""Seconds that the caller allows."""


class Link(Processor):
    """Asks the next one; the fourth works for two seconds first.

    :ivar seen: gets what its handler does, and when
    """

    concurrency = 10

    def __init__(self, number: int, producer: messaging.GenericProducer) -> None:
        self.number, self.producer = number, producer
        super().__init__([(EchoExchange, [(f'link-{number}', f'link-{number}')])])

    def note(self, what: str) -> None:
        self.seen.put((what, time.monotonic()))


class GeneratorLink(Link):
    @messaging.RpcHandler('command', 'ask')
    def rpc_ask(self, content, reply_func):
        self.note('begun')
        try:
            if self.number == 4:
                yield microthreads.sleep(2)
            if self.number < LINKS:
                return (yield self.producer.rpc_future_ask(_key=f'link-{self.number + 1}', _timeout=60)).value
            return 'answer'
        finally:
            self.note('ended')


class CoroutineLink(Link):
    @messaging.RpcHandler('command', 'ask')
    async def rpc_ask(self, content, reply_func):
        self.note('begun')
        try:
            if self.number == 4:
                await asyncio.sleep(2)
            if self.number < LINKS:
                future = self.producer.rpc_future_ask(_key=f'link-{self.number + 1}', _timeout=60)
                return (await asyncio.wrap_future(future)).value
            return 'answer'
        finally:
            self.note('ended')


@pytest.mark.parametrize('link', [GeneratorLink, CoroutineLink])
def test_a_chain_of_five_ends_everywhere_when_the_time_of_its_caller_is_over(
    bench: Bench, link: type[Link], record_note: Callable[[str], None]
) -> None:
    links = [link(number, bench.producer()) for number in range(1, LINKS + 1)]
    for each in links:
        bench.run(each)
    producer = bench.producer()
    for each in links:
        eventually(lambda each=each: each.consumer.conn_broker.cancels is not None)
    eventually(lambda: links[0].consumer.conn_broker.cancels.is_open)
    began = time.monotonic()
    with messaging.deadline(ALLOWED):
        reply = producer.rpc_ask(_key='link-1')
    heard = time.monotonic() - began
    assert reply.value == 'TimeoutError'
    ends = {}
    for each in links[:4]:
        (_, begun), (what, at) = each.seen.take(2)
        assert what == 'ended'
        assert begun - began < ALLOWED
        ends[each.number] = at - began
    record_note(
        f'a chain of five, {bench.broker.name}: the caller allowed {ALLOWED:g} s and heard after {heard:.3f} s; '
        f'the fourth was closed after {ends[4]:.3f} s'
    )
    # On a machine with nothing else to do it is hundredths of a second; the room is for others that run beside it.
    assert ALLOWED <= heard < ALLOWED + 1
    assert ends[4] < ALLOWED + 1
    time_left = 2.5 - (time.monotonic() - began)  # by then the fourth would have asked the fifth
    threading.Event().wait(max(0.0, time_left))
    assert links[4].seen.empty(), 'the fifth never starts'


# Nothing is left


class Answering(Processor):
    """Answers some calls, and leaves others alone."""

    concurrency = 100

    @messaging.RpcHandler('command', 'answer')
    def rpc_answer(self, content, reply_func):
        return content['parameters']

    @messaging.RpcHandler('command', 'work')
    def rpc_work(self, content, reply_func):
        yield microthreads.sleep(60)


CALLS = 10_000 if IS_SOAK else 600
AT_ONCE = 50


def test_calls_of_every_kind_leave_nothing_behind(bench: Bench) -> None:
    processor = Answering()
    bench.run(processor)
    eventually(lambda: processor.consumer.conn_broker.cancels is not None)
    eventually(lambda: processor.consumer.conn_broker.cancels.is_open)
    producer = bench.producer()
    a_round_of_calls(producer)
    threads = threading.active_count()
    eventually(lambda: not processor.is_busy)
    for _ in range(CALLS // AT_ONCE):
        a_round_of_calls(producer)
    client = producer.conn_broker.rpc_client
    eventually(lambda: not processor.is_busy)
    assert not any(address.calls for address in client._addresses.values())
    assert not client._deadlines._by_timeout
    assert not client.canceller.waiting
    eventually(lambda: len(client._addresses) <= 1)
    eventually(lambda: not cancelled.until and not cancelled._watchers)
    assert threading.active_count() <= threads
    gc.collect()
    kinds = (messaging.RpcFuture, messaging.Gathering)
    assert not [each for each in gc.get_objects() if isinstance(each, kinds)]
    # The processor's queue and that of its cancels; the caller's channels are those of one that has just begun.
    assert bench.broker.queues() == {'echo-queue': 0}
    eventually(lambda: bench.broker.channels() <= 10)


def a_round_of_calls(producer: messaging.GenericProducer) -> None:
    """Make some calls that are answered, cancelled, gathered and timed out."""
    answered = [producer.rpc_future_answer(number) for number in range(AT_ONCE // 5)]
    cancelled_ = [producer.rpc_future_work(_timeout=1) for _ in range(AT_ONCE // 5)]
    timed_out = [producer.rpc_future_work(_timeout=0.05) for _ in range(AT_ONCE // 5)]
    gathered = [producer.rpc_gather_answer(number, _expect=1) for number in range(AT_ONCE // 5)]
    in_vain = [producer.rpc_gather_work(_timeout=0.05) for _ in range(AT_ONCE // 5)]
    for future in cancelled_:
        future.cancel()
    assert [future.value(TIMEOUT) for future in answered] == list(range(AT_ONCE // 5))
    assert all(future.result(TIMEOUT).value == 'TimeoutError' for future in timed_out)
    assert all(len(gathering.result(TIMEOUT)) == 1 for gathering in gathered)
    assert all(len(gathering.result(TIMEOUT)) == 0 for gathering in in_vain)


# Instances that are stopped


class Pinging(EchoProducer):
    eks = [(GenericApplicationExchange, 'application')]


INSTANCES = 50 if IS_SOAK else 12
STOPPED = 3

APPLICATION = """
import os, sys
from postage import messaging, microthreads
from postage.generic_application import GenericApplication

class Application(GenericApplication):
    @messaging.RpcHandler('command', 'count')
    def rpc_count(self, content, reply_func):
        print('asked', flush=True)
        return os.getpid()

scheduler = microthreads.MicroScheduler()
for number in range(int(sys.argv[1])):
    fingerprint = messaging.Fingerprint('application', 'test', pid=f'{os.getpid()}-{number}', host='host')
    scheduler.add_microthread(Application(fingerprint))
print('ready', flush=True)
scheduler.run()
"""


def test_of_many_applications_those_that_are_stopped_are_named_and_answer_nothing_late(
    bench: Bench, run_program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {'POSTAGE_URL': bench.broker.url}
    lively = run_program(APPLICATION, [str(INSTANCES - STOPPED)], environment=environment)
    stopped = [run_program(APPLICATION, ['1'], environment=environment) for _ in range(STOPPED)]
    for program in (lively, *stopped):
        program.expect('ready')
    everybody = {f'{lively.pid}-{number}@host' for number in range(INSTANCES - STOPPED)}
    silent = {f'{program.pid}-0@host' for program in stopped}
    producer = bench.producer(Pinging)
    eventually(lambda: len(producer.rpc_gather_ping(_expect=INSTANCES, _timeout=5).result(TIMEOUT)) == INSTANCES)
    for program in stopped:
        program.send_signal(signal.SIGSTOP)
    try:
        found = producer.rpc_gather_ping(_timeout=1, _expect=everybody | silent).result(TIMEOUT)
        assert len(found) == INSTANCES - STOPPED
        assert found.silent == silent
        counted = producer.rpc_gather_count(_timeout=1, _expect=everybody | silent).result(TIMEOUT)
        assert counted.silent == silent
        late = producer.late_replies
        threading.Event().wait(1.0)  # more than clocks may differ, where the cancels were lost
    finally:
        for program in stopped:
            program.send_signal(signal.SIGCONT)
    answers = producer.rpc_gather_ping(_expect=INSTANCES, _timeout=TIMEOUT).result(2 * TIMEOUT)
    assert len(answers) == INSTANCES
    assert producer.late_replies == late
    for program in stopped:
        assert program.count('asked') == 0
        program.expect('is dropped unhandled')
