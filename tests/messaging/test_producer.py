"""Producers send what their magic methods say, where their ``eks`` say, and tell what became of it."""

from __future__ import annotations

import concurrent.futures
import json
import operator
import threading
import time

import pika.exceptions
import pytest

from postage import messaging
from postage.amqp import publishing, registry
from postage.amqp.connection import Connection
from postage.amqp.recording import recording
from support.canary import canary
from support.messaging import (
    TIMEOUT,
    EchoExchange,
    EchoProducer,
    HeldConfirms,
    OtherExchange,
    command,
    eventually,
)
from support.ports import free_ports
from support.programs import ECHO


class ApiProducer(EchoProducer):
    def build_message_status_online(self):
        return messaging.MessageStatus('online')

    def build_message_add(self, a, b=0):
        return messaging.MessageCommand('sum', {'a': a, 'b': b})

    def build_message_wrong(self):
        return 'not a message'


class BothProducer(messaging.GenericProducer):
    eks = [(EchoExchange, 'echo-rk'), (OtherExchange, 'other-rk')]


class PlainProducer(messaging.GenericProducer):
    """Has no eks."""


def sent(bench, send, producer_class=EchoProducer):
    """What arrives when a producer has sent one message."""
    queue = bench.collect()
    send(bench.producer(producer_class)).wait(TIMEOUT)
    return bench.get(queue)


def refusing_queue(bench, **arguments):
    """A queue that is full and refuses what comes."""
    queue = bench.collect(arguments={'x-max-length': 1, 'x-overflow': 'reject-publish', **arguments})
    bench.producer().message_first().wait(TIMEOUT)
    return queue


# Connecting


PASSWORD = canary('-producer')
CLASSES = [messaging.GenericProducer, messaging.GenericConsumer, messaging.MessageProcessor]


@pytest.mark.parametrize('cls', CLASSES)
def test_wrong_credentials_raise_at_once_and_name_the_user_but_not_the_password(bench, monkeypatch, cls):
    monkeypatch.setenv('POSTAGE_URL', f'amqp://somebody:{PASSWORD}@{bench.broker.host}:{bench.broker.port}/')
    with pytest.raises(messaging.AuthenticationFailed, match="'somebody'") as caught:
        cls()
    assert isinstance(caught.value, pika.exceptions.ProbableAuthenticationError)
    assert PASSWORD not in f'{caught.value!r} {bench.log.text}'


@pytest.mark.parametrize('cls', CLASSES)
def test_a_missing_virtual_host_raises_at_once_and_is_named(bench, cls):
    with pytest.raises(messaging.VirtualHostRefused, match="'nowhere'") as caught:
        cls(vhost='nowhere')
    assert isinstance(caught.value, pika.exceptions.ProbableAccessDeniedError)


@pytest.mark.parametrize('cls', CLASSES)
def test_an_unknown_host_raises_after_the_connect_timeout_and_is_named(monkeypatch, cls):
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.2')
    started = time.monotonic()
    with pytest.raises(messaging.BrokerUnavailable, match=r'no-such-host\.invalid') as caught:
        cls(hup={'host': 'no-such-host.invalid', 'user': 'guest', 'password': 'guest'})
    assert isinstance(caught.value, pika.exceptions.AMQPConnectionError)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize('cls', CLASSES)
def test_a_port_where_nobody_listens_raises_after_the_connect_timeout(monkeypatch, cls):
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.2')
    with pytest.raises(messaging.BrokerUnavailable, match='refused'):
        cls(hup={'host': '127.0.0.1', 'user': 'guest', 'password': 'guest', 'port': free_ports(1)[0]})


def test_objects_with_the_same_broker_and_credentials_share_two_connections(bench):
    producers = [bench.producer(), bench.producer(PlainProducer)]
    consumers = [bench.consumer(), bench.consumer(())]
    assert producers[0].conn_broker is producers[1].conn_broker
    assert consumers[0].conn_broker is consumers[1].conn_broker
    assert producers[0].conn_broker is not consumers[0].conn_broker


def test_the_last_close_closes_the_connection(bench):
    first, last = bench.producer(), bench.producer()
    first.close()
    assert last.conn_broker.is_open
    last.close()
    assert not last.conn_broker.is_open


def test_the_class_says_which_broker(bench, monkeypatch):
    monkeypatch.delenv('POSTAGE_URL')
    producer = bench.producer(type('ClassProducer', (EchoProducer,), {'hup': bench.broker.url}))
    producer.message_echo().wait(TIMEOUT)


def test_the_class_says_which_virtual_host(bench):
    bench.broker.add_vhost('of-the-class')
    try:
        with type('ClassProducer', (EchoProducer,), {'vhost': 'of-the-class'})() as producer:
            assert producer.vhost == 'of-the-class'
            assert producer.conn_broker.settings.vhost == 'of-the-class'
    finally:
        bench.broker.delete_vhost('of-the-class')


def test_an_argument_goes_before_what_the_class_says(bench):
    class_producer = type('ClassProducer', (EchoProducer,), {'vhost': 'nowhere', 'hup': 'amqp://nobody@127.0.0.1:1'})
    producer = bench.producer(class_producer, hup=bench.broker.url, vhost=bench.broker.vhost)
    producer.message_echo().wait(TIMEOUT)


# Exchanges


