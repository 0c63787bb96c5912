"""Programs of Postage 1.2.1, played by bare pika, and ours understand each other.

What such a program does, as far as the wire shows it: the envelope of the reference with ``version`` ``'2'``, the
content type ``application/json`` and no other AMQP property; durable exchanges, queues that are not durable; for each
RPC a queue of its own, named in ``reply_to`` without a correlation id; replies to the default exchange that copy none.
"""

from __future__ import annotations

import contextlib
import json

import pika
import pytest

from postage import messaging
from support.brokers import connect
from support.messaging import (
    EQK,
    TIMEOUT,
    BareResponder,
    Echo,
    EchoExchange,
    EchoProducer,
    Processor,
    eventually,
)

FINGERPRINT = {'name': 'old', 'type': 'application', 'pid': '4711', 'host': 'somewhere', 'user': 'me', 'vhost': '/'}


def old_body(name, parameters, category='message', type='command'):
    """The envelope, with its keys in the order of the reference."""
    return {
        'type': type,
        'name': name,
        'category': category,
        'version': '2',
        'fingerprint': FINGERPRINT,
        'content': {'parameters': parameters},
        '_reserved': {},
    }


def old_result(kind, value, message=''):
    return {
        'type': 'result',
        'name': 'none',
        'category': 'message',
        'version': '2',
        'fingerprint': {},
        'content': {'type': kind, 'value': value, 'message': message},
        '_reserved': {},
    }


def old_properties(**more):
    return pika.BasicProperties(content_type='application/json', **more)


def declare_as_old(channel):
    """Declare exchange, queue and binding as a consumer of 1.2.1 does."""
    channel.exchange_declare('echo-exchange', 'direct', passive=False, durable=True, auto_delete=False)
    channel.queue_declare('echo-queue')
    channel.queue_bind('echo-queue', 'echo-exchange', 'echo-rk')


@contextlib.contextmanager
def old_program(bench):
    """The channel of such a program."""
    with connect(bench.broker) as connection:
        yield connection.channel()


def old_rpc(channel, body):
    """Call as a producer of 1.2.1 does, and return the reply's body."""
    queue = channel.queue_declare('', exclusive=True, auto_delete=True).method.queue
    channel.basic_publish('echo-exchange', 'echo-rk', json.dumps(body).encode(), old_properties(reply_to=queue))
    for method, properties, data in channel.consume(queue, inactivity_timeout=TIMEOUT):
        assert method is not None, 'no reply came'
        channel.cancel()
        assert properties.content_type == 'application/json'
        return json.loads(data)
    raise AssertionError('the consumer was cancelled')


class OldConsumer(messaging.GenericConsumer):
    """One of ours that declares its queues as 1.2.1 did."""

    durable_queues = False


class OldEcho(Echo):
    consumer_class = OldConsumer


# Messages


def test_our_processor_understands_an_old_programs_message(bench):
    class Noting(Processor):
        @messaging.MessageHandlerFullBody('command', 'echo')
        def msg_echo(self, body):
            self.seen.put(body)

    processor = Noting()
    bench.run(processor)
    body = old_body('echo', ['text', {'ü': 1.5}])
    with old_program(bench) as channel:
        channel.exchange_declare('echo-exchange', 'direct', durable=True)
        channel.basic_publish('echo-exchange', 'echo-rk', json.dumps(body).encode(), old_properties())
        assert processor.seen.next() == body


@pytest.mark.parametrize('type_and_name', [('status', 'online'), ('none', 'none')])
def test_our_processor_understands_an_old_programs_other_messages(bench, type_and_name):
    class Noting(Processor):
        @messaging.MessageHandler('status')
        @messaging.MessageHandler('none', 'none')
        def msg_any(self, content):
            self.seen.put(content)

    processor = Noting()
    bench.run(processor)
    kind, name = type_and_name
    bench.publish(old_body(name, 'text', type=kind))
    assert processor.seen.next() == {'parameters': 'text'}


def test_an_old_program_understands_our_message(bench):
    queue = bench.collect()
    fingerprint = messaging.Fingerprint('ours', 'test').as_dict()
    bench.producer(EchoProducer, fingerprint).message_echo('text').wait(TIMEOUT)
    got = bench.get(queue)
    assert got.properties.content_type == 'application/json'
    assert list(got.body.items()) == list({**old_body('echo', 'text'), 'fingerprint': fingerprint}.items())


def test_an_old_program_ends_our_processor_by_quit(bench):
    running = bench.run(Echo())
    bench.publish(old_body('quit', {}))
    running.wait()


# RPC


def test_our_processor_answers_an_old_program(bench):
    bench.run(Echo())
    with old_program(bench) as channel:
        for number in range(3):
            reply = old_rpc(channel, old_body('echo', number, 'rpc'))
            assert list(reply) == list(old_result('success', number))
            assert reply['content'] == {'type': 'success', 'value': number, 'message': ''}
            assert (reply['type'], reply['name'], reply['category'], reply['version']) == (
                'result',
                'none',
                'message',
                '2',
            )


