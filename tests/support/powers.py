"""What only an operator of a broker can do: limits that the configuration has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from support.brokers import Broker, Embedded, RabbitMQ


@contextlib.contextmanager
def acknowledgements_within(broker: Broker, milliseconds: int) -> Iterator[None]:
    """Ask, for the length of a ``with``, for acknowledgements in such a time on channels that are opened in it."""
    if isinstance(broker, Embedded):
        broker.server.set_consumer_timeout(milliseconds / 1000)
        yield
        return
    assert isinstance(broker, RabbitMQ)
    names = ('consumer_timeout', 'channel_tick_interval')
    before = [broker.node.evaluate(f'integer_to_list(application:get_env(rabbit, {name}, 60000))') for name in names]
    for name, value in zip(names, (milliseconds, 100), strict=True):
        broker.node.evaluate(f'application:set_env(rabbit, {name}, {value}), ""')
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            broker.node.evaluate(f'application:set_env(rabbit, {name}, {value}), ""')
