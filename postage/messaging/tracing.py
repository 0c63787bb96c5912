"""Spans by the OpenTelemetry conventions, where the program uses OpenTelemetry.

That is so once something has imported ``opentelemetry.trace`` and set a provider; until then nothing is imported here,
and a message that is sent, or a slice of those that have come, pays for one look into ``sys.modules``: whether
:data:`NEEDED` is there.

The conventions: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/ and, next to it, ``rabbitmq``. A
message that is sent is a span ``send DESTINATION``, whose context travels in the header ``traceparent``. One that is
handled is a span ``process DESTINATION``: a child of the former at its first attempt. A later attempt, a letter that is
sent again, and what came through a dead-letter exchange begin traces of their own, linked to where they come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from sys import modules
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from postage import __version__, errors
from postage.amqp.connection import Connection
from postage.amqp.deliveries import LINKED, Delivery
from postage.amqp.frames import TRACEPARENT
from postage.amqp.publishing import Receipt
from postage.messaging import meters
from postage.messaging.outcomes import Failure
from postage.messaging.properties import ATTEMPTS, whole_header
from postage.printable import class_path_of, printable, text_of
from postage.settings import BrokerSettings
from postage.sparingly import Sparingly

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram
    from opentelemetry.trace import Span, Tracer

NEEDED: Final = 'opentelemetry.trace'
MESSAGE_ID: Final = 'messaging.message.id'
CONVERSATION_ID: Final = 'messaging.message.conversation_id'
DELIVERY_TAG: Final = 'messaging.rabbitmq.message.delivery_tag'
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
        self.inject, self.extract, self.has_context = propagation.inject, propagation.extract, propagation.has_context
        self.sender_by, self.alone = propagation.sender_by, propagation.alone


_tracing: Tracing | None = None
_is_off = False  # the program has set a provider that records nothing


def _tracing_now() -> Tracing | None:
    """The same once there is a provider that records; no provider is ever replaced."""
    global _tracing, _is_off
    if _tracing is None and not _is_off:
        trace: Any = modules[NEEDED]
        if getattr(trace, '_TRACER_PROVIDER', trace) is None:  # as the public function finds, too
            return None
        provider = trace.get_tracer_provider()
        _is_off = isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider))
        if not _is_off:
            _tracing = Tracing(provider.get_tracer('postage', __version__))
    return _tracing


_sparingly = Sparingly()


def _could_not(do: str, fault: Exception) -> None:
    """Say so: a sampler or span processor of the program's that raises keeps no message from being sent or handled."""
    text = 'a span could not be %s, because OpenTelemetry raised %s: %s'
    _sparingly.log(logging.ERROR, text, do, class_path_of(fault), printable(text_of(fault), 200))


class Recorded:
    """An operation that is under way: its span, and the histogram that its duration goes to; one may be missing.

    :param attributes: those of the duration
    """

    __slots__ = ('_attributes', '_began', '_histogram', '_span')

    def __init__(self, span: Span | None, histogram: Histogram | None, attributes: dict[str, Any]) -> None:
        self._span = span
        self._histogram = histogram
        self._attributes = attributes
        self._began = 0.0 if histogram is None else monotonic()

    def end(self, error: BaseException | None) -> None:
        """It has ended, with the error where there was one. Any thread."""
        try:
            self._record(error, None if error is None else class_path_of(error))
        except Exception as fault:
            _could_not('ended', fault)

    def _record(self, error: BaseException | None, name: str | None) -> None:
        if self._histogram is not None:
            attributes = self._attributes if name is None else {**self._attributes, 'error.type': name}
            self._histogram.record(monotonic() - self._began, attributes)
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


_routes: dict[tuple[Any, ...], Route] = {}


def _address_of(settings: BrokerSettings | None) -> tuple[str | None, int | None]:
    if settings is None:
        return None, None
    endpoint = settings.endpoints[0]
    return endpoint.host, endpoint.port


def _remember(
    known: tuple[Any, ...], operation: str, address: tuple[str | None, int | None], where: tuple[str, str, str | None]
) -> Route:
    """A new route: that of an exchange, a routing key and, for a consumer, a queue."""
    if len(_routes) >= MOST_ROUTES:
        _routes.clear()
    route = _routes[known] = Route(operation, destination_of(*where), where[1], *address)
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
    address = _address_of(settings)
    known = 'send', address, route
    found = _routes.get(known) or _remember(known, 'send', address, (*route, None))
    if tracing is None:
        return Recorded(None, histogram, found.measured), further
    headers: dict[str, Any] = {}
    kind, is_injected, conversation_id = tracing.sends, False, correlation_id
    if further is not None:
        headers.update(further.get('headers') or ())
        is_injected = bool(headers) and tracing.has_context(headers)
        if is_injected:
            kind = tracing.calls
        conversation_id = correlation_id or further.get('correlation_id')
    attributes = found.attributes.copy()
    attributes[MESSAGE_ID] = message_id
    if conversation_id is not None:
        attributes[CONVERSATION_ID] = conversation_id
    try:
        span = tracing.start_span(found.name, None, kind, attributes)
        if not is_injected:
            tracing.inject(span, headers)
            further = {'headers': headers} if further is None else {**further, 'headers': headers}
        return _recorded(span, histogram, found), further
    except Exception as fault:
        _could_not('begun', fault)
        return None, further