@pytest.mark.parametrize('kind', ['direct', 'topic', 'fanout', 'headers'])
def test_an_exchange_of_every_type_is_declared(bench, kind):
    exchange = type('TypedExchange', (messaging.Exchange,), {'name': 'typed', 'exchange_type': kind})
    bench.producer(type('TypedProducer', (EchoProducer,), {'eks': [(exchange, 'key')]}))
    bench.bare.exchange_declare('typed', kind, durable=True)


@pytest.mark.parametrize(
    ('attributes', 'field'),
    [({'exchange_type': 'topic'}, 'type'), ({'durable': False}, 'durable'), ({'auto_delete': True}, 'auto_delete')],
)
@pytest.mark.parametrize('side', ['producer', 'consumer'])
def test_an_exchange_that_exists_otherwise_raises_naming_the_field(bench, attributes, field, side):
    bench.bare.exchange_declare(**EchoExchange.parameters)
    different = type('DifferentExchange', (EchoExchange,), attributes)
    declare = {
        'producer': type('DifferentProducer', (EchoProducer,), {'eks': [(different, 'key')]}),
        'consumer': lambda: messaging.GenericConsumer([(different, [('queue', 'key')])]),
    }
    with pytest.raises(messaging.DeclarationMismatch, match=r"exchange 'echo-exchange'.*" + field) as caught:
        declare[side]()
    assert (caught.value.reply_code, caught.value.field) == (406, field)


def test_a_passive_exchange_that_does_not_exist_raises(bench):
    passive = type('PassiveExchange', (EchoExchange,), {'passive': True})
    with pytest.raises(messaging.NotFound, match='echo-exchange'):
        bench.producer(type('PassiveProducer', (EchoProducer,), {'eks': [(passive, 'key')]}))


def test_a_passive_exchange_that_exists_is_used_whatever_its_type(bench):
    bench.bare.exchange_declare('echo-exchange', 'fanout', durable=False)
    passive = type('PassiveExchange', (EchoExchange,), {'passive': True})
    producer = bench.producer(type('PassiveProducer', (EchoProducer,), {'eks': [(passive, 'key')]}))
    producer.message_echo().wait(TIMEOUT)


def test_an_unknown_exchange_type_raises_and_the_next_producer_works(bench):
    unknown = type('UnknownExchange', (messaging.Exchange,), {'name': 'unknown', 'exchange_type': 'x-nothing'})
    with pytest.raises(messaging.OperationRefused, match="unknown exchange type 'x-nothing'"):
        bench.producer(type('UnknownProducer', (EchoProducer,), {'eks': [(unknown, 'key')]}))
    bench.producer().message_echo().wait(TIMEOUT)


def test_the_arguments_of_an_exchange_count(bench):
    queue = bench.collect(OtherExchange, key='key')
    exchange = type(
        'AlternateExchange',
        (messaging.Exchange,),
        {'name': 'first', 'arguments': {'alternate-exchange': OtherExchange.name}},
    )
    producer = bench.producer(type('AlternateProducer', (EchoProducer,), {'eks': [(exchange, 'key')]}))
    producer.message_echo('text').wait(TIMEOUT)
    assert bench.get(queue).parameters == 'text'


def test_an_internal_exchange_is_declared_as_such(bench):
    exchange = type('InternalExchange', (messaging.Exchange,), {'name': 'internal', 'internal': True})
    bench.consumer([(exchange, [('queue', 'key')])])
    bench.bare.exchange_declare('internal', durable=True, internal=True)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match='internal'):
        bench.bare.exchange_declare('internal', durable=True)


# Magic methods


def test_a_message_is_what_its_builder_builds(bench):
    body = sent(bench, lambda producer: producer.message_status_online(), ApiProducer).body
    assert (body['type'], body['name'], body['category']) == ('status', 'online', 'message')


def test_the_arguments_of_a_call_go_to_its_builder(bench):
    body = sent(bench, lambda producer: producer.message_add(5, b=6), ApiProducer).body
    assert (body['name'], body['content']) == ('sum', {'parameters': {'a': 5, 'b': 6}})


def test_the_builder_does_not_see_the_special_keywords(bench):
    bench.collect()
    queue = bench.collect(key='elsewhere')
    receipt = bench.producer(ApiProducer).message_add(1, _key='elsewhere', _headers={'a': 1}, _priority=1)
    receipt.wait(TIMEOUT)
    assert bench.get(queue).parameters == {'a': 1, 'b': 0}


def test_a_builder_that_returns_no_message_is_an_error_that_names_it(bench):
    with pytest.raises(messaging.ConfigurationError, match=r'ApiProducer\.build_message_wrong\(\) must return'):
        bench.producer(ApiProducer).message_wrong()


def test_without_a_builder_a_message_is_a_command_of_that_name(bench):
    body = sent(bench, lambda producer: producer.message_echo('text')).body
    assert (body['type'], body['name'], body['category']) == ('command', 'echo', 'message')


def test_the_name_of_a_message_may_contain_the_prefixes(bench):
    for name in ('message_x', 'rpc_x', 'a_message_b', 'x_rpc_', '_x'):
        assert sent(bench, operator.methodcaller(f'message_{name}')).body['name'] == name


