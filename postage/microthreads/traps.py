"""What a microthread may yield to wait for, futures and other microthreads aside."""

from __future__ import annotations

from postage.microthreads.parking import Wait


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

    It remembers: a signal that is set before the wait lets the next wait pass at once. Several settings before the
    microthread goes on count as one. One microthread at a time may wait for a signal; a second one that yields it gets
    a ``RuntimeError`` there.

    :ivar is_set: whether a setting has not let a microthread go on yet
    :ivar wait: the wait that the next setting ends; ``None`` while no microthread waits
    """

    __slots__ = ('_told', 'is_set', 'wait')

    def __init__(self) -> None:
        self.is_set = False
        self.wait: Wait | None = None
        self._told: Wait | None = None  # the wait whose microthread was woken already

    def set(self) -> None:
        """Let the waiting microthread, or the next one to wait, go on. May be called from any thread; never blocks."""
        # The order is safe: the scheduler writes the wait before it looks at the flag (Turns._park). Either it sees the
        # flag, or this thread sees the wait. `_told` is written last, so that where an exception of a signal handler
        # cuts this call short the next call wakes the microthread. Written late, after the `_told` of a newer wait, it
        # costs one wake-up that is ignored.
        self.is_set = True
        wait = self.wait
        if wait is not None and wait is not self._told:
            wait[0].lot.wake(wait)
            self._told = wait
