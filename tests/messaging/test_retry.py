"""Messages that come back: after declared delays, counted across processes, over both brokers."""

from __future__ import annotations

import itertools
import time

import pytest

from postage import messaging
from support.messaging import (
    GUARDED_EQK,
    TIMEOUT,
    Bench,
    EchoExchange,
    Processor,
    command,
    eventually,
)
from support.programs import ECHO

SLACK = 0.6  # seconds that a busy machine may add to a delay


class Failing(Processor):
    """Notes the time and the headers of each attempt, and fails as often as it is told to.

    :ivar failures: how many attempts fail; by default all
    """

    failures = 1000

    def note(self, content):
        delivery = messaging.current_delivery()
        self.seen.put((time.monotonic(), content['parameters'], delivery))
        if delivery.headers.get('x-postage-attempts', 0) < self.failures:
            raise ConnectionError('not yet')


class Twice(Failing):
    @messaging.Retry(delays=(0.2, 0.5), jitter=0)
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        self.note(content)


def times(notes):
    """The seconds between the notes."""
    moments = [moment for moment, *_ in notes]
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def test_a_message_comes_back_after_each_delay_and_is_dead_after_the_last(bench):
    bench.dead()
    processor = Twice(GUARDED_EQK)
    bench.run(processor)
    bench.producer().message_echo('again')
    notes = processor.seen.take(3)
    first, second = times(notes)
    assert 0.2 <= first < 0.2 + SLACK
    assert 0.5 <= second < 0.5 + SLACK
    assert bench.await_message('dead').parameters == 'again'
    assert [delivery.headers.get('x-postage-attempts', 0) for *_, delivery in notes] == [0, 1, 2]


def test_a_message_that_succeeds_the_second_time_is_done_with(bench):
    class Once(Twice):
        failures = 1

    processor = Once()
    running = bench.run(processor)
    bench.producer().message_echo('again')
    processor.seen.take(2)
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'postage.retry.echo-queue.200': 0}


def test_a_message_comes_back_as_it_was(bench):
    processor = Twice()
    bench.run(processor)
    headers = {'colour': 'red', 'count': 7, 'nested': {'list': [1, 'two', None]}}
    bench.publish(
        command(parameters=1),
        headers=headers,
        message_id='the-id',
        correlation_id='correlated',
        content_encoding='utf-8',
        reply_to='somebody',
        app_id='an app',
        type='a type',
        timestamp=1234567890,
        priority=3,
        delivery_mode=2,
    )
    (_, _, first), (_, _, second), (_, _, third) = processor.seen.take(3)
    names = ('content_type', 'content_encoding', 'message_id', 'correlation_id', 'reply_to', 'app_id', 'type')
    for name in (*names, 'timestamp', 'priority', 'delivery_mode'):
        values = {getattr(delivery.properties, name) for delivery in (first, second, third)}
        assert len(values) == 1, name
    assert headers.items() <= second.headers.items()
    assert headers.items() <= third.headers.items()
    assert {(each.exchange, each.routing_key) for each in (first, second, third)} == {(EchoExchange.name, 'echo-rk')}
    assert len(third.headers['x-death']) == 1  # of this delay: the earlier one is forgotten
    assert second.body == third.body == first.body


def test_headers_that_pika_cannot_send_come_back_as_well(bench):
    processor = Twice()
    bench.run(processor)
    bench.producer().message_echo('again', _headers={'ratio': 0.5, 'bytes': b'\xff'})
    for _, _, delivery in processor.seen.take(3):
        assert (delivery.headers['ratio'], delivery.headers['bytes']) == (0.5, b'\xff')


