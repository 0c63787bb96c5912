"""What a channel keeps of messages on their way out: its consumers, and the deliveries that are not settled."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Protocol

from postage.broker import wire
from postage.broker.messages import QueuedMessage
from postage.broker.queues import Queue
from postage.broker.replies import PRECONDITION_FAILED, Refusal


class Sender(Protocol):
    """What a consumer asks of its channel.

    :ivar prefetch_count: the limit that all its consumers share, 0 for none
    :ivar in_flight: how many deliveries to consumers that limit counts
    """

    prefetch_count: int
    in_flight: int

    @property
    def takes_deliveries(self) -> bool:
        """False at the end, and while the client has too much to read already."""

    def deliver(self, consumer: ChannelConsumer, entry: QueuedMessage) -> None:
        """Send a message to a consumer."""

    def consumer_cancelled(self, consumer: ChannelConsumer) -> None:
        """Drop a consumer whose queue has gone."""


class ChannelConsumer:
    """A consumer on a channel, as its queue sees it.

    :ivar unacknowledged: how many deliveries to it are not settled
    :ivar overdue: how many of them were taken back, because they were not settled in time; it rests meanwhile
    """

    __slots__ = (
        '_sender',
        'exclusive',
        'limit',
        'no_ack',
        'overdue',
        'prefix',
        'priority',
        'queue',
        'tag',
        'unacknowledged',
    )

    def __init__(
        self, sender: Sender, queue: Queue, tag: str, no_ack: bool, exclusive: bool, priority: int, limit: int
    ) -> None:
        self._sender = sender
        self.queue = queue
        self.tag = tag
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.priority = priority
        self.limit = limit
        self.unacknowledged = 0
        self.overdue = 0
        self.prefix = wire.deliver_prefix(tag)

    def has_room(self) -> bool:
        """Tell whether prefetch limits and the connection's backlog leave room for a message."""
        sender = self._sender
        if not sender.takes_deliveries:
            return False
        if self.no_ack:
            return True
        if self.overdue or (self.limit and self.unacknowledged >= self.limit):
            return False
        return not sender.prefetch_count or sender.in_flight < sender.prefetch_count

    def deliver(self, entry: QueuedMessage) -> None:
        """Send a message."""
        self._sender.deliver(self, entry)

    def queue_deleted(self) -> None:
        """Tell the client, if it wants to know."""
        self._sender.consumer_cancelled(self)


@dataclass
class Unacknowledged:
    """A delivery whose fate is not known yet; a ``Basic.Get`` has no consumer.

    :ivar due: the clock's time by which it has to be settled
    :ivar is_overdue: True where its queue has taken it back; the client may still settle it, to no effect
    """

    __slots__ = ('consumer', 'due', 'entry', 'is_overdue', 'queue')

    entry: QueuedMessage
    queue: Queue
    consumer: ChannelConsumer | None
    due: float
    is_overdue: bool


class Unsettled:
    """The deliveries of a channel that wait for their acknowledgement, by delivery tag in ascending order."""

    def __init__(self) -> None:
        self._by_tag: dict[int, Unacknowledged] = {}

    def add(self, tag: int, delivery: Unacknowledged) -> None:
        """Remember a new delivery."""
        self._by_tag[tag] = delivery

    def take(self, tag: int, multiple: bool) -> dict[int, Unacknowledged]:
        """Remove and return one delivery or, with ``multiple``, all up to it; tag 0 then stands for all there are.

        :raises Refusal: 406, where there is no such delivery
        """
        pending = self._by_tag
        if multiple and tag == 0:
            return self.take_all()
        if tag not in pending:
            raise Refusal(PRECONDITION_FAILED, f'unknown delivery tag {tag}')
        if not multiple:
            return {tag: pending.pop(tag)}
        tags = list(itertools.takewhile(lambda earlier: earlier <= tag, pending))
        return {earlier: pending.pop(earlier) for earlier in tags}

    def first_due(self) -> float:
        """Return the earliest time by which one of them has to be settled."""
        return min((delivery.due for delivery in self._by_tag.values()), default=inf)

    def due_at(self, due: float) -> Unacknowledged:
        """Return one that has to be settled by just that time."""
        return next(delivery for delivery in self._by_tag.values() if delivery.due == due)

    def take_all(self) -> dict[int, Unacknowledged]:
        """Remove and return everything."""
        taken, self._by_tag = self._by_tag, {}
        return taken

    def put_back(self, taken: dict[int, Unacknowledged]) -> None:
        """Undo a :meth:`take`."""
        self._by_tag = dict(sorted({**self._by_tag, **taken}.items()))


def requeue(settled: Iterable[Unacknowledged], counts: bool = True, by_client: bool = True) -> None:
    """Give deliveries back to their queues, as far as those exist and have not taken them back themselves.

    :param counts: whether each was an attempt that failed
    :param by_client: whether the client has returned them; their channel has ended where it has not
    """
    by_queue: dict[Queue, list[QueuedMessage]] = {}
    for delivery in settled:
        if not delivery.is_overdue:
            by_queue.setdefault(delivery.queue, []).append(delivery.entry)
    for queue, entries in by_queue.items():
        if not queue.deleted:
            queue.requeue(entries, counts, by_client)
