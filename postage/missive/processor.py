"""Processors: handlers chosen by matchers, with hooks around them and a dead letter queue behind them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from postage import errors
from postage.messaging.hooks import between
from postage.missive.adapters.base import Adapter
from postage.missive.adapters.for_tests import TestAdapter
from postage.missive.contexts import DLQ, Handler, HandlingContext, ProcessingContext
from postage.missive.errors import DuplicateMatcher, UnhandledMessage
from postage.missive.messages import M
from postage.printable import shown

Matcher = Callable[[M], bool]
"""Says whether a message is for a handler: any callable, such as a function or an object with ``__call__``."""

ProcessingHook = TypeVar('ProcessingHook', bound=Callable[[ProcessingContext[Any]], object])
HandlingHook = TypeVar('HandlingHook', bound=Callable[[ProcessingContext[Any], HandlingContext[Any]], object])
AnyHandler = TypeVar('AnyHandler', bound=Callable[..., object])


class Processor(Generic[M]):
    """Routes each message to the one handler whose matcher says yes.

    A processor knows no transport; an adapter runs it. ``Processor[JSONMessage]`` tells type checkers which messages
    its handlers take.

    :ivar dlq: where messages go that cannot be handled; ``None`` for nowhere
    :ivar hooks: the registered hooks, by the name of the method that registers them, in their order
    """

    def __init__(self) -> None:
        self.dlq: DLQ | None = None
        self.hooks: dict[str, list[Callable[..., object]]] = {
            'before_processing': [],
            'after_processing': [],
            'before_handling': [],
            'after_handling': [],
        }
        self._handlers: list[tuple[Matcher[M], Handler[M]]] = []

    # What a program says with decorators

    def handle_for(self, matcher: Matcher[M]) -> Callable[[Handler[M]], Handler[M]]:
        """Decorate the handler of the messages for which ``matcher(message)`` is true. Returns it as it is.

        :raises DuplicateMatcher: where there is a handler for this matcher already
        """
        if not callable(matcher):
            raise errors.ConfigurationError(
                f'a matcher must be callable, as in lambda message: …, not {shown(matcher)}'
            )

        def register(handler: Handler[M]) -> Handler[M]:
            for known, other in self._handlers:
                if known == matcher:
                    name = getattr(other, '__qualname__', repr(other))
                    raise DuplicateMatcher(f'matcher {matcher!r} has a handler already, which is {name}')
            self._handlers.append((matcher, _callable('a handler', handler)))
            return handler

        return register

    def before_processing(self, hook: ProcessingHook) -> ProcessingHook:
        """Have ``hook(ctx)`` called at startup. One that raises keeps the processor from starting."""
        return self._add_hook('before_processing', hook)

    def after_processing(self, hook: ProcessingHook) -> ProcessingHook:
        """Have ``hook(ctx)`` called at shutdown, however the run ended."""
        return self._add_hook('after_processing', hook)

    def before_handling(self, hook: HandlingHook) -> HandlingHook:
        """Have ``hook(ctx, handling)`` called before each message. One that raises fails the handling."""
        return self._add_hook('before_handling', hook)

    def after_handling(self, hook: HandlingHook) -> HandlingHook:
        """Have ``hook(ctx, handling)`` called after each message, however that went. One that raises fails it."""
        return self._add_hook('after_handling', hook)

    def _add_hook(self, name: str, hook: AnyHandler) -> AnyHandler:
        self.hooks[name].append(_callable(f'a {name} hook', hook))
        return hook

    def set_dlq(self, dlq: DLQ | None) -> None:
        """Have messages that cannot be handled stored here, and acknowledged. Without it, such a message raises.

        :param dlq: any mutable mapping; ``dlq[message_id]`` becomes ``(message, reason)``
        """
        self.dlq = dlq

    # What an adapter calls

    @contextmanager
    def context(
        self, message_cls: Callable[[bytes], M], adapter: Adapter[M]
    ) -> Generator[ProcessingContext[M], None, None]:
        """Run the processor for the length of a ``with``: startup and shutdown hooks at its ends.

        :param message_cls: makes a message out of bytes, such as ``JSONMessage``
        :param adapter: the way to the transport
        :raises Exception: whatever a processing hook raises
        """
        processing = ProcessingContext(message_cls, adapter, self)
        with between(self.hooks['before_processing'], self.hooks['after_processing'], processing):
            yield processing

    def handler_of(self, message: M) -> Handler[M]:
        """The one handler that matches a message.

        :raises UnhandledMessage: there is none, or there are several
        :raises Exception: whatever a matcher raises
        """
        matching = [handler for matcher, handler in self._handlers if matcher(message)]
        if len(matching) != 1:
            raise UnhandledMessage(message, 'multiple matching handlers' if matching else 'no matching handlers')
        return matching[0]

    # Tests

    def test_client(self) -> TestAdapter[M]:
        """An adapter that a test feeds by hand. The processor starts at once; ``close()`` or a ``with`` ends it."""
        return TestAdapter(self)


def _callable(what: str, value: AnyHandler) -> AnyHandler:
    if not callable(value):
        raise errors.ConfigurationError(f'{what} must be callable, not {shown(value)}')
    return value
