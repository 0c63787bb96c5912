"""The caller's side of RPC: requests under way, their attempts, and the replies that are matched to them.

A call is sent up to ``1 + max_retry`` times, under one correlation id and one message id; the first reply wins. All
calls of a connection share one reply address. An address over which an attempt has timed out takes no new calls, so
that a late reply without a correlation id cannot be taken for the answer to another call.

What :class:`RpcClient` does may happen on any thread: the caller's, the one that reads the connection, and the I/O
thread, which keeps the time. One lock guards it; futures are done, and their callbacks called, outside of it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import InvalidStateError
from typing import Any

from postage import errors
from postage.amqp import frames
from postage.amqp.connection import Calls, Connection
from postage.amqp.consuming import ConsumingChannel
from postage.amqp.cutter import Content
from postage.amqp.replies import ReplyChannel
from postage.amqp.topology import Topology
from postage.messaging.calls import Call
from postage.messaging.cancelling import Canceller
from postage.messaging.messages import MessageResult, MessageResultError, MessageResultException, result_from_body
from postage.messaging.signing import Signatures
from postage.printable import shown
from postage.sparingly import Sparingly

logger = logging.getLogger('postage')
_sparingly = Sparingly()

LATE_SECONDS = 10.0  # for which an address that takes no calls any more is kept, to count the replies that come late
LATE_ADDRESSES = 4  # that are kept so, at most
CANCEL_TIMEOUT = 2.0  # seconds for which a producer that closes, or a program that ends, tries to tell responders


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

    :ivar canceller: tells responders what is not wanted any more
    :ivar late_replies: how many replies came for which no call waited any more
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.proxy(connection)
        self._lock = threading.RLock()
        self._addresses: dict[ReplyChannel, _Address] = {}
        self._shared: ReplyChannel | None = None
        self._late: dict[ReplyChannel, float] = {}  # those that are kept for late replies, and until when
        self._is_tidying = False
        self._deadlines = Deadlines()
        self._timer: Any = None  # for the I/O thread only
        self._armed_for = math.inf
        self.canceller = Canceller(self._connection)
        self.late_replies = 0

    def call(self, call: Call) -> None:
        """Send a request, and see to its attempts. From any thread; blocks only where the window is full.

        :raises errors.EncodingError: what goes with it cannot be encoded
        """
        refused = self._connection.standing.error
        if refused is not None:
            raise refused.again()
        with self._lock:
            channel = self._shared
            if channel is None or call.queue_per_call or not channel.is_wanted:
                channel = self._new_channel(call)
            call.channel = channel
            call.address(channel.address)
            self._addresses[channel].calls[call.correlation_id] = call
            call.attempt = call.sent = 1
            deadline = self._deadlines.set(call, call.timeout)
            if deadline < self._armed_for:
                self._armed_for = deadline
                self._connection.tell(self._arm)
        try:
            channel.publish(call, call.timeout)
        except errors.PostageError as error:
            self._not_sent(call, error)

    def _new_channel(self, call: Call) -> ReplyChannel:
        """A new reply address: for this call alone, or for those that follow, too."""
        channel = ReplyChannel(self._connection, call.queue_per_call, self._on_reply, self._on_returned, self._on_lost)
        self._addresses[channel] = _Address()
        if not call.queue_per_call:
            self._shared = channel
        self._connection.tell(lambda: self._connection.attach(channel))
        return channel

    # Attempts and their deadlines

    def _begin_attempt(self, call: Call) -> None:
        """Set the deadline of the next attempt. With the lock held; the request is sent without it."""
        call.attempt += 1
        call.sent += 1
        if call.limit is not None:
            self._deadlines.forget(call)
            call.timeout = max(0.0, min(call.timeout, call.limit - time.monotonic()))
        deadline = self._deadlines.set(call, call.timeout)
        if deadline < self._armed_for:
            self._armed_for = deadline
            self._connection.tell(self._arm)

    def _send(self, call: Call, channel: ReplyChannel) -> None:
        try:
            channel.publish(call, call.timeout)
        except errors.PostageError as error:
            self._not_sent(call, error)

    def _not_sent(self, call: Call, error: errors.PostageError) -> None:
        """This attempt has come to nothing: the window was full for as long as it lasted, or the connection ended."""
        with self._lock:
            call.sent -= 1
            if call.channel is None:
                return  # the call has ended meanwhile
            if isinstance(error, errors.PublishTimeout):
                tell = self._fail_attempt(call, str(error))
            else:
                tell = self._finish(call, None, error)
        tell()

    def _withdraw(self, call: Call) -> bool:
        """Take back a request that an outage held back, so that it is not sent twice. Returns whether it was."""
        if call.channel is None or not call.channel.withdraw(call):
            return False
        call.sent -= 1
        return True

    def _arm(self) -> None:
        """Have one timer run, for the earliest deadline. On the I/O thread."""
        if self._timer is not None:
            self._connection.io.loop.remove_timeout(self._timer)
            self._timer = None
        with self._lock:
            self._armed_for = self._deadlines.earliest()
            if self._armed_for < math.inf:
                pause = max(0.0, self._armed_for - time.monotonic())
                self._timer = self._connection.io.loop.call_later(pause, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        over: list[Callable[[], None]] = []
        try:
            with self._lock:
                for call in self._deadlines.take_past(time.monotonic()):
                    self._retire(call.channel)
                    reason = self._why_not_taken(call)
                    if call.gathering is not None and not reason:
                        over.append(self._end_gathering(call))
                    else:
                        why = reason or ', though the broker took the request'
                        over.append(self._fail_attempt(call, f'no reply within {round(call.timeout, 3):g} s{why}'))
            _call_all(over)
        finally:
            self._arm()  # else no call would ever time out again

    def _why_not_taken(self, call: Call) -> str:
        """Why the broker may not have taken a request, as far as that is known; empty where it has."""
        trouble = self._connection.trouble
        if self._withdraw(call):
            return f', and it could not be sent: {trouble or "its channel was not open in that time"}'
        return f', though it was sent; {trouble}' if trouble else ''

    def _end_gathering(self, call: Call) -> Callable[[], None]:
        """Forget a call that gathers. Returns what tells its caller, to be called without the lock."""
        self._cancel(call)
        self._finish(call, None)
        assert call.gathering is not None
        return functools.partial(call.gathering.end, None)

    def _fail_attempt(self, call: Call, reason: str) -> Callable[[], None]:
        if call.future.cancelled():
            return self._finish(call, None)
        has_time = call.limit is None or time.monotonic() < call.limit
        if call.attempt <= call.max_retry and call.channel is not None and has_time:
            logger.debug('RPC %r: attempt %d failed, %s; it is sent again', call.name, call.attempt, reason)
            self._withdraw(call)
            call.address(call.channel.address)
            self._begin_attempt(call)
            return functools.partial(self._send, call, call.channel)
        self._cancel(call)
        if call.lost and 'after it was sent' not in reason:
            reason += f'; {call.lost} was lost after it was sent'
        message = f'RPC {call.name!r}: {reason}, after {call.attempt} attempt{"s" if call.attempt > 1 else ""}'
        if call.refused:
            message += f'; a reply was dropped: {call.refused}'
        return self._finish(call, failed(errors.TimeoutError(message)))

    def abandon(self, correlation_id: str) -> None:
        """Forget the call of a future that was cancelled, and tell the responder. Any thread; never blocks."""
        with self._lock:
            for address in self._addresses.values():
                call = address.calls.get(correlation_id)
                if call is not None:
                    self._cancel(call)
                    self._finish(call, None)
                    return

    def end_calls(self, error: errors.PostageError, owner: object = None) -> None:
        """End calls under way, and tell their responders. Any thread; blocks for a moment where there are any.

        :param owner: the producer whose calls they are; by default all, for the program ends
        """
        over: list[Callable[[], None]] = []
        with self._lock:
            for address in list(self._addresses.values()):
                for call in [call for call in address.calls.values() if owner is None or call.owner is owner]:
                    self._cancel(call)
                    over.append(self._finish(call, None, error.again()))
        _call_all(over)
        if self.canceller.waiting:
            with contextlib.suppress(errors.BrokerError):
                self._connection.ask(self.canceller.send_steps, CANCEL_TIMEOUT)

    def _cancel(self, call: Call) -> None:
        """Tell the responder of a call that no answer is wanted any more, if the request was sent at all."""
        self._withdraw(call)
        if call.sent > 0 or call.lost:
            signatures, own_id = call.signatures, call.correlation_id
            cancel_id = own_id if signatures is None else signatures.cancel_id(own_id)
            self.canceller.add(call.exchange, call.routing_key, cancel_id, call.gives_up_at)

    def _retire(self, channel: ReplyChannel | None) -> None:
        """Give this address to no new call."""
        if channel is self._shared:
            self._shared = None

    def _finish(
        self, call: Call, result: MessageResult | None, error: Exception | None = None, answered: bool = False
    ) -> Callable[[], None]:
        """Forget a call. Returns what tells its caller, to be called without the lock."""
        if call.span is not None:
            call.span.end(error or (result.failure if result is not None else None))
        self._deadlines.forget(call)
        if not answered or call.attempt > 1:
            self._withdraw(call)
        channel, call.channel = call.channel, None
        if call.gathering is not None:
            self._retire(channel)  # more replies may come
        if channel is not None:
            address = self._addresses[channel]
            address.calls.pop(call.correlation_id, None)
            address.strays += call.sent - answered
            if not address.calls and channel is not self._shared:
                self._leave(channel, address)
        if error is not None:
            return functools.partial(_set, call.future.set_exception, error)
        return functools.partial(_set, call.future.set_result, result) if result is not None else _nothing

    def _leave(self, channel: ReplyChannel, address: _Address) -> None:
        """Give up an address without calls: in a while, where a late reply may come. With the lock held."""
        if not address.strays or channel.own_queue or not channel.is_wanted:
            self._give_up(channel)
            return
        self._late[channel] = time.monotonic() + LATE_SECONDS
        if len(self._late) > LATE_ADDRESSES:
            self._give_up(next(iter(self._late)))
        if not self._is_tidying:
            self._is_tidying = True
            self._connection.tell(self._tidy)

    def _give_up(self, channel: ReplyChannel) -> None:
        self._late.pop(channel, None)
        del self._addresses[channel]
        self._connection.tell(lambda: self._connection.detach(channel))

    def _tidy(self) -> None:
        """Give up the addresses that were kept long enough, as long as there are any. On the I/O thread."""
        with self._lock:
            now = time.monotonic()
            for channel in [channel for channel, until in self._late.items() if until <= now]:
                self._give_up(channel)
            self._is_tidying = bool(self._late)
            if self._late:
                self._connection.io.loop.call_later(next(iter(self._late.values())) - now, self._tidy)

    # What comes back

    def _on_reply(self, channel: ReplyChannel, content: Content) -> None:
        malformed = None
        try:
            correlation_id = frames.decode_correlation_id(content.properties)
        except errors.DecodingError as error:
            malformed = MessageResultError(f'Malformed reply: {error}')
            correlation_id = frames.salvage_answerable(content.properties).correlation_id
        with self._lock:
            address = self._addresses.get(channel)
            if address is None:
                return
            call = address.calls.get(correlation_id) if correlation_id else None
            if call is None:
                call = self._call_of(address, correlation_id)
                if call is None:
                    return
            if call.signatures is not None and not _is_signed(call, channel, content, correlation_id):
                return
            if malformed is not None:
                result: MessageResult = malformed
            else:
                try:  # as decode_result() does, without a call for each reply
                    result = result_from_body(call.decode(content.body))
                except Exception:
                    result = decode_result(content.body, call.decode)
            gathering, end = call.gathering, None
            if gathering is None:
                self._finish(call, result, answered=True)
            elif gathering.is_completed_by(result):
                end = self._end_gathering(call)
        if gathering is not None:
            gathering.add(result)
            if end is not None:
                end()
            return
        try:
            call.future.set_result(result)
        except InvalidStateError:
            pass  # its caller cancelled it

    def _on_returned(self, channel: ReplyChannel, content: Content) -> None:
        """No queue took a request: that is its end, for the next attempt would come back as well."""
        with self._lock:
            address = self._addresses.get(channel)
            correlation_id = frames.salvage_answerable(content.properties).correlation_id
            call = address.calls.get(correlation_id or '') if address is not None else None
            if call is None:
                return  # it has ended meanwhile
            where = f'no queue is bound to exchange {call.exchange!r} for key {call.routing_key!r}'
            if not call.exchange:
                where = f'there is no queue {call.routing_key!r}'
            result = failed(errors.Unroutable(f'RPC {call.name!r}: {where}'))
            tell = self._finish(call, result, answered=True)
        tell()

    def _call_of(self, address: _Address, correlation_id: str | None) -> Call | None:
        """The call that a reply answers. Without a correlation id that is certain only where no other is possible."""
        if correlation_id or not address.calls:
            self.late_replies += 1
            logger.debug('a reply was dropped: no call waits for correlation id %r any more', correlation_id)
            return None
        if len(address.calls) == 1 and not address.strays:
            return next(iter(address.calls.values()))
        _sparingly.log(
            logging.WARNING,
            'a reply without a correlation id was dropped: %d calls are waiting, %d have stopped to, and it does not '
            'say which it answers; set reply_queue_per_call = True on the producer for a responder of that kind',
            len(address.calls),
            address.strays,
        )
        return None

    def _on_lost(self, channel: ReplyChannel, error: errors.PostageError) -> None:
        """The address has gone, and with it every reply to it: the attempts fail, the next begin."""
        over: list[Callable[[], None]] = []
        with self._lock:
            address = self._addresses.get(channel)
            if address is None:
                return
            address.strays = 0
            if channel in self._late:
                self._give_up(channel)
            for call in list(address.calls.values()):
                self._withdraw(call)
                if call.sent:
                    call.lost = 'its channel' if isinstance(error, errors.OperationRefused) else 'the connection'
                reason = f'{call.lost} was lost after it was sent: {error}' if call.sent else str(error)
                call.sent = 0
                if channel.is_wanted:
                    over.append(self._fail_attempt(call, reason))
                else:
                    over.append(self._finish(call, None, error.again()))
        _call_all(over)


def _is_signed(call: Call, channel: ReplyChannel, content: Content, correlation_id: str | None) -> bool:
    """Whether a reply has the signature that its caller wants. The call goes on waiting for one that has."""
    assert call.signatures is not None
    assert call.replied is not None
    try:
        if correlation_id != call.correlation_id:
            raise errors.SignatureRefused('it does not say which request it answers')
        mac = call.signatures.check_reply(content, channel.address).mac
        if mac in call.replied:
            raise errors.SignatureRefused('it is a copy of one that has come', 'stale')
        call.replied.add(mac)
    except errors.SignatureRefused as error:
        call.refused = str(error)
        _sparingly.log(logging.WARNING, 'a reply to RPC %r was dropped: %s', call.name, error)
        return False
    return True


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
        past = []
        for calls in self._by_timeout.values():
            for call, deadline in calls.items():
                if deadline > now:
                    break  # so are those behind it
                past.append(call)
        for call in past:
            self.forget(call)
        return past


def _set(setter: Callable[[Any], None], value: Any) -> None:
    try:
        setter(value)
    except InvalidStateError:
        pass  # its caller cancelled it


def _nothing() -> None:
    pass


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def bodies_in(
    queue: str, connection: Connection, count: int, deadline: float, signatures: Signatures | None = None
) -> Generator[bytes, None, None]:
    """Consume so many replies from a queue, as long as the time lasts. Blocks; to be closed.

    Those are dropped that are not signed where they have to be. Each is acknowledged when the caller comes back for the
    next one.
    """
    arrived = threading.Semaphore(0)
    channel = ConsumingChannel(connection, Topology(), prefetch=min(count, 0xFFFF))
    channel.notify = arrived.release
    try:
        connection.ask(lambda: channel.consumers.begin_steps(queue))
        connection.add_channel(channel)
        while count:
            with connection.awaited():
                if not channel.inbox and not arrived.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    return
            if channel.error is not None:
                raise channel.error.again()
            if channel.inbox:
                delivery = channel.inbox.popleft()
                try:
                    if signatures is not None:
                        signatures.check_reply(delivery.content, queue)
                except errors.SignatureRefused as error:
                    _sparingly.log(logging.WARNING, 'a reply in queue %r was dropped: %s', queue, error)
                else:
                    yield delivery.body
                    count -= 1
                channel.settle(delivery)
    finally:
        connection.remove_channel(channel)


def failed(error: errors.PostageError) -> MessageResultException:
    """The result of a call that no responder answered."""
    result = MessageResultException(type(error).__name__, str(error))
    result.failure = error
    return result


def decode_result(body: bytes, decode: Callable[[bytes], Any]) -> MessageResult:
    """The result message that a reply's body holds; a malformed one becomes a ``MessageResultError``."""
    try:
        return result_from_body(decode(body))
    except errors.PostageError as error:
        return MessageResultError(f'Malformed reply {body[:200]!r}: {error}')
    except Exception as error:  # a user's own encoder
        return MessageResultError(f'Malformed reply {body[:200]!r}: {shown(error)}')


def client_of(connection: Connection) -> Calls:
    """The one client of a publishing connection. A forked child has new ones: the calls under way are the parent's."""
    with connection.lock:
        if connection.rpc_client is None:
            connection.rpc_client = RpcClient(connection)
        return connection.rpc_client