def test_any_other_unknown_attribute_is_an_attribute_error(bench):
    producer = bench.producer()
    for name in ('foo', 'massage_echo', 'messages', 'message_', 'rpc_', 'eksx', 'build_message_echo'):
        with pytest.raises(AttributeError, match=f"'EchoProducer' object has no attribute '{name}'"):
            getattr(producer, name)
        assert not hasattr(producer, name)


def test_a_call_without_a_builder_packs_its_arguments(bench):
    for args, kwds, parameters in [
        ((), {}, {}),
        (('text',), {}, 'text'),
        ((None,), {}, None),
        (([1, 2],), {}, [1, 2]),
        (({'a': 1},), {}, {'a': 1}),
        ((), {'parameters': [1]}, [1]),
        ((), {'a': 1, 'b': 2}, {'a': 1, 'b': 2}),
        ((), {'parameters': 1, 'b': 2}, {'parameters': 1, 'b': 2}),
        ((1, 'b'), {}, [1, 'b']),
        ((1,), {'b': 2}, {'args': [1], 'kwds': {'b': 2}}),
        ((1, 2), {'parameters': 3}, {'args': [1, 2], 'kwds': {'parameters': 3}}),
    ]:
        assert sent(bench, operator.methodcaller('message_echo', *args, **kwds)).parameters == parameters


# The fingerprint


@pytest.mark.parametrize('form', ['object', 'dictionary'])
def test_the_fingerprint_of_the_producer_travels_with_each_message(bench, form):
    fingerprint = messaging.Fingerprint('echo_send', 'application')
    queue = bench.collect()
    producer = bench.producer(EchoProducer, fingerprint if form == 'object' else fingerprint.as_dict())
    producer.message_echo().wait(TIMEOUT)
    assert bench.get(queue).body['fingerprint'] == fingerprint.as_dict()


def test_without_one_a_bare_fingerprint_of_this_process_travels(bench):
    found = sent(bench, lambda producer: producer.message_echo()).body['fingerprint']
    assert found == messaging.Fingerprint(vhost=bench.broker.vhost).as_dict()


# Where a message goes


def test_a_message_goes_to_every_pair_of_eks(bench):
    queues = [bench.collect(), bench.collect(OtherExchange, 'other-rk')]
    bench.producer(BothProducer).message_echo('text').wait(TIMEOUT)
    assert [bench.get(queue).parameters for queue in queues] == ['text', 'text']


def test_key_sends_to_the_exchange_of_the_first_pair_alone(bench):
    queues = [
        bench.collect(),
        bench.collect(key='another'),
        bench.collect(OtherExchange, 'other-rk'),
        bench.collect(OtherExchange, 'another'),
    ]
    bench.producer(BothProducer).message_echo(_key='another').wait(TIMEOUT)
    assert [bench.count(queue) for queue in queues] == [0, 1, 0, 0]


def test_eks_sends_to_exactly_those_pairs(bench):
    queues = [bench.collect(), bench.collect(key='a'), bench.collect(OtherExchange, 'b')]
    bench.producer().message_echo(_eks=[(EchoExchange, 'a'), (OtherExchange, 'b')]).wait(TIMEOUT)
    assert [bench.count(queue) for queue in queues] == [0, 1, 1]


def test_with_both_eks_wins_over_key(bench):
    queues = [bench.collect(), bench.collect(key='key'), bench.collect(key='eks')]
    bench.producer().message_echo(_key='key', _eks=[(EchoExchange, 'eks')]).wait(TIMEOUT)
    assert [bench.count(queue) for queue in queues] == [0, 0, 1]


def test_an_exchange_in_eks_that_the_class_does_not_list_is_declared_before_its_first_use(bench):
    bench.producer(PlainProducer).message_echo(_eks=[(OtherExchange, 'key')]).wait(TIMEOUT)
    bench.bare.exchange_declare(OtherExchange.name, passive=True)


def test_eks_may_name_the_default_exchange(bench):
    class DefaultExchange(messaging.Exchange):
        name = ''

    queue = bench.collect()
    bench.producer(PlainProducer).message_echo('text', _eks=[(DefaultExchange, queue)]).wait(TIMEOUT)
    assert bench.get(queue).parameters == 'text'


WRONG_EKS = [
    ('text', "not 'text'"),
    (7, 'not 7'),
    ({}, 'not {}'),
    ([EchoExchange], 'element 0'),
    ([(EchoExchange, 'key'), (EchoExchange,)], 'element 1'),
    ([(EchoExchange, 'key', 'more')], 'element 0'),
    ([('echo-exchange', 'key')], r"_?eks\[0\] must be an Exchange, .* not 'echo-exchange'"),
    ([(EchoExchange, None)], 'key of element 0 is None'),
    ([(messaging.Exchange, 'key')], 'Exchange has no name'),
]


def test_eks_of_the_wrong_shape_raise_and_the_next_message_is_sent(bench):
    queue = bench.collect()
    producer = bench.producer()
    for eks, fault in WRONG_EKS:
        with pytest.raises(messaging.ConfigurationError, match=fault) as caught:
            producer.message_echo(_eks=eks)
        assert '_eks' in str(caught.value)
        producer.message_echo('good').wait(TIMEOUT)
        assert bench.get(queue).parameters == 'good'


