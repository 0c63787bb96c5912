"""What all connections of one broker share: users, virtual hosts, clocks, and what a test has asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from postage.broker.clock import Clock
from postage.broker.observing import Observer
from postage.broker.rules import Rules
from postage.broker.users import Permissions, Users
from postage.broker.virtual_host import VirtualHost
from postage.secret import Secret

CONSUMER_TIMEOUT: Final = 1800.0  # seconds: RabbitMQ's half hour


class Shared:
    """The state of a broker, without its connections.

    :param users: passwords by user name
    :param virtual_hosts: names of the virtual hosts
    :param heartbeat: seconds that are proposed to clients, 0 for no heartbeats
    :param permissions: by user name and virtual host, see :class:`postage.broker.users.Users`
    :ivar rules: those of the version of RabbitMQ that is followed
    :ivar clock: the time of messages, queues and deliveries, which a test may move
    :ivar transport_clock: the time of heartbeats and handshakes; clients live in it too, so it is moved only where
        there are none but the test's own
    :ivar consumer_timeout: seconds within which a delivery has to be acknowledged, or ``None``
    :ivar blocked: why messages are refused, or ``None``
    :ivar confirm_delay: seconds by which publisher confirms come late
    :ivar refusals_left: how many of the next messages on confirming channels are refused
    :ivar observers: who hears of each message
    """

    def __init__(
        self,
        users: Any,
        virtual_hosts: Iterable[str],
        heartbeat: int,
        permissions: Mapping[str, Mapping[str, Permissions]] | None,
        rules: Rules,
    ) -> None:
        users = Secret.of(users)
        self.users = Users(users, permissions, rules.names_rights)
        self.rules = rules
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

    def add_virtual_host(self, name: str) -> None:
        """Add a virtual host with nothing in it but the standard exchanges; one that exists stays as it is."""
        if name not in self.virtual_hosts:
            self.virtual_hosts[name] = VirtualHost(name, self.clock, self.rules, self.observers)
