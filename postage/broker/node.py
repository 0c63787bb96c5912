"""A broker without sockets: its connections, and which of them have something to send."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from postage.broker.connection import Connection
from postage.broker.limits import Limits
from postage.broker.replies import CONNECTION_FORCED
from postage.broker.rules import Rules, rules_of
from postage.broker.shared import Shared
from postage.broker.users import Permissions
from postage.secret import Secret

LOW_ON_MEMORY: Final = 'low on memory'  # RabbitMQ's words
_ENOUGH: Final = 0.8  # of the memory, below which an alarm ends
_LONGEST_WAIT: Final = 3600.0

logger = logging.getLogger(__name__)


class Node:
    """A broker without sockets.

    The code that moves the bytes calls :meth:`connect` for each client and, after anything that may have produced
    output, :meth:`take_connections_with_output`. The parameters are those of :class:`postage.broker.shared.Shared`.

    :ivar shared: what all connections share
    """

    def __init__(
        self,
        users: Any,
        virtual_hosts: Iterable[str] = ('/',),
        heartbeat: int = 60,
        permissions: Mapping[str, Mapping[str, Permissions]] | None = None,
        rules: Rules | None = None,
        limits: Limits | None = None,
    ) -> None:
        users = Secret.of(users)
        self.connections: set[Connection] = set()
        self._limits = limits or Limits()
        self.shared = Shared(
            users, virtual_hosts, heartbeat, permissions, rules or rules_of(), self._limits, self.connections
        )
        self._is_low_on_memory = False
        self._with_output: list[Connection] = []

    def delete_virtual_host(self, name: str) -> None:
        """Remove a virtual host with all that is in it, and close the connections to it.

        :raises KeyError: where there is none of that name
        """
        host = self.shared.virtual_hosts.pop(name)
        # Queues first: consumers hear that theirs is gone before the connection is closed.
        for queue in list(host.queues.values()):
            host.delete_queue(queue)
        for connection in self.connections_to(name):
            connection.close(CONNECTION_FORCED, f"CONNECTION_FORCED - vhost '{name}' is deleted")

    def connections_to(self, vhost: str) -> list[Connection]:
        """Return the open connections to a virtual host."""
        return [connection for connection in self.connections if connection.vhost_name == vhost]

    def connect(self, peer: str) -> Connection:
        """Return the broker's end of a new connection; ``peer``, an address and a port, names the client in logs."""
        new = [each for each in self.connections if not each.is_open]
        if len(new) >= self._limits.handshakes:
            oldest = min(new, key=lambda each: each.began_at)
            logger.warning('%s: dropped, because %d connections are not open yet', oldest.peer, len(new))
            oldest.lost()
        connection = Connection(self.shared, peer, self._with_output.append, self.connections.discard)
        self.connections.add(connection)
        return connection

    def seconds_to_wait(self) -> float | None:
        """Return how long to wait for the next thing that happens by itself; ``None`` for ever."""
        if self._with_output:
            return 0.0
        waits = [clock.seconds_to_next() for clock in (self.shared.clock, self.shared.transport_clock)]
        # A lifetime may be years, which selectors refuse.
        return min((min(wait, _LONGEST_WAIT) for wait in waits if wait is not None), default=None)

    def run_due(self) -> None:
        """Do what has fallen due by the clocks."""
        self.shared.clock.run_due()
        self.shared.transport_clock.run_due()
        self._watch_memory()

    def _watch_memory(self) -> None:
        """Raise and end the alarm of memory (https://www.rabbitmq.com/docs/memory)."""
        used, limit = self.shared.memory.count, self._limits.memory
        if not self._is_low_on_memory and used > limit:
            self._is_low_on_memory = True
            logger.warning('messages take %d bytes, and may take %d: publishers are blocked', used, limit)
            self.block(LOW_ON_MEMORY)
        elif self._is_low_on_memory and used < limit * _ENOUGH:
            self._is_low_on_memory = False
            logger.warning('messages take %d bytes: publishers go on', used)
            self.unblock()

    def take_connections_with_output(self) -> list[Connection]:
        """Return the connections that have something to send, or have come to their end."""
        taken = self._with_output[:]
        # The list itself stays: connections hold on to it.
        self._with_output.clear()
        return taken

    def block(self, reason: str) -> None:
        """Refuse messages, as RabbitMQ does when memory or disk run low.

        A connection is told with its next publish, and neither that nor anything after it is handled until the
        alarm is over (https://www.rabbitmq.com/docs/connection-blocked).
        """
        self.shared.blocked = reason

    def unblock(self) -> None:
        """Take messages again."""
        self.shared.blocked = None
        for connection in list(self.connections):
            connection.unblock()
