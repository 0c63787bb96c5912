"""The caller's side of RPC: requests under way, their attempts, and the replies that are matched to them.

A call is sent up to ``1 + max_retry`` times, under one correlation id and one message id; the first reply wins. All
calls of a connection share one reply address. An address over which an attempt has timed out takes no new calls, so
that a late reply without a correlation id cannot be taken for the answer to another call.

Everything but :meth:`RpcClient.call` runs on the I/O thread of the publishing connection.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from postage import errors
from postage.amqp import wire
from postage.amqp.connection import Connection
from postage.amqp.consuming import ReplyChannel
from postage.amqp.wire import Content, decode_properties
from postage.messaging.messages import MessageResult, MessageResultError, MessageResultException, result_from_body

logger = logging.getLogger('postage')


class RpcFuture(Future[MessageResult]):
    """The future of an RPC's result message, which a microthread may yield. It may be cancelled.

    Its callbacks run on the connection's thread, where nothing may block.

    :ivar exchange: where the request went
    :ivar routing_key: with which key
    """

    def __init__(self, exchange: str, routing_key: str) -> None:
        super().__init__()
        self.exchange = exchange
        self.routing_key = routing_key


class Call:
    """One RPC under way.

    :param timeout: seconds for each attempt
    :param max_retry: how often it is sent again
    :ivar future: of the result message; never carries an exception unless the connection is closed
    """

    def __init__(
        self,
        name: str,
        exchange: str,
        routing_key: str,
        properties: dict[str, Any],
        body: bytes,
        decode: Callable[[bytes], Any],
        timeout: float,
        max_retry: int,
        queue_per_call: bool,
    ) -> None:
        self.name = name
        self.arguments = wire.publish_arguments(exchange, routing_key, False)
        self.properties = properties
        self.body = body
        self.decode = decode
        self.timeout = timeout
        self.max_retry = max_retry
        self.queue_per_call = queue_per_call
        self.correlation_id: str = properties['message_id']
        self.attempt = 0
        self.sent = 0  # how often on its present address
        self.gives_up_at = time.monotonic() + timeout * (max_retry + 1)
        self.channel: ReplyChannel | None = None
        self.future = RpcFuture(exchange, routing_key)

    def frames(self, channel: int, reply_to: str, frame_max: int) -> bytes:
        """The request's frames. The broker drops it when nobody waits for the answer any more."""
        self.sent += 1
        properties = self.properties
        if not properties.get('expiration'):
            remaining = max(1, int(1000 * (self.gives_up_at - time.monotonic())))
            properties = {**properties, 'expiration': str(remaining)}
        encoded = wire.encode_properties(correlation_id=self.correlation_id, reply_to=reply_to, **properties)
        return wire.publish_frames(channel, self.arguments, encoded, self.body, frame_max)


class _Address:
    """What is known of one reply address.

    :ivar calls: those that wait for a reply on it, by correlation id
    :ivar strays: replies that may still come for calls that wait no more
    """

    __slots__ = ('calls', 'strays')

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.strays = 0


