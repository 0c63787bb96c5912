"""The codec of the fast lane: the bytes of frames, properties and tables, made and read here. No state.

pika makes a method, a header and a body object of every message and sends them one by one. A component that moves
messages all day has better uses for that time, so this module makes the frames of publishes and acknowledgements as
bytes, and reads the properties of deliveries. :mod:`postage.amqp.cutter` cuts what was read into deliveries and
confirms; :mod:`postage.amqp.link` moves the bytes. Frames of other methods stay with pika.

Frame layout: AMQP 0-9-1, sections 2.3 (frames) and 4.2 (format). Nothing here is called by users.
"""

from __future__ import annotations

import calendar
import itertools
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from decimal import Decimal
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, Final, NamedTuple

import pika

from postage.errors import DecodingError, EncodingError
from postage.printable import shown

METHOD, HEADER, BODY = 1, 2, 3
FRAME_END = b'\xce'
FRAME_END_BYTE = 0xCE
FRAME_OVERHEAD = 8
HEADER_OVERHEAD = 22  # bytes of a content header beside the properties, its frame included
FRAME_MIN = 4096  # bytes that every peer accepts in a frame (section 4.2.3)

CHANNEL_CLOSE = (20 << 16) | 40
BASIC_PUBLISH = (60 << 16) | 40
BASIC_RETURN = (60 << 16) | 50
BASIC_DELIVER = (60 << 16) | 60
BASIC_ACK = (60 << 16) | 80
BASIC_REJECT = (60 << 16) | 90
BASIC_NACK = (60 << 16) | 120

EXPIRATION_MAX = 2**32 - 1  # milliseconds; RabbitMQ closes the channel for more
DEPTH_MAX = 64  # tables within tables; RabbitMQ and its clients take more, but no message needs it
READ_DEPTH_MAX = 128
_REQUEUE = 2  # the second bit of a nack; the first one is "multiple"

FRAME_HEAD: Final = Struct('>BHI')
CONTENT_HEADER: Final = Struct('>BHIHHQ')  # with its frame's head, the class, the weight and the size of the body
_method = Struct('>I')
_length = Struct('>I')
_int32, _int64, _uint64, _double = Struct('>i'), Struct('>q'), Struct('>Q'), Struct('>d')
_settlement = Struct('>BHIIQBB')
_flags = Struct('>H')
_deadline_mode_and_size = Struct('>qBB')

# Bits of the property flags (section 4.2.6.1), highest first, in the order in which the values follow.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY = 1 << 15, 1 << 14, 1 << 13, 1 << 12, 1 << 11
_CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID = 1 << 10, 1 << 9, 1 << 8, 1 << 7
DEADLINE = 'x-postage-deadline'
"""The header of a request that says until when its answer is waited for, in milliseconds since 1970."""
TRACEPARENT: Final = 'traceparent'
"""The header with the context of a trace (https://www.w3.org/TR/trace-context/#traceparent-header)."""

# The tables of headers that our own messages have, without what follows: a number, a context, and both.
_DEADLINE_FIELD = b'\x12' + DEADLINE.encode() + b'l'
_TRACE_LENGTH: Final = 55
_TRACE_FIELD = b'\x0b' + TRACEPARENT.encode() + b'S\0\0\0\x37'
_DEADLINE_TABLE = b'\0\0\0\x1c' + _DEADLINE_FIELD
_TRACE_TABLE = b'\0\0\0\x48' + _TRACE_FIELD
_TRACED_DEADLINE_TABLE = b'\0\0\0\x64' + _TRACE_FIELD

# Those in which nothing can be hidden that is hard to decode: of headers that holds where they are one of these tables.
_PLAIN = _HEADERS | _CONTENT_TYPE | _CONTENT_ENCODING | _DELIVERY_MODE | _PRIORITY
_PLAIN |= _CORRELATION_ID | _REPLY_TO | _EXPIRATION | _MESSAGE_ID


# Method arguments and properties out


