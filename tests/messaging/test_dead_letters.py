"""What nobody could handle goes into the processor's store, and is acknowledged after that."""

from __future__ import annotations

import threading
import time

import pytest

from postage import messaging, microthreads
from postage.messaging import failures
from postage.messaging.properties import from_plain
from postage.messaging.unsettled import Unsettled
from support.messaging import (
    EQK,
    HOSTILE,
    TIMEOUT,
    EchoExchange,
    HeldConfirms,
    Processor,
    Seen,
    command,
    eventually,
)


class Memory:
    """A store that remembers, and fails as often as it is told to."""

    def __init__(self) -> None:
        self.letters = Seen()
        self.tried = Seen()
        self.failures = 0

    def put(self, letter):
        self.tried.put(letter)
        if self.failures:
            self.failures -= 1
            raise OSError('the disk is full')
        self.letters.put(letter)


class Storing(Processor):
    def __init__(self, *args, **kwds):
        self.dead_letters = Memory()
        super().__init__(*args, **kwds)

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        self.seen.put(content['parameters'])
        raise ValueError('no good')

    @messaging.MessageHandler('command', 'reject')
    def msg_reject(self, content):
        raise messaging.RejectMessage('not for me')

    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content, reply_func):
        raise ValueError('no good')

    @messaging.Retry(delays=(0.1, 0.1))
    @messaging.MessageHandler('command', 'again')
    def msg_again(self, content):
        raise KeyError('again')

    @messaging.MessageHandler('command', 'later')
    async def msg_later(self, content):
        raise LookupError('later')


@pytest.fixture
def processor(bench):
    processor = Storing()
    bench.run(processor)
    return processor


@pytest.fixture
def store(processor):
    return processor.dead_letters


@pytest.fixture
def producer(bench, processor):
    return bench.producer()


def settled(bench, processor):
    """Wait until everything has been acknowledged or rejected, and return how many messages are left."""
    eventually(lambda: not processor.is_busy)
    processor.stop_consuming()
    return bench.count('echo-queue')


def test_a_letter_tells_all_about_its_message(bench, processor, store, producer):
    began = time.time()
    receipt = producer.message_echo('hello', _headers={'colour': 'red'})
    letter = store.letters.next()
    assert processor.consumer.decode(letter.body)['content'] == {'parameters': 'hello'}
    assert (letter.queue, letter.exchange, letter.routing_key) == ('echo-queue', EchoExchange.name, 'echo-rk')
    assert (letter.reason, letter.exception, letter.message) == ('exception', 'ValueError', 'no good')
    assert 'msg_echo' in letter.traceback
    assert letter.attempts == 1
    assert began - 1 < letter.first_attempt_at <= letter.died_at < time.time() + 1
    assert letter.message_id == receipt.message_id
    assert letter.properties['headers'] == {'colour': 'red'}
    assert not letter.is_repeated
    assert settled(bench, processor) == 0


def test_a_message_whose_coroutine_raised_is_stored(store, producer):
    producer.message_later()
    assert store.letters.next().exception == 'LookupError'


def test_a_rejected_message_is_stored(store, producer):
    producer.message_reject()
    letter = store.letters.next()
    assert (letter.reason, letter.message) == ('rejected', 'not for me')
    assert letter.exception == 'postage.messaging.outcomes.RejectMessage'


@pytest.mark.parametrize('body', [b'no json', b'[]', b'{"type": 7}'])
def test_what_is_no_message_is_stored(bench, store, body):
    bench.publish(body)
    letter = store.letters.next()
    assert (letter.reason, letter.body, letter.attempts) == ('undecodable', body, 0)


@pytest.mark.parametrize('headers', HOSTILE.values(), ids=HOSTILE)
def test_a_message_with_hostile_headers_is_stored_without_them(bench, store, headers):
    bench.publish_hostile(headers)
    letter = store.letters.next()
    assert letter.properties == {}
    assert letter.exception == 'ValueError'


