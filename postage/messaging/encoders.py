"""Encoders: how a message's body becomes the bytes that travel, and back.

Any object with ``encode``, ``decode`` and ``content_type`` serves as a producer's or consumer's
``encoder_class``; deriving from :class:`Encoder` is not needed.

:class:`JsonEncoder` has two ways. The quick one leaves everything to msgspec. The careful one
(:func:`_plain`) walks the body in Python; it alone knows subclasses, and it alone can say *where* the fault
is. It is taken where msgspec refuses, and where msgspec accepted what we must not send (:meth:`JsonEncoder.encode`).
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import re
import uuid
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import msgspec

from postage.errors import ConfigurationError, DecodingError, EncodingError
from postage.printable import shown


class Encoder:
    """Sends and receives bodies as they are: ``encode`` and ``decode`` return what they get.

    Both may be called on the class, too, and be overridden by methods of any kind.
    """

    content_type: ClassVar[str] = ''

    @classmethod
    def encode(cls, body: Any) -> Any:
        """Return the body itself."""
        return body

    @classmethod
    def decode(cls, body: Any) -> Any:
        """Return the body itself."""
        return body


class JsonEncoder(Encoder):
    """Encodes bodies as JSON (RFC 8259) in UTF-8. Has no state; safe in any thread.

    ============================================  ===============================================
    Python                                        JSON
    ============================================  ===============================================
    dict                                          object; keys that are numbers, booleans or ``None`` as text
    list, tuple, set, frozenset                   array
    str, int (to 4,300 digits), float, bool       themselves
    datetime, date, time, timedelta               text as in ISO 8601
    UUID, Decimal                                 text
    bytes, bytearray, memoryview                  text in base64
    an enumeration's member                       its value
    a dataclass's instance                        object
    ============================================  ===============================================

    Instances of subclasses are encoded as their base. NaN, infinities and anything else are refused.
    """

    content_type: ClassVar[str] = 'application/json'

    @classmethod
    def encode(cls, body: Any) -> bytes:
        """Return the body as JSON.

        :raises EncodingError: where JSON has no form for something in the body; it names the key, such as
            ``content.parameters[3].when``
        """
        try:
            packed = _encode_msgpack(body)
            first = packed.find(_FLOAT)
            # One at the very end, as every reply has it, is no key; it is finite where its exponent is not all ones.
            # Two results of a megabyte alive at once cost five times as much as one after the other.
            if first < 0 or (first == len(packed) - 9 and packed[first + 1] & 127 != 127):
                del packed
                return _encode_json(body)
            if not _find_not_finite(packed, first):
                del packed
                encoded = _encode_json(body)
                if not _find_digit_key(encoded) or not _find_float_key(encoded):
                    return encoded
        except Exception:
            pass  # the careful way says why
        return _encode_carefully(body)

    @classmethod
    def decode(cls, body: bytes | bytearray | memoryview | str) -> Any:
        """Return what the JSON stands for.

        :raises DecodingError: where it is not JSON, not UTF-8, nested too deeply or a number is out of range
        """
        try:
            return _decode_json(body)
        except Exception:
            return _decode_carefully(body)


class Encoding:
    """Base of what encodes and decodes bodies by its :attr:`encoder`.

    :cvar encoder_class: makes the encoder, or is one; one that is set later makes another
    :raises ConfigurationError: it has neither ``encode`` nor ``decode``, or no ``content_type``
    """

    encoder_class: ClassVar[Any] = JsonEncoder

    def __init__(self) -> None:
        self._make_encoder()

    def _make_encoder(self) -> None:
        given = self.encoder_class
        where = f'{type(self).__name__}.encoder_class'
        try:
            encoder = given() if callable(given) else given
        except TypeError as error:
            raise ConfigurationError(f'{where} is called without arguments, and raised {shown(error)}') from error
        # What only sends needs no decode, and what only receives needs no encode.
        is_one = any(callable(getattr(encoder, name, None)) for name in ('encode', 'decode'))
        if not is_one or not isinstance(getattr(encoder, 'content_type', None), str):
            raise ConfigurationError(f'{where} must have encode, decode, and content_type as text, not {shown(given)}')
        self.encoder: Any = encoder
        self._encoder_class = given

    def encode(self, body: Any) -> bytes:
        """Encode a message's body.

        :raises EncodingError: where it cannot be encoded; a user's own encoder may raise something else
        :raises ConfigurationError: the encoder has no ``encode``
        """
        if self.encoder_class is not self._encoder_class:
            self._make_encoder()
        try:
            encode = self.encoder.encode
        except AttributeError:
            text = f'{type(self).__name__}.encoder_class, {shown(self._encoder_class)}, has no encode'
            raise ConfigurationError(text) from None
        encoded = encode(body)
        if isinstance(encoded, bytes):
            return encoded
        if isinstance(encoded, str):
            return encoded.encode('utf-8')
        if isinstance(encoded, (bytearray, memoryview)):
            return bytes(encoded)
        raise EncodingError(
            f'{type(self.encoder).__name__}.encode() must return bytes or text, not {type(encoded).__name__}'
        )

    def decode(self, data: bytes) -> Any:
        """Decode a message's body.

        :raises DecodingError: where it cannot be decoded
        """
        if self.encoder_class is not self._encoder_class:
            self._make_encoder()
        try:
            return self.encoder.decode(data)
        except DecodingError:
            raise
        except Exception as error:  # a user's own encoder
            raise DecodingError(f'{type(self.encoder).__name__} cannot decode it: {shown(error)}') from error


# The quick way
#
# msgspec writes NaN and infinities as ``null``, which cannot be told from ``None`` afterwards. MessagePack can tell:
# encoding the body a second time and looking for one byte costs 0.3 µs for a usual message and a tenth of a search for
# ``null`` in a large one. A false alarm costs time, nothing else.

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_encode_msgpack = msgspec.msgpack.Encoder(decimal_format='number').encode

# MessagePack marks every 64-bit float with this byte; an exponent of all ones makes it NaN or infinity.
_FLOAT = b'\xcb'
_find_not_finite = re.compile(rb'\xcb[\x7f\xff][\xf0-\xff]').search
# A float as a key: msgspec writes 1e16 where the standard library, and so every older Postage, writes 1e+16.
_find_float_key = re.compile(rb'"-?[0-9]+[.e][0-9.e-]*":').search
_find_digit_key = re.compile(rb'":(?<=[0-9]":)').search  # which it is one of; found in a third of the time


# The careful way


def _encode_carefully(body: Any) -> bytes:
    try:
        return _encode_json(_plain(body, ''))
    except RecursionError:
        raise EncodingError('the body cannot be encoded as JSON: it contains itself, or is nested too deeply') from None


def _decode_carefully(body: bytes | bytearray | memoryview | str) -> Any:
    """Decode what msgspec refuses: halves of surrogate pairs, which older senders may send; else say why not."""
    import json  # here, for few programs ever need it and all would pay for it when they start

    try:
        text = body if isinstance(body, str) else str(body, 'utf-8')
        return json.loads(text, parse_float=_finite_float, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DecodingError(f'the body is not JSON: {error}') from None
    except UnicodeDecodeError as error:
        raise DecodingError(f'the body is not UTF-8: {error.reason} at byte {error.start}') from None
    except ValueError as error:
        raise DecodingError(f'the body has a number out of range: {error}') from None
    except RecursionError:
        raise DecodingError('the body cannot be decoded: it is nested too deeply') from None
    except TypeError:
        raise DecodingError(f'the body must be bytes or text, not {type(body).__name__}') from None


def _plain(value: Any, path: str) -> Any:
    """Return the value made of nothing but what msgspec encodes faithfully.

    :param path: the way from the body to the value, such as ``.content.parameters[3]``
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, path)
    for base, convert in _SCALARS:
        if isinstance(value, base):
            return convert(value, path)
    if isinstance(value, dict):
        return {_plain_key(key, path): _plain(item, _below(path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, f'{path}[{index}]') for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name), _below(path, name)) for name in names}
    return _plain_structure(value, path)


