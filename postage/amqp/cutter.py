"""Cuts what was read from a socket into messages and confirms for the channels, and into frames for pika. No I/O.

Bytes go in, events come out: a :class:`Cutter` calls the :class:`Lane` of a channel with each whole delivery, return
and confirm, and hands the bytes of every other frame on. Frame layout: AMQP 0-9-1, sections 2.3 and 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Final

import pika.exceptions

from postage.amqp.frames import (
    BASIC_ACK,
    BASIC_DELIVER,
    BASIC_NACK,
    BASIC_RETURN,
    BODY,
    CHANNEL_CLOSE,
    CONTENT_HEADER,
    FRAME_END_BYTE,
    FRAME_HEAD,
    FRAME_OVERHEAD,
    HEADER,
    METHOD,
)
from postage.printable import shown

FRAME_MAX: Final = 131_072  # bytes of a frame before any are agreed, and what is proposed
HEADER_SLACK: Final = 1024 * 1024  # bytes that a content header may have above that
DEFAULT_BODY_MAX: Final = 128 * 1024 * 1024  # bytes
BROKERS_BODY_MAX: Final = 512 * 1024 * 1024  # bytes, beyond which RabbitMQ can be set to allow none
PIECES: Final = 4096  # of a body, before they are joined
PROTOCOL_HEADER: Final = ord('A')  # a broker that refuses the protocol version answers 'AMQP', which is no frame

_DELIVER = BASIC_DELIVER.to_bytes(4, 'big')
_method = Struct('>I')
_tag_and_bits = Struct('>QB')
_tag_bits_and_size = Struct('>QBB')  # of the short string that follows
_reply_code = Struct('>H')
_body_size = Struct('>Q')


class Lane:
    """What a channel does with the frames that are cut for it; nothing, where it does not say what.

    All of it is called by one thread at a time, the one that reads: the I/O thread, or one that waits in its place.
    Nothing in it may block.
    """

    content: Content | None = None

    def delivered(self, content: Content) -> None:
        """A message for one of the channel's consumers is complete."""

    def too_large(self, content: Content) -> None:
        """A message for one of the channel's consumers is complete, but for its body, which was not kept."""

    def returned(self, content: Content) -> None:
        """A mandatory message came back. Its confirm follows."""

    def confirmed(self, delivery_tag: int, multiple: bool, positive: bool) -> None:
        """The broker took over, or refused, what was published with this tag (and all before it)."""

    def closing(self) -> None:
        """The broker is about to close the channel: from now on nothing may be sent on it."""

    def end_of_read(self) -> None:
        """All that one read brought has been cut."""


class Content:
    """A message on its way in: the fields of its method, its properties as they came, and its body."""

    __slots__ = (
        'body',
        'delivery_tag',
        'exchange',
        'joined',
        'missing',
        'parts',
        'properties',
        'redelivered',
        'reply_code',
        'routing_key',
        'tag_or_text',
    )

    tag_or_text: bytes  # the consumer tag of a delivery, the reply text of a return
    delivery_tag: int
    redelivered: bool
    reply_code: int
    exchange: bytes
    routing_key: bytes
    properties: bytes
    body: bytes
    missing: int  # bytes of the body
    parts: list[bytes]
    joined: int  # how many of them are joined already
    is_return = False

    def begin(self, size: int, properties: bytes, body_max: int) -> None:
        """The header has come, which announces a body of that size."""
        self.missing = size
        self.properties = properties
        self.parts = [] if size <= body_max else Dropped()
        self.joined = 0

    def add(self, piece: bytes) -> None:
        """A piece of the body has come."""
        if piece:
            self.parts.append(piece)
        self.missing -= len(piece)
        if len(self.parts) - self.joined > PIECES:  # each costs memory of its own, however small it is
            self.parts[self.joined :] = [b''.join(self.parts[self.joined :])]
            self.joined += 1


class Returned(Content):
    """A message that comes back, for no queue took it."""

    __slots__ = ()
    is_return = True


