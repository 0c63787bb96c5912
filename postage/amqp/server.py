"""Which broker is at the other end of a link, and what depends on that: the one place that asks for its version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from postage.amqp.frames import FRAME_MIN

FOLLOW_RABBITMQ = ('RabbitMQ', 'Postage')  # the latter is the broker in memory, which names the version it behaves as


class Server(NamedTuple):
    """A broker, as it introduces itself (AMQP 0-9-1, section 1.4.2.2.3).

    :ivar product: its name; empty where it gave none
    :ivar version: the numbers of its version, as many as it gave
    """

    product: str = ''
    version: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f'{self.product or "a broker"} {".".join(map(str, self.version))}'.rstrip()

    @property
    def frame_min(self) -> int:
        """The least ``frame_max`` that it agrees to, in bytes."""
        # RabbitMQ does not say why: it resets the connection after three seconds.
        return 8192 if self._behaves_as(4, 1) else FRAME_MIN

    @property
    def delays_retries(self) -> bool:
        """Whether its quorum queues know ``x-delayed-retry-type`` and its kin."""
        return self._behaves_as(4, 3)

    def _behaves_as(self, *since: int) -> bool:
        """Whether it is RabbitMQ of that version, or a later one."""
        return self.product in FOLLOW_RABBITMQ and self.version >= since


UNKNOWN = Server()


def server_of(properties: Mapping[str, Any] | None) -> Server:
    """The broker that introduced itself with these ``server_properties``. What it left out stays empty."""
    properties = properties or {}
    product, version = properties.get('product'), properties.get('version')
    numbers = re.match(r'\d+(\.\d+)*', version) if isinstance(version, str) else None
    return Server(
        product if isinstance(product, str) else '',
        tuple(map(int, numbers.group().split('.'))) if numbers is not None else (),
    )