def test_the_log_says_the_delay_in_seconds_however_long_it_is(bench):
    class Patient(Failing):
        @messaging.Retry(delays=(3600,), jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.note(content)

    bench.run(Patient())
    bench.producer().message_echo('again')
    bench.log.expect('is handled again in about 3600 s')


def test_only_the_exceptions_that_are_named_are_tried_again(bench):
    class Choosy(Processor):
        @messaging.Retry(OSError, delays=(0.1,))
        @messaging.Retry(KeyError, delays=(0.1, 0.1))
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(content['parameters'])
            raise {'os': ConnectionError, 'key': KeyError, 'value': ValueError}[content['parameters']]

    processor = Choosy(GUARDED_EQK)
    bench.dead()
    bench.run(processor)
    producer = bench.producer()
    for kind, attempts in (('value', 1), ('os', 2), ('key', 3)):
        producer.message_echo(kind)
        assert bench.await_message('dead').parameters == kind
        assert processor.seen.take(attempts) == [kind] * attempts
        assert processor.seen.empty()


@pytest.mark.parametrize('kind', [messaging.RejectMessage, messaging.FilterError])
def test_a_message_that_is_rejected_or_dropped_is_not_tried_again(bench, kind):
    class Rejecting(Processor):
        @messaging.Retry(delays=(0.1,))
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(content['parameters'])
            raise kind('no')

    processor = Rejecting()
    running = bench.run(processor)
    bench.producer().message_echo('once')
    processor.seen.next()
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0}


def test_a_message_that_waits_long_holds_up_none_that_does_not(bench):
    class Various(Processor):
        @messaging.Retry(ValueError, delays=(30,))
        @messaging.Retry(KeyError, delays=(0.2,))
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(content['parameters'])
            raise {'slow': ValueError, 'quick': KeyError}[content['parameters']]

    processor = Various()
    bench.run(processor)
    producer = bench.producer()
    producer.message_echo('slow')
    producer.message_echo('quick')
    assert processor.seen.take(3) == ['slow', 'quick', 'quick']


def test_jitter_spreads_what_failed_together(bench):
    class Jittery(Processor):
        @messaging.Retry(delays=(0.5,), jitter=0.6)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put((time.monotonic(), content['parameters']))
            raise ValueError

    processor = Jittery()
    bench.run(processor)
    producer = bench.producer()
    for number in range(30):
        producer.message_echo(number)
    began = {number: moment for moment, number in processor.seen.take(30)}
    waits = [moment - began[number] for moment, number in processor.seen.take(30)]
    assert min(waits) >= 0.19
    assert max(waits) < 0.8 + SLACK
    assert max(waits) - min(waits) > 0.1


def test_all_handlers_of_a_message_run_again(bench):
    class Two(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_first(self, content):
            self.seen.put('first')

        @messaging.Retry(delays=(0.1,))
        @messaging.MessageHandler('command', 'echo')
        def msg_second(self, content):
            self.seen.put('second')
            raise ValueError

    processor = Two()
    bench.run(processor)
    bench.producer().message_echo()
    assert processor.seen.take(4) == ['first', 'second', 'first', 'second']
    bench.log.expect('a message rejected from queue')


class Coloured(Processor):
    """A handler of every colour; each fails the first time."""

    def fail_once(self, content):
        self.seen.put(content['parameters'])
        if not messaging.current_delivery().headers.get('x-postage-attempts'):
            raise ValueError('the first time')

    @messaging.Retry(delays=(0.1,))
    @messaging.MessageHandler('command', 'plain')
    def msg_plain(self, content):
        self.fail_once(content)

    @messaging.Retry(delays=(0.1,))
    @messaging.MessageHandler('command', 'generator')
    def msg_generator(self, content):
        yield
        self.fail_once(content)

    @messaging.Retry(delays=(0.1,))
    @messaging.MessageHandler('command', 'coroutine')
    async def msg_coroutine(self, content):
        self.fail_once(content)

    @messaging.Retry(delays=(0.1,))
    @messaging.MessageHandler('command', 'threaded')
    @messaging.Threaded
    def msg_threaded(self, content):
        self.fail_once(content)

    @messaging.Retry(delays=(0.1,))
    @messaging.MessageHandler('command', 'class')
    class Called(messaging.Handler):
        def call(self):
            self.processor.fail_once(self.data)


@pytest.mark.parametrize('colour', ['plain', 'generator', 'coroutine', 'threaded', 'class'])
def test_a_handler_of_any_colour_may_be_tried_again(bench, colour):
    processor = Coloured()
    running = bench.run(processor)
    getattr(bench.producer(), f'message_{colour}')(colour)
    assert processor.seen.take(2) == [colour, colour]
    eventually(lambda: not processor.is_busy)
    running.stop()
    assert bench.count('echo-queue') == 0


def test_a_handler_that_ran_out_of_time_is_tried_again(bench):
    class Slow(Processor):
        @messaging.Retry(messaging.HandlerTimeout, delays=(0.1,))
        @messaging.Timeout(0.1)
        @messaging.MessageHandler('command', 'echo')
        async def msg_echo(self, content):
            import asyncio

            self.seen.put(content['parameters'])
            await asyncio.sleep(60)

    processor = Slow()
    bench.run(processor)
    bench.producer().message_echo('late')
    assert processor.seen.take(2) == ['late', 'late']


# RPC


class Answering(Processor):
    failures = 1

    @messaging.Retry(delays=(0.1, 0.2), jitter=0)
    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content, reply_func):
        attempts = messaging.current_delivery().headers.get('x-postage-attempts', 0)
        self.seen.put(attempts)
        if attempts < self.failures:
            raise ValueError('not yet')
        reply_func(content['parameters'])


