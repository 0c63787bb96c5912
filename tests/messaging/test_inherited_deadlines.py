"""A request knows until when its answer is waited for, and so does all that is asked for its sake."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import time

import pytest

from postage import messaging, microthreads
from postage.messaging.metrics import samples
from support.messaging import TIMEOUT, Echo, EchoExchange, Processor, command, eventually, result

NONE = 'none'


class Silent(Processor):
    """Notes each request, and never answers."""

    @messaging.RpcHandler('command')
    def rpc_any(self, content, reply_func):
        self.seen.put((messaging.remaining(), messaging.current_delivery()))


def text(reply):
    assert isinstance(reply, messaging.MessageResultException), reply
    assert reply.value == 'TimeoutError'
    return reply.text


# What a request carries


def test_a_request_carries_the_moment_at_which_its_caller_gives_up(bench):
    queue = bench.collect()
    producer = bench.producer()
    for options, seconds in [({'_timeout': 20}, 20), ({'_timeout': 20, '_max_retry': 2}, 60)]:
        for headers in ({}, {'_headers': {'own': 1}}):
            producer.rpc_future_ask(**options, **headers)
            got = bench.await_message(queue).properties
            assert got.headers['x-postage-deadline'] / 1000 - time.time() == pytest.approx(seconds, abs=5)
            assert int(got.expiration) / 1000 == pytest.approx(seconds, abs=5)
            assert ('own' in got.headers) == bool(headers)


def test_a_message_and_a_call_by_queue_carry_none(bench):
    queue = bench.collect()
    producer = bench.producer()
    with messaging.deadline(20):
        producer.message_echo().wait(TIMEOUT)
        producer.rpc_queue_echo()
    for _ in range(2):
        assert not bench.await_message(queue).properties.headers


# What is late


def publish(bench, seconds, **fields):
    """Publish a request whose deadline is so many seconds from now, and return its id."""
    deadline = int(1000 * (time.time() + seconds))
    bench.publish(
        command('echo', seconds, category='rpc'),
        reply_to='answers',
        correlation_id=f'{seconds}',
        headers={'x-postage-deadline': deadline, **fields},
    )


def test_a_request_past_its_deadline_is_dropped_before_its_handler_and_acknowledged(bench):
    bench.bare.queue_declare('answers', exclusive=True)
    echo = Echo()
    bench.run(echo)
    publish(bench, -2)
    publish(bench, -2, own='header')
    publish(bench, 20)
    assert bench.await_message('answers').body['content']['value'] == 20
    assert bench.count('echo-queue') == 0
    for line in bench.log.find('is dropped unhandled: its deadline passed 2.'):
        assert line.startswith('WARNING postage: <Delivery')
    assert len(bench.log.find('is dropped unhandled')) == 2
    assert (echo.figures.unwanted, echo.figures.as_dict()['unwanted'], echo.figures.received) == (2, 2, 1)
    assert 2 in [each.value for each in samples() if each.name == 'postage.messages.unwanted']
    bench.bare.queue_delete('answers')


def test_clocks_may_differ_by_what_the_settings_say(bench, monkeypatch):
    bench.bare.queue_declare('answers', exclusive=True)
    monkeypatch.setenv('POSTAGE_CLOCK_TOLERANCE', '60')
    bench.run(Echo())
    publish(bench, -50)
    assert bench.await_message('answers').body['content']['value'] == -50
    bench.bare.queue_delete('answers')


@pytest.mark.parametrize('seconds', ['x', '-1', 'inf', 'nan'])
def test_a_tolerance_that_is_no_number_of_seconds_is_refused(bench, monkeypatch, seconds):
    monkeypatch.setenv('POSTAGE_CLOCK_TOLERANCE', seconds)
    with pytest.raises(messaging.ConfigurationError, match='POSTAGE_CLOCK_TOLERANCE must be a number of seconds'):
        bench.closing(Echo([]))


@pytest.mark.parametrize('deadline', ['soon', True, None, 2**62, [1]])
def test_a_header_that_is_no_moment_counts_for_nothing(bench, deadline):
    bench.bare.queue_declare('answers', exclusive=True)
    bench.run(Echo())
    bench.publish(command('echo', 1, category='rpc'), reply_to='answers', headers={'x-postage-deadline': deadline})
    assert bench.await_message('answers').body['content']['value'] == 1
    bench.bare.queue_delete('answers')


# Blocks


def test_a_block_bounds_all_the_attempts_of_a_call(bench):
    processor = Silent()
    bench.run(processor)
    producer = bench.producer()
    began = time.monotonic()
    with messaging.deadline(0.3):
        found = text(producer.rpc_ask(_timeout=60, _max_retry=4))
    assert 0.3 <= time.monotonic() - began < TIMEOUT
    assert 'though the broker took the request, after 1 attempt' in found
    with messaging.deadline(1.5):
        text(producer.rpc_future_ask(_timeout=1, _max_retry=50).result(TIMEOUT))
    processor.seen.take(3)
    assert processor.seen.empty(), 'one attempt of 0.3 s, and then two'


def test_a_call_whose_deadline_has_passed_is_not_sent(bench):
    queue = bench.collect()
    producer = bench.producer()
    with messaging.deadline(0):
        for reply in (producer.rpc_ask(), producer.rpc_future_ask().result(TIMEOUT)):
            assert text(reply) == "RPC 'rpc_ask': its deadline had passed before it was sent"
    producer.message_end().wait(TIMEOUT)
    assert bench.await_message(queue).body['name'] == 'end'


def test_a_block_inside_another_can_only_shorten_it():
    assert messaging.remaining() is None
    with messaging.deadline(100):
        with messaging.deadline(1000):
            assert 50 < messaging.remaining() <= 100
        with messaging.deadline(10):
            assert 0 < messaging.remaining() <= 10
        assert 50 < messaging.remaining() <= 100
        with messaging.deadline(0):
            assert messaging.remaining() == 0
    assert messaging.remaining() is None


def test_a_block_ends_where_an_exception_leaves_it_and_one_object_may_be_used_again():
    block = messaging.deadline(10)
    with pytest.raises(KeyError), block:
        raise KeyError
    assert messaging.remaining() is None
    with block, block:
        assert messaging.remaining() <= 10
    assert messaging.remaining() is None


def test_one_object_may_be_used_by_several_at_a_time():
    shared, seen = messaging.deadline(5000), {}

    class Inner(microthreads.MicroThread):
        def main(self):
            with messaging.deadline(50):
                with shared:
                    yield
                    yield
                seen['inner'] = messaging.remaining()
            seen['after inner'] = messaging.remaining()

    class Other(microthreads.MicroThread):
        def main(self):
            with shared:
                for _ in range(4):
                    yield
            seen['after other'] = messaging.remaining()

    scheduler = microthreads.MicroScheduler(autoquit=True)
    scheduler.add_microthread(Inner())
    scheduler.add_microthread(Other())
    for _ in scheduler.main():
        pass
    assert 0 < seen.pop('inner') <= 50
    assert seen == {'after inner': None, 'after other': None}


@pytest.mark.parametrize('seconds', [-1, 'x', None, True, float('nan'), 10**400])
def test_a_deadline_that_is_no_number_of_seconds_is_refused(seconds):
    with pytest.raises(messaging.ConfigurationError, match='a deadline in seconds must be a number, 0 or more'):
        messaging.deadline(seconds)


def test_each_thread_microthread_and_coroutine_has_its_own():
    seen = []

    class Working(microthreads.MicroThread):
        def __init__(self, seconds):
            self.seconds = seconds

        def main(self):
            with messaging.deadline(self.seconds):
                yield
                yield
                seen.append((self.seconds, messaging.remaining()))

    class Looking(microthreads.MicroThread):
        def main(self):
            for _ in range(3):
                seen.append((NONE, messaging.remaining()))
                yield

    scheduler = microthreads.MicroScheduler(autoquit=True)
    for each in (Working(50), Looking(), Working(5000)):
        scheduler.add_microthread(each)
    for _ in scheduler.main():
        pass

    async def work(seconds):
        with messaging.deadline(seconds):
            await asyncio.sleep(0)
            seen.append((seconds, messaging.remaining()))

    async def all_of_it():
        await asyncio.gather(work(50), work(5000))
        seen.append((NONE, messaging.remaining()))

    asyncio.run(all_of_it())
    with messaging.deadline(50), concurrent.futures.ThreadPoolExecutor(1) as pool:
        seen.append((NONE, pool.submit(messaging.remaining).result()))
        seen.append((50, pool.submit(contextvars.copy_context().run, messaging.remaining).result()))
    assert len(seen) == 10
    for seconds, remaining in seen:
        assert remaining is None if seconds == NONE else seconds - 40 < remaining <= seconds


# Handlers


class Telling(Processor):
    """Answers with what remains, in each kind of handler."""

    concurrency = 10

    @messaging.RpcHandler('command', 'plain')
    def rpc_plain(self, content, reply_func):
        return messaging.remaining()

    @messaging.RpcHandler('command', 'generator')
    def rpc_generator(self, content, reply_func):
        yield microthreads.sleep(0.01)
        return messaging.remaining()

    @messaging.RpcHandler('command', 'coroutine')
    async def rpc_coroutine(self, content, reply_func):
        await asyncio.sleep(0.01)
        return messaging.remaining()

    @messaging.RpcHandler('command', 'threaded')
    @messaging.Threaded
    def rpc_threaded(self, content, reply_func):
        return messaging.remaining()

    @messaging.RpcHandler('command', 'pool')
    def rpc_pool(self, content, reply_func):
        return (yield self.scheduler.executor.submit(messaging.remaining))

    @messaging.RpcHandler('command', 'on_loop')
    def rpc_on_loop(self, content, reply_func):
        return (yield self.scheduler.run_coroutine(asyncio.to_thread(messaging.remaining)))

    @messaging.MessageHandler('command', 'message')
    def msg_message(self, content):
        self.seen.put(messaging.remaining())


@pytest.mark.parametrize('kind', ['plain', 'generator', 'coroutine', 'threaded', 'pool', 'on_loop'])
def test_a_handler_knows_what_remains_of_its_request(bench, kind):
    bench.run(Telling())
    ask = getattr(bench.producer(), f'rpc_future_{kind}')
    futures = {seconds: ask(_timeout=seconds) for seconds in (100, 1000, 10000)}
    for seconds, future in futures.items():
        assert seconds - 50 < future.value(TIMEOUT) <= seconds + 1


def test_a_handler_of_messages_has_no_deadline(bench):
    telling = Telling()
    bench.run(telling)
    bench.producer().message_message()
    assert telling.seen.next() is None


def link(kind):
    """A component that asks the next one, without a time-out of its own that matters."""

    class Link(Processor):
        def __init__(self, number, producer):
            self.number, self.producer = number, producer
            super().__init__([(EchoExchange, [(f'link-{number}', f'link-{number}')])])

        @property
        def next(self):
            return {'_key': f'link-{self.number + 1}', '_timeout': 60, '_max_retry': 3}

    class GeneratorLink(Link):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            answer = yield self.producer.rpc_future_ask(**self.next)
            self.seen.put(answer)

    class CoroutineLink(Link):
        @messaging.RpcHandler('command', 'ask')
        async def rpc_ask(self, content, reply_func):
            self.seen.put(await asyncio.wrap_future(self.producer.rpc_future_ask(**self.next)))

    class ThreadedLink(Link):
        @messaging.RpcHandler('command', 'ask')
        @messaging.Threaded
        def rpc_ask(self, content, reply_func):
            self.seen.put(self.producer.rpc_ask(**self.next))

    class BlockingLink(Link):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            self.seen.put(self.producer.rpc_ask(**self.next))

    return {'generator': GeneratorLink, 'coroutine': CoroutineLink, 'threaded': ThreadedLink, 'plain': BlockingLink}[
        kind
    ]


@pytest.mark.parametrize('kind', ['generator', 'coroutine', 'threaded', 'plain'])
def test_what_a_handler_asks_for_has_the_deadline_of_its_request(bench, kind):
    last = Silent([(EchoExchange, [('link-1', 'link-1')])])
    first = link(kind)(0, bench.producer())
    bench.run(last)
    bench.run(first)
    bench.producer().rpc_future_ask(_key='link-0', _timeout=3)
    remaining, delivery = last.seen.next()
    assert 0 < remaining <= 3
    assert delivery.headers['x-postage-deadline'] / 1000 - time.time() < 3


@pytest.mark.parametrize('flags', [{}, {'exclusive': True, 'durable': False}], ids=['delay queue', 'in the process'])
def test_an_attempt_that_comes_later_has_the_deadline_of_its_request(bench, flags):
    class Trying(Processor):
        @messaging.RpcHandler('command', 'ask')
        @messaging.Retry(delays=(0.1, 0.1), jitter=0)
        def rpc_ask(self, content, reply_func):
            self.seen.put((messaging.remaining(), messaging.current_delivery().headers['x-postage-deadline']))
            if self.seen.qsize() < 3:
                raise KeyError
            return 'done'

    trying = Trying([(EchoExchange, [({'name': 'echo-queue', 'flags': flags}, 'echo-rk')])])
    bench.run(trying)
    assert bench.producer().rpc_ask(_timeout=100).value == 'done'
    remaining, deadlines = zip(*trying.seen.take(3), strict=True)
    assert 100 > remaining[0] > remaining[1] > remaining[2] > 50
    assert len(set(deadlines)) == 1


def test_an_attempt_that_would_come_after_the_deadline_is_answered_now(bench):
    class Trying(Processor):
        @messaging.RpcHandler('command', 'ask')
        @messaging.Retry(delays=(100,), jitter=0)
        def rpc_ask(self, content, reply_func):
            raise KeyError('why')

    bench.run(Trying())
    assert bench.producer().rpc_ask(_timeout=50, _expiration=1000).value == 'KeyError'


def test_what_a_handler_has_left_running_behind_it_has_none(bench):
    class Leaving(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(self._later,)).start()
            return messaging.remaining()

        def _later(self):
            released.wait(TIMEOUT)
            self.seen.put(messaging.remaining())

    released = threading.Event()
    leaving = Leaving()
    bench.run(leaving)
    assert bench.producer().rpc_ask(_timeout=20).value > 0
    eventually(lambda: not leaving.is_busy)
    released.set()
    assert leaving.seen.next() is None


def test_collecting_from_a_queue_ends_at_the_deadline(bench):
    bench.collect()
    producer = bench.producer()
    queue = producer.rpc_queue_ask()
    bench.publish(result(1), queue, '')
    began = time.monotonic()
    with messaging.deadline(0.2), pytest.raises(messaging.TimeoutError) as raised:
        producer.consume_rpc(queue, 2, timeout=60)
    assert time.monotonic() - began < TIMEOUT
    assert len(raised.value.results) == 1
