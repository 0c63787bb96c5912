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
from postage.printable import class_path_of, printable, text_of
from postage.settings import BrokerSettings

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram
    from opentelemetry.trace import Span, Tracer

NEEDED: Final = 'opentelemetry.trace'
TRACEPARENT: Final = 'traceparent'
SYSTEM: Final = 'rabbitmq'
MOST_ROUTES: Final = 1000  # that are remembered; a routing key may be another one for each message

MEASURED: tuple[str, ...] = (
    *('messaging.system', 'messaging.operation.name', 'messaging.destination.name', 'server.address', 'server.port'),
)
"""Of the attributes of a span, those that a duration has as well; the others differ with each message."""


class Tracing:
    """What spans are made with: a tracer, and of OpenTelemetry what each message needs.

    It is looked up once: an import statement for each message would take longer than all that is done here.
    """

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import context, trace

        from postage.messaging import propagation

        self.start_span = tracer.start_span
        self.sends, self.calls, self.handles = trace.SpanKind.PRODUCER, trace.SpanKind.CLIENT, trace.SpanKind.CONSUMER
        self.in_context, self.attach, self.detach = trace.set_span_in_context, context.attach, context.detach
        self.inject, self.extract = propagation.inject, propagation.extract


_tracing: Tracing | None = None


def _tracing_now() -> Tracing | None:
    """The same once there is a provider that records; no provider is ever replaced."""
    global _tracing
    if _tracing is None:
        trace: Any = modules[NEEDED]
        if getattr(trace, '_TRACER_PROVIDER', trace) is None:  # as the public function finds, too
            return None
        provider = trace.get_tracer_provider()
        if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
            return None
        _tracing = Tracing(provider.get_tracer('postage', __version__))
    return _tracing


class Recorded:
    """An operation that is under way: its span, and the histogram that its duration goes to; one may be missing.

    :param attributes: those of the duration
    """

    __slots__ = ('_attributes', '_began', '_histogram', '_span')

    def __init__(self, span: Span | None, histogram: Histogram | None, attributes: dict[str, Any]) -> None:
        self._span = span
        self._histogram = histogram
        self._attributes = attributes
        self._began = time.monotonic()

    def end(self, error: BaseException | None) -> None:
        """It has ended, with the error where there was one. Any thread."""
        name = None if error is None else class_path_of(error)
        if self._histogram is not None:
            attributes = self._attributes if name is None else {**self._attributes, 'error.type': name}
            self._histogram.record(time.monotonic() - self._began, attributes)
        if self._span is not None:
            if error is not None and name is not None:
                from opentelemetry.trace import Status, StatusCode

                self._span.set_attribute('error.type', name)
                self._span.set_status(Status(StatusCode.ERROR, printable(text_of(error), 200)))
            self._span.end()


class Route:
    """What all messages of one way have in common.

    :ivar name: of their spans
    :ivar attributes: of their spans
    :ivar measured: attributes of their durations
    """

    __slots__ = ('attributes', 'measured', 'name')

    def __init__(self, operation: str, destination: str, key: str, host: str | None, port: int | None) -> None:
        known = {
            'messaging.system': SYSTEM,
            'messaging.operation.name': operation,
            'messaging.operation.type': operation,
            'messaging.destination.name': destination,
            'messaging.rabbitmq.destination.routing_key': key or None,
            'server.address': host,
            'server.port': port,
        }
        self.name = f'{operation} {destination}'
        self.attributes: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
        self.measured = {name: value for name, value in self.attributes.items() if name in MEASURED}

    def attributes_of(self, message_id: str | None, conversation_id: str | None) -> dict[str, Any]:
        """The attributes of one message's span: a dictionary of its own."""
        attributes = self.attributes.copy()
        if message_id is not None:
            attributes['messaging.message.id'] = message_id
        if conversation_id is not None:
            attributes['messaging.message.conversation_id'] = conversation_id
        return attributes


_routes: dict[tuple[Any, ...], Route] = {}


