"""``strict='4.3'``: what RabbitMQ 4.3 documents to do otherwise.

No such RabbitMQ takes part in the tests. These are the cases of its documentation and release notes:
https://github.com/rabbitmq/rabbitmq-server/releases/tag/v4.3.0, https://www.rabbitmq.com/docs/4.3/nack and
https://www.rabbitmq.com/docs/4.3/quorum-queues.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ConnectionClosedByBroker

from postage.broker import BrokerServer
from support.channels import publish, refusal_of, wait_until

PERMITTED = 'is deprecated.\nBy default, this feature is not permitted anymore.'


@pytest.fixture
def server() -> Iterator[BrokerServer]:
    with BrokerServer(strict='4.3') as server:
        yield server


@pytest.fixture
def channel(server: BrokerServer) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(server.url))
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    if connection.is_open:
        connection.close()


def test_a_queue_that_is_neither_durable_nor_exclusive_costs_the_connection(channel: BlockingChannel) -> None:
    refusal = refusal_of(channel.queue_declare, 'q')
    assert refusal == (541, f'INTERNAL_ERROR - Feature `transient_nonexcl_queues` {PERMITTED}')
    assert channel.connection.is_closed


@pytest.mark.parametrize('flags', [{'durable': True}, {'exclusive': True}, {'durable': True, 'auto_delete': True}])
def test_other_queues_are_accepted(channel: BlockingChannel, flags: dict[str, bool]) -> None:
    channel.queue_declare('q', **flags)
    channel.queue_declare('q', **flags)


def test_a_prefetch_limit_that_consumers_share_is_refused(channel: BlockingChannel) -> None:
    channel.basic_qos(prefetch_count=1)
    refusal = refusal_of(channel.basic_qos, prefetch_count=1, global_qos=True)
    assert refusal == (541, f'INTERNAL_ERROR - Feature `global_qos` {PERMITTED}')


@pytest.mark.parametrize('arguments', [{'x-queue-mode': 'lazy'}, {'x-queue-version': 1}])
def test_arguments_of_the_first_classic_queues_are_refused(channel: BlockingChannel, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConnectionClosedByBroker):
        channel.queue_declare('q', durable=True, arguments=arguments)


def quorum_queue(channel: BlockingChannel, **arguments: Any) -> str:
    named = {name.replace('_', '-'): value for name, value in arguments.items()}
    channel.queue_declare('q', durable=True, arguments={'x-queue-type': 'quorum', **named})
    publish(channel, 'q', b'x')
    return 'q'


def delivery_counts(channel: BlockingChannel, queue: str, method: str, times: int) -> list[int]:
    """Get a message and give it back so many times, and return what each delivery counted."""
    counts = []
    for _ in range(times):
        delivery, properties, _ = channel.basic_get(queue)
        if delivery is None:
            break
        counts.append(properties.headers['x-delivery-count'])
        getattr(channel, method)(delivery.delivery_tag, requeue=True)
    return counts


def test_a_nack_counts_no_delivery_and_a_reject_does(channel: BlockingChannel) -> None:
    queue = quorum_queue(channel, x_delivery_limit=2)
    assert delivery_counts(channel, queue, 'basic_nack', 5) == [0] * 5
    assert delivery_counts(channel, queue, 'basic_reject', 5) == [0, 1, 2]


def test_a_quorum_queue_has_a_delivery_limit_of_20_by_default(channel: BlockingChannel) -> None:
    assert delivery_counts(channel, quorum_queue(channel), 'basic_reject', 100) == list(range(21))


def test_only_quorum_queues_ask_for_acknowledgements_in_time(server: BrokerServer, channel: BlockingChannel) -> None:
    channel.queue_declare('classic', durable=True)
    publish(channel, 'classic', b'x')
    channel.basic_get('classic')
    server.advance(3600)
    assert server.queues()['classic'].unacknowledged == 1
    channel.basic_get(quorum_queue(channel))
    server.advance(3600)
    wait_until(channel.connection, lambda: channel.is_closed)


def test_an_unknown_version_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"strict='5': what is known is '4\.3'"):
        BrokerServer(strict='5')
