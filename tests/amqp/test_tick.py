"""The tick looks after what busy threads left undone, while there is activity, and then rests."""

from __future__ import annotations

import pytest

from postage.amqp.tick import SECONDS, Tick
from support.loops import StepLoop


class Looks:
    """A look that notes what it is told, and goes on so many times."""

    def __init__(self, goes_on: int = 0) -> None:
        self.notes: list[bool] = []
        self.goes_on = goes_on

    def __call__(self, was_stirred: bool) -> bool:
        self.notes.append(was_stirred)
        self.goes_on -= 1
        return self.goes_on >= 0


@pytest.fixture
def loop() -> StepLoop:
    return StepLoop()


@pytest.fixture
def tick(loop: StepLoop) -> Tick:
    return Tick(loop, loop.add_callback_threadsafe)


def test_without_activity_there_is_no_look(loop: StepLoop, tick: Tick) -> None:
    looks = Looks()
    tick.add(looks)
    loop.run(1.0)
    assert looks.notes == []
    assert not tick.is_ticking


def test_one_look_after_the_last_activity_is_the_last(loop: StepLoop, tick: Tick) -> None:
    looks = Looks()
    tick.add(looks)
    tick.stir()
    loop.run(1.0)
    assert looks.notes == [True, False]
    assert not tick.is_ticking
    assert loop.is_idle


def test_it_looks_at_its_own_pace_however_often_there_is_activity(loop: StepLoop, tick: Tick) -> None:
    looks = Looks()
    tick.add(looks)
    for _ in range(10):
        for _ in range(100):
            tick.stir()
        loop.run(SECONDS)
    assert looks.notes == [True] * 10
    assert loop.asked == 1


def test_where_there_is_something_to_look_after_it_goes_on(loop: StepLoop, tick: Tick) -> None:
    idle, busy = Looks(), Looks(goes_on=5)
    tick.add(idle)
    tick.add(busy)
    tick.stir()
    loop.run(1.0)
    assert idle.notes == busy.notes == [True] + [False] * 5


def test_after_it_has_ended_it_begins_again_with_the_next_activity(loop: StepLoop, tick: Tick) -> None:
    looks = Looks()
    tick.add(looks)
    for _ in range(3):
        tick.stir()
        loop.run(1.0)
    assert looks.notes == [True, False] * 3


def test_two_threads_that_begin_at_the_same_time_have_it_look_once(loop: StepLoop, tick: Tick) -> None:
    looks = Looks()
    tick.add(looks)
    tick.is_stirred = True
    tick.begin()  # both threads saw that it did not tick
    tick.begin()
    loop.run(SECONDS)
    assert looks.notes == [True]


def test_an_activity_that_still_found_it_ticking_is_seen_by_one_more_look(loop: StepLoop, tick: Tick) -> None:
    """The I/O thread clears `is_ticking` first and looks at `is_stirred` after that."""

    class StirredAtTheEnd(Tick):
        is_last = False

        def __setattr__(self, name: str, value: object) -> None:
            if name == 'is_ticking' and value is False and self.is_last:
                self.is_last = False
                assert self.is_ticking  # so the active thread does not begin
                self.is_stirred = True
            super().__setattr__(name, value)

    stirred = StirredAtTheEnd(loop, loop.add_callback_threadsafe)
    looks = Looks()
    stirred.add(looks)
    stirred.stir()
    loop.run(SECONDS)
    stirred.is_last = True
    loop.run(1.0)
    assert looks.notes == [True, False, True, False]


def test_a_look_that_fails_ends_no_ticking(loop: StepLoop, tick: Tick) -> None:
    def fails(_: bool) -> bool:
        raise ValueError('in a look')

    looks = Looks()
    tick.add(looks)
    tick.add(fails)
    tick.stir()
    with pytest.raises(ValueError, match='in a look'):
        loop.run(SECONDS)
    tick.remove(fails)
    loop.run(1.0)
    assert looks.notes == [True, False]


def test_a_look_may_be_taken_away_twice(loop: StepLoop, tick: Tick) -> None:
    looks = Looks()
    tick.add(looks)
    tick.remove(looks)
    tick.remove(looks)
    tick.stir()
    loop.run(1.0)
    assert looks.notes == []
