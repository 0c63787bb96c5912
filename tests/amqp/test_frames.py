"""The fast lane makes the bytes that pika's codec makes, and cuts what comes in however it is chopped up."""

from __future__ import annotations

import datetime
import inspect
import itertools
import logging
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.adapters.base_connection
import pika.adapters.select_connection
import pika.exceptions
import pika.frame
import pika.spec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from postage.amqp import wire
from postage.amqp.consuming import decode_properties
from postage.amqp.io_services import IOServices
from postage.amqp.transport import WireConnection
from postage.amqp.wire import Content
from postage.errors import ConfigurationError, EncodingError
from postage.settings import FastLane

# The same examples in every run; a failing one is printed with what reproduces it.
PROFILE = settings(derandomize=True, print_blob=True, deadline=None, max_examples=100, database=None)

FRAME_MAX = 4096


# What pika makes of the same


def by_pika(channel: int, *methods: Any) -> bytes:
    return b''.join(pika.frame.Method(channel, method).marshal() for method in methods)


def content_by_pika(channel: int, body: bytes, properties: Any = None, room: int = FRAME_MAX - 8) -> bytes:
    """The header and the body frames of a message."""
    header = pika.frame.Header(channel, len(body), properties or pika.BasicProperties()).marshal()
    pieces = [body[start : start + room] for start in range(0, len(body), room)]
    return header + b''.join(pika.frame.Body(channel, piece).marshal() for piece in pieces)


names = some.text(some.characters(exclude_categories=['Cs', 'Cc']), max_size=60)


# Frames out


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
    made = wire.publish_frames(
        channel,
        wire.publish_arguments(exchange, routing_key, mandatory),
        wire.encode_properties(),
        body,
        FRAME_MAX,
    )
    publish = pika.spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    assert made == by_pika(channel, publish) + content_by_pika(channel, body)


@PROFILE
@given(size=some.integers(0, 3 * FRAME_MAX + 1), frame_max=some.integers(64, FRAME_MAX))
def test_a_body_is_cut_to_frames_as_pika_cuts_it(size: int, frame_max: int) -> None:
    body = bytes(number % 251 for number in range(size))
    made = wire.publish_frames(7, wire.publish_arguments('e', 'k', False), wire.encode_properties(), body, frame_max)
    publish = pika.spec.Basic.Publish(exchange='e', routing_key='k')
    assert made == by_pika(7, publish) + content_by_pika(7, body, room=frame_max - 8)


@pytest.mark.parametrize('size', [0, 1, FRAME_MAX - 9, FRAME_MAX - 8, FRAME_MAX - 7, 2 * (FRAME_MAX - 8)])
def test_no_frame_is_longer_than_frame_max(size: int) -> None:
    made = wire.publish_frames(
        1, wire.publish_arguments('e', 'k', False), wire.encode_properties(), b'x' * size, FRAME_MAX
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
    | some.text(max_size=20)
    | some.binary(max_size=20)
    | some.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2100, 1, 1)).map(
        lambda time: time.replace(microsecond=0)
    )
    | some.decimals(-1000, 1000, places=2),
    lambda values: some.lists(values, max_size=3) | some.dictionaries(names, values, max_size=3),
    max_leaves=8,
)


@PROFILE
@given(
    content_type=names,
    delivery_mode=some.sampled_from([0, 1, 2]),
    message_id=names,
    correlation_id=names,
    reply_to=names,
    headers=some.none() | some.dictionaries(names, header_values, max_size=4),
    priority=some.none() | some.integers(0, 255),
    expiration=some.sampled_from(['', '0', '60000']),
)
def test_properties_are_what_pika_makes_of_them(**properties: Any) -> None:
    given_ = {name: value for name, value in properties.items() if value or (name == 'priority' and value == 0)}
    expected = b''.join(pika.BasicProperties(**given_).encode())
    assert wire.encode_properties(**properties) == expected


@PROFILE
@given(
    content_type=names.filter(bool),
    message_id=names.filter(bool),
    headers=some.dictionaries(names, some.integers(-(2**31), 2**31 - 1) | names, min_size=1, max_size=4),
    priority=some.integers(0, 255),
)
def test_properties_come_back_as_they_went(**properties: Any) -> None:
    decoded = decode_properties(wire.encode_properties(**properties))
    assert {name: getattr(decoded, name) for name in properties} == properties


