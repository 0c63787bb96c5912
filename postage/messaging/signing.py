"""Signatures of messages: HMAC-SHA256, in the header ``x-postage-signature``.

The header is a JSON array: version, id of the key, time in milliseconds since 1970, the MAC in base64, the exchange and
the routing key that the message was first sent to, the names of the headers that are signed, and the deadline of a
request, 0 where it has none. The MAC is that of a MessagePack array of sixteen elements, each in the shortest form that
MessagePack has for it::

    'postage-signature-1', id of the key, time, exchange, routing key,
    content_type, content_encoding, type, app_id, message_id, correlation_id, reply_to, expiration,
    signed headers, deadline, SHA-256 of the body

MessagePack has the length before each text, so no two messages are packed alike. A property that is absent is empty
text. Of a direct reply-to address, which the broker rewrites, only the literal ``amq.rabbitmq.reply-to`` is signed. The
headers are a map with its keys in order, in the form of :func:`postage.messaging.properties.as_plain`, or nil where
there are none.

What is sent on by Postage goes through other exchanges, and later. A consumer that could verify a message and sends it
on vouches for it, in ``x-postage-voucher``: id of the key, and the MAC of an array of the literal
``'postage-voucher-1'``, id of the key, MAC of the signature, and the queue that the message goes to.
"""

from __future__ import annotations

import hmac
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from postage.amqp import frames
from postage.amqp.cutter import Content
from postage.errors import DecodingError, EncodingError, SignatureRefused
from postage.messaging import properties as notes
from postage.messaging.keys import keys_of
from postage.messaging.properties import SIGNATURE, VOUCHER, Properties
from postage.printable import shown, shown_half_built
from postage.secret import Secret

DIRECT_REPLY_TO: Final = 'amq.rabbitmq.reply-to'

_SIGNED: Final = 'postage-signature-1'
_VOUCHED: Final = 'postage-voucher-1'
_CANCELLED: Final = 'postage-cancel-1'
_TRACE: Final = ('traceparent', 'tracestate')  # another one in each of a message's lives
_UNSIGNED: Final = ('CC', 'timestamp_in_ms', *_TRACE)
"""Headers beside those that begin with ``x-`` which the broker, or Postage, may change or add."""
_NEVER_SIGNED: Final = (
    *('CC', 'BCC', 'x-death', 'x-delay', 'x-delivery-count', 'x-acquired-count', 'x-stream-offset'),
    *_TRACE,
)
_NEVER_SIGNED_PREFIXES: Final = ('x-postage-', 'x-first-death-', 'x-last-death-')

_pack = msgspec.msgpack.Encoder(order='deterministic').encode
_to_json = msgspec.json.Encoder().encode


class Signature(NamedTuple):
    """What a signature says that was found to be right.

    :ivar seconds: when it was made, as ``time.time()`` has it
    :ivar exchange: the exchange that the message was first sent to
    :ivar routing_key: with which routing key
    :ivar deadline: of a request, in milliseconds since 1970; 0 where it has none
    """

    key_id: str
    seconds: float
    mac: bytes
    exchange: str
    routing_key: str
    deadline: int


