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
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from postage import errors
from postage.amqp import frames as codec
from postage.amqp.channel import Channel, Host
from postage.amqp.cutter import Content
from postage.amqp.forks import Stage, call_in_child
from postage.amqp.steps import Steps, done, when_done
from postage.amqp.threads import this_thread
from postage.printable import shown, shown_half_built

logger = logging.getLogger('postage')

WINDOW_MESSAGES = 4096  # accepted and not yet confirmed, all producers of a connection together
WINDOW_BYTES = 32 * 1024 * 1024  # of bodies; one message is always let in
FAILURES_KEPT = 1000  # a producer that is never asked must not remember its failures for ever
HEADER_OVERHEAD = 22  # bytes of a content header beside the properties, its frame included
SAFE_PROPERTIES = codec.FRAME_MIN - HEADER_OVERHEAD  # bytes that fit into a frame on every connection


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
        self._callbacks: list[Callable[[], None]] | None = None

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
            with channel.lock, contextlib.suppress(ValueError):  # another thread, or a flush, has been told of it
                self.ledger.failures.remove(self.error)
            raise self.error

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once it is settled: at once if it is, else on the thread that reads the connection.

        Nothing may block there.
        """
        self.when_settled(callback, is_urgent=True)

    def when_settled(self, callback: Callable[[], None], is_urgent: bool) -> None:
        """The same. Where it is not urgent, its confirm may be read a moment later, together with others."""
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
        callback()

    def _tell(self) -> None:
        """It has been settled: tell those who wait. Without the lock; no callback is added once it is settled."""
        if self._is_urgent:
            self._is_urgent = False
            with self.ledger.channel.lock:
                self.ledger.channel.urgent -= 1
        if self._event is not None:
            self._event.set()
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback()
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
    """

    __slots__ = ('arguments', 'body', 'exchange', 'properties', 'receipt', 'resend', 'returned', 'routing_key')

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
        self.returned = ''

    def __str__(self) -> str:
        what = f'message {self.receipt.message_id}' if self.receipt is not None else 'a message'
        return f'{what} to exchange {self.exchange!r} with key {self.routing_key!r}'