def _recorded(span: Span, histogram: Histogram | None, route: Route) -> Recorded | None:
    """What has to be told of the end: nothing of a span that the sampler has left out."""
    is_recording = span.is_recording()
    if not is_recording and histogram is None:
        return None
    return Recorded(span if is_recording else None, histogram, route.measured)


def sent(recorded: Recorded, receipt: Receipt) -> None:
    """End it once the broker has said what became of the message. Never blocks."""
    receipt.when_settled(partial(_sent, recorded), is_urgent=False)


def _sent(recorded: Recorded, receipt: Receipt) -> None:
    recorded.end(receipt.error)


# Deliveries


def taker(begin: Callable[[Delivery], None], connections: Sequence[Connection]) -> Callable[[Delivery], None]:
    """What has deliveries begun each within a span of its own, which :func:`settled` ends.

    It is good for the next few deliveries. Where nothing is recorded it is ``begin`` itself.

    :param connections: the first is that to the broker that they come from; none for ``test_client()``
    """
    if NEEDED not in modules:
        return begin
    tracing, histogram = _tracing_now(), meters.histogram('messaging.process.duration')
    if tracing is None and histogram is None:
        return begin
    return partial(_take, begin, tracing, histogram, _address_of(connections[0].settings if connections else None))


def _take(
    begin: Callable[[Delivery], None],
    tracing: Tracing | None,
    histogram: Histogram | None,
    address: tuple[str | None, int | None],
    delivery: Delivery,
) -> None:
    content = delivery.content
    known: tuple[Any, ...]
    if content.exchange:
        known = address, delivery.queue, content.exchange, content.routing_key
    else:  # its headers may say otherwise
        known = address, delivery.queue, delivery.exchange, delivery.routing_key
    route = _routes.get(known)
    if route is None:
        where = delivery.exchange, delivery.routing_key, delivery.queue
        route = _remember(known, 'process', address, where)
    if tracing is None:
        delivery.span = Recorded(None, histogram, route.measured)
        _begin(begin, delivery)
        return
    try:
        span, within = _span_of(delivery, route, tracing)
        delivery.span = _recorded(span, histogram, route)
    except Exception as fault:
        _could_not('begun', fault)
        begin(delivery)
        return
    # What begins here takes a copy of the context with it: a handler that runs as a microthread, or in a thread.
    token = tracing.attach(within)
    try:
        _begin(begin, delivery)
    finally:
        tracing.detach(token)


def _span_of(delivery: Delivery, route: Route, tracing: Tracing) -> tuple[Span, Any]:
    """The span of a delivery, and the context that its handlers have."""
    attributes = route.attributes.copy()
    attributes[DELIVERY_TAG] = delivery.delivery_tag
    traced = delivery.traced
    parent = None if traced is None else tracing.sender_by(traced.traceparent)
    if traced is not None and parent is not None:
        if traced.message_id is not None:
            attributes[MESSAGE_ID] = traced.message_id
        if traced.correlation_id:
            attributes[CONVERSATION_ID] = traced.correlation_id
        span = tracing.start_span(route.name, parent, tracing.handles, attributes)
        return span, tracing.alone(span)
    # Its properties are not the usual ones: all of them are decoded.
    try:
        properties: Any = delivery.properties
    except errors.DecodingError:  # none but those that an answer depends on
        properties = delivery.salvaged
    parent, links = _origin_of(getattr(properties, 'headers', None) or {}, tracing)
    message_id = getattr(properties, 'message_id', None)
    if message_id is not None:
        attributes[MESSAGE_ID] = message_id
    if properties.correlation_id:
        attributes[CONVERSATION_ID] = properties.correlation_id
    span = tracing.start_span(route.name, parent, tracing.handles, attributes, links)
    return span, tracing.in_context(span, parent)


def _begin(begin: Callable[[Delivery], None], delivery: Delivery) -> None:
    try:
        begin(delivery)
    except BaseException:
        unfinished(delivery)  # but where the handler itself has asked for an end, and it is settled
        raise
    if delivery.is_handled:
        settled(delivery, None)


def unfinished(delivery: Delivery) -> None:
    """End the span of a delivery whose handlers were interrupted, or closed, if it has one that has not ended."""
    recorded, delivery.span = delivery.span, None
    if recorded is not None:
        recorded.end(errors.HandlingUnfinished('it was not handled to its end, and goes back to its queue'))


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

    sender = trace.get_current_span(origin).get_span_context()
    # What else its sender has sent along, such as baggage, stays.
    return tracing.in_context(trace.INVALID_SPAN, origin), [trace.Link(sender)] if sender.is_valid else ()


def _is_again(headers: Mapping[str, Any]) -> bool:
    """Whether a message has been handled before, or given up elsewhere."""
    return 'x-death' in headers or (ATTEMPTS in headers and whole_header(headers, ATTEMPTS) > 0)
