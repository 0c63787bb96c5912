"""Retries that the broker delays where it can, and queues where it cannot: the same for those who use them."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time

import pytest

from postage import messaging
from postage.amqp.retries import DelayedRetries, delayed_retries
from postage.amqp.server import Server
from postage.amqp.topology import Queue
from postage.messaging import Retry, quorum
from support.messaging import TIMEOUT, EchoExchange, Processor, eventually

RISING = tuple(min(0.1 * number, 0.3) for number in range(1, 16))
"""15 delays of the form that a broker knows: 0.1, 0.2, 0.3, 0.3, …"""

DELAYS_RETRIES = Server('RabbitMQ', (4, 3, 0))


class Store:
    """A store of dead letters that keeps them in memory."""

    def __init__(self) -> None:
        self.letters: list[messaging.DeadLetter] = []

    def put(self, letter: messaging.DeadLetter) -> None:
        self.letters.append(letter)


class Failing(Processor):
    """Notes each attempt, and fails."""

    def __init__(self, queue, **attributes):
        self.dead_letters = Store()
        for name, value in attributes.items():
            setattr(self, name, value)
        super().__init__([(EchoExchange, [(queue, 'echo-rk')])])

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        delivery = messaging.current_delivery()
        self.seen.put((time.monotonic(), delivery.headers.get('x-postage-attempts', 0), delivery))
        raise ConnectionError('not yet')

    def letter(self):
        """The dead letter, once there is one."""
        eventually(lambda: self.dead_letters.letters)
        (letter,) = self.dead_letters.letters
        return letter


class Declaring(Failing):
    @Retry(ConnectionError, delays=RISING, jitter=0)
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        super().msg_echo(content)


def delay_queues(bench):
    """The names of the queues in which messages wait, without their common beginning."""
    return sorted(name.removeprefix('postage.retry.') for name in bench.broker.queues() if 'postage.retry' in name)


def waits(notes):
    return [later - earlier for (earlier, *_), (later, *_) in itertools.pairwise(notes)]


@pytest.mark.parametrize('kind', ['the queue says it', 'the handler says it', 'a classic queue'])
def test_fifteen_retries_take_their_time_and_end_in_the_same_record_on_every_broker(bench, kind):
    queue = quorum('jobs', retry=RISING) if kind == 'the queue says it' else quorum('jobs', retry=Retry(delays=RISING))
    cls = Failing if kind == 'the queue says it' else Declaring
    processor = cls('jobs' if kind == 'a classic queue' else queue)
    running = bench.run(processor)
    bench.producer().message_echo('again', _headers={'colour': 'red'}).wait(TIMEOUT)
    notes = processor.seen.take(16)
    assert [attempts for _, attempts, _ in notes] == list(range(16))
    late = [wait - delay for wait, delay in zip(waits(notes), RISING, strict=True)]
    assert min(late) >= -0.01, late
    assert statistics.median(late) < 0.3, late  # on a busy machine a few are later

    letter = processor.letter()
    waited = sum(waits(notes))
    assert letter.attempts == 16
    assert waited - 1 < letter.died_at - letter.first_attempt_at < waited + 1
    assert letter.properties['headers'] == {'colour': 'red'}
    fixed = dataclasses.replace(letter, body=b'', properties={}, traceback='', first_attempt_at=0, died_at=0)
    assert fixed == messaging.DeadLetter(
        body=b'',
        properties={},
        queue='jobs',
        exchange='echo-exchange',
        routing_key='echo-rk',
        reason='exception',
        exception='ConnectionError',
        message='not yet',
        traceback='',
        attempts=16,
        first_attempt_at=0,
        died_at=0,
        is_repeated=True,
    )
    eventually(lambda: not processor.is_busy)
    running.stop()
    eventually(lambda: bench.broker.messages()['jobs'] == 0)
    # Where the broker delays them no other queue is needed; elsewhere there is one for each delay.
    delays_itself = kind != 'a classic queue' and processor.consumer.conn_broker.server.delays_retries
    assert len(delay_queues(bench)) == (0 if delays_itself else 3)


@pytest.mark.parametrize(
    ('delays', 'arguments'),
    [
        ((0.5, 1, 1.5, 2), (500, 2000)),
        ((0.5, 1, 1, 1), (500, 1000)),
        ((5, 5, 5), (5000, 5000)),
        ((5,), (5000, 5000)),
        ((1, 5, 30), None),
        ((2, 1), None),
        ((0, 0), None),
    ],
)
def test_delays_are_left_to_the_broker_where_they_are_multiples_of_the_first(delays, arguments):
    found = quorum('jobs', retry=delays)['flags']['arguments']
    names = ('x-delayed-retry-type', 'x-delayed-retry-min', 'x-delayed-retry-max')
    assert tuple(found.get(name) for name in names) == (('failed', *arguments) if arguments else (None, None, None))


def test_delays_of_another_form_are_kept_all_the_same(bench):
    processor = Failing(quorum('jobs', retry=(0.1, 0.5)))
    bench.run(processor)
    bench.producer().message_echo('again')
    first, second = waits(processor.seen.take(3))
    assert 0.1 <= first < 0.5 <= second
    assert delay_queues(bench) == ['jobs.100', 'jobs.500']


def delayed(kind, first, highest):
    """The arguments by which a broker delays retries."""
    names = ('x-delayed-retry-type', 'x-delayed-retry-min', 'x-delayed-retry-max')
    return dict(zip(names, (kind, first, highest), strict=True))


@pytest.mark.parametrize(
    'found',
    [
        {},
        delayed('failed', 100, 200),
        delayed('failed', 3000, 4000),
        delayed('failed', 300, 2000),
        delayed('all', 300, 900),
        delayed('returned', 300, 900),
    ],
)
@pytest.mark.parametrize('says', ['the queue', 'the handler', 'a queue without a form'])
def test_a_queue_that_exists_with_other_retries_changes_no_delay(bench, found, says):
    """A program goes over to the broker's retries, or from them, or to other delays, and the queue stays as it is."""
    bench.bare.queue_declare('jobs', durable=True, arguments={'x-queue-type': 'quorum', **found})
    delays = (0.3, 0.5) if says == 'a queue without a form' else (0.3, 0.6)

    class Handling(Failing):
        @Retry(delays=(0.3, 0.6), jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)

    processor = Handling(quorum('jobs')) if says == 'the handler' else Failing(quorum('jobs', retry=delays))
    bench.run(processor)
    bench.producer().message_echo('again')
    notes = processor.seen.take(3)
    for wait, delay in zip(waits(notes), delays, strict=True):
        assert delay - 0.01 <= wait < delay + 2, waits(notes)
    assert processor.letter().attempts == 3
    eventually(lambda: bench.broker.messages()['jobs'] == 0)


