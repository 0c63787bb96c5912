"""A link: who sends, who reads, in which order, and what becomes of it at the end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pika.adapters.select_connection
import pika.exceptions
import pika.frame
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from postage import errors, messaging
from postage.amqp import frames
from postage.amqp import link as link_module
from postage.amqp.cutter import Content
from postage.amqp.link import SEAM, Link, Services, check_pika
from postage.amqp.publishing import PublishingChannel
from postage.amqp.threads import Batch
from support.frames import PROFILE, by_pika, content_by_pika
from support.messaging import TIMEOUT, Bench, Echo, Processor, Seen, eventually
from support.programs import Program

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


class OverAPair(Link):
    """A link over a pair of sockets, whose loop is taken step by step. What is meant for pika is noted."""

    is_open = True

    def __init__(self, is_direct: bool) -> None:
        services = Services(pika.adapters.select_connection.IOLoop())
        parameters = pika.ConnectionParameters()
        super().__init__(parameters, internal_connection_workflow=False, services=services, is_direct=is_direct)
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
        if not self.is_direct:
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
        assert self.turn is not None
        self.turn.ask(reader)
        self.step()
        assert self.turn.reader is reader
        return reader

    def _on_data_available(self, data: bytes) -> None:
        self.notes.append(bytes(data))

    def _on_stream_terminated(self, error: Any) -> None:
        self.ends.append(error)

    def _terminate_stream(self, error: Any) -> None:
        self._is_ending = True
        if self.turn is not None:
            self.turn.is_over = True
        self.ends.append(error)

    def end(self) -> None:
        if not self.is_lost:
            self._proto_connection_lost(None)
        self.transport._sock.close()
        self.peer.close()
        self.ioloop.deactivate_poller()
        self.ioloop.close()


@pytest.fixture
def new_link() -> Iterator[Callable[[bool], OverAPair]]:
    with contextlib.ExitStack() as end:

        def make(is_direct: bool) -> OverAPair:
            made = OverAPair(is_direct)
            end.callback(made.end)
            return made

        yield make


@pytest.fixture
def link(new_link: Callable[[bool], OverAPair]) -> OverAPair:
    return new_link(True)


def turn_of(link: OverAPair) -> Any:
    assert link.turn is not None
    return link.turn


# Which pika


def test_a_release_of_pika_that_was_not_tried_fails_the_import_and_says_so() -> None:
    for version in ('1.3.2', '1.6.0', '2.0.0b1', '1.40.0'):
        with pytest.raises(ImportError, match=f'Postage works with pika 1.4 and 1.5, and this is pika {version}$'):
            check_pika(version, pika.SelectConnection)


@pytest.mark.parametrize('version', ['1.4.0', '1.4.99', '1.5.0rc1', '1.5.0', pika.__version__])
def test_a_release_of_pika_that_was_tried_is_welcome(version: str) -> None:
    check_pika(version, pika.SelectConnection)


@pytest.mark.parametrize('name', SEAM)
def test_where_pika_lacks_a_name_of_the_seam_the_import_fails_and_names_it(name: str) -> None:
    members = {other: None for other in SEAM if other != name}
    with pytest.raises(ImportError, match=f'this is pika 1.5.7, which has no {name}$'):
        check_pika('1.5.7', type('OtherPika', (), members))


WITH_ANOTHER_PIKA = """
import pika
pika.__version__ = '1.6.0'
try:
    import postage.messaging
except ImportError as error:
    print(error)
