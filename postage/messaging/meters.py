"""What is counted, as metrics of OpenTelemetry, where the program uses them.

Counters and gauges are read where they are counted, when the program's reader asks. The two durations are recorded with
each message. Names, units and buckets are those in :mod:`postage.messaging.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from sys import modules
from typing import TYPE_CHECKING, Any

from postage import __version__
from postage.amqp.durations import CONVENTIONAL
from postage.messaging.metrics import METRICS, samples

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Histogram, Observation

_histograms: dict[str, Histogram] = {}
_is_off = False  # the program has set a provider that records nothing


def histogram(name: str) -> Histogram | None:
    """Where durations of that name are recorded; ``None`` where the program has set no provider, or not yet."""
    if not _histograms and not _is_off:
        internal = modules.get('opentelemetry.metrics._internal')
        if getattr(internal, '_METER_PROVIDER', internal) is None:  # a look that costs little, for each message has it
            return None
        _begin()
    return _histograms.get(name)


def _begin() -> None:
    global _is_off
    from opentelemetry import metrics

    provider = metrics.get_meter_provider()
    _is_off = type(provider).__module__.startswith('opentelemetry.metrics')  # the API's own, which record nothing
    if _is_off:
        return
    meter = provider.get_meter('postage', __version__)
    for name, metric in METRICS.items():
        known: dict[str, Any] = {'unit': metric.unit, 'description': metric.text}
        if metric.kind == 'histogram':
            _histograms[name] = meter.create_histogram(name, explicit_bucket_boundaries_advisory=CONVENTIONAL, **known)
        elif metric.kind == 'counter':
            meter.create_observable_counter(name, [_observe(name)], **known)
        else:
            meter.create_observable_gauge(name, [_observe(name)], **known)


def _observe(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        sums: dict[tuple[tuple[str, str], ...], Any] = {}  # of a gauge the SDK would keep the last of several
        for sample in samples():
            if sample.name == name:
                about = tuple((key, value) for key, value in sample.attributes.items() if value)
                sums[about] = sums.get(about, 0) + sample.value
        return [Observation(value, dict(about)) for about, value in sums.items()]

    return observe
