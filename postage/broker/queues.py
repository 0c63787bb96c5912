"""Queues: messages in order, consumers in turn, and what becomes of a message that nobody takes.

A queue works at once: :meth:`Queue.publish` ends with the message in a consumer's hands where one has room for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from postage.broker.messages import Message, QueuedMessage

if TYPE_CHECKING:
    from postage.broker.clock import Clock, Timer
    from postage.broker.rules import Rules


class Consumer(Protocol):
    """What a queue knows of those who consume from it."""

    exclusive: bool
    priority: int

    def has_room(self) -> bool:
        """Tell whether it would take one more message now."""

    def deliver(self, entry: QueuedMessage) -> None:
        """Take a message over."""

    def queue_deleted(self) -> None:
        """Hear that the queue has gone."""


class Owner(Protocol):
    """What a queue asks of its virtual host."""

    clock: Clock
    rules: Rules

    def dead_letter(self, queue: Queue, message: Message, reason: str) -> None:
        """Send a dead message on to where the queue's arguments say."""

    def delete_queue(self, queue: Queue) -> int:
        """Take the queue out."""
        ...


def _position(entry: QueuedMessage) -> int:
    return entry.position


_BEFORE_ALL: Final = -(2**62)


class ReadyMessages:
    """Messages that wait, the highest priority first, each priority in the order of positions."""

    def __init__(self, max_priority: int = 0) -> None:
        self._levels: list[deque[QueuedMessage]] = [deque() for _ in range(max_priority + 1)]
        self._highest = max_priority
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
        return self._levels[min(entry.message.header.priority, self._highest)]

    def append(self, entry: QueuedMessage) -> None:
        """Put a new message at the end."""
        self._level(entry).append(entry)
        self.count += 1
        self.bytes += len(entry.message.body)

    def pop(self) -> QueuedMessage:
        """Remove and return the message that is next."""
        entry = next(level for level in reversed(self._levels) if level).popleft()
        self.count -= 1
        self.bytes -= len(entry.message.body)
        return entry

    def pop_least(self) -> QueuedMessage:
        """Remove and return what a limit costs first: the oldest of the lowest priority."""
        entry = next(level for level in self._levels if level).popleft()
        self.count -= 1
        self.bytes -= len(entry.message.body)
        return entry

    def heads(self) -> list[QueuedMessage]:
        """Return the next message of each priority."""
        return [level[0] for level in self._levels if level]

    def restore(self, entries: Iterable[QueuedMessage]) -> None:
        """Put messages back at their positions."""
        returning: dict[int, list[QueuedMessage]] = {}
        for entry in sorted(entries, key=_position):
            returning.setdefault(id(self._level(entry)), []).append(entry)
            self.count += 1
            self.bytes += len(entry.message.body)
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

    def drop_expired(self, now: float) -> Iterator[QueuedMessage]:
        """Remove and yield the dead messages at the head of each priority."""
        for level in self._levels:
            while level and (expires := level[0].expires_at) is not None and expires <= now:
                entry = level.popleft()
                self.count -= 1
                self.bytes -= len(entry.message.body)
                yield entry

    def clear(self) -> list[QueuedMessage]:
        """Remove and return everything."""
        everything = list(self)
        for level in self._levels:
            level.clear()
        self.count = self.bytes = 0
        return everything


class Turns:
    """Consumers, asked in turn: those of the highest priority first, and among equals the one that waited longest."""

    def __init__(self) -> None:
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
        self._in_order.append(consumer)
        self._by_priority.setdefault(consumer.priority, deque()).append(consumer)
        self._by_priority = dict(sorted(self._by_priority.items(), reverse=True))

    def remove(self, consumer: Consumer) -> None:
        """Let a consumer go."""
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


