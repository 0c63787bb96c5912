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

from postage.amqp.frames import TRACEPARENT

TRACESTATE: Final = 'tracestate'
BAGGAGE: Final = 'baggage'

_USUAL = [TraceContextTextMapPropagator, W3CBaggagePropagator]
_form = re.compile('00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})')
_EMPTY: Final = Context()
(_SPAN,) = trace.set_span_in_context(trace.INVALID_SPAN, _EMPTY)  # the key that a context has its span by
_NO_STATE: Final = trace.INVALID_SPAN_CONTEXT.trace_state
_all_flags: Final = {f'{flags:02x}': trace.TraceFlags(flags) for flags in range(256)}
_known: tuple[Any, bool] = None, False  # the program's propagator, and whether it is the usual one


def _is_usual() -> bool:
    global _known
    propagator = propagate.get_global_textmap()
    if propagator is not _known[0]:
        parts = getattr(propagator, '_propagators', ()) if type(propagator) is CompositePropagator else ()
        _known = propagator, [type(part) for part in parts] == _USUAL
    return _known[1]


def has_context(headers: Mapping[str, Any]) -> bool:
    """Whether the program has put the context of a span into these headers itself."""
    names = (TRACEPARENT,) if _is_usual() else propagate.get_global_textmap().fields
    return any(name in headers for name in names)


def inject(span: trace.Span, headers: dict[str, Any]) -> None:
    """Write the context of a span, and what is around it, into the headers of a message."""
    trace_id, span_id, _, flags, state, is_valid = span.get_span_context()
    around = get_current()
    # All that may be in the context besides is a span: no baggage, and nothing else that a propagator may want.
    is_alone = not around or (len(around) == 1 and _SPAN in around)
    if is_alone and is_valid and (state is _NO_STATE or not state) and _is_usual():
        headers[TRACEPARENT] = f'00-{trace_id:032x}-{span_id:016x}-{flags:02x}'
    else:
        propagate.inject(headers, trace.set_span_in_context(span))


def extract(headers: Mapping[str, Any]) -> Context:
    """The context that the headers of a message tell of; an empty one where they tell of none."""
    context = None
    if TRACESTATE not in headers and BAGGAGE not in headers:
        context = sender_by(headers.get(TRACEPARENT))
    if context is not None:
        return context
    return propagate.extract({name: value for name, value in headers.items() if isinstance(value, str)}, Context())


def sender_by(traceparent: Any) -> Context | None:
    """The context that a message tells of which has no other header than this one, if it has that.

    ``None`` where :func:`extract` has to find out.
    """
    if not _is_usual():
        return None
    if traceparent is None:
        return _EMPTY
    match = _form.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    sender = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, _all_flags[flags])
    return Context({_SPAN: trace.NonRecordingSpan(sender)}) if sender.is_valid else None


def alone(span: trace.Span) -> Context:
    """A context with nothing but that span."""
    return Context({_SPAN: span})
