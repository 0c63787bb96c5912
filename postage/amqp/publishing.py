"""The one place where messages leave: a window of unconfirmed messages, sent again when the connection is lost.

Publisher confirms: https://www.rabbitmq.com/docs/confirms. A message counts as taken over by the broker when that
has said so, in the background; until then it is kept here. Up to a bound nobody waits for that.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from postage import errors
from postage.amqp import wire
from postage.amqp.channel import Channel, Steps
from postage.amqp.waiting import this_thread
from postage.amqp.wire import Content

if TYPE_CHECKING:
    from postage.amqp.connection import Connection

WINDOW_MESSAGES = 4096  # accepted and not yet confirmed, all producers of a connection together
WINDOW_BYTES = 32 * 1024 * 1024  # of bodies; one message is always let in
FAILURES_KEPT = 1000  # a producer that nobody asks must not remember its failures for ever


class Ledger:
    """What one producer has under way, and what went wrong since it was last asked.

    Guarded by the lock of the publishing channel.

    :param connection: what it is published on
    :param failures_kept: how many failures are remembered for whoever asks
    """

    def __init__(self, connection: Connection, failures_kept: int = FAILURES_KEPT) -> None:
        self.connection = connection
        self.unsettled = 0
        self.failures: deque[errors.PublishError] = deque(maxlen=failures_kept)


class Receipt:
    """What becomes of one published message, on all the exchanges it was sent to. Safe from any thread.

    :ivar message_id: the ``message_id`` property under which it travels, every time it is sent
    """

    __slots__ = ('_callbacks', '_confirms', '_error', '_event', '_is_urgent', '_ledger', '_unsettled', 'message_id')

    def __init__(self, message_id: str, copies: int, confirms: bool, ledger: Ledger) -> None:
        self.message_id = message_id
        self._unsettled = copies
        self._confirms = confirms
        self._ledger = ledger
        self._error: errors.PublishError | None = None
        self._event: threading.Event | None = None
        self._is_urgent = False
        self._callbacks: list[Callable[[], None]] | None = None

    @property
    def confirmed(self) -> bool:
        """Whether the broker has taken over every copy. Always false where ``confirms`` is off."""
        return self._confirms and self.settled and self._error is None

    @property
    def settled(self) -> bool:
        """Whether it is known what became of it: confirmed, or failed for good."""
        return self._unsettled == 0

    @property
    def error(self) -> errors.PublishError | None:
        """What went wrong, if something did."""
        return self._error

    def wait(self, timeout: float | None = 30.0) -> None:
        """Block until the broker has confirmed every copy; with ``confirms`` off, until all are on their way.

        :param timeout: seconds; ``None`` for as long as it takes
        :raises errors.Nacked: the broker refused it
        :raises errors.Unroutable: it was mandatory, and no queue is bound for its routing key
        :raises errors.PublishTimeout: neither happened in time; it may still be confirmed later
        """
        if self._unsettled:
            with _settling:
                if self._event is None:
                    self._event = threading.Event()
                if not self._unsettled:
                    self._event.set()
            with self._ledger.connection.awaited():
                in_time = self._event.wait(timeout)
            if not in_time:
                raise errors.PublishTimeout(f'message {self.message_id} was not confirmed within {timeout:g} s')
        if self._error is not None:
            if self._error in self._ledger.failures:
                self._ledger.failures.remove(self._error)
            raise self._error

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once it is settled: at once if it is, else on the thread that reads the connection.

        Nothing may block there.
        """
        self.when_settled(callback, is_urgent=True)

    def when_settled(self, callback: Callable[[], None], is_urgent: bool) -> None:
        """The same. Where it is not urgent, its confirm may be read a moment later, together with others."""
        with _settling:
            if self._unsettled:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                if is_urgent and not self._is_urgent:
                    self._is_urgent = True
                    self._ledger.connection.urgent += 1
                return
        callback()

    def _settle(self, error: errors.PublishError | None) -> None:
        """One copy is done with. On the thread that reads."""
        if error is not None and self._error is None:
            self._error = error
        with _settling:
            self._unsettled -= 1
            if self._unsettled:
                return
            event, callbacks = self._event, self._callbacks
            if self._is_urgent:
                self._ledger.connection.urgent -= 1
        if event is not None:
            event.set()
        for callback in callbacks or ():
            try:
                callback()
            except Exception:  # it would cost the connection
                self._ledger.connection.logger.exception('a callback of %r raised', self)

    def _disown(self) -> None:
        """In a forked child: what becomes of it is the parent's affair."""
        self._ledger.unsettled = 0
        self._unsettled = 0
        self._callbacks = None
        self._error = errors.PublishError(f"message {self.message_id} is the parent process's, which alone knows")

    def __repr__(self) -> str:
        state = (
            'failed' if self._error else 'confirmed' if self.confirmed else 'settled' if self.settled else 'under way'
        )
        return f'<Receipt {self.message_id} {state}>'