def short_string(text: str, what: str) -> bytes:
    """A short string with its length octet (section 4.2.5.3).

    :raises EncodingError: where it is longer than 255 bytes, or no text, naming ``what`` it was
    """
    try:
        data = text.encode('utf-8')
        return bytes((len(data),)) + data
    except (AttributeError, ValueError):
        if not isinstance(text, str):
            raise EncodingError(f'{what} must be text, not {shown(text)}') from None
        size = len(utf8(text, what))
        raise EncodingError(f'{what} is {size} bytes long, AMQP allows 255: {text[:60]!r}…') from None


@lru_cache(maxsize=4096)
def publish_arguments(exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The payload of a ``basic.publish``; the same for every message of one producer and key."""
    return (
        _method.pack(BASIC_PUBLISH)
        + b'\0\0'
        + short_string(exchange, 'the exchange name')
        + short_string(routing_key, 'the routing key')
        + (b'\1' if mandatory else b'\0')
    )


def encode_properties(**properties: Any) -> bytes:
    """The property flags and values of a content header (section 4.2.6.1).

    :param properties: any of the fourteen, by the names of pika's ``BasicProperties``; ``None`` is left out
    :raises EncodingError: where AMQP cannot hold a value, naming the property, or the header, and why
    """
    flags = 0
    parts = [b'']
    for flag, name, _, write in _PROPERTIES:
        value = properties.get(name)
        if value is not None:
            flags |= flag
            parts.append(write(value, f'the message property {name}'))
    parts[0] = _flags.pack(flags)
    return b''.join(parts)


def encode_all(properties: pika.BasicProperties) -> bytes:
    """The same out of pika's object, for a message that is sent on with the properties that it came with."""
    return encode_properties(**{name: getattr(properties, name) for name in PROPERTY_NAMES})


def _write_octet(value: Any, what: str) -> bytes:
    if not isinstance(value, int) or not 0 <= value <= 255:
        raise EncodingError(f'{what} must be a number from 0 to 255, not {shown(value)}')
    return bytes((value,))


def _write_timestamp(value: Any, what: str) -> bytes:
    if not isinstance(value, int) or not 0 <= value < 2**64:
        raise EncodingError(f'{what} must be whole seconds since 1970, not {shown(value)}')
    return _uint64.pack(value)


def _write_table(value: Any, what: str) -> bytes:
    if not isinstance(value, Mapping):
        raise EncodingError(f'{what} must be a dictionary, not {shown(value)}')
    return encode_table(value, 'header')


def usual_properties(content_type: str, delivery_mode: int, message_id: str) -> bytes:
    """The properties that most messages have, encoded. The id is one of our own, short and of ASCII."""
    own_id = message_id.encode()
    return _usual_head(_MESSAGE_ID, content_type, delivery_mode) + bytes((len(own_id),)) + own_id


def request_properties(
    content_type: str,
    delivery_mode: int,
    own_id: str,
    reply_to: str,
    expiration: int,
    deadline: int,
    traceparent: str = '',
) -> bytes:
    """The properties that most requests have, encoded.

    :param own_id: message id and correlation id, one of our own
    :param expiration: in milliseconds
    :param deadline: milliseconds since 1970
    :param traceparent: the context of its span, in the W3C's form, where it has one
    """
    head = _request_head(content_type, bool(traceparent))
    if traceparent:
        head = b''.join((head, traceparent.encode(), _DEADLINE_FIELD))
    encoded_id = own_id.encode()
    encoded_id = bytes((len(encoded_id),)) + encoded_id
    tail = (_int64.pack(deadline), b'\2' if delivery_mode == 2 else b'\1', encoded_id)
    return b''.join((head, *tail, _short_string_of(reply_to), _short_string_of(str(expiration)), encoded_id))


def reply_properties(content_type: str, own_id: str, correlation_id: str) -> bytes:
    """The properties that all replies have, which are transient, encoded.

    :param correlation_id: the request's; may be empty
    """
    if not correlation_id:
        return usual_properties(content_type, 1, own_id)
    head = _usual_head(_CORRELATION_ID | _MESSAGE_ID, content_type, 1)
    id_bytes = own_id.encode()
    return b''.join(
        (head, short_string(correlation_id, 'the message property correlation_id'), bytes((len(id_bytes),)), id_bytes)
    )


def with_headers(encoded: bytes, headers: Mapping[str, Any]) -> bytes:
    """Properties that have no headers, with headers.

    :raises EncodingError: where AMQP cannot hold one, naming it, and why
    """
    flags, position = encoded[0] << 8 | encoded[1], 2
    if flags & _CONTENT_TYPE:
        position += 1 + encoded[position]
    if flags & _CONTENT_ENCODING:
        position += 1 + encoded[position]
    trace = trace_alone(headers)
    table = encode_table(headers, 'header') if trace is None else _TRACE_TABLE + trace.encode()
    return b''.join((_flags.pack(flags | _HEADERS), encoded[2:position], table, encoded[position:]))


def trace_alone(headers: Mapping[str, Any]) -> str | None:
    """The context of a trace, where that is all that these headers have, as those of most messages that are traced."""
    trace = headers.get(TRACEPARENT) if len(headers) == 1 else None
    return trace if type(trace) is str and len(trace) == _TRACE_LENGTH and trace.isascii() else None


@lru_cache(maxsize=256)
def _usual_head(further_flags: int, content_type: str, delivery_mode: int) -> bytes:
    head = encode_properties(content_type=content_type or None, delivery_mode=delivery_mode)
    return _flags.pack(_flags.unpack_from(head)[0] | further_flags) + head[2:]


@lru_cache(maxsize=256)
def _request_head(content_type: str, is_traced: bool) -> bytes:
    """The flags, the content type, and of the headers all before the value of the first one, which is the deadline.

    Of one that is traced it is the context, and the deadline follows.
    """
    head = encode_properties(content_type=content_type or None)
    flags = _HEADERS | _DELIVERY_MODE | _CORRELATION_ID | _REPLY_TO | _EXPIRATION | _MESSAGE_ID
    return (
        _flags.pack(_flags.unpack_from(head)[0] | flags)
        + head[2:]
        + (_TRACED_DEADLINE_TABLE if is_traced else _DEADLINE_TABLE)
    )


@lru_cache(maxsize=256)
def _short_string_of(text: str) -> bytes:
    return short_string(text, 'a property')


def utf8(text: str, what: str) -> bytes:
    """Text as UTF-8.

    :raises EncodingError: it has lone surrogates, naming ``what`` it was
    """
    try:
        return text.encode('utf-8')
    except UnicodeEncodeError as error:
        raise EncodingError(f'{what} has a lone surrogate, which is no character: {text[:60]!a}') from error


def encode_table(table: Mapping[str, Any], path: str, depth: int = 0) -> bytes:
    """A field table (section 4.2.5.5), with the value types that RabbitMQ uses of those in the specification.

    :param path: what it is, for errors, such as ``header`` or ``header 'a' → 'b'``
    :raises EncodingError: where AMQP cannot hold it, naming what of it, and why
    """
    if depth > DEPTH_MAX:
        raise EncodingError(f'{path[:200]} is nested more than {DEPTH_MAX} deep')
    fields = []
    for name, value in table.items():
        where = f'{path} {"→ " if depth else ""}{shown(name, 60)}'
        if not isinstance(name, str):
            raise EncodingError(f'{where}: its name must be text')
        data = utf8(name, f'{where}: its name')
        if len(data) > 255:
            raise EncodingError(f'{where}: its name is {len(data)} bytes long, AMQP allows 255')
        fields.append(bytes((len(data),)) + data + _field(value, where, depth))
    return _long_string(b''.join(fields))


def _field(value: Any, path: str, depth: int) -> bytes:
    """One value with its type (https://www.rabbitmq.com/amqp-0-9-1-errata, section 3).

    :raises EncodingError: where AMQP has no type for it, or its type cannot hold the value
    """
    if value is None:
        return b'V'
    if isinstance(value, str):
        return b'S' + _long_string(utf8(value, path))
    if isinstance(value, bool):
        return b't' + bytes((value,))
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return b'I' + _int32.pack(value) if -(2**31) <= value < 2**31 else b'l' + _int64.pack(value)
    if isinstance(value, float):
        if not math.isfinite(value):  # RabbitMQ closes the connection that sends one
            raise EncodingError(f'{path} cannot be {value!r}: RabbitMQ takes finite numbers only')
        return b'd' + _double.pack(value)
    if isinstance(value, (bytes, bytearray)):
        return b'x' + _long_string(value)
    if isinstance(value, Decimal):
        return _decimal(value, path)
    if isinstance(value, datetime):
        seconds = calendar.timegm(value.utctimetuple())  # one without a zone is UTC
        if seconds < 0:
            raise EncodingError(f'{path} cannot be {value}: AMQP has no time before 1970')
        return b'T' + _uint64.pack(seconds)
    if isinstance(value, Mapping):
        return b'F' + encode_table(value, path, depth + 1)
    if isinstance(value, (list, tuple)):
        if depth > DEPTH_MAX:
            raise EncodingError(f'{path[:200]} is nested more than {DEPTH_MAX} deep')
        return b'A' + _long_string(b''.join(map(_field, value, itertools.repeat(path), itertools.repeat(depth + 1))))
    raise EncodingError(f'{path} cannot be {shown(value)}: AMQP has no type for {type(value).__name__}')


def _decimal(value: Decimal, path: str) -> bytes:
    """A decimal as AMQP has it: a signed 32-bit number and its scale. It keeps its places where these have room."""
    for candidate in (value, value.normalize()) if value.is_finite() else ():
        _, digits, exponent = candidate.as_tuple()
        if candidate == value and isinstance(exponent, int) and -255 <= exponent <= 10 and len(digits) <= 20:
            scale = max(0, -exponent)
            number = int(candidate.scaleb(scale))
            if -(2**31) <= number < 2**31:
                return b'D' + bytes((scale,)) + _int32.pack(number)
    raise EncodingError(f'{path} cannot be {shown(value)}: a decimal of AMQP has 31 bits and a scale up to 255')


def _long_string(data: bytes | bytearray) -> bytes:
    return _length.pack(len(data)) + data


# Properties in


def decode_properties(data: bytes) -> pika.BasicProperties:
    """The properties of a content header, out of their bytes.

    :raises DecodingError: whatever a publisher put there that cannot be decoded
    """
    properties = pika.BasicProperties()  # type: ignore[no-untyped-call]
    try:
        (flags,) = _flags.unpack_from(data)
        position = 2
        for flag, name, read, _ in _PROPERTIES:
            if flags & flag:
                value, position = read(data, position)
                setattr(properties, name, value)
    except Exception as error:  # of any kind: no publisher may end a consumer, nor fill its log with what is how deep
        raise DecodingError(f'the AMQP properties cannot be decoded: {shown(error)}') from None
    return properties


class Answerable(NamedTuple):
    """What of a message's properties its answer depends on, decoded by itself because it is asked for so often.

    Its names are those of pika's ``BasicProperties``.

    :ivar deadline: until when its answer is waited for, in milliseconds since 1970
    """

    correlation_id: str | None
    reply_to: str | None
    deadline: int | None = None


def decode_correlation_id(data: bytes) -> str | None:
    """The correlation id in the properties of a content header.

    :raises DecodingError: as :func:`decode_properties`
    """
    if data.startswith(_REPLY_HEAD):
        try:
            start = _REPLY_HEAD_SIZE + 1
            end = start + data[_REPLY_HEAD_SIZE]
            if end <= len(data):
                return data[start:end].decode('utf-8')
        except (IndexError, ValueError):
            pass  # said below
    return decode_answerable(data).correlation_id


def decode_answerable(data: bytes) -> Answerable:
    """The correlation id, the reply address and the deadline in the properties of a content header.

    :raises DecodingError: as :func:`decode_properties`
    """
    try:
        if data.startswith(_REQUEST_HEAD):
            deadline, _, size = _deadline_mode_and_size.unpack_from(data, _REQUEST_HEAD_SIZE)
            start = _REQUEST_HEAD_SIZE + 10
            middle = start + size
            end = middle + 1 + data[middle]
            if end <= len(data):
                found = data[start:middle].decode('utf-8'), data[middle + 1 : end].decode('utf-8'), deadline
                return tuple.__new__(Answerable, found)
        plain = _plain_beginning(data)
    except (IndexError, ValueError, StructError) as error:
        raise DecodingError(f'the AMQP properties cannot be decoded: {error!r}') from error
    return answerable_of(decode_properties(data)) if plain is None else plain[0]


def _plain_beginning(data: bytes) -> tuple[Answerable, str | None, int, int] | None:
    """What an answer depends on, the context of a trace, the flags, and where the rest of the properties begins.

    :return: ``None`` where they have others than the usual ones, or other headers than our own
    :raises IndexError, ValueError, StructError: they cannot be decoded
    """
    trace = deadline = correlation_id = reply_to = None
    flags, position = data[0] << 8 | data[1], 2
    if flags & ~_PLAIN:
        return None
    if flags & _CONTENT_TYPE:
        position += 1 + data[position]
    if flags & _CONTENT_ENCODING:
        position += 1 + data[position]
    if flags & _HEADERS:
        known = _own_table(data, position)
        if known is None:
            return None
        position, trace, deadline = known
    if flags & _DELIVERY_MODE:
        position += 1
    if flags & _PRIORITY:
        position += 1
    if flags & _CORRELATION_ID:
        start, position = position + 1, position + 1 + data[position]
        correlation_id = data[start:position].decode('utf-8')
    if flags & _REPLY_TO:
        start, position = position + 1, position + 1 + data[position]
        reply_to = data[start:position].decode('utf-8')
    if position > len(data):
        raise ValueError('a string reaches beyond the end')
    return tuple.__new__(Answerable, (correlation_id, reply_to, deadline)), trace, flags, position


def _own_table(data: bytes, position: int) -> tuple[int, str | None, int | None] | None:
    """Where a table ends that has nothing but the context of a trace, a deadline or both, and what it says of them.

    :return: ``None`` for any other table
    :raises StructError: it reaches beyond the end
    """
    if data.startswith(_DEADLINE_TABLE, position):
        position += len(_DEADLINE_TABLE)
        return position + 8, None, _int64.unpack_from(data, position)[0]
    is_alone = data.startswith(_TRACE_TABLE, position)
    if not is_alone and not data.startswith(_TRACED_DEADLINE_TABLE, position):
        return None
    start = position + len(_TRACE_TABLE)
    position = start + _TRACE_LENGTH
    trace = data[start:position]
    if not trace.isascii():
        return None
    if is_alone:
        return position, trace.decode(), None
    if not data.startswith(_DEADLINE_FIELD, position):
        return None
    position += len(_DEADLINE_FIELD)
    return position + 8, trace.decode(), _int64.unpack_from(data, position)[0]


class Traced(NamedTuple):
    """Of a message's properties those that its span has.

    :ivar traceparent: the context of the span that sent it
    """

    traceparent: str | None
    message_id: str | None
    correlation_id: str | None


def decode_traced(data: bytes) -> Traced | None:
    """What a span has of the properties of a content header, where they have no headers but our own. Never raises.

    ``None`` where all of them have to be decoded, and looked at one by one.
    """
    message_id = None
    try:
        plain = _plain_beginning(data)
        if plain is None:
            return None
        answerable, trace, flags, position = plain
        if flags & _EXPIRATION:
            position += 1 + data[position]
        if flags & _MESSAGE_ID:
            start, position = position + 1, position + 1 + data[position]
            message_id = data[start:position].decode('utf-8')
    except (IndexError, ValueError, StructError):
        return None
    return tuple.__new__(Traced, (trace, message_id, answerable.correlation_id)) if position == len(data) else None


def answerable_of(properties: pika.BasicProperties) -> Answerable:
    """What an answer depends on, of properties that are decoded already."""
    deadline = (properties.headers or {}).get(DEADLINE)
    is_number = isinstance(deadline, int) and not isinstance(deadline, bool)
    return Answerable(properties.correlation_id, properties.reply_to, deadline if is_number else None)


def salvage_answerable(data: bytes) -> Answerable:
    """What an answer depends on, as far as it can be had of properties that cannot be decoded. Never raises.

    A table's length says where it ends, whatever is in it.
    """
    found: dict[str, Any] = {}
    try:
        (flags,) = _flags.unpack_from(data)
        position = 2
        for flag, name, read, _ in _PROPERTIES:
            if flags & flag and name == 'headers':
                position = _end_of(data, position)
            elif flags & flag and name != 'reply_to':
                found[name], position = read(data, position)
            elif flags & flag:
                found[name], _ = read(data, position)
                break
    except Exception:
        pass  # what comes behind cannot be found
    return Answerable(found.get('correlation_id'), found.get('reply_to'))


def _read_short_string(data: bytes, position: int) -> tuple[str, int]:
    start = position + 1
    end = start + data[position]
    if end > len(data):
        raise ValueError('a string reaches beyond the end')
    return data[start:end].decode('utf-8'), end


def _read_octet(data: bytes, position: int) -> tuple[int, int]:
    return data[position], position + 1


def _read_timestamp(data: bytes, position: int) -> tuple[int, int]:
    return _uint64.unpack_from(data, position)[0], position + 8


def _end_of(data: bytes, position: int, depth: int = 0) -> int:
    """Where a table, array or long string ends that begins with its size at this position."""
    if depth > READ_DEPTH_MAX:
        raise ValueError(f'the headers are nested more than {READ_DEPTH_MAX} deep')
    end = position + 4 + int(_length.unpack_from(data, position)[0])
    if end > len(data):
        raise ValueError('a string, table or array reaches beyond the end')
    return end


def _read_table(data: bytes, position: int, depth: int = 0) -> tuple[dict[str, Any], int]:
    end = _end_of(data, position, depth)
    position += 4
    table: dict[str, Any] = {}
    while position < end:
        name, position = _read_short_string(data, position)
        table[name], position = _read_field(data, position, depth)
    return table, position


def _read_array(data: bytes, position: int, depth: int) -> tuple[list[Any], int]:
    end = _end_of(data, position, depth)
    position += 4
    array = []
    while position < end:
        value, position = _read_field(data, position, depth)
        array.append(value)
    return array, position


def _read_long_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    end = _end_of(data, position)
    return data[position + 4 : end], end


def _read_field(data: bytes, position: int, depth: int) -> tuple[Any, int]:
    """One value with its type (https://www.rabbitmq.com/amqp-0-9-1-errata, section 3)."""
    kind = data[position : position + 1]
    position += 1
    number = _NUMBERS.get(kind)
    if number is not None:
        return number.unpack_from(data, position)[0], position + number.size
    if kind == b'S':
        text, position = _read_long_bytes(data, position)
        try:
            return text.decode('utf-8'), position
        except UnicodeDecodeError:
            return text, position
    if kind == b'F':
        return _read_table(data, position, depth + 1)
    if kind == b'A':
        return _read_array(data, position, depth + 1)
    if kind == b't':
        return data[position] != 0, position + 1
    if kind == b'V':
        return None, position
    if kind == b'x':
        return _read_long_bytes(data, position)
    if kind == b'T':
        seconds, position = _read_timestamp(data, position)
        return datetime.fromtimestamp(seconds, timezone.utc), position
    if kind == b'D':
        scale, digits = data[position], _int32.unpack_from(data, position + 1)[0]
        return Decimal(digits).scaleb(-scale), position + 5
    raise ValueError(f'a header has the unknown type {kind!r}')


_NUMBERS = {
    b'b': Struct('>b'),
    b'B': Struct('>B'),
    b's': Struct('>h'),
    b'u': Struct('>H'),
    b'I': _int32,
    b'i': Struct('>I'),
    b'l': _int64,
    b'L': _int64,
    b'f': Struct('>f'),
    b'd': _double,
}

_Write = Callable[[Any, str], bytes]
_Read = Callable[[bytes, int], tuple[Any, int]]
_PROPERTIES: tuple[tuple[int, str, _Read, _Write], ...] = (
    (_CONTENT_TYPE, 'content_type', _read_short_string, short_string),
    (_CONTENT_ENCODING, 'content_encoding', _read_short_string, short_string),
    (_HEADERS, 'headers', _read_table, _write_table),
    (_DELIVERY_MODE, 'delivery_mode', _read_octet, _write_octet),
    (_PRIORITY, 'priority', _read_octet, _write_octet),
    (_CORRELATION_ID, 'correlation_id', _read_short_string, short_string),
    (_REPLY_TO, 'reply_to', _read_short_string, short_string),
    (_EXPIRATION, 'expiration', _read_short_string, short_string),
    (_MESSAGE_ID, 'message_id', _read_short_string, short_string),
    (1 << 6, 'timestamp', _read_timestamp, _write_timestamp),
    (1 << 5, 'type', _read_short_string, short_string),
    (1 << 4, 'user_id', _read_short_string, short_string),
    (1 << 3, 'app_id', _read_short_string, short_string),
    (1 << 2, 'cluster_id', _read_short_string, short_string),
)
"""Bit, name, reader and writer of each property, in the order in which the values follow the flags."""

PROPERTY_NAMES: Final = tuple(name for _, name, _, _ in _PROPERTIES)

# How the properties of our own requests and replies begin, where their bodies are JSON: these are read at once.
_REQUEST_HEAD = _request_head('application/json', False)
_REQUEST_HEAD_SIZE = len(_REQUEST_HEAD)
_REPLY_HEAD = _usual_head(_CORRELATION_ID | _MESSAGE_ID, 'application/json', 1)
_REPLY_HEAD_SIZE = len(_REPLY_HEAD)


# Frames out


def publish_frames(channel: int, arguments: bytes, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """All frames of one message, ready to be sent.

    :param frame_max: bytes that the connection allows in a frame, its overhead included
    """
    size = len(body)
    room = frame_max - FRAME_OVERHEAD
    method = _method_frame(channel, arguments)
    header = CONTENT_HEADER.pack(HEADER, channel, 12 + len(properties), 60, 0, size)
    if 0 < size <= room:
        head = FRAME_HEAD.pack(BODY, channel, size)
        return b''.join((method, header, properties, FRAME_END, head, body, FRAME_END))
    parts = [method, header, properties, FRAME_END]
    for start in range(0, size, room):
        piece = body[start : start + room]
        parts += (FRAME_HEAD.pack(BODY, channel, len(piece)), piece, FRAME_END)
    return b''.join(parts)


@lru_cache(maxsize=4096)
def _method_frame(channel: int, arguments: bytes) -> bytes:
    return FRAME_HEAD.pack(METHOD, channel, len(arguments)) + arguments + FRAME_END


def ack_frame(channel: int, delivery_tag: int, multiple: bool = False) -> bytes:
    """A ``basic.ack`` of one delivery, or of all up to it."""
    return _settlement.pack(METHOD, channel, 13, BASIC_ACK, delivery_tag, multiple, FRAME_END_BYTE)


def reject_frame(channel: int, delivery_tag: int, requeue: bool = False) -> bytes:
    """A ``basic.reject`` of one delivery: its handler was tried, and failed.

    From RabbitMQ 4.3 on it counts against a quorum queue's delivery limit where it is requeued; a nack does not.
    """
    return _settlement.pack(METHOD, channel, 13, BASIC_REJECT, delivery_tag, requeue, FRAME_END_BYTE)


def return_frame(channel: int, delivery_tag: int) -> bytes:
    """A ``basic.nack`` with requeue of one delivery, which no handler has tried."""
    return _settlement.pack(METHOD, channel, 13, BASIC_NACK, delivery_tag, _REQUEUE, FRAME_END_BYTE)
