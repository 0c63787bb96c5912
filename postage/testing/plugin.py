"""The pytest plugin: an embedded broker for each test that asks for one.

pytest loads this module wherever Postage is installed, so it imports nothing of ours before a fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postage.testing.broker import Broker


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, for projects that allow no others."""
    line = "postage_broker(**options): parameters of this test's postage_broker, such as rules='3.10'"
    config.addinivalue_line('markers', line)


@pytest.fixture
def postage_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """An embedded broker of this test's own, a :class:`postage.testing.Broker`; ``postage_broker.url`` leads to it.

    ``@pytest.mark.postage_broker(rules='3.10')`` hands the broker parameters.
    """
    from postage.testing.broker import Broker

    marker = request.node.get_closest_marker('postage_broker')
    with Broker(**(marker.kwargs if marker else {})) as broker:
        yield broker


@pytest.fixture
def postage_url(postage_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> str:
    """The AMQP URL of ``postage_broker``, which is also set as ``POSTAGE_URL`` for the length of the test."""
    monkeypatch.setenv('POSTAGE_URL', postage_broker.url)
    return postage_broker.url
