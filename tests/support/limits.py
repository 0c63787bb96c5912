"""Limits of either broker, for the length of a test."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from support.brokers import Broker, Embedded, RabbitMQ
from support.rabbitmq_node import binary


@contextlib.contextmanager
def limited(broker: Broker, **limits: int) -> Iterator[None]:
    """Have the virtual host of a test take no more than so many ``connections`` or ``queues``."""
    if isinstance(broker, Embedded):
        shared = broker.server._shared
        host, before = shared.virtual_hosts[broker.vhost], shared.limits
        shared.limits = host.limits = dataclasses.replace(before, **limits)
        try:
            yield
        finally:
            shared.limits = host.limits = before
        return
    assert isinstance(broker, RabbitMQ)
    vhost = binary(broker.vhost)
    pairs = ', '.join(f'{{<<"max-{name}">>, {limit}}}' for name, limit in limits.items())
    broker.node.evaluate(f'rabbit_vhost_limit:set({vhost}, [{pairs}], <<"tests">>), ""')
    try:
        yield
    finally:
        broker.node.evaluate(f'rabbit_vhost_limit:clear({vhost}, <<"tests">>), ""')
