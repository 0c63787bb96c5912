"""The fast lane's connection: who sends, who reads, in which order, and what becomes of it at the end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pika.adapters.select_connection
import pika.exceptions
import pika.frame
import pika.spec
import pytest

from postage import errors, messaging
from postage.amqp import transport, wire
from postage.amqp.fallback import PublicConnection
from postage.amqp.io_services import IOServices
from postage.amqp.publishing import PublishingChannel
from postage.amqp.transport import SEAM, WireConnection, connection_class
from postage.amqp.waiting import Batch
from postage.amqp.wire import Content
from postage.settings import FastLane
from support.messaging import TIMEOUT, Bench, Echo, Processor, Seen, eventually

HEARTBEAT = pika.frame.Heartbeat().marshal()


def frame(text: str) -> bytes:
    """A frame that is pika's affair, and can be told from others."""
    return pika.frame.Method(0, pika.spec.Connection.Blocked(text)).marshal()


def delivery(number: int) -> bytes:
    deliver = pika.spec.Basic.Deliver('postage-1', number, False, 'exchange', 'key')
    return pika.frame.Method(1, deliver).marshal() + pika.frame.Header(1, 0, pika.BasicProperties()).marshal()


class Transport:
    """What pika's transport is to the lane: it has the socket, and writes when there is room."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.written = b''

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return len(self.written)


class Lane:
    """A lane that notes the numbers of its deliveries."""

    content: Content | None = None

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def delivered(self, content: Content) -> None:
        self.numbers.append(content.delivery_tag)

    def end_of_read(self) -> None:
        pass


class Reader:
    def __init__(self) -> None:
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1


class Wire(WireConnection):
    """A connection over a pair of sockets, whose loop is taken step by step. What is meant for pika is noted."""

    is_open = True

    def __init__(self, lane: FastLane) -> None:
        services = IOServices(pika.adapters.select_connection.IOLoop())
        super().__init__(
            pika.ConnectionParameters(), internal_connection_workflow=False, fast_lane=lane, services=services
        )
        self.notes: list[bytes] = []
        self.ends: list[Any] = []
        self.lane: Any = Lane()
        self.lanes[1] = self.lane
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.peer.settimeout(TIMEOUT)
        self.transport = Transport(ours)
        self.ioloop.activate_poller()
        self._proto_connection_made(self.transport)
        assert self.receive(8) == b'AMQP\0\0\x09\1'

    def receive(self, size: int) -> bytes:
        """What has been sent to the peer, with what is on its way to it."""
        if not self.sends_directly:
            received, self.transport.written = self.transport.written[:size], self.transport.written[size:]
            return received
        received = b''
        while len(received) < size:
            received += self.peer.recv(size - len(received))
        return received

    def step(self) -> None:
        """Have the I/O thread do what it was asked to."""
        self.ioloop.process_timeouts()

    def lend(self) -> Reader:
        reader = Reader()
        self.ask_to_read(reader)
        self.step()
        assert self.reader is reader
        return reader

    def _on_data_available(self, data: bytes) -> None:
        self.notes.append(bytes(data))

    def _on_stream_terminated(self, error: Any) -> None:
        self.ends.append(error)

    def _terminate_stream(self, error: Any) -> None:
        self._is_ending = True
        self.ends.append(error)

    def end(self) -> None:
        if not self.is_lost:
            self._proto_connection_lost(None)
        self.transport._sock.close()
        self.peer.close()
        self.ioloop.deactivate_poller()
        self.ioloop.close()


@pytest.fixture
def new_wire() -> Iterator[Callable[[FastLane], Wire]]:
    with contextlib.ExitStack() as end:

        def make(lane: FastLane) -> Wire:
            made = Wire(lane)
            end.callback(made.end)
            return made

        yield make


@pytest.fixture
def a_wire(new_wire: Callable[[FastLane], Wire]) -> Wire:
    return new_wire(FastLane.FULL)


# Which class of connection


def test_each_lane_has_its_class_of_connection() -> None:
    assert connection_class(FastLane.OFF) is PublicConnection
    assert {connection_class(lane) for lane in FastLane if lane is not FastLane.OFF} == {WireConnection}


@pytest.mark.parametrize('name', SEAM)
def test_where_pika_lacks_a_name_of_the_seam_messages_go_by_its_public_api_and_the_log_says_so_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Without(type):
        """pika's class, as ``hasattr`` sees it without that name."""

        def __getattribute__(cls, asked: str) -> Any:
            if asked == name:
                raise AttributeError(asked)
            return getattr(pika.adapters.select_connection.SelectConnection, asked)

    class OtherPika(metaclass=Without):
        pass

    connection_class.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(pika, 'SelectConnection', OtherPika)
        patched.setenv('POSTAGE_FAST_LANE', 'full')
        producer, echo = bench.producer(), Echo()
        bench.run(echo)
        assert type(producer.conn_broker.wire) is PublicConnection
        producer.message_echo('text').wait(TIMEOUT)
        assert echo.seen.next() == 'text'
        assert producer.rpc_echo('asked').body['content']['value'] == 'asked'
    connection_class.cache_clear()
    (line,) = bench.log.find('WARNING postage.amqp', pika.__version__)
    assert f'has no {name}:' in line


