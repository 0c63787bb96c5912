"""The caller's side of RPC: requests under way, their attempts, and the replies that are matched to them.

A call is sent up to ``1 + max_retry`` times, under one correlation id and one message id; the first reply wins. All
calls of a connection share one reply address. An address over which an attempt has timed out takes no new calls, so
that a late reply without a correlation id cannot be taken for the answer to another call.

What :class:`RpcClient` does may happen on any thread: the caller's, the one that reads the connection, and the I/O
thread, which keeps the time. One lock guards it; futures are done, and their callbacks called, outside of it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

from postage import errors
from postage.amqp import wire
from postage.amqp.connection import Connection
from postage.amqp.consuming import ConsumingChannel, ReplyChannel
from postage.amqp.topology import Topology
from postage.amqp.waiting import ReadingAlarm, wait_until_done
from postage.amqp.wire import Content, decode_answerable
from postage.messaging.messages import MessageResult, MessageResultError, MessageResultException, result_from_body

logger = logging.getLogger('postage')


class RpcFuture(Future[MessageResult]):
    """The future of an RPC's result message, which a microthread may yield. It may be cancelled.

    Its callbacks run on the thread that reads the connection, where nothing may block.

    :ivar exchange: where the request went
    :ivar routing_key: with which key
    """

    exchange = routing_key = ''

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def result(self, timeout: float | None = None) -> MessageResult:
        """Wait for the result message. Blocks; any thread, which reads the connection meanwhile where that helps.

        :param timeout: seconds; by default as long as it takes, which the RPC's own time-out bounds
        :raises concurrent.futures.TimeoutError: it did not come in time
        """
        if not self.done():
            wait_until_done(self, self._connection, timeout)
        return super().result(0)


class Answer:
    """The result message for the one thread that waits for it and does nothing else meanwhile: less than a future.

    :param alarm: what that thread waits by
    """

    __slots__ = ('_alarm', '_error', '_is_done', '_result')

    def __init__(self, alarm: ReadingAlarm) -> None:
        self._alarm = alarm
        self._is_done = False
        self._result: Any = None
        self._error: BaseException | None = None

    def cancelled(self) -> bool:
        """Never: only the thread that waits knows of it."""
        return False

    def set_result(self, result: MessageResult) -> None:
        """The result has come. From any thread."""
        self._result = result
        self._is_done = True
        self._alarm.ring()

    def set_exception(self, error: BaseException) -> None:
        """The result will not come. From any thread."""
        self._error = error
        self._is_done = True
        self._alarm.ring()

    def wait(self, connection: Connection) -> MessageResult:
        """Wait for it, reading the connection meanwhile. In the thread that the alarm is of."""
        while not self._is_done:
            self._alarm.wait_for((connection,), None)
        if self._error is not None:
            raise self._error
        result: MessageResult = self._result
        return result


@dataclass(eq=False, slots=True)
class Call:
    """One RPC under way.

    :ivar arguments: of ``basic.publish``, as bytes
    :ivar future: of the result message; never carries an exception unless the connection is closed
    :ivar further_properties: by the names of ``wire.encode_properties``, where it has any
    :ivar timeout: seconds for each attempt
    :ivar max_retry: how often it is sent again
    :ivar gives_up_at: when the last attempt will be over, on the monotonic clock
    :ivar sent: how often it was sent to its present address
    """

    name: str
    arguments: bytes
    future: RpcFuture | Answer
    content_type: str
    delivery_mode: int
    further_properties: dict[str, Any] | None
    body: bytes
    decode: Callable[[bytes], Any]
    timeout: float
    max_retry: int
    queue_per_call: bool
    correlation_id: str
    gives_up_at: float
    attempt: int = 0
    sent: int = 0
    channel: ReplyChannel | None = None

    def frames(self, channel: int, reply_to: str, frame_max: int) -> bytes:
        """The request's frames. The broker drops it once the last attempt is over."""
        self.sent += 1
        usual, own_id = (self.content_type, self.delivery_mode), self.correlation_id
        remaining = max(1, int(1000 * (self.gives_up_at - time.monotonic())))
        if self.further_properties is None:
            encoded = wire.request_properties(*usual, own_id, reply_to, remaining)
        else:
            properties = {'expiration': str(remaining), **self.further_properties}
            encoded = wire.encode_properties(*usual, own_id, own_id, reply_to, **properties)
        return wire.publish_frames(channel, self.arguments, encoded, self.body, frame_max)


_Told = tuple['RpcFuture | Answer', 'MessageResult | Exception']
"""A call that is over, and what its caller gets."""