def test_a_message_is_stored_after_its_last_attempt_as_it_was_first_sent(bench, store, producer):
    bench.publish(command('again'), headers={'colour': 'red'}, message_id='the-id', expiration='60000')
    letter = store.letters.next()
    assert letter.attempts == 3
    assert letter.died_at - letter.first_attempt_at >= 0.15
    assert letter.is_repeated
    assert (letter.queue, letter.exchange, letter.routing_key) == ('echo-queue', EchoExchange.name, 'echo-rk')
    assert letter.properties == {
        'content_type': 'application/json',
        'headers': {'colour': 'red'},
        'message_id': 'the-id',
        'expiration': '60000',
    }
    assert from_plain(letter.properties).headers == {'colour': 'red'}


def test_the_caller_of_a_stored_rpc_is_answered(store, producer):
    assert producer.rpc_echo('hello').body['content']['value'] == 'ValueError'
    assert store.letters.next().exception == 'ValueError'


def test_a_store_takes_what_would_go_to_the_dead_letter_exchange(bench):
    bench.dead()
    queue = messaging.with_dead_letter('echo-queue', queue='dead')
    processor = Storing([(EchoExchange, [(queue, 'echo-rk')])])
    bench.run(processor)
    bench.producer().message_echo('hello')
    processor.dead_letters.letters.next()
    assert settled(bench, processor) == 0
    assert bench.count('dead') == 0


def test_a_message_is_acknowledged_after_it_was_stored(bench, processor, store, producer):
    may_go_on, is_storing = threading.Event(), threading.Event()
    put = store.put

    def slow_put(letter):
        is_storing.set()
        may_go_on.wait(TIMEOUT)
        put(letter)

    store.put = slow_put
    producer.message_echo('hello')
    assert is_storing.wait(TIMEOUT)
    bench.close_all_connections()  # the broker takes back what is not acknowledged
    assert processor.seen.take(2) == ['hello', 'hello']
    may_go_on.set()
    assert sorted(letter.is_repeated for letter in store.letters.take(2)) == [False, True]


def test_a_store_that_is_slow_holds_up_no_other_message(processor, store, producer):
    may_go_on = threading.Event()
    store.put = lambda letter: may_go_on.wait(TIMEOUT)
    processor.consumer.delivery_source.took(100, 0.0001)  # quick enough to have several in hand
    for number in range(2):
        producer.message_echo(number)
    try:
        assert processor.seen.next() == 0
    finally:
        may_go_on.set()
    assert processor.seen.next() == 1


def test_a_message_that_the_store_does_not_take_stays_unacknowledged(bench, processor, store, producer):
    store.failures = 1000
    producer.message_echo('hello')
    store.tried.next()
    bench.log.expect('stays unacknowledged', 'the disk is full', 'next try in 1 s')
    processor.stop_consuming()
    assert bench.count('echo-queue') == 1


def test_it_is_offered_to_the_store_again(bench, processor, store, producer, monkeypatch):
    monkeypatch.setattr(failures, 'FIRST_PAUSE', 0.1)
    monkeypatch.setattr(failures.Failures._hand_over, '__defaults__', (0.1,))
    store.failures = 2
    producer.message_echo('hello')
    began = store.tried.next().died_at
    store.letters.next()
    assert time.time() - began >= 0.3
    assert store.tried.qsize() == 2
    assert settled(bench, processor) == 0
    assert processor.seen.qsize() == 1


def test_what_failed_because_its_own_messages_did_is_stored(bench):
    class Forwarding(Storing):
        def __init__(self):
            super().__init__()
            self.onward = bench.producer(
                type('Strict', (messaging.GenericProducer,), {'eks': [(EchoExchange, 'nowhere')], 'mandatory': True})
            )

        @messaging.MessageHandler('command', 'forward')
        def msg_forward(self, content):
            self.onward.message_lost()

    processor = Forwarding()
    bench.run(processor)
    bench.producer().message_forward()
    letter = processor.dead_letters.letters.next()
    assert (letter.reason, letter.exception) == ('unpublished', 'postage.errors.Unroutable')


