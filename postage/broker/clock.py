"""Time, and what is to happen at a later time.

Everything in the broker that waits asks such a clock and no other, so that a test may move it forward instead of
waiting. A broker has two: one for messages and queues, one for heartbeats and handshakes.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable


class Timer:
    """One call that a clock will make, unless it is cancelled before."""

    __slots__ = ('callback', 'due')

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the call; more than once does no harm."""
        self.callback = None


class Clock:
    """Monotonic seconds that can be moved forward, and the timers that hang on them."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Return the seconds of this clock; only differences have a meaning."""
        return time.monotonic() + self._ahead

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Have ``callback`` called by :meth:`run_due`, once that many seconds have passed."""
        timer = Timer(self.now() + seconds, callback)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def seconds_to_next(self) -> float | None:
        """Return how long there is nothing to do; ``None`` where no timer is set."""
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        return max(0.0, timers[0][0] - self.now()) if timers else None

    def run_due(self) -> None:
        """Call what is due, in the order of its time."""
        while self._timers and self._timers[0][0] <= self.now():
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()

    def advance(self, seconds: float) -> None:
        """Move the clock forward, and call everything that falls due on the way at its own time."""
        goal = self.now() + seconds
        while (wait := self.seconds_to_next()) is not None and self.now() + wait <= goal:
            self._ahead += wait
            self.run_due()
        self._ahead += max(0.0, goal - self.now())