class Dropped(list[bytes]):
    """The pieces of a body that is too large: none of them is kept."""

    def append(self, piece: bytes) -> None:
        """Keep nothing."""


def _cut_delivery(lane: Lane, channel: int, data: bytes, position: int, header: int, end: int, room: int) -> int:
    """Cut a delivery's method, and its header and body, one frame or none, where they have come with it, as usual.

    :param position: where the method's arguments begin
    :param header: where the next frame begins
    :param room: bytes that the body may have
    :return: where the message ends; 0 where the rest has to be cut frame by frame
    """
    content = lane.content = Content()
    after_tag = position + 1 + data[position]
    content.tag_or_text = data[position + 1 : after_tag]
    content.delivery_tag, redelivered, exchange_size = _tag_bits_and_size.unpack_from(data, after_tag)
    content.redelivered = redelivered & 1 == 1
    after_exchange = after_tag + 10 + exchange_size
    content.exchange = data[after_tag + 10 : after_exchange]
    content.routing_key = data[after_exchange + 1 : after_exchange + 1 + data[after_exchange]]
    if end - header < CONTENT_HEADER.size:
        return 0
    kind, number, size, _, _, length = CONTENT_HEADER.unpack_from(data, header)
    after_header = header + size + FRAME_OVERHEAD
    after = after_header + length + FRAME_OVERHEAD if length else after_header
    if kind != HEADER or number != channel or after > end or length > room:
        return 0
    if length and FRAME_HEAD.unpack_from(data, after_header) != (BODY, channel, length):
        return 0
    if data[after_header - 1] != FRAME_END_BYTE or data[after - 1] != FRAME_END_BYTE:
        return 0  # said where frames are cut one by one
    content.properties = data[header + 19 : after_header - 1]
    content.body = data[after_header + 7 : after - 1] if length else b''
    lane.content = None
    lane.delivered(content)
    return int(after)


def _cut_return(data: bytes, position: int) -> Content:
    content = Returned()
    (content.reply_code,) = _reply_code.unpack_from(data, position)
    end = position + 3 + data[position + 2]
    content.tag_or_text = data[position + 3 : end]
    after_exchange = end + 1 + data[end]
    content.exchange = data[end + 1 : after_exchange]
    content.routing_key = data[after_exchange + 1 : after_exchange + 1 + data[after_exchange]]
    return content


