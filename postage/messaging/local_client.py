"""A client for the tests of processors, which needs neither a broker nor threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from postage.amqp.recording import Recording
from postage.amqp.seen import SeenMessage
from postage.messaging.local import LocalRun, properties_of
from postage.messaging.messages import Message, MessageResult, result_from_body

P = TypeVar('P')


class LocalClient(Generic[P]):
    """A processor that a test sends messages to, with neither a broker nor threads.

    Its handlers run while a message is sent, in the caller's thread; those that are coroutines or ``@Threaded`` where
    they always do. Producers that the constructor or a handler makes reach no broker either: what they send is in
    :attr:`published`, and counts as confirmed. An RPC that a handler calls cannot be answered, and raises
    ``ConfigurationError``; :class:`postage.testing.Broker` serves there.

    :ivar acked: the messages that were acknowledged, in this order
    :ivar rejected: those that were rejected
    :ivar replies: the answers to RPCs
    :ivar processor: the processor
    """

    def __init__(self, cls: type[P], arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None) -> None:
        self.acked: list[Message] = []
        self.rejected: list[Message] = []
        self.replies: list[MessageResult] = []
        self._recording = Recording()
        with self._recording.here():
            self._run = LocalRun(cls, arguments, keywords or {}, threaded=False)
        self.processor: P = self._run.processor

    @property
    def published(self) -> list[SeenMessage]:
        """What the processor's own producers have sent so far, once for each exchange.

        Each has ``exchange``, ``routing_key``, ``body``, ``raw``, ``properties`` and ``headers``.
        """
        return [
            SeenMessage(sent.exchange, sent.routing_key, sent.body, sent.properties)
            for sent in self._recording.published
        ]

    @property
    def ended(self) -> Literal['quit', 'restart'] | None:
        """How a command has ended the processor, if one has; it takes no more messages then."""
        if not self._run.ended:
            return None
        return 'restart' if self._run.restart_requested else 'quit'

    def send(
        self, message: Message, headers: Mapping[str, Any] | None = None, timeout: float = 10.0
    ) -> MessageResult | None:
        """Have a message, or an RPC request, handled.

        :param headers: AMQP headers
        :param timeout: seconds that it may take, and its answer after that
        :return: the answer to an RPC; ``None`` where there was none, and for other messages
        :raises errors.HandlerTimeout: it was not handled in time
        :raises errors.Closed: the processor has ended
        """
        source, answers = self._run.source, list[MessageResult]()

        def answer(data: bytes, content_type: str) -> None:
            answers.append(result_from_body(source.encoder.decode(data)))
            self.replies.append(answers[-1])

        properties = properties_of(headers=headers)
        with self._recording.here():
            delivery = self._run.take(source.encode(message.body), properties, answer, timeout=timeout)
            (self.acked if delivery.fate == 'ack' else self.rejected).append(message)
            if message.body['category'] == 'rpc':
                self._run.drive(delivery.answered, timeout)
        return answers[0] if answers else None

    def close(self) -> None:
        """End the processor. Does nothing the second time."""
        with self._recording.here():
            self._run.close()
        self._recording.close()

    def __enter__(self) -> LocalClient[P]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