@pytest.mark.parametrize(('eks', 'fault'), WRONG_EKS)
def test_a_class_with_eks_of_the_wrong_shape_raises_when_it_is_used(eks, fault):
    with pytest.raises(messaging.ConfigurationError, match=fault) as caught:
        type('WrongProducer', (messaging.GenericProducer,), {'eks': eks})()
    assert 'WrongProducer.eks' in str(caught.value)


@pytest.mark.parametrize('send', [lambda producer: producer.message_echo(), lambda producer: producer.rpc_echo()])
def test_a_producer_without_eks_says_what_it_needs(bench, send):
    with pytest.raises(messaging.ConfigurationError, match=r'PlainProducer has no eks.*_eks='):
        send(bench.producer(PlainProducer))


def test_a_key_without_eks_says_what_it_needs(bench):
    with pytest.raises(messaging.ConfigurationError, match='_key needs an exchange'):
        bench.producer(PlainProducer).message_echo(_key='key')


WRONG_OPTIONS = [
    ({'_key': 7}, '_key must be a routing key, not 7'),
    ({'_headers': 'text'}, "_headers must be a dictionary, not 'text'"),
    ({'_priority': -1}, '_priority must be a number from 0 to 255, not -1'),
    ({'_priority': 256}, '_priority must be a number from 0 to 255, not 256'),
    ({'_expiration': -1}, '_expiration must be .*, not -1'),
    ({'_expiration': 'soon'}, "_expiration must be .*, not 'soon'"),
]


def test_a_special_keyword_of_the_wrong_kind_raises_and_the_next_message_is_sent(bench):
    queue = bench.collect()
    producer = bench.producer()
    for options, fault in WRONG_OPTIONS:
        with pytest.raises(messaging.ConfigurationError, match=fault):
            producer.message_echo(**options)
        producer.message_echo('good').wait(TIMEOUT)
        assert bench.get(queue).parameters == 'good'


def test_a_routing_key_that_amqp_cannot_carry_raises_and_the_next_message_is_sent(bench):
    queue = bench.collect()
    producer = bench.producer()
    for key, fault in [
        ('k' * 256, 'the routing key is 256 bytes long'),
        ('\ud800', 'the routing key has a lone surrogate'),
    ]:
        with pytest.raises(messaging.EncodingError, match=fault):
            producer.message_echo(_key=key)
    producer.message_echo('good').wait(TIMEOUT)
    assert bench.get(queue).parameters == 'good'


def test_headers_that_amqp_cannot_carry_raise_before_anything_is_sent(bench):
    queue = bench.collect()
    producer = bench.producer()
    with pytest.raises(messaging.EncodingError, match="header 'thing' cannot be"):
        producer.message_echo(_headers={'thing': object()})
    producer.message_echo('good').wait(TIMEOUT)
    assert bench.get(queue).parameters == 'good'


# AMQP properties


def test_a_message_says_its_content_type_and_has_an_id(bench):
    properties = sent(bench, lambda producer: producer.message_echo()).properties
    assert properties.content_type == 'application/json'
    assert properties.message_id


def test_messages_are_persistent(bench):
    assert sent(bench, lambda producer: producer.message_echo()).properties.delivery_mode == 2


def test_messages_of_a_producer_that_says_so_are_not_persistent(bench):
    transient = type('TransientProducer', (EchoProducer,), {'persistent': False})
    assert sent(bench, lambda producer: producer.message_echo(), transient).properties.delivery_mode in (None, 1)


def test_headers_travel(bench):
    headers = {'text': 'ü', 'number': 2**40, 'table': {'list': [1, True, None]}}
    assert sent(bench, lambda producer: producer.message_echo(_headers=headers)).properties.headers == headers


def test_priority_and_expiration_travel(bench):
    properties = sent(bench, lambda producer: producer.message_echo(_priority=7, _expiration=20)).properties
    assert (properties.priority, properties.expiration) == (7, '20000')


def test_a_message_of_higher_priority_overtakes(bench):
    queue = bench.collect(arguments={'x-max-priority': 9})
    producer = bench.producer()
    for priority in (1, 5, 3):
        producer.message_echo(priority, _priority=priority).wait(TIMEOUT)
    assert [bench.get(queue).parameters for _ in range(3)] == [5, 3, 1]


def test_a_message_expires(bench):
    queue = bench.collect()
    bench.producer().message_echo(_expiration='1').wait(TIMEOUT)
    eventually(lambda: bench.count(queue) == 0)


def test_the_special_keywords_reach_all_pairs(bench):
    queues = [bench.collect(), bench.collect(OtherExchange, 'other-rk')]
    bench.producer(BothProducer).message_echo(_headers={'a': 1}).wait(TIMEOUT)
    assert [bench.get(queue).properties.headers for queue in queues] == [{'a': 1}, {'a': 1}]


# Generic messages, ready bodies, text files


def test_message_sends_a_generic_message(bench):
    body = sent(bench, lambda producer: producer.message(1, 'str', values=[2])).body
    assert (body['type'], body['name'], body['category']) == ('none', 'none', 'message')
    assert body['content'] == {'args': [1, 'str'], 'kwds': {'values': [2]}}


def test_a_generic_message_with_a_set_goes_where_its_eks_say(bench):
    queue = bench.collect(OtherExchange, 'a_routing_key')
    producer = bench.producer(PlainProducer)
    producer.message(1, 'str', values={1, 'numbers'}, _eks=[(OtherExchange, 'a_routing_key')]).wait(TIMEOUT)
    content = bench.get(queue).body['content']
    assert content['args'] == [1, 'str']
    assert sorted(map(str, content['kwds']['values'])) == ['1', 'numbers']


