"""Queues: messages in order, consumers in turn, and what becomes of a message that no consumer takes.

A queue works at once: :meth:`Queue.publish` ends with the message in a consumer's hands where one has room for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from postage.broker.clock import Clock, Timer
from postage.broker.limits import Tally
from postage.broker.messages import Message, QueuedMessage
from postage.broker.ready import Consumer, ReadyMessages, Turns
from postage.broker.retries import DelayedRetries
from postage.broker.rules import Rules


class Owner(Protocol):
    """What a queue asks of its virtual host."""

    clock: Clock
    rules: Rules
    consumers: Tally

    def dead_letter(self, queue: Queue, message: Message, reason: str, failures: int = 0) -> None:
        """Send a dead message on to where the queue's arguments say.

        :param failures: how often it was delivered in vain
        """

    def delete_queue(self, queue: Queue) -> int:
        """Take the queue out."""
        ...


_HIGHEST_OF_QUORUM: Final = 31
_USUAL_OF_QUORUM: Final = 4
_LOW: Final = 0.8  # of a limit: where a quorum queue that has refused messages takes them again


class Queue:
    """A queue.

    :ivar owner: the connection that may use it alone, or ``None``
    :ivar single_active: True where only the first of its consumers gets messages
    :ivar unacknowledged: how many messages are with consumers
    :ivar unsettled_gets: how many of these were handed out by ``basic.get``
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
        self.consumers = Turns(host.consumers)
        self.unacknowledged = 0
        self.unsettled_gets = 0
        self.deleted = False
        self._host = host
        self._rules = host.rules
        self._clock = host.clock
        self._next_position = 0
        self._is_refusing = False
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
        self._delivery_limit = _limit_of_deliveries(self.arguments, self._rules) if self.is_quorum else None
        self.ready = _room_for_quorum(self._rules) if self.is_quorum else ReadyMessages(get('x-max-priority') or 0)
        self._retries: DelayedRetries | None = None
        if self.is_quorum and self._rules.delayed_retries:
            self._retries = DelayedRetries(self._clock, self.arguments, self._retry_now)

    @property
    def consumer_count(self) -> int:
        """How many consumers a declaration tells of.

        To a quorum queue each unsettled get is one, and those that wait behind a single active consumer are none.
        """
        count = len(self.consumers)
        if not self.is_quorum:
            return count
        return (min(count, 1) if self.single_active else count) + self.unsettled_gets

    @property
    def type(self) -> str:
        """``quorum`` or ``classic``."""
        return 'quorum' if self.is_quorum else 'classic'

    @property
    def held_back(self) -> int:
        """How many messages wait for a delayed retry; they are neither ready nor unacknowledged."""
        return 0 if self._retries is None else len(self._retries)

    @property
    def dead_letter_exchange(self) -> str | None:
        """The name of the exchange that gets its dead messages, if any does."""
        name = self.arguments.get('x-dead-letter-exchange')
        return name if isinstance(name, str) else None

    @property
    def will_dead_letter(self) -> bool:
        """True where the next message goes to a dead-letter exchange when its time is over."""
        head = self.ready.head()
        return head is not None and head.expires_at is not None and self.dead_letter_exchange is not None

    def consumer_timeout(self, usual: float | None) -> float | None:
        """Return the seconds within which a delivery has to be acknowledged, ``None`` for ever.

        See https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout

        :param usual: the limit of queues that set none by ``x-consumer-timeout``
        """
        if not self._rules.timeout_cancels:
            return usual
        if not self.is_quorum:
            return None
        milliseconds = self.arguments.get('x-consumer-timeout')
        return milliseconds / 1000 if isinstance(milliseconds, int) and milliseconds > 0 else usual

    def delivery_headers(self, entry: QueuedMessage, by_get: bool) -> dict[str, int]:
        """Return the headers that tell how often a message came before; of quorum queues only.

        :param by_get: whether it is handed out by ``basic.get``
        """
        acquired = entry.acquired or entry.message.failures
        if not self.is_quorum or (not acquired and not (by_get and self._rules.counts_first_get)):
            return {}
        counts = {}
        if self._rules.counts_acquired:
            counts['x-acquired-count'] = acquired
        if entry.returns or not self._rules.counts_acquired:
            counts['x-delivery-count'] = entry.returns
        return counts

    # --- messages in ---

    def publish(self, message: Message, lifetime: int | None = None) -> bool:
        """Take a message over and hand it to a consumer that has room.

        :param lifetime: the message's own expiration in milliseconds
        :returns: False where the queue is full and refuses (``x-overflow``)
        """
        if self._is_limited and self._overflow != 'drop-head' and self._refuses(len(message.body)):
            if self._overflow == 'reject-publish-dlx':
                self._host.dead_letter(self, message, 'maxlen', message.failures)
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
        self._have_lifetimes = self._have_lifetimes or entry.expires_at is not None
        has_dropped = self._is_limited and self._overflow == 'drop-head' and self._drop_surplus()
        # RabbitMQ looks for what has expired only where there may be a new head. It thinks of a queue without
        # priorities there, in which the new message is the last.
        if self._have_lifetimes and (has_dropped or self.ready.count == 1 or self.is_quorum):
            self._drop_expired()
            self._watch_lifetimes()
        return True

    def _expiry(self, lifetime: int | None) -> float | None:
        limits = [limit for limit in (lifetime, self._message_ttl) if limit is not None]
        return self._clock.now() + min(limits) / 1000 if limits else None

    def _refuses(self, size: int) -> bool:
        """Tell whether there is no place for one more message.

        A quorum queue takes one too many before it refuses, and more again only when it is well below its limit.
        """
        if not self.is_quorum:
            return self._is_over(1, size)
        if self._is_refusing:
            lengths = ((self._max_length, self.ready.count), (self._max_bytes, self.ready.bytes))
            self._is_refusing = any(limit is not None and used > int(limit * _LOW) for limit, used in lengths)
        else:
            self._is_refusing = self._is_over()
        return self._is_refusing

    def _is_over(self, more: int = 0, size: int = 0) -> bool:
        ready = self.ready
        return (self._max_length is not None and ready.count + more > self._max_length) or (
            self._max_bytes is not None and ready.bytes + size > self._max_bytes
        )

    def _drop_surplus(self) -> bool:
        """Give up what is too much, and tell whether that was anything."""
        before = self.ready.count
        while self.ready and self._is_over():
            self._bury(self.ready.pop(), 'maxlen')
        return self.ready.count < before

    # --- messages out ---

    def dispatch(self) -> None:
        """Hand out messages as long as a consumer has room."""
        if self._have_lifetimes:
            self._drop_what_is_due()
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
        self._drop_what_is_due()
        entry = self.ready.pop() if self.ready else None
        if entry is not None:
            self.unacknowledged += 1
            # What has died behind it is gone before it is counted how many are left.
            self._drop_expired()
        self._watch_lifetimes()
        return entry

    # --- messages back ---

    def settle(self, count: int) -> None:
        """Forget messages that were acknowledged, or sent without asking for that."""
        self.unacknowledged -= count

    def requeue(self, entries: Iterable[QueuedMessage], counts: bool = True, by_client: bool = True) -> None:
        """Put messages back where they were, marked as redelivered.

        :param counts: False where that is no failed attempt, which the delivery limit of a quorum queue would count
        :param by_client: False where they return because their channel has ended
        """
        back = []
        for entry in entries:
            self.unacknowledged -= 1
            entry.redelivered = True
            entry.acquired += 1
            entry.returns += counts
            if self._delivery_limit is not None and entry.returns > self._delivery_limit:
                self._bury(entry, 'delivery_limit')
            elif self._retries is None or not self._retries.hold_back(entry, counts):
                back.append(entry)
        self._put_back(back, by_client)

    def _put_back(self, back: list[QueuedMessage], by_client: bool = True) -> None:
        # One that went straight to a consumer was not looked at before.
        self._have_lifetimes = self._have_lifetimes or any(entry.expires_at is not None for entry in back)
        if not self.is_quorum:
            self.ready.restore(back)
        for entry in back if self.is_quorum else ():
            if self._rules.returns_to_front or self._delivery_limit is not None or not by_client:
                self.ready.put_first(entry)
            else:
                self.ready.append(entry)
        if self._is_limited and self._overflow == 'drop-head':
            self._drop_surplus()
        if self._have_lifetimes:
            self._drop_expired()
        self.dispatch()

    def _retry_now(self, entry: QueuedMessage) -> None:
        if not self.deleted:
            self._put_back([entry])

    def reject(self, entry: QueuedMessage, counts: bool = True) -> None:
        """Give a message up; with a dead-letter exchange it goes there.

        :param counts: whether that was a failed attempt
        """
        self.unacknowledged -= 1
        entry.returns += counts
        self._bury(entry, 'rejected')

    def _bury(self, entry: QueuedMessage, reason: str) -> None:
        self._host.dead_letter(self, entry.message, reason, entry.returns)

    def purge(self) -> int:
        """Drop all that is ready, or held back for a retry, and return how many there were."""
        held_back = self._retries.clear() if self._retries is not None else 0
        return len(self.ready.clear()) + held_back

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
        return self.purge()

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
        now = self._clock.now()
        while (head := self.ready.head()) is not None and head.expires_at is not None and head.expires_at <= now:
            self._bury(self.ready.pop(), 'expired')

    def _drop_what_is_due(self) -> None:
        """Do what the clock would do in a moment.

        A classic queue looks no further than that: the head of a priority that came in between is not watched.
        """
        timer = self._expiry_timer
        if self.is_quorum or (timer is not None and timer.due <= self._clock.now()):
            self._drop_expired()

    def _watch_lifetimes(self) -> None:
        """Come back when the message at the head dies."""
        head, timer = self.ready.head(), self._expiry_timer
        if head is None or head.expires_at is None or self.deleted:
            return
        first = head.expires_at
        if timer is not None:
            if timer.due <= first:
                return
            timer.cancel()
        self._expiry_timer = self._clock.call_later(first - self._clock.now(), self._lifetime_over)

    def _lifetime_over(self) -> None:
        self._expiry_timer = None
        self._drop_expired()
        self._watch_lifetimes()


# What rules say of quorum queues


def _limit_of_deliveries(arguments: Mapping[str, Any], rules: Rules) -> int | None:
    limit = arguments.get('x-delivery-limit')
    if not isinstance(limit, int):
        return rules.delivery_limit
    return None if limit < 0 and rules.negative_limit_is_none else limit


def _room_for_quorum(rules: Rules) -> ReadyMessages:
    return ReadyMessages(_HIGHEST_OF_QUORUM, _USUAL_OF_QUORUM) if rules.quorum_priorities else ReadyMessages()
