"""How much clients may take of a broker, so that none of them takes it down or keeps others out.

RabbitMQ has limits of these kinds, and the replies are its own; by default it sets few of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
UNITS: Final = {'kib': KIB, 'mib': MIB, 'gib': GIB}

SMALLEST_MEMORY: Final = 64 * KIB
LARGEST_METHOD: Final = 16 * KIB
"""Bytes of a method: of names and arguments. Only content is larger."""


def _limit(default: int | None, what: str) -> Any:
    return dataclasses.field(default=default, metadata={'what': what})


@dataclass(frozen=True)
class Limits:
    """How much there may be of each thing.

    :param connections: connections that are open; one more is refused (530)
    :param handshakes: connections that are not open yet, or no more: of those in excess the oldest is dropped
    :param channels: channels of all connections together; one more costs its connection (530)
    :param queues: queues of a virtual host; one more is refused (406)
    :param exchanges: exchanges of a virtual host, those that are always there left out; one more is refused (406)
    :param bindings: bindings in a virtual host; one more is refused (406)
    :param consumers: consumers of a virtual host; one more costs its connection (530)
    :param message_size: bytes of a body; a larger one is refused (406). ``None`` for as many as RabbitMQ allows
    :param memory: bytes of messages, and of what waits to be sent. Above it publishers are blocked, as by RabbitMQ's
        memory alarm, until a fifth of it is free again
    :raises ValueError: for a number that none of them can be
    """

    connections: int = _limit(1000, 'open connections')
    handshakes: int = _limit(200, 'connections that are not open yet: of more, the oldest is dropped')
    channels: int = _limit(10_000, 'channels of all connections')
    queues: int = _limit(10_000, 'queues of a virtual host')
    exchanges: int = _limit(10_000, 'exchanges of a virtual host')
    bindings: int = _limit(50_000, 'bindings in a virtual host')
    consumers: int = _limit(20_000, 'consumers of a virtual host')
    message_size: int | None = _limit(None, "bytes of a body, such as 1MiB (default: RabbitMQ's)")
    memory: int = _limit(GIB, 'bytes of messages, such as 500MiB, above which publishers are blocked (default: 1GiB)')

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), SMALLEST_MEMORY if field.name == 'memory' else 1
            if value is None and field.default is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f'the limit of {field.name} must be a number, {least} or more, not {value!r:.40}')


def size_of(text: str) -> int:
    """Return a number of bytes that is written as such, or with KiB, MiB or GiB behind it.

    :raises ValueError: it is neither
    """
    text = text.strip().lower()
    number, factor = next(((text[:-3], factor) for unit, factor in UNITS.items() if text.endswith(unit)), (text, 1))
    if not (number.strip().isascii() and number.strip().isdecimal()) or len(number) > 15:
        raise ValueError(f'{text!r:.40} is no size; write bytes, or a number and KiB, MiB or GiB')
    return int(number) * factor


class Tally:
    """How much there is of something at present.

    :ivar count: how much
    """

    __slots__ = ('count',)

    def __init__(self) -> None:
        self.count = 0
