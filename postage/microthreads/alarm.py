"""How an idle scheduler sleeps and is woken."""

from __future__ import annotations

import threading
from typing import Protocol


class Sleeper(Protocol):
    """How a scheduler sleeps."""

    def ring(self) -> None:
        """Wake the sleeper, or have the next wait return at once. Any thread."""

    def wait(self, timeout: float | None) -> None:
        """Sleep until it rings, or for so many seconds; waking for no reason does no harm."""


class Alarm:
    """What a sleeping scheduler waits for. A bare lock: the quickest primitive to wake a thread with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the sleeper, or have the next wait return at once. Any thread."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it rings already

    def wait(self, timeout: float | None) -> None:
        """Sleep until it rings, or for so many seconds."""
        if timeout is None:
            self._lock.acquire()
        else:
            self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