def test_a_header_may_be_a_floating_point_number() -> None:
    """AMQP has a type for it, and so has RabbitMQ (https://www.rabbitmq.com/amqp-0-9-1-errata, section 3)."""
    table = b'\x01n' + b'd' + struct.pack('>d', -0.5)
    assert wire.encode_properties(headers={'n': -0.5}) == b'\x20\x00' + struct.pack('>I', len(table)) + table


@pytest.mark.parametrize('value', [0.5, -1e300, [0.25], {'nested': 1.5}])
def test_a_header_that_is_a_floating_point_number_comes_back_as_it_went(value: Any) -> None:
    assert decode_properties(wire.encode_properties(headers={'number': value})).headers == {'number': value}


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
    assert wire.encode_properties(headers={'moment': moment}) == expected


def test_a_header_that_amqp_has_no_type_for_is_an_error_that_shows_it() -> None:
    with pytest.raises(EncodingError, match='complex'):
        wire.encode_properties(headers={'number': complex(1, 2), 'kind': 'complex'})


@pytest.mark.parametrize('text', ['x' * 256, 'ü' * 128])
@pytest.mark.parametrize(
    ('make', 'named'),
    [
        (lambda text: wire.publish_arguments('e', text, False), 'routing key'),
        (lambda text: wire.publish_arguments(text, 'k', False), 'exchange name'),
        (lambda text: wire.encode_properties(correlation_id=text), 'correlation id'),
        (lambda text: wire.encode_properties(expiration=text), 'expiration'),
    ],
)
def test_a_text_longer_than_255_bytes_is_an_error_that_names_it(
    make: Callable[[str], bytes], named: str, text: str
) -> None:
    with pytest.raises(ConfigurationError, match=f'{named} is 256 bytes'):
        make(text)


def test_a_text_of_255_bytes_is_not_too_long() -> None:
    assert wire.short_string('x' * 255, 'text') == b'\xff' + b'x' * 255


@PROFILE
@given(channel=some.integers(1, 65535), tag=some.integers(1, 2**64 - 1))
def test_settlements_are_what_pika_makes_of_them(channel: int, tag: int) -> None:
    assert wire.ack_frame(channel, tag) == by_pika(channel, pika.spec.Basic.Ack(delivery_tag=tag))
    all_up_to = pika.spec.Basic.Ack(delivery_tag=tag, multiple=True)
    assert wire.ack_frame(channel, tag, multiple=True) == by_pika(channel, all_up_to)
    reject = pika.spec.Basic.Reject(delivery_tag=tag, requeue=False)
    assert wire.reject_frame(channel, tag) == by_pika(channel, reject)
    returned = pika.spec.Basic.Nack(delivery_tag=tag, multiple=False, requeue=True)
    assert wire.return_frame(channel, tag) == by_pika(channel, returned)


# Frames in


class Lane:
    """A lane that notes what is cut for it."""

    def __init__(self, notes: list[Any]) -> None:
        self.content: Content | None = None
        self.notes = notes
        self.reads = 0

    def delivered(self, content: Content) -> None:
        self.notes.append(
            (
                'delivered',
                content.tag_or_text,
                content.delivery_tag,
                content.redelivered,
                content.exchange,
                content.routing_key,
                content.properties,
                content.body,
            )
        )

    def returned(self, content: Content) -> None:
        self.notes.append(
            (
                'returned',
                content.reply_code,
                content.tag_or_text,
                content.exchange,
                content.routing_key,
                content.properties,
                content.body,
            )
        )

    def confirmed(self, delivery_tag: int, multiple: bool, positive: bool) -> None:
        self.notes.append(('confirmed', delivery_tag, multiple, positive))

    def closing(self) -> None:
        self.notes.append(('closing',))

    def end_of_read(self) -> None:
        self.reads += 1


