"""What runs before something and after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from types import SimpleNamespace
from typing import Any, Literal

from postage.messaging.outcomes import Failure, Fate, Outcome, outcome_of
from postage.messaging.properties import attempt_of

logger = logging.getLogger('postage')

Hook = Callable[..., object]


class State(SimpleNamespace):
    """What hooks and handlers keep for each other: any attribute may be set."""


class MessageContext:
    """One message on its way through the handlers of a ``MessageProcessor``, as its hooks see it.

    What became of it is known in ``after_handling``; before that, and where the message came to no end because the
    processor stopped, ``outcome``, ``exception`` and ``duration`` are ``None``.

    :ivar state: what the hooks of this message keep
    :ivar body: the message's body
    :ivar delivery: how it was delivered
    :ivar outcome: ``'handled'``; ``'unhandled'``: no handler takes it; ``'dropped'`` by ``FilterError``;
        ``'cancelled'``: the handler was closed, for its caller wants no answer any more; ``'retried'``: it is handled
        again, after a pause; ``'rejected'`` by ``RejectMessage``; ``'dead'``: given up for an exception
    :ivar exception: what a handler, or ``before_handling``, raised
    :ivar duration: how many seconds its handlers took
    """

    def __init__(self, body: dict[str, Any], delivery: Any) -> None:
        self.state: Any = State()
        self.body = body
        self.delivery = delivery
        self.outcome: Fate | Literal['unhandled'] | None = None
        self.exception: BaseException | None = None
        self.duration: float | None = None
        self._began = monotonic()

    @property
    def attempt(self) -> int:
        """Which attempt to handle the message this is, from 1, as far as its headers tell."""
        return attempt_of(self.delivery)

    def conclude(self, outcome: Outcome, is_taken: bool = True) -> None:
        """Note what has become of it.

        :param is_taken: whether there is a handler for it
        """
        self.outcome = outcome.fate if is_taken else 'unhandled'
        self.exception = outcome.error
        self.duration = monotonic() - self._began


@contextmanager
def around_message(before: Hook, after: Hook, context: MessageContext) -> Generator[None, None, None]:
    """Run the body of a ``with`` between the two hooks of a message. The body calls ``context.conclude()``."""

    def begin(context: MessageContext) -> None:
        try:
            before(context)
        except Exception as error:
            context.conclude(failed_by(error))
            raise

    with between((begin,), (after,), context):
        yield


def failed_by(error: BaseException) -> Outcome:
    """What comes of a message when this is raised, where nothing is tried again."""
    outcome = outcome_of(error)
    if outcome.acknowledge:
        return replace(outcome, error=error)
    return replace(outcome, error=error, failure=Failure('exception' if outcome.traceback else 'rejected', error))


@contextmanager
def between(before: Iterable[Hook], after: Iterable[Hook], *arguments: Any) -> Generator[None, None, None]:
    """Run the body of a ``with`` between two lists of hooks, each called with these arguments.

    A hook before the body that raises keeps the other ones, and the body, from running. Those after it run all the
    same, each of them, whatever happened. The first exception is the one that counts; the others are logged.
    """
    try:
        for hook in before:
            hook(*arguments)
        yield
    except BaseException as error:
        _run_all(after, arguments, first=error)
        raise
    failure = _run_all(after, arguments, first=None)
    if failure is not None:
        raise failure


def _run_all(hooks: Iterable[Hook], arguments: tuple[Any, ...], first: BaseException | None) -> BaseException | None:
    """Call every hook, and return the first exception there was."""
    for hook in hooks:
        try:
            hook(*arguments)
        except Exception as error:
            if first is None:
                first = error
            else:
                logger.error('hook %s raised, too', getattr(hook, '__name__', hook), exc_info=error)
    return first
