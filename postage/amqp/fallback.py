"""pika's connection by its public API alone: what Postage falls back to where the fast lane's seam is not there.

The rest of Postage does not notice. It hands over ready frames, which are taken apart again here and become calls of
pika's channel methods, and it is told of deliveries, returns and confirms, which pika's callbacks bring. Two things are
lost besides speed: a message whose headers pika cannot decode costs the connection, again after each redelivery; and
the I/O thread alone sends and reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pika
import pika.channel
import pika.spec

from postage.amqp.wire import (
    BASIC_ACK,
    BASIC_NACK,
    BASIC_PUBLISH,
    BASIC_REJECT,
    METHOD,
    Content,
    Lane,
    decode_properties,
    each_frame,
    publish_of,
    settlement_of,
)


class PublicConnection(pika.SelectConnection):
    """pika's connection, as the rest of this package uses it. Lives on the I/O thread.

    :ivar lanes: the channels that take the fast lane, by number
    :ivar writing: held by the thread that sends
    :ivar is_lost: whether it has gone; nothing may be sent any more
    :ivar sends_directly: whether any thread may send; else the I/O thread alone
    """

    sends_directly = False

    def __init__(self, *args: Any, **kwds: Any) -> None:
        self.lanes: dict[int, Lane] = {}
        self.writing = threading.Lock()
        self.is_lost = False
        self._channels_of: dict[int, pika.channel.Channel] = {}
        super().__init__(*args, **kwds)

    # What was agreed with the broker

    @property
    def frame_max(self) -> int:
        """Bytes that a frame may have."""
        return int(self.params.frame_max)

    @property
    def heartbeat(self) -> float:
        """Seconds between heartbeats; 0 where there are none."""
        agreed = self.params.heartbeat
        return float(agreed) if isinstance(agreed, int) else 0.0

    # Channels and what comes for them

    def open_lane(self, number: int, lane: Lane, channel: pika.channel.Channel) -> None:
        """Have what comes for a channel brought to its lane."""
        self.lanes[number] = lane
        self._channels_of[number] = channel
        channel.add_on_return_callback(lambda _channel, *message: self._bring(lane, lane.returned, *message))

    def close_lane(self, number: int) -> None:
        """The channel has gone."""
        self.lanes.pop(number, None)
        self._channels_of.pop(number, None)

    def on_message(self, lane: Lane) -> Callable[..., None]:
        """What pika is to call with each delivery."""
        return lambda _channel, *message: self._bring(lane, lane.delivered, *message)

    def on_confirm(self, lane: Lane) -> Callable[[Any], None]:
        """What pika is to call with each confirm."""

        def confirmed(frame: Any) -> None:
            method = frame.method
            lane.confirmed(method.delivery_tag, method.multiple, isinstance(method, pika.spec.Basic.Ack))
            lane.end_of_read()

        return confirmed

    @staticmethod
    def _bring(lane: Lane, act: Callable[[Content], None], method: Any, properties: Any, body: bytes) -> None:
        content = Content()
        content.exchange = method.exchange.encode()
        content.routing_key = method.routing_key.encode()
        content.properties = b''.join(properties.encode())
        content.body = body
        if isinstance(method, pika.spec.Basic.Return):
            content.reply_code, content.tag_or_text = method.reply_code, method.reply_text.encode()
        else:
            content.tag_or_text, content.redelivered = method.consumer_tag.encode(), bool(method.redelivered)
            content.delivery_tag = method.delivery_tag
        act(content)
        lane.end_of_read()

    # Sending

    @property
    def backlog(self) -> int:
        """Bytes that wait here because the broker does not read them; unknown to pika's public API."""
        return 0

    def write(self, data: bytes) -> None:
        """Send ready frames. By the holder of :attr:`writing`, on the I/O thread."""
        content: list[bytes] = []
        for kind, number, payload in each_frame(data):
            channel = self._channels_of.get(number)
            if channel is None or not channel.is_open:
                continue  # it has been closed that very moment; whoever opens it again sends again
            if kind != METHOD or int.from_bytes(payload[:4], 'big') == BASIC_PUBLISH:
                content.append(payload)
                if is_complete(content):
                    _publish(channel, content)
                    content = []
            else:
                _settle(channel, payload)

    # The end

    def fail(self, error: Exception) -> None:
        """Give up the connection. pika's public API knows no way to do it at once: its heartbeats do, a bit later."""

    def fail_soon(self, error: Exception) -> None:
        """Begin a new connection, because what was sent on this one is not in order. Any thread."""
        self.ioloop.add_callback_threadsafe(lambda: self.close() if self.is_open else None)

    def abandon(self) -> None:
        """Give up this process's share of the socket without a word to the broker; unknown to pika's public API."""


def is_complete(content: list[bytes]) -> bool:
    """Whether these payloads, of a method, a header and body frames, are a whole message."""
    return len(content) > 1 and sum(map(len, content[2:])) >= int.from_bytes(content[1][4:12], 'big')


def _publish(channel: pika.channel.Channel, content: list[bytes]) -> None:
    exchange, routing_key, mandatory = publish_of(content[0])
    properties = decode_properties(content[1][12:])
    channel.basic_publish(exchange, routing_key, b''.join(content[2:]), properties, mandatory)


def _settle(channel: pika.channel.Channel, payload: bytes) -> None:
    method, tag, bits = settlement_of(payload)
    if method == BASIC_ACK:
        channel.basic_ack(tag, multiple=bool(bits))
    elif method == BASIC_REJECT:
        channel.basic_reject(tag, requeue=False)
    elif method == BASIC_NACK:
        channel.basic_nack(tag, requeue=True)
