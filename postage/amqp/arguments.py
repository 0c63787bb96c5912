"""What the arguments of a method can hold, seen to before pika sends any of it. No I/O.

pika encodes the methods that it sends, and raises whatever its encoder meets: ``struct.error``, ``RecursionError``.
Some values it sends, and the broker closes the connection because of them, which others share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pika.spec

from postage.amqp.frames import FRAME_OVERHEAD, HEADER_OVERHEAD, encode_all, encode_table, short_string, utf8
from postage.errors import EncodingError
from postage.printable import shown

SHORT_STRINGS: Final = frozenset(
    ('queue', 'exchange', 'routing_key', 'consumer_tag', 'exchange_type', 'source', 'destination')
)
BITS: Final[Mapping[str, int]] = {'delivery_tag': 64, 'prefetch_count': 16, 'prefetch_size': 32}
OTHER_FIELDS = 32  # bytes that the bits and numbers of a method take at most


def fit(arguments: Mapping[str, Any], doing: str, frame_max: int) -> dict[str, Any]:
    """The arguments of a pika channel method in a form that pika can encode.

    :param doing: what the method is for, as in "declare queue 'jobs'"
    :param frame_max: bytes that a frame may have: AMQP cannot split a method, nor a content header (section 4.2.6)
    :raises EncodingError: where AMQP cannot hold one of them, naming it, and why
    """
    fitted, size = dict(arguments), OTHER_FIELDS
    for name, value in arguments.items():
        what = f'cannot {doing}: {name}'
        if name in SHORT_STRINGS and not (value is None and _has_default(name, arguments)):
            size += len(short_string(value, what))
        elif name == 'arguments' and value is not None:
            if not isinstance(value, Mapping):
                raise EncodingError(f'{what} must be a dictionary, not {shown(value)}')
            size += len(encode_table(value, f'cannot {doing}: argument'))
            fitted[name] = _plain(value, f'cannot {doing}: argument')
        elif name in BITS:
            if not isinstance(value, int) or not 0 <= value < 2 ** BITS[name]:
                raise EncodingError(f'{what} must be a number of {BITS[name]} bits, not {shown(value)}')
        elif name == 'properties' and value is not None:
            if not isinstance(value, pika.spec.BasicProperties):
                raise EncodingError(f'{what} must be pika.BasicProperties, not {shown(value)}')
            fitted[name] = _fit_properties(value, doing, frame_max)
        elif name == 'body' and not isinstance(value, bytes):
            fitted[name] = _fit_body(value, what)
    if size > frame_max - FRAME_OVERHEAD:
        raise EncodingError(f'cannot {doing}: its arguments are {size} bytes, and a frame holds {frame_max}')
    return fitted


def _has_default(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether pika takes ``None``: the tag of a consumer is made up, and the key of a binding is that of the queue."""
    return name == 'consumer_tag' or (name == 'routing_key' and 'body' not in arguments)


def _fit_properties(properties: pika.spec.BasicProperties, doing: str, frame_max: int) -> pika.spec.BasicProperties:
    size = len(encode_all(properties))
    if size > frame_max - HEADER_OVERHEAD:
        raise EncodingError(f'cannot {doing}: its properties are {size} bytes, and a frame holds {frame_max}')
    if not properties.headers:
        return properties
    fitted = pika.spec.BasicProperties()  # type: ignore[no-untyped-call]
    fitted.__dict__.update(properties.__dict__)
    fitted.headers = _plain(properties.headers, 'header')
    return fitted


def _fit_body(value: Any, what: str) -> bytes:
    if isinstance(value, str):
        return utf8(value, what)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise EncodingError(f'{what} must be bytes or text, not {shown(value)}')


def _plain(value: Any, path: str) -> Any:
    """A value that AMQP can hold, out of the types that pika knows."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f'{path} {shown(name, 60)}') for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, path) for item in value]
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, float):
        raise EncodingError(f'{path} cannot be {value!r}: pika sends no floating-point numbers here')
    return value
