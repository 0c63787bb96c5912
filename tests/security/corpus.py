"""Hostile messages: those that once did harm, or might, and as many more as a seed gives."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

from support.messaging import command

EMPTY_TABLE = b'\0\0\0\0'


def table(entries: bytes) -> bytes:
    return struct.pack('>I', len(entries)) + entries


def nested(depth: int) -> bytes:
    inner = EMPTY_TABLE
    for _ in range(depth):
        inner = table(b'\x01nF' + inner)
    return inner


BODIES: tuple[bytes, ...] = (
    b'',
    b'\0',
    b'null',
    b'[]',
    b'"text"',
    b'{',
    b'\xff\xfe',
    b'[' * 100_000,
    b'{"a":' * 50_000,
    b'9' * 50_000,
    b'1e999999',
    b'{"type": "command"}',
    json.dumps(command('quit', type=['command'])).encode(),
    json.dumps(command('echo', category='other')).encode(),
    json.dumps(command('echo', content=None)).encode(),
    json.dumps(command('echo', fingerprint='me')).encode(),
    json.dumps(command('echo', version=2)).encode(),
    json.dumps(command('x' * 10_000)).encode(),
    json.dumps(command('\x1b[31m\n\u202e\ud800')).encode(),
    json.dumps(command('__init__')).encode(),
    json.dumps(command('echo', category='rpc')).encode(),
    json.dumps(command('nothing', category='rpc')).encode(),
    json.dumps(command('raise', parameters='\ud800\x1b')).encode(),
    json.dumps(command('raise', category='rpc')).encode(),
    json.dumps(command('drop', parameters='\x9b')).encode(),
)
"""Bodies; none of them is what the processor of the tests notes."""

HEADERS: tuple[bytes, ...] = (
    EMPTY_TABLE,
    b'',
    b'\xff\xff\xff\xff',
    table(b'\x01tT' + b'\xff' * 8),
    table(b'\x01tT' + b'\x7f' + b'\xff' * 7),
    table(b'\x01x?'),
    table(b'\x01xS\xff\xff\xff\xff'),
    table(b'\x01xA\0\0\0\x05Vxyz'),
    table(b'\xffx'),
    table(b'\x02\xff\xfeV'),
    table(b'\x01dD\xff\x7f\xff\xff\xff'),
    table(b'\x01fd\x7f\xf8\0\0\0\0\0\0'),
    nested(20),
    nested(200),
    nested(2000),
    table(b'\x12x-postage-attemptsl\x7f' + b'\xff' * 7),
    table(b'\x14x-postage-deliveriesl\x7f' + b'\xff' * 7),
    table(b'\x17x-postage-first-attemptl\x80' + b'\0' * 7),
    table(b'\x14x-postage-expirationI\0\0\0\x05'),
    table(b'\x11x-postage-user-idA\0\0\0\0'),
    table(b'\x0cx-postage-ccV'),
    table(b'\x12x-postage-exchangeF\0\0\0\0'),
    table(b'\x10x-delivery-countl\x80' + b'\0' * 7),
    table(b'\x07x-deathA\0\0\0\x05I\0\0\0\x01'),
)
"""Headers as they stand in a content header."""

FLAG_HEADERS, FLAG_MODE, FLAG_CORRELATION, FLAG_REPLY_TO, FLAG_EXPIRATION = 1 << 13, 1 << 12, 1 << 10, 1 << 9, 1 << 8


def short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def properties_of(headers: bytes | None, reply_to: bytes | None = None, correlation_id: bytes | None = None) -> bytes:
    """Properties that a broker takes as they are: RabbitMQ does not look into the headers of a message."""
    flags, values = 0, b''
    if headers is not None:
        flags, values = flags | FLAG_HEADERS, values + headers
    if correlation_id is not None:
        flags, values = flags | FLAG_CORRELATION, values + short(correlation_id)
    if reply_to is not None:
        flags, values = flags | FLAG_REPLY_TO, values + short(reply_to)
    return struct.pack('>H', flags) + values


def hostile(numbers: random.Random) -> tuple[bytes, bytes]:
    """Properties and a body, drawn from the corpus and bent."""
    body = numbers.choice(BODIES)
    if numbers.random() < 0.5:
        body = bend(numbers, body[:500] or b'{}')
    headers = numbers.choice((None, *HEADERS))
    if headers and len(headers) > 4 and numbers.random() < 0.4:
        headers = bend(numbers, headers)
    reply_to = numbers.choice((None, None, b'nowhere', b'amq.rabbitmq.reply-to.forged', b'\xff', b'x' * 255))
    correlation_id = numbers.choice((None, b'', b'\xfe', b'c' * 255))
    return properties_of(headers, reply_to, correlation_id), body


def bend(numbers: random.Random, data: bytes) -> bytes:
    """Change, take out or add some bytes; a table keeps a length that its broker can read over."""
    changed: Any = bytearray(data)
    for _ in range(numbers.randint(1, 6)):
        place = numbers.randrange(len(changed) + 1)
        changed[place : place + numbers.randint(0, 3)] = numbers.randbytes(numbers.randint(0, 3))
    return bytes(changed)