class Queue:
    """A queue.

    :ivar owner: the connection that may use it alone, or ``None``
    :ivar single_active: True where only the first of its consumers gets messages
    :ivar unacknowledged: how many messages are with consumers
    """

    def __init__(
        self,
        name: str,
        host: Owner,
        durable: bool = False,
        owner: object | None = None,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.durable = durable
        self.owner = owner
        self.auto_delete = auto_delete
        self.arguments = arguments or {}
        self.ready = ReadyMessages(self.arguments.get('x-max-priority') or 0)
        self.consumers = Turns()
        self.unacknowledged = 0
        self.deleted = False
        self._host = host
        self._clock = host.clock
        self._next_position = 0
        self._next_returned = _BEFORE_ALL
        self._have_lifetimes = False
        self._expiry_timer: Timer | None = None
        self._unused_timer: Timer | None = None
        self._read_arguments()
        self.touch()

    def _read_arguments(self) -> None:
        get = self.arguments.get
        self.is_quorum = get('x-queue-type') == 'quorum'
        self._message_ttl: int | None = get('x-message-ttl')
        self._max_length: int | None = get('x-max-length')
        self._max_bytes: int | None = get('x-max-length-bytes')
        self._is_limited = self._max_length is not None or self._max_bytes is not None
        self._overflow: str = get('x-overflow', 'drop-head')
        self._expires: int | None = get('x-expires')
        self.single_active = bool(get('x-single-active-consumer'))
        limit = get('x-delivery-limit', self._host.rules.delivery_limit) if self.is_quorum else None
        self._delivery_limit: int | None = limit if isinstance(limit, int) and limit >= 0 else None

    @property
    def dead_letter_exchange(self) -> str | None:
        """The name of the exchange that gets its dead messages, if any does."""
        name = self.arguments.get('x-dead-letter-exchange')
        return name if isinstance(name, str) else None

    @property
    def will_dead_letter(self) -> bool:
        """True where the next message, of some priority, goes to a dead-letter exchange when its time is over."""
        expiring = any(entry.expires_at is not None for entry in self.ready.heads())
        return expiring and self.dead_letter_exchange is not None

    def consumer_timeout(self, usual: float | None) -> float | None:
        """Return the seconds within which a delivery has to be acknowledged, ``None`` for ever.

        See https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout

        :param usual: the limit of queues that set none by ``x-consumer-timeout``
        """
        if not (self.is_quorum or self._host.rules.classic_queues_time_out):
            return None
        milliseconds = self.arguments.get('x-consumer-timeout')
        return usual if milliseconds is None else milliseconds / 1000

    # --- messages in ---

    def publish(self, message: Message, lifetime: int | None = None) -> bool:
        """Take a message over and hand it to a consumer that has room.

        :param lifetime: the message's own expiration in milliseconds
        :returns: False where the queue is full and refuses (``x-overflow``)
        """
        if self._is_limited and self._overflow != 'drop-head' and self._is_full(len(message.body)):
            if self._overflow == 'reject-publish-dlx':
                self._host.dead_letter(self, message, 'maxlen')
            return False
        entry = QueuedMessage(message, self._next_position, self._expiry(lifetime))
        self._next_position += 1
        # A lifetime of 0 means "at once or never", so a consumer that has room comes before the clock.
        consumer = None if self.ready else self._next_consumer()
        if consumer is not None:
            self.unacknowledged += 1
            consumer.deliver(entry)
            return True
        self.ready.append(entry)
        if self._is_limited:
            self._drop_surplus()
        if entry.expires_at is not None:
            self._have_lifetimes = True
            self._watch_lifetimes()
        return True

    def _expiry(self, lifetime: int | None) -> float | None:
        limits = [limit for limit in (lifetime, self._message_ttl) if limit is not None]
        return self._clock.now() + min(limits) / 1000 if limits else None

    def _is_full(self, size: int) -> bool:
        ready = self.ready
        return (self._max_length is not None and ready.count >= self._max_length) or (
            self._max_bytes is not None and ready.bytes + size > self._max_bytes
        )

    def _drop_surplus(self) -> None:
        ready = self.ready
        while ready and (
            (self._max_length is not None and ready.count > self._max_length)
            or (self._max_bytes is not None and ready.bytes > self._max_bytes)
        ):
            self._host.dead_letter(self, ready.pop_least().message, 'maxlen')

    # --- messages out ---

    def dispatch(self) -> None:
        """Hand out messages as long as a consumer has room."""
        if self._have_lifetimes:
            self._drop_expired()
        while self.ready:
            consumer = self._next_consumer()
            if consumer is None:
                break
            self.unacknowledged += 1
            consumer.deliver(self.ready.pop())
            if self._have_lifetimes:
                self._drop_expired()
        if self._have_lifetimes:
            self._watch_lifetimes()

    def _next_consumer(self) -> Consumer | None:
        if self.single_active and self.consumers:
            active = self.consumers.first()
            return active if active.has_room() else None
        return self.consumers.next_with_room()

    def get(self) -> QueuedMessage | None:
        """Return the next message for a ``basic.get``, or ``None``; it then counts as unacknowledged."""
        self.touch()
        self._drop_expired()
        entry = self.ready.pop() if self.ready else None
        if entry is not None:
            self.unacknowledged += 1
        self._watch_lifetimes()
        return entry

    # --- messages back ---

    def settle(self, count: int) -> None:
        """Forget messages that were acknowledged, or sent without asking for that."""
        self.unacknowledged -= count

    def requeue(self, entries: Iterable[QueuedMessage], counts: bool = True) -> None:
        """Put messages back where they were, marked as redelivered.

        :param counts: False where that is no failed attempt, which the delivery limit of a quorum queue would count
        """
        back = []
        for entry in entries:
            self.unacknowledged -= 1
            entry.redelivered = True
            entry.returns += counts
            if self._delivery_limit is not None and entry.returns > self._delivery_limit:
                self._host.dead_letter(self, entry.message, 'delivery_limit')
            else:
                back.append(entry)
        if self.is_quorum:
            self._move(back)
        self.ready.restore(back)
        if self._is_limited and self._overflow == 'drop-head':
            self._drop_surplus()
        self.dispatch()

    def _move(self, returned: list[QueuedMessage]) -> None:
        """Give returned messages of a quorum queue new positions.

        RabbitMQ 3.10 puts them before all others where deliveries are limited, and at the end where they are not.
        """
        for entry in returned:
            if self._delivery_limit is None:
                entry.position = self._next_position
                self._next_position += 1
            else:
                entry.position = self._next_returned
                self._next_returned += 1

    def reject(self, entries: Iterable[QueuedMessage]) -> None:
        """Give messages up; with a dead-letter exchange they go there."""
        for entry in entries:
            self.unacknowledged -= 1
            self._host.dead_letter(self, entry.message, 'rejected')

    def purge(self) -> int:
        """Drop all that is ready and return how many there were."""
        return len(self.ready.clear())

    # --- consumers ---

    def add_consumer(self, consumer: Consumer) -> None:
        """Let a consumer take part, from the next message on."""
        self.consumers.add(consumer)
        self.touch()

    def remove_consumer(self, consumer: Consumer) -> None:
        """Let a consumer go; with the last one an auto-delete queue goes as well."""
        self.consumers.remove(consumer)
        self.touch()
        if self.auto_delete and not self.consumers and not self.deleted:
            self._host.delete_queue(self)
        else:
            self.dispatch()

    def delete(self) -> int:
        """Become a queue that is no more, tell its consumers, and return how many messages went with it."""
        self.deleted = True
        for timer in (self._expiry_timer, self._unused_timer):
            if timer is not None:
                timer.cancel()
        for consumer in list(self.consumers):
            consumer.queue_deleted()
        return len(self.ready.clear())

    # --- time ---

    def touch(self) -> None:
        """Count as used now: ``x-expires`` begins anew, as long as there is no consumer."""
        if self._expires is None or self.deleted:
            return
        if self._unused_timer is not None:
            self._unused_timer.cancel()
        self._unused_timer = None
        if not self.consumers:
            self._unused_timer = self._clock.call_later(self._expires / 1000, self._unused)

    def _unused(self) -> None:
        self._host.delete_queue(self)

    def _drop_expired(self) -> None:
        """Give up the dead messages at the head; those behind a living one stay, as in RabbitMQ."""
        for entry in self.ready.drop_expired(self._clock.now()):
            self._host.dead_letter(self, entry.message, 'expired')

    def _watch_lifetimes(self) -> None:
        """Come back when the first of the messages at the head dies."""
        dying = [entry.expires_at for entry in self.ready.heads() if entry.expires_at is not None]
        if not dying or self.deleted:
            return
        first, timer = min(dying), self._expiry_timer
        if timer is not None:
            if timer.due <= first:
                return
            timer.cancel()
        self._expiry_timer = self._clock.call_later(first - self._clock.now(), self._lifetime_over)

    def _lifetime_over(self) -> None:
        self._expiry_timer = None
        self._drop_expired()
        self._watch_lifetimes()
