"""Dead letters in a queue: others can read them, and nobody loses any by looking at them."""

from __future__ import annotations

import pytest

from postage import errors, messaging
from postage.dead_letters import QueueDeadLetters
from postage.dead_letters.store import Selection
from support.letters import letter, numbers
from support.messaging import EchoExchange, Processor, eventually


@pytest.fixture
def store(bench):
    with QueueDeadLetters('dead') as store:
        yield store


def test_the_message_itself_is_in_the_queue(bench, store):
    store.put(letter(7, properties={'content_type': 'application/json', 'message_id': 'the-id', 'expiration': '1'}))
    got = bench.await_message('dead')
    assert got.parameters == 7
    assert got.properties.message_id == 'the-id'
    assert got.properties.delivery_mode == 2
    assert got.properties.expiration is None


def test_a_letter_is_confirmed_when_put_returns(bench, store):
    store.put(letter())
    assert bench.count('dead') == 1


def test_letters_survive_a_reader_whose_connection_is_lost(bench, store):
    for number in range(3):
        store.put(letter(number))
    reading = store.letters()
    next(reading)
    bench.close_all_connections()
    reading.close()
    assert numbers(store.letters()) == [0, 1, 2]


def test_what_the_broker_itself_moved_is_read_as_a_letter(bench, store):
    class Rejecting(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(content['parameters'])
            raise messaging.RejectMessage

    bench.dead()
    queue = messaging.with_dead_letter('echo-queue', queue='dead')
    processor = Rejecting([(EchoExchange, [(queue, 'echo-rk')])])
    running = bench.run(processor)
    receipt = bench.producer().message_echo('bad', _headers={'colour': 'red'})
    processor.seen.next()
    running.stop()
    (stored,) = store.letters()
    moved = stored.letter
    assert (moved.queue, moved.exchange, moved.routing_key) == ('echo-queue', EchoExchange.name, 'echo-rk')
    assert (moved.reason, moved.message) == ('rejected', 'moved here by the broker: rejected')
    assert moved.properties['headers']['colour'] == 'red'
    assert stored.id == receipt.message_id
    assert store.get(stored.id).letter == moved


@pytest.mark.parametrize('limit', [None, 2])
def test_letters_of_a_quorum_queue_may_be_read_again_and_again(bench, store, limit):
    arguments = {'x-queue-type': 'quorum'} | ({} if limit is None else {'x-delivery-limit': limit})
    bench.bare.queue_declare('dead', durable=True, arguments=arguments)
    for number in range(5):
        store.put(letter(number))
    bench.publish(b'moved', 'dead', '')
    eventually(lambda: bench.count('dead') == 6)
    for _ in range(11):
        assert len({stored.letter.body for stored in store.letters()}) == 6
        with store.hand_out() as handout:
            next(handout.batches(2))
        assert store.delete(Selection(exception='of no kind')) == 0
    *put, moved = sorted(store.letters(), key=lambda stored: stored.letter.body.startswith(b'm'))
    assert sorted(numbers(put)) == [0, 1, 2, 3, 4]
    assert (moved.letter.body, moved.letter.message) == (b'moved', 'moved here by the broker: unknown')
    eventually(lambda: bench.count('dead') == 6)


@pytest.mark.parametrize('properties', [{}, {'headers': {'x-postage-letter': 'no json'}}])
def test_any_other_message_is_read_as_a_letter_too(bench, store, properties):
    bench.dead()
    bench.publish(b'whatever', 'dead', '', **properties)
    bench.publish(b'more', 'dead', '', **properties)
    first, second = store.letters()
    assert (first.letter.body, second.letter.body) == (b'whatever', b'more')
    assert store.get(second.id).letter.body == b'more'


def test_a_letter_with_a_huge_traceback_is_stored_without_it(store):
    store.put(letter(7, traceback='x' * 200_000))
    (stored,) = store.letters()
    assert stored.letter.traceback == '(too large)'


def test_a_letter_with_huge_headers_is_refused(store):
    with pytest.raises(errors.StoreError, match='bytes of headers'):
        store.put(letter(properties={'headers': {'much': 'x' * 130_000}}))
    store.put(letter(7))
    assert numbers(store.letters()) == [7]


def test_a_queue_that_must_exist_is_not_declared(bench):
    with pytest.raises(errors.StoreError, match=r"the queue 'nowhere' does not exist"):
        list(QueueDeadLetters('nowhere', create=False).letters())
    assert bench.broker.queues() == {}


def test_a_queue_that_was_deleted_is_declared_again(bench, store):
    store.put(letter(0))
    bench.bare.queue_delete('dead')
    with pytest.raises(errors.StoreError, match='did not take a letter'):
        store.put(letter(1))
    store.put(letter(1))
    assert numbers(store.letters()) == [1]


def test_a_queue_that_is_full_refuses_letters(bench):
    bench.bare.queue_declare('small', durable=True, arguments={'x-max-length': 1, 'x-overflow': 'reject-publish'})
    with QueueDeadLetters('small') as store:
        store.put(letter(0))
        with pytest.raises(errors.StoreError, match='did not take a letter: the broker refused'):
            store.put(letter(1))
        assert numbers(store.letters()) == [0]


def test_a_processor_may_have_a_queue_as_its_store(bench, store):
    class Failing(Processor):
        dead_letters = store

        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            raise ValueError('no good')

    bench.dead()
    bench.run(Failing())
    bench.producer().message_echo('bad')
    assert bench.await_message('dead').parameters == 'bad'


@pytest.mark.parametrize('name', ['', None, 7])
def test_the_name_of_a_queue_is_text(name):
    with pytest.raises(errors.ConfigurationError, match='name of a queue'):
        QueueDeadLetters(name)