def test_a_generic_message_takes_a_key(bench):
    queue = bench.collect(key='another')
    bench.producer().message('text', _key='another').wait(TIMEOUT)
    assert bench.get(queue).body['content'] == {'args': ['text']}


def test_forward_sends_a_ready_body_as_it_is(bench):
    body = command('echo', 'text', fingerprint={'name': 'somebody else'}, version='1', more=[1, {'a': None}])
    assert sent(bench, lambda producer: producer.forward(body)).body == body


def test_forward_takes_a_message_and_leaves_its_fingerprint_alone(bench):
    message = messaging.MessageStatus('online')
    assert sent(bench, lambda producer: producer.forward(message)).body == message.body
    assert message.body['fingerprint'] == {}


def test_forward_takes_a_key_and_eks(bench):
    queues = [bench.collect(key='a'), bench.collect(OtherExchange, 'b')]
    producer = bench.producer()
    producer.forward(command(), _key='a').wait(TIMEOUT)
    producer.forward(command(), _eks=[(OtherExchange, 'b')]).wait(TIMEOUT)
    assert [bench.count(queue) for queue in queues] == [1, 1]


def test_forward_takes_no_other_keywords(bench):
    with pytest.raises(TypeError, match='not colour'):
        bench.producer().forward(command(), colour='red')


def test_a_text_file_becomes_its_name_and_its_lines(bench, tmp_path):
    path = tmp_path / 'some file.txt'
    path.write_text('first\nsecond: ü\n', encoding='utf-8')
    producer = bench.producer()
    for given in (path, str(path)):
        assert producer.serialize_text_file(given) == {'name': 'some file.txt', 'content': ['first\n', 'second: ü\n']}


# Encoders


def test_a_body_that_cannot_be_encoded_raises_naming_the_key_and_sends_nothing(bench):
    queue = bench.collect()
    producer = bench.producer()
    for value, key in [
        ({'inner': [1, object()]}, 'inner'),
        (float('nan'), 'parameters'),
        ({'number': float('inf')}, 'number'),
    ]:
        with pytest.raises(messaging.EncodingError, match=key):
            producer.message_echo(value)
        producer.message_echo('good').wait(TIMEOUT)
        assert bench.get(queue).parameters == 'good'


class Reversing:
    """An encoder that derives from nothing of Postage's."""

    content_type = 'text/reversed'

    def encode(self, body):
        return json.dumps(body)[::-1]

    def decode(self, data):
        return json.loads(data.decode()[::-1])


def test_any_object_with_encode_decode_and_content_type_serves_as_encoder_class(bench):
    reversing = type('ReversingProducer', (EchoProducer,), {'encoder_class': Reversing})
    got = sent(bench, lambda producer: producer.message_echo('text'), reversing)
    assert got.properties.content_type == 'text/reversed'
    assert Reversing().decode(got.data)['content'] == {'parameters': 'text'}


def test_the_plain_encoder_sends_bytes_as_they_are_and_no_content_type(bench):
    plain = type('BytesProducer', (EchoProducer,), {'encoder_class': messaging.Encoder})
    got = sent(bench, lambda producer: producer.forward(b'\x00any bytes\xff'), plain)
    assert got.data == b'\x00any bytes\xff'
    assert not got.properties.content_type


# Receipts


def test_a_receipt_is_confirmed_once_the_broker_has_taken_the_message_over(bench, monkeypatch):
    held = HeldConfirms(monkeypatch)
    receipt = bench.producer().message_echo()
    held.arrived.next()
    assert not receipt.confirmed
    held.release()
    receipt.wait(TIMEOUT)
    assert receipt.confirmed


def test_one_receipt_stands_for_all_pairs(bench, monkeypatch):
    held = HeldConfirms(monkeypatch)
    receipt = bench.producer(BothProducer).message_echo()
    held.arrived.next()
    with pytest.raises(messaging.PublishTimeout):
        receipt.wait(0.01)
    held.release()
    receipt.wait(TIMEOUT)
    assert receipt.confirmed


@pytest.mark.parametrize(
    'send',
    [
        lambda producer: producer.message_echo('text'),
        lambda producer: producer.message('text'),
        lambda producer: producer.forward(command()),
    ],
)
def test_every_way_to_send_returns_a_receipt(bench, send):
    receipt = send(bench.producer())
    receipt.wait(TIMEOUT)
    assert receipt.confirmed


def test_the_wait_for_a_receipt_times_out(bench, monkeypatch):
    held = HeldConfirms(monkeypatch)
    receipt = bench.producer().message_echo()
    with pytest.raises(messaging.PublishTimeout, match=r'not confirmed within 0\.05 s') as caught:
        receipt.wait(0.05)
    assert isinstance(caught.value, TimeoutError)
    held.release()
    receipt.wait(TIMEOUT)


def test_a_message_that_the_broker_refuses_is_nacked(bench):
    refusing_queue(bench)
    receipt = bench.producer().message_echo()
    with pytest.raises(messaging.Nacked, match=f"{receipt.message_id}.*'echo-exchange'.*'echo-rk'"):
        receipt.wait(TIMEOUT)
    assert not receipt.confirmed


