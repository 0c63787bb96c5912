"""The powers of a broker in a test: to look into it, to move its clock, and to let it fail."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPConnectionError, NackError, StreamLostError

from postage import messaging
from postage.testing import Broker
from support.channels import PROTOCOL_HEADER, Reader, method_frame, publish, refusal_of, wait_until


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as broker:
        yield broker


@pytest.fixture
def connection(broker: Broker) -> Iterator[pika.BlockingConnection]:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    yield connection
    if connection.is_open:
        connection.close()


@pytest.fixture
def channel(connection: pika.BlockingConnection) -> BlockingChannel:
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare('q')
    return channel


# Life


def test_each_broker_has_a_free_port_and_nothing_of_another(broker: Broker, channel: BlockingChannel) -> None:
    with Broker() as other:
        assert other.port != broker.port
        assert other.queues() == {}
    assert broker.queues() == {'q': (0, 0, 0)}


# Looking


@pytest.mark.parametrize(
    ('raw', 'body'),
    [
        (b'{"a": [1, null]}', {'a': [1, None]}),
        (b'5', 5),
        (b'plain text', 'plain text'),
        ('ü'.encode(), 'ü'),
        (b'\xff\x00', b'\xff\x00'),
        (b'', ''),
        (b'[' * 100_000, '[' * 100_000),
    ],
    ids=['json', 'number', 'text', 'umlaut', 'bytes', 'empty', 'too deep'],
)
def test_bodies_are_shown_decoded_as_far_as_they_can_be(
    broker: Broker, channel: BlockingChannel, raw: bytes, body: Any
) -> None:
    publish(channel, 'q', raw)
    (message,) = broker.messages('q')
    assert (message.body, message.raw) == (body, raw)


def test_messages_are_shown_with_their_properties_and_stay_where_they_are(
    broker: Broker, channel: BlockingChannel
) -> None:
    publish(channel, 'q', b'1', headers={'ratio': 1}, message_id='m', delivery_mode=2)
    publish(channel, 'q', b'2')
    channel.basic_nack(channel.basic_get('q')[0].delivery_tag)
    first, second = broker.messages('q')
    assert (first.exchange, first.routing_key, first.redelivered, second.redelivered) == ('', 'q', True, False)
    assert (first.properties.message_id, first.properties.delivery_mode) == ('m', 2)
    assert (first.headers, second.headers) == ({'ratio': 1}, {})
    assert broker.queues()['q'].ready == 2


def test_a_postage_message_is_shown_as_its_body(broker: Broker, channel: BlockingChannel) -> None:
    class Orders(messaging.Exchange):
        name = 'orders'

    class Producer(messaging.GenericProducer):
        eks = [(Orders, 'order')]

    with Producer(messaging.Fingerprint('test', 'test'), hup=broker.url) as producer:
        channel.queue_bind('q', 'orders', 'order')
        producer.message_order(5)
        producer.flush(10)
    (message,) = broker.messages('q')
    assert (message.body['name'], message.body['content']) == ('order', {'parameters': 5})


def test_a_missing_queue_is_a_key_error(broker: Broker) -> None:
    with pytest.raises(KeyError):
        broker.messages('missing')


def test_virtual_hosts_come_and_go(broker: Broker) -> None:
    broker.add_virtual_host('other')
    connection = pika.BlockingConnection(pika.URLParameters(broker.url.replace('%2F', 'other')))
    connection.channel().queue_declare('q')
    assert broker.queues('other') == {'q': (0, 0, 0)}
    broker.delete_virtual_host('other')
    code, text = refusal_of(connection.process_data_events, 10)
    assert (code, text) == (320, "CONNECTION_FORCED - vhost 'other' is deleted")


# Time


def test_lifetimes_end_without_waiting(broker: Broker, channel: BlockingChannel) -> None:
    arguments = {'x-message-ttl': 30_000, 'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'q'}
    channel.queue_declare('delay', arguments=arguments)
    publish(channel, 'delay', b'x')
    broker.advance(29)
    assert broker.messages('q') == []
    broker.advance(1)
    assert broker.messages('q')[0].headers['x-death'][0]['reason'] == 'expired'


def test_no_client_is_lost_by_the_passing_of_that_time(broker: Broker, channel: BlockingChannel) -> None:
    broker.advance(1_000_000)
    channel.queue_declare('q', passive=True)


# Faults


def test_a_channel_can_be_closed_with_406(broker: Broker, connection: pika.BlockingConnection) -> None:
    channel, other = connection.channel(), connection.channel()
    channel.queue_declare('q')
    Reader(channel, 'q')
    assert broker.close_channels(queue='q') == 1
    assert refusal_of(channel.queue_declare, 'q') == (406, 'PRECONDITION_FAILED - forced by the test')
    other.queue_declare('q')


def test_a_channel_can_be_closed_for_any_reason(broker: Broker, channel: BlockingChannel) -> None:
    assert broker.close_channels(404, 'because') == 1
    assert refusal_of(channel.queue_declare, 'q') == (404, 'NOT_FOUND - because')


def test_publishes_can_be_refused(broker: Broker, channel: BlockingChannel) -> None:
    broker.refuse_publishes(2)
    for body in (b'1', b'2'):
        with pytest.raises(NackError):
            publish(channel, 'q', body)
    publish(channel, 'q', b'3')
    assert [message.body for message in broker.messages('q')] == [3]


def test_confirms_can_come_late_by_the_clock_of_the_broker(
    broker: Broker, connection: pika.BlockingConnection, channel: BlockingChannel
) -> None:
    confirmed: list[int] = []
    late = connection.channel()
    late._impl.confirm_delivery(lambda frame: confirmed.append(frame.method.delivery_tag))
    broker.delay_confirms(60)
    late._impl.basic_publish('', 'q', b'1')
    wait_until(connection, lambda: len(broker.messages('q')) == 1)
    broker.advance(59)
    late._impl.basic_publish('', 'q', b'2')
    wait_until(connection, lambda: len(broker.messages('q')) == 2)
    assert confirmed == []
    broker.advance(1)
    wait_until(connection, lambda: confirmed == [1])
    broker.delay_confirms(0)
    late._impl.basic_publish('', 'q', b'3')
    wait_until(connection, lambda: confirmed == [1, 2, 3])


def test_a_postage_producer_is_told_of_a_refusal(broker: Broker) -> None:
    class Orders(messaging.Exchange):
        name = 'orders'

    class Producer(messaging.GenericProducer):
        eks = [(Orders, 'order')]

    with Producer(messaging.Fingerprint('test', 'test'), hup=broker.url) as producer:
        broker.refuse_publishes()
        receipt = producer.message_order()
        with pytest.raises(messaging.Nacked):
            receipt.wait(10)


def test_connections_can_be_dropped(broker: Broker, channel: BlockingChannel) -> None:
    assert broker.drop_connections() == 1
    with pytest.raises(AMQPConnectionError):
        channel.queue_declare('q')


def test_publishers_can_be_blocked(broker: Broker, channel: BlockingChannel) -> None:
    reasons: list[str] = []
    channel.connection.add_on_connection_blocked_callback(lambda _, frame: reasons.append(frame.method.reason))
    broker.block('low on disk')
    channel._impl.basic_publish('', 'q', b'x')
    wait_until(channel.connection, lambda: reasons == ['low on disk'])
    assert broker.messages('q') == []
    broker.unblock()
    wait_until(channel.connection, lambda: len(broker.messages('q')) == 1)


@pytest.mark.parametrize('after', [0, 1, 7, 19])
def test_connections_can_be_cut_in_the_middle_of_a_frame(broker: Broker, after: int) -> None:
    with socket.create_connection(('127.0.0.1', broker.port), timeout=10) as client:
        client.sendall(PROTOCOL_HEADER)
        start = client.recv(65536)
        assert start.endswith(b'\xce')
        assert broker.cut_connections(after) == 1
        received = b''
        # Where it is cut already, even this may not be sent any more.
        with contextlib.suppress(ConnectionError):
            client.sendall(method_frame(0, pika.spec.Connection.StartOk({}, 'PLAIN', '\0guest\0guest', 'en_US')))
            while data := client.recv(65536):
                received += data
        assert len(received) == after


def test_a_cut_reaches_a_client_in_the_middle_of_its_messages(broker: Broker, channel: BlockingChannel) -> None:
    publish(channel, 'q', *[bytes(10_000)] * 10)
    reader = pika.BlockingConnection(pika.URLParameters(broker.url))
    taken = Reader(reader.channel(), 'q', auto_ack=True)
    wait_until(reader, lambda: len(taken.bodies) == 10)
    broker.cut_connections(after=25_000)
    with contextlib.suppress(AMQPConnectionError):  # this connection is cut as well, but not before its own time
        publish(channel, 'q', *[bytes(10_000)] * 10)
    with pytest.raises(StreamLostError):
        wait_until(reader, lambda: False)
    assert 10 <= len(taken.bodies) < 20