def _plain_key(key: Any, path: str) -> str:
    """Return a dictionary's key as the text that JSON needs, the same as the standard library's."""
    plain = _plain(key, _below(path, key))
    if plain is None or isinstance(plain, (bool, int, float)):
        return _SPECIAL_KEYS[plain] if plain is None or isinstance(plain, bool) else repr(plain)
    text = msgspec.to_builtins(plain)
    if not isinstance(text, str):
        _refuse(_below(path, key), f'is a key of type {type(key).__name__}, which JSON cannot have')
    return text


def _plain_structure(value: Any, path: str) -> Any:
    """Return the dictionary or list of a type that only msgspec knows: its own structures and those of attrs."""

    def hook(item: Any) -> Any:
        if item is value:
            raise TypeError
        return _plain(item, path)

    try:
        built = msgspec.to_builtins(value, builtin_types=(decimal.Decimal,), enc_hook=hook)
    except (TypeError, ValueError):
        built = None
    if not isinstance(built, (dict, list)):
        _refuse(path, f'is of type {type(value).__name__}, which has no form in JSON')
    return _plain(built, path)


def _plain_text(value: str, path: str) -> str:
    try:
        return str(value.encode(), 'utf-8')
    except UnicodeEncodeError:
        _refuse(path, 'is text with half of a surrogate pair, which UTF-8 cannot hold')


def _plain_integer(value: int, path: str) -> int:
    integer = int.__int__(value)
    try:
        str(integer)
    except ValueError:
        _refuse(path, 'is an integer of more digits than Python puts into text (4,300 by default)')
    return integer


def _plain_number(value: float | decimal.Decimal, path: str) -> float | decimal.Decimal:
    finite = value.is_finite() if isinstance(value, decimal.Decimal) else math.isfinite(value)
    if not finite:
        _refuse(path, f'is {value}, which JSON cannot hold')
    return float.__float__(value) if isinstance(value, float) else decimal.Decimal(value)


def _below(path: str, key: object) -> str:
    return f'{path}.{key}' if isinstance(key, str) and key.isidentifier() else f'{path}[{key!r}]'


def _refuse(path: str, reason: str) -> NoReturn:
    raise EncodingError(f'{path.removeprefix(".") or "the body"} {reason}')


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text if len(text) <= 40 else f'{text[:40]}…')
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f'{name} is not JSON')


_SPECIAL_KEYS = {None: 'null', True: 'true', False: 'false'}

_Convert = Callable[[Any, str], Any]

# Bases and how to turn an instance of one, or of its subclass, into exactly that; a datetime is a date, too.
_SCALARS: tuple[tuple[Any, _Convert], ...] = (
    (str, _plain_text),
    (int, _plain_integer),
    ((float, decimal.Decimal), _plain_number),
    ((bytes, bytearray, memoryview), lambda value, path: bytes(value)),
    (datetime.datetime, lambda value, path: datetime.datetime.fromisoformat(datetime.datetime.isoformat(value))),
    (datetime.date, lambda value, path: datetime.date(value.year, value.month, value.day)),
    (datetime.time, lambda value, path: datetime.time.fromisoformat(datetime.time.isoformat(value))),
    (datetime.timedelta, lambda value, path: datetime.timedelta(value.days, value.seconds, value.microseconds)),
    (uuid.UUID, lambda value, path: uuid.UUID(int=value.int)),
)
