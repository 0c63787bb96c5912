"""Acknowledgements that do not come in time (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).

What becomes of a delivery that is late is a conformance test; here it is when.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from postage.broker import BrokerServer
from support.brokers import Embedded
from support.channels import RawClient, publish, wait_until


@pytest.fixture
def server() -> Iterator[BrokerServer]:
    with BrokerServer(heartbeat=0) as server:
        yield server


@pytest.fixture
def channel(server: BrokerServer) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(server.url))
    yield connection.channel()
    connection.close()


def declare(channel: BlockingChannel, queue: str, milliseconds: int | None = None) -> None:
    arguments = {} if milliseconds is None else {'x-consumer-timeout': milliseconds}
    channel.queue_declare(queue, durable=True, arguments={'x-queue-type': 'quorum', **arguments})
    publish(channel, queue, b'1', b'2')


def test_half_an_hour_is_the_limit(server: BrokerServer, channel: BlockingChannel) -> None:
    declare(channel, 'q')
    channel.basic_get('q')
    server.advance(1790)
    assert server.queues()['q'] == (1, 1, 0)
    server.advance(20)
    assert server.queues()['q'] == (2, 0, 0)
    wait_until(channel.connection, lambda: channel.is_closed)


def test_a_queue_may_have_a_limit_of_its_own(server: BrokerServer, channel: BlockingChannel) -> None:
    declare(channel, 'patient')
    declare(channel, 'hasty', 60_000)
    channel.basic_get('patient')
    channel.basic_get('hasty')
    server.advance(61)
    assert server.queues() == {'patient': (2, 0, 0), 'hasty': (2, 0, 0)}
    wait_until(channel.connection, lambda: channel.is_closed)


def test_what_is_acknowledged_in_time_is_not_late(server: BrokerServer, channel: BlockingChannel) -> None:
    declare(channel, 'q', 60_000)
    first = channel.basic_get('q')[0].delivery_tag
    server.advance(40)
    second = channel.basic_get('q')[0].delivery_tag
    channel.basic_ack(first)
    channel.queue_declare('q', passive=True)
    server.advance(40)
    channel.basic_ack(second)
    channel.queue_declare('q', passive=True)
    server.advance(3600)
    assert channel.is_open


def test_a_consumer_that_was_late_rests_until_it_has_settled_what_was_taken_back(
    server: BrokerServer, channel: BlockingChannel
) -> None:
    declare(channel, 'q', 60_000)
    # Bare frames, for pika's own channels do not expect to be told twice.
    with contextlib.closing(RawClient(Embedded(server))) as client:
        client.open(Embedded(server), capabilities={'consumer_cancel_notify': True})
        client.send_method(1, spec.Channel.Open())
        client.send_method(1, spec.Basic.Consume(queue='q', consumer_tag='t'))
        wait_until(channel.connection, lambda: server.queues()['q'] == (0, 2, 1))
        server.advance(61)
        assert server.queues()['q'] == (2, 0, 1)
        client.send_method(1, spec.Basic.Ack(delivery_tag=1))
        client.send_method(1, spec.Confirm.Select())
        cancelled = []
        while (method := getattr(client.read(), 'method', None)) is None or method.NAME != 'Confirm.SelectOk':
            if isinstance(method, spec.Basic.Cancel):
                cancelled.append(method.consumer_tag)
        # Once for each of them; the consumer is there all the same.
        assert cancelled == ['t', 't']
        assert server.queues()['q'] == (2, 0, 1)
        client.send_method(1, spec.Basic.Ack(delivery_tag=2))
        wait_until(channel.connection, lambda: server.queues()['q'] == (0, 2, 1))


def test_there_may_be_no_limit(server: BrokerServer, channel: BlockingChannel) -> None:
    server.set_consumer_timeout(None)
    declare(channel, 'q')
    channel.basic_get('q')
    server.advance(1_000_000)
    assert server.queues()['q'] == (1, 1, 0)