class Signatures:
    """Signs and verifies by some keys. Any thread.

    :param where: what names the keys, for errors
    :param given: the keys, as for :func:`postage.messaging.keys.keys_of`
    :raises errors.ConfigurationError: they are none
    """

    def __init__(self, where: str, given: Any = None) -> None:
        given = Secret.of(given)
        keys = keys_of(where, given)
        self._keys = {key.id: key for key in keys}
        self._first = keys[0] if keys else None

    def __bool__(self) -> bool:
        return self._first is not None

    @shown_half_built
    def __repr__(self) -> str:
        return f'<Signatures by {", ".join(self._keys) or "no key"}>'

    # Signing

    def message(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        content_type: str,
        delivery_mode: int,
        message_id: str,
        further: Mapping[str, Any] | None = None,
    ) -> bytes:
        """The properties of a message, signed.

        :param further: more of them, by the names of ``frames.encode_properties``
        :raises errors.EncodingError: one of them cannot be encoded
        """
        if further is not None:
            usual = {'content_type': content_type or None, 'delivery_mode': delivery_mode, 'message_id': message_id}
            return self.properties(exchange, routing_key, body, {**usual, **further})
        encoded = frames.usual_properties(content_type, delivery_mode, message_id)
        text = self._sign(exchange, routing_key, body, content_type, message_id)
        return frames.with_headers(encoded, {SIGNATURE: text})

    def reply(self, reply_to: str, body: bytes, content_type: str, own_id: str, correlation_id: str) -> bytes:
        """The properties of a reply, signed."""
        encoded = frames.reply_properties(content_type, own_id, correlation_id)
        text = self._sign('', literal(reply_to), body, content_type, own_id, correlation_id)
        return frames.with_headers(encoded, {SIGNATURE: text})

    def properties(self, exchange: str, routing_key: str, body: bytes, given: Mapping[str, Any]) -> bytes:
        """Any properties, signed.

        :param given: by the names of ``frames.encode_properties``
        :raises errors.EncodingError: one of them cannot be encoded
        """
        signed: dict[str, Any] = {}
        headers = given.get('headers')
        if headers:
            # As they will arrive: what AMQP has no type of its own for has become something else by then.
            arriving = frames.decode_properties(frames.encode_properties(headers=headers)).headers or {}
            signed = {name: value for name, value in arriving.items() if not _is_never_signed(name)}
        text = self._sign(
            exchange,
            routing_key,
            body,
            given.get('content_type') or '',
            given.get('message_id') or '',
            given.get('correlation_id') or '',
            literal(given.get('reply_to') or ''),
            given.get('expiration') or '',
            tuple(given.get(name) or '' for name in _RARE),
            signed,
            (headers or {}).get(frames.DEADLINE, 0),
        )
        return frames.encode_properties(**{**given, 'headers': {**(headers or {}), SIGNATURE: text}})

    def again(self, properties: Properties, exchange: str, routing_key: str, body: bytes) -> Properties:
        """The properties of a message, with a new signature in place of the one that they have. A copy."""
        given = dict(vars(properties))
        headers = {**(properties.headers or {})}
        given['headers'] = {name: value for name, value in headers.items() if name not in (SIGNATURE, VOUCHER)}
        return frames.decode_properties(self.properties(exchange, routing_key, body, given))

    def _sign(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        content_type: str,
        message_id: str,
        correlation_id: str = '',
        reply_to: str = '',
        expiration: str = '',
        rare: tuple[str, ...] = ('', '', ''),
        headers: Mapping[str, Any] | None = None,
        deadline: int = 0,
    ) -> str:
        key = self._first
        assert key is not None
        now = time.time_ns() // 1_000_000
        ids = message_id, correlation_id, reply_to, expiration
        plain = _plain_headers(headers) if headers else None
        origin = exchange, routing_key
        try:
            end = plain, deadline, sha256(body).digest()
            data = _pack((_SIGNED, key.id, now, *origin, content_type, *rare, *ids, *end))
        except UnicodeEncodeError:
            raise EncodingError('a lone surrogate, which is no character, in what is signed') from None
        mac = b2a_base64(key.mac(data), newline=False).decode()
        names = sorted(headers) if headers else ()
        return _to_json((1, key.id, now, mac, exchange, routing_key, names, deadline)).decode()

    def vouch(self, signature: Signature, queue: str) -> str:
        """The voucher for a message that could be verified, and is sent on to a queue."""
        key = self._first
        assert key is not None
        mac = key.mac(_pack((_VOUCHED, key.id, signature.mac, queue)))
        return _to_json((key.id, b2a_base64(mac, newline=False).decode())).decode()

    # Verifying

    def verify(self, properties: Properties, body: bytes) -> Signature:
        """Verify a message's signature. It says when and where to it was sent, which is for the caller to judge.

        :raises errors.SignatureRefused: it has none, or that is not right
        """
        headers: dict[str, Any] = properties.headers or {}
        if SIGNATURE not in headers:
            raise SignatureRefused('it is not signed', 'unsigned')
        version, key_id, milliseconds, mac, exchange, routing_key, names, deadline = _parsed(headers[SIGNATURE])
        key = self._keys.get(key_id)
        if version != 1 or key is None:
            raise SignatureRefused(f'it is signed with key {shown(key_id)}, which is none of those known here')
        signed = _signed_headers(headers, names)
        ids = properties.message_id, properties.correlation_id, literal(properties.reply_to or '')
        rest = *(getattr(properties, name) or '' for name in ('content_type', *_RARE)), *(id or '' for id in ids)
        origin = exchange, routing_key
        plain = _plain_headers(signed) if signed else None
        end = _expiration(properties), plain, deadline, sha256(body).digest()
        if not hmac.compare_digest(key.mac(_pack((_SIGNED, key_id, milliseconds, *origin, *rest, *end))), mac):
            raise SignatureRefused('its signature is not right: what was signed is something else')
        if headers.get(frames.DEADLINE, deadline) != deadline:  # it is left out of a dead letter
            raise SignatureRefused('its deadline is not the one that was signed')
        return Signature(key_id, milliseconds / 1000, mac, exchange, routing_key, deadline)

    def is_vouched(self, properties: Properties, signature: Signature, queue: str) -> bool:
        """Whether a consumer that could verify a message has sent it on to this queue."""
        text = (properties.headers or {}).get(VOUCHER)
        if text is None:
            return False
        try:
            key_id, encoded = msgspec.json.decode(text, type=tuple[str, str])
            mac = a2b_base64(encoded)
        except (TypeError, ValueError):
            return False
        key = self._keys.get(key_id)
        if key is None:
            return False
        return hmac.compare_digest(key.mac(_pack((_VOUCHED, key_id, signature.mac, queue))), mac)

    def cancel_id(self, correlation_id: str, key_id: str | None = None) -> str:
        """What a signed request is called where it is cancelled: only a program that has the key can cancel it.

        :param key_id: that of the request's signature, for a program that verified it; by default of the key that signs
        """
        key = self._first if key_id is None else self._keys[key_id]
        assert key is not None
        return key.mac(_pack((_CANCELLED, correlation_id))).hex()[:32]

    def check_reply(self, content: Content, address: str) -> Signature:
        """See that a reply was signed for a reply address.

        :raises errors.SignatureRefused: it was not
        """
        try:
            signature = self.verify(frames.decode_properties(content.properties), content.body)
        except DecodingError as error:
            raise SignatureRefused(str(error)) from None
        if (signature.exchange, signature.routing_key) != ('', address):
            raise SignatureRefused(f'it was signed for {where(signature)}, not for {shown(address)}', 'misdirected')
        return signature


