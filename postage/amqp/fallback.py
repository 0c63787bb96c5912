"""pika's connection by its public API alone: what Postage falls back to where the fast lane's seam is not there.

The rest of Postage does not notice. It hands over ready frames, which are taken apart again here and become calls of
pika's channel methods, and it is told of deliveries, returns and confirms, which pika's callbacks bring. Besides speed,
some things are lost: a message whose headers pika cannot decode costs the connection, again after each redelivery;
with pika 1.4, floating point numbers in headers arrive as whole ones; the I/O thread alone sends and reads; and nothing
but the window of unconfirmed messages bounds what waits for a slow broker.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pika
import pika.channel
import pika.spec

from postage.amqp.io_services import IOServices
from postage.amqp.wire import (
    BASIC_ACK,
    BASIC_NACK,
    BASIC_PUBLISH,
    BASIC_REJECT,
    METHOD,
    Content,
    Lane,
    each_frame,
    encode_properties,
    publish_of,
    settlement_of,
)


class PublicConnection(pika.SelectConnection):
    """pika's connection, as the rest of this package uses it. Lives on the I/O thread.

    :ivar lanes: the channels that take the fast lane, by number
    :ivar writing: held by the thread that sends
    :ivar is_lost: whether it has gone; nothing may be sent any more
    :ivar returns_after_cancel: whether deliveries that come after their consumer was cancelled go back to the queue
    :ivar reason: why it was given up, where pika does not know
    :ivar sends_directly: whether any thread may send; else the I/O thread alone
    """

    sends_directly = False
    returns_after_cancel = True

    def __init__(self, *args: Any, services: IOServices, **kwds: Any) -> None:
        self._services = services
        self.reason: Exception | None = None
        self.lanes: dict[int, Lane] = {}
        self.writing = threading.Lock()
        self.is_lost = False
        self._channels_of: dict[int, pika.channel.Channel] = {}
        super().__init__(*args, custom_ioloop=services, **kwds)  # type: ignore[misc]

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
        content.properties = encoded(properties)
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
        """Give up the connection without a word to the broker. On the I/O thread; the first reason counts.

        pika finds its socket at an end, or with TLS learns it from its own heartbeats, some seconds later.
        """
        self.reason = self.reason or error
        if self._services.sock is not None:
            with contextlib.suppress(OSError):  # with TLS it has become another one
                self._services.sock.shutdown(socket.SHUT_RDWR)

    def fail_soon(self, error: Exception) -> None:
        """The same from any thread."""
        self.ioloop.add_callback_threadsafe(lambda: self.fail(error))

    def abandon(self) -> None:
        """Give up this process's share of the socket without a word to the broker: for a forked child."""
        if self._services.sock is not None:
            self._services.sock.close()


def is_complete(content: list[bytes]) -> bool:
    """Whether these payloads, of a method, a header and body frames, are a whole message."""
    return len(content) > 1 and sum(map(len, content[2:])) >= int.from_bytes(content[1][4:12], 'big')


def _publish(channel: pika.channel.Channel, content: list[bytes]) -> None:
    exchange, routing_key, mandatory = publish_of(content[0])
    channel.basic_publish(exchange, routing_key, b''.join(content[2:]), Encoded(content[1][12:]), mandatory)


class Encoded(pika.BasicProperties):
    """Properties that are encoded already. pika knows fewer types of headers when it encodes than when it decodes."""

    def __init__(self, data: bytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._data = data

    def encode(self) -> list[bytes]:
        """The flags and the values, as pika asks for them."""
        return [self._data]


def encoded(properties: pika.BasicProperties) -> bytes:
    """What properties were before pika decoded them; what cannot be decoded either where that is not to be had."""
    others = pika.BasicProperties()  # type: ignore[no-untyped-call]
    first = pika.BasicProperties(properties.content_type, properties.content_encoding)  # type: ignore[no-untyped-call]
    for name in _AFTER_HEADERS:
        setattr(others, name, getattr(properties, name))
    try:
        parts = [_bytes_of(first), encode_properties(headers=properties.headers), _bytes_of(others)]
    except Exception:  # of any kind: no publisher may end a consumer
        return b''
    flags = 0
    for part in parts:
        flags |= int.from_bytes(part[:2], 'big')
    return flags.to_bytes(2, 'big') + b''.join(part[2:] for part in parts)


def _bytes_of(properties: pika.BasicProperties) -> bytes:
    pieces: list[bytes] = properties.encode()  # type: ignore[no-untyped-call]
    return b''.join(pieces)


_AFTER_HEADERS = (
    *('delivery_mode', 'priority', 'correlation_id', 'reply_to', 'expiration', 'message_id', 'timestamp', 'type'),
    *('user_id', 'app_id', 'cluster_id'),
)


def _settle(channel: pika.channel.Channel, payload: bytes) -> None:
    method, tag, bits = settlement_of(payload)
    if method == BASIC_ACK:
        channel.basic_ack(tag, multiple=bool(bits))
    elif method == BASIC_REJECT:
        channel.basic_reject(tag, requeue=False)
    elif method == BASIC_NACK:
        channel.basic_nack(tag, requeue=True)
