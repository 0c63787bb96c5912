"""The two brokers that tests run against, behind one interface."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import quote

import pika
import pika.exceptions

from postage.broker.rules import DEFAULT
from postage.broker.server import BrokerServer
from postage.secret import Secret
from support.canary import GUEST
from support.rabbitmq_node import RabbitMQNode


def _without_cancels(queues: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in queues.items() if not name.startswith('postage.cancel-')}


class Broker(Protocol):
    """A broker with an empty virtual host of the test's own.

    :ivar name: ``embedded`` or ``rabbitmq``
    :ivar rules: the version whose rules it follows: ``3.10``, ``4.0`` or ``4.3``
    :ivar vhost: the virtual host of this test
    :ivar url: AMQP URL of that virtual host, with the user ``guest`` and a canary for a password, so that every test
        searches for it
    """

    name: str
    rules: str
    host: str
    port: int
    vhost: str
    url: str

    def close_all_connections(self) -> None:
        """Close every connection to the virtual host with 320, as an operator would."""

    def queues(self) -> dict[str, int]:
        """Return the name of every queue, with the number of its messages that wait to be delivered.

        Left out, here and in :meth:`messages`, are those on which processes receive the cancels of RPC requests.
        """

    def messages(self) -> dict[str, int]:
        """Return the name of every queue, with the number of all its messages, the unacknowledged included."""

    def channels(self) -> int:
        """Return how many channels are open in the virtual host, of all connections together."""

    def add_vhost(self, name: str) -> None:
        """Add another virtual host in which ``guest`` may do everything."""

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host."""

    def url_of(self, vhost: str) -> str:
        """Return the AMQP URL of another virtual host."""


@contextlib.contextmanager
def connect(broker: Broker) -> Iterator[pika.BlockingConnection]:
    """A connection of bare pika to a broker, for the length of a ``with``."""
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    try:
        yield connection
    finally:
        if connection.is_open:
            # One that has been idle for long the broker has given up, as it may.
            with contextlib.suppress(pika.exceptions.AMQPConnectionError):
                connection.close()


class RabbitMQ:
    """One virtual host of a :class:`RabbitMQNode`.

    :ivar node: the node, for tests that stop, kill or restart it (those that take ``private_rabbitmq`` only)
    """

    name = 'rabbitmq'
    host = '127.0.0.1'

    def __init__(self, node: RabbitMQNode, vhost: str) -> None:
        self.node = node
        self.rules = node.rules
        self.port = node.port
        self.vhost = vhost
        self.url = node.url(vhost)

    def close_all_connections(self) -> None:
        self.node.close_all_connections(self.vhost)

    def queues(self) -> dict[str, int]:
        return _without_cancels(self.node.queues(self.vhost))

    def messages(self) -> dict[str, int]:
        return _without_cancels(self.node.queues(self.vhost, 'messages'))

    def channels(self) -> int:
        return self.node.channels(self.vhost)

    def add_vhost(self, name: str) -> None:
        self.node.add_vhost(name)

    def delete_vhost(self, name: str) -> None:
        self.node.delete_vhost(name)

    def url_of(self, vhost: str) -> str:
        return self.node.url(vhost)


class Embedded:
    """The embedded broker, all of it one test's own.

    :param rules: those that the server was started with
    :ivar server: the :class:`postage.broker.server.BrokerServer`, for what RabbitMQ cannot do
    """

    name = 'embedded'
    host = '127.0.0.1'
    vhost = '/'

    def __init__(self, server: BrokerServer, rules: str = DEFAULT) -> None:
        self.server = server
        self.rules = rules
        _take_canary(server)
        self.port = server.port
        self.url = self.url_of(self.vhost)

    def close_all_connections(self) -> None:
        self.server.close_connections()

    def queues(self) -> dict[str, int]:
        return _without_cancels({name: ready for name, (ready, *_) in self.server.queues(self.vhost).items()})

    def messages(self) -> dict[str, int]:
        queues = self.server.queues(self.vhost).items()
        return _without_cancels({name: ready + unacked for name, (ready, unacked, _) in queues})

    def channels(self) -> int:
        server = self.server
        connections = server._call(lambda: [each for each in server._node.connections if each.vhost_name == self.vhost])
        return sum(len(connection.channels) for connection in connections)

    def add_vhost(self, name: str) -> None:
        self.server.add_virtual_host(name)

    def delete_vhost(self, name: str) -> None:
        self.server.delete_virtual_host(name)

    def url_of(self, vhost: str) -> str:
        return f'amqp://guest:{GUEST}@{self.host}:{self.port}/{quote(vhost, safe="")}'


def _take_canary(server: BrokerServer) -> None:
    """Let ``guest`` log in with a canary, too."""
    users = server._shared.users
    is_password = users.is_password

    def is_either(user: str, password: Secret[bytes]) -> bool:
        return is_password(user, password) or (user == 'guest' and password.reveal() == GUEST.encode())

    users.is_password = is_either  # type: ignore[method-assign]


def with_login(url: str, login: str) -> str:
    """A URL with another user and password, or with a user alone."""
    return re.sub('//[^@]*@', f'//{login}@', url)


def with_port(url: str, port: int) -> str:
    """The URL of another port, with the same credentials and virtual host."""
    return re.sub(r':\d+(?=/)', f':{port}', url)
