"""Acknowledgements that do not come in time (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).

The queue argument ``x-consumer-timeout`` is of RabbitMQ 3.12, newer than the one of the tests; its documented cases are
tested here. That the broker's own limit acts as RabbitMQ's does is a conformance test.
"""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from postage.broker import BrokerServer
from support.channels import publish, refusal_of, wait_until


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
    arguments = None if milliseconds is None else {'x-consumer-timeout': milliseconds}
    channel.queue_declare(queue, arguments=arguments)
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


def test_there_may_be_no_limit(server: BrokerServer, channel: BlockingChannel) -> None:
    server.set_consumer_timeout(None)
    declare(channel, 'q')
    channel.basic_get('q')
    server.advance(1_000_000)
    assert server.queues()['q'] == (1, 1, 0)


@pytest.mark.parametrize('value', [0, -1])
def test_a_limit_that_is_no_time_is_refused(channel: BlockingChannel, value: int) -> None:
    assert refusal_of(declare, channel, 'q', value)[0] == 406