def _route(operation: str, settings: BrokerSettings | None, exchange: str, key: str, queue: str | None) -> Route:
    endpoint = settings.endpoints[0] if settings is not None else None
    host, port = (endpoint.host, endpoint.port) if endpoint is not None else (None, None)
    known = operation, host, port, exchange, key, queue
    route = _routes.get(known)
    if route is None:
        if len(_routes) >= MOST_ROUTES:
            _routes.clear()
        route = _routes[known] = Route(operation, destination_of(exchange, key, queue), key, host, port)
    return route


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
    tracing, histogram = _tracing_now(), meters.histogram('messaging.client.operation.duration')
    if tracing is None and histogram is None:
        return None, further
    found = _route('send', settings, route[0], route[1], None)
    if tracing is None:
        return Recorded(None, histogram, found.measured), further
    given: dict[str, Any] = further or {}
    headers = dict(given.get('headers') or ())
    is_injected = TRACEPARENT in headers
    span = tracing.start_span(
        found.name,
        kind=tracing.calls if is_injected else tracing.sends,
        attributes=found.attributes_of(message_id, correlation_id or given.get('correlation_id')),
    )
    if not is_injected:
        tracing.inject(span, headers)
        further = {**given, 'headers': headers}
    return _recorded(span, histogram, found), further


def _recorded(span: Span, histogram: Histogram | None, route: Route) -> Recorded | None:
    """What has to be told of the end: nothing of a span that the sampler has left out."""
    is_recording = span.is_recording()
    if not is_recording and histogram is None:
        return None
    return Recorded(span if is_recording else None, histogram, route.measured)


def sent(recorded: Recorded, receipt: Receipt) -> None:
    """End it once the broker has said what became of the message. Never blocks."""
    receipt.when_settled(lambda settled: recorded.end(settled.error), is_urgent=False)


# Deliveries


def take(begin: Callable[[Delivery], None], delivery: Delivery, settings: BrokerSettings | None) -> None:
    """Have a delivery begun within a span of its own, which :func:`settled` ends. In the scheduler's thread.

    :param settings: the broker that it came from; ``None`` where there is none, as in ``test_client()``
    """
    tracing, histogram = _tracing_now(), meters.histogram('messaging.process.duration')
    if tracing is None and histogram is None:
        begin(delivery)
        return
    route = _route('process', settings, delivery.exchange, delivery.routing_key, delivery.queue)
    if tracing is None:
        delivery.span = Recorded(None, histogram, route.measured)
        _begin(begin, delivery)
        return
    try:
        properties: Any = delivery.properties
    except errors.DecodingError:  # none but those that an answer depends on
        properties = delivery.salvaged
    headers = getattr(properties, 'headers', None) or {}
    parent, links = _origin_of(headers, tracing)
    attributes = route.attributes_of(getattr(properties, 'message_id', None), properties.correlation_id or None)
    attributes['messaging.rabbitmq.message.delivery_tag'] = delivery.delivery_tag
    span = tracing.start_span(route.name, parent, tracing.handles, attributes, links)
    delivery.span = _recorded(span, histogram, route)
    # What begins here takes a copy of the context with it: a handler that runs as a microthread, or in a thread.
    token = tracing.attach(tracing.in_context(span, parent))
    try:
        _begin(begin, delivery)
    finally:
        tracing.detach(token)


def _begin(begin: Callable[[Delivery], None], delivery: Delivery) -> None:
    try:
        begin(delivery)
    finally:
        if delivery.is_handled:
            settled(delivery, None)


def settled(delivery: Delivery, failure: Failure | None) -> None:
    """End the span of a delivery, if it has one that has not ended."""
    recorded, delivery.span = delivery.span, None
    if recorded is not None:
        recorded.end(None if failure is None else failure.error)


def _origin_of(headers: Mapping[str, Any], tracing: Tracing) -> tuple[Any, Sequence[Any]]:
    """The context that a delivery is handled in, and links to others."""
    linked = headers.get(LINKED)
    if not isinstance(linked, str):
        origin = tracing.extract(headers)
        if not _is_again(headers):
            return origin, ()
    else:
        origin = tracing.extract({**headers, TRACEPARENT: linked})
    from opentelemetry import trace
    from opentelemetry.context import Context

    sender = trace.get_current_span(origin).get_span_context()
    return Context(), [trace.Link(sender)] if sender.is_valid else ()


def _is_again(headers: Mapping[str, Any]) -> bool:
    """Whether a message has been handled before, or given up elsewhere."""
    return 'x-death' in headers or (ATTEMPTS in headers and whole_header(headers, ATTEMPTS) > 0)
