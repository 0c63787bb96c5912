"""The one place where messages leave: a window of unconfirmed messages, sent again when the connection is lost.

Publisher confirms: https://www.rabbitmq.com/docs/confirms. A message counts as taken over by the broker when that
has said so, in the background; until then it is kept here. Up to a bound no thread waits for that.

One lock, that of the window, guards everything that is counted here: messages, their bytes, what each producer has
under way, and what became of each message. The thread that sends takes it inside of the link's lock, so it is never
held by a thread that is about to send. Callbacks and events are told after it has been given back.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from postage import errors
from postage.amqp import frames as codec
from postage.amqp.channel import Channel, Host, never_called
from postage.amqp.cutter import Content
from postage.amqp.durations import BOUNDS, Durations
from postage.amqp.forks import Stage, call_in_child
from postage.amqp.steps import Steps, done
from postage.amqp.threads import this_thread
from postage.printable import shown, shown_half_built

logger = logging.getLogger('postage')

WINDOW_MESSAGES = 4096  # accepted and not yet confirmed, all producers of a connection together
WINDOW_BYTES = 32 * 1024 * 1024  # of bodies; one message is always let in
FAILURES_KEPT = 1000  # a producer that is never asked must not remember its failures for ever
SAFE_PROPERTIES = codec.FRAME_MIN - codec.HEADER_OVERHEAD  # bytes that fit into a frame on every connection


class Ledger:
    """What one producer has under way, and what went wrong since it was last asked. Guarded by the window's lock.

    :param channel: what it is published on
    :param failures_kept: how many failures are remembered
    :param has_replies: whether these are replies
    """

    def __init__(
        self, channel: PublishingChannel, failures_kept: int = FAILURES_KEPT, has_replies: bool = False
    ) -> None:
        self.channel = channel
        self.has_replies = has_replies
        self.unsettled = 0
        self.failures: deque[errors.PublishError] = deque(maxlen=failures_kept)


class Receipt:
    """What becomes of one published message, on all the exchanges it was sent to. Safe from any thread.

    :ivar message_id: the ``message_id`` property under which it travels, every time it is sent
    :ivar error: what went wrong, if something did
    """

    __slots__ = ('_callbacks', '_confirms', '_event', '_is_urgent', 'error', 'ledger', 'message_id', 'unsettled')

    def __init__(self, message_id: str, copies: int, confirms: bool, ledger: Ledger) -> None:
        self.message_id = message_id
        self.ledger = ledger
        self.unsettled = copies  # guarded by the window's lock, as all that follows
        self.error: errors.PublishError | None = None
        self._confirms = confirms
        self._event: threading.Event | None = None
        self._is_urgent = False
        self._callbacks: list[Callable[[Receipt], object]] | None = None

    @property
    def confirmed(self) -> bool:
        """Whether the broker has taken over every copy. Always false where ``confirms`` is off."""
        return self._confirms and not self.unsettled and self.error is None

    @property
    def settled(self) -> bool:
        """Whether it is known what became of it: confirmed, or failed for good."""
        return not self.unsettled

    def wait(self, timeout: float | None = 30.0) -> None:
        """Block until the broker has confirmed every copy; with ``confirms`` off, until all are on their way.

        :param timeout: seconds; ``None`` for as long as it takes
        :raises errors.Nacked: the broker refused it
        :raises errors.Unroutable: it was mandatory, and no queue is bound for its routing key
        :raises errors.PublishTimeout: neither happened in time; it may still be confirmed later
        """
        channel = self.ledger.channel
        if self.unsettled:
            with channel.lock:
                if self._event is None:
                    self._event = threading.Event()
                if not self.unsettled:
                    self._event.set()
            with channel.host.awaited():
                in_time = self._event.wait(timeout)
            if not in_time:
                raise errors.PublishTimeout(f'message {self.message_id} was not confirmed within {timeout:g} s')
        if self.error is not None:
            self.note_told()
            raise self.error.again()

    def note_told(self) -> None:
        """What went wrong has been told, or dealt with: no flush tells it any more."""
        # Another thread, or a flush, may have been told before.
        with self.ledger.channel.lock, contextlib.suppress(ValueError):
            if self.error is not None:
                self.ledger.failures.remove(self.error)

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once it is settled: at once if it is, else on the thread that reads the connection.

        Nothing may block there.
        """
        self.when_settled(lambda _: callback(), is_urgent=True)

    def when_settled(self, callback: Callable[[Receipt], object], is_urgent: bool) -> None:
        """The same, with the receipt itself. Where it is not urgent, its confirm may be read a moment later, together
        with others."""
        channel = self.ledger.channel
        with channel.lock:
            if self.unsettled:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                if is_urgent and not self._is_urgent:
                    self._is_urgent = True
                    channel.urgent += 1
                    channel.is_awaited = True
                return
        callback(self)

    def _tell(self) -> None:
        """It has been settled: tell what waits for it. Without the lock; no callback is added once it is settled."""
        if self._is_urgent:
            self._is_urgent = False
            with self.ledger.channel.lock:
                self.ledger.channel.urgent -= 1
        if self._event is not None:
            self._event.set()
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception:  # it would cost the connection
                logger.exception('a callback of %r raised', self)

    def _belongs_to_parent(self) -> None:
        """In a forked child: what becomes of it is the parent's affair."""
        self.ledger.unsettled = self.unsettled = 0
        self._callbacks = None
        self.error = errors.PublishError(f"message {self.message_id} is the parent process's, which alone knows")

    @shown_half_built
    def __repr__(self) -> str:
        state = 'failed' if self.error else 'under way' if self.unsettled else 'confirmed' if self._confirms else 'sent'
        return f'<Receipt {self.message_id} {state}>'


