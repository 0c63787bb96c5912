"""What all connections of one broker share: users, virtual hosts, the clock, and who has something to send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from postage.broker.clock import Clock
from postage.broker.connection import Connection
from postage.broker.replies import CONNECTION_FORCED
from postage.broker.rules import rules_of
from postage.broker.users import Permissions, Users
from postage.broker.virtual_host import Observer, VirtualHost

_LONGEST_WAIT: Final = 3600.0
CONSUMER_TIMEOUT: Final = 1800.0  # seconds: RabbitMQ's half hour


class Node:
    """A broker without sockets.

    Whoever moves the bytes calls :meth:`connect` for each client and, after anything that may have produced output,
    :meth:`take_connections_with_output`.

    :param users: passwords by user name
    :param virtual_hosts: names of the virtual hosts
    :param heartbeat: seconds that are proposed to clients, 0 for no heartbeats
    :param permissions: by user name and virtual host, see :class:`postage.broker.users.Users`
    :param strict: the version of RabbitMQ whose changes are followed, see :mod:`postage.broker.rules`
    :ivar clock: the time of messages, queues and deliveries, which a test may move
    :ivar transport_clock: the time of heartbeats and handshakes; clients live in it too, so it is moved only where
        there are none but the test's own
    :ivar consumer_timeout: seconds within which a delivery has to be acknowledged, or ``None``
    :ivar confirm_delay: seconds by which publisher confirms come late
    :ivar refusals_left: how many of the next messages on confirming channels are refused
    :ivar observers: who hears of each message
    """

    def __init__(
        self,
        users: Mapping[str, str],
        virtual_hosts: Iterable[str] = ('/',),
        heartbeat: int = 60,
        permissions: Mapping[str, Mapping[str, Permissions]] | None = None,
        strict: str | None = None,
    ) -> None:
        self.users = Users(users, permissions)
        self.rules = rules_of(strict)
        self.clock = Clock()
        self.transport_clock = Clock()
        self.heartbeat = heartbeat
        self.consumer_timeout: float | None = CONSUMER_TIMEOUT
        self.blocked: str | None = None
        self.confirm_delay = 0.0
        self.refusals_left = 0
        self.observers: list[Observer] = []
        self.virtual_hosts: dict[str, VirtualHost] = {}
        for name in virtual_hosts:
            self.add_virtual_host(name)
        self.connections: set[Connection] = set()
        self._with_output: list[Connection] = []

    def add_virtual_host(self, name: str) -> None:
        """Add a virtual host with nothing in it but the standard exchanges; one that exists stays as it is."""
        if name not in self.virtual_hosts:
            self.virtual_hosts[name] = VirtualHost(name, self.clock, self.rules, self.observers)

    def delete_virtual_host(self, name: str) -> None:
        """Remove a virtual host with all that is in it, and close the connections to it.

        :raises KeyError: where there is none of that name
        """
        del self.virtual_hosts[name]
        for connection in self.connections_to(name):
            connection.close(CONNECTION_FORCED, f"CONNECTION_FORCED - vhost '{name}' is down")

    def connections_to(self, vhost: str) -> list[Connection]:
        """Return the open connections to a virtual host."""
        return [connection for connection in self.connections if connection.vhost_name == vhost]

    def connect(self, peer: str) -> Connection:
        """Return the broker's end of a new connection; ``peer`` names the client in logs."""
        connection = Connection(self, peer)
        self.connections.add(connection)
        return connection

    def has_output(self, connection: Connection) -> None:
        """Note that a connection has something to send, once until it is taken."""
        self._with_output.append(connection)

    def seconds_to_wait(self) -> float | None:
        """Return how long to wait for the next thing that happens by itself; ``None`` for ever."""
        if self._with_output:
            return 0.0
        waits = [clock.seconds_to_next() for clock in (self.clock, self.transport_clock)]
        # A lifetime may be years, which selectors refuse.
        return min((min(wait, _LONGEST_WAIT) for wait in waits if wait is not None), default=None)

    def run_due(self) -> None:
        """Do what has fallen due by the clocks."""
        self.clock.run_due()
        self.transport_clock.run_due()

    def take_connections_with_output(self) -> list[Connection]:
        """Return the connections that have something to send, or have come to their end."""
        taken, self._with_output = self._with_output, []
        return taken

    def block(self, reason: str) -> None:
        """Refuse messages, as RabbitMQ does when memory or disk run low.

        A connection is told with its next publish, and neither that nor anything after it is handled until the
        alarm is over (https://www.rabbitmq.com/docs/connection-blocked).
        """
        self.blocked = reason

    def unblock(self) -> None:
        """Take messages again."""
        self.blocked = None
        for connection in list(self.connections):
            connection.unblock()
