"""What a microthread may yield to wait for, futures and other microthreads aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postage.microthreads.scheduler import Task


class ExitScheduler(Exception):
    """Raised by a microthread to end its scheduler: the current round is finished, then the loop ends.

    This is control flow, not an error.
    """


class sleep:  # noqa: N801 - it is written as a call: yield sleep(1)
    """``yield sleep(seconds)`` parks the microthread for at least that long."""

    __slots__ = ('seconds',)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Signal:
    """What one microthread waits for until another thread, or another microthread, has something for it.

    It remembers: a signal that is set before anybody waits lets the next wait pass at once. Several settings
    before the wait count as one.
    """

    __slots__ = ('_is_set', '_task')

    def __init__(self) -> None:
        self._is_set = False
        self._task: Task | None = None

    def set(self) -> None:
        """Let the waiting microthread, or the next one to wait, go on. May be called from any thread; never blocks."""
        self._is_set = True
        task = self._task
        if task is not None:
            self._task = None
            task.scheduler.wake(task, self)

    def park(self, task: Task) -> bool:
        """Have a task wait; ``False`` where it need not."""
        # The order matters: whoever sets the flag after our look at it finds the task.
        self._task = task
        if self._is_set:
            self._is_set = False
            self._task = None
            return False
        return True

    def woken(self) -> None:
        """The waiting task is about to go on."""
        self._is_set = False


class Timer:
    """A call that a scheduler makes later. Returned by :meth:`MicroScheduler.call_later`."""

    __slots__ = ('_callback',)

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """See to it that the call is not made, if it has not been made yet."""
        self._callback = None