class Cutter:
    """Cuts what was read into messages and confirms for the lanes, and into frames for pika, in order.

    No more is kept of what comes than a frame, and a body of so many bytes; that is seen to before any memory is given.

    :param lanes: the channels that take the fast lane, by number
    :param pass_on: called with the bytes of each frame that is none of theirs
    :param body_max: bytes that a body may have
    """

    def __init__(
        self, lanes: Mapping[int, Lane], pass_on: Callable[[bytes], None], body_max: int = DEFAULT_BODY_MAX
    ) -> None:
        self._lanes = lanes
        self._pass_on = pass_on
        self.body_max = body_max
        self.frame_max = FRAME_MAX
        self._chunks: list[bytes] = []  # of a frame that has not come to its end
        self._chunks_size = 0
        self._chunks_wanted = 0
        self._cut_short: Lane | None = None  # the lane whose body frame has not, and is taken as it comes
        self._body_missing = 0  # bytes of that frame, its end marker not counted

    def cut(self, data: bytes) -> tuple[int, int]:
        """Act on what was read; keep what is not a whole frame until more comes.

        :return: how many bytes and frames the lanes have had
        :raises pika.exceptions.InvalidFrameError: a frame is larger than was agreed, does not end where it should, or
            cannot be read; it says which
        """
        touched: dict[Lane, None] = {}
        lanes, taken, frames, position = self._lanes, 0, 0, 0
        room, body_room = self._frame_max - FRAME_OVERHEAD, self._body_room
        if self._chunks or self._cut_short is not None:
            data, position = self._resume(data, touched)
            taken = position
            if not data:
                return taken, 0
            frames = 1 if position else 0
        end = len(data)
        wanted = FRAME_OVERHEAD
        frame_head = FRAME_HEAD.unpack_from
        kind = channel = size = 0
        try:
            while end - position >= FRAME_OVERHEAD:
                kind, channel, size = frame_head(data, position)
                if size > room:
                    if kind == PROTOCOL_HEADER and data[position : position + 4] == b'AMQP':
                        self._pass_on(data[position:])
                        return taken, frames
                    self._check_size(kind, channel, size)
                after = position + size + FRAME_OVERHEAD
                if after > end:
                    wanted = after - position
                    if kind == BODY and self._begin_body(lanes.get(channel), data, position, size):
                        taken += end - position
                        position = end
                    break
                if data[after - 1] != FRAME_END_BYTE:
                    raise pika.exceptions.InvalidFrameError(f'{name_of(kind, channel, size)} without its end marker')
                lane = lanes.get(channel)
                if lane is not None and kind == METHOD and data.startswith(_DELIVER, position + 7):
                    whole = _cut_delivery(lane, channel, data, position + 11, after, end, body_room)
                    touched[lane] = None
                    frames += 3 if whole else 1
                    after = whole or after
                    taken += after - position
                elif lane is not None and take(lane, kind, data, position + 7, after - 1, self.body_max):
                    touched[lane] = None
                    taken += after - position
                    frames += 1
                else:
                    self._give(kind, data, position, after)
                position = after
        except Exception as error:
            raise unreadable(error, kind, channel, size) from error
        if position < end:
            self._keep(data[position:] if position else data, wanted)
        for lane in touched:
            lane.end_of_read()
        return taken, frames

    @property
    def frame_max(self) -> int:
        """Bytes that a frame may have, with its overhead: what was agreed, before that what any peer may send."""
        return self._frame_max

    @frame_max.setter
    def frame_max(self, size: int) -> None:
        self._frame_max = size
        self._body_room = min(size - FRAME_OVERHEAD, self.body_max)

    def _check_size(self, kind: int, channel: int, size: int) -> None:
        """See to a frame that is larger than was agreed.

        A content header may be: RabbitMQ adds to the headers of a message that it moves, and does not look at its size.
        """
        if kind != HEADER or size > self._frame_max + HEADER_SLACK:
            raise pika.exceptions.InvalidFrameError(
                f'{name_of(kind, channel, size)}, where a frame may have {self._frame_max:,}'
            )

    def _give(self, kind: int, data: bytes, position: int, after: int) -> None:
        """Hand on a frame that is none of the lanes'; pika keeps whatever body is announced to it."""
        if kind == HEADER:
            check_body(_body_size.unpack_from(data, position + 11)[0], self.body_max)
        self._pass_on(data[position:after])

    def _keep(self, rest: bytes, wanted: int) -> None:
        """Keep what is not a whole frame."""
        self._chunks.append(rest)
        self._chunks_size = len(rest)
        self._chunks_wanted = wanted

    def _resume(self, data: bytes, touched: dict[Lane, None]) -> tuple[bytes, int]:
        """Go on with what was cut short by the end of the last read.

        :param touched: gets the lane whose message went on
        :return: what is to be cut now, empty where a frame has still not come to its end, and where to begin
        """
        if self._chunks:
            self._chunks.append(data)
            self._chunks_size += len(data)
            if self._chunks_size < self._chunks_wanted:
                return b'', 0
            data = b''.join(self._chunks)
            self._chunks.clear()
            return data, 0
        lane = self._cut_short
        assert lane is not None
        touched[lane] = None
        position = self._continue_body(lane, data)
        return (data, position) if position else (b'', len(data))

    def _begin_body(self, lane: Lane | None, data: bytes, position: int, size: int) -> bool:
        """Take the beginning of a body frame, so that a big body is joined once, and not once for each frame, too.

        :return: whether it is one of a lane's messages
        """
        if lane is None or lane.content is None:
            return False
        piece = data[position + 7 : position + 7 + size]
        lane.content.add(piece)
        self._cut_short, self._body_missing = lane, size - len(piece)
        return True

    def _continue_body(self, lane: Lane, data: bytes) -> int:
        """Take what has come of that frame.

        :return: where the next one begins; 0 where this one has not come to its end
        :raises pika.exceptions.InvalidFrameError: it does not end where it should
        """
        content, missing = lane.content, self._body_missing
        if len(data) <= missing:
            self._body_missing -= len(data)
            if content is not None:
                content.add(data)
            return 0
        if data[missing] != FRAME_END_BYTE:
            raise pika.exceptions.InvalidFrameError('a body frame without its end marker')
        self._cut_short = None
        if content is not None:  # else the channel was opened anew meanwhile
            content.add(data[:missing])
            complete(lane, content)
        return missing + 1