class Cutter(WireConnection):
    """A connection without a socket: bytes are fed to it, and what it would hand to pika is noted."""

    def __init__(self, notes: list[Any]) -> None:
        services = IOServices(pika.adapters.select_connection.IOLoop())
        super().__init__(
            pika.ConnectionParameters(),
            internal_connection_workflow=False,
            fast_lane=FastLane.THREAD,
            services=services,
        )
        self.notes = notes
        self.lane = Lane(notes)
        self.lanes[1] = self.lane
        self.terminated: list[BaseException] = []

    def _on_data_available(self, data: bytes) -> None:
        self.notes.append(('pika', bytes(data)))

    def _terminate_stream(self, error: Any) -> None:
        self.terminated.append(error)


@pytest.fixture
def cutters() -> Iterator[Callable[[], Cutter]]:
    made = []

    def make() -> Cutter:
        made.append(Cutter([]))
        return made[-1]

    yield make
    for cutter in made:
        cutter.ioloop.close()


DELIVER = pika.spec.Basic.Deliver(
    consumer_tag='postage-1', delivery_tag=5, redelivered=False, exchange='exchange', routing_key='kéy'
)
AGAIN = pika.spec.Basic.Deliver(
    consumer_tag='postage-2', delivery_tag=2**40, redelivered=True, exchange='', routing_key='queue'
)
RETURN = pika.spec.Basic.Return(reply_code=312, reply_text='NO_ROUTE', exchange='exchange', routing_key='nowhere')
GET_OK = pika.spec.Basic.GetOk(
    delivery_tag=9, redelivered=False, exchange='exchange', routing_key='key', message_count=0
)
PROPERTIES = pika.BasicProperties(content_type='application/json', headers={'a': 1}, message_id='m')

HEARTBEAT = pika.frame.Heartbeat().marshal()
LONG = bytes(range(256)) * 20
PIECES: list[tuple[bytes, list[Any]]] = [
    (HEARTBEAT, [('pika', HEARTBEAT)]),
    (
        by_pika(1, DELIVER) + content_by_pika(1, b'body', PROPERTIES),
        [('delivered', b'postage-1', 5, False, b'exchange', 'kéy'.encode(), b''.join(PROPERTIES.encode()), b'body')],
    ),
    (by_pika(1, pika.spec.Basic.Ack(3, True)), [('confirmed', 3, True, True)]),
    (
        by_pika(1, AGAIN) + content_by_pika(1, b''),
        [('delivered', b'postage-2', 2**40, True, b'', b'queue', b'\0\0', b'')],
    ),
    (by_pika(1, pika.spec.Basic.Nack(4, False)), [('confirmed', 4, False, False)]),
    (
        by_pika(1, RETURN) + content_by_pika(1, b'came back', PROPERTIES),
        [('returned', 312, b'NO_ROUTE', b'exchange', b'nowhere', b''.join(PROPERTIES.encode()), b'came back')],
    ),
    (
        by_pika(1, DELIVER) + content_by_pika(1, LONG, room=2000),
        [('delivered', b'postage-1', 5, False, b'exchange', 'kéy'.encode(), b'\0\0', LONG)],
    ),
    (by_pika(2, DELIVER), [('pika', by_pika(2, DELIVER))]),
    (by_pika(1, pika.spec.Basic.ConsumeOk('t')), [('pika', by_pika(1, pika.spec.Basic.ConsumeOk('t')))]),
    (by_pika(1, GET_OK), [('pika', by_pika(1, GET_OK))]),
    (pika.frame.Header(1, 4, PROPERTIES).marshal(), [('pika', pika.frame.Header(1, 4, PROPERTIES).marshal())]),
    (pika.frame.Body(1, b'got!').marshal(), [('pika', pika.frame.Body(1, b'got!').marshal())]),
    (
        by_pika(1, pika.spec.Channel.Close(404, 'NOT_FOUND', 60, 40)),
        [('closing',), ('pika', by_pika(1, pika.spec.Channel.Close(404, 'NOT_FOUND', 60, 40)))],
    ),
]
STREAM = b''.join(data for data, _ in PIECES)
NOTES = [note for _, notes in PIECES for note in notes]


