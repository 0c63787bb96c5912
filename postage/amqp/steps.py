"""Work on an I/O thread that is written in sequence: a generator that yields the future of each answer it waits for.

::

    def declare_and_bind(channel):
        yield channel.operate('queue_declare', queue='jobs')
        yield channel.operate('queue_bind', queue='jobs', exchange='work')

:class:`Drive` takes such steps, each when the one before it is done. It has no thread of its own: the thread takes a
step that finishes the future before it, which on a connection is always the I/O thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

Steps = Generator['Future[Any]', Any, Any]
"""Each yielded future is awaited, its result sent back in, its exception thrown in."""


class Operation(Future[Any]):
    """One call of a pika channel method: the future of the broker's answer.

    :ivar method: its name
    :ivar doing: what it is for, as in "declare queue 'jobs'"
    :ivar generation: of the channel, where it is about what that had
    """

    def __init__(self, method: str, arguments: dict[str, Any], doing: str, generation: int | None = None) -> None:
        super().__init__()
        self.method = method
        self.arguments = arguments
        self.doing = doing
        self.generation = generation


class Drive:
    """Steps that are being taken, from the moment that it is made. On the I/O thread; does not block.

    :ivar outcome: the future of what the steps return or raise. It cannot be cancelled, so several may wait for it.
    :ivar awaited: the future that the last step yielded
    """

    __slots__ = ('_steps', 'awaited', 'outcome')

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.awaited: Future[Any] | None = None
        self.outcome: Future[Any] = Future()
        self.outcome.set_running_or_notify_cancel()
        self._advance(None)

    def _advance(self, finished: Future[Any] | None) -> None:
        while not self.outcome.done():
            try:
                error = finished.exception() if finished is not None else None
                if error is not None:
                    awaited = self._steps.throw(error)
                else:
                    awaited = self._steps.send(finished.result() if finished is not None else None)
            except StopIteration as stop:
                self.outcome.set_result(stop.value)
            except BaseException as failure:
                self.outcome.set_exception(failure)
            else:
                self.awaited = awaited
                if not awaited.done():
                    awaited.add_done_callback(self._advance)
                    return
                finished = awaited  # in this loop, so that a long row of done futures needs no deep stack

    def abandon(self, error: BaseException) -> None:
        """Take no further step, withdraw what has not begun, and fail with that error. Does nothing at the end."""
        if self.outcome.done():
            return
        self.outcome.set_exception(error)
        self._steps.close()
        if self.awaited is not None:
            self.awaited.cancel()  # only an operation that has not begun can be: see Channel.operate


def when_done(steps: Steps, then: Callable[[BaseException | None], None]) -> None:
    """Take steps and call back at their end, with what they raised or ``None``. On the I/O thread."""
    Drive(steps).outcome.add_done_callback(lambda outcome: then(outcome.exception()))


def no_steps() -> Steps:
    """Nothing to do."""
    yield from ()


def done(result: Any = None) -> Future[Any]:
    """A future that is done."""
    future: Future[Any] = Future()
    future.set_result(result)
    return future