def test_a_mandatory_message_that_no_queue_takes_is_unroutable(bench):
    mandatory = type('MandatoryProducer', (EchoProducer,), {'mandatory': True})
    receipt = bench.producer(mandatory).message_echo()
    with pytest.raises(messaging.Unroutable, match=r"'echo-rk'.*NO_ROUTE \(312\)"):
        receipt.wait(TIMEOUT)
    assert not receipt.confirmed


def test_a_mandatory_message_that_a_queue_takes_is_confirmed(bench):
    queue = bench.collect()
    mandatory = type('MandatoryProducer', (EchoProducer,), {'mandatory': True})
    bench.producer(mandatory).message_echo('text').wait(TIMEOUT)
    assert bench.get(queue).parameters == 'text'


@pytest.mark.parametrize(
    'headers', [{'b': 1, 'a': 2}, {'z': {'y': [1, {'x': 1, 'w': 0.5}], 'a': None}, 'é': b'\xff', 'A': -1, 'a': True}]
)
def test_a_mandatory_message_is_unroutable_in_whichever_order_its_headers_come_back(bench, headers):
    """RabbitMQ 4.0 and later sort them."""
    producer = bench.producer(type('MandatoryProducer', (EchoProducer,), {'mandatory': True}))
    receipts = [producer.message_echo(number, _headers=headers) for number in range(3)]
    for receipt in receipts:
        with pytest.raises(messaging.Unroutable):
            receipt.wait(TIMEOUT)


def test_only_the_messages_that_no_queue_takes_are_unroutable(bench):
    bench.collect()
    producer = bench.producer(type('MandatoryProducer', (EchoProducer,), {'mandatory': True}))
    receipts = [producer.message_echo(_key=key) for key in ('echo-rk', 'nowhere', 'echo-rk', 'nowhere')]
    with pytest.raises(messaging.Unroutable):
        producer.flush(TIMEOUT)
    assert [receipt.confirmed for receipt in receipts] == [True, False, True, False]


def test_a_message_with_one_pair_unroutable_is_not_confirmed(bench):
    bench.collect()
    producer = bench.producer(type('MandatoryProducer', (BothProducer,), {'mandatory': True}))
    with pytest.raises(messaging.Unroutable, match='other-exchange'):
        producer.message_echo().wait(TIMEOUT)


def test_a_message_that_no_queue_takes_is_confirmed_where_it_is_not_mandatory(bench):
    receipt = bench.producer().message_echo()
    receipt.wait(TIMEOUT)
    assert receipt.confirmed


def test_without_confirms_a_message_is_sent_and_never_confirmed(bench):
    queue = bench.collect()
    receipt = bench.producer(type('QuickProducer', (EchoProducer,), {'confirms': False})).message_echo('text')
    receipt.wait(TIMEOUT)
    assert bench.await_message(queue).parameters == 'text'
    assert not receipt.confirmed


def test_an_exchange_that_was_deleted_is_declared_again_and_nothing_is_lost(bench):
    producer = bench.producer()
    producer.message_before().wait(TIMEOUT)
    bench.bare.exchange_delete('echo-exchange')
    receipts = [producer.message_after() for _ in range(3)]
    for receipt in receipts:
        receipt.wait(TIMEOUT)
    assert all(receipt.confirmed for receipt in receipts)


# Flushing


def test_flush_waits_for_all(bench):
    queue = bench.collect()
    producer = bench.producer()
    receipts = [producer.message_echo(number) for number in range(100)]
    producer.flush(TIMEOUT)
    assert all(receipt.confirmed for receipt in receipts)
    assert bench.count(queue) == 100


def test_flush_of_a_producer_that_sent_nothing_returns(bench):
    bench.producer().flush(TIMEOUT)


def test_flush_reports_each_failure_once(bench):
    refusing_queue(bench)
    producer = bench.producer()
    for _ in range(3):
        producer.message_echo()
    with pytest.raises(messaging.Nacked, match='3 messages failed') as caught:
        producer.flush(TIMEOUT)
    assert len(caught.value.failures) == 3
    producer.flush(TIMEOUT)


def test_flush_does_not_report_what_a_receipt_has_told(bench):
    refusing_queue(bench)
    producer = bench.producer()
    with pytest.raises(messaging.Nacked):
        producer.message_echo().wait(TIMEOUT)
    producer.flush(TIMEOUT)


def test_flush_reports_the_failures_of_its_own_producer_alone(bench):
    refusing_queue(bench)
    failing, other = bench.producer(), bench.producer()
    failing.message_echo()
    other.message_elsewhere(_key='elsewhere')
    other.flush(TIMEOUT)
    with pytest.raises(messaging.Nacked):
        failing.flush(TIMEOUT)


def test_flush_times_out(bench, monkeypatch):
    held = HeldConfirms(monkeypatch)
    producer = bench.producer()
    producer.message_echo()
    with pytest.raises(messaging.PublishTimeout, match=r'1 messages were not confirmed within 0\.05 s'):
        producer.flush(0.05)
    held.release()
    producer.flush(TIMEOUT)


def test_nobody_else_is_kept_waiting_by_a_failure_that_was_not_asked_for(bench):
    refusing_queue(bench)
    producer = bench.producer()
    producer.message_echo()
    receipt = producer.message_elsewhere(_key='elsewhere')
    receipt.wait(TIMEOUT)
    assert receipt.confirmed
    bench.log.expect('ERROR', 'the broker refused', 'echo-rk')


