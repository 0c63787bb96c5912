"""What the conformance tests share: a connection of bare pika to the broker of the test, and a channel on it."""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from support.brokers import Broker, connect


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