"""


def test_with_another_pika_the_first_import_says_what_is_wrong(run_program: Callable[..., Program]) -> None:
    program = run_program(WITH_ANOTHER_PIKA)
    assert program.wait() == 0, program.output
    assert program.lines == ['Postage works with pika 1.4 and 1.5, and this is pika 1.6.0']


# Who sends


@pytest.mark.parametrize('is_direct', [True, False])
def test_ready_frames_are_sent_at_once_where_the_link_is_direct(
    new_link: Callable[[bool], OverAPair], is_direct: bool
) -> None:
    sending = new_link(is_direct)
    assert sending.is_direct is is_direct
    with sending.writing:
        sending.write(HEARTBEAT)
    assert (sending.transport.written == b'') is is_direct
    assert sending.receive(len(HEARTBEAT)) == HEARTBEAT


def test_what_the_socket_does_not_take_is_left_to_the_i_o_thread_and_nothing_overtakes_it(link: OverAPair) -> None:
    big, small = bytes(1_000_000), b'small'
    with link.writing:
        link.write(big)
        link.write(small)
    link._output_marshaled_frames([b'of ', b'pika'])
    sent = len(big + small + b'of pika') - link.backlog
    assert 0 < sent < len(big)
    link.step()
    assert link.receive(sent) + link.transport.written == big + small + b'of pika'
    assert link.backlog == len(link.transport.written)


def test_what_a_lost_socket_does_not_take_gives_up_the_connection_on_the_i_o_thread(link: OverAPair) -> None:
    link.peer.close()
    with link.writing:
        link.write(HEARTBEAT)
    assert link.ends == []
    link.step()
    assert isinstance(link.ends[0], pika.exceptions.StreamLostError)


def test_what_pika_sends_after_the_loss_goes_nowhere(link: OverAPair) -> None:
    link._proto_connection_lost(None)
    link._output_marshaled_frames([HEARTBEAT])
    link.peer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        assert link.peer.recv(100) == b''


def test_what_is_sent_is_counted_for_the_heartbeats(link: OverAPair) -> None:
    before = link.bytes_sent, link.frames_sent
    with link.writing:
        link.write(HEARTBEAT)
    assert link.bytes_sent - before[0] == len(HEARTBEAT)
    assert link.frames_sent - before[1] == 1


# Who reads


def test_the_i_o_thread_reads_until_somebody_asks(link: OverAPair) -> None:
    link.peer.sendall(delivery(1) + frame('a'))
    link.ioloop.poll()
    assert link.lane.numbers == [1]
    assert link.notes == [frame('a')]


def test_a_link_that_is_not_direct_is_read_by_the_i_o_thread_alone(new_link: Callable[[bool], OverAPair]) -> None:
    kept = new_link(False)
    assert kept.turn is None
    kept._proto_data_received(delivery(1) + frame('a'))
    assert kept.lane.numbers == [1]
    assert kept.notes == [frame('a')]


def test_where_the_system_has_no_eventfd_no_link_is_direct(
    new_link: Callable[[bool], OverAPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('postage.amqp.link.CAN_READ', False)
    kept = new_link(True)
    assert not kept.is_direct
    assert kept.turn is None


def test_the_reader_acts_on_what_is_the_lanes_and_hands_on_the_rest(link: OverAPair) -> None:
    link.lend()
    link.peer.sendall(delivery(1) + frame('a') + delivery(2))
    with turn_of(link).lock:
        assert link.read() is None
    assert link.lane.numbers == [1, 2]
    assert link.notes == []
    link.step()
    assert link.notes == [frame('a')]


def test_reading_is_not_taken_back_while_the_reader_is_at_it(link: OverAPair) -> None:
    reader = link.lend()
    with ThreadPoolExecutor(1) as i_o_thread:
        with turn_of(link).lock:
            i_o_thread.submit(turn_of(link).take_back).result(TIMEOUT)
            assert turn_of(link).reader is reader
        i_o_thread.submit(turn_of(link).take_back).result(TIMEOUT)
    assert turn_of(link).reader is None
    link.peer.sendall(frame('a'))
    link.ioloop.poll()
    assert link.notes == [frame('a')]


def test_half_a_frame_that_the_reader_has_read_is_completed_by_the_i_o_thread(link: OverAPair) -> None:
    link.lend()
    whole = delivery(1)
    link.peer.sendall(whole[:20])
    with turn_of(link).lock:
        link.read()
    turn_of(link).take_back()
    link.peer.sendall(whole[20:])
    link.ioloop.poll()
    assert link.lane.numbers == [1]


def test_frames_reach_pika_in_the_order_in_which_they_came_whoever_read_them(link: OverAPair) -> None:
    link.lend()
    link.peer.sendall(frame('a'))
    with turn_of(link).lock:
        link.read()
    turn_of(link).take_back()  # by a timer, before the loop has come to what it was handed
    link.peer.sendall(frame('b'))
    link._on_readable()
    link.step()
    link.peer.sendall(frame('c'))
    link._on_readable()
    assert link.notes == [frame(text) for text in 'abc']


def test_a_frame_that_pika_cannot_stand_gives_up_the_connection_and_leaves_the_loop_alone(
    link: OverAPair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger='postage.amqp')

    def fails(_data: bytes) -> None:
        raise ValueError('inside pika')

    link._on_data_available = fails  # type: ignore[method-assign]
    link.lend()
    link.peer.sendall(frame('a'))
    with turn_of(link).lock:
        assert link.read() is None
    link.step()
    (error,) = link.ends
    assert str(error) == "a method frame of 6 bytes on channel 0 cannot be read: ValueError('inside pika')"


# The end


def test_a_reader_that_meets_the_end_says_so_and_the_i_o_thread_gives_up_the_connection(link: OverAPair) -> None:
    link.lend()
    link.peer.close()
    with turn_of(link).lock:
        error = link.read()
    assert 'EOF' in str(error)
    assert error is not None
    link.fail_soon(error)
    assert turn_of(link).is_over
    link.step()
    assert link.ends == [error]


def test_the_last_words_of_the_broker_are_heard_before_its_end(link: OverAPair) -> None:
    link.lend()
    link.peer.sendall(frame('farewell'))
    link.peer.close()
    with turn_of(link).lock:
        link.read()
        error = link.read()
    assert error is not None
    link.fail_soon(error)
    link.step()
    assert link.notes == [frame('farewell')]


def test_after_a_reader_was_interrupted_nothing_more_is_read(link: OverAPair) -> None:
    link.lend()
    link.peer.sendall(delivery(1))
    link.fail_soon(pika.exceptions.StreamLostError('interrupted'))
    turn_of(link).take_back()
    link._on_readable()
    assert link.lane.numbers == []


def test_the_first_reason_for_an_end_counts(link: OverAPair) -> None:
    reasons = [pika.exceptions.StreamLostError(text) for text in ('first', 'second')]
    for reason in reasons:
        link.fail(reason)
    assert link.ends == reasons[:1]


def test_the_end_waits_for_the_reader_to_leave(link: OverAPair) -> None:
    reader = link.lend()
    turn_of(link).lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        losing = pool.submit(link._proto_connection_lost, None)
        eventually(lambda: reader.rings == 2)
        assert not losing.done()
        turn_of(link).lock.release()
        losing.result(TIMEOUT)
    assert turn_of(link).reader is None


def test_a_reader_who_is_late_all_the_same_reads_nothing_and_acts_on_nothing(
    link: OverAPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, 'PATIENCE', 0.01)
    link.lend()

    def delivered(content: Content) -> None:
        Lane.delivered(link.lane, content)
        pool.submit(link._proto_connection_lost, None).result(TIMEOUT)

    link.lane.delivered = delivered
    link.peer.sendall(delivery(1) + delivery(2) + frame('a'))
    with ThreadPoolExecutor(1) as pool, turn_of(link).lock:
        link.read()
        assert link.read() is None
    link.step()
    assert link.lane.numbers == [1]
    assert link.notes == []


@pytest.mark.parametrize('is_direct', [True, False])
def test_an_exception_while_reading_gives_up_the_connection_and_does_not_leave_it(
    new_link: Callable[[bool], OverAPair], caplog: pytest.LogCaptureFixture, is_direct: bool
) -> None:
    caplog.set_level(logging.CRITICAL, logger='postage.amqp')
    read = new_link(is_direct)

    def fails(_data: bytes) -> None:
        raise ValueError('inside pika')

    read._on_data_available = fails  # type: ignore[method-assign]
    if is_direct:
        read.peer.sendall(HEARTBEAT)
        read._on_readable()
    else:
        read._proto_data_received(HEARTBEAT)
    (error,) = read.ends
    assert str(error) == "a heartbeat of 0 bytes on channel 0 cannot be read: ValueError('inside pika')"


def test_a_frame_with_a_wrong_end_gives_up_the_connection(link: OverAPair, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger='postage.amqp')
    link.peer.sendall(delivery(1) + HEARTBEAT[:-1] + b'\0' + delivery(2))
    link._on_readable()
    assert link.lane.numbers == [1]
    assert [type(error) for error in link.ends] == [pika.exceptions.InvalidFrameError]


@PROFILE
@given(data=some.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    logging.getLogger('postage.amqp').disabled = True
    link = OverAPair(False)
    try:
        link._proto_data_received(b'\x01\x00\x01\x00\x00\x00' + data)
        link._proto_data_received(data)
    finally:
        link.end()
        logging.getLogger('postage.amqp').disabled = False


def test_what_is_received_is_counted_for_the_heartbeats(link: OverAPair) -> None:
    before = link.bytes_received, link.frames_received
    message = by_pika(1, pika.spec.Basic.Deliver('postage-1', 1, False, 'exchange', 'key')) + content_by_pika(
        1, b'body'
    )
    link.peer.sendall(message * 2)
    link._on_readable()
    assert link.lane.numbers == [1, 1]
    assert link.bytes_received - before[0] == len(message) * 2
    assert link.frames_received - before[1] == 6


def test_a_broker_is_silent_while_nothing_has_come(link: OverAPair, new_link: Callable[[bool], OverAPair]) -> None:
    assert link.silence == 0
    link.peer.sendall(frame('a'))
    link.ioloop.poll()
    link.read_at -= 5
    assert 5 <= link.silence < 6
    assert new_link(False).silence == 0


def test_a_broker_is_not_silent_where_what_has_come_waits_to_be_read(link: OverAPair) -> None:
    link.lend()  # to a thread that is late
    link.read_at, link.heartbeat = time.monotonic() - 5, 1.0
    link.peer.sendall(frame('a'))
    assert link.silence == 0
    link.watch_for_silence(link.bytes_received, link.read_at)
    assert link.ends == []
    with turn_of(link).lock:
        link.read()
    link.watch_for_silence(link.bytes_received, link.read_at - 5)
    assert [str(end) for end in link.ends] == ['nothing was received for 5 s']


def test_abandoning_closes_both_handles(link: OverAPair) -> None:
    link.ioloop.deactivate_poller()
    link.abandon()
    assert link.transport._sock.fileno() == -1
    assert link.peer.recv(100) == b''


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


def test_messages_rpcs_and_bodies_of_all_sizes_reach_their_handler_in_order(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    texts = [str(number) * size for number, size in enumerate([1, 200_000, 0, 1, 140_000, 0, 3] * 3)]
    for text in texts:
        producer.message_echo(text)
    assert echo.seen.take(len(texts)) == texts
    assert producer.rpc_echo(texts[1]).body['content']['value'] == texts[1]


def test_a_message_is_known_before_it_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'direct')
    producer = bench.producer()
    channel: PublishingChannel = producer.conn_broker.publisher(True)
    known = Seen()
    write = Link.write

    def noting(self: Link, data: bytes) -> None:
        if b'known?' in data:
            known.put([outgoing.body for outgoing in channel._unconfirmed.values()])
        write(self, data)

    monkeypatch.setattr(Link, 'write', noting)
    producer.message_echo('known?').wait(TIMEOUT)
    (body,) = known.next()
    assert b'known?' in body


def test_what_is_delivered_after_a_consumer_was_closed_is_dropped(bench: Bench) -> None:
    consumer = bench.consumer()
    channel = consumer.delivery_source.channel
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
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'direct')
    queue = bench.collect()
    producer = bench.producer()
    producer.message_echo('first').wait(TIMEOUT)
    publish_frames, calls = frames.publish_frames, itertools.count()

    def interrupted(*args: Any) -> bytes:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return publish_frames(*args)

    monkeypatch.setattr(frames, 'publish_frames', interrupted)
    with pytest.raises(KeyboardInterrupt), Batch():
        receipts = [producer.message_echo(number) for number in range(5)]
    bench.log.expect('interrupted while sending')
    for receipt in receipts:
        receipt.wait(TIMEOUT)
    got = {bench.get(queue).parameters for _ in range(6)}
    assert got == {'first', *range(5)}
