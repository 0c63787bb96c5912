"""What a log line says of the message that it is about."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from sys import modules
from typing import Any

from postage import errors
from postage.amqp.deliveries import Delivery, current
from postage.messaging import MessageProcessor
from postage.messaging.properties import attempt_of
from postage.messaging.tracing import NEEDED


class MessageFields:
    """Of each record: the fingerprint of its component, and the ids and the attempt of its message.

    :param components: those of this process
    """

    def __init__(self, components: Sequence[Any]) -> None:
        self._processors = [each for each in components if isinstance(each, MessageProcessor)]

    def __call__(self, record: logging.LogRecord) -> dict[str, Any]:
        delivery = _delivery_of(record)
        return {'fingerprint': self._fingerprint(delivery), **({} if delivery is None else _about(delivery))}

    def _fingerprint(self, delivery: Delivery | None) -> dict[str, Any] | None:
        if delivery is None and len(self._processors) != 1:
            return None
        for processor in self._processors:
            if delivery is None or processor.consumer.delivery_source.is_delivery_of(delivery):
                return processor.fingerprint
        return None


def _delivery_of(record: logging.LogRecord) -> Delivery | None:
    """The delivery that a record names, else the one whose handler is running."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return next((each for each in arguments if isinstance(each, Delivery)), current.get())


def _about(delivery: Delivery) -> dict[str, Any]:
    try:
        properties = delivery.properties
        headers = properties.headers or {}
        return {
            'message_id': properties.message_id,
            'correlation_id': properties.correlation_id,
            'attempt': attempt_of(delivery),
            'trace_id': (own_trace_id() if delivery is current.get() else None) or trace_id_of(headers),
        }
    except errors.PostageError:
        return {}


def own_trace_id() -> str | None:
    """The trace of the current span, where the program uses OpenTelemetry: a later attempt has one of its own."""
    if NEEDED not in modules:
        return None
    span: Any = modules[NEEDED].get_current_span().get_span_context()
    return f'{span.trace_id:032x}' if span.is_valid else None


def trace_id_of(headers: dict[str, Any]) -> str | None:
    """The trace that a message belongs to, by its header ``traceparent`` (https://www.w3.org/TR/trace-context/)."""
    parts = str(headers.get('traceparent', '')).split('-')
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else None