# The window


def test_up_to_the_window_nothing_blocks(bench, monkeypatch):
    monkeypatch.setattr(publishing, 'WINDOW_MESSAGES', 50)
    held = HeldConfirms(monkeypatch)
    producer = bench.producer(type('HastyProducer', (EchoProducer,), {'publish_timeout': 0.0}))
    receipts = [producer.message_echo() for _ in range(50)]
    assert not any(receipt.confirmed for receipt in receipts)
    held.arrived.next()
    held.release()
    producer.flush(TIMEOUT)


def test_at_the_window_the_call_waits_and_raises_after_publish_timeout(bench, monkeypatch):
    monkeypatch.setattr(publishing, 'WINDOW_MESSAGES', 3)
    held = HeldConfirms(monkeypatch)
    producer = bench.producer(type('HastyProducer', (EchoProducer,), {'publish_timeout': 0.1}))
    for _ in range(3):
        producer.message_echo()
    started = time.monotonic()
    with pytest.raises(messaging.PublishTimeout, match='this one was not accepted'):
        producer.message_echo()
    assert 0.1 <= time.monotonic() - started < 5
    held.release()
    producer.publish_timeout = TIMEOUT


def test_at_the_window_the_call_goes_on_as_soon_as_there_is_room(bench, monkeypatch):
    monkeypatch.setattr(publishing, 'WINDOW_MESSAGES', 1)
    held = HeldConfirms(monkeypatch)
    producer = bench.producer()
    producer.message_echo('first')
    releaser = threading.Thread(target=lambda: (held.arrived.next(), held.release()))
    releaser.start()
    producer.message_echo('second').wait(TIMEOUT)
    releaser.join()


def test_the_window_counts_bytes_as_well(bench, monkeypatch):
    monkeypatch.setattr(publishing, 'WINDOW_BYTES', 10_000)
    held = HeldConfirms(monkeypatch)
    producer = bench.producer(type('HastyProducer', (EchoProducer,), {'publish_timeout': 0.0}))
    producer.message_echo('x' * 20_000)
    with pytest.raises(messaging.PublishTimeout):
        producer.message_echo('y')
    held.arrived.next()
    held.release()
    producer.flush(TIMEOUT)


def test_a_broker_that_takes_no_messages_fills_the_window_and_then_loses_nothing(bench, monkeypatch):
    monkeypatch.setattr(publishing, 'WINDOW_MESSAGES', 20)
    queue = bench.collect()
    producer = bench.producer(type('HastyProducer', (EchoProducer,), {'publish_timeout': 0.1}))
    accepted = []

    def publish(number):
        producer.message_echo(number)
        accepted.append(number)

    with bench.memory_alarm():
        publish(0)
        bench.log.expect('WARNING', 'takes no messages at present')
        with pytest.raises(messaging.PublishTimeout):
            list(map(publish, range(1, 100)))
    bench.log.expect('INFO', 'takes messages again')
    producer.flush(TIMEOUT)
    assert 20 <= len(accepted) < 100
    assert [bench.get(queue).parameters for _ in accepted] == accepted


# Lost connections


def test_what_was_not_confirmed_when_the_connection_went_is_sent_again_under_its_message_id(bench, monkeypatch):
    queue = bench.collect()
    held = HeldConfirms(monkeypatch)
    receipt = bench.producer().message_echo('text')
    held.arrived.next()
    held.forget()
    bench.close_all_connections()
    receipt.wait(TIMEOUT)
    copies = [bench.get(queue), bench.get(queue)]
    assert [copy.properties.message_id for copy in copies] == [receipt.message_id] * 2
    assert [copy.parameters for copy in copies] == ['text', 'text']


def test_what_was_confirmed_is_not_sent_again(bench):
    queue = bench.collect()
    producer = bench.producer()
    producer.message_echo('before').wait(TIMEOUT)
    bench.close_all_connections()
    producer.message_echo('after').wait(TIMEOUT)
    assert [bench.get(queue).parameters for _ in range(2)] == ['before', 'after']
    assert bench.count(queue) == 0


def test_a_producer_carries_on_after_its_connection_was_closed(bench):
    queue = bench.collect()
    producer = bench.producer()
    for number in range(3):
        bench.close_all_connections()
        producer.message_echo(number).wait(TIMEOUT)
    assert [bench.get(queue).parameters for _ in range(3)] == [0, 1, 2]


# The end


def test_close_waits_for_what_is_not_confirmed(bench):
    queue = bench.collect()
    producer = bench.producer()
    receipts = [producer.message_echo() for _ in range(100)]
    producer.close()
    assert all(receipt.confirmed for receipt in receipts)
    assert bench.count(queue) == 100


def test_with_closes(bench):
    with EchoProducer() as producer:
        receipt = producer.message_echo()
    assert receipt.confirmed
    with pytest.raises(messaging.Closed):
        producer.message_echo()


def test_a_second_close_does_nothing(bench):
    producer = bench.producer()
    other = bench.producer()
    producer.close()
    producer.close()
    other.message_echo().wait(TIMEOUT)


