"""Frames are cut from any stream of bytes, and made as pika reads them."""

from __future__ import annotations

import itertools
import struct

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from postage.broker import wire
from postage.broker.messages import ContentHeader, Message
from postage.broker.replies import Refusal

FRAMES = [
    (wire.METHOD, 1, b'\x00\x32\x00\x0a'),
    (wire.HEADER, 1, b''),
    (wire.BODY, 65_535, b'\xce' * 20),
    (wire.HEARTBEAT, 0, b''),
]


def raw(kind: int, channel: int, payload: bytes, end: bytes = b'\xce') -> bytes:
    return struct.pack('>BHI', kind, channel, len(payload)) + payload + end


STREAM = b''.join(raw(*each) for each in FRAMES)


@given(st.lists(st.integers(0, len(STREAM))))
def test_frames_are_cut_wherever_the_stream_is_divided(cuts: list[int]) -> None:
    buffer = wire.FrameBuffer()
    found = []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        buffer.append(STREAM[start:end])
        found += list(buffer.frames())
    assert found == FRAMES
    assert len(buffer) == 0


def test_frames_before_a_malformed_one_are_handed_out() -> None:
    buffer = wire.FrameBuffer()
    buffer.append(STREAM + raw(1, 1, b'abcd', end=b'\x00'))
    frames = buffer.frames()
    assert [next(frames) for _ in FRAMES] == FRAMES
    with pytest.raises(Refusal, match=r'FRAME_ERROR - .*invalid_frame_end_marker,0'):
        next(frames)


def test_a_frame_that_is_too_large_is_refused_before_it_has_arrived() -> None:
    buffer = wire.FrameBuffer()
    buffer.append(struct.pack('>BHI', 3, 1, wire.FRAME_MIN_SIZE + 1))
    buffer.append(b'x')
    with pytest.raises(Refusal, match='frame_too_large'):
        list(buffer.frames())


def test_what_was_handed_out_is_gone_when_the_reader_stops() -> None:
    buffer = wire.FrameBuffer()
    buffer.append(STREAM)
    for each in buffer.frames():
        assert each == FRAMES[0]
        break
    assert list(buffer.frames()) == FRAMES[1:]


@pytest.mark.parametrize('size', [0, 1, 4088, 4089, 20_000])
def test_content_is_cut_to_the_frame_size(size: int) -> None:
    properties = pika.BasicProperties(headers={'a': 1}, message_id='m')
    header = ContentHeader(frame.Header(1, size, properties).marshal()[7:-1])
    message = Message('x', 'k', header, bytes(size))
    payload = wire.deliver_payload(wire.deliver_prefix('tag'), 5, True, message.address)
    data = wire.content_frames(3, payload, header.payload, message, 4096)
    decoded = []
    while data:
        length, found = frame.decode_frame(data)
        assert length <= 4096
        decoded.append(found)
        data = data[length:]
    deliver = decoded[0].method
    assert isinstance(deliver, spec.Basic.Deliver)
    assert (deliver.consumer_tag, deliver.delivery_tag, deliver.redelivered) == ('tag', 5, True)
    assert (deliver.exchange, deliver.routing_key) == ('x', 'k')
    assert (decoded[1].properties, decoded[1].body_size) == (properties, size)
    assert b''.join(body.fragment for body in decoded[2:]) == bytes(size)


def test_a_method_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Refusal, match=r'COMMAND_INVALID - unknown method 60.99'):
        wire.decode_method(b'\x00\x3c\x00\x63')


def test_a_method_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Refusal, match=r'FRAME_ERROR - cannot decode <<0,0,32,97>>'):
        wire.decode_method(b'\x00\x32\x00\x0a\x00\x00\x20a')
