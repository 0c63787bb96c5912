"""Messages as lines of JSON, as ``tail --record`` writes and ``replay`` reads them."""

from __future__ import annotations

import base64
import json
from typing import Any

from postage import errors
from postage.amqp.deliveries import with_link
from postage.amqp.frames import DEADLINE
from postage.cli.malformed import MALFORMED
from postage.cli.output import as_line
from postage.dead_letters.form import moment
from postage.messaging import properties as amqp

LEFT_OUT = (DEADLINE, 'CC', 'BCC')
"""Headers that held for the first sending alone: until when an answer was waited for, and who else got it."""


def as_record(exchange: str, routing_key: str, properties: Any, body: bytes, at: float) -> dict[str, Any]:
    """A message as a dictionary that JSON can hold. Its body is ``body`` where it is text, else ``body_base64``."""
    record = {
        'at': moment(at),
        'exchange': exchange,
        'routing_key': routing_key,
        'properties': amqp.as_plain(properties),
    }
    try:
        return {**record, 'body': body.decode()}
    except UnicodeDecodeError:
        return {**record, 'body_base64': base64.b64encode(body).decode()}


def line_of(record: dict[str, Any]) -> str:
    """One line of a file."""
    return as_line(record)


def message_of(line: str) -> tuple[str, str, amqp.Properties, bytes]:
    """Exchange, routing key, properties and body of a line.

    :raises errors.ConfigurationError: it is none
    """
    try:
        record = json.loads(line)
        properties = amqp.from_plain(record['properties'])
        is_text = 'body' in record
        body = record['body'].encode() if is_text else base64.b64decode(record['body_base64'], validate=True)
        exchange, key = str(record['exchange']), str(record['routing_key'])
        headers = {name: value for name, value in (properties.headers or {}).items() if name not in LEFT_OUT}
    except MALFORMED as error:
        raise errors.ConfigurationError(f'it is no recorded message ({type(error).__name__}: {error})') from error
    properties.headers = with_link(headers) or None
    properties.user_id = None  # which only its first sender may be
    return exchange, key, properties, body