# Who sends


@pytest.mark.parametrize(('lane', 'is_direct'), [('full', True), ('send', True), ('thread', False)])
def test_ready_frames_are_sent_at_once_where_the_lane_says_so(
    new_wire: Callable[[FastLane], Wire], lane: str, is_direct: bool
) -> None:
    sending = new_wire(FastLane(lane))
    assert sending.sends_directly is is_direct
    with sending.writing:
        sending.write(HEARTBEAT)
    assert (sending.transport.written == b'') is is_direct
    assert sending.receive(len(HEARTBEAT)) == HEARTBEAT


def test_what_the_socket_does_not_take_is_left_to_the_i_o_thread_and_nothing_overtakes_it(a_wire: Wire) -> None:
    big, small = bytes(1_000_000), b'small'
    with a_wire.writing:
        a_wire.write(big)
        a_wire.write(small)
    a_wire._output_marshaled_frames([b'of ', b'pika'])
    sent = len(big + small + b'of pika') - a_wire.backlog
    assert 0 < sent < len(big)
    a_wire.step()
    assert a_wire.receive(sent) + a_wire.transport.written == big + small + b'of pika'
    assert a_wire.backlog == len(a_wire.transport.written)


def test_what_a_lost_socket_does_not_take_gives_up_the_connection_on_the_i_o_thread(a_wire: Wire) -> None:
    a_wire.peer.close()
    with a_wire.writing:
        a_wire.write(HEARTBEAT)
    assert a_wire.ends == []
    a_wire.step()
    assert isinstance(a_wire.ends[0], pika.exceptions.StreamLostError)


def test_what_pika_sends_after_the_loss_goes_nowhere(a_wire: Wire) -> None:
    a_wire._proto_connection_lost(None)
    a_wire._output_marshaled_frames([HEARTBEAT])
    a_wire.peer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        assert a_wire.peer.recv(100) == b''


def test_what_is_sent_is_counted_for_the_heartbeats(a_wire: Wire) -> None:
    before = a_wire.bytes_sent, a_wire.frames_sent
    with a_wire.writing:
        a_wire.write(HEARTBEAT)
    assert a_wire.bytes_sent - before[0] == len(HEARTBEAT)
    assert a_wire.frames_sent - before[1] == 1


# Who reads


def test_the_i_o_thread_reads_until_somebody_asks(a_wire: Wire) -> None:
    a_wire.peer.sendall(delivery(1) + frame('a'))
    a_wire.ioloop.poll()
    assert a_wire.lane.numbers == [1]
    assert a_wire.notes == [frame('a')]


def test_whoever_asks_is_rung_once_the_i_o_thread_has_left_reading_to_him(a_wire: Wire) -> None:
    reader = Reader()
    a_wire.ask_to_read(reader)
    assert (a_wire.reader, reader.rings) == (None, 0)
    a_wire.ask_to_read(Reader())  # comes too late
    a_wire.step()
    assert a_wire.reader is reader
    assert reader.rings == 1
    assert a_wire.is_lent


@pytest.mark.parametrize('lane', ['send', 'thread'])
def test_other_lanes_leave_reading_to_nobody(new_wire: Callable[[FastLane], Wire], lane: str) -> None:
    kept = new_wire(FastLane(lane))
    kept.ask_to_read(Reader())
    kept.step()
    assert kept.reader is None


def test_the_reader_acts_on_what_is_the_lanes_and_hands_on_the_rest(a_wire: Wire) -> None:
    a_wire.lend()
    a_wire.peer.sendall(delivery(1) + frame('a') + delivery(2))
    with a_wire.reading:
        assert a_wire.read() is None
    assert a_wire.lane.numbers == [1, 2]
    assert a_wire.notes == []
    a_wire.step()
    assert a_wire.notes == [frame('a')]