class Onward(Storing):
    """Publishes to a queue that is full."""

    def __init__(self, bench):
        super().__init__()
        arguments = {'x-max-length': 1, 'x-overflow': 'reject-publish'}
        bench.bare.queue_declare('full', durable=True, arguments=arguments)
        bench.bare.queue_bind('full', EchoExchange.name, 'onward')
        bench.publish(b'first', 'onward')
        eventually(lambda: bench.count('full') == 1)
        self.attempts = Seen()
        self.onward = bench.producer()

    @messaging.MessageHandler('command', 'forward')
    def msg_forward(self, content):
        self.attempts.put(messaging.current_delivery().headers.get('x-postage-attempts', 0))
        self.onward.message_onward(_key='onward')


def test_a_message_is_handled_again_when_the_broker_refused_what_its_handler_published(bench, monkeypatch):
    monkeypatch.setattr(failures, 'AFTER_REFUSAL', messaging.Retry(messaging.Nacked, delays=(0.1, 0.1), jitter=0))
    processor = Onward(bench)
    bench.run(processor)
    bench.producer().message_forward()
    assert processor.attempts.next() == 0
    bench.log.expect('is handled again in about 0.1 s', 'the broker refused')
    assert processor.attempts.next() == 1
    bench.get('full')
    assert bench.await_message('full').body['name'] == 'onward'
    assert processor.dead_letters.letters.empty()
    processor.onward.flush(TIMEOUT)  # what was made good is no failure any more


def test_a_message_is_dead_when_the_broker_goes_on_refusing_what_its_handler_publishes(bench, monkeypatch):
    monkeypatch.setattr(failures, 'AFTER_REFUSAL', messaging.Retry(messaging.Nacked, delays=(0.1, 0.1), jitter=0))
    processor = Onward(bench)
    bench.run(processor)
    bench.producer().message_forward()
    letter = processor.dead_letters.letters.next()
    assert (letter.reason, letter.exception, letter.attempts) == ('unpublished', 'postage.errors.Nacked', 3)
    assert processor.attempts.take(3) == [0, 1, 2]


def test_the_end_waits_for_the_letter_of_what_failed_because_its_own_messages_did(bench, monkeypatch):
    """The confirm comes when the scheduler's thread already waits for it, and no microthread has a turn any more."""

    class Forwarding(Storing):
        def __init__(self):
            super().__init__()
            self.onward = bench.producer(
                type('Strict', (messaging.GenericProducer,), {'eks': [(EchoExchange, 'nowhere')], 'mandatory': True})
            )

        @messaging.MessageHandler('command', 'forward')
        def msg_forward(self, content):
            self.onward.message_lost()
            raise microthreads.ExitScheduler

    waits, wait = threading.Event(), Unsettled.wait

    def wait_and_tell(unsettled, timeout):
        waits.set()
        return wait(unsettled, timeout)

    processor = Forwarding()
    running = bench.run(processor)
    monkeypatch.setattr(Unsettled, 'wait', wait_and_tell)
    held = HeldConfirms(monkeypatch)
    bench.publish(command('forward'))
    held.arrived.next()
    assert waits.wait(TIMEOUT)
    held.release()
    assert processor.dead_letters.letters.next().reason == 'unpublished'
    running.wait()
    assert bench.count('echo-queue') == 0


def test_stored_letters_survive_the_end_of_the_loop(bench, processor, store, producer):
    for number in range(200):
        producer.message_echo(number)
    processor.seen.next()
    producer.message_quit()
    eventually(lambda: store.letters.qsize() + bench.count('echo-queue') >= 200)


@pytest.mark.parametrize('store', [7, 'a path', object()])
def test_a_store_that_is_none_is_refused(embedded, store):
    with pytest.raises(messaging.ConfigurationError, match=r'dead_letters must be a store, which has put'):
        type('Wrong', (messaging.MessageProcessor,), {'dead_letters': store})({}, EQK)
