"""A letter as JSON, for people and for other programs."""

from __future__ import annotations

import base64
from datetime import datetime, timezone
from typing import Any

from postage.dead_letters.store import StoredLetter
from postage.messaging.letters import DeadLetter


def as_json(stored: StoredLetter) -> dict[str, Any]:
    """A stored letter as a dictionary that JSON can hold.

    The body is ``body`` where it is text in UTF-8, else ``body_base64``; times are in ISO 8601, in UTC.
    """
    letter = stored.letter
    return {
        'id': stored.id,
        'queue': letter.queue,
        'exchange': letter.exchange,
        'routing_key': letter.routing_key,
        'reason': letter.reason,
        'exception': letter.exception,
        'message': letter.message,
        'attempts': letter.attempts,
        'first_attempt_at': moment(letter.first_attempt_at),
        'died_at': moment(letter.died_at),
        'replay_begun_at': None if stored.replay_begun_at is None else moment(stored.replay_begun_at),
        'properties': letter.properties,
        **body_as_json(letter),
        'traceback': letter.traceback,
    }


def body_as_json(letter: DeadLetter) -> dict[str, str]:
    """The body as text, or in base64."""
    try:
        return {'body': letter.body.decode()}
    except UnicodeDecodeError:
        return {'body_base64': base64.b64encode(letter.body).decode()}


def moment(seconds: float) -> str:
    """A time as ISO 8601 has it, in UTC."""
    try:
        at = datetime.fromtimestamp(seconds, timezone.utc)
    except (ArithmeticError, OSError, ValueError):  # a store that others write to
        at = datetime.fromtimestamp(0, timezone.utc)
    return at.isoformat(timespec='milliseconds').replace('+00:00', 'Z')