def test_an_rpc_is_answered_once_its_handler_has_succeeded(bench):
    processor = Answering()
    bench.run(processor)
    assert bench.producer().rpc_echo('hello').body['content']['value'] == 'hello'
    assert processor.seen.take(2) == [0, 1]


def test_an_rpc_is_answered_with_the_exception_after_its_last_attempt(bench):
    class Never(Answering):
        failures = 1000

    processor = Never()
    bench.run(processor)
    began = time.monotonic()
    result = bench.producer().rpc_echo('hello')
    assert time.monotonic() - began >= 0.3
    assert result.body['content'] == {'type': 'exception', 'value': 'ValueError', 'message': 'not yet'}
    assert processor.seen.take(3) == [0, 1, 2]


def test_an_rpc_whose_caller_will_be_gone_is_answered_at_once(bench):
    class Patient(Processor):
        @messaging.Retry(delays=(60,))
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content, reply_func):
            raise ValueError('now')

    bench.run(Patient())
    result = bench.producer().rpc_echo('hello', _timeout=TIMEOUT, _max_retry=0)
    assert result.body['content']['message'] == 'now'


# Queues


def test_a_message_of_an_exclusive_queue_is_tried_again_within_the_process(bench):
    queue = {'name': 'private', 'flags': {'exclusive': True}}
    processor = Twice([(EchoExchange, [(queue, 'echo-rk')])])
    running = bench.run(processor)
    bench.producer().message_echo('again')
    notes = processor.seen.take(3)
    first, second = times(notes)
    assert 0.2 <= first < 0.2 + SLACK
    assert 0.5 <= second < 0.5 + SLACK
    eventually(lambda: bench.broker.queues() == {'private': 0})
    running.stop()


