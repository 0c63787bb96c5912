"""A thread that waits reads meanwhile, gives that back in time, and sends at once what it has gathered."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import select
import signal
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from postage import errors, messaging
from postage.amqp import attempts, link, threads, tick, turns
from postage.amqp.link import Holder, Turn
from postage.amqp.replies import ReplyChannel
from postage.amqp.threads import Batch, this_thread
from postage.amqp.tick import Tick
from postage.amqp.turns import Readership, ReadingAlarm, alarm_of_thread, wait_until_done
from support.interruptions import Interruption, at_each_moment
from support.loops import StepLoop
from support.messaging import (
    TIMEOUT,
    BareResponder,
    Bench,
    Echo,
    EchoExchange,
    EchoProducer,
    HeldConfirms,
    Seen,
    eventually,
    result,
)
from support.programs import Program
from support.proxy import Proxy

NOWHERE: Any = types.SimpleNamespace(add_callback_threadsafe=lambda _: None)
"""A loop that is asked in vain."""

AT_ONCE = 1.0
"""Seconds for what nobody has to wait for, on a busy machine."""


@pytest.fixture(autouse=True)
def direct_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'direct')


class Asking(EchoProducer):
    eks = [(EchoExchange, 'asked')]
    rpc_timeout = 2.0
    max_retry = 4


@pytest.fixture
def answered(bench: Bench) -> Asking:
    """A producer whose RPCs another program would answer, so that nobody else waits for its connection."""
    queue = bench.collect(key='asked')
    bench.closing(BareResponder(bench.broker, queue, answer))
    producer: Asking = bench.producer(Asking)
    producer.rpc_echo()
    return producer


def answer(body: Any, properties: Any) -> list[Any]:
    if not properties.reply_to:
        return []
    return [(properties.reply_to, result(body['content']['parameters']), properties.correlation_id)]


def descriptors() -> int:
    return len(os.listdir('/proc/self/fd'))


def become_reader(producer: EchoProducer) -> None:
    """Ask until this thread reads the connection."""
    alarm, connection, deadline = alarm_of_thread(), producer.conn_broker, time.monotonic() + TIMEOUT
    while connection.link is None or connection.link.turn.reader is not alarm:  # type: ignore[union-attr]
        producer.rpc_echo()
        assert time.monotonic() < deadline, 'it never came to read'


# The alarm


def test_an_alarm_that_rang_before_the_wait_lets_it_pass_and_only_once() -> None:
    alarm = ReadingAlarm()
    alarm.ring()
    alarm.ring()
    alarm.wait(None)
    begin = time.monotonic()
    alarm.wait(0.02)
    assert time.monotonic() - begin >= 0.02


def test_another_thread_ends_the_wait_by_ringing() -> None:
    alarm = ReadingAlarm()
    threading.Timer(0.02, alarm.ring).start()
    alarm.wait(TIMEOUT)


@pytest.mark.parametrize('timeout', [40 * 86400.0, math.inf])
def test_a_wait_may_be_longer_than_the_system_allows(timeout: float) -> None:
    alarm = ReadingAlarm()
    threading.Timer(0.02, alarm.ring).start()
    alarm.wait(timeout)


def test_an_alarm_that_nobody_has_any_more_closes_its_bell() -> None:
    gc.collect()
    before = descriptors()
    alarm = ReadingAlarm()
    assert descriptors() == before + 1
    del alarm
    gc.collect()
    assert descriptors() == before


def test_a_thread_has_one_alarm() -> None:
    with ThreadPoolExecutor(1) as pool:
        first, second = pool.submit(alarm_of_thread).result(), pool.submit(alarm_of_thread).result()
    assert first is second
    assert first is not alarm_of_thread()


def test_a_forked_child_has_a_bell_of_its_own() -> None:
    alarm = ReadingAlarm()
    pid = os.fork()
    if not pid:
        alarm.ring()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert not select.select([alarm._bell], [], [], 0)[0]


# What may lie unread


class Line:
    """The readership of a connection and its link in one, of which only the socket matters, and what is read from it.

    :ivar is_patient: whether what comes may lie unread
    :ivar rings: whether what is read rings the thread's alarm
    """

    def __init__(self, rings: bool = False) -> None:
        self.is_patient = False
        self.rings = rings
        self.reads = 0
        self.lock = threading.RLock()
        self._socket, self.peer = socket.socketpair()
        self.number = self._socket.fileno()

    def begin(self, alarm: ReadingAlarm) -> None:
        alarm.held.append(self.lock)
        self.lock.acquire()
        alarm.reading[self.number] = self  # type: ignore[assignment]
        if self.is_patient:
            alarm.unread.append(self.number)

    def end(self, _alarm: ReadingAlarm, has_read: bool) -> None:
        assert has_read

    def read(self) -> None:
        self._socket.recv(1)
        self.reads += 1
        if self.rings:
            alarm_of(self).ring()

    def close(self) -> None:
        self._socket.close()
        self.peer.close()


def alarm_of(_line: Line) -> ReadingAlarm:
    alarm = alarm_of_thread()
    assert alarm is not None
    return alarm


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    """One of which what comes may lie unread, and one on which messages come."""
    patient, other = Line(), Line(rings=True)
    patient.is_patient = True
    with contextlib.closing(patient), contextlib.closing(other):
        yield patient, other


def test_what_may_lie_is_not_read_while_there_are_messages(lines: tuple[Line, Line]) -> None:
    patient, other = lines
    alarm = alarm_of(patient)
    for number in range(1, 4):
        patient.peer.send(b'.')
        other.peer.send(b'.')
        alarm.wait(TIMEOUT, lines)  # type: ignore[arg-type]
        assert (patient.reads, other.reads) == (0, number)
    patient.is_patient = False
    patient.rings = True
    alarm.wait(TIMEOUT, lines)  # type: ignore[arg-type]
    assert (patient.reads, other.reads) == (1, 3)


def test_what_may_lie_is_read_in_a_moment_where_nothing_else_comes(lines: tuple[Line, Line]) -> None:
    patient, _ = lines
    patient.rings = True
    patient.peer.send(b'.')
    alarm_of(patient).wait(TIMEOUT, lines)  # type: ignore[arg-type]
    assert patient.reads == 1


def test_what_may_lie_does_not_do_so_for_a_message_that_comes_piece_by_piece(lines: tuple[Line, Line]) -> None:
    patient, other = lines
    patient.rings, other.rings = True, False
    patient.peer.send(b'.')
    other.peer.send(b'.' * 1000)
    alarm_of(patient).wait(TIMEOUT, lines)  # type: ignore[arg-type]
    assert patient.reads == 1
    assert other.reads < 10


def test_a_patient_wait_ends_in_time(lines: tuple[Line, Line]) -> None:
    begin = time.monotonic()
    alarm_of(lines[0]).wait(0.02, lines)  # type: ignore[arg-type]
    assert 0.02 <= time.monotonic() - begin < AT_ONCE


def may_lie(connection: Any, read_ago: float = 0.0) -> bool:
    """Whether a thread that begins to wait for a connection would leave unread what comes.

    :param read_ago: seconds since the connection was last read
    """
    alarm = ReadingAlarm()
    link: Any = types.SimpleNamespace(number=1, read_at=time.monotonic() - read_ago, turn=lent_to(alarm))
    outbox: Any = types.SimpleNamespace(gathered=0)
    readership = Readership(connection.channels)
    readership.start_over(NOWHERE, Tick(NOWHERE, NOWHERE.add_callback_threadsafe), outbox)
    readership.link = link
    readership.begin(alarm)
    alarm._let_go()
    assert alarm.reading == {1: link}
    return alarm.unread == [1]


def lent_to(alarm: ReadingAlarm) -> Turn:
    turn = Turn(lambda callback: callback(), lambda _: None)
    turn.ask(alarm)
    assert (turn.holder, turn.reader) == (Holder.LENT, alarm)
    return turn


def test_what_comes_for_a_connection_with_nothing_but_confirms_may_lie(bench: Bench) -> None:
    producer = bench.producer()
    producer.message_echo().wait(TIMEOUT)
    eventually(lambda: may_lie(producer.conn_broker))  # a busy machine may be late
    assert not may_lie(producer.conn_broker, read_ago=0.1)


def test_where_answers_are_awaited_nothing_may_lie(answered: EchoProducer) -> None:
    assert answered.rpc_echo()
    assert not may_lie(answered.conn_broker)


def test_where_messages_are_consumed_nothing_may_lie(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    eventually(lambda: not may_lie(echo.consumer.conn_broker))


def test_a_confirm_that_a_thread_waits_for_may_not_lie(bench: Bench, held: HeldConfirms) -> None:
    producer = bench.producer()
    connection = producer.conn_broker
    receipt = producer.message_echo()
    assert may_lie(connection)
    told = Seen()
    receipt.add_done_callback(lambda: told.put('settled'))
    receipt.add_done_callback(lambda: told.put('settled'))
    assert not may_lie(connection)
    held.arrived.next()
    held.release()
    told.take(2)
    eventually(lambda: may_lie(connection))  # the callbacks come first


@pytest.mark.parametrize(('prefetch', 'is_urgent'), [(1, True), (2, True), (3, False), (None, False)])
def test_the_confirm_of_a_reply_may_lie_where_more_requests_may_come_meanwhile(
    bench: Bench, held: HeldConfirms, prefetch: int | None, is_urgent: bool
) -> None:
    class Consumer(messaging.GenericConsumer):
        prefetch_count = prefetch

    class Responder(Echo):
        consumer_class = Consumer

    bench.run(Responder())
    producer = bench.producer()
    assert producer.rpc_echo()
    held.arrived.next()
    connection = producer.conn_broker  # on which the reply went out, too
    (publisher,) = connection.publishers.values()
    assert bool(publisher.urgent) == is_urgent
    held.release()
    eventually(lambda: not publisher.urgent)


# Who reads


def test_a_thread_that_waits_for_answers_reads_them_itself(answered: EchoProducer) -> None:
    become_reader(answered)


def test_a_scheduler_that_waits_reads_its_deliveries_itself(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()

    def is_read_by_the_scheduler() -> bool:
        producer.message_echo()
        echo.seen.next()
        return echo.consumer.conn_broker.link.turn.reader is not None

    eventually(is_read_by_the_scheduler)


def test_a_reader_that_stays_away_gives_reading_back(answered: EchoProducer) -> None:
    become_reader(answered)
    begin = time.monotonic()
    eventually(lambda: answered.conn_broker.link.turn.reader is None)  # type: ignore[union-attr]
    assert time.monotonic() - begin < 10 * tick.SECONDS + AT_ONCE


def test_a_reader_that_never_came_to_read_gives_reading_back(answered: EchoProducer) -> None:
    connection: Any = answered.conn_broker
    eventually(lambda: connection.link.turn.reader is None)
    granted = threading.Event()

    class Absent:
        ring = granted.set

    connection.link.turn.ask(Absent())
    connection.tick.stir()
    assert granted.wait(TIMEOUT)
    eventually(lambda: connection.link.turn.reader is None)


def test_whoever_blocks_otherwise_is_not_kept_waiting_by_a_reader_that_is_away(answered: EchoProducer) -> None:
    for _ in range(5):
        become_reader(answered)
        begin = time.monotonic()
        answered.message_echo().wait(TIMEOUT)
        assert time.monotonic() - begin < AT_ONCE


def test_two_threads_that_wait_for_one_connection_both_get_their_answers_at_once(answered: EchoProducer) -> None:
    def ask() -> float:
        longest = 0.0
        for number in range(100):
            begin = time.monotonic()
            assert answered.rpc_echo(number).body['content']['value'] == number
            longest = max(longest, time.monotonic() - begin)
        return longest

    with ThreadPoolExecutor(2) as pool:
        for asking in [pool.submit(ask) for _ in range(2)]:
            assert asking.result(TIMEOUT) < AT_ONCE


def test_one_thread_that_waits_for_long_brings_others_their_answers(bench: Bench, answered: EchoProducer) -> None:
    bench.consumer([(EchoExchange, [('nobody', 'nobody')])])
    silent = bench.producer(type('Silent', (EchoProducer,), {'eks': [(EchoExchange, 'nobody')]}))
    with ThreadPoolExecutor(1) as pool:
        waiting_long = pool.submit(silent.rpc_echo, 'never answered', _timeout=2)
        while not waiting_long.done():
            begin = time.monotonic()
            answered.rpc_echo('asked')
            assert time.monotonic() - begin < AT_ONCE


def test_several_schedulers_may_share_a_connection(bench: Bench) -> None:
    keys = [f'key-{number}' for number in range(4)]
    echoes = [Echo([(EchoExchange, [(f'queue-{key}', key)])]) for key in keys]
    for echo in echoes:
        bench.run(echo)
    producer = bench.producer()
    for number in range(50):
        for key in keys:
            producer.message_echo(number, _key=key)
            assert producer.rpc_echo(key, _key=key).body['content']['value'] == key
    for echo in echoes:
        assert echo.seen.take(50) == list(range(50))


def test_where_the_system_has_no_eventfd_the_i_o_thread_alone_reads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, 'CAN_READ', False)
    monkeypatch.setattr(link, 'CAN_READ', False)

    def ask() -> None:
        assert alarm_of_thread() is None
        for number in range(20):
            assert producer.rpc_echo(number).body['content']['value'] == number
            assert producer.conn_broker.link.turn is None
        future = producer.rpc_future_echo('future')
        assert future.result(TIMEOUT).body['content']['value'] == 'future'

    bench.run(Echo())
    producer = bench.producer()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask).result(TIMEOUT)


def test_a_connection_that_is_closed_while_its_reader_is_away_says_farewell(
    bench: Bench, answered: EchoProducer
) -> None:
    become_reader(answered)
    connection = answered.conn_broker
    begin = time.monotonic()
    answered.close()
    assert connection.is_closed
    assert time.monotonic() - begin < AT_ONCE
    assert not bench.log.find('was lost')


def test_a_connection_lost_while_its_reader_is_away_is_made_again(bench: Bench, proxied: Proxy) -> None:
    bench.closing(BareResponder(bench.broker, bench.collect(key='asked'), answer))
    producer = bench.producer(Asking)
    for times in range(1, 4):
        become_reader(producer)
        proxied.cut()
        assert producer.rpc_echo('again').body['content']['value'] == 'again'
        eventually(lambda times=times: len(bench.log.find('WARNING', 'was lost')) == times)


# Callbacks on the thread that reads


@pytest.mark.parametrize(
    'block',
    [
        lambda producer: producer.rpc_echo(),
        lambda producer: producer.rpc_future_echo().result(TIMEOUT),
        lambda producer: producer.message_echo('callback').wait(TIMEOUT),
        lambda producer: producer.flush(TIMEOUT),
        lambda producer: producer.channel.queue_declare('queue'),
    ],
    ids=['rpc', 'future', 'receipt', 'flush', 'operation'],
)
@pytest.mark.parametrize('who', ['reader', 'I/O thread'])
def test_a_call_that_blocks_in_a_callback_is_refused_at_once(
    answered: EchoProducer, block: Callable[[EchoProducer], object], who: str
) -> None:
    outcome = Seen()

    def called_back(_future: Future[Any]) -> None:
        try:
            outcome.put(block(answered))
        except RuntimeError as error:
            outcome.put(error)

    if who == 'reader':
        become_reader(answered)
        with Batch():  # the answer is not to come before the callback is there, which would be called here and now
            future = answered.rpc_future_echo('asked')
            future.add_done_callback(called_back)
        assert future.result(TIMEOUT).body['content']['value'] == 'asked'
    else:
        answered.conn_broker.tell(lambda: called_back(Future()))
    error = outcome.next()
    assert isinstance(error, RuntimeError)
    assert 'callback of a connection' in str(error)
    assert answered.rpc_echo('and on').body['content']['value'] == 'and on'


def test_a_receipt_s_callback_that_raises_is_logged_and_costs_no_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise ValueError('inside a callback')

    producer = bench.producer()
    producer.message_echo().wait(TIMEOUT)
    with Batch():
        receipt = producer.message_echo()
        receipt.add_done_callback(fails)
    receipt.wait(TIMEOUT)
    bench.log.expect('ERROR', 'a callback of', 'inside a callback')
    producer.message_echo().wait(TIMEOUT)
    assert not bench.log.find('was lost')


def test_a_connection_that_is_closed_in_a_callback_is_not_waited_for(answered: EchoProducer) -> None:
    connection = answered.conn_broker
    done = Seen()

    def close(_future: Future[Any]) -> None:
        begin = time.monotonic()
        connection.close()
        done.put(time.monotonic() - begin)

    future = answered.rpc_future_echo('asked')
    future.add_done_callback(close)
    future.result(TIMEOUT)
    assert done.next() < AT_ONCE
    eventually(lambda: connection.is_closed)


# Ctrl-C


def test_ctrl_c_inside_the_reader_costs_a_connection_and_loses_nothing(bench: Bench, answered: EchoProducer) -> None:
    queue = bench.collect()
    become_reader(answered)
    (channel,) = [channel for channel in answered.conn_broker.channels if isinstance(channel, ReplyChannel)]
    delivered = channel.delivered
    main = threading.current_thread()

    def interrupted(content: Any) -> None:
        if threading.current_thread() is main:
            channel.delivered = delivered  # type: ignore[method-assign]
            raise KeyboardInterrupt
        delivered(content)

    channel.delivered = interrupted  # type: ignore[method-assign]
    receipts = []

    def ask() -> None:
        while True:
            receipts.append(answered.message_echo(len(receipts), _key='echo-rk'))
            answered.rpc_echo('asked')

    with pytest.raises(KeyboardInterrupt):
        ask()
    bench.log.expect('was lost', 'interrupted while reading')
    for receipt in receipts:
        receipt.wait(TIMEOUT)
    assert {bench.get(queue).parameters for _ in receipts} == set(range(len(receipts)))
    assert answered.rpc_echo('and on').body['content']['value'] == 'and on'


INTERRUPTED = """
import threading
from postage import messaging

