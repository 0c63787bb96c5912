"""Ending an adapter's run in good order on SIGTERM and SIGINT."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar('T')


class ShutdownHandler:
    """Ends what it surrounds at the first SIGTERM or SIGINT (Ctrl-C): a message in hand is finished, a wait is not.

    ::

        with ShutdownHandler() as shutdown:
            while not shutdown.should_exit():
                data = shutdown.wait_for(transport.read)
                ...

    A second signal ends the process at once, as that signal does by default. Outside the main thread, where Python
    allows no signal handlers, only :meth:`set_exit` ends it.

    :param callback: called with the number of the first signal, in the main thread, between two instructions of
        whatever runs there; then the flag is set
    :ivar wake: called when the flag is set by the program, in that thread; an adapter wakes its own wait by it
    """

    def __init__(self, callback: Callable[[int], object] | None = None) -> None:
        self.callback = callback
        self.wake: Callable[[], object] | None = None
        self._exiting = False
        self._is_waiting = False
        self._previous: dict[int, Any] = {}
        self._waiting: list[threading.Lock] = []  # one for each thread in wait_for_flag, which waits to acquire it

    def __enter__(self) -> ShutdownHandler:
        self.enable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.disable()
        return isinstance(error, _Interrupted)

    def enable(self) -> None:
        """Take SIGTERM and SIGINT. Does nothing outside the main thread."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)

    def disable(self) -> None:
        """Have the signals handled as they were before."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def should_exit(self) -> bool:
        """Whether it is time to end."""
        return self._exiting

    def set_exit(self) -> None:
        """Say that it is time to end: set the flag. Any thread; does not block. It interrupts no :meth:`wait_for`."""
        self._set()
        if self.wake is not None:
            self.wake()

    set_flag = set_exit

    def wait_for_flag(self) -> None:
        """Wait until it is time to end, by a signal or by :meth:`set_exit`. Blocks; any thread."""
        waiting = threading.Lock()
        waiting.acquire()
        self._waiting.append(waiting)
        # The order matters: what sets the flag after our look at it finds this thread among those that wait.
        if not self._exiting:
            if threading.current_thread() is threading.main_thread():
                self.wait_for(waiting.acquire)
            else:
                waiting.acquire()

    def _set(self) -> None:
        """Set the flag and release the threads that wait for it.

        Without a lock: the signal handler calls it, too, in the middle of anything. ``pop`` gives each of them once.
        """
        self._exiting = True
        while self._waiting:
            self._waiting.pop().release()

    def wait_for(self, call: Callable[[], T]) -> T | None:
        """Call something that waits, and nothing else: a signal interrupts it.

        :return: what it returns; ``None`` where it is time to end
        """
        try:
            # The order is safe: this writes `_is_waiting` and then looks at the flag, the signal handler does the
            # opposite, in the same thread. So either the flag is seen here, or the handler interrupts the call.
            self._is_waiting = True
            if self._exiting:
                return None
            return call()
        except _Interrupted:
            return None
        finally:
            self._is_waiting = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. Runs in the main thread, between two instructions of whatever is running there."""
        if self._exiting:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        try:
            if self.callback is not None:
                self.callback(number)
        finally:
            self._set()
        if self._is_waiting:
            self._is_waiting = False
            raise _Interrupted


class _Interrupted(BaseException):
    """Raised in the main thread by a signal, only while it waits."""
