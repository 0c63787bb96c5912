"""Field tables as bytes: look into them, check them and change them without decoding what they hold.

A broker hands headers on, it does not interpret them. Decoding and encoding again would lose what pika's codec cannot
hold (floats, deep nesting, dates after the year 9999), so entries are cut out and put back as they came
(AMQP 0-9-1 section 4.2.5.5, with the type letters that RabbitMQ uses).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pika import data

from postage.broker.replies import SYNTAX_ERROR, Refusal

Long: type[int] = getattr(data, 'long', None) or type('Long', (int,), {})
"""An integer of 64 bits on the wire. From pika 1.5 on integers are decoded alike, and encoded by their size."""

_FIXED_SIZES: Final[dict[int, int]] = {
    **dict.fromkeys(b'tbB', 1),
    **dict.fromkeys(b'sUu', 2),
    **dict.fromkeys(b'Iif', 4),
    **dict.fromkeys(b'LldT', 8),
    ord('D'): 5,
    ord('V'): 0,
}
_COUNTED: Final = frozenset(b'SxAF')
_NESTED: Final = frozenset(b'AF')
_unpack_length = struct.Struct('>I').unpack_from


def value_end(table: bytes, offset: int) -> int:
    """Return where the value that begins at ``offset`` ends."""
    kind = table[offset]
    size = _FIXED_SIZES.get(kind)
    if size is not None:
        return offset + 1 + size
    if kind in _COUNTED:
        length: int = _unpack_length(table, offset + 1)[0]
        return offset + 5 + length
    raise Refusal(SYNTAX_ERROR, f'illegal type {chr(kind)!r} of a field')


def check_table(table: bytes) -> None:
    """Make sure that a table, its length included, is well formed at every depth.

    :raises Refusal: 502, where it is not
    """
    try:
        if _unpack_length(table)[0] != len(table) - 4:
            raise Refusal(SYNTAX_ERROR, 'the length of a table is wrong')
        pending = [(4, len(table), True)]
        while pending:
            offset, end, has_keys = pending.pop()
            while offset < end:
                value = offset + 1 + table[offset] if has_keys else offset
                offset = value_end(table, value)
                if offset > end:
                    raise Refusal(SYNTAX_ERROR, 'a field is longer than its table')
                if table[value] in _NESTED:
                    pending.append((value + 5, offset, table[value] == ord('F')))
    except (IndexError, struct.error):
        raise Refusal(SYNTAX_ERROR, 'a table ends in the middle of a field') from None


def entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each key of a checked table with its value's bytes, the type letter included."""
    offset = 4
    while offset < len(table):
        value = offset + 1 + table[offset]
        end = value_end(table, value)
        yield table[offset + 1 : value], table[value:end]
        offset = end


def lookup(table: bytes, key: bytes) -> Any:
    """Return the decoded value of one key, or ``None``."""
    for name, value in entries(table):
        if name == key:
            return decode(value)
    return None


def decode(value: bytes) -> Any:
    """Return a Python value; a value that pika cannot decode stays bytes, which compare as well."""
    try:
        return data.decode_value(value, 0)[0]
    except Exception:
        return value


def decode_shallow(table: bytes) -> dict[str, Any]:
    """Return a checked table as a dictionary."""
    return {key.decode('utf-8', 'surrogateescape'): decode(value) for key, value in entries(table)}


def merge(table: bytes | None, changes: Mapping[str, Any]) -> bytes:
    """Return a table with some entries set, or left out where the new value is ``None``."""
    changed = {key.encode() for key in changes}
    kept = [] if table is None else [(key, value) for key, value in entries(table) if key not in changed]
    pieces = [bytes((len(key),)) + key + value for key, value in kept]
    fresh: list[bytes] = []
    data.encode_table(fresh, {key: value for key, value in changes.items() if value is not None})
    pieces.append(b''.join(fresh)[4:])
    payload = b''.join(pieces)
    return struct.pack('>I', len(payload)) + payload
