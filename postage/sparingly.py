"""Log lines that another program can cause: so many in a while, and then how many were left out."""

from __future__ import annotations

import logging
import threading
import time

logger = logging.getLogger('postage')

LINES = 10  # of one kind that are logged in a while
SECONDS = 10.0  # how long that is


class Sparingly:
    """Logs lines of one kind at a bounded rate. Any thread."""

    def __init__(self) -> None:
        self._began = -SECONDS
        self._logged = self._left_out = 0
        self._lock = threading.Lock()

    def log(self, level: int, text: str, *arguments: object) -> None:
        """Log a line, unless there were too many of late; the next one that is logged says how many were left out."""
        with self._lock:
            now = time.monotonic()
            if now - self._began >= SECONDS:
                self._began, self._logged = now, 0
            if self._logged >= LINES:
                self._left_out += 1
                return
            self._logged += 1
            left_out, self._left_out = self._left_out, 0
        if left_out:
            text, arguments = f'{text} (%d more lines of this kind were left out)', (*arguments, left_out)
        logger.log(level, text, *arguments)


class GrowingPauses:
    """Pauses between things that go wrong one soon after the other. For one thread.

    :param free: how many of them are followed by no pause
    :param longest: seconds
    """

    def __init__(self, free: int, longest: float = 5.0) -> None:
        self._free = free
        self._longest = longest
        self._count = 0
        self._last = 0.0

    def next(self) -> float:
        """It has gone wrong again. Returns how many seconds to wait before the next attempt."""
        now = time.monotonic()
        self._count = self._count + 1 if now - self._last < 2 * self._longest else 0
        self._last = now
        excess = self._count - self._free
        return min(0.05 * 2.0 ** min(excess, 20), self._longest) if excess > 0 else 0.0