class Exchange(messaging.Exchange):
    name = 'echo-exchange'

class Producer(messaging.GenericProducer):
    eks = [(Exchange, 'echo-rk')]
    rpc_timeout, max_retry = 2, 4

producer = Producer()
sent = []

def ask():
    print('asking', flush=True)
    while True:
        sent.append(producer.message_echo(len(sent)))
        producer.rpc_echo('asked')

for _ in range(5):
    try:
        ask()
    except KeyboardInterrupt:
        pass
producer.flush(10)
assert all(receipt.confirmed for receipt in sent[:-1])
print('sent', len(sent))
"""


def test_a_program_that_catches_ctrl_c_goes_on_and_has_lost_nothing(
    bench: Bench, run_program: Callable[..., Program]
) -> None:
    echo = Echo()
    bench.run(echo)
    program = run_program(INTERRUPTED)
    for times in range(1, 6):
        program.expect('asking', times=times)
        echo.seen.take(20)
        program.send_signal(signal.SIGINT)
    assert program.wait() == 0, program.output


# Nothing is left behind


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='counts file descriptors in /proc')
def test_connections_that_come_and_go_leave_no_descriptor(bench: Bench) -> None:
    def come_and_go() -> None:
        producer = EchoProducer()
        producer.rpc_echo()
        producer.close()

    bench.run(Echo())
    bench.bare.queue_declare('opened', durable=True)
    come_and_go()
    gc.collect()
    before = descriptors()
    for _ in range(50):
        come_and_go()
    gc.collect()
    eventually(lambda: descriptors() <= before)


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='counts file descriptors in /proc')
def test_connections_that_are_lost_and_made_again_leave_no_descriptor(
    bench: Bench, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, 'SHORT_LIFE', 0.0)  # else the pauses grow, as nothing here lives long
    echo = Echo([(EchoExchange, [('asked', 'asked')])])
    bench.run(echo)
    producer = bench.producer(Asking)
    producer.rpc_echo()
    before = None
    for number in range(50):
        lost = len(bench.log.find('was lost'))
        proxied.cut()
        eventually(lambda lost=lost: len(bench.log.find('was lost')) >= lost + 2)
        producer.rpc_echo()
        eventually(lambda: echo.consumer.conn_broker.is_open)
        if number == 2:
            gc.collect()
            before = descriptors()
    gc.collect()
    assert before is not None
    eventually(lambda: descriptors() <= before)


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='counts file descriptors in /proc')
def test_threads_that_ask_once_leave_no_descriptor(answered: EchoProducer) -> None:
    before = descriptors()
    for _ in range(50):
        asking = threading.Thread(target=answered.rpc_echo)
        asking.start()
        asking.join(TIMEOUT)

    def is_clean() -> bool:
        gc.collect()
        return descriptors() <= before

    eventually(is_clean)


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='counts file descriptors in /proc')
def test_a_connection_whose_broker_never_answers_its_farewell_leaves_no_descriptor(
    bench: Bench, proxied: Proxy
) -> None:
    before = descriptors()
    producer = EchoProducer()
    producer.message_echo().wait(TIMEOUT)
    proxied.swallow()
    close_in_half_a_second(producer)
    proxied.cut()

    def is_clean() -> bool:
        gc.collect()
        return descriptors() <= before

    eventually(is_clean)


def close_in_half_a_second(producer: EchoProducer) -> None:
    producer.conn_broker.close(timeout=0.5)
    producer.close()


# Futures


def test_a_future_that_is_not_done_in_time_is_left_alone(answered: EchoProducer) -> None:
    future: Future[None] = Future()
    begin = time.monotonic()
    wait_until_done(future, answered.conn_broker.readership, 0.05)
    assert time.monotonic() - begin >= 0.05
    assert not future.done()


def test_an_rpc_whose_headers_amqp_cannot_hold_is_an_error_and_others_still_time_out(
    bench: Bench, answered: EchoProducer
) -> None:
    for ask in (answered.rpc_echo, answered.rpc_future_echo):
        with pytest.raises(errors.EncodingError, match='object'):
            ask(_headers={'x': object()})
    bench.consumer([(EchoExchange, [('nobody', 'nobody')])])
    unanswered = answered.rpc_echo(_key='nobody', _timeout=0.1)
    assert unanswered.body['content']['value'] == 'TimeoutError'


def test_a_future_that_is_waited_for_again_and_again_is_given_one_callback(answered: messaging.GenericProducer) -> None:
    class Counting(Future[None]):
        callbacks = 0

        def add_done_callback(self, fn: Callable[[Future[None]], object]) -> None:
            self.callbacks += 1
            super().add_done_callback(fn)

    future = Counting()
    for _ in range(3):
        wait_until_done(future, answered.conn_broker.readership, 0.001)
    assert future.callbacks == 1


# Ctrl-C at each moment of a wait


class LentLink:
    """What stands for a link, with a turn of its own and two ends of a socket.

    :ivar loop_reads: whether the loop watches the socket
    """

    read_at = 0.0

    def __init__(self, loop: StepLoop) -> None:
        self.turn = Turn(loop.add_callback_threadsafe, self._set_loop_reads)
        self.loop_reads = True
        self.received = b''
        self._socket, self.peer = socket.socketpair()
        self._socket.setblocking(False)
        self.number = self._socket.fileno()

    def _set_loop_reads(self, on: bool) -> None:
        self.loop_reads = on

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.received += self._socket.recv(100)

    def fail_soon(self, _error: Exception) -> None:
        self.turn.is_over = True

    def close(self) -> None:
        self._socket.close()
        self.peer.close()


def in_another_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(TIMEOUT)


@contextlib.contextmanager
def lent_and_next() -> Iterator[tuple[ReadingAlarm, StepLoop, Readership, LentLink, LentLink]]:
    """This thread's alarm, which has the turn to read a link, and a link that may come after that one."""
    alarm, loop = alarm_of_thread(), StepLoop()
    assert alarm is not None
    channel, outbox = types.SimpleNamespace(is_awaited=True), types.SimpleNamespace(gathered=0)
    readership = Readership([channel])
    readership.start_over(loop, Tick(loop, loop.add_callback_threadsafe), outbox)  # type: ignore[arg-type]
    with contextlib.closing(LentLink(loop)) as lent, contextlib.closing(LentLink(loop)) as following:
        readership.link = lent  # type: ignore[assignment]
        alarm.wait(0, [readership])
        loop.run()
        assert (lent.turn.reader, lent.loop_reads) == (alarm, False)
        yield alarm, loop, readership, lent, following
        alarm.wait(0, [])


