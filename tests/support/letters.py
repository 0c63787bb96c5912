"""Dead letters for tests of their stores and of the command that reads these."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from postage.dead_letters import QueueDeadLetters, SQLiteDeadLetters
from postage.messaging.letters import DeadLetter
from support.messaging import command


def letter(number: int = 0, **changes: Any) -> DeadLetter:
    """A letter about an echo of that number."""
    fields: dict[str, Any] = {
        'body': json.dumps(command(parameters=number)).encode(),
        'properties': {'content_type': 'application/json', 'message_id': f'message-{number}', 'delivery_mode': 2},
        'queue': 'echo-queue',
        'exchange': 'echo-exchange',
        'routing_key': 'echo-rk',
        'reason': 'exception',
        'exception': 'ValueError',
        'message': 'no good',
        'traceback': 'Traceback (most recent call last):\n  …\nValueError: no good',
        'attempts': 1,
        'first_attempt_at': time.time() - 1,
        'died_at': time.time(),
    }
    return DeadLetter(**{**fields, **changes})


def numbers(stored: Any) -> list[int]:
    """The numbers of stored letters."""
    return [json.loads(each.letter.body)['content']['parameters'] for each in stored]


KINDS = ('sqlite', 'embedded', 'rabbitmq')
"""Stores to be tested: a file, and a queue on both brokers."""


def make_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, path: Path) -> Any:
    """An empty store of the kind that the fixture is parametrised with; a queue's broker is in the environment."""
    if request.param == 'sqlite':
        return SQLiteDeadLetters(path)
    monkeypatch.setenv('POSTAGE_URL', request.getfixturevalue(request.param).url)
    return QueueDeadLetters('dead')
