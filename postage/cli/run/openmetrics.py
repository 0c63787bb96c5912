"""Samples of several processes as one text of OpenMetrics, by ``prometheus-client``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from postage.errors import ConfigurationError

Key = tuple[str, tuple[tuple[str, str], ...]]
Sums = dict[Key, Any]
"""Name and attributes of each → its value."""

MISSING = "/metrics needs prometheus-client, which comes with: pip install 'postage[metrics]'"


def added(sums: Sums, samples: Iterable[Any]) -> Sums:
    """Add samples to sums, and return those."""
    for name, attributes, value in samples:
        key = (name, tuple(sorted(attributes.items())))
        before = sums.get(key)
        if before is None:
            sums[key] = value
        elif isinstance(value, dict):
            counts = [one + other for one, other in zip(before['counts'], value['counts'], strict=True)]
            sums[key] = {'counts': counts, 'sum': before['sum'] + value['sum']}
        else:
            sums[key] = before + value
    return sums


def text_of(sums: Sums) -> tuple[bytes, str]:
    """The text, and its content type.

    :raises ConfigurationError: ``prometheus-client`` is not installed
    """
    try:
        from prometheus_client.openmetrics import exposition
    except ImportError:
        raise ConfigurationError(MISSING) from None

    class Registry:
        def collect(self) -> Iterator[Any]:
            return _families(sums)

    return exposition.generate_latest(Registry()), exposition.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]


def _families(sums: Sums) -> Iterator[Any]:
    from prometheus_client import core

    from postage.amqp.durations import CONVENTIONAL
    from postage.messaging.metrics import METRICS

    kinds: dict[str, Any] = {
        'counter': core.CounterMetricFamily,
        'gauge': core.GaugeMetricFamily,
        'histogram': core.HistogramMetricFamily,
    }
    for name, metric in METRICS.items():
        found = {attributes: value for (own, attributes), value in sums.items() if own == name}
        if not found:
            continue
        labels = sorted({label for attributes in found for label, _ in attributes})
        unit = 'seconds' if metric.unit == 's' else ''
        family = kinds[metric.kind](_plain(name), metric.text, labels=[_plain(label) for label in labels], unit=unit)
        for attributes, value in found.items():
            values = [str(dict(attributes).get(label, '')) for label in labels]
            if metric.kind == 'histogram':
                buckets, total = [], 0
                for bound, count in zip([*map(str, CONVENTIONAL), '+Inf'], value['counts'], strict=True):
                    total += count
                    buckets.append((bound, total))
                family.add_metric(values, buckets, sum_value=value['sum'])
            else:
                family.add_metric(values, value)
        yield family


def _plain(name: str) -> str:
    return name.replace('.', '_')
