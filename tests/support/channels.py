"""What the tests of brokers do with connections and channels: bare pika, and bare frames."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika import frame, spec
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from support.brokers import Broker

PATIENCE = 10.0
"""Seconds for what should happen at once."""

PROTOCOL_HEADER = b'AMQP\x00\x00\x09\x01'


# Waiting


def wait_until(connection: Any, condition: Callable[[], bool]) -> None:
    """Handle what arrives on a blocking connection until a condition holds.

    :raises AssertionError: where it does not within :data:`PATIENCE`
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        with contextlib.suppress(ChannelClosedByBroker):  # which callbacks are told; pika 1.5 raises it here, too
            connection.process_data_events(0.02)


# Refusals


def refusal_of(action: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[int, str]:
    """Return the code and the text with which the broker refuses what a function asks for."""
    with pytest.raises((ChannelClosedByBroker, ConnectionClosedByBroker)) as caught:
        action(*args, **kwargs)
    return caught.value.reply_code, caught.value.reply_text


def check_refusal(
    broker: Broker, channel: BlockingChannel, action: str, arguments: dict[str, Any], code: int, text: str
) -> None:
    """Check with which code and which words, behind the code's name, a broker refuses a channel's method.

    :param text: may name the virtual host, as ``{vhost}``
    """
    found, reason = refusal_of(getattr(channel, action), **arguments)
    assert found == code
    assert reason.partition(' - ')[2] == text.format(vhost=broker.vhost)


def refusal_on(channel: BlockingChannel, action: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[int, str]:
    """Return the error that follows a method without an answer."""
    action(*args, **kwargs)
    return refusal_of(channel.queue_declare, 'missing', passive=True)


def refusal_after(channel: BlockingChannel, data: bytes) -> tuple[int, str]:
    """Send bytes on a channel's connection, and return the error with which the broker closes that."""
    connection = channel.connection
    connection._impl._output_marshaled_frames([data])
    # Nothing is asked for meanwhile: RabbitMQ might answer that first, for each channel is a process of its own.
    return refusal_of(connection.process_data_events, PATIENCE)


def inequivalent(broker: Broker, what: str, text: str) -> tuple[int, str]:
    """Return the refusal of a declaration that differs from what exists.

    :param what: the thing with its name, such as ``queue 'q'``
    :param text: the field and its two values, with ``{}`` where the thing is named
    """
    thing = f"{what} in vhost '{broker.vhost}'"
    return 406, f'PRECONDITION_FAILED - inequivalent arg {text.format(thing)}'


# Messages


def publish(channel: BlockingChannel, queue: str, *bodies: bytes, **properties: Any) -> None:
    """Publish messages to a queue, one after the other."""
    for body in bodies:
        channel.basic_publish('', queue, body, pika.BasicProperties(**properties))


def bodies(channel: BlockingChannel, queue: str) -> list[bytes]:
    """Take everything out of a queue."""
    taken = []
    while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
        taken.append(message[2])
    return taken


def message_count(channel: BlockingChannel, queue: str) -> int:
    """Return how many messages are ready in a queue."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def await_message(channel: BlockingChannel, queue: str, auto_ack: bool = True) -> tuple[Any, Any, bytes]:
    """Take a message out of a queue, to which it comes in its own time."""
    taken: list[tuple[Any, Any, bytes]] = []

    def came() -> bool:
        method, properties, body = channel.basic_get(queue, auto_ack=auto_ack)
        if method is not None:
            taken.append((method, properties, body))
        return bool(taken)

    wait_until(channel.connection, came)
    return taken[0]


class Reader:
    """A consumer that remembers its deliveries."""

    def __init__(self, channel: BlockingChannel, queue: str, **arguments: Any) -> None:
        self.deliveries: list[Any] = []
        self.bodies: list[bytes] = []
        self.channel = channel
        self.tag = channel.basic_consume(queue, self._receive, **arguments)

    def _receive(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.deliveries.append(method)
        self.bodies.append(body)

    def wait_for(self, count: int) -> list[bytes]:
        """Wait until that many messages have come, and return them."""
        wait_until(self.channel.connection, lambda: len(self.bodies) >= count)
        return self.bodies


# Frames


def raw_frame(kind: int, channel: int, payload: bytes, end: bytes = b'\xce') -> bytes:
    """Return a frame, well formed or not."""
    return struct.pack('>BHI', kind, channel, len(payload)) + payload + end


def method_frame(channel: int, method: Any) -> bytes:
    """Return a method as a frame."""
    return frame.Method(channel, method).marshal()


def content_frames(channel: int, publish: spec.Basic.Publish, properties: pika.BasicProperties, body: bytes) -> bytes:
    """Return a message as frames; the body has to fit into one."""
    header = frame.Header(channel, len(body), properties).marshal()
    return method_frame(channel, publish) + header + (frame.Body(channel, body).marshal() if body else b'')


class RawClient:
    """A client that reads and writes frames one by one."""

    def __init__(self, broker: Broker) -> None:
        self._socket = socket.create_connection((broker.host, broker.port), timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b''

    def set_timeout(self, seconds: float) -> None:
        """Wait no longer than that for bytes."""
        self._socket.settimeout(seconds)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send_method(self, channel: int, method: Any) -> None:
        self.send(method_frame(channel, method))

    def read(self) -> Any:
        """Return the next frame, or ``None`` once the broker has hung up."""
        while True:
            size, found = frame.decode_frame(self._received)
            if found is not None:
                self._received = self._received[size:]
                return found
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b''
            if not data:
                return None
            self._received += data

    def open(self, broker: Broker, heartbeat: int = 0, capabilities: dict[str, Any] | None = None) -> None:
        """Shake hands, up to an open connection."""
        self.send(PROTOCOL_HEADER)
        assert self.read().method.NAME == 'Connection.Start'
        properties = {'capabilities': capabilities or {}}
        self.send_method(0, spec.Connection.StartOk(properties, 'PLAIN', '\0guest\0guest', 'en_US'))
        tune = self.read().method
        self.send_method(0, spec.Connection.TuneOk(tune.channel_max, tune.frame_max, heartbeat))
        self.send_method(0, spec.Connection.Open(broker.vhost))
        assert self.read().method.NAME == 'Connection.OpenOk'

    def close(self) -> None:
        self._socket.close()
