"""Streams: where they are read from, and where a consumer goes on. The broker in memory has none."""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta, timezone

import pytest

from postage import messaging
from postage.amqp.streams import Position
from postage.messaging import stream
from support.fixtures import bench_on
from support.messaging import TIMEOUT, EchoExchange, EchoProducer, Processor, command, eventually


@pytest.fixture
def bench(rabbitmq, monkeypatch):
    with bench_on(rabbitmq, monkeypatch) as bench:
        yield bench


class Reader(Processor):
    """Notes the offset and the parameters of each message."""

    def __init__(self, **where):
        super().__init__([(EchoExchange, [(stream('log', **where), 'echo-rk')])])

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        self.seen.put((messaging.current_delivery().offset, content['parameters']))


@pytest.fixture
def written(bench):
    """A stream of ten messages, and what writes more."""
    bench.consumer([(EchoExchange, [(stream('log'), 'echo-rk')])])
    producer = bench.producer()
    for number in range(10):
        producer.message_echo(number).wait(TIMEOUT)
    return producer


def numbers(first, end):
    return [(number, number) for number in range(first, end)]


def until_it_reads(reader: Reader) -> None:
    """Wait until the broker has said that it reads: what is published then is after the end that it reads from."""
    eventually(lambda: 'log' in reader.consumer.delivery_source.channel.consumers.attached)


@pytest.mark.parametrize(('offset', 'first'), [('first', 0), ('last', 9), (7, 7), (0, 0), ('an hour ago', 0)])
def test_a_stream_is_read_from_where_it_is_asked_for(bench, written, offset, first):
    if offset == 'an hour ago':
        offset = datetime.now(timezone.utc) - timedelta(hours=1)
    reader = Reader(offset=offset)
    bench.run(reader)
    assert reader.seen.take(10 - first) == numbers(first, 10)
    written.message_echo(10)
    assert reader.seen.next() == (10, 10)


@pytest.mark.parametrize('where', [{}, {'offset': 'next'}])
def test_a_stream_is_read_from_its_end_on_where_nothing_is_said(bench, written, where):
    reader = Reader(**where)
    bench.run(reader)
    until_it_reads(reader)
    written.message_echo(10)
    assert reader.seen.next() == (10, 10)


def test_each_reader_reads_all_of_it_again_and_again(bench, written):
    readers = [Reader(offset='first') for _ in range(2)]
    bench.run(*readers)
    for reader in readers:
        assert reader.seen.take(10) == numbers(0, 10)


def test_a_plain_description_reads_a_stream_as_well(bench, written):
    description = {
        'name': 'log',
        'flags': {'arguments': {'x-queue-type': 'stream'}},
        'consume': {'x-stream-offset': 5},
    }
    consumer = bench.consumer([(EchoExchange, [(description, 'echo-rk')])])
    consumer.delivery_source.begin(lambda: None)
    eventually(lambda: len(consumer.delivery_source.channel.inbox) == 5)
    assert consumer.delivery_source.next_delivery().offset == 5
    consumer.delivery_source.end()


def test_a_reader_goes_on_behind_the_last_message_that_it_has_handled(bench, written):
    reader = Reader(offset='first')
    bench.run(reader)
    assert reader.seen.take(10) == numbers(0, 10)
    for number in range(10, 16):
        eventually(lambda: not reader.is_busy)
        bench.close_all_connections()
        written.message_echo(number).wait(TIMEOUT)
        assert reader.seen.next() == (number, number)
    assert reader.seen.empty()


def test_what_was_fetched_and_not_handled_when_the_connection_went_comes_again(bench, written):
    class Slow(Reader):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)
            if content['parameters'] == 3 and not self.state.has_lost:
                self.state.has_lost = True
                bench.close_all_connections()
                bench.log.expect('(consuming) was lost')

    reader = Slow(offset='first')
    reader.state.has_lost = False
    bench.run(reader)
    seen = []
    while (9, 9) not in seen:
        seen.append(reader.seen.next())
    assert seen[:4] == numbers(0, 4)
    assert set(seen) == set(numbers(0, 10))
    assert seen in (numbers(0, 10), numbers(0, 4) + numbers(3, 10)), 'only what was in hand may come twice'


def test_a_reader_that_stops_and_starts_goes_on_where_it_was(bench, written):
    class Pausing(Reader):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)
            if content['parameters'] == 3:
                self.stop_consuming()

    reader = Pausing(offset='first')
    bench.run(reader)
    assert reader.seen.take(4) == numbers(0, 4)
    eventually(lambda: not reader.consumer.is_consuming)
    reader.start_consuming()
    assert reader.seen.take(6) == numbers(4, 10)


def test_a_stream_that_was_deleted_and_declared_again_is_read_from_its_beginning(bench, written):
    reader = Reader(offset='next')
    bench.run(reader)
    until_it_reads(reader)
    written.message_echo(10).wait(TIMEOUT)
    assert reader.seen.next() == (10, 10)
    bench.bare.queue_delete('log')
    eventually(lambda: 'log' in bench.broker.queues())
    for number in range(3):
        bench.publish(command(parameters=number), key='log', exchange='')  # to the queue: it is bound a moment later
    assert reader.seen.take(3) == numbers(0, 3)


@pytest.mark.parametrize('prefetch', [1, 3, None])
def test_more_messages_are_read_than_are_prefetched(bench, written, prefetch):
    class Consumer(messaging.GenericConsumer):
        prefetch_count = prefetch

    reader = type('Narrow', (Reader,), {'consumer_class': Consumer})(offset='first')
    bench.run(reader)
    for number in range(10, 100):
        written.message_echo(number)
    assert reader.seen.take(100) == numbers(0, 100)


