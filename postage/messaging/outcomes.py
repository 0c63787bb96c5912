"""What may become of a delivery, in one table.

A handler says it by what it raises; returning says that all is well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from postage.microthreads import ExitScheduler


class RejectMessage(Exception):
    """Raised by a handler to have its message rejected, without requeue and without a traceback in the log."""


class FilterError(Exception):
    """Raised by a filter or a handler to drop the message: for that handler alone, and logged."""


class AckAndRestart(Exception):
    """Raised by a handler to have its message acknowledged and the program run anew."""


Reason = Literal['exception', 'rejected', 'undecodable', 'unpublished', 'deliveries', 'refused']
"""Why a message is dead: a handler raised; a handler raised ``RejectMessage``; it is not a message of Postage; the
broker did not take over what its handler published; it was delivered too often and never handled to its end; it is not
signed as it would have to be."""


@dataclass(frozen=True)
class Failure:
    """Why a message could not be handled.

    :ivar error: what was raised
    """

    reason: Reason
    error: BaseException


class Pause:
    """How long a message waits before its next attempt.

    :param delay: seconds
    :param jitter: by which part of itself the delay may be shorter or longer
    :ivar shortest: milliseconds, at least
    :ivar longest: milliseconds, at most
    :ivar milliseconds: a choice from the first half of that; the second is for those that fail together
    """

    __slots__ = ('longest', 'milliseconds', 'shortest')

    def __init__(self, delay: float, jitter: float) -> None:
        self.shortest, self.longest = (max(1, round(1000 * delay * (1 + sign * jitter))) for sign in (-1, 1))
        self.milliseconds = random.randint(self.shortest, (self.shortest + self.longest) // 2)

    @property
    def seconds(self) -> float:
        """The same in seconds."""
        return self.milliseconds / 1000


Fate = Literal['handled', 'dropped', 'cancelled', 'retried', 'rejected', 'dead']
"""What becomes of a message: it is handled to its end; a handler raised ``FilterError``; its handler was closed, for
its caller wants no answer any more; it is handled again, after a pause; a handler raised ``RejectMessage``; another
exception, and it is given up."""

Then = Literal['exit', 'restart', 'end']
"""What a processor does after a message: end the loop of its scheduler, run the program again, or end itself."""


@dataclass(frozen=True)
class Outcome:
    """What to do once the handlers of a message have run.

    :ivar acknowledge: acknowledge it; else it is dead: put into the processor's store, or rejected without requeue
    :ivar traceback: log the exception with its traceback
    :ivar then: what the processor does after that, if it does not just go on
    :ivar failure: why it is not acknowledged
    :ivar pause: after which it is to be handled again, instead of being dead
    :ivar error: what was raised, if anything was
    :ivar is_cancelled: whether its handler was closed because no answer is wanted any more
    """

    acknowledge: bool
    traceback: bool = False
    then: Then | None = None
    failure: Failure | None = None
    pause: Pause | None = None
    error: BaseException | None = None
    is_cancelled: bool = False

    @property
    def fate(self) -> Fate:
        """What becomes of the message, in a word."""
        if self.pause is not None:
            return 'retried'
        if self.failure is not None:
            return 'rejected' if self.failure.reason == 'rejected' else 'dead'
        if self.is_cancelled:
            return 'cancelled'
        return 'handled' if self.then is not None or self.error is None else 'dropped'

    def and_also(self, other: Outcome) -> Outcome:
        """The outcome of a message that several handlers took.

        One that fails is enough to reject it; one that asks for another attempt is enough to have it handled again,
        by all of them, after the longest delay that one of them asks for.
        """
        pauses = [outcome.pause for outcome in (self, other) if outcome.pause is not None]
        return Outcome(
            self.acknowledge and other.acknowledge,
            then=other.then or self.then,
            failure=self.failure or other.failure,
            pause=max(pauses, key=lambda pause: pause.milliseconds, default=None),
            error=self.error if self.failure is not None or other.error is None else other.error,
            is_cancelled=self.is_cancelled or other.is_cancelled,
        )


HANDLED = Outcome(acknowledge=True)
CANCELLED = Outcome(acknowledge=True, is_cancelled=True)

_OUTCOMES: tuple[tuple[type[BaseException], Outcome], ...] = (
    (FilterError, HANDLED),
    (RejectMessage, Outcome(acknowledge=False)),
    (AckAndRestart, Outcome(acknowledge=True, then='restart')),
    (ExitScheduler, Outcome(acknowledge=True, then='exit')),
    (StopIteration, Outcome(acknowledge=True, then='end')),
    (BaseException, Outcome(acknowledge=False, traceback=True)),
)

CONTROL_FLOW = tuple(kind for kind, _ in _OUTCOMES if kind is not BaseException)
"""What handlers raise to say something; it is no failure, and never tried again."""


def outcome_of(error: BaseException) -> Outcome:
    """What a handler meant by raising this."""
    return next(outcome for kind, outcome in _OUTCOMES if issubclass(type(error), kind))
