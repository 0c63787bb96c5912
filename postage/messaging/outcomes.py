"""What may become of a delivery, in one table.

A handler says it by what it raises; returning says that all is well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from postage.microthreads import ExitScheduler


class RejectMessage(Exception):
    """Raised by a handler to have its message rejected, without requeue and without a traceback in the log."""


class FilterError(Exception):
    """Raised by a filter or a handler to drop the message: for that handler alone, and logged."""


class AckAndRestart(Exception):
    """Raised by a handler to have its message acknowledged and the program run anew."""


@dataclass(frozen=True)
class Outcome:
    """What to do once the handlers of a message have run.

    :ivar acknowledge: acknowledge it; else reject it without requeue, so that it is dead-lettered
    :ivar traceback: log the exception with its traceback
    :ivar then: what the processor does after that, if it does not just go on
    """

    acknowledge: bool
    traceback: bool = False
    then: Literal['exit', 'restart'] | None = None

    def and_also(self, other: Outcome) -> Outcome:
        """The outcome of a message that several handlers took: one that fails is enough to reject it."""
        return Outcome(self.acknowledge and other.acknowledge, then=other.then or self.then)


HANDLED = Outcome(acknowledge=True)

_OUTCOMES: tuple[tuple[type[Exception], Outcome], ...] = (
    (FilterError, HANDLED),
    (RejectMessage, Outcome(acknowledge=False)),
    (AckAndRestart, Outcome(acknowledge=True, then='restart')),
    (ExitScheduler, Outcome(acknowledge=True, then='exit')),
    (Exception, Outcome(acknowledge=False, traceback=True)),
)


def outcome_of(error: Exception) -> Outcome:
    """What a handler meant by raising this."""
    return next(outcome for kind, outcome in _OUTCOMES if isinstance(error, kind))
