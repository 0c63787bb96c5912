"""When the attempts of calls are over, without a broker."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest

from postage.messaging.rpc import Deadlines


class Call:
    """As much of a call as its deadline needs."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.attempt = 1


@pytest.fixture
def deadlines() -> Deadlines:
    return Deadlines()


def set_(deadlines: Deadlines, call: Any) -> float:
    return deadlines.set(call, call.timeout)


def test_without_calls_none_is_due(deadlines: Deadlines) -> None:
    assert deadlines.earliest() == math.inf
    assert deadlines.take_past(math.inf) == []


def test_a_deadline_is_so_many_seconds_from_now(deadlines: Deadlines) -> None:
    before = time.monotonic()
    deadline = set_(deadlines, Call(5.0))
    assert before + 5.0 <= deadline <= time.monotonic() + 5.0
    assert deadlines.earliest() == deadline


def test_the_earliest_of_all_time_outs_counts(deadlines: Deadlines) -> None:
    set_(deadlines, Call(50.0))
    soonest = set_(deadlines, Call(1.0))
    set_(deadlines, Call(1.0))
    assert deadlines.earliest() == soonest


def test_those_that_are_over_are_taken_once_in_the_order_in_which_they_began(deadlines: Deadlines) -> None:
    calls: list[Any] = [Call(1.0) for _ in range(5)]
    ends = [set_(deadlines, call) for call in calls]
    assert deadlines.take_past(ends[2]) == calls[:3]
    assert deadlines.take_past(ends[2]) == []
    assert deadlines.earliest() == ends[3]


def test_a_call_that_is_forgotten_is_not_over(deadlines: Deadlines) -> None:
    call: Any = Call(1.0)
    set_(deadlines, call)
    deadlines.forget(call)
    deadlines.forget(call)
    assert deadlines.earliest() == math.inf
    assert deadlines.take_past(math.inf) == []


def test_the_next_attempt_of_a_call_comes_after_those_that_began_meanwhile(deadlines: Deadlines) -> None:
    first, second = Call(1.0), Call(1.0)
    set_(deadlines, first)
    end = set_(deadlines, second)
    first.attempt = 2
    set_(deadlines, first)
    assert deadlines.earliest() == end
    assert deadlines.take_past(math.inf) == [second, first]


def test_random_calls_are_over_when_their_time_has_come(deadlines: Deadlines) -> None:
    seed = random.randrange(1_000_000)
    print('seed', seed)
    dice = random.Random(seed)
    ends: dict[Any, float] = {}
    for _ in range(500):
        if ends and dice.random() < 0.3:
            call = dice.choice(list(ends))
            deadlines.forget(call)
            del ends[call]
        else:
            call = Call(dice.choice([0.5, 1.0, 2.0]))
            ends[call] = set_(deadlines, call)
    moment = dice.choice(list(ends.values()))
    assert deadlines.earliest() == min(ends.values())
    assert set(deadlines.take_past(moment)) == {call for call, end in ends.items() if end <= moment}