class PublishingChannel(Channel):
    """The channel through which messages leave, shared by all producers of a connection.

    :param confirms: whether the broker confirms what it takes over. Without, a message is done with once it is sent.
    :ivar lock: of the window
    :ivar urgent: how many messages there are whose confirm is waited for
    """

    ALWAYS_AWAITED = False  # whether what comes for it is wanted at once, whatever the window holds

    def __init__(self, host: Host, confirms: bool) -> None:
        super().__init__(host)
        self.confirms = confirms
        self.is_awaited = self.ALWAYS_AWAITED
        self.urgent = 0
        self._lost_by: errors.BrokerError = errors.ConnectionLost('it was never opened')
        self._tag = 0
        self._oldest = 1  # no tag below it is unconfirmed
        self._suspects = 0  # see _on_lost
        self._empty_window()

    def _empty_window(self) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._waiting = 0  # threads that wait for a change
        self._in_flight = self._bytes = 0
        self._pending: deque[Outgoing] = deque()  # accepted, not on the wire
        self._unconfirmed: dict[int, Outgoing] = {}  # on the wire, by delivery tag, oldest first
        self._sent: list[Outgoing] = []  # without confirms: on the wire, and to be told so
        self._confirmed: list[Outgoing] = []  # by what is being read; for the thread that reads alone
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
        with self.lock:
            if not self.is_wanted or self.host.error is not None:
                raise self._closed()
            # The first half has room for every message that is not huge. What settles messages must not wait for it.
            is_accepted = self._in_flight < WINDOW_MESSAGES // 2 and self._bytes + size < WINDOW_BYTES // 2
            if is_accepted:
                self._in_flight += 1
                self._bytes += size
                if outgoing.receipt is not None:
                    outgoing.receipt.ledger.unsettled += 1
                self._pending.append(outgoing)
            elif self._has_room(size) or this_thread.is_reading:
                is_accepted = True
                self._accept(outgoing, size)
        if not is_accepted:
            self._accept_when_there_is_room(outgoing, size, timeout)
        self.host.outbox.submit(self)

    def _accept(self, outgoing: Outgoing, size: int) -> None:
        """Take a message into the window. With the lock held."""
        self._in_flight += 1
        self._bytes += size
        if self._in_flight > WINDOW_MESSAGES // 2 or self._bytes > WINDOW_BYTES // 2:
            self.is_awaited = True
        if outgoing.receipt is not None:
            outgoing.receipt.ledger.unsettled += 1
        self._pending.append(outgoing)

    def _has_room(self, size: int) -> bool:
        return self._in_flight < WINDOW_MESSAGES and (self._bytes + size <= WINDOW_BYTES or not self._in_flight)

    def _accept_when_there_is_room(self, outgoing: Outgoing, size: int, timeout: float) -> None:
        # Not under the lock: what the thread has gathered is sent first, which takes the link's lock.
        with self.host.awaited(), self.lock:
            room = self._wait(lambda: self._has_room(size) or not self.is_wanted, timeout)
            if not self.is_wanted:
                raise self._closed()
            if not room:
                raise errors.PublishTimeout(
                    f'{self._in_flight} messages have been waiting for the broker for {timeout:g} s; '
                    'this one was not accepted'
                )
            self._accept(outgoing, size)

    def _closed(self) -> errors.BrokerError:
        return self.host.error or errors.Closed('the connection is closed')

    def withdraw(self, outgoing: Outgoing) -> bool:
        """Do not send what has not been sent yet. Any thread. Returns whether that was so."""
        with self.lock:
            try:
                self._pending.remove(outgoing)
            except ValueError:
                return False  # the usual case: it has been sent
            self._let_go(outgoing)
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

    def flush_everything(self, timeout: float) -> bool:
        """Wait until nothing of any producer is unsettled. Blocks. Returns whether that is so in time."""
        with self.host.awaited(), self.lock:
            in_time = self._wait(lambda: not self._in_flight, timeout)
        if not in_time:
            logger.error('%d messages were not confirmed within %g s', self._in_flight, timeout)
        return in_time

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
                if self.confirms:
                    # In this order a Ctrl-C in between loses nothing: see _on_lost.
                    self._tag += 1
                    unconfirmed[self._tag] = outgoing
                else:
                    self._sent.append(outgoing)
                pending.popleft()
                frames.append(
                    codec.publish_frames(channel, outgoing.arguments, outgoing.properties, outgoing.body, frame_max)
                )

    def drained(self) -> None:
        if not self.confirms:
            with self.lock:
                sent, self._sent = self._sent, []
            if sent:
                self._settle(sent)

    # Confirms: on the thread that reads

    def confirmed(self, delivery_tag: int, multiple: bool, positive: bool) -> None:
        failed: list[tuple[Outgoing, errors.PublishError]] = []
        may_send = False
        with self.lock:
            tags: Iterable[int] = (delivery_tag,)
            if multiple:
                end = min(delivery_tag, self._tag) + 1
                tags, self._oldest = range(self._oldest, end), end
            for tag in tags:
                outgoing = self._unconfirmed.pop(tag, None)
                if outgoing is None:
                    continue
                if positive and not outgoing.returned:
                    self._confirmed.append(outgoing)
                elif positive:
                    failed.append((outgoing, errors.Unroutable(f'no queue took {outgoing}: {outgoing.returned}')))
                else:
                    failed.append((outgoing, errors.Nacked(f'the broker refused {outgoing}')))
                if self._suspects and positive:
                    self._suspects -= 1
                    may_send = True
        if may_send:
            self.host.outbox.submit(self)  # not under the lock, for it may send
        if failed:
            self._fail(failed)

    def end_of_read(self) -> None:
        """Settle all that was confirmed in one go."""
        if self._confirmed:
            confirmed, self._confirmed = self._confirmed, []
            self._settle(confirmed)

    def returned(self, content: Content) -> None:
        exchange, key = content.exchange.decode('utf-8', 'replace'), content.routing_key.decode('utf-8', 'replace')
        with self.lock:
            for outgoing in self._unconfirmed.values():
                if (
                    outgoing.properties == content.properties
                    and outgoing.routing_key == key
                    and outgoing.exchange == exchange
                ):
                    outgoing.returned = f'{content.tag_or_text.decode("utf-8", "replace")} ({content.reply_code})'
                    return
        text = 'a message to exchange %s with key %s came back unroutable'
        self._sparingly.log(logging.WARNING, text, shown(exchange), shown(key))

    # Settling

    def _settle(self, taken_over: list[Outgoing]) -> None:
        """These are taken over. Their receipts say so before a thread that waits for all of them goes on."""
        told: list[Receipt] = []
        left = iter(taken_over)
        try:
            with self.lock:
                for outgoing in left:
                    self._in_flight -= 1
                    self._bytes -= len(outgoing.body)
                    receipt = outgoing.receipt
                    if receipt is not None:
                        receipt.ledger.unsettled -= 1
                        receipt.unsettled -= 1
                        if not receipt.unsettled and (receipt._callbacks is not None or receipt._event is not None):
                            told.append(receipt)
        except BaseException:  # Ctrl-C, which must leave none of them unsettled
            self._settle(list(left))
            raise
        finally:
            for receipt in told:
                receipt._tell()
            if self._waiting or self._settled or self.is_awaited is not self.ALWAYS_AWAITED:
                self._after_settling()

    def _let_go(self, outgoing: Outgoing) -> None:
        """A message that is settled without being confirmed. With the lock held."""
        self._in_flight -= 1
        self._bytes -= len(outgoing.body)
        if outgoing.receipt is not None:
            outgoing.receipt.ledger.unsettled -= 1
            outgoing.receipt.unsettled -= 1

    def _fail(self, failed: list[tuple[Outgoing, errors.PublishError]]) -> None:
        """These failed for good."""
        told: list[Receipt] = []
        with self.lock:
            for outgoing, error in failed:
                receipt = outgoing.receipt
                if receipt is not None:
                    receipt.ledger.failures.append(error)
                    receipt.error = receipt.error or error
                self._let_go(outgoing)
                if receipt is not None and not receipt.unsettled:
                    told.append(receipt)
        for _, error in failed:
            logger.error('%s', error)
        for receipt in told:
            receipt._tell()
        self._after_settling()

    def _after_settling(self) -> None:
        """There is room for others, and perhaps nothing left."""
        with self.lock:
            if self._waiting:
                self._changed.notify_all()
            self.is_awaited = (
                self.ALWAYS_AWAITED
                or self.urgent > 0
                or self._in_flight > WINDOW_MESSAGES // 2
                or self._bytes > WINDOW_BYTES // 2
            )
            if self._in_flight or not self._settled:
                return
            waiting, self._settled = self._settled, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def when_settled(self) -> Future[Any]:
        with self.lock:
            if not self._in_flight:
                return done()
            settled: Future[Any] = Future()
            self._settled.append(settled)
            return settled

    # Opening and losing: on the I/O thread

    def _set_up(self) -> Steps:
        if self.confirms:
            yield self.operate('confirm_delivery', 'turn on confirms', ack_nack_callback=_nothing)
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
        failed: list[tuple[Outgoing, errors.PublishError]] = []
        with self.lock:
            unconfirmed = list(self._unconfirmed.values())
            self._unconfirmed.clear()
            if unconfirmed and self._pending and unconfirmed[-1] is self._pending[0]:
                self._pending.popleft()  # Ctrl-C came between the two steps of drain()
            if guilty and self._suspects and len(unconfirmed) == 1:
                self._suspects -= 1
                outgoing = unconfirmed.pop()
                refused = errors.Nacked(f'the broker refused {outgoing}: {error}')
                refused.__cause__ = error
                failed.append((outgoing, refused))
            elif guilty and unconfirmed:
                self._suspects = len(unconfirmed)
            again = [outgoing for outgoing in unconfirmed if outgoing.resend]
            for outgoing in unconfirmed:
                outgoing.returned = ''
                if not outgoing.resend:
                    failed.append((outgoing, errors.PublishError(f'{outgoing} is not sent again: {error}')))
            self._pending.extendleft(reversed(again))
        if guilty and not (self.confirms or self.ALWAYS_AWAITED):
            text = '%s; messages published without confirms may be lost'
            self._sparingly.log(logging.ERROR, text, error)
        if failed:
            self._fail(failed)
        if again:
            logger.warning('%d unconfirmed messages will be sent again', len(again))

    def _reopen(self) -> None:
        when_done(self._declare_and_open_steps(), self.on_reopened)

    def _declare_and_open_steps(self) -> Steps:
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
        self._fail([(outgoing, errors.PublishTimeout(f'{outgoing} was not confirmed: {error}')) for outgoing in lost])

    def after_fork(self) -> bool:
        super().after_fork()
        for outgoing in (*self._unconfirmed.values(), *self._pending):
            if outgoing.receipt is not None:
                outgoing.receipt._belongs_to_parent()
        self.urgent = self._suspects = 0
        self.is_awaited = self.ALWAYS_AWAITED
        self._empty_window()
        return True


def _check_fits(outgoing: Outgoing, frame_max: int) -> None:
    """See that a content header fits into one frame: AMQP has no way to split it (section 4.2.6)."""
    limit = frame_max - HEADER_OVERHEAD
    if len(outgoing.properties) > limit:
        raise errors.EncodingError(
            f'the properties and headers of {outgoing} are {len(outgoing.properties)} bytes, and a frame on this '
            f'connection holds {limit}'
        )


def _nothing(*_: object) -> None:
    """What pika is to call with each confirm or delivery: the cutter brings them, and it is never called."""


def new_message_id() -> str:
    """An id that no other message has, of this process or any other. Cheap; any thread."""
    return f'{_prefix}-{next(_numbers):x}'


def _start_over() -> None:
    """At import and in a forked child: nothing here may be the parent's."""
    global _prefix
    _prefix = os.urandom(8).hex()


_prefix = ''
_numbers = itertools.count(1)
_start_over()
call_in_child(Stage.LOCKS, _start_over)
