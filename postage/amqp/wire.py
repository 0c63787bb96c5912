"""The codec of the fast lane: frames made and cut here, beside pika's own.

pika makes a method, a header and a body object of every message and sends them one by one. A component that moves
messages all day has better uses for that time, so this module writes the frames of publishes and acknowledgements
as bytes, and cuts deliveries, returns and confirms out of what was read. Every other frame passes through to pika.
What moves the bytes is :mod:`postage.amqp.transport`.

Frame layout: AMQP 0-9-1, sections 2.3 (frames) and 4.2 (format). Nothing here is called by users.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from decimal import Decimal
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple, Protocol

import pika
import pika.exceptions

from postage.errors import ConfigurationError, DecodingError, EncodingError

METHOD, HEADER, BODY = 1, 2, 3
FRAME_END = b'\xce'
FRAME_END_BYTE = 0xCE
FRAME_OVERHEAD = 8
PROTOCOL_HEADER = ord('A')  # a broker that refuses the protocol version answers with 'AMQP', which is no frame

CHANNEL_CLOSE = (20 << 16) | 40
BASIC_PUBLISH = (60 << 16) | 40
BASIC_RETURN = (60 << 16) | 50
BASIC_DELIVER = (60 << 16) | 60
BASIC_ACK = (60 << 16) | 80
BASIC_REJECT = (60 << 16) | 90
BASIC_NACK = (60 << 16) | 120

_DELIVER = BASIC_DELIVER.to_bytes(4, 'big')
_REQUEUE = 2  # the second bit of a nack; the first one is "multiple"

_frame = Struct('>BHI')
_method = Struct('>I')
_length = Struct('>I')
_int32, _int64, _uint64, _double = Struct('>i'), Struct('>q'), Struct('>Q'), Struct('>d')
_body_size = Struct('>Q')
_content_header = Struct('>BHIHHQ')
_settlement = Struct('>BHIIQBB')
_tag_and_bits = Struct('>QB')
_method_tag_and_bits = Struct('>IQB')
_reply_code = Struct('>H')
_flags = Struct('>H')

# Bits of the property flags (section 4.2.6.1), highest first, in the order in which the values follow.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY = 1 << 15, 1 << 14, 1 << 13, 1 << 12, 1 << 11
_CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID = 1 << 10, 1 << 9, 1 << 8, 1 << 7
# Those in which nothing can be hidden that is hard to decode.
_PLAIN = _CONTENT_TYPE | _CONTENT_ENCODING | _DELIVERY_MODE | _PRIORITY
_PLAIN |= _CORRELATION_ID | _REPLY_TO | _EXPIRATION | _MESSAGE_ID


# Frames out


def short_string(text: str, what: str) -> bytes:
    """A short string with its length octet (section 4.2.5.3).

    :raises ConfigurationError: where it is longer than 255 bytes, naming ``what`` it was
    """
    data = text.encode('utf-8')
    if len(data) > 255:
        raise ConfigurationError(f'{what} is {len(data)} bytes long, AMQP allows 255: {text[:60]!r}...')
    return bytes((len(data),)) + data


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


def encode_properties(
    content_type: str = '',
    delivery_mode: int = 0,
    message_id: str = '',
    correlation_id: str = '',
    reply_to: str = '',
    headers: Mapping[str, Any] | None = None,
    priority: int | None = None,
    expiration: str = '',
) -> bytes:
    """The property flags and values of a content header; what is empty is left out.

    :raises EncodingError: where a header has a value that AMQP has no type for
    """
    flags = 0
    parts = [b'']
    if content_type:
        flags |= _CONTENT_TYPE
        parts.append(short_string(content_type, 'the content type'))
    if headers:
        flags |= _HEADERS
        parts.append(_table(headers))
    if delivery_mode:
        flags |= _DELIVERY_MODE
        parts.append(bytes((delivery_mode,)))
    if priority is not None:
        flags |= _PRIORITY
        parts.append(bytes((priority,)))
    if correlation_id:
        flags |= _CORRELATION_ID
        parts.append(short_string(correlation_id, 'the correlation id'))
    if reply_to:
        flags |= _REPLY_TO
        parts.append(short_string(reply_to, 'the reply address'))
    if expiration:
        flags |= _EXPIRATION
        parts.append(short_string(expiration, 'the expiration'))
    if message_id:
        flags |= _MESSAGE_ID
        parts.append(short_string(message_id, 'the message id'))
    parts[0] = _flags.pack(flags)
    return b''.join(parts)


def usual_properties(content_type: str, delivery_mode: int, message_id: str) -> bytes:
    """The same for what most messages have. The id is one of our own, short and of ASCII."""
    return _usual_head(_MESSAGE_ID, content_type, delivery_mode) + _own_id(message_id)


def request_properties(content_type: str, delivery_mode: int, own_id: str, reply_to: str, expiration: int) -> bytes:
    """The same for what most requests have.

    :param own_id: message id and correlation id, one of our own
    :param expiration: in milliseconds
    """
    head = _usual_head(_CORRELATION_ID | _REPLY_TO | _EXPIRATION | _MESSAGE_ID, content_type, delivery_mode)
    encoded_id = _own_id(own_id)
    return b''.join((head, encoded_id, _short_string_of(reply_to), _short_string_of(str(expiration)), encoded_id))


def reply_properties(content_type: str, own_id: str, correlation_id: str) -> bytes:
    """The same for what all replies have, which are transient.

    :param correlation_id: the request's; may be empty
    """
    if not correlation_id:
        return usual_properties(content_type, 1, own_id)
    head = _usual_head(_CORRELATION_ID | _MESSAGE_ID, content_type, 1)
    return head + short_string(correlation_id, 'the correlation id') + _own_id(own_id)


@lru_cache(maxsize=256)
def _usual_head(further_flags: int, content_type: str, delivery_mode: int) -> bytes:
    head = encode_properties(content_type, delivery_mode)
    return _flags.pack(_flags.unpack_from(head)[0] | further_flags) + head[2:]


@lru_cache(maxsize=256)
def _short_string_of(text: str) -> bytes:
    return short_string(text, 'a property')


def _own_id(message_id: str) -> bytes:
    return bytes((len(message_id),)) + message_id.encode('ascii')


def _table(headers: Mapping[str, Any]) -> bytes:
    """A field table (section 4.2.5.5), with the value types that RabbitMQ uses of those in the specification."""
    fields = b''.join(
        short_string(str(name), 'the name of a header') + _field(value) for name, value in headers.items()
    )
    return _length.pack(len(fields)) + fields


def _field(value: Any) -> bytes:
    """One value with its type (https://www.rabbitmq.com/amqp-0-9-1-errata, section 3).

    :raises EncodingError: where AMQP has no type for it
    """
    if value is None:
        return b'V'
    if isinstance(value, bool):
        return b't' + bytes((value,))
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return b'I' + _int32.pack(value) if -(2**31) <= value < 2**31 else b'l' + _int64.pack(value)
    if isinstance(value, float):
        return b'd' + _double.pack(value)
    if isinstance(value, str):
        return b'S' + _long_string(value.encode('utf-8'))
    if isinstance(value, (bytes, bytearray)):
        return b'x' + _long_string(value)
    if isinstance(value, Decimal) and (decimal := _decimal(value)):
        return decimal
    if isinstance(value, datetime):
        return b'T' + _uint64.pack(calendar.timegm(value.utctimetuple()))  # one without a zone is UTC
    if isinstance(value, Mapping):
        return b'F' + _table(value)
    if isinstance(value, (list, tuple)):
        return b'A' + _long_string(b''.join(map(_field, value)))
    raise EncodingError(f'the message headers cannot hold {value!r:.80}: AMQP has no type for {type(value).__name__}')


def _decimal(value: Decimal) -> bytes | None:
    """A decimal as AMQP has it, a signed 32-bit number and its scale; ``None`` where it does not fit."""
    value = value.normalize()
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -255 or exponent > 10:
        return None
    scale = max(0, -exponent)
    number = int(value.scaleb(scale))
    return b'D' + bytes((scale,)) + _int32.pack(number) if -(2**31) <= number < 2**31 else None


def _long_string(data: bytes | bytearray) -> bytes:
    return _length.pack(len(data)) + data


def decode_properties(data: bytes) -> pika.BasicProperties:
    """The properties of a content header, out of their bytes.

    :raises DecodingError: whatever a publisher put there that cannot be decoded
    """
    properties = pika.BasicProperties()  # type: ignore[no-untyped-call]
    try:
        (flags,) = _flags.unpack_from(data)
        position = 2
        for flag, name, read in _PROPERTIES:
            if flags & flag:
                value, position = read(data, position)
                setattr(properties, name, value)
    except Exception as error:  # of any kind, RecursionError included: no publisher may end a consumer
        raise DecodingError(f'the AMQP properties cannot be decoded: {error!r}') from error
    return properties


class Answerable(NamedTuple):
    """What of a message's properties its answer depends on, decoded by itself because it is asked for so often.

    Its names are those of pika's ``BasicProperties``.
    """

    correlation_id: str | None
    reply_to: str | None


def decode_answerable(data: bytes) -> Answerable:
    """The correlation id and the reply address in the properties of a content header.

    :raises DecodingError: as :func:`decode_properties`
    """
    correlation_id = reply_to = None
    try:
        flags, position = data[0] << 8 | data[1], 2
        if flags & ~_PLAIN:
            properties = decode_properties(data)
            return Answerable(properties.correlation_id, properties.reply_to)
        if flags & _CONTENT_TYPE:
            position += 1 + data[position]
        if flags & _CONTENT_ENCODING:
            position += 1 + data[position]
        if flags & _DELIVERY_MODE:
            position += 1
        if flags & _PRIORITY:
            position += 1
        if flags & _CORRELATION_ID:
            correlation_id, position = _read_short_string(data, position)
        if flags & _REPLY_TO:
            reply_to, position = _read_short_string(data, position)
    except (IndexError, ValueError) as error:
        raise DecodingError(f'the AMQP properties cannot be decoded: {error!r}') from error
    return Answerable(correlation_id, reply_to)


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


def _read_table(data: bytes, position: int) -> tuple[dict[str, Any], int]:
    (size,) = _length.unpack_from(data, position)
    position += 4
    end = position + size
    if end > len(data):
        raise ValueError('a table reaches beyond the end')
    table: dict[str, Any] = {}
    while position < end:
        name, position = _read_short_string(data, position)
        table[name], position = _read_field(data, position)
    return table, position


def _read_array(data: bytes, position: int) -> tuple[list[Any], int]:
    (size,) = _length.unpack_from(data, position)
    position += 4
    end = position + size
    if end > len(data):
        raise ValueError('an array reaches beyond the end')
    array = []
    while position < end:
        value, position = _read_field(data, position)
        array.append(value)
    return array, position


def _read_long_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    (size,) = _length.unpack_from(data, position)
    end = position + 4 + size
    if end > len(data):
        raise ValueError('a string reaches beyond the end')
    return data[position + 4 : end], end


def _read_field(data: bytes, position: int) -> tuple[Any, int]:
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
        return _read_table(data, position)
    if kind == b'A':
        return _read_array(data, position)
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

# Bit, name and reader of each property, in the order in which they follow the flags (section 4.2.6.1).
_PROPERTIES: tuple[tuple[int, str, Callable[[bytes, int], tuple[Any, int]]], ...] = (
    (1 << 15, 'content_type', _read_short_string),
    (1 << 14, 'content_encoding', _read_short_string),
    (1 << 13, 'headers', _read_table),
    (1 << 12, 'delivery_mode', _read_octet),
    (1 << 11, 'priority', _read_octet),
    (1 << 10, 'correlation_id', _read_short_string),
    (1 << 9, 'reply_to', _read_short_string),
    (1 << 8, 'expiration', _read_short_string),
    (1 << 7, 'message_id', _read_short_string),
    (1 << 6, 'timestamp', _read_timestamp),
    (1 << 5, 'type', _read_short_string),
    (1 << 4, 'user_id', _read_short_string),
    (1 << 3, 'app_id', _read_short_string),
    (1 << 2, 'cluster_id', _read_short_string),
)


def publish_frames(channel: int, arguments: bytes, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """All frames of one message, ready to be sent.

    :param frame_max: bytes that the connection allows in a frame, its overhead included
    """
    size = len(body)
    room = frame_max - FRAME_OVERHEAD
    method = _method_frame(channel, arguments)
    header = _content_header.pack(HEADER, channel, 12 + len(properties), 60, 0, size)
    if 0 < size <= room:
        head = _frame.pack(BODY, channel, size)
        return b''.join((method, header, properties, FRAME_END, head, body, FRAME_END))
    parts = [method, header, properties, FRAME_END]
    for start in range(0, size, room):
        piece = body[start : start + room]
        parts += (_frame.pack(BODY, channel, len(piece)), piece, FRAME_END)
    return b''.join(parts)


@lru_cache(maxsize=4096)
def _method_frame(channel: int, arguments: bytes) -> bytes:
    return _frame.pack(METHOD, channel, len(arguments)) + arguments + FRAME_END


def ack_frame(channel: int, delivery_tag: int, multiple: bool = False) -> bytes:
    """A ``basic.ack`` of one delivery, or of all up to it."""
    return _settlement.pack(METHOD, channel, 13, BASIC_ACK, delivery_tag, multiple, FRAME_END_BYTE)


def reject_frame(channel: int, delivery_tag: int) -> bytes:
    """A ``basic.reject`` of one delivery, without requeue: the message failed."""
    return _settlement.pack(METHOD, channel, 13, BASIC_REJECT, delivery_tag, 0, FRAME_END_BYTE)


def return_frame(channel: int, delivery_tag: int) -> bytes:
    """A ``basic.nack`` with requeue of one delivery, which was not tried.

    From RabbitMQ 4.3 on a nack, unlike a reject, does not count against a quorum queue's delivery limit.
    """
    return _settlement.pack(METHOD, channel, 13, BASIC_NACK, delivery_tag, _REQUEUE, FRAME_END_BYTE)


def each_frame(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, channel and payload of each of these ready frames."""
    position = 0
    while position < len(data):
        kind, channel, size = _frame.unpack_from(data, position)
        yield kind, channel, data[position + 7 : position + 7 + size]
        position += size + FRAME_OVERHEAD


def publish_of(arguments: bytes) -> tuple[str, str, bool]:
    """Exchange, routing key and whether it is mandatory: what :func:`publish_arguments` was made of."""
    exchange, position = _read_short_string(arguments, 6)
    routing_key, position = _read_short_string(arguments, position)
    return exchange, routing_key, bool(arguments[position])


def settlement_of(payload: bytes) -> tuple[int, int, int]:
    """Method, delivery tag and bits of an acknowledgement, a reject or a nack."""
    method, tag, bits = _method_tag_and_bits.unpack(payload)
    return method, tag, bits


# Frames in


class Lane(Protocol):
    """What a channel does with the frames that are cut for it.

    All of it is called by one thread at a time, the one that reads: the I/O thread, or one that waits in its place.
    Nothing in it may block.
    """

    content: Content | None

    def delivered(self, content: Content) -> None:
        """A message for one of the channel's consumers is complete."""

    def returned(self, content: Content) -> None:
        """A mandatory message came back. Its confirm follows."""

    def confirmed(self, delivery_tag: int, multiple: bool, positive: bool) -> None:
        """The broker took over, or refused, what was published with this tag (and all before it)."""

    def closing(self) -> None:
        """The broker is about to close the channel: from now on nothing may be sent on it."""

    def end_of_read(self) -> None:
        """All that one read brought has been cut."""


class Content:
    """A message on its way in: the fields of its method, its properties as they came, and its body."""

    __slots__ = (
        'body',
        'delivery_tag',
        'exchange',
        'is_return',
        'missing',
        'parts',
        'properties',
        'redelivered',
        'reply_code',
        'routing_key',
        'tag_or_text',
    )

    tag_or_text: bytes  # the consumer tag of a delivery, the reply text of a return
    delivery_tag: int
    redelivered: bool
    reply_code: int
    exchange: bytes
    routing_key: bytes
    properties: bytes
    body: bytes
    missing: int  # bytes of the body
    parts: list[bytes]
    is_return: bool

    def add(self, piece: bytes) -> None:
        """A piece of the body has come."""
        self.parts.append(piece)
        self.missing -= len(piece)


def _cut_delivery(lane: Lane, channel: int, data: bytes, position: int, header: int, end: int) -> int:
    """Cut a delivery's method, and its header and body, one frame or none, where they have come with it, as usual.

    :param position: where the method's arguments begin
    :param header: where the next frame begins
    :return: where the message ends; 0 where the rest has to be cut frame by frame
    """
    content = lane.content = Content()
    content.is_return = False
    after_tag = position + 1 + data[position]
    content.tag_or_text = data[position + 1 : after_tag]
    content.delivery_tag, redelivered = _tag_and_bits.unpack_from(data, after_tag)
    content.redelivered = redelivered & 1 == 1
    _cut_route(content, data, after_tag + 9)
    if end - header < _content_header.size:
        return 0
    kind, number, size, _, _, length = _content_header.unpack_from(data, header)
    after_header = header + size + FRAME_OVERHEAD
    after = after_header + length + FRAME_OVERHEAD if length else after_header
    if kind != HEADER or number != channel or after > end:
        return 0
    if length and data[after_header : after_header + 7] != _frame.pack(BODY, channel, length):
        return 0
    if data[after_header - 1] != FRAME_END_BYTE or data[after - 1] != FRAME_END_BYTE:
        return 0  # said where frames are cut one by one
    content.properties = data[header + 19 : after_header - 1]
    content.body = data[after_header + 7 : after - 1] if length else b''
    lane.content = None
    lane.delivered(content)
    return int(after)


def _cut_return(data: bytes, position: int) -> Content:
    content = Content()
    content.is_return = True
    (content.reply_code,) = _reply_code.unpack_from(data, position)
    end = position + 3 + data[position + 2]
    content.tag_or_text = data[position + 3 : end]
    _cut_route(content, data, end)
    return content


def _cut_route(content: Content, data: bytes, position: int) -> None:
    end = position + 1 + data[position]
    content.exchange = data[position + 1 : end]
    content.routing_key = data[end + 1 : end + 1 + data[end]]


class Cutter:
    """Cuts what was read into messages and confirms for the lanes, and into frames for pika, in order.

    :param lanes: the channels that take the fast lane, by number
    :param pass_on: called with the bytes of each frame that is none of theirs
    """

    def __init__(self, lanes: Mapping[int, Lane], pass_on: Callable[[bytes], None]) -> None:
        self._lanes = lanes
        self._pass_on = pass_on
        self._chunks: list[bytes] = []  # of a frame that has not come to its end
        self._chunks_size = 0
        self._chunks_wanted = 0
        self._cut_short: Lane | None = None  # the lane whose body frame has not, and is taken as it comes
        self._body_missing = 0  # bytes of that frame, its end marker not counted

    def cut(self, data: bytes) -> tuple[int, int]:
        """Act on what was read; keep what is not a whole frame until more comes.

        :return: how many bytes and frames the lanes have had
        :raises pika.exceptions.InvalidFrameError: a frame does not end where it should
        """
        touched: dict[Lane, None] = {}
        lanes, taken, frames = self._lanes, 0, 0
        position = 0
        if self._chunks:
            self._chunks.append(data)
            self._chunks_size += len(data)
            if self._chunks_size < self._chunks_wanted:
                return 0, 0
            data = b''.join(self._chunks)
            self._chunks.clear()
        elif self._cut_short is not None:
            touched[self._cut_short] = None
            position = self._continue_body(self._cut_short, data)
            if not position:
                return len(data), 0
            taken, frames = position, 1
        end = len(data)
        wanted = FRAME_OVERHEAD
        frame_head = _frame.unpack_from
        while end - position >= FRAME_OVERHEAD:
            kind, channel, size = frame_head(data, position)
            if kind == PROTOCOL_HEADER:
                self._pass_on(data[position:])
                return taken, frames
            wanted = size + FRAME_OVERHEAD
            if wanted > end - position:
                if kind == BODY and self._begin_body(lanes.get(channel), data, position, size):
                    taken += end - position
                    position = end
                break
            after = position + wanted
            if data[after - 1] != FRAME_END_BYTE:
                raise pika.exceptions.InvalidFrameError(f'frame of {size} bytes without its end marker')
            lane = lanes.get(channel)
            if lane is None:
                self._pass_on(data[position:after])
            elif kind == METHOD and data[position + 7 : position + 11] == _DELIVER:
                whole = _cut_delivery(lane, channel, data, position + 11, after, end)
                touched[lane] = None
                frames += 3 if whole else 1
                after = whole or after
                taken += after - position
            elif take(lane, kind, data, position + 7, after - 1):
                touched[lane] = None
                taken += wanted
                frames += 1
            else:
                self._pass_on(data[position:after])
            position = after
            wanted = FRAME_OVERHEAD
        if position < end:
            self._chunks.append(data[position:] if position else data)
            self._chunks_size = end - position
            self._chunks_wanted = wanted
        for lane in touched:
            lane.end_of_read()
        return taken, frames

    def _begin_body(self, lane: Lane | None, data: bytes, position: int, size: int) -> bool:
        """Take the beginning of a body frame, so that a big body is joined once, and not once for each frame, too.

        :return: whether it is one of a lane's messages
        """
        if lane is None or lane.content is None:
            return False
        piece = data[position + 7 : position + 7 + size]
        lane.content.add(piece)
        self._cut_short, self._body_missing = lane, size - len(piece)
        return True

    def _continue_body(self, lane: Lane, data: bytes) -> int:
        """Take what has come of that frame.

        :return: where the next one begins; 0 where this one has not come to its end
        :raises pika.exceptions.InvalidFrameError: it does not end where it should
        """
        content, missing = lane.content, self._body_missing
        if len(data) <= missing:
            self._body_missing -= len(data)
            if content is not None:
                content.add(data)
            return 0
        if data[missing] != FRAME_END_BYTE:
            raise pika.exceptions.InvalidFrameError('a body frame without its end marker')
        self._cut_short = None
        if content is not None:  # else the channel was opened anew meanwhile
            content.add(data[:missing])
            complete(lane, content)
        return missing + 1


def take(lane: Lane, kind: int, data: bytes, start: int, end: int) -> bool:
    """Act on one frame of a lane, but for a delivery's method; ``False`` where it is none of the lane's."""
    if kind == METHOD:
        (method,) = _method.unpack_from(data, start)
        if method in (BASIC_ACK, BASIC_NACK):
            tag, bits = _tag_and_bits.unpack_from(data, start + 4)
            lane.confirmed(tag, bits & 1 == 1, method == BASIC_ACK)
        elif method == BASIC_RETURN:
            lane.content = _cut_return(data, start + 4)
        else:
            if method == CHANNEL_CLOSE:
                lane.closing()
            return False
        return True
    content = lane.content
    if content is None:
        return False  # the content of a basic.get, which pika asked for
    if kind == HEADER:
        (content.missing,) = _body_size.unpack_from(data, start + 4)
        content.properties = data[start + 12 : end]
        content.parts = []
    elif kind == BODY:
        content.add(data[start:end])
    else:
        return False
    complete(lane, content)
    return True


def complete(lane: Lane, content: Content) -> None:
    """Give a message to its lane, if all of its body has come."""
    if content.missing > 0:
        return
    lane.content = None
    content.body = content.parts[0] if len(content.parts) == 1 else b''.join(content.parts)
    if content.is_return:
        lane.returned(content)
    else:
        lane.delivered(content)
