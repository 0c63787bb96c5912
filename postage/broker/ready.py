"""What a queue keeps in order: the messages that wait, and the consumers that take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from postage.broker.limits import Tally
from postage.broker.messages import QueuedMessage


class Consumer(Protocol):
    """What a queue knows of a consumer."""

    exclusive: bool
    priority: int

    def has_room(self) -> bool:
        """Tell whether it would take one more message now."""

    def deliver(self, entry: QueuedMessage) -> None:
        """Take a message over."""

    def queue_deleted(self) -> None:
        """Hear that the queue has gone."""


def _position(entry: QueuedMessage) -> int:
    return entry.position


class ReadyMessages:
    """Messages that wait, the highest priority first, each priority in the order of positions.

    :param highest: the highest priority; messages above it count as having it
    :param usual: the priority of messages that have none
    """

    def __init__(self, highest: int = 0, usual: int = 0) -> None:
        # The last one is before all priorities.
        self._levels: list[deque[QueuedMessage]] = [deque() for _ in range(highest + 2)]
        self._highest = highest
        self._usual = usual
        self.count = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[QueuedMessage]:
        for level in reversed(self._levels):
            yield from level

    def _level(self, entry: QueuedMessage) -> deque[QueuedMessage]:
        if not self._highest:
            return self._levels[0]
        priority = entry.message.header.priority
        return self._levels[self._usual if priority is None else min(priority, self._highest)]

    def append(self, entry: QueuedMessage) -> None:
        """Put a message at the end of its priority."""
        self._level(entry).append(entry)
        self._count(entry)

    def put_first(self, entry: QueuedMessage) -> None:
        """Put a message before all priorities, behind those that were put there already."""
        self._levels[-1].append(entry)
        self._count(entry)

    def _count(self, entry: QueuedMessage) -> None:
        self.count += 1
        self.bytes += len(entry.message.body)

    def head(self) -> QueuedMessage | None:
        """Return the message that is next, and leave it there; ``None`` where there is none."""
        if not self.count:
            return None
        return next(level for level in reversed(self._levels) if level)[0]

    def pop(self) -> QueuedMessage:
        """Remove and return the message that is next."""
        entry = next(level for level in reversed(self._levels) if level).popleft()
        self.count -= 1
        self.bytes -= len(entry.message.body)
        return entry

    def restore(self, entries: Iterable[QueuedMessage]) -> None:
        """Put messages back at their positions."""
        returning: dict[int, list[QueuedMessage]] = {}
        for entry in sorted(entries, key=_position):
            returning.setdefault(id(self._level(entry)), []).append(entry)
            self._count(entry)
        for level in self._levels:
            back = returning.get(id(level))
            if not back:
                continue
            if not level or back[-1].position < level[0].position:
                level.extendleft(reversed(back))
            else:
                merged = sorted((*level, *back), key=_position)
                level.clear()
                level.extend(merged)

    def clear(self) -> list[QueuedMessage]:
        """Remove and return everything."""
        everything = list(self)
        for level in self._levels:
            level.clear()
        self.count = self.bytes = 0
        return everything


class Turns:
    """Consumers, asked in turn: those of the highest priority first, and among equals the one that waited longest.

    :param tally: counts them, with those of other queues
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._by_priority: dict[int, deque[Consumer]] = {}
        self._in_order: list[Consumer] = []

    def __len__(self) -> int:
        return len(self._in_order)

    def __iter__(self) -> Iterator[Consumer]:
        return iter(self._in_order)

    def first(self) -> Consumer:
        """Return the one that has been here longest."""
        return self._in_order[0]

    def add(self, consumer: Consumer) -> None:
        """Let a consumer take part."""
        self._tally.count += 1
        self._in_order.append(consumer)
        self._by_priority.setdefault(consumer.priority, deque()).append(consumer)
        self._by_priority = dict(sorted(self._by_priority.items(), reverse=True))

    def remove(self, consumer: Consumer) -> None:
        """Let a consumer go."""
        self._tally.count -= 1
        self._in_order.remove(consumer)
        group = self._by_priority[consumer.priority]
        group.remove(consumer)
        if not group:
            del self._by_priority[consumer.priority]

    def next_with_room(self) -> Consumer | None:
        """Return the consumer that gets the next message, or ``None`` where all are full."""
        for group in self._by_priority.values():
            for _ in range(len(group)):
                consumer = group[0]
                group.rotate(-1)
                if consumer.has_room():
                    return consumer
        return None
