"""Calls that a scheduler makes later."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from itertools import count

FEW = 64  # cancelled timers that are left where they are until their time comes


class Timer:
    """A call that a scheduler makes later. Returned by :meth:`MicroScheduler.call_later`."""

    __slots__ = ('_callback', '_timers')

    def __init__(self, callback: Callable[[], object], timers: Timers) -> None:
        self._callback: Callable[[], object] | None = callback
        self._timers = timers

    def cancel(self) -> None:
        """Have the call not made, if it has not been made yet. Any thread, but in another one it may come too late."""
        if self._callback is not None:
            self._callback = None
            self._timers.cancelled += 1

    def take(self) -> Callable[[], object] | None:
        """Return what is to be called now; ``None`` where it was cancelled. The timer is spent then."""
        callback, self._callback = self._callback, None
        if callback is None:
            self._timers.cancelled -= 1
        return callback


class Timers:
    """The timers of one scheduler. Used in its thread alone, or before its loop starts.

    :ivar heap: ``(time, number, timer)``, the next one to be due first; the number keeps the order of equal times
    :ivar cancelled: how many of them were cancelled; about so many, where other threads cancel
    """

    __slots__ = ('_numbers', 'cancelled', 'heap')

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Timer]] = []
        self.cancelled = 0
        self._numbers = count()

    def add(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Have ``callback()`` due after that many seconds.

        :raises TypeError: ``seconds`` is no number
        :raises ValueError: it is not a number (NaN), which has no place in the order
        """
        due = time.monotonic() + seconds
        if math.isnan(due):
            raise ValueError('a timer needs a number of seconds, not nan')
        # A cancelled timer stays in the heap until it is due. Time-outs that are long and hardly ever reached would
        # fill the memory with them, so they are swept out once they are the majority.
        if self.cancelled > FEW and 2 * self.cancelled > len(self.heap):
            self.heap[:] = [entry for entry in self.heap if entry[2]._callback is not None]
            heapq.heapify(self.heap)
            self.cancelled = 0
        timer = Timer(callback, self)
        heapq.heappush(self.heap, (due, next(self._numbers), timer))
        return timer

    def pop_due(self, now: float) -> Callable[[], object] | None:
        """Take out and return the next call that is due at a time; ``None`` where there is none."""
        while self.heap and self.heap[0][0] <= now:
            callback = heapq.heappop(self.heap)[2].take()
            if callback is not None:
                return callback
        return None