class Outgoing:
    """One message to one exchange, kept until it is settled.

    :param receipt: told what becomes of it; ``None`` where no receipt was given
    :param resend: whether it may be sent again after a loss
    :ivar at: when it was made, on the monotonic clock
    :ivar returned: why it came back, if it did
    :ivar failure: why it failed for good, if it did
    """

    __slots__ = (
        'arguments',
        'at',
        'body',
        'exchange',
        'failure',
        'properties',
        'receipt',
        'resend',
        'returned',
        'routing_key',
    )

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        properties: bytes,
        body: bytes,
        receipt: Receipt | None,
        resend: bool = True,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.arguments = codec.publish_arguments(exchange, routing_key, mandatory)
        self.properties = properties
        self.body = body
        self.receipt = receipt
        self.resend = resend
        self.at = time.monotonic()
        self.returned = ''
        self.failure: errors.PublishError | None = None

    def __str__(self) -> str:
        what = f'message {self.receipt.message_id}' if self.receipt is not None else 'a message'
        return f'{what} to exchange {self.exchange!r} with key {self.routing_key!r}'


def _are_same(sent: bytes, returned: bytes) -> bool:
    """Whether a message that came back is one that was sent with these properties, to the same address."""
    if sent == returned:
        return True
    try:  # RabbitMQ 4.0 and later sort the headers
        ours, theirs = codec.decode_properties(sent), codec.decode_properties(returned)
    except errors.DecodingError:
        return False
    return bool(ours == theirs) or (ours.message_id is not None and ours.message_id == theirs.message_id)