def take(lane: Lane, kind: int, data: bytes, start: int, end: int, body_max: int) -> bool:
    """Act on one frame of a lane, but for a delivery's method; ``False`` where it is none of the lane's.

    :param body_max: bytes that a body may have; a larger one is not kept
    """
    if kind == METHOD:
        (method,) = _method.unpack_from(data, start)
        if method in (BASIC_ACK, BASIC_NACK):
            tag, bits = _tag_and_bits.unpack_from(data, start + 4)
            lane.confirmed(tag, bits & 1 == 1, method == BASIC_ACK)
        elif method == BASIC_RETURN:
            lane.content = _cut_return(data, start + 4)
        else:
            if method == CHANNEL_CLOSE:
                lane.closing()
            return False
        return True
    content = lane.content
    if content is None:
        return False  # the content of a basic.get, which pika asked for
    if kind == HEADER:
        (size,) = _body_size.unpack_from(data, start + 4)
        check_body(size, max(body_max, BROKERS_BODY_MAX))
        content.begin(size, data[start + 12 : end], body_max)
    elif kind == BODY:
        content.add(data[start:end])
    else:
        return False
    complete(lane, content)
    return True


def complete(lane: Lane, content: Content) -> None:
    """Give a message to its lane, if all of its body has come."""
    if content.missing > 0:
        return
    if content.missing < 0:
        raise pika.exceptions.InvalidFrameError(
            f'the body of a message is {-content.missing:,} bytes longer than was announced'
        )
    lane.content = None
    content.body = content.parts[0] if len(content.parts) == 1 else b''.join(content.parts)
    if content.is_return:
        lane.returned(content)
    elif isinstance(content.parts, Dropped):
        lane.too_large(content)
    else:
        lane.delivered(content)


# Frames that cannot be read


def check_body(size: int, limit: int) -> None:
    """See that a body is not larger than it may be.

    :raises pika.exceptions.InvalidFrameError: it is
    """
    if size > limit:
        raise pika.exceptions.InvalidFrameError(
            f'a message of {size:,} bytes is announced, where {limit:,} are allowed'
        )


def name_of(kind: int, channel: int, size: int) -> str:
    """What to call a frame in an error."""
    return f'a {_KINDS.get(kind, f"frame of the unknown type {kind}")} of {size:,} bytes on channel {channel}'


def unreadable(error: Exception, kind: int, channel: int, size: int) -> pika.exceptions.InvalidFrameError:
    """The error for a frame that cannot be read, which names it."""
    text = str(error.args[0]) if isinstance(error, pika.exceptions.InvalidFrameError) and error.args else shown(error)
    if kind == PROTOCOL_HEADER and not text.startswith(name_of(kind, channel, size)):
        return pika.exceptions.InvalidFrameError(text)
    name = name_of(kind, channel, size)
    return pika.exceptions.InvalidFrameError(text if text.startswith(name) else f'{name} cannot be read: {text}')


_KINDS = {METHOD: 'method frame', HEADER: 'content header', BODY: 'body frame', 8: 'heartbeat'}