def test_a_handler_may_ask_for_other_delays_than_its_queue(bench):
    class Other(Failing):
        @Retry(delays=(0.2, 0.7), jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)

    processor = Other(quorum('jobs', retry=(0.2, 0.4, 0.6)))
    bench.run(processor)
    bench.producer().message_echo('again')
    notes = processor.seen.take(3)
    first, second = waits(notes)
    assert 0.2 <= first < 0.7 <= second
    assert [attempts for _, attempts, _ in notes] == [0, 1, 2]
    assert processor.letter().attempts == 3
    assert 'jobs.700' in delay_queues(bench)


def test_more_retries_than_the_queue_allows_deliveries_are_made_all_the_same(bench):
    processor = Failing(quorum('jobs', delivery_limit=2, retry=(0.1,) * 5))
    bench.run(processor)
    bench.producer().message_echo('again')
    assert [attempts for _, attempts, _ in processor.seen.take(6)] == [0, 1, 2, 3, 4, 5]
    assert processor.letter().attempts == 6


def test_where_deliveries_are_counted_no_retry_counts_as_one(bench):
    processor = Failing(quorum('jobs', retry=(0.1,) * 4), max_deliveries=2)
    bench.run(processor)
    bench.producer().message_echo('again')
    assert [attempts for _, attempts, _ in processor.seen.take(5)] == [0, 1, 2, 3, 4]
    assert processor.letter().reason == 'exception'
    assert delay_queues(bench) == ['jobs.100']


def test_a_queue_that_exists_without_retries_is_used_as_it_is(bench):
    bench.bare.queue_declare('jobs', durable=True, arguments={'x-queue-type': 'quorum'})
    processor = Failing(quorum('jobs', retry=(0.1, 0.2)))
    bench.run(processor)
    bench.producer().message_echo('again')
    assert len(processor.seen.take(3)) == 3
    assert processor.letter().attempts == 3


