"""How many messages to prefetch where the user leaves it open: fair to other consumers, and fast.

A consumer with one message in hand is fair, for an idle one gets the next; but each message costs a round trip.
One with hundreds in hand is fast; but where its handlers are slow it sits on work that idle ones could do. So the
prefetch count follows the handlers: it begins with a few messages, grows to what they handle in :data:`HELD_SECONDS`,
and falls to one as soon as they are slow; what was fetched and not begun goes back then. Big bodies keep it low, too,
for memory's sake.

https://www.rabbitmq.com/docs/consumer-prefetch
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from postage import errors
from postage.printable import shown

HELD_SECONDS = 0.2  # work that may wait in one consumer's inbox while others are idle
HELD_BYTES = 16 * 1024 * 1024  # bodies that may wait there
FIRST_DEPTH = 8  # before anything is known: small bursts are still dealt out evenly among consumers
DEPTHS = (1024, 64, 8)  # a few steps, for each change ends the consumer and begins a new one
STUCK_SECONDS = 0.05  # an inbox from which nothing was taken for so long is given back
EVIDENCE = 16  # messages to judge by before prefetching more, or less; a stuck inbox speaks for itself
EVIDENCE_SECONDS = 0.01  # that fewer messages may have taken for their average to be looked at
MARGIN = 2  # times as quick as a depth asks for are the messages that lead to it: no going to and fro between two
WEIGHT = 0.1  # of a message in the moving average
SINGLE_ACTIVE_PREFETCH = 64


class Pace:
    """Follows how long messages take, and says how many to prefetch.

    :ivar prefetch: how many
    :ivar taken_at: when a message was last taken out of the inbox, to be set by the thread that does so
    :ivar bytes_taken: how many bytes were, to be added to
    """

    def __init__(self) -> None:
        self.taken_at = 0.0
        self.bytes_taken = 0
        self.begin(1, False)

    def begin(self, at_once: int, is_fixed: bool) -> None:
        """Start again, knowing nothing.

        :param at_once: how many messages are handled at the same time
        :param is_fixed: whether the count must not change, because a change would hand the queue to another consumer
        """
        self._at_once = at_once
        self._is_fixed = is_fixed
        self._average = 0.0  # seconds a message
        self._size = 0.0  # bytes a message
        self._seen = 0  # messages since the last change
        self._handled, self._seconds = 0, 0.0  # messages, and what they took, since the average was last looked at
        if is_fixed:
            self.prefetch = max(at_once, SINGLE_ACTIVE_PREFETCH)
        else:
            self.prefetch = at_once if at_once > 1 else at_once + FIRST_DEPTH
        self.taken_at = time.monotonic()

    def observe(self, messages: int, seconds: float) -> bool:
        """Take note that so many messages took so long. Returns whether ``prefetch`` has changed. Any thread."""
        if not messages or self._is_fixed:
            return False
        self._handled += messages
        self._seconds += seconds
        if self._handled < EVIDENCE and self._seconds < EVIDENCE_SECONDS:
            return False
        messages, seconds = self._handled, self._seconds
        self._handled, self._seconds = 0, 0.0
        each = seconds / messages
        weight = 1.0 if not self._seen else min(1.0, WEIGHT * messages)
        self._average += weight * (each - self._average)
        self._size += weight * (self.bytes_taken / messages - self._size)
        self.bytes_taken = 0
        self._seen += messages
        if self._seen < EVIDENCE:
            return False  # each change costs consumers that share a queue their even turns
        return self._change(self._at_once + self._depth() if self._depth() > 1 else self._at_once)

    def _depth(self) -> int:
        affordable = min(HELD_SECONDS / max(self._average, 1e-9), HELD_BYTES / max(self._size, 1))
        for depth in DEPTHS:
            is_more = self._at_once + depth > self.prefetch
            if depth * (MARGIN if is_more else 1) <= affordable:
                return depth
        return 1

    def is_stuck(self, since: float) -> bool:
        """Whether the messages that wait in the inbox are not taken out. Any thread.

        :param since: the moment, on the monotonic clock, from which on there have been some
        """
        return self.prefetch > self._at_once and time.monotonic() - max(since, self.taken_at) > STUCK_SECONDS

    def slow_down(self) -> bool:
        """Go back to the fewest. Returns whether that is a change."""
        self._average = max(self._average, STUCK_SECONDS)
        return not self._is_fixed and self._change(self._at_once)

    def _change(self, prefetch: int) -> bool:
        if prefetch == self.prefetch:
            return False
        self.prefetch = prefetch
        self._seen = 0
        return True


class Prefetch:
    """How many messages a consumer prefetches: what the user says, else what its pace says; more while some are aside.

    :param count: what the user says; ``None`` to follow the pace
    :param where: where the user says it, for the error
    :raises errors.ConfigurationError: it is no such count
    :ivar pace: what says it otherwise
    :ivar count: how many, as asked for last
    """

    def __init__(self, count: int | None, where: str) -> None:
        self.pace = Pace() if count is None else None
        count = self.pace.prefetch if self.pace is not None else count
        if not isinstance(count, int) or not 0 <= count <= 65535:
            raise errors.ConfigurationError(f'{where} must be None or a number from 0 to 65535, not {shown(count)}')
        self._given = self._base = self.count = count
        self._aside = 0
        self._resize: Callable[[], None]
        # The thread that consumes and the I/O thread both change the count. What is asked for last must be what is
        # wanted last, so it is looked up and asked for under one lock.
        self._lock = threading.Lock()

    def begin(self, at_once: int, is_fixed: bool, resize: Callable[[], None]) -> int:
        """Start again, knowing nothing. Returns the count to begin with.

        :param at_once: how many messages are handled at the same time; no fewer are prefetched
        :param is_fixed: whether the count must not change
        :param resize: has the channel look at :attr:`count`, and does not block
        """
        self._aside, self._resize = 0, resize
        if self.pace is not None:
            self.pace.begin(at_once, is_fixed)
            self.count = self.pace.prefetch
        elif self._given:
            self.count = max(self._given, at_once)
        self._base = self.count
        return self.count

    def set_aside(self, change: int) -> None:
        """One message more (1), or less (-1), stays unsettled while others of its queue are to be delivered."""
        self._aside += change
        self.resize()

    def slow_down(self) -> None:
        """The inbox has not been touched for long: give it back to others. On the I/O thread."""
        if self.pace is not None and self.pace.slow_down():
            self.resize()

    def resize(self) -> None:
        """Have the channel prefetch what is wanted now. Never blocks; any thread."""
        with self._lock:
            wanted = self._base if self.pace is None else self.pace.prefetch
            if self._aside and wanted:
                # By powers of two, for each change ends the consumer and begins a new one; and never back meanwhile.
                wanted = max(self.count, wanted + max(8, 1 << (2 * self._aside).bit_length()))
            if wanted != self.count:
                self.count = wanted
                self._resize()
