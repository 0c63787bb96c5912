"""Whether what this process has on the broker works: connections, consumers, confirms, handlers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from postage.amqp.connection import Connection
from postage.amqp.consuming import ConsumingChannel
from postage.amqp.publishing import PublishingChannel, oldest
from postage.amqp.registry import connections as all_connections
from postage.living import Living
from postage.messaging.counting import Figures
from postage.messaging.handlers import Entry

CONFIRM_TIME = 30.0  # seconds within which the broker confirms a message, as a rule


class Watched(Protocol):
    """The dispatcher of a processor that consumes."""

    figures: Figures

    @property
    def entries(self) -> Sequence[Entry]: ...
    @property
    def troubles(self) -> list[str]: ...


watched: Living[Watched] = Living()
"""The dispatchers of the processors that consume: each processor adds and discards its own."""

counted: Living[Any] = Living()
"""The processors that have begun to consume, also where they have ended: what they counted still counts."""


@dataclass(frozen=True)
class Health:
    """How this process gets on with its brokers, at one moment.

    :ivar connected: whether every connection is there, with all that was on it, and the broker is heard on it
    :ivar consuming: whether every consumer is attached to its queue
    :ivar blocked: whether a broker takes no messages at present, to save memory or disk space
    :ivar oldest_unconfirmed: seconds for which the oldest message has waited for its confirm; ``None`` where none waits
    :ivar oldest_in_hand: seconds for which a handler has had the oldest message in hand; ``None`` where none has one
    :ivar since: since when ``connected`` is what it is, as ``time.time()`` has it; ``None`` without a connection
    :ivar faults: what is wrong, in words; empty where nothing is
    """

    connected: bool
    consuming: bool
    blocked: bool
    oldest_unconfirmed: float | None
    oldest_in_hand: float | None
    since: float | None
    faults: tuple[str, ...]

    @property
    def is_ready(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON can have it."""
        return {'ready': self.is_ready, **asdict(self), 'faults': list(self.faults)}


def health(confirm_time: float = CONFIRM_TIME, handler_time: float | None = None) -> Health:
    """Say how this process gets on with its brokers. Any thread; never blocks, and asks no broker.

    :param confirm_time: seconds after which a message that is not confirmed is a fault
    :param handler_time: seconds after which a message in hand is one; by default each handler's own time-out counts
    """
    connections = [each for each in all_connections() if not each.is_closed]
    processors = list(watched)
    lost = {connection: _lost(connection) for connection in connections}
    blocked = [connection for connection in connections if connection.standing.blocked_at is not None]
    unattached = sorted({queue for connection in connections for queue in _unattached(connection)})
    ages = [time.monotonic() - at for connection in connections for at in _unsettled(connection)]
    in_hand = [age for age in (each.figures.oldest_in_hand for each in processors) if age is not None]
    unconfirmed = max(ages, default=None)
    faults = [why for why in lost.values() if why]
    faults += [f'{each.role}: {each.trouble}' for each in blocked if not lost[each] and each.trouble]
    faults += [f'no consumer is attached to queue {queue!r}' for queue in unattached]
    if unconfirmed is not None and unconfirmed > confirm_time:
        faults.append(f'a message has waited {unconfirmed:.1f} s for its confirm, where {confirm_time:g} s are allowed')
    faults += [each for processor in processors for each in _overdue(processor, handler_time)]
    faults += [each for processor in processors for each in processor.troubles]
    return Health(
        connected=not any(lost.values()),
        consuming=not unattached,
        blocked=bool(blocked),
        oldest_unconfirmed=None if unconfirmed is None else round(unconfirmed, 3),
        oldest_in_hand=max(in_hand, default=None),
        since=_since(connections, any(lost.values())),
        faults=tuple(dict.fromkeys(faults)),
    )


def _lost(connection: Connection) -> str:
    """Why a connection counts as lost; empty where it does not."""
    if connection.standing.error is not None:
        return str(connection.standing.error)
    if connection.is_open and connection.standing.blocked_at is not None:
        return ''
    return f'{connection.role}: {connection.trouble}' if connection.trouble else ''


def _since(connections: Sequence[Connection], is_lost: bool) -> float | None:
    if is_lost:
        return min((each.standing.lost_at for each in connections if not each.is_open), default=None)
    return max((each.standing.opened_at for each in connections if each.standing.opened_at), default=None)


def _unattached(connection: Connection) -> Iterator[str]:
    for channel in list(connection.channels):
        if isinstance(channel, ConsumingChannel):
            yield from channel.unattached


def _unsettled(connection: Connection) -> Iterator[float]:
    for channel in list(connection.channels):
        since = oldest(channel) if isinstance(channel, PublishingChannel) else None
        if since is not None:
            yield since


def _overdue(processor: Watched, handler_time: float | None) -> Iterator[str]:
    now = time.monotonic()
    for entry in processor.entries:
        limit = min((each for each in (entry.timeout, handler_time) if each is not None), default=None)
        began = min(entry.figures.begun_at, default=now)
        if limit is not None and now - began > limit:
            yield f'{entry.label} has had a message in hand for {now - began:.1f} s, where {limit:g} s are allowed'
