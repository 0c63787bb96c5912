"""The adapter for tests: messages by hand, and no transport."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Protocol

from postage import errors
from postage.missive.adapters.base import Adapter
from postage.missive.contexts import ProcessingContext
from postage.missive.messages import M, RawMessage


class Runs(Protocol[M]):
    """What the adapter needs of a processor."""

    def context(
        self, message_cls: Callable[[bytes], M], adapter: Adapter[M]
    ) -> AbstractContextManager[ProcessingContext[M]]:
        """Run for the length of a ``with``."""


class TestAdapter(Adapter[M]):
    """Hands messages to a processor, in the caller's thread, and remembers what became of each.

    Made by ``processor.test_client()``.

    :ivar acked: the messages that were acknowledged, in this order
    :ivar nacked: those that were refused, ``rejected`` included
    :ivar rejected: those that were refused for good
    :ivar replies: what they were answered, as bytes
    :ivar ctx: the processing context of this run
    """

    __test__ = False  # pytest would take it for a class of tests, because of its name

    def __init__(self, processor: Runs[M]) -> None:
        self.acked: list[M] = []
        self.nacked: list[M] = []
        self.rejected: list[M] = []
        self.replies: list[bytes] = []
        self._run = ExitStack()
        self._closed = False
        message_cls: Any = RawMessage  # a test brings its messages, of whatever class
        self.ctx: ProcessingContext[M] = self._run.enter_context(processor.context(message_cls, self))

    def send(self, message: M) -> None:
        """Have a message handled. Returns when that is done.

        :raises Exception: what handling it raises where the processor has no dead letter queue
        """
        if self._closed:
            raise errors.Closed('this test client is closed')
        self.ctx.handle(message)

    def close(self) -> None:
        """End the run: the shutdown hooks are called. Does nothing the second time."""
        self._closed = True
        self._run.close()

    def __enter__(self) -> TestAdapter[M]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        self._run.__exit__(kind, error, traceback)

    def ack(self, message: M) -> None:
        """Remember that a message was acknowledged."""
        self.acked.append(message)

    def nack(self, message: M) -> None:
        """Remember that a message was refused."""
        self.nacked.append(message)

    def reject(self, message: M) -> None:
        """Remember that a message was refused for good."""
        self.nacked.append(message)
        self.rejected.append(message)

    def reply(self, message: M, data: bytes, content_type: str) -> None:
        """Remember an answer."""
        self.replies.append(data)