def test_an_old_program_gets_our_errors_and_exceptions(bench):
    class Failing(Echo):
        @messaging.RpcHandler('command', 'fail')
        def rpc_fail(self, content, reply_func):
            raise ValueError('broken')

    bench.run(Failing())
    with old_program(bench) as channel:
        content = old_rpc(channel, old_body('fail', {}, 'rpc'))['content']
        assert content == {'type': 'exception', 'value': 'ValueError', 'message': 'broken'}
        content = old_rpc(channel, old_body('surprise', {}, 'rpc'))['content']
        assert (content['type'], content['value']) == ('error', None)
        assert "'surprise'" in content['message']


def old_responder(bench, answer):
    """A consumer of 1.2.1 that answers RPCs, and copies no correlation id."""
    return bench.closing(
        BareResponder(
            bench.broker,
            'echo-queue',
            lambda body, properties: [(properties.reply_to, answer(body), None)],
            declare_as_old,
        )
    )


def test_an_old_program_answers_our_rpc(bench):
    old_responder(bench, lambda body: old_result('success', body['content']['parameters']))
    producer = bench.producer()
    for number in range(3):
        reply = producer.rpc_echo(number)
        assert reply.body == old_result('success', number)
        assert reply


@pytest.mark.parametrize(
    ('kind', 'value', 'cls'),
    [('error', None, messaging.MessageResultError), ('exception', 'KeyError', messaging.MessageResultException)],
)
def test_an_old_programs_errors_and_exceptions_are_understood(bench, kind, value, cls):
    old_responder(bench, lambda body: old_result(kind, value, 'a word on it'))
    reply = bench.producer().rpc_echo()
    assert type(reply) is cls
    assert not reply
    assert reply.body['content']['message'] == 'a word on it'


def test_the_request_that_an_old_program_sees_is_the_old_envelope(bench):
    requests = []
    old_responder(bench, lambda body: requests.append(body) or old_result('success', 1))
    bench.producer(EchoProducer, FINGERPRINT).rpc_echo('text')
    assert [list(request.items()) for request in requests] == [list(old_body('echo', 'text', 'rpc').items())]


def test_with_a_reply_queue_per_call_many_calls_to_an_old_program_are_under_way_at_once(bench):
    old_responder(bench, lambda body: old_result('success', body['content']['parameters']))
    producer = bench.producer(type('PerCallProducer', (EchoProducer,), {'reply_queue_per_call': True}))
    futures = [producer.rpc_future_echo(number) for number in range(10)]
    assert [future.result(TIMEOUT).body['content']['value'] for future in futures] == list(range(10))


def test_an_old_programs_result_may_be_collected_later(bench):
    old_responder(bench, lambda body: old_result('success', body['content']['parameters']))
    producer = bench.producer()
    (reply,) = producer.consume_rpc(producer.rpc_queue_echo('text'))
    assert reply.body['content']['value'] == 'text'


# Queues


def test_ours_joins_a_queue_that_an_old_program_declared_first(bench):
    with old_program(bench) as channel:
        declare_as_old(channel)
        processor = Echo()
        bench.log.expect('WARNING', "queue 'echo-queue' exists with durable")
        bench.run(processor)
        eventually(lambda: bench.consumers('echo-queue') == 1)
        theirs = []
        channel.basic_consume('echo-queue', lambda *delivery: theirs.append(delivery[-1]), auto_ack=True)
        producer = bench.producer()
        for number in range(4):
            producer.message_echo(number)
            eventually(
                lambda number=number: (
                    channel.connection.process_data_events() or processor.seen.qsize() + len(theirs) == number + 1
                )
            )
        mine = processor.seen.take(2)
        assert sorted(mine + [json.loads(body)['content']['parameters'] for body in theirs]) == [0, 1, 2, 3]


@pytest.mark.parametrize('auto_delete', [False, True])
def test_ours_joins_a_queue_with_flags_that_an_old_program_declared_first(bench, auto_delete):
    with old_program(bench) as channel:
        channel.queue_declare('echo-queue', auto_delete=auto_delete, arguments={'x-message-ttl': 60000})
        processor = Echo()
        fields = ['durable', 'auto_delete', 'x-message-ttl'] if auto_delete else ['durable', 'x-message-ttl']
        warnings = bench.log.find('WARNING', "queue 'echo-queue' exists with")
        assert len(warnings) == len(fields)
        for field in fields:
            assert any(field in warning for warning in warnings), (field, warnings)
        bench.run(processor)
        bench.publish(old_body('echo', 'text'))
        assert processor.seen.next() == 'text'


def test_with_durable_queues_false_an_old_program_joins_ours(bench):
    processor = OldEcho(EQK)
    bench.run(processor)
    with old_program(bench) as channel:
        declare_as_old(channel)
        assert channel.is_open
    bench.publish(old_body('echo', 'text'))
    assert processor.seen.next() == 'text'
    assert not bench.log.find('WARNING')


def test_without_durable_queues_false_an_old_program_is_refused(bench):
    bench.run(Echo())
    with old_program(bench) as channel, pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        declare_as_old(channel)
    assert caught.value.reply_code == 406


def test_an_old_program_declares_the_same_exchange_as_ours(bench):
    bench.producer()
    with old_program(bench) as channel:
        channel.exchange_declare(**EchoExchange.parameters)
        assert channel.is_open
