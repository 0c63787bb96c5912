"""Steps are taken in their order, each when the one before it is done, and none after they were abandoned."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from typing import Any

import pytest

from postage.amqp.steps import Drive, Steps, done, when_done


class Taken:
    """Steps over some futures, which note what they get and how they end."""

    def __init__(self, *futures: Future[Any]) -> None:
        self.futures = futures
        self.notes: list[Any] = []

    def steps(self) -> Steps:
        try:
            for future in self.futures:
                try:
                    self.notes.append((yield future))
                except ValueError as error:
                    self.notes.append(str(error))
            return 'returned'
        except GeneratorExit:
            self.notes.append('closed')
            raise
        finally:
            self.notes.append('end')


def test_each_step_is_taken_when_the_one_before_it_is_done() -> None:
    first, second = Future[str](), Future[str]()
    taken = Taken(first, second)
    driven = Drive(taken.steps())
    assert (taken.notes, driven.awaited) == ([], first)
    second.set_result('second')
    assert taken.notes == []
    first.set_result('first')
    assert taken.notes == ['first', 'second', 'end']
    assert driven.outcome.result(0) == 'returned'


def test_the_error_of_a_future_is_raised_where_it_was_awaited() -> None:
    future = Future[str]()
    taken = Taken(future, done('after'))
    driven = Drive(taken.steps())
    future.set_exception(ValueError('no'))
    assert taken.notes == ['no', 'after', 'end']
    assert driven.outcome.result(0) == 'returned'


@pytest.mark.parametrize('error', [KeyError('why'), KeyboardInterrupt(), SystemExit(3)])
def test_what_steps_raise_is_their_outcome(error: BaseException) -> None:
    def failing() -> Steps:
        yield done()
        raise error

    assert Drive(failing()).outcome.exception(0) is error


def test_the_outcome_cannot_be_cancelled_so_several_may_wait_for_it() -> None:
    future = Future[str]()
    driven = Drive(Taken(future).steps())
    assert not driven.outcome.cancel()
    future.set_result('done')
    assert driven.outcome.result(0) == 'returned'


def test_a_long_row_of_done_futures_needs_no_deep_stack() -> None:
    def long() -> Steps:
        total = 0
        for number in range(10 * sys.getrecursionlimit()):
            total += yield done(number)
        return total

    numbers = 10 * sys.getrecursionlimit()
    assert Drive(long()).outcome.result(0) == numbers * (numbers - 1) // 2


def test_a_long_row_of_done_futures_behind_one_that_was_not_needs_no_deep_stack_either() -> None:
    first = Future[None]()
    numbers = 10 * sys.getrecursionlimit()
    taken = Taken(first, *(done(number) for number in range(numbers)))
    driven = Drive(taken.steps())
    first.set_result(None)
    assert driven.outcome.result(0) == 'returned'
    assert len(taken.notes) == numbers + 2


def test_when_done_calls_back_at_the_end_with_what_was_raised_or_none() -> None:
    ends: list[Any] = []
    first, second = Future[str](), Future[str]()
    when_done(Taken(first).steps(), ends.append)
    when_done((second for second in (second,)), ends.append)  # type: ignore[arg-type]
    assert ends == []
    first.set_result('first')
    assert ends == [None]
    second.set_exception(error := KeyError('second'))
    assert ends == [None, error]


# Abandoning


def test_abandoned_steps_are_closed_and_fail_with_the_error_given() -> None:
    future = Future[str]()
    future.set_running_or_notify_cancel()
    taken = Taken(future, Future[str]())
    driven = Drive(taken.steps())
    driven.abandon(error := TimeoutError('too late'))
    assert taken.notes == ['closed', 'end']
    assert driven.outcome.exception(0) is error


def test_no_step_is_taken_after_they_were_abandoned() -> None:
    future = Future[str]()
    future.set_running_or_notify_cancel()
    taken = Taken(future, Future[str]())
    driven = Drive(taken.steps())
    driven.abandon(TimeoutError())
    future.set_result('the answer, late')
    assert taken.notes == ['closed', 'end']


def test_what_has_not_begun_is_withdrawn_and_what_is_under_way_is_not() -> None:
    waiting, under_way = Future[str](), Future[str]()
    under_way.set_running_or_notify_cancel()
    for future in (waiting, under_way):
        Drive(Taken(future).steps()).abandon(TimeoutError())
    assert waiting.cancelled()
    assert not under_way.done()


def test_to_abandon_steps_at_their_end_does_nothing() -> None:
    taken = Taken(done('first'))
    driven = Drive(taken.steps())
    driven.abandon(TimeoutError())
    assert driven.outcome.result(0) == 'returned'
    assert taken.notes == ['first', 'end']