def cut(cutter: Cutter, *chunks: bytes) -> list[Any]:
    """Feed chunks and return what was made of them."""
    cutter.notes.clear()
    for chunk in chunks:
        cutter._proto_data_received(chunk)
    assert cutter.terminated == []
    return list(cutter.notes)


def test_a_stream_is_cut_to_messages_confirms_and_frames_for_pika_in_order(cutters: Callable[[], Cutter]) -> None:
    assert cut(cutters(), STREAM) == NOTES


def test_a_stream_split_at_any_position_gives_the_same(cutters: Callable[[], Cutter]) -> None:
    cutter = cutters()
    for position in range(len(STREAM) + 1):
        assert cut(cutter, STREAM[:position], STREAM[position:]) == NOTES, f'split at {position}'


def test_a_stream_that_comes_byte_by_byte_gives_the_same(cutters: Callable[[], Cutter]) -> None:
    assert cut(cutters(), *(STREAM[i : i + 1] for i in range(len(STREAM)))) == NOTES


def test_a_stream_in_any_chunks_gives_the_same(cutters: Callable[[], Cutter]) -> None:
    cutter = cutters()

    @PROFILE
    @given(cuts=some.lists(some.integers(0, len(STREAM)), max_size=40))
    def check(cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(STREAM)]
        assert cut(cutter, *(STREAM[a:b] for a, b in itertools.pairwise(edges))) == NOTES

    check()


def test_a_message_between_two_pieces_of_another_channel_s_is_kept_apart(cutters: Callable[[], Cutter]) -> None:
    """Frames of different channels may be mixed (section 4.2.6), those of one message on one channel may not."""
    cutter = cutters()
    other = cutter.lanes[3] = Lane([])
    first, second = b'a' * 10, b'b' * 10
    stream = (
        by_pika(1, DELIVER)
        + by_pika(3, AGAIN)
        + pika.frame.Header(1, 10, PROPERTIES).marshal()
        + pika.frame.Header(3, 10, PROPERTIES).marshal()
        + pika.frame.Body(3, second[:5]).marshal()
        + HEARTBEAT
        + pika.frame.Body(1, first).marshal()
        + pika.frame.Body(3, second[5:]).marshal()
    )
    notes = cut(cutter, stream)
    assert [note[-1] for note in notes] == [HEARTBEAT, first]
    assert [note[-1] for note in other.notes] == [second]


def test_what_follows_a_delivery_may_be_the_content_of_another_channel_s(cutters: Callable[[], Cutter]) -> None:
    cutter = cutters()
    other = cutter.lanes[3] = Lane([])
    first, second = b'a' * 10, b'b' * 10
    stream = (
        by_pika(3, AGAIN)
        + by_pika(1, DELIVER)
        + pika.frame.Header(3, 10, PROPERTIES).marshal()
        + pika.frame.Body(3, second).marshal()
        + pika.frame.Header(1, 10, PROPERTIES).marshal()
        + pika.frame.Body(1, first).marshal()
    )
    assert [note[-1] for note in cut(cutter, stream)] == [first]
    assert [note[-1] for note in other.notes] == [second]


def test_the_lane_is_told_once_when_a_read_has_been_cut(cutters: Callable[[], Cutter]) -> None:
    cutter = cutters()
    cut(cutter, PIECES[1][0] * 10)
    assert cutter.lane.reads == 1


def test_bytes_and_frames_are_counted_for_the_heartbeats(cutters: Callable[[], Cutter]) -> None:
    cutter = cutters()
    message = PIECES[1][0]
    before = cutter.bytes_received, cutter.frames_received
    cut(cutter, message[:20], message[20:])
    assert cutter.bytes_received - before[0] == len(message)
    assert cutter.frames_received - before[1] == 3


def test_the_answer_of_a_broker_that_refuses_the_version_goes_to_pika(cutters: Callable[[], Cutter]) -> None:
    assert cut(cutters(), b'AMQP\0\0\x09\x01') == [('pika', b'AMQP\0\0\x09\x01')]


