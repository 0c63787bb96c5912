"""How many messages are prefetched follows how long they take, in few and well-founded changes."""

from __future__ import annotations

import time

import pytest

from postage.messaging import pace
from postage.messaging.pace import DEPTHS, EVIDENCE, FIRST_DEPTH, HELD_SECONDS, MARGIN, Pace

DEEPEST, MIDDLE, _ = DEPTHS


def observe(paced: Pace, seconds: float, messages: int = EVIDENCE, size: int = 100) -> None:
    """Handle messages one by one, each for so many seconds."""
    for _ in range(messages):
        paced.taken_at = time.monotonic()
        paced.bytes_taken += size
        paced.observe(1, seconds)


def just_enough_for(depth: int) -> float:
    """Seconds a message at which that depth holds the work that may be held."""
    return HELD_SECONDS / depth


def test_it_begins_with_a_few_messages() -> None:
    assert Pace().prefetch == 1 + FIRST_DEPTH


def test_it_changes_nothing_before_there_is_evidence() -> None:
    paced = Pace()
    observe(paced, 0.00001, EVIDENCE - 1)
    assert paced.prefetch == 1 + FIRST_DEPTH
    observe(paced, 0.00001, 1)
    assert paced.prefetch == 1 + DEEPEST


def test_slow_messages_leave_one_in_hand() -> None:
    paced = Pace()
    observe(paced, 2 * HELD_SECONDS)
    assert paced.prefetch == 1


def test_messages_that_have_become_slow_lower_it_and_quick_ones_raise_it_again() -> None:
    paced = Pace()
    observe(paced, 0.00001)
    observe(paced, 1.0, 3 * EVIDENCE)
    assert paced.prefetch == 1
    observe(paced, 0.00001, 20 * EVIDENCE)
    assert paced.prefetch == 1 + DEEPEST


def test_a_speed_between_two_depths_does_not_make_it_go_to_and_fro() -> None:
    paced = Pace()
    observe(paced, 0.00001)
    changes = []
    for _ in range(50):
        before = paced.prefetch
        observe(paced, just_enough_for(DEEPEST) * 1.1, 3 * EVIDENCE)
        observe(paced, just_enough_for(DEEPEST) * 0.9, 3 * EVIDENCE)
        if paced.prefetch != before:
            changes.append(paced.prefetch)
    assert changes == [1 + MIDDLE]


def test_more_is_prefetched_only_by_who_is_quick_enough_with_a_margin() -> None:
    paced = Pace()
    observe(paced, just_enough_for(DEEPEST * MARGIN) * 1.05)
    assert paced.prefetch == 1 + MIDDLE
    observe(paced, just_enough_for(DEEPEST * MARGIN) * 0.9, 10 * EVIDENCE)
    assert paced.prefetch == 1 + DEEPEST


def test_big_bodies_keep_it_low() -> None:
    paced = Pace()
    observe(paced, 0.00001, size=pace.HELD_BYTES)
    assert paced.prefetch == 1


def test_no_fewer_are_prefetched_than_are_handled_at_once() -> None:
    paced = Pace()
    paced.begin(20, False)
    assert paced.prefetch == 20
    observe(paced, 1.0)
    assert paced.prefetch == 20


def test_an_inbox_that_is_stuck_is_given_back_at_once_and_what_is_fixed_never(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pace.time, 'monotonic', lambda: now)
    paced, fixed = Pace(), Pace()
    fixed.begin(1, True)
    now += pace.STUCK_SECONDS * 1.1
    assert paced.is_stuck(100.0)
    assert not paced.is_stuck(now)
    assert paced.slow_down()
    assert paced.prefetch == 1
    assert not paced.is_stuck(100.0)
    assert not fixed.slow_down()
    assert fixed.prefetch == pace.SINGLE_ACTIVE_PREFETCH
