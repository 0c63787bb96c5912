"""The benches on which the reliability tests are set up, and the network that they disturb."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.brokers import RabbitMQ
from support.fixtures import bench, bench_on, proxied, proxy
from support.messaging import Bench

__all__ = ['bench', 'private_bench', 'proxied', 'proxy']


@pytest.fixture
def private_bench(private_rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench on a RabbitMQ node that the test may stop, kill and restart."""
    with bench_on(private_rabbitmq, monkeypatch) as bench:
        yield bench