def test_a_frame_with_a_wrong_end_terminates_the_stream(
    cutters: Callable[[], Cutter], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger='postage.amqp')
    cutter = cutters()
    good, bad = PIECES[2][0], PIECES[4][0][:-1] + b'\0'
    cutter._proto_data_received(good + bad + good)
    assert cutter.notes[:1] == PIECES[2][1]
    assert len(cutter.notes) == 1
    assert [type(error) for error in cutter.terminated] == [pika.exceptions.InvalidFrameError]


def test_a_body_that_comes_in_pieces_is_checked_for_its_end_as_well(
    cutters: Callable[[], Cutter], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger='postage.amqp')
    cutter = cutters()
    message = PIECES[1][0]
    cutter._proto_data_received(message[:-3])
    cutter._proto_data_received(message[-3:-1] + b'\0')
    assert cutter.notes == []
    assert [type(error) for error in cutter.terminated] == [pika.exceptions.InvalidFrameError]


def test_the_rest_of_a_body_whose_channel_was_opened_anew_is_dropped(cutters: Callable[[], Cutter]) -> None:
    cutter = cutters()
    message = PIECES[1][0]
    cut(cutter, message[:-3])
    cutter.lane.content = None
    assert cut(cutter, message[-3:-2], message[-2:] + HEARTBEAT + message) == [('pika', HEARTBEAT), *PIECES[1][1]]


def test_an_exception_while_reading_terminates_the_stream_and_does_not_leave_it(
    cutters: Callable[[], Cutter], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger='postage.amqp')
    cutter = cutters()

    def fails(_data: bytes) -> None:
        raise ValueError('inside pika')

    cutter._on_data_available = fails  # type: ignore[method-assign]
    cutter._proto_data_received(HEARTBEAT)
    assert [str(error) for error in cutter.terminated] == ['inside pika']


@PROFILE
@given(data=some.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    logging.getLogger('postage.amqp').disabled = True
    cutter = Cutter([])
    try:
        cutter._proto_data_received(b'\x01\x00\x01\x00\x00\x00' + data)
        cutter._proto_data_received(data)
    finally:
        cutter.ioloop.close()
        logging.getLogger('postage.amqp').disabled = False


# What the lane takes for granted in pika


@pytest.mark.parametrize(
    ('owner', 'name', 'parameters'),
    [
        (pika.SelectConnection, '_proto_data_received', ['self', 'data']),
        (pika.SelectConnection, '_on_data_available', ['self', 'data_in']),
        (pika.SelectConnection, '_terminate_stream', ['self', 'error']),
        (pika.SelectConnection, '_output_marshaled_frames', ['self', 'marshaled_frames']),
    ],
)
def test_pika_s_connection_has_the_method(owner: type, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_pika_s_transport_hands_data_to_the_method_that_is_overridden(cutters: Callable[[], Cutter]) -> None:
    cutter = cutters()
    protocol = pika.adapters.base_connection._StreamingProtocolShim(cutter)
    protocol.data_received(HEARTBEAT)
    assert cutter.notes == [('pika', HEARTBEAT)]


def test_pika_s_connection_has_the_attributes(cutters: Callable[[], Cutter]) -> None:
    cutter = cutters()
    assert cutter.bytes_received == 0
    assert cutter.frames_received == 0
    assert cutter.params.frame_max == pika.ConnectionParameters().frame_max


def test_pika_counts_what_is_sent_and_writes_it_to_the_transport(cutters: Callable[[], Cutter]) -> None:
    """pika's heartbeats look at the counters; the lane sends through the method that keeps them."""

    class Transport:
        written = b''

        def write(self, data: bytes) -> None:
            self.written += data

        def get_write_buffer_size(self) -> int:
            return len(self.written)

    cutter = cutters()
    transport: Any = Transport()
    cutter._stream = transport
    with cutter.writing:
        cutter.write(HEARTBEAT * 2)
    assert transport.written == HEARTBEAT * 2
    assert cutter.bytes_sent == len(HEARTBEAT * 2)
    assert cutter.backlog == len(HEARTBEAT * 2)


def test_pika_s_transport_has_what_the_lane_asks_of_it() -> None:
    transport = pika.adapters.utils.io_services_utils._AsyncPlaintextTransport
    assert callable(transport.get_write_buffer_size)
    assert callable(transport.write)
