"""What all connections of one broker share: users, virtual hosts, clocks, and what a test has asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Protocol

from postage.broker.clock import Clock
from postage.broker.limits import Limits, Tally
from postage.broker.login import Guard
from postage.broker.observing import Observer
from postage.broker.rules import Rules
from postage.broker.users import Permissions, Users
from postage.broker.virtual_host import VirtualHost
from postage.secret import Secret

CONSUMER_TIMEOUT: Final = 1800.0  # seconds: RabbitMQ's half hour


class HasOpened(Protocol):
    """A connection."""

    @property
    def is_open(self) -> bool:
        """True from the end of the handshake until either side closes."""


class Shared:
    """The state of a broker, without its connections.

    :param users: passwords by user name
    :param virtual_hosts: names of the virtual hosts
    :param heartbeat: seconds that are proposed to clients, 0 for no heartbeats
    :param permissions: by user name and virtual host, see :class:`postage.broker.users.Users`
    :param connections: all connections
    :ivar limits: how much clients may take
    :ivar channels: counts the channels of all connections
    :ivar memory: counts the bytes of all messages, and of what waits to be sent
    :ivar largest_message: bytes of a body
    :ivar guard: slows down guessing of passwords
    :ivar rules: those of the version of RabbitMQ that is followed
    :ivar clock: the time of messages, queues and deliveries, which a test may move
    :ivar transport_clock: the time of heartbeats and handshakes; clients live in it too, so it is moved only where
        there are none but the test's own
    :ivar consumer_timeout: seconds within which a delivery has to be acknowledged, or ``None``
    :ivar blocked: why messages are refused, or ``None``
    :ivar confirm_delay: seconds by which publisher confirms come late
    :ivar refusals_left: how many of the next messages on confirming channels are refused
    :ivar observers: what hears of each message
    """

    def __init__(
        self,
        users: Any,
        virtual_hosts: Iterable[str],
        heartbeat: int,
        permissions: Mapping[str, Mapping[str, Permissions]] | None,
        rules: Rules,
        limits: Limits,
        connections: Collection[HasOpened],
    ) -> None:
        users = Secret.of(users)
        self.users = Users(users, permissions, rules.names_rights)
        self.rules = rules
        self.limits = limits
        self.connections = connections
        self.channels = Tally()
        self.memory = Tally()
        self.largest_message = limits.message_size or rules.largest_message
        self.clock = Clock()
        self.transport_clock = Clock()
        self.guard = Guard(self.transport_clock, self.users)
        self.heartbeat = heartbeat
        self.consumer_timeout: float | None = CONSUMER_TIMEOUT
        self.blocked: str | None = None
        self.confirm_delay = 0.0
        self.refusals_left = 0
        self.observers: list[Observer] = []
        self.virtual_hosts: dict[str, VirtualHost] = {}
        for name in virtual_hosts:
            self.add_virtual_host(name)

    def add_virtual_host(self, name: str) -> None:
        """Add a virtual host with nothing in it but the standard exchanges; one that exists stays as it is."""
        if name not in self.virtual_hosts:
            self.virtual_hosts[name] = VirtualHost(name, self.clock, self.rules, self.observers, self.limits)