class RpcClient:
    """All calls that go over one publishing connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.proxy(connection)
        self._submitted: deque[Call] = deque()
        self._accept_requested = False
        self._addresses: dict[ReplyChannel, _Address] = {}
        self._shared: ReplyChannel | None = None
        self._deadlines: list[tuple[float, int, Call, int]] = []
        self._numbers = itertools.count()
        self._timer: Any = None
        self._armed_for = 0.0

    def call(self, call: Call) -> None:
        """Send a request, and see to its attempts. From any thread; never blocks."""
        if self._connection.error is not None:
            raise self._connection.error
        self._submitted.append(call)
        if not self._accept_requested:
            self._accept_requested = True
            self._connection.call_soon(self._accept)

    def _accept(self) -> None:
        self._accept_requested = False
        while self._submitted:
            call = self._submitted.popleft()
            channel = call.channel = self._channel_for(call)
            self._addresses[channel].calls[call.correlation_id] = call
            self._begin_attempt(call)
        self._connection.flush_now()

    def _channel_for(self, call: Call) -> ReplyChannel:
        """The reply address for a new call: the shared one, unless it is spent or the call wants its own."""
        if not call.queue_per_call and self._shared is not None and self._shared.is_wanted:
            return self._shared
        channel = ReplyChannel(self._connection, call.queue_per_call, self._on_reply, self._on_lost)
        self._addresses[channel] = _Address()
        if not call.queue_per_call:
            self._shared = channel
        self._connection.attach(channel)
        return channel

    # Attempts and their deadlines

    def _begin_attempt(self, call: Call) -> None:
        call.attempt += 1
        heapq.heappush(self._deadlines, (time.monotonic() + call.timeout, next(self._numbers), call, call.attempt))
        self._arm()
        assert call.channel is not None
        call.channel.withdraw(call)  # an attempt that an outage held back
        call.channel.send(call)

    def _arm(self) -> None:
        """Have one timer run, for the earliest deadline."""
        if not self._deadlines:
            return
        earliest = self._deadlines[0][0]
        if self._timer is not None:
            if earliest >= self._armed_for:
                return
            self._connection.cancel_call(self._timer)
        self._armed_for = earliest
        self._timer = self._connection.call_later(max(0.0, earliest - time.monotonic()), self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._deadlines and (self._deadlines[0][0] <= now or self._is_over(self._deadlines[0])):
            entry = heapq.heappop(self._deadlines)
            if not self._is_over(entry):
                call = entry[2]
                self._retire(call.channel)
                self._fail_attempt(call, f'no reply within {call.timeout:g} s')
        self._arm()

    @staticmethod
    def _is_over(entry: tuple[float, int, Call, int]) -> bool:
        _, _, call, attempt = entry
        return call.channel is None or call.attempt != attempt

    def _fail_attempt(self, call: Call, reason: str) -> None:
        if call.future.cancelled():
            self._finish(call, None)
            return
        if call.attempt <= call.max_retry:
            logger.debug('RPC %r: attempt %d failed, %s; it is sent again', call.name, call.attempt, reason)
            self._begin_attempt(call)
            return
        message = f'RPC {call.name!r}: {reason}, after {call.attempt} attempt{"s" if call.attempt > 1 else ""}'
        self._finish(call, MessageResultException('TimeoutError', message))

    def _retire(self, channel: ReplyChannel | None) -> None:
        """Give this address to no new call."""
        if channel is self._shared:
            self._shared = None

    def _finish(
        self, call: Call, result: MessageResult | None, error: Exception | None = None, answered: bool = False
    ) -> None:
        channel, call.channel = call.channel, None
        if channel is not None:
            channel.withdraw(call)
            address = self._addresses[channel]
            address.calls.pop(call.correlation_id, None)
            address.strays += call.sent - answered
            if not address.calls and channel is not self._shared:
                del self._addresses[channel]
                self._connection.detach(channel)
        try:
            if error is not None:
                call.future.set_exception(error)
            elif result is not None:
                call.future.set_result(result)
        except InvalidStateError:
            pass  # its caller cancelled it

    # What comes back

    def _on_reply(self, channel: ReplyChannel, content: Content) -> None:
        address = self._addresses.get(channel)
        try:
            correlation_id = decode_properties(content.properties).correlation_id
        except errors.DecodingError as error:
            logger.warning('a reply was dropped: %s', error)
            return
        call = self._call_of(address, correlation_id) if address is not None else None
        if call is not None:
            self._finish(call, decode_result(content.body, call.decode), answered=True)

    @staticmethod
    def _call_of(address: _Address, correlation_id: str | None) -> Call | None:
        """The call that a reply answers. Without a correlation id that is certain only where no other is possible."""
        if correlation_id:
            call = address.calls.get(correlation_id)
            if call is None:
                logger.debug('a reply was dropped: nobody waits for correlation id %r any more', correlation_id)
            return call
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
        address = self._addresses.get(channel)
        if address is None:
            return
        address.strays = 0
        for call in list(address.calls.values()):
            call.sent = 0
            if channel.is_wanted:
                channel.withdraw(call)
                self._fail_attempt(call, str(error))
            else:
                self._finish(call, None, error)


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
    _clients.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork_in_child)
