"""What only an operator of a broker can do: users, and limits that the configuration has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from postage.broker.users import Permissions
from support.brokers import Broker, Embedded, RabbitMQ
from support.rabbitmq_node import binary


def add_user(broker: Broker, name: str, permissions: Permissions | None) -> None:
    """Add a user whose password is the name, with permissions in the virtual host of the test."""
    if isinstance(broker, Embedded):
        broker.server.add_user(name, name, {} if permissions is None else {broker.vhost: permissions})
        return
    assert isinstance(broker, RabbitMQ)
    user, vhost = binary(name), binary(broker.vhost)
    broker.node.evaluate(f'rabbit_auth_backend_internal:add_user({user}, {user}, <<"tests">>), ""')
    if permissions is not None:
        patterns = ', '.join(binary(each) for each in permissions)
        broker.node.evaluate(
            f'rabbit_auth_backend_internal:set_permissions({user}, {vhost}, {patterns}, <<"tests">>), ""'
        )


def delete_user(broker: Broker, name: str) -> None:
    """Take a user back, where the broker is not the test's own."""
    if isinstance(broker, RabbitMQ):
        broker.node.evaluate(f'rabbit_auth_backend_internal:delete_user({binary(name)}, <<"tests">>), ""')


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
