"""What programs of 1.2.1 subclass, override and set, on both brokers; ``tests/fidelity`` compares whole programs."""

from __future__ import annotations

import os
import socket

import pytest

from postage import messaging
from support.messaging import (
    EQK,
    TIMEOUT,
    Echo,
    EchoExchange,
    EchoProducer,
    OtherExchange,
    Processor,
    command,
    eventually,
    result,
)


@pytest.fixture
def producer(bench):
    """A producer of a class of its own, which a test may change."""
    return bench.producer(type('Late', (EchoProducer,), {}), {'name': 'late'})


# Producers


@pytest.mark.parametrize('where', ['instance', 'class'])
def test_eks_counts_as_it_is_at_the_call(bench, producer, where):
    first, second = bench.collect(), bench.collect(OtherExchange, 'other-rk')
    producer.message_echo(1).wait(TIMEOUT)
    (producer if where == 'instance' else type(producer)).eks = [(OtherExchange, 'other-rk')]
    producer.message_echo(2).wait(TIMEOUT)
    assert [bench.get(queue).parameters for queue in (first, second)] == [1, 2]
    assert producer.default_exchange is OtherExchange


def test_a_pair_added_to_the_list_counts(bench, producer):
    queue = bench.collect(OtherExchange, 'other-rk')
    producer.eks = [(EchoExchange, 'echo-rk')]
    producer.message_echo(1).wait(TIMEOUT)
    producer.eks.append((OtherExchange, 'other-rk'))
    producer.message_echo(2).wait(TIMEOUT)
    assert bench.get(queue).parameters == 2
    assert bench.count(queue) == 0


def test_an_rpc_goes_to_the_eks_of_the_call(bench, producer):
    bench.run(Echo([(OtherExchange, [('other-queue', 'other-rk')])]))
    producer.eks = ((OtherExchange, 'other-rk'),)
    assert producer.rpc_echo(1).body['content']['value'] == 1


def test_eks_of_the_wrong_shape_that_is_set_later_is_a_clear_error(producer):
    producer.eks = [EchoExchange]
    with pytest.raises(messaging.ConfigurationError, match=r'Late\.eks'):
        producer.message_echo()


def test_a_builder_counts_from_when_it_is_there(bench, producer):
    queue = bench.collect()
    producer.message_echo(1).wait(TIMEOUT)
    type(producer).build_message_echo = lambda self, text: messaging.MessageCommand('built', text)
    producer.message_echo(2).wait(TIMEOUT)
    producer.build_message_echo = lambda text: messaging.MessageCommand('own', text)
    producer.message_echo(3).wait(TIMEOUT)
    del producer.build_message_echo, type(producer).build_message_echo
    producer.message_echo(4).wait(TIMEOUT)
    assert [bench.get(queue).body['name'] for _ in range(4)] == ['echo', 'built', 'own', 'echo']


def test_a_builder_may_return_what_is_like_a_message(bench, producer):
    class Envelope:
        def __init__(self):
            self.body = command('own')

        def fingerprint(self, **kwds):
            self.body['fingerprint'] = kwds

    queue = bench.collect()
    producer.build_message_own = Envelope
    producer.message_own().wait(TIMEOUT)
    assert bench.get(queue).body == command('own', fingerprint=producer.fingerprint)


def test_the_fingerprint_of_a_message_may_be_overridden(bench, producer):
    class Signed(messaging.MessageCommand):
        def fingerprint(self, **kwds):
            super().fingerprint(**{**kwds, 'name': kwds['name'].upper()})

    queue = bench.collect()
    producer.build_message_signed = lambda: Signed('signed')
    producer.message_signed().wait(TIMEOUT)
    assert bench.get(queue).body['fingerprint']['name'] == 'LATE'


def test_a_fingerprint_may_be_set_as_the_object_it_is(bench, producer):
    queue = bench.collect()
    producer.fingerprint = messaging.Fingerprint('set')
    producer.message_echo().wait(TIMEOUT)
    assert bench.get(queue).body['fingerprint'] == messaging.Fingerprint('set').as_dict()


def test_an_encoder_class_that_is_set_later_counts(bench, producer):
    class Shouting(messaging.JsonEncoder):
        content_type = 'text/shouting'

    queue = bench.collect()
    producer.encoder_class = Shouting
    producer.message_echo().wait(TIMEOUT)
    assert bench.get(queue).properties.content_type == 'text/shouting'


def test_a_negative_time_out_of_consume_rpc_is_the_default(bench, producer):
    bench.run(Echo())
    (reply,) = producer.consume_rpc(producer.rpc_queue_echo('text'), timeout=-1)
    assert reply.body['content']['value'] == 'text'


