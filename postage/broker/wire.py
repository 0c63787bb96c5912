"""Frames: cut from the bytes that arrive, made for the bytes that leave (AMQP 0-9-1 section 4.2.3).

Methods are decoded and encoded by pika's codec. What travels with every message (deliveries and their content) is
packed here, as it costs a broker most of its time.
"""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from pika import amqp_object, spec
from pika import frame as pika_frame

from postage.broker.messages import Message
from postage.broker.replies import COMMAND_INVALID, FRAME_ERROR, Refusal
from postage.secret import Secret

METHOD: Final = spec.FRAME_METHOD
HEADER: Final = spec.FRAME_HEADER
BODY: Final = spec.FRAME_BODY
HEARTBEAT: Final = spec.FRAME_HEARTBEAT

PROTOCOL_HEADER: Final = b'AMQP\x00\x00\x09\x01'
FRAME_MIN_SIZE: Final = 4096  # section 4.2.3; a handshake fits
FRAME_OVERHEAD: Final = 8  # type, channel and size before the payload, the end octet after it

_SHOWN: Final = 16  # octets of a payload in an error's text
_END: Final = b'\xce'
_FRAME_TYPES: Final = frozenset((METHOD, HEADER, BODY, HEARTBEAT))
_frame_head = struct.Struct('>BHI')
_unpack_index = struct.Struct('>I').unpack_from
_pack_delivery = struct.Struct('>QB').pack
_pack_get_ok = struct.Struct('>IQB').pack

Frame = tuple[int, int, bytes]


class FrameBuffer:
    """Bytes that have arrived and are not yet whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.largest = FRAME_MIN_SIZE

    def __len__(self) -> int:
        return len(self._buffer)

    def append(self, data: bytes) -> None:
        """Add bytes from the peer."""
        self._buffer += data

    def take(self, count: int) -> bytes:
        """Remove and return the first bytes."""
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def frames(self) -> Iterator[Frame]:
        """Yield the type, channel and payload of each whole frame; do not append while this runs.

        :raises Refusal: 501, for a frame that is too large or does not end where it should
        """
        buffer, offset = self._buffer, 0
        try:
            with memoryview(buffer) as view:
                while len(buffer) - offset >= FRAME_OVERHEAD:
                    kind, channel, size = _frame_head.unpack_from(buffer, offset)
                    start = offset + 7
                    end = start + size
                    # RabbitMQ allows for clients that take the limit for that of the payload.
                    if size > self.largest:
                        wrong = f'{{frame_too_large,{size},{self.largest - FRAME_OVERHEAD}}}'
                        raise Refusal(FRAME_ERROR, f'{describe(kind, b"")}: {wrong}')
                    if end >= len(buffer):
                        return
                    payload = bytes(view[start:end])
                    if buffer[end] != spec.FRAME_END:
                        wrong = f'{{invalid_frame_end_marker,{buffer[end]}}}'
                        raise Refusal(FRAME_ERROR, f'{describe(kind, payload)}: {wrong}')
                    if kind not in _FRAME_TYPES:
                        raise Refusal(FRAME_ERROR, f'{describe(kind, payload)}: unknown_frame')
                    offset = end + 1
                    yield kind, channel, payload
        finally:
            del buffer[:offset]


def describe(kind: int, payload: bytes) -> str:
    """Return what RabbitMQ says of a frame that it cannot use."""
    extent = 'all' if len(payload) < _SHOWN else f'first {_SHOWN}'
    return f'type {kind}, {extent} octets = {_erlang(payload[:_SHOWN])}'


def cannot_decode(payload: bytes) -> str:
    """Return what RabbitMQ says of a method that it cannot read."""
    return f'cannot decode {_erlang(payload[4:])}'


def _erlang(octets: bytes) -> str:
    """Return octets in Erlang's notation."""
    if octets and all(32 <= octet < 127 for octet in octets):
        return f'<<"{octets.decode()}">>'
    return f'<<{",".join(str(octet) for octet in octets)}>>'


def method_index(payload: bytes) -> int:
    """Return the class and method number of a method frame's payload, as one integer."""
    if len(payload) < 4:
        raise Refusal(FRAME_ERROR, f'{describe(METHOD, payload)}: unknown_frame')
    index: int = _unpack_index(payload)[0]
    return index


