"""Users of either broker, and what they may do."""

from __future__ import annotations

from postage.broker.users import Permissions
from support.brokers import Broker, Embedded, RabbitMQ
from support.canary import canary
from support.rabbitmq_node import binary


def add_user(broker: Broker, name: str, permissions: Permissions | None) -> None:
    """Add a user whose password is the canary of the name, with permissions in the virtual host of the test."""
    if isinstance(broker, Embedded):
        broker.server.add_user(name, canary(name), {} if permissions is None else {broker.vhost: permissions})
        return
    assert isinstance(broker, RabbitMQ)
    user, password, vhost = binary(name), binary(canary(name)), binary(broker.vhost)
    broker.node.evaluate(f'rabbit_auth_backend_internal:add_user({user}, {password}, <<"tests">>), ""')
    if permissions is not None:
        patterns = ', '.join(binary(each) for each in permissions)
        broker.node.evaluate(
            f'rabbit_auth_backend_internal:set_permissions({user}, {vhost}, {patterns}, <<"tests">>), ""'
        )


def delete_user(broker: Broker, name: str) -> None:
    """Delete a user of RabbitMQ; those of an embedded broker go with it."""
    if isinstance(broker, RabbitMQ):
        broker.node.evaluate(f'rabbit_auth_backend_internal:delete_user({binary(name)}, <<"tests">>), ""')
