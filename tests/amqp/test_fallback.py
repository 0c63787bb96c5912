"""By pika's public API alone messages travel as they do on the fast lane, but for what the module says is lost."""

from __future__ import annotations

import datetime
import threading
from decimal import Decimal
from typing import Any

import pika
import pytest
from postage.amqp.fallback import PublicConnection, encoded, is_complete

from postage import errors, messaging
from postage.amqp import wire
from support.brokers import Embedded
from support.fixtures import bench_on
from support.messaging import (
    DEAD_LETTERING,
    EQK,
    GUARDED_EQK,
    HOSTILE,
    TIMEOUT,
    Bench,
    Echo,
    EchoExchange,
    EchoProducer,
    Processor,
    eventually,
)


@pytest.fixture(autouse=True)
def lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'off')


@pytest.fixture
def producer(bench: Bench) -> EchoProducer:
    producer: EchoProducer = bench.producer()
    assert type(producer.conn_broker.wire) is PublicConnection
    return producer


PIKA_1_4 = pika.__version__.startswith('1.4.')
"""Later ones decode more."""


# Frames and calls


class Channel:
    """What stands for pika's channel: it notes what it is told."""

    is_open = True

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwds: self.calls.append((name, *args, *kwds.values()))


class Unconnected(PublicConnection):
    def __init__(self) -> None:
        self._channels_of: Any = {}


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def unconnected(channel: Channel) -> Unconnected:
    made = Unconnected()
    made._channels_of[7] = channel
    return made


def frames(body: bytes, channel: int = 7, **properties: Any) -> bytes:
    arguments = wire.publish_arguments('exchange', 'key', True)
    return wire.publish_frames(channel, arguments, wire.encode_properties(**properties), body, 4096)


@pytest.mark.parametrize('size', [0, 1, 4088, 4089, 50_000])
def test_the_frames_of_a_message_become_one_call(unconnected: Unconnected, channel: Channel, size: int) -> None:
    unconnected.write(frames(bytes(size), message_id='m', headers={'x': 1}) + frames(b'second'))
    (name, exchange, key, body, encoded_properties, mandatory), second = channel.calls
    properties = wire.decode_properties(b''.join(encoded_properties.encode()))
    assert (name, exchange, key, mandatory) == ('basic_publish', 'exchange', 'key', True)
    assert body == bytes(size)
    assert (properties.message_id, properties.headers) == ('m', {'x': 1})
    assert second[3] == b'second'


def test_settlements_become_calls(unconnected: Unconnected, channel: Channel) -> None:
    unconnected.write(
        wire.ack_frame(7, 1) + wire.ack_frame(7, 5, True) + wire.reject_frame(7, 6) + wire.return_frame(7, 7)
    )
    assert channel.calls == [
        ('basic_ack', 1, False),
        ('basic_ack', 5, True),
        ('basic_reject', 6, False),
        ('basic_nack', 7, True),
    ]


def test_what_is_meant_for_a_channel_that_has_gone_is_left_out(unconnected: Unconnected, channel: Channel) -> None:
    unconnected.write(frames(b'gone', channel=8) + frames(b'there'))
    assert [call[3] for call in channel.calls] == [b'there']
    channel.is_open = False
    unconnected.write(frames(b'closed'))
    assert len(channel.calls) == 1


def test_a_message_is_complete_when_its_bodies_have_the_length_that_its_header_says() -> None:
    payloads = [payload for _, _, payload in wire.each_frame(frames(bytes(5000)))]
    assert [is_complete(payloads[:count]) for count in range(1, len(payloads) + 1)] == [False, False, False, True]


@pytest.mark.parametrize(
    'properties',
    [
        {},
        {'headers': {'x': 1.5}},
        {
            'content_type': 'a',
            'content_encoding': 'b',
            'headers': {'x': [None, 1.5]},
            'delivery_mode': 2,
            'priority': 3,
        },
        {'correlation_id': 'c', 'reply_to': 'r', 'expiration': '5', 'message_id': 'm', 'timestamp': 7, 'type': 't'},
        {'user_id': 'u', 'app_id': 'a', 'cluster_id': 'c', 'headers': {}},
    ],
)
def test_properties_that_pika_has_decoded_become_what_they_were(properties: dict[str, Any]) -> None:
    decoded = wire.decode_properties(encoded(pika.BasicProperties(**properties)))
    for name, value in vars(pika.BasicProperties(**properties)).items():
        assert (getattr(decoded, name) or None) == (value or None)


