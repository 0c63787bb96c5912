"""How long messages take until it is known what became of them."""

from __future__ import annotations

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds: the buckets that the OpenTelemetry conventions have for what a client does with a broker."""


class Durations:
    """What the messages of one channel took.

    :ivar buckets: how many took no longer than each of :data:`BOUNDS`, and longer than the one before; the last is for
        those that took longer than all
    :ivar seconds: all of them together
    """

    __slots__ = ('buckets', 'seconds')

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
