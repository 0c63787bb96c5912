"""Fixtures that several folders of tests share; their ``conftest.py`` takes what it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from support.brokers import Broker
from support.messaging import Bench, HeldConfirms
from support.proxy import Proxy


@contextlib.contextmanager
def bench_on(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench on a broker, which the environment names."""
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '10')
    with Bench(broker) as bench:
        yield bench


@pytest.fixture
def bench(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench on the broker of this test, which the environment names."""
    with bench_on(broker, monkeypatch) as bench:
        yield bench


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    """A proxy in front of the broker of this test, of which the environment knows nothing yet."""
    with Proxy.before(broker) as proxy:
        yield proxy


@pytest.fixture
def proxied(bench: Bench, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The same, and the environment leads through it; the bench's own bare connections do not."""
    monkeypatch.setenv('POSTAGE_URL', proxy.url(bench.broker.url))
    return proxy


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldConfirms]:
    """Confirms of messages are kept back."""
    held = HeldConfirms(monkeypatch)
    yield held
    held.forget()