def test_what_waits_in_the_process_is_not_handled_twice_when_the_broker_closes_the_channel(bench):
    """The queue is exclusive and outlives the channel: its message comes again, and the copy in hand is stale."""

    class Once(Processor):
        @messaging.Retry(delays=(0.3,), jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            is_redelivered = messaging.current_delivery().redelivered
            self.seen.put(is_redelivered)
            if not is_redelivered:
                raise ValueError('not yet')

    processor = Once([(EchoExchange, [({'name': 'private', 'flags': {'exclusive': True}}, 'echo-rk')])])
    running = bench.run(processor)
    bench.producer().message_echo('once')
    assert processor.seen.next() is False
    with pytest.raises(messaging.OperationRefused):
        processor.consumer.channel.queue_declare('no-such-queue', passive=True)
    assert processor.seen.next() is True
    eventually(lambda: running.scheduler.microthreads == [processor])  # the one that holds the copy has ended
    assert processor.seen.empty()


def test_others_are_handled_while_one_of_an_exclusive_queue_waits(bench):
    class Some(Processor):
        @messaging.Retry(delays=(60,))
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(content['parameters'])
            if content['parameters'] == 'bad':
                raise ValueError

    processor = Some([(EchoExchange, [({'name': 'private', 'flags': {'exclusive': True}}, 'echo-rk')])])
    bench.run(processor)
    producer = bench.producer()
    for text in ('bad', 'good', 'better'):
        producer.message_echo(text)
    assert processor.seen.take(3) == ['bad', 'good', 'better']


def test_a_message_comes_back_to_its_own_queue_alone(bench):
    processor = Twice([(EchoExchange, [('one', 'echo-rk')])])
    other = Processor([(EchoExchange, [('two', 'echo-rk')])])
    bench.run(processor)
    bench.closing(other)
    bench.producer().message_echo('again')
    processor.seen.take(3)
    assert bench.count('two') == 1


def test_a_queue_with_a_long_name_may_be_retried_as_well(bench):
    processor = Twice([(EchoExchange, [('q' * 255, 'echo-rk')])])
    bench.run(processor)
    bench.producer().message_echo('again')
    assert len(processor.seen.take(3)) == 3


def test_messages_of_a_quorum_queue_wait_in_a_quorum_queue(bench):
    processor = Twice([(EchoExchange, [(messaging.quorum('replicated'), 'echo-rk')])])
    bench.run(processor)
    bench.producer().message_echo('again')
    assert len(processor.seen.take(3)) == 3
    arguments = {
        'x-dead-letter-exchange': '',
        'x-dead-letter-routing-key': 'replicated',
        'x-message-ttl': 200,
        'x-expires': 600200,
        'x-queue-type': 'quorum',
        'x-dead-letter-strategy': 'at-least-once',
        'x-overflow': 'reject-publish',
    }
    bench.bare.queue_declare('postage.retry.replicated.200', durable=True, arguments=arguments)


def test_a_delay_queue_that_somebody_deleted_is_declared_again(bench):
    class Often(Failing):
        @messaging.Retry(delays=(0.1, 0.1), jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.note(content)

    processor = Often()
    bench.run(processor)
    bench.producer().message_echo('one')
    processor.seen.take(3)
    bench.bare.queue_delete('postage.retry.echo-queue.100')
    bench.producer().message_echo('two')
    assert [parameters for _, parameters, _ in processor.seen.take(3)] == ['two'] * 3


def test_the_delay_queue_expires_when_it_is_not_used(bench):
    processor = Twice()
    bench.run(processor)
    bench.producer().message_echo('again')
    processor.seen.take(3)
    with pytest.raises(Exception, match=r'x-expires.*600200'):
        bench.bare.queue_declare(
            'postage.retry.echo-queue.200',
            durable=True,
            arguments={
                'x-dead-letter-exchange': '',
                'x-dead-letter-routing-key': 'echo-queue',
                'x-message-ttl': 200,
                'x-expires': 1,
            },
        )


def test_copies_to_other_keys_are_not_sent_again(bench):
    bench.bare.queue_declare('elsewhere', durable=True)
    processor = Twice()
    bench.run(processor)
    bench.publish(command(), headers={'CC': ['elsewhere']})
    notes = processor.seen.take(3)
    assert bench.count('elsewhere') == 0
    assert notes[1][2].headers['x-postage-cc'] == ['elsewhere']


# Losses


def test_attempts_are_counted_across_processors(bench):
    first = Twice(GUARDED_EQK)
    bench.dead()
    running = bench.run(first)
    bench.producer().message_echo('again')
    first.seen.next()
    running.stop()
    second = Twice(GUARDED_EQK)
    bench.run(second)
    assert len(second.seen.take(2)) == 2
    assert bench.await_message('dead').parameters == 'again'
    assert first.seen.empty()


def test_a_message_is_acknowledged_after_its_delayed_copy_is_confirmed(bench, monkeypatch):
    from support.messaging import HeldConfirms

    processor = Twice()
    bench.run(processor)
    producer = bench.producer()
    receipt = producer.message_echo('again')
    receipt.wait(TIMEOUT)
    processor.seen.take(3)
    held = HeldConfirms(monkeypatch)
    bench.publish(command(parameters='another'))
    processor.seen.next()
    held.arrived.next()
    bench.close_all_connections()  # unacknowledged, so it comes again; and the copy has been published
    held.forget()
    assert [parameters for _, parameters, _ in processor.seen.take(2)] == ['another', 'another']


def test_a_connection_lost_while_messages_wait_loses_none(bench):
    processor = Twice(GUARDED_EQK)
    bench.dead()
    bench.run(processor)
    producer = bench.producer()
    for number in range(20):
        producer.message_echo(number)
    processor.seen.next()
    bench.close_all_connections()
    producer.flush(TIMEOUT)
    missing = set(range(20))
    while missing:  # some may come twice
        missing.discard(bench.await_message('dead').parameters)


RETRYING = (
    ECHO
    + """
import logging, sys, time

class Twice(messaging.MessageProcessor):
    @messaging.Retry(delays=(0.3, 2), jitter=0)
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        attempts = messaging.current_delivery().headers.get('x-postage-attempts', 0)
        print('attempt', attempts, time.monotonic(), flush=True)
        raise ValueError('not yet')

scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(Twice({}, [(EchoExchange, [('echo-queue', 'echo-rk')])]))
scheduler.run()
"""
)


def test_a_message_comes_back_on_time_to_the_process_that_has_taken_the_place_of_the_first(bench, run_program):
    bench.consumer().close()
    bench.producer().message_echo('again')
    first = run_program(RETRYING)
    began = float(first.expect('attempt 1').split()[-1])
    eventually(lambda: not bench.broker.messages()['echo-queue'])  # it waits elsewhere
    first.stop()
    second = run_program(RETRYING)
    waited = float(second.expect('attempt 2').split()[-1]) - began
    assert 2 <= waited < 2 + SLACK + 2  # a process needs its time to start
    counts = [[program.count(f'attempt {number} ') for number in range(3)] for program in (first, second)]
    assert counts == [[1, 1, 0], [0, 0, 1]]  # other lines of the log speak of attempts, too


def test_messages_that_wait_survive_a_restart_of_the_broker(private_rabbitmq, monkeypatch):
    monkeypatch.setenv('POSTAGE_URL', private_rabbitmq.url)
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '30')

    class Patient(Failing):
        @messaging.Retry(delays=(3,), jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.note(content)

    with Bench(private_rabbitmq) as bench:
        processor = Patient()
        bench.run(processor)
        producer = bench.producer()
        for number in range(10):
            producer.message_echo(number)
        processor.seen.take(10)
        eventually(lambda: bench.count('postage.retry.echo-queue.3000') == 10)
        private_rabbitmq.node.restart()
        again = [processor.seen.get(timeout=30) for _ in range(10)]
        assert sorted(parameters for _, parameters, _ in again) == list(range(10))
        assert {delivery.headers['x-postage-attempts'] for *_, delivery in again} == {1}


# Mistakes


@pytest.mark.parametrize(
    ('arguments', 'options', 'fault'),
    [
        ((7,), {}, 'takes classes of exceptions, not 7'),
        ((KeyboardInterrupt,), {}, 'takes classes of exceptions'),
        ((messaging.RejectMessage,), {}, 'RejectMessage is no failure'),
        ((), {'delays': ()}, 'delays must be a list of seconds and not empty'),
        ((), {'delays': 5}, 'delays must be a list of seconds'),
        ((), {'delays': '5'}, 'delays must be a list of seconds'),
        ((), {'delays': (1, -1)}, 'a delay must be a number of seconds.*not -1'),
        ((), {'delays': (1, 1e9)}, '40 days at most'),
        ((), {'delays': (True,)}, 'a delay must be a number'),
        ((), {'jitter': 2}, 'jitter must be a number from 0 to 1, not 2'),
        ((), {'jitter': 'much'}, 'jitter must be'),
    ],
)
def test_a_retry_of_the_wrong_shape_is_an_error(arguments, options, fault):
    with pytest.raises(messaging.ConfigurationError, match=fault):
        messaging.Retry(*arguments, **options)


def test_a_retry_decorates_handlers_only():
    with pytest.raises(messaging.ConfigurationError, match='Retry decorates methods'):
        messaging.Retry()(7)
