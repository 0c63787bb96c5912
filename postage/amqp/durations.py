"""How long things took, counted by buckets: messages until it is known what became of them, and handlers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final

BOUNDS: Final = tuple(
    round(mantissa * 10.0**exponent, 9) for exponent in range(-5, 3) for mantissa in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7.5)
)
"""Seconds, the upper bounds of the buckets: nine to a power of ten, from 10 µs to 750 s."""
CONVENTIONAL: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Those of them that the OpenTelemetry conventions have, so that a histogram by these is exact.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/
"""
_CONVENTIONAL_ENDS: Final = (0, *(BOUNDS.index(bound) + 1 for bound in CONVENTIONAL), len(BOUNDS) + 1)


class Durations:
    """How long things of one kind took. Whatever counts them does so itself, without a call for each.

    :ivar buckets: how many took no longer than each of :data:`BOUNDS`, and longer than the one before; the last is for
        those that took longer than all
    :ivar seconds: all of them together
    """

    __slots__ = ('buckets', 'seconds')

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    def by_convention(self) -> list[int]:
        """How many there were by :data:`CONVENTIONAL`, and how many took longer than all of these."""
        buckets = list(self.buckets)
        return [sum(buckets[start:end]) for start, end in pairwise(_CONVENTIONAL_ENDS)]


def quantile(durations: Iterable[Durations], part: float) -> float | None:
    """Seconds within which that part of them, 0 to 1, were done: a bound, or :data:`BOUNDS`' last for longer ones.

    ``None`` where there were none.
    """
    buckets = [sum(column) for column in zip(*(each.buckets for each in durations), strict=True)]
    wanted = part * sum(buckets)
    if not wanted:
        return None
    reached = 0
    for bound, number in zip((*BOUNDS, BOUNDS[-1]), buckets, strict=True):
        reached += number
        if reached >= wanted:
            return bound
    return BOUNDS[-1]
