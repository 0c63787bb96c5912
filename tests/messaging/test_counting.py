"""What is counted of messages: a rate, and what became of them."""

from __future__ import annotations

import pytest

from postage.messaging import counting
from postage.messaging.counting import Figures, HandlerFigures, Rate
from postage.messaging.outcomes import HANDLED, Failure, Outcome, Pause


class Clock:
    """A monotonic clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(counting, 'monotonic', lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_rate_is_that_of_the_last_seconds(clock: Clock) -> None:
    rate, total = Rate(), 0
    for _ in range(30):  # two a second
        rate.mark(clock.now, total)
        total += 2
        clock.now += 1
    assert rate.of(total) == pytest.approx(2, rel=0.15)
    clock.now += 60
    assert rate.of(total) == 0


def test_a_rate_of_a_young_component_is_over_its_age(clock: Clock) -> None:
    rate = Rate()
    rate.mark(clock.now, 0)
    clock.now += 2
    assert rate.of(6) == 3


def test_what_became_of_messages_is_counted() -> None:
    error = LookupError('no such thing')
    dead = Failure('exception', error)
    figures = HandlerFigures('handler')
    outcomes = [
        HANDLED,
        Outcome(acknowledge=True, then='exit', error=error),
        Outcome(acknowledge=True, error=error),
        Outcome(acknowledge=False, failure=Failure('rejected', error), error=error),
        Outcome(acknowledge=False, failure=dead, error=error),
        Outcome(acknowledge=False, failure=dead, error=error, pause=Pause(1, 0)),
    ]
    for outcome in outcomes:
        figures.took(0.001)
        figures.raised(outcome)
    assert (figures.total, figures.handled, figures.dropped) == (6, 2, 1)
    assert (figures.failed, figures.retried, figures.dead) == (3, 1, 2)
    assert figures.last_error is not None
    assert figures.last_error[1:] == ('LookupError', 'no such thing')


def test_the_text_of_an_error_is_printable_and_bounded() -> None:
    figures = HandlerFigures('handler')
    error = LookupError('\x1b[31m' + 1000 * 'x')
    figures.raised(Outcome(acknowledge=False, failure=Failure('exception', error), error=error))
    assert figures.last_error is not None
    assert figures.last_error[2].startswith('\\x1b[31mxxx')
    assert len(figures.last_error[2]) < 2 * counting.ERROR_LENGTH


def test_what_is_in_hand_is_known_with_its_age(clock: Clock) -> None:
    one, other = HandlerFigures('one'), HandlerFigures('other')
    figures = Figures([one, other])
    assert (figures.in_hand, figures.oldest_in_hand) == (0, None)
    one.began = clock.now - 3
    other.begun['delivery'] = clock.now - 5
    assert (figures.in_hand, figures.oldest_in_hand) == (2, 5)
    other.ended('delivery')
    assert (figures.in_hand, figures.oldest_in_hand) == (1, 3)
    assert figures.quantile(0.5) == 5
