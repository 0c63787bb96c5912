"""Clients that mean harm to the embedded broker: functions that get a :class:`Hostile`, and draw from its numbers."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

import pika
from pika import spec

from support.channels import PROTOCOL_HEADER, content_frames, method_frame, raw_frame

TIMEOUT = 2.0  # seconds that a hostile client waits for room to write


class Hostile:
    """A socket to the broker, and what it takes to misbehave on it.

    :param numbers: what is drawn comes from here
    :param address: of this end, on the loopback interface
    """

    def __init__(self, port: int, numbers: random.Random, address: str = '127.0.0.1') -> None:
        self.numbers = numbers
        self.port = port
        self.sock = socket.create_connection(('127.0.0.1', port), timeout=TIMEOUT, source_address=(address, 0))

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def method(self, method: Any, channel: int = 1) -> None:
        self.send(method_frame(channel, method))

    def publish(self, key: str, body: bytes, channel: int = 1, **flags: Any) -> None:
        self.send(content_frames(channel, spec.Basic.Publish(routing_key=key, **flags), pika.BasicProperties(), body))

    def start(self, user: str = 'guest', password: str = 'guest') -> None:
        self.send(PROTOCOL_HEADER)
        self.method(spec.Connection.StartOk({'capabilities': {}}, 'PLAIN', f'\0{user}\0{password}', 'en_US'), 0)

    def open(self, channels: int = 1, frame_max: int = 131_072) -> None:
        self.start()
        self.method(spec.Connection.TuneOk(2047, frame_max, 0), 0)
        self.method(spec.Connection.Open('/'), 0)
        for channel in range(1, channels + 1):
            self.method(spec.Channel.Open(), channel)

    def queue(self) -> str:
        """Declare a queue that goes with this connection."""
        name = f'hostile-{self.numbers.randrange(10**9)}'
        self.method(spec.Queue.Declare(queue=name, exclusive=True))
        return name

    def close(self) -> None:
        if self.numbers.random() < 0.3:
            # With a reset.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.sock.close()


def header(size: int, flags: int = 0, properties: bytes = b'') -> bytes:
    return struct.pack('>HHQH', 60, 0, size, flags) + properties


# Before the login


def garbage(client: Hostile) -> None:
    client.send(client.numbers.randbytes(client.numbers.randrange(1, 5000)))


def other_protocol(client: Hostile) -> None:
    client.send(client.numbers.choice((b'GET / HTTP/1.1\r\n\r\n', b'\x16\x03\x01\x02\0', b'AMQP\x03\x01\0\0', b'AMQP')))


def silence(client: Hostile) -> None:
    if client.numbers.random() < 0.5:
        client.send(PROTOCOL_HEADER)


def half_a_handshake(client: Hostile) -> None:
    client.start()
    if client.numbers.random() < 0.5:
        client.method(spec.Connection.TuneOk(2047, 131_072, 0), 0)


def wrong_order(client: Hostile) -> None:
    client.send(PROTOCOL_HEADER)
    steps: list[Any] = [
        spec.Connection.StartOk({}, 'PLAIN', '\0guest\0guest', 'en_US'),
        spec.Connection.TuneOk(2047, 131_072, 0),
        spec.Connection.Open('/'),
        spec.Connection.CloseOk(),
        spec.Connection.Tune(0, 0, 0),
        spec.Channel.Open(),
    ]
    client.numbers.shuffle(steps)
    for step in steps:
        client.method(step, client.numbers.choice((0, 0, 1)))


def huge_start(client: Hostile) -> None:
    """Properties larger than a frame may be before the login."""
    client.send(PROTOCOL_HEADER)
    client.method(spec.Connection.StartOk({'x': 'y' * 100_000}, 'PLAIN', '\0guest\0guest', 'en_US'), 0)


def huge_frame(client: Hostile) -> None:
    if client.numbers.random() < 0.5:
        client.open()
    else:
        client.send(PROTOCOL_HEADER)
    client.send(struct.pack('>BHI', client.numbers.choice((1, 2, 3, 8)), 1, client.numbers.choice((2**32 - 1, 2**31))))
    with contextlib.suppress(OSError):
        client.send(bytes(300_000))


def senseless_tune(client: Hostile) -> None:
    client.start()
    sizes = client.numbers.choice(((0, 0), (65535, 2**32 - 1), (1, 1), (0, 131_072), (2047, 4)))
    client.method(spec.Connection.TuneOk(*sizes, client.numbers.choice((0, 1, 65535))), 0)
    client.method(spec.Connection.Open('/'), 0)


def wrong_passwords(client: Hostile) -> None:
    client.start(client.numbers.choice(('guest', 'root', '\u00e9', 'x' * 200)), 'guess')


def slow_words(client: Hostile) -> None:
    """A byte at a time, and never to the end."""
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in PROTOCOL_HEADER + method_frame(1, spec.Channel.Open())[:3]:
        client.send(bytes((byte,)))


# After it


def cut_frame(client: Hostile) -> None:
    client.open()
    whole = content_frames(1, spec.Basic.Publish(routing_key=client.queue()), pika.BasicProperties(), bytes(5000))
    client.send(whole[: client.numbers.randrange(1, len(whole))])


def wrong_end(client: Hostile) -> None:
    client.open()
    client.send(raw_frame(client.numbers.choice((1, 2, 3, 8, 77)), 1, client.numbers.randbytes(40), end=b'\0'))


def unknown_methods(client: Hostile) -> None:
    client.open(channels=3)
    for _ in range(5):
        index = struct.pack('>HH', client.numbers.randrange(200), client.numbers.randrange(200))
        client.send(raw_frame(1, client.numbers.randrange(4), index + client.numbers.randbytes(30)))


def broken_methods(client: Hostile) -> None:
    client.open(channels=4)
    for _ in range(5):
        index = client.numbers.choice(list(spec.methods))
        client.send(raw_frame(1, client.numbers.randrange(5), struct.pack('>I', index) + client.numbers.randbytes(60)))


def content_out_of_order(client: Hostile) -> None:
    client.open()
    frames = [
        method_frame(1, spec.Basic.Publish(routing_key='x')),
        raw_frame(2, 1, header(10)),
        raw_frame(3, 1, b'12345'),
        raw_frame(3, 1, bytes(200)),
    ]
    client.numbers.shuffle(frames)
    client.send(b''.join(frames))


def huge_body(client: Hostile) -> None:
    client.open()
    client.method(spec.Basic.Publish(routing_key=client.queue()))
    client.send(raw_frame(2, 1, header(client.numbers.choice((2**64 - 1, 2**63, 10**9)))))
    client.send(raw_frame(3, 1, bytes(100_000)))


def broken_properties(client: Hostile) -> None:
    client.open()
    client.method(spec.Basic.Publish(routing_key=client.queue()))
    client.send(raw_frame(2, 1, header(0, client.numbers.randrange(0x10000), client.numbers.randbytes(80))))


def deep_tables(client: Hostile) -> None:
    client.open()
    table = b'\0\0\0\0'
    for _ in range(1500):
        entry = b'\x01dF' + table
        table = struct.pack('>I', len(entry)) + entry
    queue = client.queue().encode()
    declare = struct.pack('>IHB', spec.Queue.Declare.INDEX, 0, len(queue)) + queue + b'\0' + table
    client.send(raw_frame(1, 1, declare))
    client.method(spec.Channel.Open(), 2)
    client.method(spec.Basic.Publish(routing_key=queue.decode()), 2)
    client.send(raw_frame(2, 2, header(0, 0x2000, table)))


def many_channels(client: Hostile) -> None:
    client.open(channels=client.numbers.choice((300, 2100)))


def closes_that_are_not_answered(client: Hostile) -> None:
    client.open(channels=50)
    for channel in range(1, 51):
        client.method(spec.Queue.Declare(queue='missing', passive=True), channel)


def many_declarations(client: Hostile) -> None:
    client.open(channels=300)
    for channel in range(1, 301):
        client.method(spec.Queue.Declare(exclusive=True), channel)
        client.method(spec.Queue.Bind(exchange='amq.topic', routing_key='#.#.*.#'), channel)
        client.method(spec.Basic.Consume(), channel)


def large_arguments(client: Hostile) -> None:
    client.open()
    for _ in range(20):
        client.method(spec.Queue.Declare(exclusive=True, arguments={'x': 'y' * 15_000}))


def strange_names(client: Hostile) -> None:
    client.open(channels=9)
    for channel in range(1, 9):
        name = client.numbers.randbytes(200)
        client.send(
            raw_frame(1, channel, struct.pack('>IHB', spec.Queue.Declare.INDEX, 0, 200) + name + b'\x08\0\0\0\0')
        )


def costly_patterns(client: Hostile) -> None:
    client.open()
    queue = client.queue()
    for number in range(20):
        pattern = '.'.join(('#', '*', 'a') * 20) + f'.{number}'
        client.method(spec.Queue.Bind(queue=queue, exchange='amq.topic', routing_key=pattern))
    for _ in range(20):
        client.publish('.'.join('a' * 100), b'', exchange='amq.topic')


def bodies_that_never_end(client: Hostile) -> None:
    client.open(channels=20)
    for channel in range(1, 21):
        client.method(spec.Basic.Publish(routing_key='x'), channel)
        client.send(raw_frame(2, channel, header(10_000_000)) + raw_frame(3, channel, bytes(50_000)))


def answers_that_are_not_read(client: Hostile) -> None:
    client.open()
    queue = client.queue()
    client.publish(queue, bytes(100_000))
    ask = method_frame(1, spec.Basic.Get(queue=queue)) + method_frame(1, spec.Basic.Nack(0, multiple=True))
    with contextlib.suppress(OSError):
        for _ in range(30):
            client.send(ask * 10)


def returns_that_are_not_read(client: Hostile) -> None:
    client.open()
    with contextlib.suppress(OSError):
        for _ in range(60):
            client.publish('nowhere', bytes(50_000), mandatory=True)


def replies_that_are_not_read(client: Hostile) -> None:
    client.open()
    client.method(spec.Basic.Consume(queue='amq.rabbitmq.reply-to', no_ack=True))
    client.send(
        content_frames(
            1, spec.Basic.Publish(routing_key='x'), pika.BasicProperties(reply_to='amq.rabbitmq.reply-to'), b'x'
        )
    )
    with contextlib.suppress(OSError):
        for _ in range(30):
            client.publish('amq.rabbitmq.reply-to', bytes(20_000))


def endless_transactions(client: Hostile) -> None:
    client.open()
    queue = client.queue()
    client.method(spec.Tx.Select())
    with contextlib.suppress(OSError):
        for _ in range(100):
            client.publish(queue, bytes(10_000))


def dead_letters_in_a_circle(client: Hostile) -> None:
    client.open()
    names = [f'circle-{client.numbers.randrange(10**9)}-{number}' for number in range(5)]
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        arguments = {'x-message-ttl': 0, 'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': following}
        client.method(spec.Queue.Declare(queue=name, exclusive=True, arguments=arguments))
    for _ in range(50):
        client.publish(names[0], b'round')


def heartbeats_and_acknowledgements(client: Hostile) -> None:
    client.open()
    client.send(raw_frame(8, 0, b'') * 2000)
    client.send(raw_frame(8, client.numbers.choice((0, 1)), client.numbers.choice((b'', b'x'))))
    client.method(spec.Basic.Ack(client.numbers.randrange(2**63), multiple=True))


CLIENTS: dict[str, Callable[[Hostile], None]] = {
    name: found
    for name, found in list(globals().items())
    if callable(found) and getattr(found, '__module__', '') == __name__ and name not in ('Hostile', 'header')
}
