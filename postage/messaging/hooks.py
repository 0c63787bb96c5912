"""What runs before something and after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

logger = logging.getLogger('postage')

Hook = Callable[..., object]


class State(SimpleNamespace):
    """What hooks and handlers keep for each other: any attribute may be set."""


class MessageContext:
    """One message on its way through the handlers of a ``MessageProcessor``, as its hooks see it.

    :ivar state: what the hooks of this message keep
    :ivar body: the message's body
    :ivar delivery: how it was delivered
    """

    def __init__(self, body: dict[str, Any], delivery: Any) -> None:
        self.state: Any = State()
        self.body = body
        self.delivery = delivery


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
