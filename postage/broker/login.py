"""Who a client is: the two mechanisms of RabbitMQ that need no more than a name and a password."""

# pika.data has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from pika import data

from postage.broker.replies import COMMAND_INVALID, Refusal
from postage.secret import Secret


class Login(NamedTuple):
    """What a client says who it is."""

    user: str
    password: Secret[bytes]


def login_of(mechanism: str, response: Secret[str]) -> Login:
    """Return what a client says who it is; one that cannot be read names nobody.

    :raises Refusal: 503 for another mechanism
    """
    if mechanism not in ('PLAIN', 'AMQPLAIN'):
        raise Refusal(COMMAND_INVALID, f"unknown authentication mechanism '{mechanism}'")
    name, password = (_read_plain if mechanism == 'PLAIN' else _read_amqplain)(response)
    return Login(name.decode('utf-8', 'replace'), password)


def _read_plain(response: Secret[str]) -> tuple[bytes, Secret[bytes]]:
    parts = Secret([*response.reveal().encode('utf-8', 'surrogateescape').split(b'\0', 2), b'', b''])
    return parts.reveal()[1], Secret(parts.reveal()[2])


def _read_amqplain(response: Secret[str]) -> tuple[bytes, Secret[bytes]]:
    """Return user and password of RabbitMQ's AMQPLAIN, a table without its length."""
    try:
        raw = Secret(response.reveal().encode('utf-8', 'surrogateescape'))
        table = Secret(data.decode_table(struct.pack('>I', len(raw.reveal())) + raw.reveal(), 0)[0])
        return _as_bytes(table.reveal()['LOGIN']), Secret(_as_bytes(table.reveal()['PASSWORD']))
    except Exception:
        return b'', Secret(b'')


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
