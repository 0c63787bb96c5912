"""Spans by the OpenTelemetry conventions, where the program uses OpenTelemetry.

That is so once something has imported ``opentelemetry.trace`` and set a provider; until then nothing is imported here,
and a message pays for one look into a dictionary. What calls this looks first whether :data:`NEEDED` is in
``sys.modules``.

The conventions: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/ and, next to it, ``rabbitmq``. A
message that is sent is a span ``send DESTINATION``, whose context travels in the header ``traceparent``. One that is
handled is a span ``process DESTINATION``: a child of the former at its first attempt. A later attempt, a letter that is
sent again, and what came through a dead-letter exchange begin traces of their own, linked to where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from sys import modules
from typing import TYPE_CHECKING, Any, Final

from postage import __version__, errors
from postage.amqp.deliveries import LINKED, Delivery
from postage.amqp.publishing import Receipt
from postage.messaging import meters
from postage.messaging.outcomes import Failure
from postage.messaging.properties import ATTEMPTS, whole_header
from postage.printable import class_of
from postage.settings import BrokerSettings

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram
    from opentelemetry.trace import Span, Tracer

NEEDED: Final = 'opentelemetry.trace'
TRACEPARENT: Final = 'traceparent'
SYSTEM: Final = 'rabbitmq'

_tracer: Tracer | None = None


def _tracer_now() -> Tracer | None:
    """The tracer, once there is a provider that records; no provider is ever replaced."""
    global _tracer
    if _tracer is None:
        trace: Any = modules[NEEDED]  # without an import statement, which takes longer than all the rest
        if getattr(trace, '_TRACER_PROVIDER', trace) is None:  # as the public function finds, too
            return None
        provider = trace.get_tracer_provider()
        if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
            return None
        _tracer = provider.get_tracer('postage', __version__)
    return _tracer


MEASURED: tuple[str, ...] = (
    *('messaging.system', 'messaging.operation.name', 'messaging.destination.name', 'server.address', 'server.port'),
)
"""Of the attributes of a span, those that a duration has as well; the others differ with each message."""


class Recorded:
    """An operation that is under way: its span, and the histogram that its duration goes to; one may be missing.

    :param attributes: of the span
    """

    __slots__ = ('_attributes', '_began', '_histogram', '_span')

    def __init__(self, span: Span | None, histogram: Histogram | None, attributes: dict[str, Any]) -> None:
        self._span = span
        self._histogram = histogram
        self._attributes = attributes
        self._began = time.monotonic()

    def end(self, error: BaseException | None) -> None:
        """It has ended, with the error where there was one. Any thread."""
        name = None if error is None else class_of(error)
        if self._histogram is not None:
            measured: dict[str, Any] = {key: self._attributes[key] for key in MEASURED if key in self._attributes}
            if name is not None:
                measured['error.type'] = name
            self._histogram.record(time.monotonic() - self._began, measured)
        if self._span is not None:
            if name is not None:
                from opentelemetry.trace import Status, StatusCode

                self._span.set_attribute('error.type', name)
                self._span.set_status(Status(StatusCode.ERROR, str(error)[:200]))
            self._span.end()


def destination_of(exchange: str, routing_key: str, queue: str | None = None) -> str:
    """``messaging.destination.name``: exchange, routing key and, for a consumer, the queue, without what is empty.

    A queue that is named as the routing key stands there once. Without any of them it is ``amq.default``.
    """
    parts = [exchange, routing_key, *([queue] if queue and queue != routing_key else [])]
    return ':'.join(part for part in parts if part) or 'amq.default'


def sending(
    settings: BrokerSettings,
    route: tuple[str, str],
    message_id: str,
    further: dict[str, Any] | None,
    correlation_id: str | None = None,
) -> tuple[Recorded | None, dict[str, Any] | None]:
    """Begin the span of a message that is being sent, and put its context into the headers.

    :param route: exchange and routing key
    :param further: the properties that it has beside the usual ones
    :param correlation_id: where it is not in those
    :return: what is recorded, ``None`` for nothing, and the properties with the headers
    """
    tracer, histogram = _tracer_now(), meters.histogram('messaging.client.operation.duration')
    if tracer is None and histogram is None:
        return None, further
    exchange, key = route
    conversation_id = correlation_id or (further or {}).get('correlation_id')
    attributes = _attributes('send', settings, destination_of(exchange, key), key, message_id, conversation_id)
    if tracer is None:
        return Recorded(None, histogram, attributes), further
    from opentelemetry import propagate, trace

    headers = dict((further or {}).get('headers') or {})
    is_injected = TRACEPARENT in headers
    span = tracer.start_span(
        f'send {destination_of(exchange, key)}',
        kind=trace.SpanKind.CLIENT if is_injected else trace.SpanKind.PRODUCER,
        attributes=attributes,
    )
    if not is_injected:
        propagate.inject(headers, trace.set_span_in_context(span))
        further = {**(further or {}), 'headers': headers}
    return Recorded(span, histogram, attributes), further


def _attributes(
    operation: str,
    settings: BrokerSettings | None,
    destination: str,
    routing_key: str,
    message_id: str | None,
    conversation_id: str | None,
) -> dict[str, Any]:
    endpoint = settings.endpoints[0] if settings is not None else None
    attributes = {
        'messaging.system': SYSTEM,
        'messaging.operation.name': operation,
        'messaging.operation.type': operation,
        'messaging.destination.name': destination,
        'messaging.rabbitmq.destination.routing_key': routing_key or None,
        'messaging.message.id': message_id,
        'messaging.message.conversation_id': conversation_id,
        'server.address': endpoint.host if endpoint is not None else None,
        'server.port': endpoint.port if endpoint is not None else None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def sent(recorded: Recorded, receipt: Receipt) -> None:
    """End it once the broker has said what became of the message. Never blocks."""
    receipt.when_settled(lambda: recorded.end(receipt.error), is_urgent=False)


# Deliveries


def take(begin: Callable[[Delivery], None], delivery: Delivery, settings: BrokerSettings | None) -> None:
    """Have a delivery begun within a span of its own, which :func:`settled` ends. In the scheduler's thread.

    :param settings: the broker that it came from; ``None`` where there is none, as in ``test_client()``
    """
    tracer, histogram = _tracer_now(), meters.histogram('messaging.process.duration')
    if tracer is None and histogram is None:
        begin(delivery)
        return
    destination = destination_of(delivery.exchange, delivery.routing_key, delivery.queue)
    conversation_id = delivery.salvaged.correlation_id or None
    attributes = _attributes(
        'process', settings, destination, delivery.routing_key, _message_id(delivery), conversation_id
    )
    if tracer is None:
        delivery.span = Recorded(None, histogram, attributes)
        try:
            begin(delivery)
        finally:
            if delivery.is_handled:
                settled(delivery, None)
        return
    from opentelemetry import context, trace

    parent, links = _origin_of(delivery)
    attributes['messaging.rabbitmq.message.delivery_tag'] = delivery.delivery_tag
    span = tracer.start_span(
        f'process {destination}', context=parent, kind=trace.SpanKind.CONSUMER, attributes=attributes, links=links
    )
    delivery.span = Recorded(span, histogram, attributes)
    # What begins here takes a copy of the context with it: a handler that runs as a microthread, or in a thread.
    token = context.attach(trace.set_span_in_context(span, parent))
    try:
        begin(delivery)
    finally:
        context.detach(token)
        if delivery.is_handled:
            settled(delivery, None)


def settled(delivery: Delivery, failure: Failure | None) -> None:
    """End the span of a delivery, if it has one that has not ended."""
    recorded, delivery.span = delivery.span, None
    if recorded is not None:
        recorded.end(None if failure is None else failure.error)


def _message_id(delivery: Delivery) -> str | None:
    try:
        message_id: str | None = delivery.properties.message_id
        return message_id
    except errors.DecodingError:
        return None


def _origin_of(delivery: Delivery) -> tuple[Any, Sequence[Any]]:
    """The context that a delivery is handled in, and links to others."""
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context

    try:
        headers = delivery.headers
    except errors.DecodingError:
        headers = {}
    carrier = {name: value for name, value in headers.items() if isinstance(value, str)}
    linked = carrier.pop(LINKED, None)
    if linked is not None:
        carrier[TRACEPARENT] = linked
    origin = propagate.extract(carrier, Context())
    if linked is None and not _is_again(headers):
        return origin, ()
    context_of_sender = trace.get_current_span(origin).get_span_context()
    return Context(), [trace.Link(context_of_sender)] if context_of_sender.is_valid else ()


def _is_again(headers: Mapping[str, Any]) -> bool:
    """Whether a message has been handled before, or given up elsewhere."""
    return 'x-death' in headers or whole_header(headers, ATTEMPTS) > 0
