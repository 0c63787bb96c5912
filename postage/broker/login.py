"""Who a client is: the two mechanisms of RabbitMQ that need no more than a name and a password."""

# pika.data has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import struct
from typing import Any

from pika import data

from postage.broker.replies import COMMAND_INVALID, Refusal
from postage.broker.users import Users


def authenticated_user(users: Users, mechanism: str, response: str) -> str | None:
    """Return the name of the user who gave the right password, or ``None``.

    :raises Refusal: 503 for another mechanism
    """
    raw = response.encode('utf-8', 'surrogateescape')
    if mechanism == 'PLAIN':
        _, _, rest = raw.partition(b'\0')
        name, _, password = rest.partition(b'\0')
    elif mechanism == 'AMQPLAIN':
        name, password = _read_amqplain(raw)
    else:
        raise Refusal(COMMAND_INVALID, f"unknown authentication mechanism '{mechanism}'")
    user = name.decode('utf-8', 'replace')
    return user if users.is_password(user, password) else None


def _read_amqplain(response: bytes) -> tuple[bytes, bytes]:
    """Return user and password of RabbitMQ's AMQPLAIN, a table without its length."""
    try:
        table = data.decode_table(struct.pack('>I', len(response)) + response, 0)[0]
        name, password = table['LOGIN'], table['PASSWORD']
        return _as_bytes(name), _as_bytes(password)
    except Exception:
        return b'', b''


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