WHERE_THREADS_WAIT = {turns.__file__, link.__file__, threads.__file__, tick.__file__}


@pytest.mark.parametrize('comes', [False, True], ids=['nothing comes', 'something comes'])
@pytest.mark.parametrize('is_first', [False, True], ids=['as before', 'the first with the turn'])
@pytest.mark.parametrize('lies', [False, True], ids=['awaited', 'may lie unread'])
def test_after_ctrl_c_at_any_moment_of_a_wait_no_thread_waits_for_ever_and_the_turn_goes_on(
    comes: bool, is_first: bool, lies: bool
) -> None:
    def attempt(interruption: Interruption) -> None:
        with lent_and_next() as (alarm, _, readership, lent, _):
            if not is_first:
                alarm.wait(0, [readership])
            if comes:
                lent.peer.send(b'first')
            readership._channels[0].is_awaited = not lies
            lent.read_at = math.inf if lies else 0.0
            with interruption, contextlib.suppress(KeyboardInterrupt):
                alarm.wait(0.001, [readership])
            check_whole(alarm, readership, lent)

    assert at_each_moment(WHERE_THREADS_WAIT, attempt) > 20


def test_after_ctrl_c_at_any_moment_of_the_wait_that_follows_a_loss_the_next_connection_is_read() -> None:
    def attempt(interruption: Interruption) -> None:
        with lent_and_next() as (alarm, loop, readership, lent, following):
            alarm.wait(0, [readership])
            lent.turn.is_over = True
            readership.link = following  # type: ignore[assignment]
            with interruption, contextlib.suppress(KeyboardInterrupt):
                alarm.wait(0.001, [readership])
            for _ in range(5):
                alarm.wait(0, [readership])
                loop.run(tick.SECONDS)
            assert following.turn.reader is alarm
            check_whole(alarm, readership, following)

    assert at_each_moment(WHERE_THREADS_WAIT, attempt) > 10


def check_whole(alarm: ReadingAlarm, readership: Readership, lent: LentLink) -> None:
    """This thread may wait and send again, and the I/O thread may have the turn."""
    assert not this_thread.is_reading
    assert this_thread.batch is None
    readership._channels[0].is_awaited = True
    if not lent.turn.is_over:
        lent.peer.send(b'second')
        alarm.wait(0.01, [readership])
        assert lent.received.endswith(b'second')
    alarm.wait(0, [])
    assert in_another_thread(lambda: lent.turn.lock.acquire(timeout=1.0) and (lent.turn.lock.release() or True))
    if not lent.turn.is_over:
        in_another_thread(lent.turn.take_back)
        assert lent.loop_reads
    assert readership._waiting <= {alarm}
