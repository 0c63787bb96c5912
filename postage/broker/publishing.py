"""What a channel keeps of messages on their way in: the method, the content that is arriving, the confirms."""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Final, NamedTuple

from pika import spec

from postage.broker import wire
from postage.broker.limits import Tally
from postage.broker.messages import ContentHeader
from postage.broker.replies import FRAME_ERROR, PRECONDITION_FAILED, SYNTAX_ERROR, UNEXPECTED_FRAME, Refusal

_BASIC_CLASS: Final = spec.Basic.INDEX
_MANDATORY: Final = 1
_IMMEDIATE: Final = 2
_REMEMBERED: Final = 256


class Publish(NamedTuple):
    """A ``Basic.Publish``, and its exchange and key as they will travel on."""

    exchange: str
    routing_key: str
    mandatory: bool
    immediate: bool
    address: bytes


class PublishReader:
    """Reads ``Basic.Publish``. A program repeats few of them, so they are kept as they were read."""

    def __init__(self) -> None:
        self._known: dict[bytes, Publish] = {}

    def read(self, payload: bytes) -> Publish:
        """Return the method that a frame's payload holds.

        :raises Refusal: 501, where it ends too early
        """
        known = self._known.get(payload)
        if known is not None:
            return known
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        return self._known.setdefault(payload, self._parse(payload))

    def _parse(self, payload: bytes) -> Publish:
        # Class, method and a ticket without use take six octets; two short strings and the flags follow.
        try:
            key_at = 7 + payload[6]
            end = key_at + 1 + payload[key_at]
            flags = payload[end]
        except IndexError:
            raise Refusal(FRAME_ERROR, wire.cannot_decode(payload)) from None
        return Publish(
            payload[7:key_at].decode('utf-8', 'surrogateescape'),
            payload[key_at + 1 : end].decode('utf-8', 'surrogateescape'),
            bool(flags & _MANDATORY),
            bool(flags & _IMMEDIATE),
            payload[6:end],
        )


class Content:
    """A message of which not everything has arrived.

    :param largest: bytes of the body
    :param memory: counts those that have arrived
    """

    def __init__(self, publish: Publish, largest: int, memory: Tally) -> None:
        self.publish = publish
        self._largest = largest
        self.header: ContentHeader | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        self._memory = memory
        self._received = 0

    def __del__(self) -> None:
        self._memory.count -= self._received

    def receive(self, kind: int, payload: bytes) -> bool:
        """Take a frame, and tell whether the message is whole.

        :raises Refusal: 505 for a frame that does not belong here, 406 for a message that is too large
        """
        if self.header is None:
            self.header = self._read_header(kind, payload)
            self._missing = self.header.body_size
        else:
            self._read_body(kind, payload)
        return self._missing == 0

    def _read_header(self, kind: int, payload: bytes) -> ContentHeader:
        expected = f'expected content header for class {_BASIC_CLASS}, got'
        if kind != wire.HEADER:
            raise Refusal(UNEXPECTED_FRAME, f'{expected} non content header frame instead')
        if len(payload) < 2:
            raise Refusal(SYNTAX_ERROR, 'a content header without a class')
        found = int.from_bytes(payload[:2], 'big')
        if found != _BASIC_CLASS:
            raise Refusal(UNEXPECTED_FRAME, f'{expected} one for class {found} instead')
        header = ContentHeader(payload)
        if header.body_size > self._largest:
            size = f'message size {header.body_size} is larger than configured max size {self._largest}'
            raise Refusal(PRECONDITION_FAILED, size)
        return header

    def _read_body(self, kind: int, payload: bytes) -> None:
        self._missing -= len(payload)
        if kind != wire.BODY or self._missing < 0:
            raise Refusal(UNEXPECTED_FRAME, 'expected content body, got non content body frame instead')
        if payload:
            self._parts.append(payload)
            self._received += len(payload)
            self._memory.count += len(payload)

    def body(self) -> bytes:
        """Return the whole body."""
        return self._parts[0] if len(self._parts) == 1 else b''.join(self._parts)


class Confirms:
    """Publisher confirms (https://www.rabbitmq.com/docs/confirms).

    As messages are routed at once, they are confirmed in order, and one ``multiple`` acknowledgement may stand
    for many.
    """

    def __init__(self) -> None:
        self._published = 0
        self._answered = 0

    def publish(self) -> int:
        """Number a message."""
        self._published += 1
        return self._published

    def acknowledge(self, up_to: int | None = None) -> spec.Basic.Ack | None:
        """Return the acknowledgement of all that is not answered yet, if there is anything."""
        last = self._published if up_to is None else up_to
        count, self._answered = last - self._answered, max(last, self._answered)
        return spec.Basic.Ack(last, multiple=count > 1) if count > 0 else None

    def refuse(self, tag: int) -> spec.Basic.Nack:
        """Return the refusal of the latest message; the earlier ones have to be answered before."""
        self._answered = tag
        return spec.Basic.Nack(tag, multiple=False, requeue=False)
