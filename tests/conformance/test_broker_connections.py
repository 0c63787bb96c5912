"""Connections and channels: how they begin, how errors end them, and bytes that are no AMQP."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika import frame, spec
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    ChannelClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from support.brokers import Broker
from support.channels import RawClient, raw_frame, refusal_after, refusal_of


@pytest.fixture
def channel(connection: pika.BlockingConnection) -> BlockingChannel:
    return connection.channel()


@pytest.fixture
def client(broker: Broker) -> Iterator[RawClient]:
    client = RawClient(broker)
    yield client
    client.close()


# The handshake


def test_the_broker_names_what_it_can_do(connection: pika.BlockingConnection) -> None:
    assert connection._impl.server_capabilities == {
        'publisher_confirms': True,
        'exchange_exchange_bindings': True,
        'basic.nack': True,
        'consumer_cancel_notify': True,
        'connection.blocked': True,
        'consumer_priorities': True,
        'authentication_failure_close': True,
        'per_consumer_qos': True,
        'direct_reply_to': True,
    }


def test_the_broker_proposes_rabbitmqs_limits(client: RawClient) -> None:
    client.send(b'AMQP\x00\x00\x09\x01')
    start = client.read().method
    assert (start.version_major, start.version_minor, start.locales) == (0, 9, b'en_US')
    assert set(start.mechanisms.split()) >= {b'PLAIN', b'AMQPLAIN'}
    client.send_method(0, spec.Connection.StartOk({}, 'PLAIN', '\0guest\0guest', 'en_US'))
    tune = client.read().method
    assert (tune.channel_max, tune.frame_max, tune.heartbeat) == (2047, 131_072, 60)


def test_amqplain_is_understood(client: RawClient) -> None:
    client.send(b'AMQP\x00\x00\x09\x01')
    client.read()
    response = b'\x05LOGINS\x00\x00\x00\x05guest\x08PASSWORDS\x00\x00\x00\x05guest'.decode()
    client.send_method(0, spec.Connection.StartOk({}, 'AMQPLAIN', response, 'en_US'))
    assert client.read().method.NAME == 'Connection.Tune'


def test_another_version_is_answered_by_the_header_of_this_one(client: RawClient) -> None:
    client.send(b'AMQP\x00\x00\x09\x02')
    assert client.read().marshal() == b'AMQP\x00\x00\x09\x01'
    assert client.read() is None


def test_a_secret_may_be_renewed(broker: Broker, client: RawClient) -> None:
    client.open(broker)
    client.send_method(0, spec.Connection.UpdateSecret('another', 'it is time'))
    assert client.read().method.NAME == 'Connection.UpdateSecretOk'


@pytest.mark.parametrize(('user', 'password'), [('guest', 'wrong'), ('nobody', 'guest')])
def test_wrong_credentials_are_refused_with_a_reason(broker: Broker, user: str, password: str) -> None:
    parameters = pika.URLParameters(broker.url)
    parameters.credentials = pika.PlainCredentials(user, password)
    with pytest.raises(ProbableAuthenticationError) as caught:
        pika.BlockingConnection(parameters)
    assert (
        'ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.'
    ) in str(caught.value)


def test_a_missing_virtual_host_is_refused_by_name(broker: Broker) -> None:
    parameters = pika.URLParameters(broker.url)
    parameters.virtual_host = 'missing'
    with pytest.raises(ProbableAccessDeniedError) as caught:
        pika.BlockingConnection(parameters)
    assert 'NOT_ALLOWED - vhost missing not found' in str(caught.value)


@pytest.mark.parametrize(('frame_max', 'channel_max'), [(4095, 2047), (131_073, 2047), (131_072, 0)])
def test_the_broker_hangs_up_on_limits_beyond_the_proposed_ones(
    client: RawClient, frame_max: int, channel_max: int
) -> None:
    client.send(b'AMQP\x00\x00\x09\x01')
    client.read()
    client.send_method(0, spec.Connection.StartOk({}, 'PLAIN', '\0guest\0guest', 'en_US'))
    client.read()
    client.send_method(0, spec.Connection.TuneOk(channel_max, frame_max, 0))
    assert client.read() is None


def test_small_frames_are_kept_to(broker: Broker) -> None:
    parameters = pika.URLParameters(broker.url)
    parameters.frame_max = 8192
    with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare('q', exclusive=True)
        channel.basic_publish('', 'q', b'x' * 20_000)
        sizes: list[int] = []
        receive = connection._impl._process_frame

        def measure(received: Any) -> None:
            if received.frame_type == spec.FRAME_BODY:
                sizes.append(len(received.fragment))
            receive(received)

        connection._impl._process_frame = measure  # type: ignore[method-assign]
        assert len(channel.basic_get('q')[2]) == 20_000
        assert sizes == [8184, 8184, 3632]


# Heartbeats


def test_heartbeats_come_and_a_silent_client_is_dropped(broker: Broker, client: RawClient) -> None:
    client.open(broker, heartbeat=1)
    started = time.monotonic()
    frames = list(iter(client.read, None))
    assert 1.0 < time.monotonic() - started < 8.0
    assert frames
    assert {type(found).__name__ for found in frames} == {'Heartbeat'}


def test_a_client_that_sends_heartbeats_stays(broker: Broker) -> None:
    parameters = pika.URLParameters(broker.url)
    parameters.heartbeat = 1
    with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
        connection.sleep(4)
        assert connection.channel().is_open


# Channels


def test_a_channel_can_be_closed_and_its_number_used_again(connection: pika.BlockingConnection) -> None:
    for _ in range(3):
        channel = connection.channel(7)
        channel.queue_declare('', exclusive=True)
        channel.close()


def test_an_error_on_one_channel_leaves_the_others_open(
    connection: pika.BlockingConnection, channel: BlockingChannel
) -> None:
    with pytest.raises(ChannelClosedByBroker):
        connection.channel().queue_declare('missing', passive=True)
    channel.queue_declare('q', exclusive=True)


def test_what_follows_an_error_is_passed_over_until_the_channel_is_closed(broker: Broker, client: RawClient) -> None:
    client.open(broker)
    client.send_method(1, spec.Channel.Open())
    client.read()
    for name in ('missing', 'ignored'):
        client.send_method(1, spec.Queue.Declare(queue=name, passive=name == 'missing'))
    close = client.read().method
    assert (close.NAME, close.class_id, close.method_id) == ('Channel.Close', 50, 10)
    client.send_method(1, spec.Channel.CloseOk())
    client.send_method(1, spec.Channel.Open())
    assert client.read().method.NAME == 'Channel.OpenOk'
    client.send_method(1, spec.Queue.Declare(queue='ignored', passive=True))
    assert client.read().method.reply_code == 404


@pytest.mark.parametrize(
    ('number', 'method', 'code', 'text'),
    [
        (1, spec.Channel.Open(), 504, "CHANNEL_ERROR - second 'channel.open' seen"),
        (44, spec.Queue.Declare(queue='q'), 504, "CHANNEL_ERROR - expected 'channel.open'"),
        (1, spec.Queue.DeclareOk('q', 0, 0), 503, 'COMMAND_INVALID - unimplemented method'),
        (1, spec.Connection.TuneOk(1, 1, 1), 503, 'COMMAND_INVALID - unimplemented method'),
        (0, spec.Queue.Declare(queue='q'), 504, 'CHANNEL_ERROR - unexpected method in connection state running'),
        (0, spec.Connection.Open('/'), 504, 'CHANNEL_ERROR - unexpected method in connection state running'),
    ],
)
def test_a_method_out_of_place_closes_the_connection(
    channel: BlockingChannel, number: int, method: Any, code: int, text: str
) -> None:
    assert refusal_after(channel, frame.Method(number, method).marshal()) == (code, text)


# Frames


PUBLISH = frame.Method(1, spec.Basic.Publish(routing_key='k')).marshal()
HEADER = frame.Header(1, 3, spec.BasicProperties()).marshal()


@pytest.mark.parametrize(
    ('data', 'code', 'text'),
    [
        (
            raw_frame(1, 1, b'\x00\x32\x00\x0a', end=b'\x00'),
            501,
            'FRAME_ERROR - type 1, all octets = <<0,50,0,10>>: {invalid_frame_end_marker,0}',
        ),
        (raw_frame(5, 1, b'abc'), 501, 'FRAME_ERROR - type 5, all octets = <<"abc">>: unknown_frame'),
        (raw_frame(1, 1, b'\x00'), 501, 'FRAME_ERROR - type 1, all octets = <<0>>: unknown_frame'),
        (raw_frame(8, 0, b'abc'), 501, 'FRAME_ERROR - type 8, all octets = <<"abc">>: unknown_frame'),
        (raw_frame(8, 1, b''), 505, 'UNEXPECTED_FRAME - type 8, all octets = <<>>'),
        (
            struct.pack('>BHI', 3, 1, 200_000) + b'x' * 40,
            501,
            'FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,200000,131064}',
        ),
        (
            struct.pack('>BHI', 3, 1, 131_073) + b'x' * 40,
            501,
            'FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,131073,131064}',
        ),
        (b'\xff' * 100, 501, 'FRAME_ERROR - type 255, all octets = <<>>: {frame_too_large,4294967295,131064}'),
        (
            raw_frame(1, 1, b'\x00\x32\x00\x0a\x00\x00\x20abc'),
            501,
            'FRAME_ERROR - cannot decode <<0,0,32,97,98,99>>',
        ),
        (raw_frame(3, 1, b'abc'), 505, 'UNEXPECTED_FRAME - expected method frame, got non method frame instead'),
        (HEADER, 505, 'UNEXPECTED_FRAME - expected method frame, got non method frame instead'),
        (
            PUBLISH + PUBLISH,
            505,
            'UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead',
        ),
        (
            PUBLISH + raw_frame(2, 1, b'\x00\x32' + bytes(12)),
            505,
            'UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead',
        ),
        (
            PUBLISH + HEADER + PUBLISH,
            505,
            'UNEXPECTED_FRAME - expected content body, got non content body frame instead',
        ),
    ],
)
def test_a_frame_out_of_step_closes_the_connection_with_its_description(
    channel: BlockingChannel, data: bytes, code: int, text: str
) -> None:
    assert refusal_after(channel, data) == (code, text)


def test_a_frame_may_be_larger_by_its_own_overhead(channel: BlockingChannel) -> None:
    body = bytes(131_072)
    header = frame.Header(1, len(body), spec.BasicProperties()).marshal()
    channel.connection._impl._output_marshaled_frames([PUBLISH + header + raw_frame(3, 1, body)])
    channel.queue_declare('q', exclusive=True)


# The end


def test_the_broker_can_close_every_connection(broker: Broker, connection: pika.BlockingConnection) -> None:
    channel = connection.channel()
    broker.close_all_connections()
    code, text = refusal_of(channel.queue_declare, 'q')
    assert code == 320
    assert text.startswith('CONNECTION_FORCED - ')
