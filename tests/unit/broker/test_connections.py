"""Connections without sockets: bytes in, bytes out, whatever the bytes are."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika import spec

from postage.broker.connection import HANDSHAKE_SECONDS
from postage.broker.node import Node
from support.broker_client import Client
from support.channels import PROTOCOL_HEADER, content_frames, method_frame, raw_frame
from support.soak import IS_SOAK

HOSTILE_INPUTS = 20_000 if IS_SOAK else 2000


@pytest.fixture
def node() -> Node:
    return Node({'guest': 'guest'})


def names(methods: list[Any]) -> list[str]:
    return [each.NAME for each in methods]


# The life of a connection


def test_a_whole_session_may_come_in_one_piece_or_byte_by_byte(node: Node) -> None:
    session = (
        PROTOCOL_HEADER
        + Client(node).handshake()
        + method_frame(1, spec.Channel.Open())
        + method_frame(1, spec.Queue.Declare(queue='q', exclusive=True))
        + content_frames(1, spec.Basic.Publish(routing_key='q'), pika.BasicProperties(type='t'), b'body')
        + method_frame(1, spec.Basic.Get(queue='q', no_ack=True))
        + method_frame(0, spec.Connection.Close(200, 'bye', 0, 0))
    )
    answers = []
    for step in (len(session), 1):
        client = Client(node)
        for start in range(0, len(session), step):
            client.send(session[start : start + step])
        answers.append(client.read())
        assert client.connection.finished
    assert names(answers[0])[-4:] == ['Basic.GetOk', 'Header', 'Body', 'Connection.CloseOk']
    assert answers[0] == answers[1]


def test_a_client_that_never_opens_a_connection_is_dropped(node: Node) -> None:
    client = Client(node)
    client.send(PROTOCOL_HEADER)
    node.shared.transport_clock.advance(HANDSHAKE_SECONDS + 1)
    assert client.connection.finished
    assert not node.connections


def test_a_client_that_does_not_answer_a_close_is_dropped(node: Node) -> None:
    client = Client(node).open()
    client.connection.close(320, 'CONNECTION_FORCED - test')
    assert not client.connection.finished
    node.shared.transport_clock.advance(60)
    assert client.connection.finished


def test_no_timer_outlives_a_connection(node: Node) -> None:
    Client(node).open(heartbeat=10).connection.lost()
    assert node.shared.transport_clock.seconds_to_next() is None


def test_a_silent_client_is_dropped_and_an_idle_one_gets_heartbeats(node: Node) -> None:
    client = Client(node).open(heartbeat=10)
    for _ in range(10):
        node.shared.transport_clock.advance(6)
        client.send(raw_frame(8, 0, b''))
    assert set(names(client.read())) == {'Heartbeat'}
    node.shared.transport_clock.advance(30)
    assert client.connection.finished


# Slow readers, and readers that are held


def flooded(node: Node) -> tuple[Client, Client]:
    """A client that consumes, and another that fills its queue with far more than is sent at once."""
    reader, writer = Client(node).open(), Client(node).open()
    reader.ask(spec.Queue.Declare(queue='q'))
    for _ in range(100):
        writer.send(content_frames(1, spec.Basic.Publish(routing_key='q'), pika.BasicProperties(), bytes(60_000)))
    reader.send(method_frame(1, spec.Basic.Consume(queue='q', no_ack=True)))
    return reader, writer


def test_a_reader_that_is_slow_is_not_sent_everything_at_once(node: Node) -> None:
    reader, _ = flooded(node)
    assert len(reader.connection.data_to_send()) < 1_000_000


def test_a_reader_that_catches_up_gets_everything(node: Node) -> None:
    reader, _ = flooded(node)
    received = 0
    while data := reader.connection.data_to_send():
        received += data.count(bytes(60_000))
        reader.connection.data_sent(len(data))
    assert received == 100


def test_a_client_that_asks_and_never_reads_is_not_read_any_more(node: Node) -> None:
    client = Client(node).open()
    client.send(method_frame(1, spec.Queue.Declare(queue='q')))
    client.send(content_frames(1, spec.Basic.Publish(routing_key='q'), pika.BasicProperties(), bytes(100_000)))
    for _ in range(100):
        client.send(method_frame(1, spec.Basic.Get(queue='q')) + method_frame(1, spec.Basic.Nack(0, multiple=True)))
    assert not client.connection.wants_data
    while client.read():
        pass
    assert client.connection.wants_data


def test_what_a_client_does_not_read_is_bounded(node: Node) -> None:
    client = Client(node).open()
    client.send(method_frame(1, spec.Queue.Declare(queue='q')))
    client.send(content_frames(1, spec.Basic.Publish(routing_key='q'), pika.BasicProperties(), bytes(100_000)))
    asked = 0
    # Whoever moves the bytes reads a client only while that is wanted.
    while client.connection.wants_data and asked < 10_000:
        client.send(method_frame(1, spec.Basic.Get(queue='q')) + method_frame(1, spec.Basic.Nack(0, multiple=True)))
        asked += 1
    assert asked < 10_000
    assert client.connection.output.unsent < 3_000_000


def test_under_an_alarm_a_publisher_is_told_and_held_until_it_is_over(node: Node) -> None:
    publisher, other = Client(node, **{'connection.blocked': True}).open(), Client(node).open()
    other.ask(spec.Queue.Declare(queue='q'))
    node.block('low on memory')
    assert publisher.read() == []
    publisher.send(content_frames(1, spec.Basic.Publish(routing_key='q'), pika.BasicProperties(), b'x'))
    assert names(publisher.read()) == ['Connection.Blocked']
    assert not publisher.connection.wants_data
    assert other.ask(spec.Queue.Declare(queue='q', passive=True)).message_count == 0
    node.unblock()
    assert names(publisher.read()) == ['Connection.Unblocked']
    assert publisher.connection.wants_data
    assert other.ask(spec.Queue.Declare(queue='q', passive=True)).message_count == 1


# Messages that a codec chokes on


def nested(depth: int) -> bytes:
    table = b'\x00\x00\x00\x00'
    for _ in range(depth):
        entry = b'\x01dF' + table
        table = struct.pack('>I', len(entry)) + entry
    return table


@pytest.mark.parametrize(
    'headers',
    [nested(500), b'\x00\x00\x00\x0b\x01tT\xff\xff\xff\xff\xff\xff\xff\xff'],
    ids=['nested tables', 'a date out of range'],
)
@pytest.mark.parametrize('exchange', ['', 'amq.headers'])
def test_headers_that_no_codec_reads_are_handed_on_as_they_are(node: Node, headers: bytes, exchange: str) -> None:
    client = Client(node).open()
    dead_letters = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'q'}
    client.ask(spec.Queue.Declare(queue='q'))
    client.ask(spec.Queue.Declare(queue='first', arguments=dead_letters))
    client.ask(spec.Queue.Bind(queue='first', exchange='amq.headers', arguments={'x-match': 'all'}))
    header = struct.pack('>HHQH', 60, 0, 0, 0x2000) + headers
    client.send(method_frame(1, spec.Basic.Publish(exchange=exchange, routing_key='first')) + raw_frame(2, 1, header))
    client.send(method_frame(1, spec.Basic.Get(queue='first')) + method_frame(1, spec.Basic.Reject(1, requeue=False)))
    client.send(method_frame(1, spec.Basic.Get(queue='q')))
    sent = client.connection.data_to_send()
    assert sent.count(headers[4:]) == 2


# Hostile bytes


def random_bytes(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(1, 200))


def cut_session(chance: random.Random) -> bytes:
    session = valid_session(chance)
    return session[: chance.randrange(len(session))]


def changed_session(chance: random.Random) -> bytes:
    session = bytearray(valid_session(chance))
    for _ in range(chance.randrange(1, 8)):
        session[chance.randrange(len(session))] = chance.randrange(256)
    return bytes(session)


def random_methods(chance: random.Random) -> bytes:
    indexes = list(spec.methods)
    return b''.join(
        raw_frame(
            1, chance.randrange(3), struct.pack('>I', chance.choice(indexes)) + chance.randbytes(chance.randrange(40))
        )
        for _ in range(chance.randrange(1, 5))
    )


def random_frames(chance: random.Random) -> bytes:
    return b''.join(
        raw_frame(chance.choice((1, 2, 3, 8, 4)), chance.randrange(3), chance.randbytes(chance.randrange(60)))
        for _ in range(chance.randrange(1, 5))
    )


def random_properties(chance: random.Random) -> bytes:
    flags = chance.randrange(0x10000)
    header = struct.pack('>HHQH', 60, 0, chance.randrange(5), flags) + chance.randbytes(chance.randrange(60))
    return method_frame(1, spec.Basic.Publish(routing_key='fuzz')) + raw_frame(2, 1, header) + raw_frame(3, 1, b'abc')


def valid_session(chance: random.Random) -> bytes:
    arguments = {'x-message-ttl': 5, 'x-dead-letter-exchange': '', 'x-max-length': 3, 'deep': {'list': [1, 'x', None]}}
    binding = {'x-match': 'any'}
    steps = [
        method_frame(1, spec.Exchange.Declare(exchange='fuzz', type=chance.choice(('direct', 'topic', 'headers')))),
        method_frame(1, spec.Queue.Declare(queue='fuzz', arguments=arguments)),
        method_frame(1, spec.Queue.Bind(queue='fuzz', exchange='fuzz', routing_key='a.#', arguments=binding)),
        method_frame(1, spec.Basic.Qos(prefetch_count=chance.randrange(3))),
        method_frame(1, spec.Basic.Consume(queue='fuzz', consumer_tag='t')),
        method_frame(1, spec.Confirm.Select()),
        method_frame(1, spec.Tx.Select()),
        content_frames(1, spec.Basic.Publish(routing_key='fuzz'), pika.BasicProperties(headers={'a': [1]}), b'body'),
        content_frames(1, spec.Basic.Publish(exchange='fuzz'), pika.BasicProperties(expiration='1', priority=200), b''),
        method_frame(1, spec.Basic.Ack(chance.randrange(3), multiple=True)),
        method_frame(1, spec.Basic.Nack(chance.randrange(3))),
        method_frame(1, spec.Basic.Recover(requeue=True)),
        method_frame(1, spec.Basic.Cancel(consumer_tag='t')),
        method_frame(1, spec.Queue.Delete(queue='fuzz')),
        method_frame(1, spec.Channel.Close(200, 'bye', 0, 0)),
        raw_frame(8, 0, b''),
    ]
    return b''.join(chance.choice(steps) for _ in range(chance.randrange(1, 12)))


FUZZERS: list[Callable[[random.Random], bytes]] = [
    random_bytes,
    cut_session,
    changed_session,
    random_methods,
    random_frames,
    random_properties,
]


def test_no_bytes_harm_the_broker_or_another_connection(caplog: pytest.LogCaptureFixture) -> None:
    seed = random.randrange(2**32)
    print(f'seed {seed}')
    chance = random.Random(seed)
    node = Node({'guest': 'guest'})
    witness = Client(node).open()
    witness.ask(spec.Queue.Declare(queue='witness', exclusive=True))
    for number in range(HOSTILE_INPUTS):
        client = Client(node)
        if chance.random() < 0.2:
            client.send(chance.choice((b'', PROTOCOL_HEADER)))
        else:
            client.open()
        for _ in range(chance.randrange(1, 4)):
            data = chance.choice(FUZZERS)(chance)
            step = chance.choice((1, 7, len(data))) or 1
            for start in range(0, len(data), step):
                client.send(data[start : start + step])
        client.read()
        for clock in (node.shared.clock, node.shared.transport_clock):
            clock.advance(chance.choice((0, 0.01, 1)))
        client.connection.lost()
        assert witness.ask(spec.Queue.Declare(queue='witness', passive=True)).queue == 'witness', number
        witness.send(raw_frame(8, 0, b''))
    assert node.connections == {witness.connection}
    broken = [record for record in caplog.records if 'error of the broker itself' in record.message]
    assert not broken, broken[0].exc_info


def test_every_malformed_input_is_answered_by_a_close_or_the_end(node: Node) -> None:
    seed = random.randrange(2**32)
    print(f'seed {seed}')
    chance = random.Random(seed)
    for _ in range(300):
        client = Client(node).open()
        client.send(raw_frame(chance.choice((1, 2, 3)), 1, chance.randbytes(20), end=b'\x00'))
        close = client.read()[-1]
        assert (close.NAME, close.reply_code) == ('Connection.Close', 501)
        client.connection.lost()
