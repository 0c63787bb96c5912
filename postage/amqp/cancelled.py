"""The requests whose callers want no answer any more, by correlation id, as far as this process has been told.

A cancel may come before its request, or for one that another process handles. So it is kept until the request's
deadline, after which the request is dropped anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from postage.amqp.forks import Stage, call_in_child

KEPT = 10_000  # cancels; of more the oldest are forgotten
KEPT_SECONDS = 3600.0  # at most, whatever a deadline says


class Cancelled:
    """Which requests are cancelled. Any thread; nothing blocks.

    :ivar until: the correlation ids of those, and until when that is worth knowing, on the monotonic clock
    """

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """At first, and in a forked child."""
        self.until: dict[str, float] = {}
        self._watchers: dict[str, list[Callable[[], None]]] = {}
        self._lock = threading.Lock()

    def add(self, correlation_id: str, seconds: float) -> None:
        """A request is cancelled; that is worth knowing for so many seconds."""
        with self._lock:
            self.until[correlation_id] = time.monotonic() + min(seconds, KEPT_SECONDS)
            if len(self.until) > KEPT:
                del self.until[next(iter(self.until))]
            watchers = list(self._watchers.get(correlation_id, ()))
        for tell in watchers:
            tell()

    def forget_past(self) -> float | None:
        """Forget what is not worth knowing any more. Returns in how many seconds to do so again, if ever."""
        with self._lock:
            now = time.monotonic()
            self.until = {each: until for each, until in self.until.items() if until > now}
            return min(self.until.values(), default=now) - now if self.until else None

    @contextmanager
    def watching(self, correlation_id: str | None, tell: Callable[[], None]) -> Generator[None, None, None]:
        """Call back when that request is cancelled: at once where it is, else on the thread that reads.

        :param correlation_id: ``None`` where there is nothing to watch
        """
        if not correlation_id:
            yield
            return
        with self._lock:
            self._watchers.setdefault(correlation_id, []).append(tell)
            is_cancelled = correlation_id in self.until
        try:
            if is_cancelled:
                tell()
            yield
        finally:
            with self._lock:
                watchers = self._watchers[correlation_id]
                watchers.remove(tell)
                if not watchers:
                    del self._watchers[correlation_id]


cancelled = Cancelled()
call_in_child(Stage.LOCKS, cancelled.start_over)
