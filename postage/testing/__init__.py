"""Help for tests of programs that talk AMQP: a broker in this process, with powers that RabbitMQ lacks.

::

    from postage.testing import Broker, track

    with Broker() as broker:
        with track(broker) as session:
            ...  # clients connect to broker.url
        assert [message.body for message in session.delivered] == ['hello']

pytest finds the fixtures ``postage_broker`` and ``postage_url`` by itself, see :mod:`postage.testing.plugin`. As pytest
imports that module wherever Postage is installed, nothing here is loaded before its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postage.testing.beside import running
    from postage.testing.broker import Broker, StoredMessage
    from postage.testing.tracking import DeadMessage, DeliveredMessage, PublishedMessage, Session, track

__all__ = [
    'Broker',
    'DeadMessage',
    'DeliveredMessage',
    'PublishedMessage',
    'Session',
    'StoredMessage',
    'running',
    'track',
]

_MODULES = {
    'Broker': 'broker',
    'DeadMessage': 'tracking',
    'DeliveredMessage': 'tracking',
    'PublishedMessage': 'tracking',
    'Session': 'tracking',
    'StoredMessage': 'broker',
    'running': 'beside',
    'track': 'tracking',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