_settling = threading.Lock()


class Outgoing:
    """One message to one exchange, kept until it is settled."""

    __slots__ = ('arguments', 'body', 'exchange', 'properties', 'receipt', 'resend', 'returned', 'routing_key')

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        properties: bytes,
        body: bytes,
        receipt: Receipt,
        resend: bool = True,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.arguments = wire.publish_arguments(exchange, routing_key, mandatory)
        self.properties = properties
        self.body = body
        self.receipt = receipt
        self.resend = resend  # whether it may be sent again after a loss
        self.returned = ''

    def __str__(self) -> str:
        return f'message {self.receipt.message_id} to exchange {self.exchange!r} with key {self.routing_key!r}'


class PublishingChannel(Channel):
    """The channel through which messages leave, shared by all producers of a connection.

    :param confirms: whether the broker confirms what it takes over. Without, a message is done with once it is sent.
    """

    def __init__(self, connection: Connection, confirms: bool) -> None:
        super().__init__(connection)
        self.confirms = confirms
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pending: deque[Outgoing] = deque()  # accepted, not on the wire
        self._unconfirmed: dict[int, Outgoing] = {}  # on the wire, by delivery tag, oldest first
        self._tag = 0
        self._oldest = 1  # no tag below it is unconfirmed
        self._sent: deque[Outgoing] = deque()  # without confirms: on the wire, and to be told so
        self._in_flight = 0
        self._bytes = 0
        self._waiting = 0  # threads that wait for a change
        self._confirmed: list[Outgoing] = []  # by what is being read
        self._suspects = 0  # see _on_lost
        self._settled: list[Future[Any]] = []

    # From any thread

    def publish(self, outgoing: Outgoing, timeout: float) -> None:
        """Accept a message. Blocks only where the window is full, and then for ``timeout`` seconds at most.

        :raises errors.PublishTimeout: the window stayed full
        :raises errors.BrokerError: the connection is closed or cannot be made again
        """
        size = len(outgoing.body)
        with self._lock:
            if self.connection.error is not None:
                raise self.connection.error
            if not self.is_wanted:
                raise errors.Closed(f'the connection to {self.connection.settings} is closed')
            if not self._has_room(size):
                with self.connection.awaited():
                    self._wait_for_room(size, timeout)
            self._in_flight += 1
            self._bytes += size
            outgoing.receipt._ledger.unsettled += 1
            self._pending.append(outgoing)
        self.connection.request_flush(self)

    def flush(self, ledger: Ledger, timeout: float | None) -> None:
        """Wait until all that a producer published is settled. Blocks.

        :raises errors.PublishError: what went wrong since it was last told; ``failures`` has all of it
        :raises errors.PublishTimeout: not everything was settled in time
        """
        with self.connection.awaited(), self._lock:
            self._waiting += 1
            done = self._changed.wait_for(lambda: not ledger.unsettled, timeout)
            self._waiting -= 1
            failures = list(ledger.failures)
            ledger.failures.clear()
            unsettled = ledger.unsettled
        if not done:
            failures.append(errors.PublishTimeout(f'{unsettled} messages were not confirmed within {timeout:g} s'))
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise type(failures[0])(f'{len(failures)} messages failed, the first: {failures[0]}', failures)

    def flush_everything(self, timeout: float) -> bool:
        """Wait until nothing of any producer is unsettled. Blocks. Returns whether that is so in time."""
        with self.connection.awaited(), self._lock:
            self._waiting += 1
            done = self._changed.wait_for(lambda: not self._in_flight, timeout)
            self._waiting -= 1
        if not done:
            self.connection.logger.error('%d messages were not confirmed within %g s', self._in_flight, timeout)
        return done

    @property
    def is_awaited(self) -> bool:  # type: ignore[override]  # here it depends
        """Whether the window has no more than half of its room left; who waits for one message says so himself."""
        return self._in_flight > WINDOW_MESSAGES // 2 or self._bytes > WINDOW_BYTES // 2

    def _has_room(self, size: int) -> bool:
        if self._in_flight < WINDOW_MESSAGES and (self._bytes + size <= WINDOW_BYTES or not self._in_flight):
            return True
        # What settles messages must not wait for it.
        return this_thread.is_reading

    def _wait_for_room(self, size: int, timeout: float) -> None:
        self._waiting += 1
        try:
            room = self._changed.wait_for(lambda: self._has_room(size) or not self.is_wanted, timeout)
        finally:
            self._waiting -= 1
        if not self.is_wanted:
            raise errors.Closed(f'the connection to {self.connection.settings} is closed')
        if not room:
            raise errors.PublishTimeout(
                f'{self._in_flight} messages have been waiting for the broker at {self.connection.settings} for '
                f'{timeout:g} s; this one was not accepted'
            )

    # On the I/O thread, or the one that reads in its place

    def _set_up(self) -> Steps:
        if self.confirms:
            yield self.operate('confirm_delivery', 'turn on confirms', ack_nack_callback=self.on_confirm())
        self._tag = 0
        self._oldest = 1

    def drain(self, frames: list[bytes]) -> None:
        channel, frame_max = self.number, self.connection.frame_max
        pending, unconfirmed, sent = self._pending, self._unconfirmed, self._sent
        while pending:
            if self._suspects and unconfirmed:
                break
            if self.confirms:
                # In this order a Ctrl-C in between loses nothing: see _on_lost.
                self._tag += 1
                unconfirmed[self._tag] = outgoing = pending[0]
                pending.popleft()
            else:
                outgoing = pending.popleft()
                sent.append(outgoing)
            frames.append(
                wire.publish_frames(channel, outgoing.arguments, outgoing.properties, outgoing.body, frame_max)
            )

    def drained(self) -> None:
        if self.confirms:
            return
        sent: list[Outgoing] = []
        with contextlib.suppress(IndexError):  # another thread may be at it as well
            while self._sent:
                sent.append(self._sent.popleft())
        if sent:
            self._settle(sent)

    def confirmed(self, delivery_tag: int, multiple: bool, positive: bool) -> None:
        # Other threads add to the unconfirmed meanwhile: nothing here iterates over them.
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
                self._fail(outgoing, errors.Unroutable(f'no queue took {outgoing}: {outgoing.returned}'))
            else:
                self._fail(outgoing, errors.Nacked(f'the broker refused {outgoing}'))
            if self._suspects and positive:
                self._suspects -= 1
                self.connection.request_flush(self)

    def end_of_read(self) -> None:
        """Settle all that was confirmed in one go."""
        if self._confirmed:
            confirmed, self._confirmed = self._confirmed, []
            self._settle(confirmed)

    def returned(self, content: Content) -> None:
        exchange, key = content.exchange.decode(), content.routing_key.decode()
        for outgoing in list(self._unconfirmed.values()):
            if (
                self._may_be(outgoing, content.properties)
                and outgoing.routing_key == key
                and outgoing.exchange == exchange
            ):
                outgoing.returned = f'{content.tag_or_text.decode()} ({content.reply_code})'
                return
        self.connection.logger.warning('a message to exchange %r with key %r came back unroutable', exchange, key)

    @staticmethod
    def _may_be(outgoing: Outgoing, properties: bytes) -> bool:
        """Whether these are a message's properties; where pika has read them they have lost something on the way."""
        if outgoing.properties == properties:
            return True
        try:
            message_id = wire.decode_properties(properties).message_id
        except errors.DecodingError:
            return False
        return bool(message_id) and message_id == wire.decode_properties(outgoing.properties).message_id

    def _on_lost(self, error: errors.BrokerError) -> None:
        """Have everything that was not confirmed sent again.

        Where the broker closed the channel, or the connection, because of one of the messages, its words do not say
        which. So they are then sent one by one: if it happens again, the one on its way was the reason, and fails.
        """
        self.end_of_read()
        guilty = isinstance(error, errors.OperationRefused)
        unconfirmed = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        if unconfirmed and self._pending and unconfirmed[-1] is self._pending[0]:
            self._pending.popleft()
        if guilty and self._suspects and len(unconfirmed) == 1:
            self._suspects -= 1
            outgoing = unconfirmed.pop()
            refused = errors.Nacked(f'the broker refused {outgoing}: {error}')
            refused.__cause__ = error
            self._fail(outgoing, refused)
        elif guilty and unconfirmed:
            self._suspects = len(unconfirmed)
        elif guilty:
            self.connection.logger.error('%s; messages published without confirms may be lost', error)
        for outgoing in unconfirmed:
            outgoing.returned = ''
            if not outgoing.resend:
                self._fail(outgoing, errors.PublishError(f'{outgoing} is not sent again: {error}'))
        unconfirmed = [outgoing for outgoing in unconfirmed if outgoing.resend]
        self._pending.extendleft(reversed(unconfirmed))
        if unconfirmed:
            self.connection.logger.warning('%d unconfirmed messages will be sent again', len(unconfirmed))

    def _reopen(self) -> None:
        # An exchange that somebody deleted is the usual reason (404): declare ours again before going on.
        self.connection.drive(self._declare_and_open_steps()).add_done_callback(self._on_reopened)

    def _declare_and_open_steps(self) -> Steps:
        yield from self.connection.replay_exchanges()
        yield from self.ensure_open_steps()

    def _on_refused(self, error: errors.PostageError) -> None:
        self.give_up(error)

    def _settle(self, done: list[Outgoing]) -> None:
        """These are taken over. Their receipts say so before anybody who waits for all of them goes on."""
        left = iter(done)
        try:
            for outgoing in left:
                outgoing.receipt._settle(None)
        finally:
            for outgoing in left:  # after a Ctrl-C
                outgoing.receipt._settle(None)
            self._let_go(done)

    def _fail(self, outgoing: Outgoing, error: errors.PublishError) -> None:
        """This one failed for good."""
        self.connection.logger.error('%s', error)
        with self._lock:
            outgoing.receipt._ledger.failures.append(error)
        outgoing.receipt._settle(error)
        self._let_go([outgoing])

    def _let_go(self, done: list[Outgoing]) -> None:
        """These are settled: there is room for others."""
        with self._lock:
            self._in_flight -= len(done)
            for outgoing in done:
                self._bytes -= len(outgoing.body)
                outgoing.receipt._ledger.unsettled -= 1
            if self._waiting:
                self._changed.notify_all()
        self._tell_if_settled()

    def when_settled(self) -> Future[Any]:
        settled: Future[Any] = Future()
        if self._in_flight:
            self._settled.append(settled)
            self._tell_if_settled()  # where the last one was settled meanwhile
        else:
            settled.set_result(None)
        return settled

    def _tell_if_settled(self) -> None:
        if self._settled and not self._in_flight:
            waiting, self._settled = self._settled, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def give_up(self, error: errors.PostageError) -> None:
        with self._lock:
            self.is_wanted = False
            self._changed.notify_all()
        self.end_of_read()
        lost = [*self._unconfirmed.values(), *self._pending]
        self._unconfirmed.clear()
        self._pending.clear()
        for outgoing in lost:
            self._fail(outgoing, errors.PublishTimeout(f'{outgoing} was not confirmed: {error}'))

    def after_fork(self) -> bool:
        super().after_fork()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        for outgoing in (*self._unconfirmed.values(), *self._pending):
            outgoing.receipt._disown()
        self._pending.clear()
        self._unconfirmed.clear()
        self._sent.clear()
        self._confirmed.clear()
        self._in_flight = self._bytes = self._waiting = self._suspects = 0
        self._settled.clear()
        return True


def new_message_id() -> str:
    """An id that no other message has, of this process or any other. Cheap; any thread."""
    return f'{_prefix}-{next(_numbers):x}'


def _start_over() -> None:
    """At import and in a forked child: nothing here may be the parent's."""
    global _prefix, _settling
    _prefix = os.urandom(8).hex()
    _settling = threading.Lock()


_prefix = ''
_numbers = itertools.count(1)
_start_over()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_start_over)