_RARE: Final = ('content_encoding', 'type', 'app_id')


def literal(reply_to: str) -> str:
    """What of a reply address is signed: the broker rewrites those of direct reply-to."""
    return DIRECT_REPLY_TO if reply_to.startswith(f'{DIRECT_REPLY_TO}.') else reply_to


def where(signature: Signature) -> str:
    """Where a message was first sent to, in words."""
    return f'exchange {shown(signature.exchange)}, key {shown(signature.routing_key)}'


def _is_never_signed(name: str) -> bool:
    return name in _NEVER_SIGNED or name.startswith(_NEVER_SIGNED_PREFIXES)


def _plain_headers(headers: Mapping[str, Any]) -> Any:
    return notes.as_plain(Properties(headers=headers)).get('headers')  # type: ignore[no-untyped-call]


_Header = tuple[int, str, int, str, str, str, list[str], int]


def _parsed(text: Any) -> tuple[int, str, int, bytes, str, str, list[str], int]:
    try:
        version, key_id, milliseconds, mac, *rest = msgspec.json.decode(text, type=_Header)
        return version, key_id, milliseconds, a2b_base64(mac), *rest
    except (TypeError, ValueError):  # msgspec's errors are of this kind
        raise SignatureRefused(f'its signature cannot be read: {shown(text)}') from None


def _signed_headers(headers: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Those headers that were signed.

    :raises errors.SignatureRefused: one of them is missing, or there is another one that a handler may take for signed
    """
    signed = {}
    for name, value in headers.items():
        if name in names:
            signed[name] = value
        elif not name.startswith('x-') and name not in _UNSIGNED:
            raise SignatureRefused(f'its header {shown(name)} is not signed')
    if len(signed) != len(names):
        raise SignatureRefused('a header that was signed is missing')
    return signed


def _expiration(properties: Properties) -> str:
    """When a message was to expire, as it was published first: what is sent on, or dead, has it in its headers."""
    headers = properties.headers or {}
    if notes.EXPIRATION not in headers and 'x-death' not in headers:
        return properties.expiration or ''
    original = notes.original(properties)
    if original.expiration:
        return str(original.expiration)
    deaths = (original.headers or {}).get('x-death')
    for death in reversed(deaths) if isinstance(deaths, list) else ():
        if isinstance(death, Mapping) and isinstance(death.get('original-expiration'), str):
            return str(death['original-expiration'])
    return ''