def test_properties_that_cannot_be_encoded_again_cannot_be_decoded_either() -> None:
    with pytest.raises(errors.DecodingError):
        wire.decode_properties(encoded(pika.BasicProperties(headers={'x': object()})))


# On a broker


@pytest.mark.parametrize(
    'value',
    [
        None,
        True,
        -(2**31),
        2**40,
        'täxt',
        b'\0bytes\xff',
        Decimal('1.25'),
        datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.timezone.utc),
        {'inner': [1, 'two', None]},
    ],
    ids=repr,
)
def test_headers_arrive_as_they_went(bench: Bench, producer: EchoProducer, value: Any) -> None:
    class Showing(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            delivery = messaging.current_delivery()
            assert delivery is not None
            self.seen.put(delivery.headers)

    showing = Showing()
    bench.run(showing)
    producer.message_echo(_headers={'x': value}).wait(TIMEOUT)
    assert showing.seen.next() == {'x': value}


def test_a_floating_point_number_in_a_header_is_sent_as_it_is_and_decoded_as_pika_does(
    bench: Bench, producer: EchoProducer
) -> None:
    queue = bench.collect()
    producer.message_echo(_headers={'x': 1.5}).wait(TIMEOUT)
    assert bench.get(queue).properties.headers == {'x': 1 if PIKA_1_4 else 1.5}


def test_messages_rpcs_and_bodies_of_all_sizes_arrive_in_order(bench: Bench, producer: EchoProducer) -> None:
    echo = Echo()
    bench.run(echo)
    texts = [str(number) * size for number, size in enumerate([1, 200_000, 0, 1, 140_000, 0, 3] * 3)]
    for text in texts:
        producer.message_echo(text)
    assert echo.seen.take(len(texts)) == texts
    assert producer.rpc_echo(texts[1]).body['content']['value'] == texts[1]


def test_order_holds_while_the_prefetch_count_changes(bench: Bench, producer: EchoProducer) -> None:
    echo = Echo()
    for number in range(2000):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    bench.run(echo)
    assert echo.seen.take(2000) == list(range(2000))


@pytest.mark.parametrize('headers', [None, {'x': 1.5, 'y': [None, {'z': True}]}], ids=['bare', 'with headers'])
def test_a_message_that_no_queue_takes_is_returned(bench: Bench, headers: Any) -> None:
    class Mandatory(EchoProducer):
        mandatory = True

    producer = bench.producer(Mandatory)
    with pytest.raises(messaging.Unroutable, match='NO_ROUTE'):
        producer.message_echo(_key='nowhere', _headers=headers).wait(TIMEOUT)


def test_a_failed_message_is_rejected_and_one_that_was_not_tried_goes_back(bench: Bench) -> None:
    class Failing(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            raise ValueError

    bench.dead()
    failing = Failing(GUARDED_EQK)
    running = bench.run(failing)
    producer = bench.producer()
    producer.message_echo('bad').wait(TIMEOUT)
    assert bench.await_message('dead').parameters == 'bad'
    running.stop()
    assert DEAD_LETTERING
    consumer = bench.consumer(GUARDED_EQK)
    taken = threading.Event()
    consuming = threading.Thread(target=consumer.start_consuming, args=(lambda *_: taken.set(),))
    consuming.start()
    producer.message_echo('handed back').wait(TIMEOUT)
    assert taken.wait(TIMEOUT)
    consumer.stop_consuming()
    consuming.join(TIMEOUT)
    consumer.close()
    eventually(lambda: bench.count('echo-queue') == 1)


def test_an_end_that_postage_decides_on_takes_effect_at_once_and_the_log_has_the_reason(
    bench: Bench, producer: EchoProducer
) -> None:
    connection: Any = producer.conn_broker
    reason = pika.exceptions.AMQPHeartbeatTimeout('nothing was heard')
    connection.call_soon(lambda: connection.wire.fail(reason))
    bench.log.expect('was lost', 'nothing was heard')
    producer.message_echo().wait(TIMEOUT)


def test_what_pika_cannot_decode_costs_the_connection_and_the_component_lives_on(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price of the public API; on the fast lane that message is rejected, and nobody notices."""
    with bench_on(embedded, monkeypatch) as bench:
        echo = Echo(EQK)
        bench.run(echo)
        bench.publish_hostile(HOSTILE['a timestamp beyond the end of time'], exchange=EchoExchange.name)
        if PIKA_1_4:
            bench.log.expect('was lost', '(consuming)')
            eventually(lambda: bench.bare.queue_purge('echo-queue').method.message_count)
        bench.producer().message_echo('and on').wait(TIMEOUT)
        while echo.seen.next() != 'and on':
            pass
