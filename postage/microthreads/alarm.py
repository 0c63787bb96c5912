"""How an idle scheduler sleeps and is woken."""

from __future__ import annotations

import threading
from typing import Protocol


class Sleeper(Protocol):
    """How a scheduler sleeps."""

    def ring(self) -> None:
        """Wake the sleeping thread, or have the next wait return at once. Any thread; never blocks."""

    def wait(self, timeout: float | None) -> None:
        """Sleep until it rings, or for so many seconds; waking for no reason does no harm. Blocks."""


class Alarm:
    """What a sleeping scheduler waits for. A bare lock: the quickest primitive to wake a thread with.

    The lock is held while the alarm is silent. To ring is to release it, to wait is to acquire it. So a ring that comes
    before the wait is not lost, and several count as one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the sleeping thread, or have the next wait return at once. Any thread; never blocks."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it rings already

    def wait(self, timeout: float | None) -> None:
        """Sleep until it rings, or for so many seconds. Blocks."""
        if timeout is None:
            self._lock.acquire()
        else:
            self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
