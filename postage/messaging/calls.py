"""One RPC under way, and what its caller waits by."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING
from typing import Any

from postage.amqp import frames
from postage.amqp.connection import Connection
from postage.amqp.publishing import Outgoing, ids
from postage.amqp.replies import ReplyChannel
from postage.amqp.turns import ReadingAlarm, wait_until_done
from postage.messaging.gathering import Gathering, Sink, tell_cancelled
from postage.messaging.messages import MessageResult
from postage.messaging.signing import Signatures


class _Unseen:
    """The condition of a future that was done before anything looked at it: what is in it changes no more."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass

    acquire = __enter__
    release = notify_all = __exit__


_UNSEEN = _Unseen()


class RpcFuture(Future[MessageResult]):
    """The future of an RPC's result message, which a microthread may yield. It may be cancelled.

    Its callbacks run on the thread that reads the connection, where nothing may block.

    Where many calls are under way, most results are there before anything looks at their futures. So the condition,
    which takes a tenth of a call to make and to use, is made by the first look. What came first, the look or the
    result, is decided by one step of the interpreter: the one puts a condition into the future's dictionary, the other
    :data:`_UNSEEN`.

    :ivar exchange: where the request went
    :ivar routing_key: with which key
    :ivar correlation_id: of the request
    """

    exchange = routing_key = correlation_id = ''
    gathering: Gathering | None = None

    def __init__(self, connection: Connection) -> None:
        # What Future() does, but for the condition.
        self._seen_state = PENDING
        self._result = self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Future[Any]], object]] = []
        self._connection = connection
        self.arrived: MessageResult | None = None  # the result, once it is set

    def __getattr__(self, name: str) -> Any:
        if name == '_condition':
            return self.__dict__.setdefault(name, threading.Condition())
        raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')

    @property
    def _state(self) -> str:
        return FINISHED if self.__dict__.get('_condition') is _UNSEEN else self._seen_state

    @_state.setter
    def _state(self, state: str) -> None:
        self._seen_state = state

    def set_result(self, result: MessageResult) -> None:
        """The result has come. Never blocks; the one thread that has it."""
        if '_condition' not in self.__dict__:
            self._result = result  # first, for it is done by the next step
            if self.__dict__.setdefault('_condition', _UNSEEN) is _UNSEEN:
                self.arrived = result
                return
        super().set_result(result)
        self.arrived = result

    def result(self, timeout: float | None = None) -> MessageResult:
        """Wait for the result message. Blocks; any thread, which reads the connection meanwhile where that helps.

        :param timeout: seconds; by default as long as it takes, which the RPC's own time-out bounds
        :raises concurrent.futures.TimeoutError: it did not come in time
        """
        if self.arrived is not None:
            return self.arrived  # without the lock of the future
        if not self.done():
            wait_until_done(self, self._connection.readership, timeout)
        return super().result(0)

    def cancel(self) -> bool:
        """Want the result no more. The responder is told, as far as it can be: see :mod:`postage.messaging.cancelling`.

        Never blocks; any thread. Returns ``False`` where the result has come.
        """
        if not super().cancel():
            return False
        tell_cancelled(self)
        client = self._connection.rpc_client
        if client is not None:
            client.abandon(self.correlation_id)
        return True

    def value(self, timeout: float | None = None) -> Any:
        """The value of the result. Blocks as :meth:`result` does, and raises what that and ``unwrap()`` raise."""
        return self.result(timeout).unwrap()


class Awaited:
    """The result message for the one thread that waits for it and does nothing else meanwhile: less than a future.

    :param alarm: what that thread waits by
    """

    __slots__ = ('_alarm', '_error', '_is_done', '_result')
    gathering: Gathering | None = None

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
            self._alarm.wait(None, (connection.readership,))
        if self._error is not None:
            raise self._error
        result: MessageResult = self._result
        return result