def test_hup_and_vhost_may_be_set_before_the_constructor_runs(bench, monkeypatch):
    url = bench.broker.url
    monkeypatch.setenv('POSTAGE_URL', 'amqp://nobody:wrong@127.0.0.1:1/nowhere')

    class Own(EchoProducer):
        def __init__(self):
            self.hup, self.vhost = url, bench.broker.vhost
            super().__init__({})

    assert bench.producer(Own).vhost == bench.broker.vhost


# Consumers and processors


def test_an_empty_eqk_means_that_of_the_class(bench):
    cls = type('Own', (messaging.GenericConsumer,), {'eqk': EQK})
    consumer = bench.closing(cls([]))
    assert consumer.eqk is EQK
    assert consumer.qk_list == [('echo-queue', 'echo-rk')]


def test_overridden_binding_methods_are_called_by_the_constructor(bench):
    calls = []

    class Own(messaging.GenericConsumer):
        def add_eqk(self, eqk):
            calls.append(eqk)
            super().add_eqk(eqk)

        def queue_bind(self, exchange_class, queue, key, **kwds):
            calls.append((exchange_class, queue, key, kwds))
            super().queue_bind(exchange_class, queue, key, **kwds)

    eqk = [(EchoExchange, [({'name': 'q', 'flags': {'auto_delete': True}}, 'k')])]
    bench.closing(Own(eqk))
    assert calls == [eqk, (EchoExchange, 'q', 'k', {'auto_delete': True})]


def test_overridden_settling_methods_are_called_for_each_delivery(bench):
    calls = []

    class Own(messaging.GenericConsumer):
        def ack(self, method):
            calls.append('ack')
            super().ack(method)

        def reject(self, method, requeue):
            calls.append(('reject', requeue))
            super().reject(method, requeue)

    class Refusing(Echo):
        consumer_class = Own

        @messaging.MessageHandler('command', 'refuse')
        def msg_refuse(self, content):
            raise messaging.RejectMessage

    bench.run(Refusing())
    for body in (command('echo'), command('refuse'), b'no message', command('nobody')):
        bench.publish(body)
    eventually(lambda: len(calls) == 4)
    assert calls == ['ack', ('reject', False), ('reject', False), 'ack']


def test_an_answer_may_be_what_is_like_a_message(bench):
    class Answer:
        body = result('from afar')

    class Answering(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            reply_func(Answer())

    bench.run(Answering())
    assert bench.producer().rpc_ask().body['content']['value'] == 'from afar'


@pytest.mark.parametrize(
    ('flags', 'warned'),
    [
        ({}, True),
        ({'durable': False}, True),
        ({'auto_delete': True}, False),
        ({'exclusive': True}, False),
        ({'arguments': {'x-expires': 60000}}, False),
    ],
)
def test_a_queue_of_this_process_that_would_outlive_it_is_warned_of(bench, flags, warned):
    name = f'echo-queue-{os.getpid()}{socket.gethostname()}'
    bench.consumer([(EchoExchange, [({'name': name, 'flags': flags}, 'k'), (name, 'other')])])
    assert len(bench.log.find('WARNING', name, 'exclusive')) == int(warned)


@pytest.mark.parametrize(('pid', 'name', 'warned'), [(4711, 'q-47110', 0), (4711, 'q4711-x', 1), (7, 'shard-7', 0)])
def test_what_is_no_process_id_in_a_name_is_not_warned_of(bench, monkeypatch, pid, name, warned):
    monkeypatch.setattr(os, 'getpid', lambda: pid)
    bench.consumer([(EchoExchange, [(name, 'k')])])
    assert len(bench.log.find('WARNING', name)) == warned


# Debug mode


def test_debug_mode_logs_every_declaration_message_request_answer_and_delivery(bench, monkeypatch):
    monkeypatch.setenv('POSTAGE_DEBUG_MODE', 'true')
    bench.run(Echo())
    producer = bench.producer()
    producer.message_echo('the text')
    producer.rpc_echo('the question')
    for words in (
        ('declare exchange', EchoExchange.name),
        ('declare queue', 'echo-queue'),
        ('bind queue', 'echo-queue', EchoExchange.name, 'echo-rk'),
        ('publish to exchange', EchoExchange.name, 'echo-rk', 'the text'),
        ('publish to exchange', 'the question'),
        ('delivered', 'echo-queue', 'the text'),
        ('delivered', 'the question'),
        ('answer', 'the question'),
    ):
        bench.log.expect('DEBUG', *words)
    assert not bench.log.find('guest:guest')


def test_without_debug_mode_no_message_is_logged(bench):
    bench.run(Echo())
    assert bench.producer().rpc_echo('the question')
    assert not bench.log.find('the question')
