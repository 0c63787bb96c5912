"""Messages that a quorum queue keeps back for a while before it delivers them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from postage.broker.clock import Clock, Timer
from postage.broker.messages import QueuedMessage


class DelayedRetries:
    """Messages of a quorum queue that wait before they are delivered again.

    See https://www.rabbitmq.com/docs/4.3/quorum-queues: ``x-delayed-retry-type`` says which of those that come back,
    and the time grows with each attempt from ``x-delayed-retry-min`` to ``x-delayed-retry-max`` milliseconds.

    :param retry: takes a message whose time has come
    """

    def __init__(self, clock: Clock, arguments: Mapping[str, Any], retry: Callable[[QueuedMessage], None]) -> None:
        self._clock = clock
        self._retry = retry
        self._type = arguments.get('x-delayed-retry-type')
        shortest = arguments.get('x-delayed-retry-min')
        self._shortest: int = shortest if isinstance(shortest, int) else 0
        longest = arguments.get('x-delayed-retry-max')
        self._longest: int = longest if isinstance(longest, int) else self._shortest
        self._waiting: dict[QueuedMessage, Timer] = {}

    def hold_back(self, entry: QueuedMessage, failed: bool) -> bool:
        """Keep a message that comes back, if it has to wait, and tell whether it does.

        :param failed: whether its delivery counts as an attempt
        """
        if self._type not in ('all', 'failed' if failed else 'returned') or self._shortest <= 0:
            return False
        milliseconds = min(self._shortest * max(1, entry.returns), self._longest)
        if milliseconds <= 0:
            return False
        self._waiting[entry] = self._clock.call_later(milliseconds / 1000, lambda: self._is_due(entry))
        return True

    def _is_due(self, entry: QueuedMessage) -> None:
        del self._waiting[entry]
        self._retry(entry)

    def __len__(self) -> int:
        return len(self._waiting)

    def clear(self) -> int:
        """Forget everything and return how much it was."""
        count = len(self._waiting)
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        return count