class Call(Outgoing):
    """One RPC under way; it is sent again for each attempt.

    :param future: of the result message; never carries an exception unless the connection is closed
    :param content_type: of the request
    :param delivery_mode: 1 for a transient, 2 for a persistent request
    :param further: more properties, by the names of ``frames.encode_properties``, where it has any
    :param decode: of the reply's body
    :param timeout: seconds for each attempt
    :param max_retry: how often it is sent again
    :param queue_per_call: whether it has a reply address of its own
    :param limit: the deadline that all of its attempts share, on the monotonic clock, where it has one
    :param owner: the producer that calls
    :param signatures: sign the request and verify the reply, where there are keys
    :ivar refused: why a reply was dropped, if one was
    :ivar replied: the signatures of the replies that have come, where they are signed
    :ivar gives_up_at: when the last attempt will be over, on the monotonic clock
    :ivar sent: how often it was sent to its present address
    :ivar span: until its end, where that is traced
    :ivar lost: what was lost after it was sent, if anything was: 'the connection', say
    """

    __slots__ = (
        *('attempt', 'channel', 'content_type', 'correlation_id', 'decode', 'delivery_mode', 'further', 'future'),
        *('gathering', 'gives_up_at', 'limit', 'lost', 'max_retry', 'name', 'owner', 'queue_per_call', 'refused'),
        *('replied', 'sent', 'signatures', 'span', 'timeout'),
    )

    def __init__(
        self,
        name: str,
        route: tuple[str, str],
        future: RpcFuture | Awaited | Sink,
        content_type: str,
        delivery_mode: int,
        further: dict[str, Any] | None,
        body: bytes,
        decode: Callable[[bytes], Any],
        timeout: float,
        max_retry: int,
        queue_per_call: bool,
        limit: float | None,
        owner: object,
        signatures: Signatures | None = None,
    ) -> None:
        # What Outgoing() does, without the call: this is on the way of each RPC.
        self.exchange, self.routing_key = route
        self.arguments = frames.publish_arguments(*route, True)
        self.body = body
        self.properties = b''
        self.receipt, self.resend, self.returned = None, False, ''
        self.name = name
        self.future = future
        self.gathering = future.gathering
        self.content_type = content_type
        self.delivery_mode = delivery_mode
        self.further = further
        self.decode = decode
        self.timeout = timeout
        self.max_retry = max_retry
        self.queue_per_call = queue_per_call
        self.signatures = signatures
        self.refused = ''
        self.replied: set[bytes] | None = None if signatures is None else set()
        self.correlation_id = ids.new()
        self.attempt = self.sent = 0
        self.limit = limit
        self.owner = owner
        self.at = time.monotonic()
        self.gives_up_at = self.at + timeout * (max_retry + 1)
        if limit is not None and limit < self.gives_up_at:
            self.gives_up_at = limit
        self.channel: ReplyChannel | None = None
        self.lost = ''
        self.span: Any = None

    def address(self, reply_to: str) -> None:
        """Make the request's properties. The broker drops it when its caller does not wait for the answer any more.

        :raises errors.EncodingError: one of them cannot be encoded
        """
        own_id, mode = self.correlation_id, self.delivery_mode
        remaining = max(1, int(min(1000 * (self.gives_up_at - time.monotonic()), frames.EXPIRATION_MAX)))
        deadline = int(1000 * time.time()) + remaining
        further = self.further or {}
        trace = '' if not further else frames.trace_alone(further['headers']) if further.keys() == {'headers'} else None
        if trace is not None and self.signatures is None:
            self.properties = frames.request_properties(
                self.content_type, mode, own_id, reply_to, remaining, deadline, trace
            )
            return
        properties: dict[str, Any] = {'content_type': self.content_type or None, 'delivery_mode': mode}
        properties |= {'message_id': own_id, 'correlation_id': own_id, 'reply_to': reply_to}
        properties |= {'expiration': str(remaining), **further}
        properties['headers'] = {**further.get('headers', {}), frames.DEADLINE: deadline}
        if self.signatures is None:
            self.properties = frames.encode_properties(**properties)
        else:
            self.properties = self.signatures.properties(self.exchange, self.routing_key, self.body, properties)
