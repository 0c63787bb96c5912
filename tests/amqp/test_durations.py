"""How long things took, by buckets."""

from __future__ import annotations

from bisect import bisect_left

import pytest

from postage.amqp.durations import BOUNDS, CONVENTIONAL, Durations, quantile


def durations(*seconds: float) -> Durations:
    took = Durations()
    for each in seconds:
        took.buckets[bisect_left(BOUNDS, each)] += 1
        took.seconds += each
    return took


def test_the_bounds_rise_and_have_those_of_the_convention() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert set(CONVENTIONAL) <= set(BOUNDS)


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    found = durations(*[0.0012] * 98, 0.3, 3.3)
    assert [quantile((found,), part) for part in (0.5, 0.99, 1)] == [0.0015, 0.3, 4]
    assert found.count == 100
    assert found.seconds == pytest.approx(98 * 0.0012 + 3.6)


def test_a_quantile_of_nothing_is_none_and_of_what_is_beyond_all_bounds_the_last() -> None:
    assert quantile((Durations(),), 0.5) is None
    assert quantile((durations(10_000),), 0.5) == BOUNDS[-1]


def test_durations_are_told_by_the_bounds_of_the_convention_exactly() -> None:
    assert durations(0.004, 0.005, 0.006, 0.3, 11).by_convention() == [2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert durations(*CONVENTIONAL, 10.1).by_convention() == [1] * (len(CONVENTIONAL) + 1)
