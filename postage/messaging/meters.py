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


def histogram(name: str) -> Histogram | None:
    """Where durations of that name are recorded; ``None`` where the program has set no provider, or not yet."""
    if not _histograms:
        internal = modules.get('opentelemetry.metrics._internal')
        if getattr(internal, '_METER_PROVIDER', internal) is None:  # a look that costs little, for each message has it
            return None
        _begin()
    return _histograms.get(name)


def _begin() -> None:
    from opentelemetry import metrics

    provider = metrics.get_meter_provider()
    if type(provider).__module__.startswith('opentelemetry.metrics'):  # the API's own, which record nothing
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

        return [
            Observation(sample.value, {key: value for key, value in sample.attributes.items() if value})
            for sample in samples()
            if sample.name == name
        ]

    return observe
