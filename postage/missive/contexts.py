"""What handlers and hooks are given: the context of a run, and that of one message."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Generic, Literal, Protocol

from postage.messaging.hooks import State, between
from postage.missive.adapters.base import Adapter
from postage.missive.errors import DeadLetterError, ProcessorEnded, UndecidedMessage, UnhandledMessage
from postage.missive.messages import M, Message, UnreadableMessage
from postage.printable import class_of, text_of

logger = logging.getLogger('postage')

Decision = Literal['ack', 'nack', 'reject']

DLQ = MutableMapping[bytes, tuple[Message, str]]
"""``dlq[message_id] = (message, reason)``: any mutable mapping."""


class Routing(Protocol[M]):
    """What a run needs of its processor.

    :ivar dlq: where messages go that cannot be handled; ``None`` for nowhere
    :ivar hooks: the registered hooks, by the name of the method that registers them, in their order
    """

    dlq: DLQ | None
    hooks: dict[str, list[Callable[..., object]]]

    def handler_of(self, message: M) -> Handler[M]:
        """The one handler that matches a message.

        :raises UnhandledMessage: there is none, or there are several
        """

    def set_dlq(self, dlq: DLQ | None) -> None:
        """Have messages that cannot be handled stored here."""


class ProcessingContext(Generic[M]):
    """One run of a processor, from ``before_processing`` to ``after_processing``.

    :ivar state: what the hooks and handlers of this run keep
    :ivar message_cls: makes a message out of bytes
    :ivar adapter: the way to the transport
    :ivar processor: the processor that runs
    """

    def __init__(self, message_cls: Callable[[bytes], M], adapter: Adapter[M], processor: Routing[M]) -> None:
        self.state: Any = State()
        self.message_cls = message_cls
        self.adapter = adapter
        self.processor = processor
        self._in_hand: dict[int, HandlingContext[M]] = {}

    def new_message(
        self,
        raw_data: bytes,
        message_id: bytes | None = None,
        headers: Mapping[str, Any] | None = None,
        delivery: Any = None,
    ) -> M:
        """Make the message for what a transport has received. Never raises for what was received.

        :param message_id: the transport's own id of it, if it has one
        :param headers: what came with it
        :param delivery: the transport's own object for it
        """
        message: Any
        try:
            message = self.message_cls(raw_data)
        except Exception as error:  # of a user's own class: what a sender sends must not end a processor here
            message = UnreadableMessage(raw_data, error)
        if message_id:
            message.message_id = message_id
        message.headers = dict(headers or {})
        message.delivery = delivery
        return message  # type: ignore[no-any-return]

    def ack(self, message: M) -> None:
        """Acknowledge a message: the transport may forget it."""
        self._decide(message, 'ack')

    def nack(self, message: M) -> None:
        """Return a message to the transport, where that can take it back."""
        self._decide(message, 'nack')

    def handle(self, message: M) -> None:
        """Take a message through hooks, matchers and its handler, and dead-letter it where that fails.

        May be called from several threads, each with a message of its own.

        :raises UnhandledMessage: not exactly one handler matches, and there is no dead letter queue
        :raises DeadLetterError: the dead letter queue failed; the message is not acknowledged
        :raises ProcessorEnded: the processor takes no more messages; this one is not acknowledged
        :raises Exception: whatever a matcher, hook or handler raises where there is no dead letter queue
        """
        handling = HandlingContext(message, self)
        processor = self.processor
        self._in_hand[id(message)] = handling
        try:
            with between(processor.hooks['before_handling'], processor.hooks['after_handling'], self, handling):
                if isinstance(message, UnreadableMessage):
                    raise message.error
                handler = processor.handler_of(message)
                handler(message, handling)
                if handling.decision is None:
                    name = getattr(handler, '__qualname__', repr(handler))
                    raise UndecidedMessage(f'handler {name} neither acknowledged nor refused {message!r}')
        except ProcessorEnded:
            raise  # the message is not at fault, so it is no dead letter
        except Exception as error:
            if processor.dlq is None:
                raise
            self._dead_letter(handling, error)
        finally:
            del self._in_hand[id(message)]

    def _decide(self, message: M, decision: Decision) -> None:
        handling = self._in_hand.get(id(message))
        if handling is not None:
            handling.decide(decision)
        else:
            getattr(self.adapter, decision)(message)

    def _dead_letter(self, handling: HandlingContext[M], error: Exception) -> None:
        """Store a message whose handling failed; then, and only then, acknowledge it."""
        message, dlq = handling.message, self.processor.dlq
        assert dlq is not None
        reason = error.reason if isinstance(error, UnhandledMessage) else text_of(error) or class_of(error)
        try:
            dlq[message.message_id] = (message, reason)
        except Exception as failure:
            why = f'the dead letter queue failed: {text_of(failure)} (reason: {reason})'
            raise DeadLetterError(f'{message!r} is not acknowledged, for {why}') from failure
        expected = isinstance(error, (UnhandledMessage, UndecidedMessage))
        logger.warning('%r is a dead letter: %s', message, reason, exc_info=None if expected else error)
        if handling.decision is None:
            handling.ack()


class HandlingContext(Generic[M]):
    """One message on its way through its handler.

    :ivar state: what the hooks and the handler of this message keep
    :ivar message: the message
    :ivar processing_ctx: the run that it is part of
    :ivar decision: what has been decided: ``'ack'``, ``'nack'``, ``'reject'``, or ``None`` so far
    """

    def __init__(self, message: M, processing_ctx: ProcessingContext[M]) -> None:
        self.state: Any = State()
        self.message = message
        self.processing_ctx = processing_ctx
        self.decision: Decision | None = None

    def ack(self) -> None:
        """Acknowledge the message: the transport may forget it. The first decision counts."""
        self.decide('ack')

    def nack(self) -> None:
        """Return the message to the transport, where that can take it back. The first decision counts."""
        self.decide('nack')

    def reject(self) -> None:
        """Refuse the message for good: to the transport's own dead letters, where it has any; else as :meth:`nack`."""
        self.decide('reject')

    def reply(self, data: bytes, content_type: str = 'application/octet-stream') -> None:
        """Answer the sender of the message. Where the transport has no way back that is logged.

        :param data: the answer
        :param content_type: its MIME type
        """
        self.processing_ctx.adapter.reply(self.message, data, content_type)

    def decide(self, decision: Decision) -> None:
        """Say what becomes of the message; a second decision is ignored, with a warning."""
        if self.decision is not None:
            logger.warning('a second decision on %r is ignored: %s after %s', self.message, decision, self.decision)
            return
        # The adapter comes first. Where it raises there is no decision yet, and another one may follow.
        getattr(self.processing_ctx.adapter, decision)(self.message)
        self.decision = decision


Handler = Callable[[M, HandlingContext[M]], object]
"""``handler(message, ctx)`` has to call ``ctx.ack()`` or ``ctx.nack()``."""
