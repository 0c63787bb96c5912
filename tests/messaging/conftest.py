"""The bench on which the tests of the messaging layer are set up, once for each broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.brokers import Broker
from support.messaging import Bench


@pytest.fixture
def bench(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench on the broker of this test, which the environment names."""
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '10')
    with Bench(broker) as bench:
        yield bench