class _Address:
    """What is known of one reply address.

    :ivar calls: those that wait for a reply on it, by correlation id
    :ivar strays: replies that may still come for calls that have ended
    """

    __slots__ = ('calls', 'strays')

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.strays = 0


class RpcClient:
    """All calls that go over one publishing connection.

    :ivar is_stale: whether it is that of the parent process
    """

    is_stale = False

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.proxy(connection)
        self._lock = threading.RLock()
        self._addresses: dict[ReplyChannel, _Address] = {}
        self._shared: ReplyChannel | None = None
        self._deadlines = Deadlines()
        self._timer: Any = None  # for the I/O thread only
        self._armed_for = math.inf

    def call(self, call: Call) -> None:
        """Send a request, and see to its attempts. From any thread; never blocks."""
        if self._connection.error is not None:
            raise self._connection.error
        with self._lock:
            channel = self._shared
            if channel is None or call.queue_per_call or not channel.is_wanted:
                channel = self._new_channel(call)
            call.channel = channel
            self._addresses[channel].calls[call.correlation_id] = call
            self._begin_attempt(call)

    def _new_channel(self, call: Call) -> ReplyChannel:
        """A new reply address: for this call alone, or for those that follow, too."""
        channel = ReplyChannel(self._connection, call.queue_per_call, self._on_reply, self._on_lost)
        self._addresses[channel] = _Address()
        if not call.queue_per_call:
            self._shared = channel
        self._connection.call_soon(lambda: self._connection.attach(channel))
        return channel

    # Attempts and their deadlines

    def _begin_attempt(self, call: Call) -> None:
        call.attempt += 1
        deadline = self._deadlines.set(call, call.timeout)
        if deadline < self._armed_for:
            self._armed_for = deadline
            self._connection.call_soon(self._arm)
        assert call.channel is not None
        if call.attempt > 1:
            call.channel.withdraw(call)  # an attempt that an outage held back
        call.channel.send(call)

    def _arm(self) -> None:
        """Have one timer run, for the earliest deadline. On the I/O thread."""
        if self._timer is not None:
            self._connection.cancel_call(self._timer)
            self._timer = None
        with self._lock:
            self._armed_for = self._deadlines.earliest()
            if self._armed_for < math.inf:
                pause = max(0.0, self._armed_for - time.monotonic())
                self._timer = self._connection.call_later(pause, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        over: list[_Told] = []
        try:
            with self._lock:
                for call in self._deadlines.take_past(time.monotonic()):
                    if call.channel is self._shared:
                        self._shared = None  # that address is given to no new call
                    self._fail_attempt(call, f'no reply within {call.timeout:g} s', over)
            _tell(over)
        finally:
            self._arm()  # else no call would ever time out again

    def _fail_attempt(self, call: Call, reason: str, over: list[_Told]) -> None:
        """Begin the next attempt; after the last one, add to what is to be told without the lock."""
        if call.future.cancelled():
            self._forget(call)
        elif call.attempt <= call.max_retry:
            logger.debug('RPC %r: attempt %d failed, %s; it is sent again', call.name, call.attempt, reason)
            self._begin_attempt(call)
        else:
            self._forget(call)
            message = f'RPC {call.name!r}: {reason}, after {call.attempt} attempt{"s" if call.attempt > 1 else ""}'
            over.append((call.future, MessageResultException('TimeoutError', message)))

    def _forget(self, call: Call, answered: bool = False) -> None:
        channel, call.channel = call.channel, None
        self._deadlines.forget(call)
        if channel is not None:
            if not call.sent or call.attempt > 1:
                channel.withdraw(call)
            address = self._addresses[channel]
            address.calls.pop(call.correlation_id, None)
            address.strays += call.sent - answered
            if not address.calls and channel is not self._shared:
                del self._addresses[channel]
                self._connection.call_soon(lambda: self._connection.detach(channel))

    # What comes back

    def _on_reply(self, channel: ReplyChannel, content: Content) -> None:
        try:
            correlation_id = decode_answerable(content.properties).correlation_id
        except errors.DecodingError as error:
            logger.warning('a reply was dropped: %s', error)
            return
        with self._lock:
            address = self._addresses.get(channel)
            if address is None:
                return
            call = address.calls.get(correlation_id) if correlation_id else self._only_call(address)
            if call is None:
                logger.debug('a reply was dropped: no call waits for correlation id %r', correlation_id)
                return
            self._forget(call, answered=True)
        result = decode_result(content.body, call.decode)
        try:
            call.future.set_result(result)
        except InvalidStateError:
            pass  # its caller cancelled it

    @staticmethod
    def _only_call(address: _Address) -> Call | None:
        """The call that a reply without a correlation id answers: that is certain only where no other is possible."""
        if len(address.calls) == 1 and not address.strays:
            return next(iter(address.calls.values()))
        logger.warning(
            'a reply without a correlation id was dropped: %d calls are waiting, %d have stopped to, and it does not '
            'say which it answers; set reply_queue_per_call = True on the producer for a responder of that kind',
            len(address.calls),
            address.strays,
        )
        return None

    def _on_lost(self, channel: ReplyChannel, error: errors.PostageError) -> None:
        """The address has gone, and with it every reply to it: the attempts fail, the next begin."""
        over: list[_Told] = []
        with self._lock:
            address = self._addresses.get(channel)
            if address is None:
                return
            address.strays = 0
            for call in list(address.calls.values()):
                call.sent = 0
                if channel.is_wanted:
                    channel.withdraw(call)
                    self._fail_attempt(call, str(error), over)
                else:
                    self._forget(call)
                    over.append((call.future, error))
        _tell(over)


class Deadlines:
    """When the attempts of calls are over. Calls of one time-out come due in the order in which they began."""

    def __init__(self) -> None:
        self._by_timeout: dict[float, dict[Call, float]] = {}

    def set(self, call: Call, timeout: float) -> float:
        """Set a call's deadline, in place of an earlier one, and return it, on the monotonic clock.

        :param timeout: seconds from now
        """
        deadline = time.monotonic() + timeout
        calls = self._by_timeout.setdefault(timeout, {})
        if call.attempt > 1:
            calls.pop(call, None)  # so that it comes last
        calls[call] = deadline
        return deadline

    def forget(self, call: Call) -> None:
        """Take a call's deadline away."""
        calls = self._by_timeout.get(call.timeout)
        if calls is not None:
            calls.pop(call, None)
            if not calls:
                del self._by_timeout[call.timeout]

    def earliest(self) -> float:
        """The next one that is due; infinity where there is none."""
        return min((next(iter(calls.values())) for calls in self._by_timeout.values()), default=math.inf)

    def take_past(self, now: float) -> list[Call]:
        """Those that are over, which are forgotten."""
        past = [
            call
            for calls in self._by_timeout.values()
            for call in itertools.takewhile(lambda call, calls=calls: calls[call] <= now, calls)  # type: ignore[misc]
        ]
        for call in past:
            self.forget(call)
        return past


def _tell(over: list[_Told]) -> None:
    for future, outcome in over:
        try:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        except InvalidStateError:
            pass  # its caller cancelled it


def bodies_in(queue: str, connection: Connection, count: int, deadline: float) -> Generator[bytes, None, None]:
    """Consume so many messages from a queue, as long as the time lasts. Blocks; to be closed.

    Each is acknowledged when the caller comes back for the next one.
    """
    arrived = threading.Semaphore(0)
    channel = ConsumingChannel(connection, Topology(), prefetch=count)
    channel.notify = arrived.release
    try:
        connection.run(lambda: channel.consume_steps(queue))
        connection.add_channel(channel)
        while count:
            with connection.awaited():
                if not channel.inbox and not arrived.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    return
            if channel.error is not None:
                raise channel.error
            if channel.inbox:
                delivery = channel.inbox.popleft()
                yield delivery.body
                channel.settle(delivery)
                count -= 1
    finally:
        connection.remove_channel(channel)


def decode_result(body: bytes, decode: Callable[[bytes], Any]) -> MessageResult:
    """The result message that a reply's body holds; a malformed one becomes a ``MessageResultError``."""
    try:
        return result_from_body(decode(body))
    except errors.PostageError as error:
        return MessageResultError(f'Malformed reply {body[:200]!r}: {error}')
    except Exception as error:  # a user's own encoder
        return MessageResultError(f'Malformed reply {body[:200]!r}: {error!r}')


_clients: weakref.WeakKeyDictionary[Connection, RpcClient] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def client_of(connection: Connection) -> RpcClient:
    """The one client of a publishing connection."""
    with _lock:
        client = _clients.get(connection)
        if client is None:
            client = _clients[connection] = RpcClient(connection)
        return client


def _after_fork_in_child() -> None:
    """The calls under way are the parent's."""
    global _lock
    _lock = threading.Lock()
    for client in _clients.values():
        client.is_stale = True
    _clients.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork_in_child)
