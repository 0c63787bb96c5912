"""The context of a trace in a message's headers, as the program's own propagators write and read it.

Where those are the usual ones, of the W3C, what most messages have, the header ``traceparent`` alone, is written and
read here, in a third of the time: https://www.w3.org/TR/trace-context/#traceparent-header. Imported only where the
program uses OpenTelemetry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, get_current
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT: Final = 'traceparent'
TRACESTATE: Final = 'tracestate'
BAGGAGE: Final = 'baggage'

_USUAL = [TraceContextTextMapPropagator, W3CBaggagePropagator]
_form = re.compile('00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})')
_known: tuple[Any, bool] = None, False  # the program's propagator, and whether it is the usual one


def _is_usual() -> bool:
    global _known
    propagator = propagate.get_global_textmap()
    if propagator is not _known[0]:
        parts = getattr(propagator, '_propagators', ()) if type(propagator) is CompositePropagator else ()
        _known = propagator, [type(part) for part in parts] == _USUAL
    return _known[1]


def inject(span: trace.Span, headers: dict[str, Any]) -> None:
    """Write the context of a span, and what is around it, into the headers of a message."""
    own, around = span.get_span_context(), get_current()
    # All that may be in the context besides is a span: no baggage, and nothing else that a propagator may want.
    is_alone = not around or (len(around) == 1 and trace.get_current_span(around) is not trace.INVALID_SPAN)
    if is_alone and own.is_valid and not own.trace_state and _is_usual():
        headers[TRACEPARENT] = f'00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}'
    else:
        propagate.inject(headers, trace.set_span_in_context(span))


def extract(headers: Mapping[str, Any]) -> Context:
    """The context that the headers of a message tell of; an empty one where they tell of none."""
    if _is_usual() and TRACESTATE not in headers and BAGGAGE not in headers:
        found = headers.get(TRACEPARENT)
        if found is None:
            return Context()
        match = _form.fullmatch(found) if isinstance(found, str) else None
        if match is not None:
            trace_id, span_id, flags = match.groups()
            flags_there = trace.TraceFlags(int(flags, 16))
            sender = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=flags_there)
            if sender.is_valid:
                return trace.set_span_in_context(trace.NonRecordingSpan(sender), Context())
    return propagate.extract({name: value for name, value in headers.items() if isinstance(value, str)}, Context())
