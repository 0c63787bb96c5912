"""What is counted of a processor's messages, for those that ask how it is: ``stats``, health, metrics.

The scheduler's thread counts, in a few steps for each message. Any thread may read: each number is replaced in one
step, so a reader sees it as it was before or after, and numbers that are read one after the other may be one message
apart.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

from postage.amqp.durations import BOUNDS, Durations, quantile
from postage.messaging.outcomes import Outcome, Reason
from postage.printable import class_of, printable, text_of

RATE_SECONDS: Final = 10.0  # over which a rate is taken
ERROR_LENGTH: Final = 300  # characters of an error's text that are kept


class Rate:
    """How many things a second happened of late, from a total that grows.

    A mark is set once a second, by the first thing that happens in it; so nothing has to be done while nothing happens.
    """

    __slots__ = ('_began', '_marks')

    def __init__(self) -> None:
        self._began = monotonic()
        self._marks: deque[tuple[float, int]] = deque(maxlen=int(RATE_SECONDS) + 2)

    def mark(self, now: float, total: int) -> float:
        """Set a mark, and return when the next one is due. ``total`` does not count what happens now."""
        self._marks.append((now, total))
        return now + 1.0

    def of(self, total: int) -> float:
        """How many a second, over the last :data:`RATE_SECONDS`."""
        now = monotonic()
        since = now - RATE_SECONDS
        before = next((count for at, count in list(self._marks) if at >= since), total)
        return (total - before) / max(1.0, min(RATE_SECONDS, now - self._began))


class HandlerFigures:
    """What is counted of one handler.

    A plain function, which runs to its end in the scheduler's thread, is counted by :func:`call_plain` itself: a call
    for each message would cost more than all the counting.

    :ivar label: the handler's name, with that of its processor's class
    :ivar failed: messages that it failed, by an exception or ``RejectMessage``: the sum of the next two
    :ivar retried: those of them that are to be handled again
    :ivar dead: those of them that are not
    :ivar dropped: those that it, or a filter before it, dropped by ``FilterError``
    :ivar cancelled: requests that it had begun, or was about to, when their callers wanted no answer any more
    :ivar durations: how long it took, whatever came of it
    :ivar began: when the plain function began that runs, as ``time.monotonic()`` has it; 0 where none runs
    :ivar ended_at: when one ended last that was handled to its end
    :ivar begun: of others, what they have in hand: delivery → when that began
    :ivar next_mark: when the next mark of the rate is due
    :ivar last_error: of the last message that it failed: when (``time.time()``), the exception's class and its text
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.failed = self.retried = self.dead = self.dropped = self.cancelled = 0
        self.durations = Durations()
        self.rate = Rate()
        self.next_mark = self.began = self.ended_at = 0.0
        self.begun: dict[Any, float] = {}
        self.last_error: tuple[float, str, str] | None = None

    def mark(self, now: float) -> None:
        """Have the rate know how many there were by now. For the scheduler's thread, once :attr:`next_mark` is due."""
        self.next_mark = self.rate.mark(now, self.total)

    def took(self, seconds: float) -> None:
        """It has handled a message, or failed it. For the scheduler's thread; :func:`call_plain` does the same."""
        now = monotonic()
        if now >= self.next_mark:
            self.mark(now)
        self.durations.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.durations.seconds += seconds

    def ended(self, delivery: Any) -> None:
        """It has handled a message that it had in hand, or failed it. For the scheduler's thread."""
        self.took(monotonic() - self.begun.pop(delivery))

    def raised(self, outcome: Outcome) -> None:
        """The message that it took last has come to that. For the scheduler's thread."""
        fate = outcome.fate
        if fate == 'handled':  # by what ends a processor
            return
        if fate == 'dropped':
            self.dropped += 1
            return
        self.failed += 1
        if fate == 'retried':
            self.retried += 1
        else:
            self.dead += 1
        error = outcome.error
        if error is not None:
            self.last_error = (time.time(), class_of(error), printable(text_of(error), ERROR_LENGTH))

    @property
    def total(self) -> int:
        """All messages that it has taken and not in hand any more. Any thread."""
        return self.durations.count

    @property
    def handled(self) -> int:
        """Those that it handled to their end. Any thread."""
        return self.total - self.failed - self.dropped

    @property
    def begun_at(self) -> list[float]:
        """When each of the messages that it has in hand was begun, as ``time.monotonic()`` has it. Any thread."""
        # list() of a dictionary's values is one step, so the scheduler's thread may add to it meanwhile.
        began, begun = self.began, list(self.begun.values())
        return [began, *begun] if began else begun

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON can have it. Any thread."""
        return {
            'handled': self.handled,
            'failed': self.failed,
            'retried': self.retried,
            'dead': self.dead,
            'dropped': self.dropped,
            'cancelled': self.cancelled,
            'in_hand': len(self.begun_at),
            'oldest_in_hand': _age((self,)),
            'rate': round(self.rate.of(self.total), 3),
            'p50': quantile((self.durations,), 0.5),
            'p99': quantile((self.durations,), 0.99),
            'last_error': error_as_dict(self.last_error),
        }


class Figures:
    """What is counted of one processor.

    :ivar handlers: the same of each of its handlers
    :ivar since: when it was made, as ``time.time()`` has it
    :ivar received: deliveries that were begun
    :ivar redelivered: those of them that may have been delivered before
    :ivar unhandled: those of them that no handler takes
    :ivar unwanted: requests that were dropped before a handler began: their callers had ceased to wait
    :ivar retried: messages that were put off, to be handled again
    :ivar dead: messages that were given up, by the reason; see :data:`postage.messaging.outcomes.Reason`
    :ivar next_mark: when the next mark of the rates is due
    """

    def __init__(self, handlers: Sequence[HandlerFigures]) -> None:
        self.handlers = list(handlers)
        self.since = time.time()
        self.received = self.redelivered = self.unhandled = self.unwanted = self.retried = 0
        self.dead: dict[Reason, int] = {}
        self.next_mark = 0.0

    def mark(self, now: float) -> None:
        """Have the rates know how many there were by now. For the scheduler's thread, once :attr:`next_mark` is due."""
        self.next_mark = now + 1.0
        for handler in self.handlers:
            handler.mark(now)

    def gave_up(self, reason: Reason) -> None:
        """A message was given up. For the scheduler's thread."""
        self.dead[reason] = self.dead.get(reason, 0) + 1

    @property
    def in_hand(self) -> int:
        """Messages that a handler has begun and not ended. Any thread."""
        return sum(len(handler.begun_at) for handler in self.handlers)

    @property
    def oldest_in_hand(self) -> float | None:
        """For how many seconds a handler has had a message, the one that has had it longest. Any thread."""
        return _age(self.handlers)

    @property
    def rate(self) -> float:
        """Messages a second, of late. Any thread."""
        return sum(handler.rate.of(handler.total) for handler in self.handlers)

    def quantile(self, part: float) -> float | None:
        """As :func:`postage.amqp.durations.quantile`, of all handlers. Any thread."""
        return quantile([handler.durations for handler in self.handlers], part) if self.handlers else None

    @property
    def last_error(self) -> tuple[float, str, str] | None:
        """The last one of all handlers. Any thread."""
        return max((handler.last_error for handler in self.handlers if handler.last_error), default=None)

    def as_dict(self) -> dict[str, Any]:
        """All of it but the handlers, as JSON can have it. Any thread."""
        return {
            'received': self.received,
            'redelivered': self.redelivered,
            'handled': sum(handler.handled for handler in self.handlers),
            'failed': sum(handler.failed for handler in self.handlers),
            'unhandled': self.unhandled,
            'unwanted': self.unwanted,
            'retried': self.retried,
            'dead': sum(list(self.dead.values())),
            'dead_by_reason': dict(self.dead),
            'in_hand': self.in_hand,
            'oldest_in_hand': self.oldest_in_hand,
            'rate': round(self.rate, 3),
            'p50': self.quantile(0.5),
            'p99': self.quantile(0.99),
            'last_error': error_as_dict(self.last_error),
        }


def _age(handlers: Sequence[HandlerFigures]) -> float | None:
    begun = [at for handler in handlers for at in handler.begun_at]
    return round(monotonic() - min(begun), 3) if begun else None


def error_as_dict(error: tuple[float, str, str] | None) -> dict[str, Any] | None:
    """The last error as JSON can have it."""
    return None if error is None else {'at': round(error[0], 3), 'exception': error[1], 'message': error[2]}