def test_a_closed_producer_says_so(bench):
    producer = bench.producer()
    producer.close()
    for use in (
        producer.message_echo,
        lambda: producer.forward(command()),
        producer.rpc_echo,
        producer.rpc_queue_echo,
        producer.rpc_future_echo,
        lambda: producer.consume_rpc('queue'),
    ):
        with pytest.raises(messaging.Closed, match='EchoProducer is closed'):
            use()


def test_close_logs_what_could_not_be_delivered(bench):
    refusing_queue(bench)
    producer = bench.producer()
    producer.message_echo()
    producer.close()
    bench.log.expect('ERROR', 'closed with messages not delivered', 'the broker refused')


PROGRAM = (
    ECHO
    + """
class EchoProducer(messaging.GenericProducer):
    eks = [(EchoExchange, 'echo-rk')]

producer = EchoProducer()
for number in range({number}):
    producer.message_echo(number)
"""
)


def test_a_program_that_ends_right_after_its_calls_loses_nothing(bench, run_program):
    queue = bench.collect()
    assert run_program(PROGRAM.format(number=500)).wait() == 0
    assert bench.count(queue) == 500


def test_a_program_that_ends_logs_what_failed(bench, run_program):
    refusing_queue(bench)
    program = run_program(PROGRAM.format(number=1))
    assert program.wait() == 0
    assert 'the broker refused message' in program.output


def test_the_wait_at_the_end_of_a_program_is_bounded_and_what_failed_is_logged(bench, monkeypatch):
    held = HeldConfirms(monkeypatch)
    producer = bench.producer()
    receipt = producer.message_echo()
    held.arrived.next()
    started = time.monotonic()
    registry.close_all(1.0)
    assert time.monotonic() - started < 6
    bench.log.expect('ERROR', receipt.message_id, 'was not confirmed')


# Threads


def test_several_threads_publish_through_one_producer_and_every_message_arrives_once(bench):
    queue = bench.collect()
    producer = bench.producer()

    def publish(thread):
        for number in range(100):
            producer.message_echo([thread, number])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(8)))
    producer.flush(TIMEOUT)
    got = [tuple(bench.get(queue).parameters) for _ in range(800)]
    assert bench.count(queue) == 0
    assert sorted(got) == [(thread, number) for thread in range(8) for number in range(100)]
    for thread in range(8):
        assert [number for each, number in got if each == thread] == list(range(100))


# The channel, the connection


def test_the_channel_declares_publishes_gets_purges_and_deletes(bench):
    channel = bench.producer().channel
    assert channel.queue_declare(queue='mine', durable=True).method.message_count == 0
    channel.queue_bind('mine', 'echo-exchange', 'mine')
    for body in (b'first', b'second', b'third'):
        channel.basic_publish('echo-exchange', 'mine', body)
    method, properties, body = channel.basic_get('mine', auto_ack=True)
    assert (method.routing_key, body) == ('mine', b'first')
    assert properties.content_type is None
    assert channel.queue_purge('mine').method.message_count == 2
    assert channel.basic_get('mine') == (None, None, None)
    channel.queue_delete('mine')
    assert 'mine' not in bench.broker.queues()


def test_an_error_on_the_channel_raises_with_the_brokers_words_and_harms_nothing(bench):
    queue = bench.collect()
    producer = bench.producer()
    receipts = [producer.message_echo(number) for number in range(10)]
    with pytest.raises(messaging.NotFound, match="no queue 'nothing'") as caught:
        producer.channel.queue_declare(queue='nothing', passive=True)
    assert caught.value.reply_code == 404
    producer.flush(TIMEOUT)
    assert all(receipt.confirmed for receipt in receipts)
    assert producer.channel.queue_declare(queue=queue, passive=True).method.message_count == 10


def test_the_channel_may_be_used_from_any_thread(bench):
    channel = bench.producer().channel

    def declare(number):
        return channel.queue_declare(queue=f'queue-{number}', durable=True).method.queue

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(declare, range(20))) == [f'queue-{number}' for number in range(20)]


def test_the_channel_works_after_the_connection_was_closed(bench):
    producer = bench.producer()
    producer.channel.queue_declare(queue='mine', durable=True)
    bench.close_all_connections()
    assert producer.channel.queue_declare(queue='mine', passive=True).method.queue == 'mine'


def test_the_channel_has_what_pika_has_and_says_so(bench):
    with pytest.raises(AttributeError, match=r"no 'queue_declar'; it has .*queue_declare"):
        bench.producer().channel.queue_declar()


def test_conn_broker_is_the_connection(bench):
    assert isinstance(bench.producer().conn_broker, Connection)


class Declared(messaging.GenericProducer):
    def build_message_stored(self, order):
        return messaging.MessageStatus('stored', {'order': order})

    def build_rpc_sum(self, *numbers):
        return messaging.RpcCommand('sum', list(numbers))


def test_dir_has_the_methods_of_declared_builders():
    with recording(), Declared() as producer:
        names = dir(producer)
        assert {'message_stored', 'rpc_sum', 'rpc_future_sum', 'rpc_gather_sum', 'rpc_queue_sum', 'flush'} <= {*names}
        assert 'message_sum' not in names
        assert 'rpc_stored' not in names
        assert names == sorted(set(names))
        producer.build_message_late = lambda: messaging.MessageStatus('late')
        assert 'message_late' in dir(producer)