def test_reading_is_not_taken_back_while_the_reader_is_at_it(a_wire: Wire) -> None:
    reader = a_wire.lend()
    with a_wire.reading:
        a_wire.take_back()
        assert a_wire.reader is reader
    a_wire.take_back()
    assert a_wire.reader is None
    a_wire.peer.sendall(frame('a'))
    a_wire.ioloop.poll()
    assert a_wire.notes == [frame('a')]


def test_half_a_frame_that_the_reader_has_read_is_completed_by_the_i_o_thread(a_wire: Wire) -> None:
    a_wire.lend()
    whole = delivery(1)
    a_wire.peer.sendall(whole[:20])
    with a_wire.reading:
        a_wire.read()
    a_wire.take_back()
    a_wire.peer.sendall(whole[20:])
    a_wire.ioloop.poll()
    assert a_wire.lane.numbers == [1]


def test_frames_reach_pika_in_the_order_in_which_they_came_whoever_read_them(a_wire: Wire) -> None:
    a_wire.lend()
    a_wire.peer.sendall(frame('a'))
    with a_wire.reading:
        a_wire.read()
    a_wire.take_back()  # by a timer, before the loop has come to what it was handed
    a_wire.peer.sendall(frame('b'))
    a_wire._on_readable()
    a_wire.step()
    a_wire.peer.sendall(frame('c'))
    a_wire._on_readable()
    assert a_wire.notes == [frame(text) for text in 'abc']


def test_a_frame_that_pika_cannot_stand_gives_up_the_connection_and_leaves_the_loop_alone(
    a_wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger='postage.amqp')

    def fails(_data: bytes) -> None:
        raise ValueError('inside pika')

    a_wire._on_data_available = fails  # type: ignore[method-assign]
    a_wire.lend()
    a_wire.peer.sendall(frame('a'))
    with a_wire.reading:
        assert a_wire.read() is None
    a_wire.step()
    assert [str(error) for error in a_wire.ends] == ['inside pika']


# The end


def test_a_reader_that_meets_the_end_says_so_and_the_i_o_thread_gives_up_the_connection(a_wire: Wire) -> None:
    a_wire.lend()
    a_wire.peer.close()
    with a_wire.reading:
        error = a_wire.read()
    assert 'EOF' in str(error)
    assert error is not None
    a_wire.fail_soon(error)
    assert not a_wire.may_be_read_elsewhere
    a_wire.step()
    assert a_wire.ends == [error]


def test_the_last_words_of_the_broker_are_heard_before_its_end(a_wire: Wire) -> None:
    a_wire.lend()
    a_wire.peer.sendall(frame('farewell'))
    a_wire.peer.close()
    with a_wire.reading:
        a_wire.read()
        error = a_wire.read()
    assert error is not None
    a_wire.fail_soon(error)
    a_wire.step()
    assert a_wire.notes == [frame('farewell')]


def test_after_a_reader_was_interrupted_nothing_more_is_read(a_wire: Wire) -> None:
    a_wire.lend()
    a_wire.peer.sendall(delivery(1))
    a_wire.fail_soon(pika.exceptions.StreamLostError('interrupted'))
    a_wire.take_back()
    a_wire._on_readable()
    assert a_wire.lane.numbers == []


def test_the_first_reason_for_an_end_counts(a_wire: Wire) -> None:
    reasons = [pika.exceptions.StreamLostError(text) for text in ('first', 'second')]
    for reason in reasons:
        a_wire.fail(reason)
    assert a_wire.ends == reasons[:1]


def test_the_end_waits_for_the_reader_to_leave(a_wire: Wire) -> None:
    reader = a_wire.lend()
    a_wire.reading.acquire()
    with ThreadPoolExecutor(1) as pool:
        losing = pool.submit(a_wire._proto_connection_lost, None)
        eventually(lambda: reader.rings == 2)
        assert not losing.done()
        a_wire.reading.release()
        losing.result(TIMEOUT)
    assert a_wire.reader is None


