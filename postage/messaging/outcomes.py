"""What may become of a delivery, in one table; and the interface of a store for those that nobody could handle.

A handler says it by what it raises; returning says that all is well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from postage.microthreads import ExitScheduler

if TYPE_CHECKING:
    from postage.messaging.retry import Pause


class RejectMessage(Exception):
    """Raised by a handler to have its message rejected, without requeue and without a traceback in the log."""


class FilterError(Exception):
    """Raised by a filter or a handler to drop the message: for that handler alone, and logged."""


class AckAndRestart(Exception):
    """Raised by a handler to have its message acknowledged and the program run anew."""


Reason = Literal['exception', 'rejected', 'undecodable', 'unpublished', 'deliveries']
"""Why a message is dead: a handler raised; a handler raised ``RejectMessage``; it is not a message of Postage; what
its handler published was not taken over by the broker; it was delivered too often without ever being handled to its
end."""


@dataclass(frozen=True)
class Failure:
    """Why a message could not be handled.

    :ivar error: what was raised
    """

    reason: Reason
    error: BaseException


@dataclass(frozen=True)
class Outcome:
    """What to do once the handlers of a message have run.

    :ivar acknowledge: acknowledge it; else it is dead: put into the processor's store, or rejected without requeue
    :ivar traceback: log the exception with its traceback
    :ivar then: what the processor does after that, if it does not just go on
    :ivar failure: why it is not acknowledged
    :ivar pause: after which it is to be handled again, instead of being dead
    """

    acknowledge: bool
    traceback: bool = False
    then: Literal['exit', 'restart'] | None = None
    failure: Failure | None = None
    pause: Pause | None = None

    def and_also(self, other: Outcome) -> Outcome:
        """The outcome of a message that several handlers took.

        One that fails is enough to reject it; one that asks for another attempt is enough to have it handled again,
        by all of them, after the longest delay that one of them asks for.
        """
        if other is HANDLED:
            return self
        pauses = [outcome.pause for outcome in (self, other) if outcome.pause is not None]
        return Outcome(
            self.acknowledge and other.acknowledge,
            then=other.then or self.then,
            failure=self.failure or other.failure,
            pause=max(pauses, key=lambda pause: pause.seconds, default=None),
        )


HANDLED = Outcome(acknowledge=True)

_OUTCOMES: tuple[tuple[type[Exception], Outcome], ...] = (
    (FilterError, HANDLED),
    (RejectMessage, Outcome(acknowledge=False)),
    (AckAndRestart, Outcome(acknowledge=True, then='restart')),
    (ExitScheduler, Outcome(acknowledge=True, then='exit')),
    (Exception, Outcome(acknowledge=False, traceback=True)),
)

CONTROL_FLOW = tuple(kind for kind, _ in _OUTCOMES if kind is not Exception)
"""What handlers raise to say something; it is no failure, and never tried again."""


def outcome_of(error: Exception) -> Outcome:
    """What a handler meant by raising this."""
    return next(outcome for kind, outcome in _OUTCOMES if isinstance(error, kind))


@dataclass(frozen=True)
class DeadLetter:
    """A message that could not be handled, and why. All of it but the body can be written as JSON.

    :ivar body: the bytes of its body
    :ivar properties: its AMQP properties, as :func:`postage.messaging.properties.as_plain` writes them
    :ivar queue: the queue it was delivered from
    :ivar exchange: the exchange it was first published to
    :ivar routing_key: the routing key it was first published with
    :ivar reason: one of :data:`Reason`
    :ivar exception: name of the exception's class, with its module where that is not Python's own
    :ivar message: the exception's text
    :ivar traceback: the exception's traceback, the end of it where it is long
    :ivar attempts: how often it was handled; 0 where it could not even be read
    :ivar first_attempt_at: when it was first handled, as ``time.time()`` has it
    :ivar died_at: when it was given up
    :ivar is_repeated: whether the same message may have been given up before: it was delivered, or sent, again
    """

    body: bytes = field(repr=False)
    properties: dict[str, Any]
    queue: str
    exchange: str
    routing_key: str
    reason: Reason
    exception: str
    message: str
    traceback: str = field(repr=False)
    attempts: int
    first_attempt_at: float
    died_at: float
    is_repeated: bool = False

    @property
    def message_id(self) -> str:
        """The ``message_id`` it travelled under; empty where it had none."""
        return str(self.properties.get('message_id') or '')


class DeadLetterStore(Protocol):
    """Where a processor puts the messages that it could not handle. Its :attr:`dead_letters` is one."""

    def put(self, letter: DeadLetter) -> None:
        """Take a letter over. The message is acknowledged when this returns, so the letter has to be safe by then.

        May block; called from threads of the scheduler's pool, from several at once.

        :raises Exception: where it cannot be taken; it stays unacknowledged, and is offered again after a pause
        """
