"""Bodies become JSON and come back; what JSON cannot hold is refused by name."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from postage.errors import DecodingError, EncodingError
from postage.messaging.encoders import Encoder, JsonEncoder
from support.soak import IS_SOAK

encode, decode = JsonEncoder().encode, JsonEncoder().decode

# The same examples in every run; a failing one is printed with what reproduces it.
settings.register_profile(
    'postage', derandomize=True, print_blob=True, deadline=None, max_examples=1000 if IS_SOAK else 100
)
PROFILE = settings.get_profile('postage')


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return 'not this'


class Integer(int):
    pass


class Real(float):
    pass


class Dictionary(dict):
    pass


class List(list):
    pass


class Tuple(tuple):
    __slots__ = ()


class Set(set):
    pass


class Bytes(bytes):
    pass


class Moment(datetime.datetime):
    pass


class Day(datetime.date):
    pass


class Clock(datetime.time):
    pass


class Span(datetime.timedelta):
    pass


class Money(decimal.Decimal):
    pass


class Key(uuid.UUID):
    pass


class Colour(enum.Enum):
    RED = 'red'
    CODES = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Word(str, enum.Enum):
    HELLO = 'hello'


class Strange(enum.Enum):
    NUMBER = math.nan


class Pair(NamedTuple):
    left: int
    right: int


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


class Structure(msgspec.Struct):
    x: Any


def careful(body: Any) -> Any:
    """Return what comes back where one part of the body forces the walk in Python."""
    return decode(encode({'body': body, 'forces it': {None: None}}))['body']


# The encoder that does nothing


def test_the_plain_encoder_returns_what_it_gets():
    body = object()
    assert Encoder().encode(body) is body
    assert Encoder().decode(body) is body
    assert Encoder().content_type == ''


def test_the_json_encoder_says_what_it_writes():
    assert JsonEncoder().content_type == 'application/json'
    assert JsonEncoder.content_type == 'application/json'


# What becomes of each type

DAY = datetime.date(2020, 2, 29)
NAIVE = datetime.datetime(2020, 2, 29, 12, 30, 1, 5)
AWARE = NAIVE.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2)))

TYPES = [
    (None, None),
    (True, True),
    (1.5, 1.5),
    ('é\u2028\0"\\', 'é\u2028\0"\\'),
    ((1, 2), [1, 2]),
    ({1}, [1]),
    (frozenset({1}), [1]),
    (b'\x00\xff', base64.b64encode(b'\x00\xff').decode()),
    (bytearray(b'ab'), base64.b64encode(b'ab').decode()),
    (memoryview(b'ab'), base64.b64encode(b'ab').decode()),
    (DAY, '2020-02-29'),
    (NAIVE, '2020-02-29T12:30:01.000005'),
    (AWARE, '2020-02-29T12:30:01.000005+02:00'),
    (NAIVE.time(), '12:30:01.000005'),
    (datetime.timedelta(days=1), 'P1D'),
    (decimal.Decimal('1.10'), '1.10'),
    (decimal.Decimal('1e999'), '1E+999'),
    (uuid.UUID(int=5), str(uuid.UUID(int=5))),
    (Colour.RED, 'red'),
    (Colour.CODES, [1, 2]),
    (Level.HIGH, 3),
    (Word.HELLO, 'hello'),
    (Pair(1, 2), [1, 2]),
    (Point(1, {2}), {'x': 1, 'y': [2]}),
    (Structure(1), {'x': 1}),
    (Structure([Text('a'), DAY]), {'x': ['a', '2020-02-29']}),
    (Text('text'), 'text'),
    (Integer(7), 7),
    (Real(1.5), 1.5),
    (Dictionary(a=1), {'a': 1}),
    (collections.OrderedDict(a=1), {'a': 1}),
    (collections.defaultdict(list, a=1), {'a': 1}),
    (List([1]), [1]),
    (Tuple([1]), [1]),
    (Set([1]), [1]),
    (Bytes(b'ab'), base64.b64encode(b'ab').decode()),
    (Moment(2020, 2, 29, 12, 30, 1, 5), '2020-02-29T12:30:01.000005'),
    (Day(2020, 2, 29), '2020-02-29'),
    (Clock(12, 30), '12:30:00'),
    (Span(days=1), 'P1D'),
    (Money('1.10'), '1.10'),
    (Key(int=5), str(uuid.UUID(int=5))),
    (10**4299, 10**4299),
    (-(10**4299), -(10**4299)),
    (2**64, 2**64),
    (-(2**63) - 1, -(2**63) - 1),
]


@pytest.mark.parametrize(('value', 'expected'), TYPES, ids=lambda value: type(value).__name__)
def test_each_type_has_its_form_in_json(value, expected):
    found = decode(encode({'value': value}))['value']
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(('value', 'expected'), TYPES, ids=lambda value: type(value).__name__)
def test_the_form_is_the_same_beside_what_needs_care(value, expected):
    assert careful(value) == expected


def test_a_set_of_mixed_types_becomes_a_list():
    assert sorted(decode(encode({1, 2, 3, 'numbers'})), key=str) == [1, 2, 3, 'numbers']


def test_objects_of_every_depth_are_encoded():
    assert decode(encode([Point({Text('a'): (Pair(1, 2),)})])) == [{'x': {'a': [[1, 2]]}, 'y': None}]


@pytest.mark.parametrize(
    ('key', 'text'),
    [
        (1, '1'),
        (True, 'true'),
        (False, 'false'),
        (None, 'null'),
        (1.5, '1.5'),
        (1e16, '1e+16'),
        (1e-7, '1e-07'),
        (-1e-5, '-1e-05'),
        (2**70, str(2**70)),
        (Text('text'), 'text'),
        (Integer(1), '1'),
        (Real(1e16), '1e+16'),
        (Colour.RED, 'red'),
        (Level.HIGH, '3'),
        (Word.HELLO, 'hello'),
        (DAY, '2020-02-29'),
        (uuid.UUID(int=5), str(uuid.UUID(int=5))),
        (b'ab', base64.b64encode(b'ab').decode()),
    ],
)
def test_keys_become_text(key, text):
    assert decode(encode({key: 1})) == {text: 1}
    assert careful({key: 1}) == {text: 1}


# What is refused

NOT_FINITE = [
    math.nan,
    math.inf,
    -math.inf,
    Real('nan'),
    decimal.Decimal('nan'),
    decimal.Decimal('snan'),
    decimal.Decimal('-inf'),
    Money('inf'),
    Strange.NUMBER,
]


@pytest.mark.parametrize('value', NOT_FINITE, ids=repr)
@pytest.mark.parametrize(
    ('place', 'path'),
    [
        (lambda value: {'content': {'parameters': [1, None, {'when': value}]}}, 'content.parameters[2].when'),
        (lambda value: {'content': (None, value)}, 'content[1]'),
        (lambda value: {'content': {'a b': value}}, "content['a b']"),
        (lambda value: {'content': {1: value}}, 'content[1]'),
        (lambda value: {'content': Point(1, value)}, 'content.y'),
        (lambda value: [value], '[0]'),
        (lambda value: value, 'the body'),
        (lambda value: {'content': 'null', 'value': value}, 'value'),
    ],
)
def test_nan_and_infinities_are_refused_by_name(value, place, path):
    with pytest.raises(EncodingError) as caught:
        encode(place(value))
    assert str(caught.value).startswith(f'{path} is ')
    assert 'which JSON cannot hold' in str(caught.value)


@pytest.mark.parametrize('value', NOT_FINITE, ids=repr)
def test_nan_and_infinities_are_refused_in_structures_of_msgspec(value):
    with pytest.raises(EncodingError, match=r'^content.* which JSON cannot hold'):
        encode({'content': Structure(value)})


@pytest.mark.parametrize('value', NOT_FINITE[:8], ids=repr)
def test_nan_and_infinities_are_refused_as_keys(value):
    # A signalling NaN cannot be hashed.
    if isinstance(value, decimal.Decimal) and value.is_snan():
        return
    with pytest.raises(EncodingError, match='which JSON cannot hold'):
        encode({'content': {value: 1}})


@pytest.mark.parametrize(
    ('value', 'reason'),
    [
        (object(), 'is of type object, which has no form in JSON'),
        (1j, 'is of type complex'),
        (Structure(1j), 'is of type complex'),
        (len, 'is of type builtin_function_or_method'),
        (Point, 'is of type type'),
        (range(3), 'is of type range'),
        ({}.keys(), 'is of type dict_keys'),
        ('\ud800', 'is text with half of a surrogate pair'),
        (int('9' * 4300) * 10, 'is an integer of more digits'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_form_in_json_is_refused_by_name(value, reason):
    with pytest.raises(EncodingError) as caught:
        encode({'content': {'parameters': [1, {'when': value}]}})
    assert str(caught.value).startswith(f'content.parameters[1].when {reason}')


@pytest.mark.parametrize('key', [(1, 2), frozenset({1}), 1j], ids=repr)
def test_a_key_that_has_no_text_is_refused_by_name(key):
    with pytest.raises(EncodingError, match=r'^content\.a\[.*is (a key )?of type (tuple|frozenset|complex)'):
        encode({'content': {'a': {key: 1}}})


def test_a_body_that_contains_itself_is_refused():
    body: dict[str, Any] = {}
    body['content'] = [body]
    with pytest.raises(EncodingError, match='contains itself'):
        encode(body)


# Bytes that come in


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview, lambda data: data.decode()])
def test_a_body_may_be_bytes_or_text(kind):
    assert decode(kind('{"a": "é"}'.encode())) == {'a': 'é'}


@pytest.mark.parametrize(
    ('body', 'named'),
    [
        (b'', 'not JSON: .*char 0'),
        (b'{"a": nul}', 'not JSON: .*line 1 column 7'),
        (b'{"a": 1', 'not JSON'),
        (b'{"a": 1} 2', 'not JSON: Extra data'),
        (b"{'a': 1}", 'not JSON'),
        (b'{"a": NaN}', 'NaN is not JSON'),
        (b'{"a": -Infinity}', '-Infinity is not JSON'),
        (b'\xef\xbb\xbf{}', 'not JSON: .*BOM'),
        (b'{"a": "\xff"}', 'not UTF-8: invalid start byte at byte 7'),
        (b'[1e400]', 'number out of range: 1e400'),
        (b'[' + b'9' * 4301 + b']', 'number out of range'),
        (b'[' * 100_000, 'nested too deeply'),
        (None, 'must be bytes or text, not NoneType'),
        (5, 'must be bytes or text, not int'),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_cannot_be_decoded_is_an_error_that_says_why(body, named):
    with pytest.raises(DecodingError, match=named) as caught:
        decode(body)
    assert len(str(caught.value)) < 300


def test_half_of_a_surrogate_pair_from_an_older_sender_is_decoded():
    assert decode(json.dumps({'name': '\ud800'}).encode()) == {'name': '\ud800'}


def test_integers_of_4300_digits_come_back():
    assert decode(b'9' * 4300) == int('9' * 4300)


# Held equal to the standard library

# All that UTF-8 has. By its name, hypothesis would ask the codec for each of a million characters: a second.
CHARACTERS = some.characters(exclude_categories=['Cs'])
KEYS = some.one_of(
    some.text(CHARACTERS),
    some.integers(),
    some.booleans(),
    some.none(),
    some.floats(allow_nan=False, allow_infinity=False),
)
LEAVES = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(),
    some.integers(min_value=-(10**60), max_value=10**60),
    some.floats(allow_nan=False, allow_infinity=False),
    some.text(CHARACTERS),
    some.text(alphabet='ˀ˿null', max_size=8),
)


def bodies(leaves: some.SearchStrategy[Any]) -> some.SearchStrategy[Any]:
    return some.recursive(
        leaves,
        lambda inner: some.one_of(
            some.lists(inner, max_size=5),
            some.tuples(inner, inner),
            some.dictionaries(KEYS, inner, max_size=5),
        ),
        max_leaves=20,
    )


@settings(PROFILE)
@given(bodies(LEAVES))
def test_what_is_encoded_reads_as_the_standard_librarys_does(body):
    encoded = encode(body)
    assert json.loads(encoded) == json.loads(json.dumps(body)) == decode(encoded)
    assert repr(decode(encoded)) == repr(json.loads(json.dumps(body)))


@settings(PROFILE)
@given(bodies(LEAVES), some.booleans())
def test_what_the_standard_library_writes_is_decoded_as_it_does(body, ascii_only):
    text = json.dumps(body, ensure_ascii=ascii_only)
    assert repr(decode(text.encode())) == repr(json.loads(text))


@settings(PROFILE)
@given(bodies(LEAVES))
def test_both_ways_of_encoding_agree(body):
    assert repr(careful(body)) == repr(decode(encode(body)))


@settings(PROFILE)
@given(bodies(some.one_of(LEAVES, some.sampled_from(NOT_FINITE))))
def test_nan_and_infinities_are_refused_wherever_they_stand(body):
    if any(value is bad for value in walk(body) for bad in NOT_FINITE):
        with pytest.raises(EncodingError, match='which JSON cannot hold'):
            encode(body)
    else:
        encode(body)


def walk(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from walk(item)
    else:
        yield value


@settings(PROFILE)
@given(some.one_of(some.binary(), some.text(alphabet='[]{}",:0123456789.eE+-\\u tfnNI'), some.text(CHARACTERS)))
def test_arbitrary_bytes_are_decoded_as_the_standard_library_does_or_refused(data):
    encoded = data.encode() if isinstance(data, str) else data
    try:
        expected = json.loads(encoded.decode())
        json.dumps(expected, allow_nan=False)
    except ValueError:
        with pytest.raises(DecodingError):
            decode(encoded)
    else:
        assert repr(decode(encoded)) == repr(expected)


# On the class


@pytest.mark.parametrize('encoder', [JsonEncoder, JsonEncoder()])
def test_it_may_be_called_on_the_class(encoder):
    assert encoder.decode(encoder.encode({'a': [1]})) == {'a': [1]}


@pytest.mark.parametrize('kind', [classmethod, lambda function: function])
def test_it_may_be_overridden_by_methods_of_any_kind(kind):
    class Wrapped(JsonEncoder):
        def encode(self, body):
            return super().encode({'wrapped': body})

        encode = kind(encode)

    assert Wrapped().encode(1) == b'{"wrapped":1}'


@pytest.mark.parametrize(
    ('reserved', 'content', 'path'),
    [
        ({'duration': math.nan}, {}, '_reserved.duration'),
        ({'duration': -math.inf}, {}, '_reserved.duration'),
        ({'duration': 1.5}, {'value': math.inf}, 'content.value'),
        ({'duration': 5}, {'duration': math.nan}, 'content.duration'),
        ({}, {'duration': math.nan}, 'content.duration'),
        ({'duration': 1.5}, {'duration': math.nan}, 'content.duration'),
    ],
)
def test_the_duration_of_a_reply_hides_no_other_float(reserved, content, path):
    with pytest.raises(EncodingError, match=rf'^{path} is -?(nan|inf)'):
        JsonEncoder.encode({'content': content, '_reserved': reserved})


def test_the_duration_of_a_reply_hides_no_key_that_is_a_float():
    body = {'content': {1e16: 'duration'}, '_reserved': {'duration': 0.5}}
    assert JsonEncoder.encode(body) == b'{"content":{"1e+16":"duration"},"_reserved":{"duration":0.5}}'
    assert JsonEncoder.encode({'duration': {1e16: 1}}) == b'{"duration":{"1e+16":1}}'
    assert JsonEncoder.encode({'x': 'duration', 1e16: 1}) == b'{"x":"duration","1e+16":1}'