def test_a_reader_who_is_late_all_the_same_reads_nothing_and_acts_on_nothing(
    a_wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, 'PATIENCE', 0.01)
    a_wire.lend()
    a_wire.lane.delivered = lambda content: (
        Lane.delivered(a_wire.lane, content),
        a_wire._proto_connection_lost(None),
    )
    a_wire.peer.sendall(delivery(1) + delivery(2) + frame('a'))
    with a_wire.reading:
        a_wire.read()
        assert a_wire.read() is None
    a_wire.step()
    assert a_wire.lane.numbers == [1]
    assert a_wire.notes == []


def test_abandoning_closes_both_handles(a_wire: Wire) -> None:
    a_wire.ioloop.deactivate_poller()
    a_wire.abandon()
    assert a_wire.transport._sock.fileno() == -1
    assert a_wire.peer.recv(100) == b''


# On a broker


class Internal(messaging.Exchange):
    name = 'internal-exchange'
    internal = True


def test_a_channel_that_the_broker_closes_while_four_threads_publish_costs_no_connection(bench: Bench) -> None:
    """One frame on a channel whose close was answered already would cost it (504)."""
    producer = bench.producer()
    stop = threading.Event()

    def publish() -> list[Any]:
        receipts = []
        while not stop.is_set():
            receipts.append(producer.message_echo(len(receipts)))
            if len(receipts) % 50 == 0:
                receipts[-1].wait(TIMEOUT)
        return receipts

    with ThreadPoolExecutor(4) as pool:
        publishing = [pool.submit(publish) for _ in range(4)]
        try:
            for _ in range(5):
                refused = producer.message_echo('nobody may', _eks=[(Internal, 'key')])
                with pytest.raises(errors.Nacked):
                    refused.wait(TIMEOUT)
        finally:
            stop.set()
        receipts = [receipt for done in publishing for receipt in done.result(TIMEOUT)]
    for receipt in receipts:
        receipt.wait(TIMEOUT)
    assert bench.log.find('unconfirmed messages will be sent again')
    assert not bench.log.find('was lost')


def test_bodies_of_all_sizes_reach_their_handler_in_order(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    texts = [str(number) * size for number, size in enumerate([1, 200_000, 0, 1, 140_000, 0, 3] * 3)]
    for text in texts:
        producer.message_echo(text)
    assert echo.seen.take(len(texts)) == texts


def test_a_message_is_known_before_it_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'full')
    producer = bench.producer()
    channel: PublishingChannel = producer.conn_broker.publisher(True)
    known = Seen()
    write = WireConnection.write

    def noting(self: WireConnection, data: bytes) -> None:
        if b'known?' in data:
            known.put([outgoing.body for outgoing in channel._unconfirmed.values()])
        write(self, data)

    monkeypatch.setattr(WireConnection, 'write', noting)
    producer.message_echo('known?').wait(TIMEOUT)
    (body,) = known.next()
    assert b'known?' in body


def test_what_is_delivered_after_a_consumer_was_closed_is_dropped(bench: Bench) -> None:
    consumer = bench.consumer()
    channel = consumer._channel
    content = Content()
    content.tag_or_text, content.body, content.delivery_tag, content.redelivered = b'unknown', b'', 1, False
    channel.delivered(content)
    assert not channel.inbox


def test_while_a_handler_blocks_the_i_o_thread_reads(bench: Bench) -> None:
    class Blocking(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            self.seen.put('blocks')
            released.wait(TIMEOUT)

    released = threading.Event()
    blocking = Blocking()
    bench.run(blocking)
    producer = bench.producer()
    try:
        for _ in range(3):
            producer.message_echo()
            blocking.seen.next()
            assert blocking.consumer.channel.queue_declare('queue', durable=True).method.queue == 'queue'
            released.set()
            released.clear()
    finally:
        released.set()


def test_a_failure_of_what_is_sent_gives_up_the_connection_and_nothing_is_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that were counted and frames that were not sent would confirm the wrong messages."""
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'full')
    queue = bench.collect()
    producer = bench.producer()
    producer.message_echo('first').wait(TIMEOUT)
    publish_frames, calls = wire.publish_frames, itertools.count()

    def interrupted(*args: Any) -> bytes:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return publish_frames(*args)

    monkeypatch.setattr(wire, 'publish_frames', interrupted)
    with pytest.raises(KeyboardInterrupt), Batch():
        receipts = [producer.message_echo(number) for number in range(5)]
    bench.log.expect('interrupted while sending')
    for receipt in receipts:
        receipt.wait(TIMEOUT)
    got = {bench.get(queue).parameters for _ in range(6)}
    assert got == {'first', *range(5)}
