"""What AMQP cannot hold is refused before anything is sent, wherever a user can give it; others are unharmed."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pika
import pytest

from conformance.version_table import says
from postage import messaging
from postage.amqp.publishing import Receipt
from postage.dead_letters import SQLiteDeadLetters
from postage.generic_application import GenericApplication
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, EchoProducer


def endless() -> dict[str, Any]:
    """A dictionary that is in itself."""
    value: dict[str, Any] = {}
    value['again'] = value
    return value


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {'x': value}
    return value


UNFIT = {
    'not a number': math.nan,
    'infinity': -math.inf,
    'a number of 100 bits': 2**100,
    'a lone surrogate': 'a\ud800b',
    'a self-reference': endless(),
    'too deep': deep(2000),
    'a signalling decimal': Decimal('sNaN'),
    'a decimal of 100 digits': Decimal(10) ** 100,
    'an object': object(),
    'larger than a frame': 'x' * 200_000,
    'a key that is no text': {1: 2},
    'a long key': {'x' * 300: 1},
}


@pytest.mark.parametrize('value', UNFIT.values(), ids=UNFIT)
def test_an_argument_that_amqp_cannot_hold_is_refused_and_named(bench: Bench, value: Any) -> None:
    consumer = bench.consumer()
    producer = bench.producer()
    links = consumer.conn_broker.link, producer.conn_broker.link
    arguments = {'x-of-mine': value}
    declared: dict[str, Any] = {**EchoExchange.parameters, 'arguments': arguments}
    attempts: list[Callable[[], Any]] = [
        lambda: consumer.queue_declare('other', arguments=arguments),
        lambda: consumer.add_eqk([(EchoExchange, [({'name': 'other', 'flags': {'arguments': arguments}}, 'key')])]),
        lambda: messaging.GenericConsumer([(type('E', (EchoExchange,), {'arguments': arguments}), [('q', 'k')])]),
        lambda: producer.message_echo(1, _eks=[(type('E', (EchoExchange,), {'arguments': arguments}), 'k')]),
        lambda: producer.channel.queue_declare('other', arguments=arguments),
        lambda: producer.channel.exchange_declare(**declared),
        lambda: producer.channel.queue_bind('echo-queue', EchoExchange.name, 'k', arguments=arguments),
        lambda: producer.channel.exchange_bind(EchoExchange.name, EchoExchange.name, 'k', arguments=arguments),
        lambda: producer.channel.basic_publish('', 'q', b'', pika.BasicProperties(headers=arguments)),
        lambda: producer.message_echo(1, _headers=arguments),
        lambda: producer.rpc_echo(1, _headers=arguments),
        lambda: producer.rpc_queue_echo(1, _headers=arguments),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(messaging.EncodingError) as caught:
            attempt()
        assert 'x-of-mine' in str(caught.value) or 'a frame' in str(caught.value), number
        assert len(str(caught.value)) < 2000
    producer.message_echo('innocent').wait(TIMEOUT)
    assert bench.await_message('echo-queue').parameters == 'innocent'
    assert (consumer.conn_broker.link, producer.conn_broker.link) == links


GENERATED = 'amq.gen-' + 'a' * 22  # an address that answers go to
NAMES = {'too long': 'x' * 256, 'a lone surrogate': '\ud800', 'too long in UTF-8': 'ö' * 128, 'no text': 5}


@pytest.mark.parametrize('name', NAMES.values(), ids=NAMES)
def test_a_name_or_key_that_amqp_cannot_hold_is_refused(bench: Bench, name: Any) -> None:
    consumer = bench.consumer()
    producer = bench.producer()
    links = consumer.conn_broker.link, producer.conn_broker.link
    exchange = type('E', (messaging.Exchange,), {'name': name})
    attempts: list[Callable[[], Any]] = [
        lambda: consumer.queue_declare(name),
        lambda: consumer.queue_bind(EchoExchange, 'echo-queue', name),
        lambda: consumer.queue_unbind(EchoExchange, 'echo-queue', name),
        lambda: consumer.queue_bind(exchange, 'echo-queue', 'key'),
        lambda: consumer.add_eqk([(EchoExchange, [(name, 'key')])]),
        lambda: consumer.add_eqk([(EchoExchange, [('echo-queue', name)])]),
        lambda: producer.message_echo(1, _key=name),
        lambda: producer.message_echo(1, _eks=[(EchoExchange, name)]),
        lambda: producer.message_echo(1, _eks=[(exchange, 'key')]),
        lambda: producer.rpc_echo(1, _key=name),
        lambda: producer.channel.queue_declare(name),
        lambda: producer.channel.queue_delete(name),
        lambda: producer.channel.queue_bind('echo-queue', EchoExchange.name, name),
        lambda: producer.channel.basic_publish(name, '', b''),
        lambda: producer.channel.basic_publish('', name, b''),
        lambda: producer.channel.basic_get(name),
        lambda: consumer.channel.basic_cancel(name),
        lambda: consumer.rpc_reply(pika.BasicProperties(reply_to=name), 1),
        lambda: consumer.rpc_reply(pika.BasicProperties(reply_to=GENERATED, correlation_id=name), 1),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises((messaging.EncodingError, messaging.ConfigurationError)):
            pytest.fail(f'{number}: {attempt()}')
    producer.message_echo('innocent').wait(TIMEOUT)
    assert bench.await_message('echo-queue').parameters == 'innocent'
    assert (consumer.conn_broker.link, producer.conn_broker.link) == links


NUMBERS: dict[str, Callable[[Any], Any]] = {
    'prefetch_count': lambda channel: channel.basic_qos(prefetch_count=70_000),
    'a negative delivery tag': lambda channel: channel.basic_ack(-1),
    'a delivery tag beyond 64 bits': lambda channel: channel.basic_ack(2**64),
    'a delivery tag that is text': lambda channel: channel.basic_reject('1'),
}


@pytest.mark.parametrize('call', NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_its_argument_cannot_hold_is_refused(bench: Bench, call: Callable[[Any], Any]) -> None:
    consumer = bench.consumer()
    link = consumer.conn_broker.link
    with pytest.raises(messaging.EncodingError):
        call(consumer.channel)
    assert consumer.channel.queue_declare('echo-queue', passive=True).method.queue == 'echo-queue'
    assert consumer.conn_broker.link is link


def test_arguments_of_other_types_that_amqp_can_hold_arrive(bench: Bench) -> None:
    consumer = bench.consumer()
    arguments = {'pair': (1, 2), 'raw': bytearray(b'x'), 'price': Decimal('1.50'), 'x-max-length': 5}
    consumer.queue_bind(EchoExchange, {'name': 'bounded', 'flags': {'arguments': {'x-max-length': 5}}}, 'bounded')
    consumer.channel.queue_bind('bounded', EchoExchange.name, 'other', arguments=arguments)
    bench.publish({'any': 1}, 'other')
    assert bench.await_message('bounded').body == {'any': 1}


@pytest.mark.parametrize('expiration', ['٣', 2**33, '9' * 30, 1e300, math.inf, -1, 'soon'])
def test_an_expiration_that_the_broker_would_close_the_channel_for_is_refused(bench: Bench, expiration: Any) -> None:
    bench.consumer()
    producer = bench.producer()
    with pytest.raises(messaging.ConfigurationError, match='_expiration'):
        producer.message_echo(1, _expiration=expiration)
    producer.message_echo('innocent').wait(TIMEOUT)
    assert bench.await_message('echo-queue').parameters == 'innocent'


@pytest.mark.parametrize('timeout', [1e8, math.inf])
def test_an_rpc_that_may_take_years_is_sent(bench: Bench, timeout: float) -> None:
    bench.run(Echo(EQK))
    producer = bench.producer(EchoProducer)
    assert producer.rpc_future_echo(3, _timeout=timeout).result(TIMEOUT).body['content']['value'] == 3


class Unsayable:
    def __repr__(self) -> str:
        raise RuntimeError('never')

    __str__ = __repr__


# Whatever is given, wherever: an error of ours, or it is sent


ANYTHING: list[Any] = [
    '\ud800',
    'x' * 256,
    '\0',
    5,
    None,
    True,
    b'\xff',
    ['l'],
    1.5,
    math.nan,
    2**64,
    10**5000,
    Decimal('sNaN'),
    Decimal('1e400'),
    object(),
    deep(2000),
    endless(),
    {'k' * 200: 1},
    {5: 1, 'x': 2},
    {'\ud800': 1},
    {b'b': 1},
    {1, 2},
    1j,
    math.inf,
    {},
    int,
    Unsayable(),
]


def exchange(**attributes: Any) -> Any:
    return type('Given', (messaging.Exchange,), {'name': 'given', **attributes})


WHO = {'name': 'app', 'pid': '1', 'host': 'h'}


def set_up(**attributes: Any) -> None:
    """Make a producer of such a class, and send a message."""
    with type('Given', (EchoProducer,), attributes)() as producer:
        producer.message_echo(1).wait(TIMEOUT)


def component(**attributes: Any) -> None:
    """Make a processor of such a class."""
    type('Given', (Echo,), attributes)(EQK).close()


PLACES: dict[str, Callable[[Any, Any, Any], Any]] = {
    'routing key': lambda producer, _, value: producer.message_echo(1, _key=value),
    'exchange': lambda producer, _, value: producer.message_echo(1, _eks=[(exchange(name=value), 'k')]),
    'exchange type': lambda producer, _, value: producer.message_echo(1, _eks=[(exchange(exchange_type=value), 'k')]),
    'exchange argument': lambda producer, _, value: producer.message_echo(
        1, _eks=[(exchange(arguments={'x': value}), 'k')]
    ),
    'headers': lambda producer, _, value: producer.message_echo(1, _headers=value),
    'header': lambda producer, _, value: producer.message_echo(1, _headers={'h': {'x': [value]}}),
    'priority': lambda producer, _, value: producer.message_echo(1, _priority=value),
    'expiration': lambda producer, _, value: producer.message_echo(1, _expiration=value),
    'parameters': lambda producer, _, value: producer.message_echo(value),
    'queue': lambda _, consumer, value: consumer.queue_bind(EchoExchange, value, 'k'),
    'queue argument': lambda _, consumer, value: consumer.queue_bind(
        EchoExchange, {'name': 'given', 'flags': {'arguments': {'x': value}, 'exclusive': True}}, 'k'
    ),
    'queue flags': lambda _, consumer, value: consumer.queue_bind(EchoExchange, {'name': 'q', 'flags': value}, 'k'),
    'queue flag': lambda _, consumer, value: consumer.queue_bind(
        EchoExchange, {'name': 'given', 'flags': {'exclusive': True, 'auto_delete': value}}, 'k'
    ),
    'binding key': lambda _, consumer, value: consumer.queue_bind(EchoExchange, 'echo-queue', value),
    'key that is unbound': lambda _, consumer, value: consumer.queue_unbind(EchoExchange, 'echo-queue', value),
    'eqk': lambda _, consumer, value: consumer.add_eqk(value),
    'queue of a channel': lambda producer, _, value: producer.channel.queue_declare(queue=value, exclusive=True),
    'exchange of a channel': lambda producer, _, value: producer.channel.basic_publish(value, 'k', b''),
    'key of a channel': lambda producer, _, value: producer.channel.basic_publish('', value, b''),
    'fingerprint': lambda _producer, _consumer, value: EchoProducer(fingerprint=value).close(),
    'body of a channel': lambda producer, _, value: producer.channel.basic_publish('', 'echo-queue', value),
    'properties of a channel': lambda producer, _, value: producer.channel.basic_publish('', 'echo-queue', b'', value),
    'property of a channel': lambda producer, _, value: producer.channel.basic_publish(
        '', 'echo-queue', b'', pika.BasicProperties(type=value, timestamp=value, user_id=value)
    ),
    'encoder': lambda _producer, _consumer, value: set_up(encoder_class=value),
    'flags of a producer': lambda _producer, _consumer, value: set_up(confirms=value, mandatory=value),
    'persistent': lambda _producer, _consumer, value: set_up(persistent=value),
    'publish_timeout': lambda _producer, _consumer, value: set_up(publish_timeout=value),
    'rpc_queue_expires': lambda _producer, _consumer, value: set_up(rpc_queue_expires=value),
    'queue of results': lambda producer, _, value: producer.consume_rpc(value, timeout=0),
    'number of results': lambda producer, _, value: producer.consume_rpc('echo-queue', value, timeout=0),
    'time-out of results': lambda producer, _, value: producer.consume_rpc('echo-queue', 0, timeout=value),
    'command': lambda producer, _, value: producer.forward(messaging.MessageCommand(value, 1)),
    'status': lambda producer, _, value: producer.forward(messaging.MessageStatus(value)),
    'pid of an application': lambda _producer, _consumer, value: GenericApplication({**WHO, 'pid': value}).close(),
    'name of an application': lambda _producer, _consumer, value: GenericApplication({**WHO, 'name': value}).close(),
    'group': lambda _producer, _consumer, value: GenericApplication(WHO, groups=[value]).close(),
    'field of a fingerprint': lambda _producer, _consumer, value: messaging.Fingerprint(value, value, value, value),
    'concurrency': lambda _producer, _consumer, value: component(concurrency=value),
    'max_deliveries': lambda _producer, _consumer, value: component(max_deliveries=value),
    'dead_letters': lambda _producer, _consumer, value: component(dead_letters=value),
    'path of a store': lambda _producer, _consumer, value: None if isinstance(value, str) else SQLiteDeadLetters(value),
    'virtual host': lambda _producer, _consumer, value: EchoProducer(vhost=value).close(),
    'user': lambda _producer, _consumer, value: EchoProducer(hup={'user': value}).close(),
}


@pytest.mark.parametrize('place', PLACES)
def test_whatever_is_given_is_sent_or_an_error_of_ours_and_no_connection_is_lost(bench: Bench, place: str) -> None:
    producer, consumer = bench.producer(), bench.closing(messaging.GenericConsumer(EQK))
    links, said = (producer.conn_broker.link, consumer.conn_broker.link), list[str]()
    for value in ANYTHING:
        try:
            receipt = PLACES[place](producer, consumer, value)
            if isinstance(receipt, Receipt):
                receipt.wait(TIMEOUT)
        except messaging.PostageError as error:
            said.append(str(error))
    assert all(len(text) < 2000 for text in said)
    '\n'.join(said).encode()
    if place != 'exchange type' or says(bench.broker, 'an unknown exchange type is')[0] == 406:
        assert (producer.conn_broker.link, consumer.conn_broker.link) == links
