"""A message as the broker keeps it: bytes that came in and will go out, with a few properties read.

The content header (AMQP 0-9-1 section 4.2.6.1) is kept raw. :class:`ContentHeader` knows where each property lies in
it, which is all that routing, lifetimes and dead-lettering need.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from postage.broker import tables
from postage.broker.limits import Tally
from postage.broker.replies import SYNTAX_ERROR, Refusal

_OVERHEAD: Final = 1000  # bytes that a message takes beside its own
_PLACE: Final = 150  # bytes that its place in a queue takes
_PREFIX: Final = 14  # class, weight, body size, property flags
_unpack_prefix = struct.Struct('>HHQH').unpack_from
_pack_prefix = struct.Struct('>HHQH').pack

# The properties of class basic in the order of their flags, from the highest bit down.
_LAYOUT: Final = (
    ('content_type', 'text'),
    ('content_encoding', 'text'),
    ('headers', 'table'),
    ('delivery_mode', 'octet'),
    ('priority', 'octet'),
    ('correlation_id', 'text'),
    ('reply_to', 'text'),
    ('expiration', 'text'),
    ('message_id', 'text'),
    ('timestamp', 'timestamp'),
    ('type', 'text'),
    ('user_id', 'text'),
    ('app_id', 'text'),
    ('cluster_id', 'text'),
)
_SIZES: Final = {'octet': 1, 'timestamp': 8}
_UNUSED_FLAGS: Final = 0b11
_fields_by_flags: dict[int, tuple[tuple[str, str], ...]] = {}


def _fields(flags: int) -> tuple[tuple[str, str], ...]:
    """Return the properties that are present, in order; programs use few combinations, so they are kept."""
    found = _fields_by_flags.get(flags)
    if found is None:
        if flags & _UNUSED_FLAGS:
            raise Refusal(SYNTAX_ERROR, 'unknown property flags')
        found = tuple(field for bit, field in enumerate(_LAYOUT) if flags & (0x8000 >> bit))
        _fields_by_flags[flags] = found
    return found


class ContentHeader:
    """The payload of a content header frame.

    :raises Refusal: 502, where it is malformed
    """

    __slots__ = ('_raw', 'body_size', 'payload')

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        try:
            self.body_size, flags = _unpack_prefix(payload)[2:]
            self._raw = self._cut(flags)
        except (IndexError, struct.error):
            raise Refusal(SYNTAX_ERROR, 'a content header ends in the middle of a property') from None

    def _cut(self, flags: int) -> dict[str, bytes]:
        payload, offset, raw = self.payload, _PREFIX, {}
        for name, kind in _fields(flags):
            if kind == 'text':
                end = offset + 1 + payload[offset]
            elif kind == 'table':
                end = tables.value_end(b'F' + payload[offset : offset + 4], 0) - 1 + offset
                tables.check_table(payload[offset:end])
            else:
                end = offset + _SIZES[kind]
            raw[name] = payload[offset:end]
            offset = end
        if offset != len(payload):
            raise Refusal(SYNTAX_ERROR, 'the length of a content header is wrong')
        return raw

    def text(self, name: str) -> str | None:
        """Return a short-string property, or ``None``."""
        raw = self._raw.get(name)
        return None if raw is None else raw[1:].decode('utf-8', 'surrogateescape')

    @property
    def priority(self) -> int | None:
        """The priority, ``None`` where none is given."""
        raw = self._raw.get('priority')
        return raw[0] if raw else None

    @property
    def headers(self) -> bytes | None:
        """The raw table of headers, or ``None``."""
        return self._raw.get('headers')

    def header(self, key: bytes) -> Any:
        """Return one decoded header, or ``None``."""
        headers = self._raw.get('headers')
        return None if headers is None or key not in headers else tables.lookup(headers, key)

    def replace(self, **changes: bytes | None) -> ContentHeader:
        """Return a copy with raw properties set, or removed where ``None``."""
        raw = {**self._raw, **changes}
        flags, pieces = 0, []
        for bit, (name, _) in enumerate(_LAYOUT):
            value = raw.get(name)
            if value is not None:
                flags |= 0x8000 >> bit
                pieces.append(value)
        return ContentHeader(_pack_prefix(60, 0, self.body_size, flags) + b''.join(pieces))

    def with_headers(self, **changes: Any) -> ContentHeader:
        """Return a copy with headers set, or removed where ``None``."""
        return self.replace(headers=tables.merge(self.headers, changes))


def short_string(text: str) -> bytes:
    """Return a text as AMQP's short string."""
    encoded = text.encode('utf-8', 'surrogateescape')
    return bytes((len(encoded),)) + encoded


class Message:
    """What was published: where to, its header and its body. It never changes; several queues may hold it.

    :ivar address: exchange and routing key as they travel in deliver, return and get-ok
    :ivar routing_keys: the key it was published with, then those of its CC and BCC headers
    :ivar deaths: what the broker itself has recorded of its deaths, the latest first
    :ivar memory: counts the bytes that all messages take
    :ivar failures: how often it was delivered in vain before it died last, where that goes on being counted
    """

    __slots__ = (
        *('_size', 'address', 'body', 'deaths', 'exchange', 'failures', 'header', 'memory', 'routing_key'),
        'routing_keys',
    )

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        header: ContentHeader,
        body: bytes,
        address: bytes | None = None,
        routing_keys: tuple[str, ...] = (),
        deaths: Sequence[Mapping[str, Any]] = (),
        memory: Tally | None = None,
        failures: int = 0,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.header = header
        self.body = body
        self.address = short_string(exchange) + short_string(routing_key) if address is None else address
        self.routing_keys = routing_keys or (routing_key,)
        self.deaths = deaths
        self.failures = failures
        self.memory = memory or Tally()
        self._size = len(body) + len(header.payload) + _OVERHEAD
        self.memory.count += self._size

    def __del__(self) -> None:
        # The end of the last reference, wherever that was: a queue, a delivery, a transaction.
        self.memory.count -= self._size


class QueuedMessage:
    """A message's place in one queue.

    :ivar position: its number in that queue, to which it returns when it is requeued
    :ivar expires_at: the clock's time at which it is dead, or ``None``
    :ivar returns: how often a delivery that counts as an attempt was in vain
    :ivar acquired: how often it came back at all, in this queue
    """

    __slots__ = ('acquired', 'expires_at', 'message', 'position', 'redelivered', 'returns')

    def __init__(self, message: Message, position: int, expires_at: float | None) -> None:
        self.message = message
        self.position = position
        self.expires_at = expires_at
        self.redelivered = message.failures > 0
        self.returns = message.failures
        self.acquired = 0
        message.memory.count += _PLACE

    def __del__(self) -> None:
        self.message.memory.count -= _PLACE