def decode_method(payload: bytes) -> Any:
    """Return pika's object for a method frame's payload.

    :raises Refusal: 503 for a method that does not exist, 501 for one that cannot be read
    """
    index = method_index(payload)
    if index == spec.Connection.UpdateSecret.INDEX:
        return _decode_update_secret(payload)
    method_class: Any = spec.methods.get(index)
    if method_class is None:
        raise Refusal(COMMAND_INVALID, f'unknown method {index >> 16}.{index & 0xFFFF}')
    try:
        method = method_class().decode(payload, 4)
    except Exception as error:
        # The codec was not made for hostile bytes: it raises whatever its parts raise.
        raise Refusal(FRAME_ERROR, cannot_decode(payload)) from error
    if isinstance(method, spec.Connection.StartOk):
        method.response = Secret(_as_text(method.response))
    for field, value in vars(method).items():
        if isinstance(value, bytes):
            setattr(method, field, _as_text(value))
        elif isinstance(value, dict):
            setattr(method, field, {_as_text(key): entry for key, entry in value.items()})
    return method


def _decode_update_secret(payload: bytes) -> Any:
    """Return the method that pika, 1.4 at least, can send and not read: a long string and a short one."""
    try:
        reason_at = 8 + int.from_bytes(payload[4:8], 'big')
        end = reason_at + 1 + payload[reason_at]
        if end > len(payload):
            raise IndexError
    except IndexError:
        raise Refusal(FRAME_ERROR, cannot_decode(payload)) from None
    return spec.Connection.UpdateSecret(payload[8:reason_at], _as_text(payload[reason_at + 1 : end]))


def _as_text(name: str | bytes) -> str:
    """Return a name as text. It need not be UTF-8; pika hands those that are not over as bytes."""
    return name.decode('utf-8', 'surrogateescape') if isinstance(name, bytes) else name


def encode_method(channel: int, method: amqp_object.Method) -> bytes:
    """Return a method as a frame."""
    try:
        return pika_frame.Method(channel, method).marshal()
    except UnicodeEncodeError:
        for field, value in vars(method).items():
            if isinstance(value, str):
                setattr(method, field, value.encode('utf-8', 'surrogateescape'))
        return pika_frame.Method(channel, method).marshal()


def deliver_prefix(consumer_tag: str) -> bytes:
    """Return how every ``Basic.Deliver`` to one consumer begins."""
    encoded = consumer_tag.encode('utf-8', 'surrogateescape')
    return struct.pack('>IB', spec.Basic.Deliver.INDEX, len(encoded)) + encoded


def deliver_payload(prefix: bytes, delivery_tag: int, redelivered: bool, address: bytes) -> bytes:
    """Return the payload of a ``Basic.Deliver``."""
    return prefix + _pack_delivery(delivery_tag, redelivered) + address


def get_ok_payload(delivery_tag: int, redelivered: bool, address: bytes, message_count: int) -> bytes:
    """Return the payload of a ``Basic.GetOk``."""
    head = _pack_get_ok(spec.Basic.GetOk.INDEX, delivery_tag, redelivered)
    return head + address + struct.pack('>I', message_count)


def return_payload(code: int, text: str, address: bytes) -> bytes:
    """Return the payload of a ``Basic.Return``."""
    encoded = text.encode()
    return struct.pack('>IHB', spec.Basic.Return.INDEX, code, len(encoded)) + encoded + address


def content_frames(channel: int, method_payload: bytes, header: bytes, message: Message, frame_max: int) -> bytes:
    """Return a method with its content: the method, the header, and as many bodies as ``frame_max`` asks for."""
    head, body = _frame_head.pack, message.body
    pieces = [
        head(METHOD, channel, len(method_payload)),
        method_payload,
        _END,
        head(HEADER, channel, len(header)),
        header,
        _END,
    ]
    room = frame_max - FRAME_OVERHEAD
    if len(body) <= room:
        if body:
            pieces += (head(BODY, channel, len(body)), body, _END)
        return b''.join(pieces)
    for start in range(0, len(body), room):
        part = body[start : start + room]
        pieces += (head(BODY, channel, len(part)), part, _END)
    return b''.join(pieces)
