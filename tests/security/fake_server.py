"""A server that speaks AMQP as far as it likes, and then misbehaves. One thread for each of its connections."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any

import pika.frame
from pika import spec

END = b'\xce'


class Gone(Exception):
    """The client has ended its connection."""


class Peer:
    """One connection of a client to the fake server.

    :param seconds: how long a flood lasts
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.sock = sock
        self._seconds = seconds
        self._received = b''

    # Out

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Gone from error

    def frame(self, kind: int, channel: int, payload: bytes, size: int | None = None, end: bytes = END) -> None:
        self.send(struct.pack('>BHI', kind, channel, len(payload) if size is None else size) + payload + end)

    def method(self, channel: int, method: Any) -> None:
        self.send(pika.frame.Method(channel, method).marshal())

    def flood(self, data: bytes) -> None:
        """Send the same over and over, until the client goes, or for a while."""
        block = data * max(1, 65536 // len(data))
        deadline = threading.Event()
        timer = threading.Timer(self._seconds, deadline.set)
        timer.start()
        try:
            while not deadline.is_set():
                self.send(block)
        finally:
            timer.cancel()
            timer.join()

    # In

    def read(self) -> Any:
        """The next frame that the client sends."""
        while True:
            if self._received.startswith(b'AMQP'):
                self._received = self._received[8:]
            taken, found = pika.frame.decode_frame(self._received)
            if taken:
                self._received = self._received[taken:]
                return found
            try:
                more = self.sock.recv(65536)
            except OSError as error:
                raise Gone from error
            if not more:
                raise Gone
            self._received += more

    def await_client(self) -> None:
        while len(self._received) < 8:
            more = self.sock.recv(65536)
            if not more:
                raise Gone
            self._received += more

    # The usual conversation

    def start(self, **changes: Any) -> None:
        self.await_client()
        able = dict.fromkeys(('publisher_confirms', 'basic.nack', 'consumer_cancel_notify', 'connection.blocked'), True)
        given = {
            'server_properties': {'product': 'fake', 'capabilities': able},
            'mechanisms': 'PLAIN',
            'locales': 'en_US',
            **changes,
        }
        self.method(0, spec.Connection.Start(0, 9, **given))

    def log_in(self, frame_max: int = 131_072) -> None:
        """Take the client up to its open connection."""
        self.start()
        while True:
            method = getattr(self.read(), 'method', None)
            if isinstance(method, spec.Connection.StartOk):
                self.method(0, spec.Connection.Tune(channel_max=100, frame_max=frame_max, heartbeat=0))
            elif isinstance(method, spec.Connection.Open):
                self.method(0, spec.Connection.OpenOk())
                return

    def serve(self, until: type | None = None) -> Any:
        """Answer whatever the client asks for, until it asks for, or sends, that."""
        while True:
            found = self.read()
            method = getattr(found, 'method', None)
            if method is None:
                continue
            if isinstance(method, spec.Basic.Publish):
                if until is spec.Basic.Publish:
                    return found
                continue
            if not method.synchronous:
                continue
            answer = spec.methods[method.INDEX + 1]()
            if isinstance(answer, spec.Queue.DeclareOk):
                answer.queue, answer.message_count, answer.consumer_count = method.queue, 0, 0
            elif isinstance(answer, (spec.Basic.ConsumeOk, spec.Basic.CancelOk)):
                answer.consumer_tag = method.consumer_tag
            self.method(found.channel_number, answer)
            if until is not None and isinstance(method, until):
                return found

    def consumer(self, frame_max: int = 131_072) -> tuple[int, str]:
        """Take the client up to its first consumer. Returns the channel and the consumer's tag."""
        self.log_in(frame_max)
        found = self.serve(spec.Basic.Consume)
        return found.channel_number, found.method.consumer_tag

    def deliver(self, channel: int, tag: str, size: int) -> None:
        """Announce a message with a body of that size."""
        self.method(channel, spec.Basic.Deliver(tag, 1, False, 'e', 'k'))
        self.frame(2, channel, struct.pack('>HHQH', 60, 0, size, 0))


class FakeServer:
    """Listens on a port of its own, and has each client treated as it is told to.

    :param misbehave: what to do to a client
    :param flood: seconds for which it is flooded, where that is what is done
    :param tls: how it shows who it is, where it does
    :ivar connections: how many there were
    """

    def __init__(self, misbehave: Callable[[Peer], object], flood: float, tls: ssl.SSLContext | None = None) -> None:
        self._misbehave = misbehave
        self._tls = tls
        self._flood = flood
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        scheme, host = ('amqp', '127.0.0.1') if tls is None else ('amqps', 'localhost')
        self.url = f'{scheme}://guest:guest@{host}:{self.port}/'
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_over = False
        self._acceptor = threading.Thread(target=self._accept, name='fake-server', daemon=True)
        self._acceptor.start()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(5)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self._open.add(sock)
                self._threads.append(threading.Thread(target=self._treat, args=(sock,), daemon=True))
                self._threads[-1].start()

    def _treat(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(Gone, OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._open.add(sock)
            with sock:
                self._misbehave(Peer(sock, self._flood))
        self._open.discard(sock)


# Misbehaviours, by what they are: before the client is logged in


def silent(peer: Peer) -> None:
    peer.await_client()


def garbage(peer: Peer) -> None:
    peer.await_client()
    peer.flood(bytes(range(250, 256)) * 40)


def web_server(peer: Peer) -> None:
    peer.await_client()
    peer.flood(b'HTTP/1.1 400 Bad Request\r\n\r\n')


def other_version(peer: Peer) -> None:
    peer.await_client()
    peer.send(b'AMQP\x03\x01\0\0')


def begins_like_a_version(peer: Peer) -> None:
    peer.await_client()
    peer.flood(b'A' * 1000)


def huge_first_frame(peer: Peer) -> None:
    peer.await_client()
    peer.send(struct.pack('>BHI', 1, 0, 2**32 - 1))
    peer.flood(b'\0' * 4096)


def no_end_marker(peer: Peer) -> None:
    peer.await_client()
    peer.frame(1, 0, struct.pack('>I', (10 << 16) | 10) + b'\0\x09' + b'\0' * 12, end=b'\0')


def unknown_kind(peer: Peer) -> None:
    peer.await_client()
    peer.frame(77, 0, b'what?')


def unknown_method(peer: Peer) -> None:
    peer.await_client()
    peer.frame(1, 0, struct.pack('>HH', 999, 999))


def empty_method(peer: Peer) -> None:
    peer.await_client()
    peer.frame(1, 0, b'')


def cut_short_method(peer: Peer) -> None:
    peer.await_client()
    peer.frame(1, 0, struct.pack('>HHBB', 10, 10, 0, 9) + struct.pack('>I', 10_000))


def deep_server_properties(peer: Peer) -> None:
    peer.await_client()
    table = b'\0\0\0\0'
    for _ in range(5000):
        table = struct.pack('>I', len(table) + 3) + b'\x01nF' + table
    peer.frame(1, 0, struct.pack('>HHBB', 10, 10, 0, 9) + table + struct.pack('>I', 5) + b'PLAIN' + b'\0\0\0\0')


def tune_at_once(peer: Peer) -> None:
    peer.await_client()
    peer.method(0, spec.Connection.Tune(channel_max=1, frame_max=131_072, heartbeat=0))
    peer.method(0, spec.Connection.OpenOk())


def no_mechanism(peer: Peer) -> None:
    peer.start(mechanisms='NOTHING')
    peer.serve()


def heartbeats_without_end(peer: Peer) -> None:
    peer.await_client()
    peer.flood(b'\x08\0\0\0\0\0\0' + END)


def body_before_login(peer: Peer) -> None:
    peer.await_client()
    peer.frame(2, 5, struct.pack('>HHQH', 60, 0, 2**50, 0))
    peer.frame(3, 5, b'x' * 1000)


def refusal_with_escapes(peer: Peer) -> None:
    peer.start()
    peer.read()
    peer.method(0, spec.Connection.Close(541, '\x1b[31mred\x9b\u202e\nanother line', 0, 0))


# When it has logged in


def closes_at_once(peer: Peer) -> None:
    peer.log_in()
    peer.method(0, spec.Connection.Close(541, '\x1b]0;title\x07 and\nmore', 0, 0))


def frame_over_the_agreement(peer: Peer) -> None:
    channel, tag = peer.consumer(frame_max=8192)
    peer.deliver(channel, tag, 100_000)
    peer.frame(3, channel, b'x' * 50_000)


def endless_frame(peer: Peer) -> None:
    channel, tag = peer.consumer()
    peer.deliver(channel, tag, 10)
    peer.send(struct.pack('>BHI', 3, channel, 2**31))
    peer.flood(b'x' * 65536)


def body_of_a_petabyte(peer: Peer) -> None:
    channel, tag = peer.consumer()
    peer.deliver(channel, tag, 2**50)
    peer.flood(b'x' * 65536)


def body_over_the_limit(peer: Peer) -> None:
    channel, tag = peer.consumer()
    peer.deliver(channel, tag, 200 * 2**20)
    piece = struct.pack('>BHI', 3, channel, 65536) + b'x' * 65536 + END
    for _ in range(200 * 16):
        peer.send(piece)
    peer.serve()


def cut_short_delivery(peer: Peer) -> None:
    channel, _ = peer.consumer()
    peer.frame(1, channel, struct.pack('>HHB', 60, 60, 200) + b'x')


def cut_short_header(peer: Peer) -> None:
    channel, tag = peer.consumer()
    peer.method(channel, spec.Basic.Deliver(tag, 1, False, 'e', 'k'))
    peer.frame(2, channel, b'\0\x3c')


def body_longer_than_announced(peer: Peer) -> None:
    channel, tag = peer.consumer()
    peer.deliver(channel, tag, 10)
    peer.frame(3, channel, b'x' * 11)


def body_without_a_message(peer: Peer) -> None:
    channel, _ = peer.consumer()
    peer.frame(3, channel, b'x')


def pieces_of_one_byte(peer: Peer) -> None:
    channel, tag = peer.consumer()
    peer.deliver(channel, tag, 2**26)
    peer.flood(struct.pack('>BHI', 3, channel, 1) + b'x' + END)


def pieces_of_no_byte(peer: Peer) -> None:
    channel, tag = peer.consumer()
    peer.deliver(channel, tag, 10)
    peer.flood(struct.pack('>BHI', 3, channel, 0) + END)


def deliveries_without_end(peer: Peer) -> None:
    channel, tag = peer.consumer()
    one = pika.frame.Method(channel, spec.Basic.Deliver(tag, 1, False, 'e', 'k')).marshal()
    one += struct.pack('>BHI', 2, channel, 14) + struct.pack('>HHQH', 60, 0, 0, 0) + END
    peer.flood(one)


def unknown_channel(peer: Peer) -> None:
    peer.consumer()
    peer.flood(pika.frame.Method(99, spec.Basic.Deliver('t', 1, False, 'e', 'k')).marshal())


def protocol_header_later(peer: Peer) -> None:
    peer.consumer()
    peer.send(b'AMQP\0\0\x09\x01')
    peer.serve()


def unknown_method_later(peer: Peer) -> None:
    channel, _ = peer.consumer()
    peer.frame(1, channel, struct.pack('>HH', 60, 199))


def blocked_and_unblocked(peer: Peer) -> None:
    peer.log_in()
    pair = spec.Connection.Blocked('\x1b[2J' + 'memory'), spec.Connection.Unblocked()
    peer.flood(b''.join(pika.frame.Method(0, method).marshal() for method in pair))
    peer.serve()


def returns_without_end(peer: Peer) -> None:
    channel, _ = peer.consumer()
    one = pika.frame.Method(channel, spec.Basic.Return(312, 'NO\x1b[1mROUTE', 'e\x9b', 'k\n')).marshal()
    one += struct.pack('>BHI', 2, channel, 14) + struct.pack('>HHQH', 60, 0, 0, 0) + END
    peer.flood(one)
    peer.serve()


def confirms_of_nothing(peer: Peer) -> None:
    channel, _ = peer.consumer()
    peer.flood(pika.frame.Method(channel, spec.Basic.Ack(2**64 - 1, True)).marshal())
    peer.serve()


def channel_closed_again_and_again(peer: Peer) -> None:
    peer.log_in()
    while True:
        found = peer.serve(spec.Basic.Consume)
        peer.method(found.channel_number, spec.Channel.Close(541, 'no\x1b[7m', 60, 20))


def consumer_cancelled_again_and_again(peer: Peer) -> None:
    peer.log_in()
    while True:
        found = peer.serve(spec.Basic.Consume)
        peer.method(found.channel_number, spec.Basic.Cancel(found.method.consumer_tag, True))


def flood_of_answers(peer: Peer) -> None:
    channel, _ = peer.consumer()
    peer.flood(pika.frame.Method(channel, spec.Channel.FlowOk(True)).marshal())


def hangs_up_after_login(peer: Peer) -> None:
    peer.log_in()


def hangs_up_when_it_consumes(peer: Peer) -> None:
    peer.consumer()


BEFORE_LOGIN: dict[Callable[[Peer], None], str] = {
    silent: 'EOF|reset|closed',
    garbage: 'frame of the unknown type 250 of .* bytes',
    web_server: 'frame of the unknown type 72 of .* bytes',
    other_version: 'the protocol header of AMQP 1.0.0, for it speaks no 0-9-1',
    begins_like_a_version: 'frame of the unknown type 65 of .* bytes',
    huge_first_frame: 'a method frame of 4,294,967,295 bytes on channel 0, where a frame may have 131,072',
    no_end_marker: 'a method frame of 18 bytes on channel 0 without its end marker',
    unknown_kind: 'a frame of the unknown type 77 of 5 bytes on channel 0 cannot be read',
    unknown_method: 'a method frame of 4 bytes on channel 0 cannot be read',
    empty_method: 'a method frame of 0 bytes on channel 0 cannot be read',
    cut_short_method: 'a method frame of 10 bytes on channel 0 cannot be read',
    deep_server_properties: 'a method frame of .* bytes on channel 0 cannot be read',
    tune_at_once: 'a method frame of .* cannot be read|Unexpected|EOF|reset|closed',
    no_mechanism: 'mechanism|Authentication|authentication',
    heartbeats_without_end: '.',
    body_before_login: 'a content header of 14 bytes on channel 5 cannot be read: a message of .* bytes is announced',
    refusal_with_escapes: r'\\x1b\[31mred\\x9b\\u202e\\nanother line',
}
"""What an attempt to connect fails with, as a regular expression."""

AFTER_LOGIN: dict[Callable[[Peer], None], str] = {
    closes_at_once: r'\\x1b\]0;title\\x07 and\\nmore \(541\)',
    frame_over_the_agreement: 'a body frame of 50,000 bytes on channel . cannot be read|a body frame of 50,000 bytes',
    endless_frame: 'a body frame of 2,147,483,648 bytes on channel ., where a frame may have 131,072',
    body_of_a_petabyte: 'a content header of 14 bytes on channel . cannot be read: a message of 1,125,899,906,842,624',
    body_over_the_limit: 'is rejected: its body is larger than POSTAGE_MAX_BODY allows',
    cut_short_delivery: 'a method frame of 6 bytes on channel . cannot be read',
    cut_short_header: 'a content header of 2 bytes on channel . cannot be read',
    body_longer_than_announced: 'the body of a message is 1 bytes longer than was announced',
    body_without_a_message: 'a body frame of 1 bytes on channel . cannot be read',
    pieces_of_one_byte: '.',
    pieces_of_no_byte: '.',
    deliveries_without_end: 'deliveries, where .* were asked for',
    unknown_channel: '.',
    protocol_header_later: '.',
    unknown_method_later: 'a method frame of 4 bytes on channel . cannot be read',
    blocked_and_unblocked: r'takes no messages at present: \\x1b\[2Jmemory',
    returns_without_end: '.',
    confirms_of_nothing: '.',
    channel_closed_again_and_again: r'no\\x1b\[7m \(541\)',
    consumer_cancelled_again_and_again: 'went away, or the broker ended its consumer',
    flood_of_answers: '.',
    hangs_up_after_login: 'was lost',
    hangs_up_when_it_consumes: 'was lost',
}
"""What the log says of it, as a regular expression."""


# Whatever a seed gives


TEXTS = ('', 'x', '\x1b[31m\n\u202e', 'q' * 255)
SIZES = (0, 1, 10, 5000, 131_072, 2**31, 2**32 - 1)


def drawn(numbers: random.Random) -> Callable[[Peer], None]:
    """A server that takes its client as far as it likes, and sends it things that it draws."""
    stage, count, stays = numbers.randrange(4), numbers.randint(1, 8), numbers.random() < 0.5

    def misbehave(peer: Peer) -> None:
        channel, tag = 0, 'none'
        if stage == 0:
            peer.await_client()
        elif stage == 1:
            peer.start()
        elif stage == 2:
            peer.log_in()
            channel = 1
        else:
            channel, tag = peer.consumer()
        for _ in range(count):
            peer.send(numbers.choice(DRAWN)(numbers, channel, tag))
        if stays:
            peer.serve()

    return misbehave


def _noise(numbers: random.Random, channel: int, tag: str) -> bytes:
    return numbers.randbytes(numbers.randint(1, 64))


def _liar(numbers: random.Random, channel: int, tag: str) -> bytes:
    """A frame whose kind, channel, size or end is not what it should be."""
    head = numbers.choice((1, 2, 3, 8, 99)), numbers.choice((0, channel, 7, 65535)), numbers.choice(SIZES)
    return struct.pack('>BHI', *head) + numbers.randbytes(numbers.randint(0, 30)) + numbers.choice((END, b'', b'\0'))


def _method(numbers: random.Random, channel: int, tag: str) -> bytes:
    """Any method, with any arguments, whole or cut short."""
    kind = numbers.choice(list(spec.methods.values()))
    try:
        method = kind()
        for name, value in list(vars(method).items()):
            if isinstance(value, str) or value is None:
                setattr(method, name, numbers.choice((*TEXTS, tag)))
            elif isinstance(value, int) and not isinstance(value, bool):
                setattr(method, name, numbers.choice((0, 1, 255)))
        data: bytes = pika.frame.Method(numbers.choice((0, channel)), method).marshal()
    except Exception:  # it needs other arguments than text
        return _noise(numbers, channel, tag)
    return data if numbers.random() < 0.7 else data[: numbers.randrange(len(data))]


def _message(numbers: random.Random, channel: int, tag: str) -> bytes:
    """A delivery that is not what it announces."""
    deliver = spec.Basic.Deliver(tag, numbers.choice((0, 1, 2**63)), True, 'e', 'k')
    data: bytes = pika.frame.Method(channel, deliver).marshal()
    size = numbers.choice((0, 5, 2**20, 2**40, 2**63))
    header = struct.pack('>HHQH', 60, 0, size, numbers.choice((0, 0, 1 << 13, 0xFFFC)))
    data += struct.pack('>BHI', 2, channel, len(header)) + header + END
    body = numbers.randbytes(numbers.choice((0, 4, 5, 6)))
    return data + struct.pack('>BHI', 3, channel, len(body)) + body + END


DRAWN = (_noise, _liar, _method, _method, _message, _message)