class PublishingChannel(Channel):
    """The channel through which messages leave, shared by all producers of a connection.

    :param confirms: whether the broker confirms what it takes over. Without, a message is done with once it is sent.
    :ivar durations: what messages took until they were settled
    :ivar lock: of the window
    :ivar in_flight: how many messages are in it: accepted, and not settled. Any thread may look
    :ivar urgent: how many messages there are whose confirm is waited for
    """

    ALWAYS_AWAITED = False  # whether what comes for it is wanted at once, whatever the window holds

    def __init__(self, host: Host, confirms: bool) -> None:
        super().__init__(host)
        self.confirms = confirms
        self.durations = Durations()
        self._lost_by: errors.BrokerError = errors.ConnectionLost('it was never opened')
        self._tag, self._oldest = 0, 1  # no tag below the oldest is unconfirmed
        self._empty_window()

    def _empty_window(self) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._waiting = 0  # threads that wait for a change
        self.is_awaited = self.ALWAYS_AWAITED
        self.urgent = 0
        self._suspects = 0  # see _on_lost
        self.in_flight = self._bytes = 0
        self._pending: deque[Outgoing] = deque()  # accepted, not on the wire
        self._unconfirmed: dict[int, Outgoing] = {}  # on the wire, by delivery tag, oldest first
        self._sent: deque[Outgoing] = deque()  # without confirms: on the wire, and to be settled
        self._confirmed: deque[Outgoing] = deque()  # by what is being read, and to be settled at its end
        self._failed: deque[Outgoing] = deque()  # for good, and to be settled
        self._settled: list[Future[Any]] = []

    # From any thread

    def publish(self, outgoing: Outgoing, timeout: float) -> None:
        """Accept a message. Blocks only where the window is full, and then for ``timeout`` seconds at most.

        :raises errors.EncodingError: its headers are larger than a frame
        :raises errors.PublishTimeout: the window stayed full
        :raises errors.BrokerError: the connection is closed or cannot be made again
        """
        size = len(outgoing.body)
        if len(outgoing.properties) > SAFE_PROPERTIES:
            link = self.host.link
            _check_fits(outgoing, link.frame_max if link is not None else self.frame_max)
        while True:
            with self.lock:
                standing = self.host.standing
                if not self.is_wanted or standing.error is not None:
                    raise standing.closed() if standing.error is None else standing.error.again()
                half_full = self.in_flight >= WINDOW_MESSAGES // 2 or self._bytes + size > WINDOW_BYTES // 2
                # What settles messages must not wait for it.
                if not half_full or self._has_room(size) or this_thread.is_reading:
                    self.in_flight += 1
                    self._bytes += size
                    if half_full:
                        self.is_awaited = True
                    if outgoing.receipt is not None:
                        outgoing.receipt.ledger.unsettled += 1
                    self._pending.append(outgoing)
                    break
            timeout = self._wait_for_room(size, timeout)
        self.host.outbox.submit(self)

    def _has_room(self, size: int) -> bool:
        return self.in_flight < WINDOW_MESSAGES and (self._bytes + size <= WINDOW_BYTES or not self.in_flight)

    def _wait_for_room(self, size: int, timeout: float) -> float:
        """Returns what is left of the time; another thread may have taken the room by then."""
        deadline = time.monotonic() + timeout
        # Not under the lock: what the thread has gathered is sent first, which takes the link's lock.
        with self.host.awaited(), self.lock:
            if not self._wait(lambda: self._has_room(size) or not self.is_wanted, timeout):
                raise errors.PublishTimeout(
                    f'{self.in_flight} messages have been waiting for the broker for {timeout:g} s; '
                    'this one was not accepted'
                )
        return max(0.0, deadline - time.monotonic())

    def withdraw(self, outgoing: Outgoing) -> bool:
        """Do not send what has not been sent yet. Any thread. Returns whether that was so."""
        with self.lock:
            try:
                self._pending.remove(outgoing)
            except ValueError:
                return False  # the usual case: it has been sent
            self.in_flight -= 1
            self._bytes -= len(outgoing.body)
            if outgoing.receipt is not None:
                outgoing.receipt.ledger.unsettled -= 1
                outgoing.receipt.unsettled -= 1
        return True

    def flush(self, ledger: Ledger, timeout: float | None) -> None:
        """Wait until all that a producer published is settled. Blocks.

        :raises errors.PublishError: what went wrong since it was last told; ``failures`` has all of it
        :raises errors.PublishTimeout: not everything was settled in time
        """
        with self.host.awaited(), self.lock:
            in_time = self._wait(lambda: not ledger.unsettled, timeout)
            failures = list(ledger.failures)
            ledger.failures.clear()
            unsettled = ledger.unsettled
        if not in_time:
            failures.append(errors.PublishTimeout(f'{unsettled} messages were not confirmed within {timeout:g} s'))
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise type(failures[0])(f'{len(failures)} messages failed, the first: {failures[0]}', failures)

    def is_empty(self, timeout: float) -> bool:
        """Wait until nothing of any producer is unsettled. Blocks. Returns whether that is so in time."""
        with self.host.awaited(), self.lock:
            return self._wait(lambda: not self.in_flight, timeout)

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until something holds. With the lock held, which is given back meanwhile."""
        self._waiting += 1
        try:
            return self._changed.wait_for(condition, timeout)
        finally:
            self._waiting -= 1

    # Sending: on the thread that sends, which holds the link's lock

    def drain(self, frames: list[bytes]) -> None:
        channel, frame_max = self.number, self.frame_max
        with self.lock:
            pending, unconfirmed = self._pending, self._unconfirmed
            while pending:
                if self._suspects and unconfirmed:
                    break
                outgoing = pending[0]
                frames.append(
                    codec.publish_frames(channel, outgoing.arguments, outgoing.properties, outgoing.body, frame_max)
                )
                # Without a call from here on: it is behind calls that Python looks for Ctrl-C, and so finds no message
                # half way from one place to the next. So it is in all that follows.
                if self.confirms:
                    self._tag += 1
                    unconfirmed[self._tag] = outgoing
                else:
                    self._sent += (outgoing,)
                del pending[0]

    def drained(self) -> None:
        # Two threads that have sent may come here together: each message is taken under the lock, and settled once.
        if self._sent:
            self._settle(self._sent)

    # Confirms: on the thread that reads

    def confirmed(self, delivery_tag: int, multiple: bool, positive: bool) -> None:
        may_send = False
        with self.lock:
            tags: Iterable[int] = (delivery_tag,)
            if multiple:
                end = min(delivery_tag, self._tag) + 1
                tags, self._oldest = range(self._oldest, end), end
            for tag in tags:
                outgoing = self._unconfirmed.get(tag)
                if outgoing is None:
                    continue
                if not positive:
                    outgoing.failure = errors.Nacked(f'the broker refused {outgoing}')
                elif outgoing.returned:
                    outgoing.failure = errors.Unroutable(f'no queue took {outgoing}: {outgoing.returned}')
                if outgoing.failure is None:
                    self._confirmed += (outgoing,)
                else:
                    self._failed += (outgoing,)
                del self._unconfirmed[tag]
                if self._suspects and positive:
                    self._suspects -= 1
                    may_send = True
        if may_send:
            self.host.outbox.submit(self)  # not under the lock, for it may send
        if self._failed:
            self._fail()

    def end_of_read(self) -> None:
        """Settle all that was confirmed in one go."""
        if self._confirmed:
            self._settle(self._confirmed)

    def returned(self, content: Content) -> None:
        exchange, key = content.exchange.decode('utf-8', 'replace'), content.routing_key.decode('utf-8', 'replace')
        with self.lock:
            unconfirmed = list(self._unconfirmed.values())
        outgoing = _sent_as(unconfirmed, exchange, key, content)
        if outgoing is not None:
            # Its confirm comes after this (https://www.rabbitmq.com/docs/confirms), and the same thread reads both.
            outgoing.returned = f'{content.tag_or_text.decode("utf-8", "replace")} ({content.reply_code})'
            return
        text = 'a message to exchange %s with key %s came back unroutable'
        self._sparingly.log(logging.WARNING, text, shown(exchange), shown(key))

    # Settling

    def _settle(self, known: deque[Outgoing], told: deque[Receipt] | None = None) -> None:
        """It is known what became of these; settle them, so that none is left when it ends.

        Their receipts say so before a thread that waits for all of them goes on.

        :param told: receipts that are settled and have to tell it
        """
        told, now, durations = deque() if told is None else told, time.monotonic(), self.durations
        buckets = durations.buckets
        try:
            with self.lock:
                while known:
                    outgoing = known[0]
                    took, size = now - outgoing.at, len(outgoing.body)
                    bucket = bisect_left(BOUNDS, took)
                    del known[0]
                    self.in_flight -= 1
                    self._bytes -= size
                    buckets[bucket] += 1
                    durations.seconds += took
                    receipt = outgoing.receipt
                    if receipt is not None:
                        if outgoing.failure is not None:
                            receipt.ledger.failures += (outgoing.failure,)
                            receipt.error = receipt.error or outgoing.failure
                        receipt.ledger.unsettled -= 1
                        receipt.unsettled -= 1
                        if not receipt.unsettled and (receipt._callbacks is not None or receipt._event is not None):
                            told += (receipt,)
            while told:
                told.popleft()._tell()
            if self._waiting or self._settled or self.is_awaited is not self.ALWAYS_AWAITED:
                self._after_settling()
        except (KeyboardInterrupt, SystemExit):
            self._settle(known, told)  # the others, and tell what waits for them
            raise

    def _fail(self) -> None:
        """Settle those that failed for good, and say so in the log."""
        for outgoing in list(self._failed):
            logger.error('%s', outgoing.failure)
        self._settle(self._failed)

    def _after_settling(self) -> None:
        """There is room for others, and perhaps nothing left."""
        with self.lock:
            if self._waiting:
                self._changed.notify_all()
            self.is_awaited = (
                self.ALWAYS_AWAITED
                or self.urgent > 0
                or self.in_flight > WINDOW_MESSAGES // 2
                or self._bytes > WINDOW_BYTES // 2
            )
            if self.in_flight or not self._settled:
                return
            waiting, self._settled = self._settled, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def when_settled(self) -> Future[Any]:
        with self.lock:
            if not self.in_flight:
                return done()
            settled: Future[Any] = Future()
            self._settled.append(settled)
            return settled

    # Opening and losing: on the I/O thread

    def _set_up(self) -> Steps:
        if self.confirms:
            yield self.operate('confirm_delivery', 'turn on confirms', ack_nack_callback=never_called)
        # Without the lock: the channel is not open yet, so no thread sends on it, and there is nothing to confirm.
        self._tag = 0
        self._oldest = 1

    def _on_lost(self, error: errors.BrokerError) -> None:
        """Have everything that was not confirmed sent again.

        Where the broker closed the channel, or the connection, because of one of the messages, its words do not say
        which. So they are then sent one by one: if it happens again, the one on its way was the reason, and fails.
        """
        self.end_of_read()
        self._lost_by = error
        guilty = isinstance(error, errors.OperationRefused)
        with self.lock:
            unconfirmed = list(self._unconfirmed.values())
            self._unconfirmed.clear()
            if guilty and self._suspects and len(unconfirmed) == 1:
                self._suspects -= 1
                outgoing = unconfirmed.pop()
                outgoing.failure = errors.Nacked(f'the broker refused {outgoing}: {error}')
                outgoing.failure.__cause__ = error
                self._failed.append(outgoing)
            elif guilty and unconfirmed:
                self._suspects = len(unconfirmed)
            again = [outgoing for outgoing in unconfirmed if outgoing.resend]
            for outgoing in unconfirmed:
                outgoing.returned = ''
                if not outgoing.resend:
                    outgoing.failure = errors.PublishError(f'{outgoing} is not sent again: {error}')
                    self._failed.append(outgoing)
            self._pending.extendleft(reversed(again))
        if guilty and not (self.confirms or self.ALWAYS_AWAITED):
            text = '%s; messages published without confirms may be lost'
            self._sparingly.log(logging.ERROR, text, error)
        if self._failed:
            self._fail()
        if again:
            logger.warning('%d unconfirmed messages will be sent again', len(again))

    def _reopen_steps(self) -> Steps:
        # An exchange that was deleted is the usual reason (404): declare ours again before going on.
        yield from self.host.restore_exchanges(self._lost_by)
        yield from self.ensure_open_steps()

    def on_refused(self, error: errors.PostageError) -> None:
        self.give_up(error)

    def give_up(self, error: errors.PostageError) -> None:
        self.end_of_read()
        with self.lock:
            # Under the lock: a thread that drains meanwhile has either taken a message out before, or finds none.
            self.is_wanted = False
            self._changed.notify_all()
            lost = [*self._unconfirmed.values(), *self._pending]
            self._unconfirmed.clear()
            self._pending.clear()
            for outgoing in lost:
                outgoing.failure = errors.PublishTimeout(f'{outgoing} was not confirmed: {error}')
            self._failed.extend(lost)
        self._fail()

    def after_fork(self) -> bool:
        super().after_fork()
        for outgoing in (*self._unconfirmed.values(), *self._pending):
            if outgoing.receipt is not None:
                outgoing.receipt._belongs_to_parent()
        self._empty_window()
        return True


def oldest(channel: PublishingChannel) -> float | None:
    """Since when the oldest message that is not settled has been so, on the monotonic clock; ``None`` for none."""
    with channel.lock:
        waiting = next(iter(channel._unconfirmed.values()), None) or next(iter(channel._pending), None)
        return None if waiting is None else waiting.at


def _sent_as(unconfirmed: Iterable[Outgoing], exchange: str, routing_key: str, content: Content) -> Outgoing | None:
    """Return the oldest message that was sent as one which came back."""
    for outgoing in unconfirmed:
        is_so = outgoing.routing_key == routing_key and outgoing.exchange == exchange and outgoing.body == content.body
        if is_so and _are_same(outgoing.properties, content.properties):
            return outgoing
    return None


def _check_fits(outgoing: Outgoing, frame_max: int) -> None:
    """See that a content header fits into one frame: AMQP has no way to split it (section 4.2.6)."""
    limit = frame_max - codec.HEADER_OVERHEAD
    if len(outgoing.properties) > limit:
        raise errors.EncodingError(
            f'the properties and headers of {outgoing} are {len(outgoing.properties)} bytes, and a frame on this '
            f'connection holds {limit}'
        )


class MessageIds:
    """Gives each message an id that no other one has, of this process or any other."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """At first, and in a forked child, whose ids must not be those of its parent."""
        prefix = os.urandom(8).hex()
        # All of it runs in C, in one step: no two threads get the same, and on the way of each message it is no call.
        self.new: Callable[[], str] = map(f'{prefix}-%x'.__mod__, itertools.count(1)).__next__


ids = MessageIds()
call_in_child(Stage.LOCKS, ids.start_over)
