"""Asking all: one request, and the replies of all components that get it, as they come."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED
from typing import Any

from postage import errors
from postage.amqp.connection import Connection
from postage.amqp.turns import wait_until_done
from postage.messaging.messages import MessageResult
from postage.printable import shown

Expected = int | frozenset[str] | None
"""How many replies are waited for, or from which components."""


class Replies(list[MessageResult]):
    """The replies that came, in the order in which they came.

    :ivar silent: of those that were expected by name, those that did not answer; empty where none was named
    :ivar failure: why there can be no more: ``errors.Unroutable`` where no queue took the request,
        ``errors.TimeoutError`` where it did not reach the broker, or the way back was lost; ``None`` where the time is
        over, or all have answered
    """

    def __init__(self, expected: Expected) -> None:
        super().__init__()
        self.silent: set[str] = set(expected) if isinstance(expected, frozenset) else set()
        self.failure: errors.PostageError | None = None


class Gathering(Future[Replies]):
    """The replies to one request from all components that get it: ``rpc_gather_NAME`` returns one.

    ``for reply in gathering`` takes them as they come, and blocks; ``async for`` does so in a coroutine. A microthread
    yields the gathering, and gets all of them at its end, as :meth:`result` gives them; or it yields :meth:`next` again
    and again. It ends at the time-out, or when as many have come as were expected. To leave such a loop, or a ``with``,
    and :meth:`close`, end it early. What is still being worked at when it ends is cancelled, as far as that can be.

    :ivar replies: those that have come so far
    :ivar exchange: where the request went
    :ivar routing_key: with which key
    :ivar correlation_id: of the request
    """

    def __init__(self, connection: Connection, expected: Expected) -> None:
        super().__init__()
        self.replies = Replies(expected)
        self.exchange = self.routing_key = self.correlation_id = ''
        self._connection = connection
        self._expected = expected
        self._lock = threading.Lock()
        self._untaken: deque[MessageResult] = deque()
        self._waiting: deque[NextReply] = deque()
        self._is_over = False

    # Taking

    def next(self) -> Future[MessageResult | None]:
        """A future of the next reply, or of ``None`` at the end; never blocks, and may be yielded. Any thread."""
        future = NextReply(self)
        with self._lock:
            if not self._untaken and not self._is_over:
                self._waiting.append(future)
                return future
            reply = self._untaken.popleft() if self._untaken else None
        future.set_result(reply)
        return future

    def __iter__(self) -> Iterator[MessageResult]:
        """Take the replies as they come. Blocks; any thread, which reads the connection meanwhile where that helps.

        To leave the loop before its end ends the gathering.
        """
        with self:
            while (reply := self._await(self.next())) is not None:
                yield reply

    async def __aiter__(self) -> AsyncIterator[MessageResult]:
        """Take the replies as they come, in a coroutine. To leave the loop before its end ends the gathering."""
        with self:
            while (reply := await asyncio.wrap_future(self.next())) is not None:
                yield reply

    def result(self, timeout: float | None = None) -> Replies:
        """Wait for the end, and return all replies. Blocks; any thread.

        :param timeout: seconds; by default as long as it takes, which its own time-out bounds
        :raises concurrent.futures.TimeoutError: it did not end in time
        """
        if not self.done():
            wait_until_done(self, self._connection.readership, timeout)
        return super().result(0)

    def _await(self, future: Future[Any]) -> Any:
        if not future.done():
            wait_until_done(future, self._connection.readership, None)
        return future.result()

    @property
    def silent(self) -> set[str]:
        """Of those that were expected by name, those that have not answered so far."""
        return set(self.replies.silent)

    # Ending

    def close(self) -> None:
        """End it now, with what has come. Never blocks; any thread; does nothing the second time."""
        client = self._connection.rpc_client
        if client is not None and not self._is_over:
            client.abandon(self.correlation_id)
        self.end(None)

    def cancel(self) -> bool:
        """End it as :meth:`close` does, but a thread that waits for :meth:`result` gets a ``CancelledError``."""
        is_cancelled = super().cancel()
        tell_cancelled(self)
        self.close()
        return is_cancelled

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Filling: by the calls of the connection

    def is_completed_by(self, reply: MessageResult) -> bool:
        """Whether no further reply is waited for once this one is added. With the lock of the calls held."""
        if isinstance(self._expected, int):
            return len(self.replies) + 1 >= self._expected
        if self._expected is None:
            return False
        self.replies.silent -= names_of(reply.responder)
        return not self.replies.silent

    def add(self, reply: MessageResult) -> None:
        """A reply has come. On the thread that reads."""
        with self._lock:
            if self._is_over:
                return
            self.replies.append(reply)
            future = self._next_waiting()
            if future is None:
                self._untaken.append(reply)
        if future is not None:
            future.set_result(reply)

    def end(self, failure: errors.PostageError | None) -> None:
        """There will be no more. From any thread; only the first time counts."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self.replies.failure = failure
            waiting = []
            while (future := self._next_waiting()) is not None:
                waiting.append(future)
        with contextlib.suppress(InvalidStateError):  # it was cancelled
            self.set_result(self.replies)  # before the end is told to what takes them one by one
        for future in waiting:
            future.set_result(None)

    def _next_waiting(self) -> NextReply | None:
        """One that waits for a reply, and is not cancelled. With the lock held."""
        while self._waiting:
            future = self._waiting.popleft()
            if future.can_be_done():
                return future
        return None


