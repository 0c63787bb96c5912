"""What the conformance tests share: each broker that there is, and a connection of bare pika to it."""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from postage.broker.rules import RULES
from postage.broker.server import BrokerServer
from support.brokers import Broker, Embedded, connect


@pytest.fixture(params=[*(f'embedded-{version}' for version in RULES), 'rabbitmq'])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker with an empty virtual host: the embedded one under each of its rules, and RabbitMQ."""
    if request.param == 'rabbitmq':
        yield request.getfixturevalue('rabbitmq')
        return
    version = request.param.removeprefix('embedded-')
    with BrokerServer(rules=version) as server:
        yield Embedded(server, version)


@pytest.fixture
def connection(broker: Broker) -> Iterator[pika.BlockingConnection]:
    with connect(broker) as connection:
        yield connection


@pytest.fixture
def channel(connection: pika.BlockingConnection) -> BlockingChannel:
    """A channel on which a publish returns once the message is in its queues."""
    channel = connection.channel()
    channel.confirm_delivery()
    return channel