def test_a_program_that_knows_nothing_of_the_retries_of_a_queue_uses_it_as_it_is(bench):
    bench.consumer([(EchoExchange, [(quorum('jobs', retry=(0.1, 0.2)), 'echo-rk')])])

    class Own(Failing):
        @Retry(delays=(0.1, 0.2), jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)

    processor = Own(quorum('jobs'))
    bench.run(processor)
    bench.producer().message_echo('again')
    assert [attempts for _, attempts, _ in processor.seen.take(3)] == [0, 1, 2]
    assert processor.letter().attempts == 3


def test_a_message_that_succeeds_at_last_is_done_with(bench):
    class AtLast(Failing):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            if messaging.current_delivery().headers.get('x-postage-attempts', 0) < 2:
                super().msg_echo(content)
            self.seen.put('done')

    processor = AtLast(quorum('jobs', retry=(0.1, 0.2)))
    running = bench.run(processor)
    bench.producer().message_echo('again')
    assert processor.seen.take(3)[-1] == 'done'
    eventually(lambda: not processor.is_busy)
    running.stop()
    eventually(lambda: bench.broker.messages()['jobs'] == 0)
    assert processor.dead_letters.letters == []


def test_a_prefetched_message_that_goes_back_untried_is_no_attempt(bench):
    processor = Failing(quorum('jobs', retry=(0.1, 0.2)))
    first = bench.consumer([(EchoExchange, [(quorum('jobs', retry=(0.1, 0.2)), 'echo-rk')])])
    for number in range(5):
        bench.producer().message_echo(number).wait(TIMEOUT)
    first.delivery_source.begin(lambda: None)
    eventually(lambda: first.delivery_source.channel.inbox)
    first.delivery_source.end()
    bench.run(processor)
    assert processor.seen.next()[1] == 0


def test_one_queue_serves_all_that_wait_for_one_delay_whatever_its_jitter(bench):
    class Jittery(Failing):
        @Retry(delays=(0.1, 0.4, 0.2, 0.3), jitter=0.5)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)

    processor = Jittery('jobs')
    bench.run(processor)
    producer = bench.producer()
    for number in range(20):
        producer.message_echo(number)
    processor.seen.take(5 * 20)
    eventually(lambda: len(processor.dead_letters.letters) == 20)
    assert delay_queues(bench) == ['jobs.150', 'jobs.300', 'jobs.450', 'jobs.600']


# What is known without a broker


def queue(**arguments):
    return Queue('jobs', {'arguments': {f'x-{name.replace("_", "-")}': value for name, value in arguments.items()}})


@pytest.mark.parametrize(
    ('declared', 'retries'),
    [
        (queue(delayed_retry_type='failed', delayed_retry_min=5, delayed_retry_max=9), DelayedRetries(5, 9, 20)),
        (queue(delayed_retry_type='all', delayed_retry_min=5, delayed_retry_max=9), DelayedRetries(5, 9, 20)),
        (
            queue(delayed_retry_type='all', delayed_retry_min=5, delayed_retry_max=9, delivery_limit=3),
            DelayedRetries(5, 9, 3),
        ),
        (
            queue(delayed_retry_type='all', delayed_retry_min=5, delayed_retry_max=9, delivery_limit=-1),
            DelayedRetries(5, 9, float('inf')),
        ),
        (queue(delayed_retry_type='returned', delayed_retry_min=5, delayed_retry_max=9), None),
        (queue(delayed_retry_type='failed', delayed_retry_min=5), None),
        (queue(delayed_retry_min=5, delayed_retry_max=9), None),
        (Queue('jobs', {}), None),
        (None, None),
    ],
)
def test_a_queue_delays_retries_where_all_is_known_of_how(declared, retries):
    assert delayed_retries(declared, DELAYS_RETRIES) == retries
    assert delayed_retries(declared, Server('RabbitMQ', (4, 2))) is None


def test_a_delay_is_left_to_the_broker_where_it_is_within_the_jitter():
    retries = DelayedRetries(100, 250, 3)
    assert [retries.wait(count) for count in range(1, 5)] == [100, 200, 250, 250]
    assert retries.takes(0, 100, 100)
    assert retries.takes(1, 160, 240)
    assert not retries.takes(1, 100, 199)
    assert retries.takes(2, 250, 250)
    assert not retries.takes(3, 250, 250), 'the broker would take it for a dead letter'


@pytest.mark.parametrize('retry', [5, '5', [], [-1], ['soon']])
def test_a_retry_of_a_queue_that_is_none_is_an_error(retry):
    with pytest.raises(messaging.ConfigurationError):
        quorum('jobs', retry=retry)
