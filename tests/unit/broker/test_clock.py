"""The clock that a test can move."""

from __future__ import annotations

from postage.broker.clock import Clock


def test_what_falls_due_on_the_way_happens_in_order_and_at_its_own_time() -> None:
    clock = Clock()
    start = clock.now()
    seen: list[tuple[str, int]] = []

    def note(name: str) -> None:
        seen.append((name, round(clock.now() - start)))

    clock.call_later(20, lambda: note('second'))
    clock.call_later(10, lambda: (note('first'), clock.call_later(5, lambda: note('between')))[0])
    clock.call_later(99, lambda: note('never'))
    clock.advance(30)
    assert seen == [('first', 10), ('between', 15), ('second', 20)]


def test_a_cancelled_timer_does_not_ring_and_is_not_waited_for() -> None:
    clock = Clock()
    timer = clock.call_later(1, must_not_ring)
    timer.cancel()
    assert clock.seconds_to_next() is None
    clock.advance(2)


def must_not_ring() -> None:
    raise AssertionError('a cancelled timer rang')
