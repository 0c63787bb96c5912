"""What comes in is cut to messages, confirms and frames for pika, however it is chopped up."""

from __future__ import annotations

import itertools
from typing import Any

import pika
import pika.exceptions
import pika.frame
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from postage.amqp import cutter
from postage.amqp.cutter import Content
from support.frames import PROFILE, by_pika, content_by_pika


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


class Cutter(cutter.Cutter):
    """A cutter with one lane; what is cut for that, and what it would hand to pika, is noted in one list."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.lane = Lane(self.notes)
        self.lanes: dict[int, Any] = {1: self.lane}
        super().__init__(self.lanes, lambda data: self.notes.append(('pika', bytes(data))))


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
        cutter.cut(chunk)
    return list(cutter.notes)


def test_a_stream_is_cut_to_messages_confirms_and_frames_for_pika_in_order() -> None:
    assert cut(Cutter(), STREAM) == NOTES


def test_a_stream_split_at_any_position_gives_the_same() -> None:
    cutter = Cutter()
    for position in range(len(STREAM) + 1):
        assert cut(cutter, STREAM[:position], STREAM[position:]) == NOTES, f'split at {position}'


def test_a_stream_that_comes_byte_by_byte_gives_the_same() -> None:
    assert cut(Cutter(), *(STREAM[i : i + 1] for i in range(len(STREAM)))) == NOTES


def test_a_stream_in_any_chunks_gives_the_same() -> None:
    cutter = Cutter()

    @PROFILE
    @given(cuts=some.lists(some.integers(0, len(STREAM)), max_size=40))
    def check(cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(STREAM)]
        assert cut(cutter, *(STREAM[a:b] for a, b in itertools.pairwise(edges))) == NOTES

    check()


def test_a_message_between_two_pieces_of_another_channel_s_is_kept_apart() -> None:
    """Frames of different channels may be mixed (section 4.2.6), those of one message on one channel may not."""
    cutter = Cutter()
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


def test_what_follows_a_delivery_may_be_the_content_of_another_channel_s() -> None:
    cutter = Cutter()
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


def test_the_lane_is_told_once_when_a_read_has_been_cut() -> None:
    cutter = Cutter()
    cut(cutter, PIECES[1][0] * 10)
    assert cutter.lane.reads == 1


def test_bytes_and_frames_are_counted_that_the_lanes_have_had() -> None:
    cutter = Cutter()
    message = PIECES[1][0]
    counted = [cutter.cut(data) for data in (message[:20], message[20:] + HEARTBEAT)]
    assert sum(taken for taken, _ in counted) == len(message)
    assert sum(frames for _, frames in counted) == 3


def test_the_answer_of_a_broker_that_refuses_the_version_goes_to_pika() -> None:
    assert cut(Cutter(), b'AMQP\0\0\x09\x01') == [('pika', b'AMQP\0\0\x09\x01')]


def test_a_frame_with_a_wrong_end_is_an_error_and_nothing_is_cut_behind_it() -> None:
    cutter = Cutter()
    good, bad = PIECES[2][0], PIECES[4][0][:-1] + b'\0'
    with pytest.raises(pika.exceptions.InvalidFrameError):
        cutter.cut(good + bad + good)
    assert cutter.notes == PIECES[2][1]


@pytest.mark.parametrize('position', [-1, -13], ids=['body', 'header'])
def test_a_delivery_with_a_wrong_end_of_its_header_or_body_is_an_error(position: int) -> None:
    cutter = Cutter()
    message = bytearray(PIECES[1][0])
    assert message[position] == 0xCE
    message[position] = 0
    with pytest.raises(pika.exceptions.InvalidFrameError):
        cutter.cut(bytes(message))
    assert cutter.notes == []


def test_a_body_that_comes_in_pieces_is_checked_for_its_end_as_well() -> None:
    cutter = Cutter()
    message = PIECES[1][0]
    cutter.cut(message[:-3])
    with pytest.raises(pika.exceptions.InvalidFrameError):
        cutter.cut(message[-3:-1] + b'\0')
    assert cutter.notes == []


def test_the_rest_of_a_body_whose_channel_was_opened_anew_is_dropped() -> None:
    cutter = Cutter()
    message = PIECES[1][0]
    cut(cutter, message[:-3])
    cutter.lane.content = None
    assert cut(cutter, message[-3:-2], message[-2:] + HEARTBEAT + message) == [('pika', HEARTBEAT), *PIECES[1][1]]