class NextReply(Future[MessageResult | None]):
    """The next reply of a gathering, or ``None`` at its end. To cancel it leaves that reply to the one after it.

    :ivar gathering: that gathering
    """

    def __init__(self, gathering: Gathering) -> None:
        super().__init__()
        self.gathering = gathering

    def cancel(self) -> bool:
        """Want it no more. Never blocks; any thread. The gathering goes on."""
        is_cancelled = super().cancel()
        tell_cancelled(self)
        return is_cancelled

    def can_be_done(self) -> bool:
        """Whether it is not cancelled; from now on it cannot be."""
        with self._condition:
            return not self.cancelled() and self.set_running_or_notify_cancel()


def tell_cancelled(future: Future[Any]) -> None:
    """Tell what waits for several futures, such as ``concurrent.futures.wait()``, that one was cancelled.

    ``Future.cancel()`` leaves that to what would have done the future, which here is nothing. Any thread; the first
    time counts.
    """
    with future._condition:
        if future._state == CANCELLED:
            future.set_running_or_notify_cancel()


class Sink:
    """What a call has in place of a future where it gathers: its result, such as a time-out, is an end."""

    def __init__(self, gathering: Gathering) -> None:
        self.gathering = gathering

    def cancelled(self) -> bool:
        """Whether it is wanted no more."""
        return self.gathering.cancelled()

    def set_result(self, result: MessageResult | None) -> None:
        """No more replies come, or this is why there can be none."""
        self.gathering.end(result.failure if result is not None else None)

    def set_exception(self, error: Exception) -> None:
        """No more replies can come."""
        self.gathering.end(error if isinstance(error, errors.PostageError) else errors.PostageError(str(error)))


def names_of(fingerprint: Mapping[str, Any]) -> set[str]:
    """By which names a responder may be expected: its name, ``name@host`` and ``pid@host``."""
    name, pid, host = (fingerprint.get(each) for each in ('name', 'pid', 'host'))
    return {f'{name}', f'{name}@{host}', f'{pid}@{host}'}


def check_expected(expected: Any) -> Expected:
    """Who is expected, as given by the user, or a clear error."""
    if expected is None:
        return None
    if isinstance(expected, int) and not isinstance(expected, bool) and expected > 0:
        return expected
    is_collection = isinstance(expected, (set, frozenset, list, tuple)) and expected
    if is_collection and all(isinstance(name, str) for name in expected):
        return frozenset(expected)
    raise errors.ConfigurationError(
        f'_expect must be a number of replies, 1 or more, or a set of names, not {shown(expected)}'
    )
