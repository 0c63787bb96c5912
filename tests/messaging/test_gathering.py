"""One request asks all, and whoever asks takes what comes in time and learns who was silent."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time

import pytest

from postage import messaging, microthreads
from support.messaging import (
    TIMEOUT,
    BareResponder,
    EchoExchange,
    EchoProducer,
    Processor,
    eventually,
    result,
)


class FanoutExchange(messaging.Exchange):
    name = 'fanout-exchange'
    exchange_type = 'fanout'


class AskingProducer(EchoProducer):
    eks = [(FanoutExchange, '')]
    gather_timeout = TIMEOUT


class Instance(Processor):
    """One of several that answer the same question; silent where it is told so."""

    concurrency = 10

    def __init__(self, number, speaks=True):
        self.speaks = speaks
        fingerprint = messaging.Fingerprint(f'instance-{number}', 'test', pid=str(number), host='host')
        super().__init__([(FanoutExchange, [(f'queue-{number}', '')])], fingerprint)

    @messaging.RpcHandler('command', 'ask')
    def rpc_ask(self, content, reply_func):
        self.seen.put('asked')
        try:
            if not self.speaks:
                yield microthreads.sleep(60)
            return self.fingerprint['name']
        finally:
            self.seen.put('ended')

    @messaging.RpcHandler('command', 'fail')
    def rpc_fail(self, content, reply_func):
        raise KeyError(self.fingerprint['name'])


def instances(bench, number, silent=()):
    """So many instances that run, in schedulers of their own."""
    running = [Instance(each, each not in silent) for each in range(number)]
    for each in running:
        bench.run(each)
    for each in running:
        eventually(lambda each=each: each.consumer.conn_broker.cancels is not None)
    return running


def names(count):
    return {f'instance-{number}' for number in range(count)}


def values(replies):
    return {reply.value for reply in replies}


def test_it_takes_the_replies_of_all_as_they_come(bench):
    instances(bench, 5)
    gathered = {}
    for reply in bench.producer(AskingProducer).rpc_gather_ask(_expect=5):
        assert isinstance(reply, messaging.MessageResult)
        gathered[reply.value] = reply.responder['pid']
    assert gathered == {f'instance-{number}': str(number) for number in range(5)}


def test_it_ends_at_the_time_out_with_what_has_come(bench):
    instances(bench, 4, silent=[2])
    began = time.monotonic()
    gathering = bench.producer(AskingProducer).rpc_gather_ask(_timeout=1)
    assert values(gathering) == names(4) - {'instance-2'}
    assert 1 <= time.monotonic() - began < TIMEOUT
    assert gathering.done()
    replies = gathering.result(0)
    assert values(replies) == names(4) - {'instance-2'}
    assert (replies.silent, replies.failure) == (set(), None)


def test_it_ends_at_the_expected_number(bench):
    instances(bench, 4, silent=[0])
    assert len(list(bench.producer(AskingProducer).rpc_gather_ask(_expect=3))) == 3


def test_expected_names_say_who_was_silent(bench):
    instances(bench, 4, silent=[1, 3])
    producer = bench.producer(AskingProducer)
    replies = producer.rpc_gather_ask(_timeout=1, _expect=names(4) | {'nobody'}).result(TIMEOUT)
    assert replies.silent == {'instance-1', 'instance-3', 'nobody'}
    assert values(replies) == {'instance-0', 'instance-2'}
    gathering = producer.rpc_gather_ask(_expect=['instance-0', '2@host'])
    assert len(list(gathering)) >= 2
    assert gathering.silent == set()


def test_an_instance_may_be_expected_by_its_pid_and_host(bench):
    instances(bench, 2)
    replies = bench.producer(AskingProducer).rpc_gather_ask(_expect={'0@host', 'instance-1@host'}).result(TIMEOUT)
    assert (len(replies), replies.silent) == (2, set())


@pytest.mark.parametrize('expected', [0, -1, True, 1.5, 'name', set(), {1}, [None]])
def test_what_cannot_be_expected_is_refused(bench, expected):
    with pytest.raises(messaging.ConfigurationError, match='_expect must be a number of replies, 1 or more, or a set'):
        bench.producer(AskingProducer).rpc_gather_ask(_expect=expected)


def test_it_takes_no_option_that_makes_no_sense(bench):
    with pytest.raises(TypeError, match=r'takes _key, .*_expect, not _max_retry'):
        bench.producer(AskingProducer).rpc_gather_ask(_max_retry=1)


def test_without_a_queue_it_ends_at_once_and_says_why(bench):
    began = time.monotonic()
    gathering = bench.producer(AskingProducer).rpc_gather_ask(_timeout=60, _expect={'a'})
    assert list(gathering) == []
    assert time.monotonic() - began < 30
    replies = gathering.result(0)
    assert isinstance(replies.failure, messaging.Unroutable)
    assert replies.silent == {'a'}


def test_errors_and_exceptions_are_replies(bench):
    instances(bench, 2)
    replies = bench.producer(AskingProducer).rpc_gather_fail(_expect=2).result(TIMEOUT)
    assert {reply.text for reply in replies} == {"'instance-0'", "'instance-1'"}
    for reply in replies:
        with pytest.raises(messaging.RemoteError, match='KeyError'):
            reply.unwrap()


def test_an_exact_builder_wins(bench):
    class Built(AskingProducer):
        def build_rpc_gather_ask(self):
            return messaging.RpcCommand('ask')

    instances(bench, 1)
    assert bench.producer(Built).rpc_gather_ask(_max_retry=0).value == 'instance-0'


def test_the_builder_of_the_command_is_used(bench):
    class Built(AskingProducer):
        def build_rpc_x(self, number):
            return messaging.RpcCommand('ask', number)

    instances(bench, 2)
    assert values(bench.producer(Built).rpc_gather_x(3, _expect=2)) == names(2)


# Microthreads and coroutines


class Asking(microthreads.MicroThread):
    def __init__(self, work):
        self.work = work

    def main(self):
        self.result = yield from self.work()


def in_a_microthread(work):
    scheduler, asking = microthreads.MicroScheduler(autoquit=True), Asking(work)
    scheduler.add_microthread(asking)
    for _ in scheduler.main():
        pass
    return asking.result


def test_a_microthread_yields_it(bench):
    instances(bench, 3)
    producer = bench.producer(AskingProducer)

    def work():
        replies = yield producer.rpc_gather_ask(_expect=3)
        return values(replies)

    assert in_a_microthread(work) == names(3)


def test_a_microthread_yields_each_next_reply(bench):
    instances(bench, 3, silent=[2])
    producer = bench.producer(AskingProducer)

    def work():
        found = []
        gathering = producer.rpc_gather_ask(_timeout=1)
        while (reply := (yield gathering.next())) is not None:
            found.append(reply.value)
        return found

    assert sorted(in_a_microthread(work)) == ['instance-0', 'instance-1']


@pytest.mark.parametrize('by', ['all of it', 'next'])
def test_a_handler_that_asks_all_hears_itself_too(bench, by):
    class AsksAll(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            return 'itself'

        @messaging.RpcHandler('command', 'ask_all')
        def rpc_ask_all(self, content, reply_func):
            gathering, found = producer.rpc_gather_ask(_expect=2), []
            if by == 'all of it':
                found = [reply.value for reply in (yield gathering)]
            else:
                while (reply := (yield gathering.next())) is not None:
                    found.append(reply.value)
            return found

    instances(bench, 1)
    bench.run(AsksAll([(FanoutExchange, [('queue-of-it', '')]), (EchoExchange, [('queue-of-it', 'echo-rk')])]))
    producer = bench.producer(AskingProducer)
    assert sorted(bench.producer().rpc_ask_all().value) == ['instance-0', 'itself']


def test_a_coroutine_iterates_over_it(bench):
    instances(bench, 3)
    producer = bench.producer(AskingProducer)

    async def work():
        return {reply.value async for reply in producer.rpc_gather_ask(_expect=3)}

    assert asyncio.run(work()) == names(3)


def test_a_coroutine_that_stops_waiting_loses_no_reply(bench):
    instances(bench, 1)
    late = threading.Event()

    class Late(Processor):
        @messaging.RpcHandler('command', 'ask')
        @messaging.Threaded
        def rpc_ask(self, content, reply_func):
            assert late.wait(TIMEOUT)
            return 'late'

    bench.run(Late([(FanoutExchange, [('late', '')])]))
    producer = bench.producer(AskingProducer)

    async def work():
        gathering = producer.rpc_gather_ask(_expect=2)
        first = await asyncio.wrap_future(gathering.next())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(gathering.next()), 0.05)
        late.set()
        return first.value, [reply.value async for reply in gathering]

    assert asyncio.run(work()) == ('instance-0', ['late'])


# Ends


def test_what_still_works_at_it_is_cancelled_at_the_end(bench):
    *_, silent = instances(bench, 3, silent=[2])
    eventually(lambda: silent.consumer.conn_broker.cancels.is_open)
    assert len(list(bench.producer(AskingProducer).rpc_gather_ask(_expect=2))) == 2
    assert silent.seen.take(2) == ['asked', 'ended']


def test_leaving_its_with_ends_it(bench):
    silent = instances(bench, 1, silent=[0])[0]
    eventually(lambda: silent.consumer.conn_broker.cancels.is_open)
    with bench.producer(AskingProducer).rpc_gather_ask(_timeout=60) as gathering:
        assert silent.seen.next() == 'asked'
    assert silent.seen.next() == 'ended'
    assert list(gathering) == []
    assert gathering.result(0) == []


@pytest.mark.parametrize('how', ['for', 'async for'])
def test_leaving_its_loop_ends_it(bench, how):
    _, silent = instances(bench, 2, silent=[1])
    eventually(lambda: silent.consumer.conn_broker.cancels.is_open)
    gathering = bench.producer(AskingProducer).rpc_gather_ask(_timeout=60)
    assert silent.seen.next() == 'asked'

    async def first():
        async for reply in gathering:
            assert reply.value == 'instance-0'
            break

    if how == 'for':
        for reply in gathering:
            assert reply.value == 'instance-0'
            break
    else:
        asyncio.run(first())
    assert gathering.done()
    assert silent.seen.next() == 'ended'


def test_cancelling_it_tells_who_waits(bench):
    silent = instances(bench, 1, silent=[0])[0]
    gathering = bench.producer(AskingProducer).rpc_gather_ask(_timeout=60)
    assert silent.seen.next() == 'asked'
    assert gathering.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        gathering.result(TIMEOUT)
    assert list(gathering) == []
    assert concurrent.futures.wait([gathering], TIMEOUT).done == {gathering}


def test_one_next_reply_that_is_cancelled_is_over_and_the_gathering_goes_on(bench):
    instances(bench, 1)
    gathering = bench.producer(AskingProducer).rpc_gather_nothing(_timeout=60)
    assert gathering.next().result(TIMEOUT).text == "no handler for command 'nothing'"
    waiting = gathering.next()
    assert waiting.cancel()
    assert waiting.cancel(), 'as any future, twice'
    assert concurrent.futures.wait([waiting], TIMEOUT).done == {waiting}
    following = gathering.next()
    gathering.close()
    assert following.result(TIMEOUT) is None


def test_a_lost_connection_ends_it_with_what_has_come(bench):
    instances(bench, 2, silent=[1])
    gathering = bench.producer(AskingProducer).rpc_gather_ask(_timeout=60)
    replies = iter(gathering)
    assert next(replies).value == 'instance-0'
    bench.close_all_connections()
    assert list(replies) == []
    failure = gathering.result(0).failure
    assert isinstance(failure, messaging.TimeoutError)
    assert 'the connection was lost after it was sent' in str(failure)


def test_closing_the_producer_ends_it(bench):
    instances(bench, 1, silent=[0])
    producer = AskingProducer()
    gathering = producer.rpc_gather_ask(_timeout=60)
    producer.close()
    assert list(gathering) == []
    assert isinstance(gathering.result(0).failure, messaging.Closed)


def test_a_deadline_that_has_passed_ends_it_before_it_begins(bench):
    instances(bench, 1)
    with messaging.deadline(0):
        replies = bench.producer(AskingProducer).rpc_gather_ask().result(TIMEOUT)
    assert replies == []
    assert isinstance(replies.failure, messaging.TimeoutError)


def test_a_late_reply_without_a_correlation_id_is_not_taken_for_another_calls(bench):
    addresses = []

    def answer(body, properties):
        addresses.append(properties.reply_to)
        if body['name'] == 'ask':
            return [(properties.reply_to, result('in time'), None)]
        return [(addresses[0], result('late'), None), (properties.reply_to, result('another'), None)]

    queue = bench.collect(FanoutExchange, '')
    bench.closing(BareResponder(bench.broker, queue, answer))
    producer = bench.producer(AskingProducer)
    assert values(producer.rpc_gather_ask(_expect=1)) == {'in time'}
    assert producer.rpc_another().value == 'another'
