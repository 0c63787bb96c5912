"""AMQP properties of messages that are sent on: what is noted in their headers, their bytes, and their form in JSON.

A message that is sent on to a queue by Postage, to come back later or to be counted, goes through the default
exchange, with a header for each of the things that this would make it forget. :func:`original` undoes that.
"""

from __future__ import annotations

import base64
import copy
import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import pika.spec

from postage import errors
from postage.amqp import retries
from postage.amqp.deliveries import ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, Delivery
from postage.amqp.frames import DEADLINE, PROPERTY_NAMES
from postage.printable import shown

ATTEMPTS: Final = retries.ATTEMPTS
FIRST_ATTEMPT: Final = retries.FIRST_ATTEMPT
DELIVERIES: Final = 'x-postage-deliveries'
"""How often a delivery of it came to no end."""
EXCHANGE: Final = ORIGINAL_EXCHANGE
ROUTING_KEY: Final = ORIGINAL_ROUTING_KEY
EXPIRATION: Final = 'x-postage-expiration'
USER_ID: Final = 'x-postage-user-id'
CC: Final = 'x-postage-cc'
SIGNATURE: Final = 'x-postage-signature'
VOUCHER: Final = 'x-postage-voucher'
"""Of a consumer that verified, in time, a message that is sent on. See :mod:`postage.messaging.signing` for both."""

COUNT_MAX: Final = 2**53  # what a header counts to: AMQP, SQLite and JSON hold it, and one more
EXPIRATION_DIGITS: Final = 10

DELAY_PREFIX: Final = 'postage.retry.'
"""What the names of the queues begin with in which messages wait for their next attempt."""

_PREFIX: Final = 'x-postage-'
_KEPT: Final = (SIGNATURE, VOUCHER)  # part of the message, wherever it is sent
_COUNTS: Final = (retries.DELIVERY_COUNT, 'x-acquired-count')  # the broker's, of deliveries from one quorum queue

Properties = pika.spec.BasicProperties


def sent_on(properties: Properties, origin: tuple[str, str] | None, **notes: Any) -> Properties:
    """The properties of a message that is sent on to a queue, by the default exchange.

    :param origin: the exchange it was published to first, and the routing key; ``None`` where there is no room for them
    :param notes: headers to be added, by the name of their constant here in small letters
    """
    changed = original(properties)
    headers = dict(changed.headers or {})
    if origin is not None:
        headers[EXCHANGE], headers[ROUTING_KEY] = origin
    headers |= {f'{_PREFIX}{name.replace("_", "-")}': value for name, value in notes.items()}
    deadline = (properties.headers or {}).get(DEADLINE)
    if deadline is not None:  # a request is wanted no longer for being tried again
        headers[DEADLINE] = deadline
    # A message in waiting must not expire; the broker refuses another user's id, and sends copies to what CC names.
    for name, header in (('expiration', EXPIRATION), ('user_id', USER_ID)):
        value = getattr(changed, name)
        if value is not None:
            headers[header] = value
            setattr(changed, name, None)
    if 'CC' in headers:
        headers[CC] = headers.pop('CC')
    changed.headers = headers
    return changed


def original(properties: Properties) -> Properties:
    """The properties with which a message was published first, whether it was sent on since or not. A copy."""
    restored = copy.copy(properties)
    headers = dict(properties.headers or {})
    # Any program may write these headers, and something else into them.
    if _is_number(headers.get(EXPIRATION)):
        restored.expiration = headers[EXPIRATION]
    if isinstance(headers.get(USER_ID), str):
        restored.user_id = headers[USER_ID]
    if isinstance(headers.get(CC), list):
        headers['CC'] = headers[CC]
    restored.headers = {
        name: value
        for name, value in headers.items()
        if (not name.startswith(_PREFIX) or name in _KEPT) and name not in _COUNTS
    }
    _forget_delays(restored.headers)
    if not restored.headers:
        restored.headers = None
    return restored


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= EXPIRATION_DIGITS


def _forget_delays(headers: dict[str, Any]) -> None:
    """Take out what the broker noted when a message left a delay queue (https://www.rabbitmq.com/docs/dlx#effects).

    And what no broker noted: RabbitMQ loses a message with such a header as it is to leave the queue.
    """
    deaths = headers.pop('x-death', None)
    if isinstance(deaths, list):
        kept = [death for death in deaths if isinstance(death, Mapping) and not _is_delay(death)]
        if kept:
            headers['x-death'] = kept
    for which in ('first', 'last'):
        if str(headers.get(f'x-{which}-death-queue', '')).startswith(DELAY_PREFIX):
            for what in ('queue', 'exchange', 'reason'):
                headers.pop(f'x-{which}-death-{what}', None)


def _is_delay(death: Mapping[str, Any]) -> bool:
    return str(death.get('queue', '')).startswith(DELAY_PREFIX)


def whole_header(headers: Mapping[str, Any], name: str) -> int:
    """A header that counts; 0 where it is absent, or another program wrote something else into it."""
    value = headers.get(name)
    return min(int(value), COUNT_MAX) if isinstance(value, int) and value > 0 else 0


def attempt_of(delivery: Delivery) -> int:
    """Which attempt to handle a message this is, from 1, as far as its headers tell."""
    try:
        return whole_header(delivery.headers, ATTEMPTS) + 1
    except errors.DecodingError:
        return 1


# JSON


def as_plain(properties: Properties) -> dict[str, Any]:
    """The properties as a dictionary that JSON can hold; only those that are set.

    What JSON lacks is marked: ``{'$bytes': base64}``, ``{'$time': ISO 8601}``, ``{'$decimal': text}``,
    ``{'$float': text}``, and ``{'$table': …}`` around a table whose own keys look like that.
    """
    plain = {name: _plain(value) for name in PROPERTY_NAMES if (value := getattr(properties, name)) is not None}
    if 'headers' in plain and not plain['headers']:
        del plain['headers']
    return plain


def from_plain(plain: Mapping[str, Any]) -> Properties:
    """Undo :func:`as_plain`.

    :raises ValueError: where it is none of its results
    """
    unknown = sorted(set(plain) - set(PROPERTY_NAMES))
    if unknown:
        raise ValueError(f'there is no AMQP property {unknown[0]!r}')
    return Properties(**{name: _restored(value) for name, value in plain.items()})  # type: ignore[no-untyped-call]


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {'$bytes': base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return {'$time': value.isoformat()}
    if isinstance(value, Decimal):
        return {'$decimal': str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {'$float': repr(value)}
    if isinstance(value, Mapping):
        table = {str(name): _plain(item) for name, item in value.items()}
        return {'$table': table} if any(name.startswith('$') for name in table) else table
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1:
        (mark, content), *_ = value.items()
        if mark in _MARKS:
            return _MARKS[mark](content)
    return {name: _restored(item) for name, item in value.items()}


_MARKS: Final[Mapping[str, Any]] = {
    '$bytes': base64.b64decode,
    '$time': datetime.fromisoformat,
    '$decimal': Decimal,
    '$float': float,
    '$table': lambda table: {name: _restored(item) for name, item in table.items()},
}


def seconds_of(plain: Any) -> float:
    """The time that a header in plain form holds, as ``time.time()`` has it.

    :raises ValueError: where it holds none
    """
    restored = _restored(plain)
    if not isinstance(restored, datetime):
        raise ValueError(f'{shown(plain)} is no time')
    return restored.timestamp()
