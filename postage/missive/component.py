"""A ``MessageProcessor`` of ``postage.messaging`` as a processor that any adapter runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from postage import errors, messaging
from postage.amqp.deliveries import Delivery
from postage.messaging.local import LocalDelivery, LocalRun, properties_of
from postage.missive.adapters.base import Adapter
from postage.missive.adapters.for_tests import TestAdapter
from postage.missive.contexts import HandlingContext, ProcessingContext
from postage.missive.errors import ProcessorEnded
from postage.missive.messages import Message
from postage.missive.postage_message import PostageMessage
from postage.missive.processor import Processor
from postage.printable import shown_half_built


class Component(Processor[PostageMessage]):
    """Runs a ``MessageProcessor`` on any transport::

        StdinAdapter(missive.PostageMessage, missive.Component(EchoProcessor, fingerprint)).run()

    Its handlers, filters, replies, retries and time-outs work as they do with a broker; queues and bindings are left to
    the adapter. What it acknowledges is acknowledged. What it rejects is a dead letter, with the exception's text as
    reason, where this processor has a dead letter queue; else it is rejected on the transport.

    Each run, that is each adapter, has an instance of its own, ``ctx.state.component``. It runs in a thread of its own,
    but for the test client, where it runs while a message is sent.

    :param processor_class: the class of the processor; the other arguments are those of its constructor
    :cvar rpc_timeout: seconds that a transport which answers in place, as HTTP does, waits for an answer
    """

    rpc_timeout: float = 30.0

    def __init__(self, processor_class: type[messaging.MessageProcessor], *arguments: Any, **keywords: Any) -> None:
        super().__init__()
        self._processor_class = processor_class
        self._arguments = arguments
        self._keywords = keywords
        self._runs: dict[ProcessingContext[PostageMessage], LocalRun] = {}
        self.handle_for(_every)(self._handle)

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self._processor_class.__name__}>'

    @contextmanager
    def context(
        self, message_cls: Callable[[bytes], PostageMessage], adapter: Adapter[PostageMessage]
    ) -> Generator[ProcessingContext[PostageMessage], None, None]:
        """Make an instance, and run it for the length of a ``with``."""
        run = LocalRun(
            self._processor_class, self._arguments, self._keywords, threaded=not isinstance(adapter, TestAdapter)
        )
        try:
            with super().context(message_cls, adapter) as ctx:
                ctx.state.component = run.processor
                self._runs[ctx] = run
                try:
                    yield ctx
                finally:
                    del self._runs[ctx]
        finally:
            run.close()
        if run.restart_requested and not isinstance(adapter, TestAdapter):
            run.restart()

    def _handle(self, message: PostageMessage, handling: HandlingContext[PostageMessage]) -> None:
        """Hand a message to the instance of this run, and do with it what that has decided."""
        ctx = handling.processing_ctx
        run = self._runs[ctx]
        delivery = self._take(run, message, handling)
        if delivery.fate == 'ack':
            handling.ack()
        elif delivery.failure is not None and self.dlq is not None:
            raise delivery.failure.error
        elif delivery.fate == 'requeue':
            handling.nack()
        else:
            handling.reject()
        if run.ended:
            ctx.adapter.stop()

    def _take(self, run: LocalRun, message: PostageMessage, handling: HandlingContext[PostageMessage]) -> LocalDelivery:
        source = message.delivery if isinstance(message.delivery, Delivery) else None
        properties = source.properties if source is not None else properties_of(_id_of(message), message.headers)
        waits = handling.processing_ctx.adapter.answers_in_place and _is_rpc(message)
        try:
            delivery = run.take(message.raw_data, properties, handling.reply, source)
        except errors.Closed as error:
            raise ProcessorEnded(str(error)) from error
        if waits and not delivery.answered.wait(self.rpc_timeout):
            result = messaging.MessageResultException('TimeoutError', f'no answer within {self.rpc_timeout:g} s')
            consumer = run.processor.consumer
            handling.reply(consumer.encode(result.body), consumer.encoder.content_type)
        return delivery


def _every(message: Message) -> bool:
    """The matcher of a component: it takes every message, for the handler table decides."""
    return True


def _is_rpc(message: PostageMessage) -> bool:
    try:
        return message.category == 'rpc'
    except errors.DecodingError:
        return False


def _id_of(message: Message) -> str:
    try:
        return message.message_id.decode('ascii')
    except UnicodeDecodeError:
        return message.message_id.hex()