def test_a_slow_reader_gets_each_message_once(bench, written):
    class Slow(Reader):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            time.sleep(0.1)
            super().msg_echo(content)

    reader = Slow(offset='first')
    bench.run(reader)
    assert reader.seen.take(10) == numbers(0, 10)
    assert reader.seen.empty()


def test_a_failed_message_of_a_stream_is_tried_again_in_the_process_and_is_in_the_stream_once(bench, written):
    class Failing(Reader):
        @messaging.Retry(delays=(0.1, 0.2), jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)
            if content['parameters'] == 5:
                raise ConnectionError

    class Store:
        letters = []

        def put(self, letter):
            self.letters.append(letter)

    failing = type('Failing', (Failing,), {'dead_letters': Store()})(offset='first')
    bench.run(failing)
    seen = failing.seen.take(12)
    assert sorted(seen) == sorted([*numbers(0, 10), (5, 5), (5, 5)])
    eventually(lambda: Store.letters)
    assert Store.letters[0].attempts == 3
    written.message_echo(10)
    assert failing.seen.next() == (10, 10)


def test_a_message_of_a_stream_that_is_rejected_stays_there_and_the_reader_goes_on(bench, written):
    class Rejecting(Reader):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)
            raise messaging.RejectMessage

    rejecting = Rejecting(offset='first')
    bench.run(rejecting)
    assert rejecting.seen.take(10) == numbers(0, 10)
    again = Reader(offset='first')
    bench.run(again)
    assert again.seen.take(10) == numbers(0, 10)
    assert not bench.log.find('is lost')


def test_a_message_of_a_stream_cannot_go_back(bench, written):
    consumer = bench.consumer([(EchoExchange, [(stream('log', offset='first'), 'echo-rk')])])
    consumer.delivery_source.begin(lambda: None)
    delivery = eventually(consumer.delivery_source.next_delivery)
    with pytest.raises(messaging.ConfigurationError, match='takes no message back'):
        consumer.reject(delivery, requeue=True)
    consumer.ack(delivery)
    consumer.delivery_source.end()


def test_a_stream_without_a_prefetch_count_is_an_error_that_says_so(bench):
    class Boundless(messaging.GenericConsumer):
        prefetch_count = 0

    consumer = bench.consumer([(EchoExchange, [(stream('log'), 'echo-rk')])], Boundless)
    with pytest.raises(messaging.ConfigurationError, match=r'Boundless\.prefetch_count is 0; a stream'):
        consumer.delivery_source.begin(lambda: None)


def test_other_queues_have_no_offsets(bench):
    consumer = bench.consumer()
    bench.producer(EchoProducer).message_echo('x', _headers={'x-stream-offset': 7}).wait(TIMEOUT)
    consumer.delivery_source.begin(lambda: None)
    assert eventually(consumer.delivery_source.next_delivery).offset is None
    consumer.delivery_source.end()


# Without a broker


def test_a_stream_is_described_by_its_flags_and_by_where_to_begin():
    assert stream('log', offset='first', max_age='7D', max_bytes=1_000_000) == {
        'name': 'log',
        'flags': {
            'durable': True,
            'arguments': {'x-queue-type': 'stream', 'x-max-age': '7D', 'x-max-length-bytes': 1_000_000},
        },
        'consume': {'x-stream-offset': 'first'},
    }


@pytest.mark.parametrize(
    ('make', 'fault'),
    [
        (
            lambda: stream('log', offset='begin'),
            "an offset is 'first', 'last', 'next', a number or a time, not 'begin'",
        ),
        (lambda: stream('log', offset=-1), 'an offset is'),
        (lambda: stream('log', offset=True), 'an offset is'),
        (lambda: stream('log', offset=1.5), 'an offset is'),
        (lambda: stream('log', offset=datetime(2026, 1, 1)), 'has no time zone'),
        (lambda: stream('log', max_age='a week'), 'max_age must be a time'),
        (lambda: stream('log', max_bytes=0), 'stream: max_bytes must be a number, 1 or more'),
        (lambda: stream(''), 'a queue is a name or'),
        (lambda: stream({'name': 'log', 'flags': {'exclusive': True}}), "'log' is exclusive, which no stream can be"),
        (lambda: stream({'name': 'log', 'flags': {'durable': False}}), 'not durable, which a stream must be'),
        (lambda: stream({'name': 'log', 'consume': 7}), "'consume' must be arguments by their names"),
    ],
)
def test_a_mistake_is_an_error(make, fault):
    with pytest.raises(messaging.ConfigurationError, match=fault):
        make()


def test_a_position_goes_on_with_the_oldest_message_that_is_not_handled():
    position = Position()
    assert position.where_from('last') == 'last'
    assert position.where_from(None) is None
    for offset in (3, 4, 5):
        position.delivered(offset)
    position.handled(4)
    assert position.where_from('first') == 3
    position.handled(3)
    assert position.where_from('first') == 5
    position.handled(5)
    assert position.where_from('first') == 6
    position.start_over()
    assert position.where_from('next') == 'first'


def test_a_position_never_leaves_an_unhandled_message_behind():
    seed = random.randrange(1_000_000)
    print('seed', seed)
    chance = random.Random(seed)
    position, unhandled, following = Position(), set(), 0
    for _ in range(2000):
        if chance.random() < 0.5:
            position.delivered(following)
            unhandled.add(following)
            following += 1
        elif unhandled:
            offset = chance.choice(sorted(unhandled))
            position.handled(offset)
            unhandled.remove(offset)
        if following:
            assert position.where_from(None) == min(unhandled, default=following)
