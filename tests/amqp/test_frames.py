"""Frames and properties are the bytes that pika's codec makes of the same, and come back as they went."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from decimal import Decimal
from typing import Any

import pika
import pika.frame
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from postage import messaging
from postage.amqp import frames
from postage.errors import DecodingError, EncodingError
from support.frames import FRAME_MAX, PROFILE, by_pika, content_by_pika
from support.messaging import TIMEOUT, Bench, Echo, Processor

names = some.text(some.characters(exclude_categories=['Cs', 'Cc']), max_size=60)


# Frames out


DEADLINE = frames.DEADLINE


@PROFILE
@given(
    channel=some.integers(1, 65535),
    exchange=names,
    routing_key=names,
    mandatory=some.booleans(),
    body=some.binary(max_size=100),
)
def test_a_publish_is_what_pika_makes_of_it(
    channel: int, exchange: str, routing_key: str, mandatory: bool, body: bytes
) -> None:
    made = frames.publish_frames(
        channel,
        frames.publish_arguments(exchange, routing_key, mandatory),
        frames.encode_properties(),
        body,
        FRAME_MAX,
    )
    publish = pika.spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    assert made == by_pika(channel, publish) + content_by_pika(channel, body)


@PROFILE
@given(size=some.integers(0, 3 * FRAME_MAX + 1), frame_max=some.integers(64, FRAME_MAX))
def test_a_body_is_cut_to_frames_as_pika_cuts_it(size: int, frame_max: int) -> None:
    body = bytes(number % 251 for number in range(size))
    made = frames.publish_frames(
        7, frames.publish_arguments('e', 'k', False), frames.encode_properties(), body, frame_max
    )
    publish = pika.spec.Basic.Publish(exchange='e', routing_key='k')
    assert made == by_pika(7, publish) + content_by_pika(7, body, room=frame_max - 8)


@pytest.mark.parametrize('size', [0, 1, FRAME_MAX - 9, FRAME_MAX - 8, FRAME_MAX - 7, 2 * (FRAME_MAX - 8)])
def test_no_frame_is_longer_than_frame_max(size: int) -> None:
    made = frames.publish_frames(
        1, frames.publish_arguments('e', 'k', False), frames.encode_properties(), b'x' * size, FRAME_MAX
    )
    lengths = []
    while made:
        length, frame = pika.frame.decode_frame(made)
        assert frame is not None
        lengths.append(length)
        made = made[length:]
    assert max(lengths) <= FRAME_MAX
    assert len(lengths) == 2 + -(-size // (FRAME_MAX - 8))


header_values = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63 - 1)
    | some.text(some.characters(exclude_categories=['Cs']), max_size=20)  # quicker than the codec, see test_encoders.py
    | some.binary(max_size=20)
    | some.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2100, 1, 1)).map(
        lambda time: time.replace(microsecond=0)
    )
    | some.decimals(-1000, 1000, places=2).map(Decimal.normalize),
    lambda values: some.lists(values, max_size=3) | some.dictionaries(names, values, max_size=3),
    max_leaves=8,
)


maybe_text = some.none() | names


@PROFILE
@given(
    content_type=maybe_text,
    content_encoding=maybe_text,
    headers=some.none() | some.dictionaries(names, header_values, max_size=4),
    delivery_mode=some.sampled_from([None, 1, 2]),
    priority=some.none() | some.integers(0, 255),
    correlation_id=maybe_text,
    reply_to=maybe_text,
    expiration=some.sampled_from([None, '0', '60000']),
    message_id=maybe_text,
    timestamp=some.none() | some.integers(0, 2**64 - 1),
    type=maybe_text,
    user_id=maybe_text,
    app_id=maybe_text,
    cluster_id=maybe_text,
)
def test_all_fourteen_properties_are_what_pika_makes_of_them(**properties: Any) -> None:
    of_pika = pika.BasicProperties(**properties)
    assert frames.encode_properties(**properties) == b''.join(of_pika.encode())
    assert frames.encode_all(of_pika) == b''.join(of_pika.encode())


@PROFILE
@given(
    content_type=maybe_text,
    content_encoding=maybe_text,
    headers=some.dictionaries(names, some.integers(-(2**63), 2**63 - 1) | names, min_size=1, max_size=4),
    delivery_mode=some.sampled_from([None, 1, 2]),
    priority=some.none() | some.integers(0, 255),
    correlation_id=maybe_text,
    reply_to=maybe_text,
    expiration=maybe_text,
    message_id=maybe_text,
    timestamp=some.none() | some.integers(0, 2**64 - 1),
    type=maybe_text,
    user_id=maybe_text,
    app_id=maybe_text,
    cluster_id=maybe_text,
)
def test_properties_come_back_as_they_went(**properties: Any) -> None:
    decoded = frames.decode_properties(frames.encode_properties(**properties))
    assert {name: getattr(decoded, name) for name in properties} == properties


def test_what_is_empty_is_sent_and_what_is_none_is_left_out() -> None:
    decoded = frames.decode_properties(frames.encode_properties(content_type='', headers={}, priority=0, type=None))
    assert (decoded.content_type, decoded.headers, decoded.priority, decoded.type) == ('', {}, 0, None)


@PROFILE
@given(
    content_type=names,
    delivery_mode=some.sampled_from([1, 2]),
    reply_to=names,
    expiration=some.integers(1, 10**9),
    deadline=some.integers(2**31, 2**62),
)
def test_the_properties_of_most_messages_are_quicker_made_and_the_same(
    content_type: str, delivery_mode: int, reply_to: str, expiration: int, deadline: int
) -> None:
    head = {'content_type': content_type or None, 'delivery_mode': delivery_mode, 'message_id': 'id-1'}
    assert frames.usual_properties(content_type, delivery_mode, 'id-1') == frames.encode_properties(**head)
    request = frames.request_properties(content_type, delivery_mode, 'id-1', reply_to, expiration, deadline)
    assert request == frames.encode_properties(
        **head,
        headers={frames.DEADLINE: deadline},
        correlation_id='id-1',
        reply_to=reply_to,
        expiration=str(expiration),
    )
    assert frames.decode_answerable(request) == ('id-1', reply_to, deadline)
    assert frames.decode_traced(request) == (None, 'id-1', 'id-1')
    for correlation_id in ('', 'of the request, längér'):
        reply = frames.reply_properties(content_type, 'id-1', correlation_id)
        transient = {**head, 'delivery_mode': 1, 'correlation_id': correlation_id or None}
        assert reply == frames.encode_properties(**transient)


TRACE = f'00-{"ab" * 16}-{"cd" * 8}-01'


@PROFILE
@given(
    content_type=names,
    delivery_mode=some.sampled_from([1, 2]),
    reply_to=names,
    deadline=some.integers(2**31, 2**62),
    trace=some.sampled_from([TRACE, 'é' * 27 + '-', 'é' * 55, '"' * 55]),
)
def test_the_properties_of_traced_messages_are_quicker_made_and_read_and_the_same(
    content_type: str, delivery_mode: int, reply_to: str, deadline: int, trace: str
) -> None:
    head = {'content_type': content_type or None, 'delivery_mode': delivery_mode, 'message_id': 'id-1'}
    headers = {frames.TRACEPARENT: trace}
    usual = frames.usual_properties(content_type, delivery_mode, 'id-1')
    message = frames.with_headers(usual, headers)
    assert message == frames.encode_properties(**head, headers=headers)
    request = {'correlation_id': 'id-2', 'reply_to': reply_to, 'expiration': '5'}
    asked = frames.encode_properties(**head, **request, headers={**headers, frames.DEADLINE: deadline})
    assert frames.decode_answerable(message) == (None, None, None)
    assert frames.decode_answerable(asked) == ('id-2', reply_to, deadline)
    for data, correlation_id in ((message, None), (asked, 'id-2')):
        is_own = trace.isascii()
        assert frames.decode_traced(data) == ((trace, 'id-1', correlation_id) if is_own else None)
        for end in range(len(data)):
            assert frames.decode_traced(data[:end]) is None
    if trace.isascii():
        assert frames.trace_alone(headers) == trace
        request['correlation_id'] = 'id-1'
        assert frames.request_properties(content_type, delivery_mode, 'id-1', reply_to, 5, deadline, trace) == (
            frames.encode_properties(**head, **request, headers={**headers, frames.DEADLINE: deadline})
        )


@pytest.mark.parametrize(
    'further',
    [
        *(
            {'headers': headers}
            for headers in ({'a': 1}, {'traceparent': TRACE, 'a': 1}, {'a': 1, 'traceparent': TRACE})
        ),
        *({'headers': headers} for headers in ({}, {'traceparent': TRACE[1:]}, {'traceparent': None})),
        {'headers': {'traceparent': TRACE, 'x-other-dead-line': 2**40}},
        {'headers': {frames.DEADLINE: 2**40, 'traceparent': TRACE}},
        {'type': 'x'},
    ],
)
def test_what_has_more_than_a_trace_is_not_read_as_if_it_had_not(further: dict[str, Any]) -> None:
    assert frames.decode_traced(frames.encode_properties(message_id='id-1', **further)) is None
    headers = further.get('headers', {})
    assert frames.trace_alone(headers) is None
    usual = frames.usual_properties('', 1, 'id-1')
    assert frames.decode_properties(frames.with_headers(usual, headers)).headers == headers


# Headers as they came by AMQP, with every type that there is (https://www.rabbitmq.com/amqp-0-9-1-errata, section 3).
RAW_FIELDS = {
    'a signed octet': (b'b\xff', -1),
    'an octet': (b'B\xff', 255),
    'a signed short': (b's\xff\xfe', -2),
    'a short': (b'u\xff\xfe', 65534),
    'a signed long': (b'I\xff\xff\xff\xff', -1),
    'a long': (b'i\xff\xff\xff\xff', 2**32 - 1),
    'a signed long long': (b'l' + b'\xff' * 8, -1),
    'a long long of other clients': (b'L' + b'\xff' * 8, -1),
    'a short float': (b'f' + struct.pack('>f', 0.5), 0.5),
    'a float': (b'd' + struct.pack('>d', -0.1), -0.1),
    'a decimal': (b'D\x02\x00\x00\x00\x96', Decimal('1.50')),
    'a decimal below zero': (b'D\xff' + struct.pack('>i', -(2**31)), Decimal(-(2**31)).scaleb(-255)),
    'a text': (b'S\x00\x00\x00\x03\xc3\xa4!', 'ä!'),
    'a text of another encoding': (b'S\x00\x00\x00\x01\xe4', b'\xe4'),
    'bytes': (b'x\x00\x00\x00\x02\x00\xff', b'\x00\xff'),
    'a time': (
        b'T' + struct.pack('>Q', 1_800_000_000),
        datetime.datetime(2027, 1, 15, 8, tzinfo=datetime.timezone.utc),
    ),
    'true': (b't\x01', True),
    'nothing': (b'V', None),
    'an array': (b'A\x00\x00\x00\x05t\x00t\x01V', [False, True, None]),
    'a table': (b'F\x00\x00\x00\x04\x01at\x01', {'a': True}),
}


@pytest.mark.parametrize(('raw', 'value'), RAW_FIELDS.values(), ids=RAW_FIELDS)
def test_a_header_of_any_type_is_decoded_and_sent_on_as_what_it_was(raw: bytes, value: Any) -> None:
    table = b'\x01h' + raw
    decoded = frames.decode_properties(b'\x20\x00' + struct.pack('>I', len(table)) + table)
    assert decoded.headers == {'h': value}
    again = frames.decode_properties(frames.encode_all(decoded))
    assert again.headers == {'h': value}
    assert str(again.headers['h']) == str(value)


@pytest.mark.parametrize(
    'properties',
    [
        {
            'headers': {'x': [None, 1.5]},
            'content_type': 'a',
            'content_encoding': 'b',
            'delivery_mode': 2,
            'priority': 3,
        },
        {'correlation_id': 'c', 'reply_to': 'r', 'expiration': '5', 'message_id': 'm', 'timestamp': 7, 'type': 't'},
        {'user_id': 'u', 'app_id': 'a', 'cluster_id': 'c', 'headers': {}},
    ],
)
def test_a_message_is_sent_on_with_all_the_properties_it_came_with(properties: dict[str, Any]) -> None:
    decoded = frames.decode_properties(frames.encode_all(pika.BasicProperties(**properties)))
    assert vars(decoded) == vars(pika.BasicProperties(**properties))


def test_a_header_may_be_a_floating_point_number() -> None:
    """AMQP has a type for it, and so has RabbitMQ (https://www.rabbitmq.com/amqp-0-9-1-errata, section 3)."""
    table = b'\x01n' + b'd' + struct.pack('>d', -0.5)
    assert frames.encode_properties(headers={'n': -0.5}) == b'\x20\x00' + struct.pack('>I', len(table)) + table


@pytest.mark.parametrize('value', [0.5, -1e300, [0.25], {'nested': 1.5}])
def test_a_header_that_is_a_floating_point_number_comes_back_as_it_went(value: Any) -> None:
    assert frames.decode_properties(frames.encode_properties(headers={'number': value})).headers == {'number': value}


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local time is nine hours ahead."""
    with monkeypatch.context() as patch:
        patch.setenv('TZ', 'Asia/Tokyo')
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures('far_from_greenwich')
@pytest.mark.parametrize('zone', [None, datetime.timezone.utc, datetime.timezone(datetime.timedelta(hours=-5))])
def test_a_date_in_a_header_means_the_same_everywhere(zone: datetime.timezone | None) -> None:
    """One without a zone counts as UTC, as it does in pika and, on the way in, in what pika makes of it."""
    moment = datetime.datetime(2026, 11, 21, 9, 30, tzinfo=zone)
    expected = b''.join(pika.BasicProperties(headers={'moment': moment}).encode())
    assert frames.encode_properties(headers={'moment': moment}) == expected


@pytest.mark.parametrize('value', ['2.50', '2.5000000000000', '100', '1E+2', '-0.5', '0', '0.00', '1E-255'])
def test_a_decimal_comes_back_equal_and_keeps_its_places_where_amqp_has_room_for_them(value: str) -> None:
    decoded = frames.decode_properties(frames.encode_properties(headers={'x': Decimal(value)})).headers
    assert decoded == {'x': Decimal(value)}
    assert (
        str(frames.decode_properties(frames.encode_properties(headers={'x': Decimal('2.50')})).headers['x']) == '2.50'
    )


# What AMQP cannot hold


def _nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 'in the middle'
    for _ in range(depth):
        value = wrap(value)
    return value


def _of_itself() -> tuple[dict[str, Any], list[Any]]:
    table: dict[str, Any] = {}
    table.update(a=table, b=table)
    array: list[Any] = []
    array.extend([array, array])
    return table, array


OF_ITSELF, ARRAY_OF_ITSELF = _of_itself()

IMPOSSIBLE_HEADERS = {
    'NaN': ({'x': math.nan}, r"header 'x' cannot be nan: RabbitMQ takes finite numbers only"),
    'infinity': ({'x': math.inf}, r"header 'x' cannot be inf"),
    'infinity below zero': ({'x': [1, -math.inf]}, r"header 'x' cannot be -inf"),
    'NaN in a table': ({'x': {'y': math.nan}}, r"header 'x' → 'y' cannot be nan"),
    'NaN as a decimal': ({'x': Decimal('NaN')}, r"header 'x' cannot be Decimal\('NaN'\)"),
    'a signaling NaN': ({'x': Decimal('sNaN')}, r"header 'x' cannot be Decimal\('sNaN'\)"),
    'an infinite decimal': ({'x': Decimal('-Infinity')}, r"header 'x' cannot be Decimal"),
    'a decimal of 32 bits': ({'x': Decimal(2**31)}, r"header 'x' cannot be Decimal\('2147483648'\): a decimal of AMQP"),
    'a decimal of many digits': ({'x': Decimal('1.' + 40 * '0' + '1')}, r"header 'x' cannot be Decimal"),
    'a decimal of a great scale': ({'x': Decimal('1E-256')}, r"header 'x' cannot be Decimal"),
    'a huge decimal': ({'x': Decimal('1E+300')}, r"header 'x' cannot be Decimal"),
    'a number of 65 bits': ({'x': 2**63}, r"header 'x' cannot be 9223372036854775808: AMQP has no type for int"),
    'a number below 64 bits': ({'x': -(2**63) - 1}, r"header 'x' cannot be -9223372036854775809"),
    'a time before 1970': (
        {'x': datetime.datetime(1969, 12, 31, 23, 59, 59)},
        r"header 'x' cannot be 1969-12-31 23:59:59: AMQP has no time before 1970",
    ),
    'a time before 1970, elsewhere': (
        {'x': datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=9)))},
        r"header 'x' cannot be 1970-01-01 00:00:00\+09:00",
    ),
    'a lone surrogate': ({'x': 'a\ud800'}, r"header 'x' has a lone surrogate"),
    'a lone surrogate in a name': ({'a\ud800': 1}, r"header 'a\\ud800': its name has a lone surrogate"),
    'a table of itself': ({'x': OF_ITSELF}, r"header 'x' → 'a' → 'a' .* is nested more than 64 deep"),
    'an array of itself': ({'x': ARRAY_OF_ITSELF}, r"header 'x' is nested more than 64 deep"),
    'tables 65 deep': ({'x': _nested(65, lambda value: {'t': value})}, r'nested more than 64 deep'),
    'arrays 66 deep': ({'x': _nested(66, lambda value: [value])}, r'nested more than 64 deep'),
    'a name that is no text': ({'x': {5: 'five'}}, r"header 'x' → 5: its name must be text"),
    'a name of 256 bytes': ({'ü' * 128: 1}, r"header 'ü+.*: its name is 256 bytes long, AMQP allows 255"),
    'an object': ({'x': {'y': [object()]}}, r"header 'x' → 'y' cannot be <object .*: AMQP has no type for object"),
    'a complex number': ({'x': complex(1, 2), 'y': 1}, r"header 'x' cannot be \(1\+2j\): AMQP has no type for complex"),
    'no table': ('text', r"headers must be a dictionary, not 'text'"),
}


@pytest.mark.parametrize(('headers', 'message'), IMPOSSIBLE_HEADERS.values(), ids=IMPOSSIBLE_HEADERS)
def test_headers_that_amqp_cannot_hold_are_an_error_that_names_the_header_and_says_why(
    headers: Any, message: str
) -> None:
    with pytest.raises(EncodingError, match=message) as caught:
        frames.encode_properties(headers=headers)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize('headers', [{'x': _nested(64, lambda value: {'t': value})}, {'x': _nested(64, lambda v: [v])}])
def test_what_is_nested_as_deep_as_allowed_comes_back(headers: Any) -> None:
    assert frames.decode_properties(frames.encode_properties(headers=headers)).headers == headers


@pytest.mark.parametrize('moment', [0, 1, 2**31, 253402300799])
def test_a_time_from_1970_on_comes_back(moment: int) -> None:
    time_of_it = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    assert frames.decode_properties(frames.encode_properties(headers={'x': time_of_it})).headers == {'x': time_of_it}


@pytest.mark.parametrize(
    ('properties', 'message'),
    [
        ({'priority': 256}, 'priority must be a number from 0 to 255, not 256'),
        ({'priority': -1}, 'priority must be a number from 0 to 255, not -1'),
        ({'priority': 'high'}, "priority must be a number from 0 to 255, not 'high'"),
        ({'delivery_mode': 2.0}, 'delivery_mode must be a number from 0 to 255, not 2.0'),
        ({'timestamp': -1}, 'timestamp must be whole seconds since 1970, not -1'),
        ({'timestamp': 2**64}, 'timestamp must be whole seconds since 1970'),
        ({'timestamp': datetime.datetime(2026, 1, 1)}, 'timestamp must be whole seconds since 1970'),
        ({'correlation_id': b'bytes'}, "correlation_id must be text, not b'bytes'"),
        ({'expiration': 1000}, 'expiration must be text, not 1000'),
        ({'message_id': 'a\udfff'}, 'message_id has a lone surrogate'),
    ],
)
def test_a_property_that_amqp_cannot_hold_is_an_error_that_names_it(properties: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodingError, match=f'the message property {message}'):
        frames.encode_properties(**properties)


@pytest.mark.parametrize('text', ['x' * 256, 'ü' * 128])
@pytest.mark.parametrize(
    ('make', 'named'),
    [
        (lambda text: frames.publish_arguments('e', text, False), 'the routing key'),
        (lambda text: frames.publish_arguments(text, 'k', False), 'the exchange name'),
        (lambda text: frames.encode_properties(correlation_id=text), 'property correlation_id'),
        (lambda text: frames.encode_properties(expiration=text), 'property expiration'),
        (lambda text: frames.reply_properties('', 'id', text), 'property correlation_id'),
    ],
)
def test_a_text_longer_than_255_bytes_is_an_error_that_names_it(
    make: Callable[[str], bytes], named: str, text: str
) -> None:
    with pytest.raises(EncodingError, match=f'{named} is (256 bytes long, AMQP allows 255|longer than 255 bytes)'):
        make(text)


@pytest.mark.parametrize('key', [5, b'key', None])
def test_a_routing_key_that_is_no_text_is_an_error_that_names_it(key: Any) -> None:
    with pytest.raises(EncodingError, match=f'the routing key must be text, not {key!r}'):
        frames.publish_arguments('e', key, False)


def test_a_routing_key_with_a_lone_surrogate_is_an_error_that_names_it() -> None:
    with pytest.raises(EncodingError, match='the routing key has a lone surrogate'):
        frames.publish_arguments('e', 'a\ud800', False)


def test_a_text_of_255_bytes_is_not_too_long() -> None:
    assert frames.short_string('x' * 255, 'text') == b'\xff' + b'x' * 255


@PROFILE
@given(channel=some.integers(1, 65535), tag=some.integers(1, 2**64 - 1))
def test_settlements_are_what_pika_makes_of_them(channel: int, tag: int) -> None:
    assert frames.ack_frame(channel, tag) == by_pika(channel, pika.spec.Basic.Ack(delivery_tag=tag))
    all_up_to = pika.spec.Basic.Ack(delivery_tag=tag, multiple=True)
    assert frames.ack_frame(channel, tag, multiple=True) == by_pika(channel, all_up_to)
    for requeue in (False, True):
        reject = pika.spec.Basic.Reject(delivery_tag=tag, requeue=requeue)
        assert frames.reject_frame(channel, tag, requeue) == by_pika(channel, reject)
    returned = pika.spec.Basic.Nack(delivery_tag=tag, multiple=False, requeue=True)
    assert frames.return_frame(channel, tag) == by_pika(channel, returned)


# Properties in


@PROFILE
@given(
    correlation_id=maybe_text,
    reply_to=maybe_text,
    content_type=maybe_text,
    headers=some.sampled_from(
        [None, {'a': 1}, {DEADLINE: 2**40}, {DEADLINE: 5}, {DEADLINE: 'x'}, {DEADLINE: 5, 'a': 1}]
    ),
)
def test_what_an_answer_depends_on_is_the_same_decoded_by_itself(**properties: Any) -> None:
    encoded = frames.encode_properties(**properties, content_encoding='e', delivery_mode=1, priority=3)
    answerable = frames.decode_answerable(encoded)
    assert (answerable.correlation_id, answerable.reply_to) == (properties['correlation_id'], properties['reply_to'])
    deadline = (properties['headers'] or {}).get(DEADLINE)
    assert answerable.deadline == (deadline if isinstance(deadline, int) else None)


@PROFILE
@given(data=some.binary(max_size=60), flags=some.integers(0, 2**16 - 1))
def test_whatever_bytes_come_as_properties_nothing_but_a_decoding_error_is_raised(data: bytes, flags: int) -> None:
    for decode in (frames.decode_properties, frames.decode_answerable, frames.decode_traced):
        for bytes_ in (data, struct.pack('>H', flags) + data):
            with contextlib.suppress(DecodingError):
                decode(bytes_)


# On a broker


@pytest.mark.parametrize(
    'value',
    [
        None,
        True,
        -(2**31),
        2**40,
        1.5,
        'täxt',
        b'\0bytes\xff',
        Decimal('1.25'),
        datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.timezone.utc),
        {'inner': [1, 'two', None]},
    ],
    ids=repr,
)
def test_headers_arrive_as_they_went(bench: Bench, value: Any) -> None:
    class Showing(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            delivery = messaging.current_delivery()
            assert delivery is not None
            self.seen.put(delivery.headers)

    showing = Showing()
    bench.run(showing)
    bench.producer().message_echo(_headers={'x': value}).wait(TIMEOUT)
    assert showing.seen.next() == {'x': value}


@pytest.mark.parametrize('ask', ['message_echo', 'rpc_echo', 'rpc_future_echo', 'rpc_queue_echo'])
def test_headers_that_amqp_cannot_hold_are_told_to_the_producer_and_harm_no_other_message(
    bench: Bench, ask: str
) -> None:
    bench.run(Echo())
    producer, other = bench.producer(), bench.producer()
    receipts = [other.message_echo(number) for number in range(10)]
    with pytest.raises(EncodingError, match="header 'x' cannot be nan"):
        getattr(producer, ask)('in vain', _headers={'x': math.nan})
    for receipt in (*receipts, producer.message_echo('and on')):
        receipt.wait(TIMEOUT)
    assert producer.rpc_echo('and on').body['content']['value'] == 'and on'
    assert not bench.log.find('was lost')


def outcome_of(ask: Callable[..., Any], *args: Any, **kwds: Any) -> Any:
    """Wait for the answer, too, where it comes by a future."""
    asked = ask(*args, **kwds)
    return asked.result(TIMEOUT) if isinstance(asked, Future) else asked


@pytest.mark.parametrize('ask', ['message_echo', 'rpc_echo', 'rpc_future_echo', 'rpc_queue_echo'])
def test_headers_larger_than_a_frame_are_told_to_the_producer_and_harm_no_other_message(bench: Bench, ask: str) -> None:
    bench.run(Echo())
    producer, other = bench.producer(), bench.producer()
    receipts = [other.message_echo(number) for number in range(10)]
    with pytest.raises(EncodingError, match='and a frame on this connection holds'):  # a future tells it in its turn
        getattr(producer, ask)('in vain', _headers={'x': 'y' * 1_000_000}).result(TIMEOUT)
    for receipt in (*receipts, producer.message_echo('and on')):
        receipt.wait(TIMEOUT)
    assert producer.rpc_echo('and on').body['content']['value'] == 'and on'
    assert not bench.log.find('was lost')


def test_headers_that_just_fit_into_a_frame_arrive(bench: Bench) -> None:
    """A content header has 14 bytes beside its properties, and its frame 8 (section 4.2.6)."""
    queue = bench.collect()
    producer = bench.producer()
    frame_max = producer.conn_broker.link.frame_max
    with pytest.raises(EncodingError, match='hold') as caught:
        producer.message_echo(_headers={'x': 'y' * frame_max})
    told = re.search(r'are (\d+) bytes, and a frame on this connection holds (\d+)', str(caught.value))
    assert told is not None
    size, limit = map(int, told.groups())
    length = frame_max - (size - limit)
    with pytest.raises(EncodingError, match=f'are {limit + 1} bytes'):
        producer.message_echo(_headers={'x': 'y' * (length + 1)})
    producer.message_echo(_headers={'x': 'y' * length}).wait(TIMEOUT)
    assert len(bench.get(queue).properties.headers['x']) == length
    assert not bench.log.find('was lost')
