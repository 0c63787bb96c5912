"""Interleavings of two threads that one can read out of the code, each of them forced.

What forces each of them is one function in the first part of this file, and all that knows the names of internals.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from postage import errors
from postage.amqp.steps import Steps
from postage.amqp.topology import Queue
from postage.amqp.turns import alarm_of_thread
from postage.messaging import forwarding
from support.messaging import TIMEOUT, BareResponder, Bench, EchoProducer, eventually, result

PAUSE = 0.3
"""Seconds for which a thread is held in the middle of what it does; where a lock keeps the other out, it goes on."""


# What forces them


def hold_where_a_failure_is_noted_as_told(receipt: Any, threads: int) -> None:
    """Have threads that are about to note that a failed message was told meet there, before they act."""

    class Failures(deque[Any]):
        def remove(self, error: object) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(PAUSE)
            super().remove(error)

    meeting = threading.Barrier(threads)
    receipt.ledger.failures = Failures(receipt.ledger.failures)


def give_up_in_the_middle_of_sending(producer: Any) -> threading.Event:
    """Have the I/O thread give up all that is unsettled while a thread has looked whether there is something to send.

    :return: set when that has happened
    """

    class Pending(deque[Any]):
        def __bool__(self) -> bool:
            found = len(self) > 0
            if found and threading.current_thread() is sender and not begun.is_set():
                begun.set()
                producer.conn_broker.tell(give_up)
                over.wait(PAUSE)
            return found

    def give_up() -> None:
        channel.give_up(errors.Closed('the connection is closed'))
        over.set()

    sender, begun, over = threading.current_thread(), threading.Event(), threading.Event()
    channel = producer._publisher
    channel._pending = Pending()
    return over


def resize_in_the_middle_of_resizing(consumer: Any) -> tuple[int, int]:
    """Have the thread that consumes want many messages, and before it has said so the I/O thread a single one.

    :return: how many are prefetched in the end, and how many are wanted
    """

    def tell(work: Callable[[], Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            connection.io.call_soon(slow_down)
            over.wait(PAUSE)
        do(work)

    def slow_down() -> None:
        consumer.delivery_source._prefetch.slow_down()
        over.set()

    def is_at_rest() -> bool:
        connection.ask(nothing)
        return not consumer.delivery_source.channel.consumers._is_resizing

    over = threading.Event()
    connection = consumer.conn_broker
    do, connection.tell = connection.tell, tell
    try:
        consumer.delivery_source.took(1000, 0.0001)
    finally:
        del connection.tell
    assert over.wait(TIMEOUT)
    eventually(is_at_rest)
    return consumer.delivery_source.channel.prefetch, consumer.delivery_source._prefetch.pace.prefetch


def nothing() -> Steps:
    yield from ()


def raise_in_steps(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have something raise in the declaration of a delay queue that no broker has said."""

    def declare_queue(*_: Any) -> Iterator[Any]:
        yield from ()
        raise error

    monkeypatch.setattr(forwarding, 'declare_queue', declare_queue)


def interrupt_behind_the_beginning_of_reading(producer: Any) -> Any:
    """Have Ctrl-C come when this thread has just begun to read the connection.

    :return: the lock that it holds while it reads
    """

    def begin_reading(alarm: Any) -> None:
        begin(alarm)
        if alarm.reading:
            raise KeyboardInterrupt

    connection = producer.conn_broker
    eventually(lambda: producer.rpc_echo() and connection.link.turn.reader is alarm_of_thread())
    lock, readership = connection.link.turn.lock, connection.readership
    begin, readership.begin = readership.begin, begin_reading
    try:
        with pytest.raises(KeyboardInterrupt):
            producer.rpc_echo()
    finally:
        del readership.begin
    return lock


def operate_between_the_news_of_a_close_and_the_close(
    producer: Any, operation: Callable[[Any], Future[Any]]
) -> Future[Any]:
    """Have an operation begin when the thread that reads has seen that the channel is closed, and pika has not.

    :param operation: called with the channel on the I/O thread, gives the future of its answer
    :return: its outcome
    """

    def closing() -> None:
        close()
        if not begun.is_set():
            begun.set()
            connection.io.call_soon(begin)

    def begin() -> None:
        operation(control).add_done_callback(copy)

    def copy(done: Future[Any]) -> None:
        if done.exception() is not None:
            outcome.set_exception(done.exception())
        else:
            outcome.set_result(done.result())

    begun, outcome = threading.Event(), Future[Any]()
    connection = producer.conn_broker
    control = connection.control
    close, control.closing = control.closing, closing
    return outcome


# The tests


def in_threads(number: int, call: Callable[[], object]) -> list[BaseException]:
    """What so many threads get out of the same call, at the same time."""

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    raised: list[BaseException] = []
    threads = [threading.Thread(target=run, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    return raised


class Mandatory(EchoProducer):
    mandatory = True


def test_two_threads_that_wait_for_a_failed_message_are_told_the_same(bench: Bench) -> None:
    receipt = bench.producer(Mandatory).message_echo(_key='no-queue')
    eventually(lambda: receipt.settled)
    hold_where_a_failure_is_noted_as_told(receipt, 2)
    assert [type(error) for error in in_threads(2, receipt.wait)] == [errors.Unroutable] * 2


def test_a_message_given_up_while_it_is_being_sent_is_settled_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'direct')  # else the I/O thread does both
    producer = bench.producer()
    over = give_up_in_the_middle_of_sending(producer)
    receipt = producer.message_echo()
    assert over.wait(TIMEOUT)
    eventually(lambda: receipt.settled)
    with contextlib.suppress(errors.PublishError):
        producer.flush(TIMEOUT)
    assert producer.conn_broker.is_open, 'the connection was given up as well'
    producer.flush(PAUSE)  # nothing is left, and nothing less than nothing


def test_the_prefetch_count_is_the_one_that_was_wanted_last(bench: Bench) -> None:
    consumer = bench.consumer()
    consumer.delivery_source.begin(lambda: None)
    try:
        prefetched, wanted = resize_in_the_middle_of_resizing(consumer)
        assert prefetched == wanted
    finally:
        consumer.delivery_source.end()


def test_an_unexpected_error_while_a_message_is_sent_on_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = bench.producer()
    forwarder = bench.closing(forwarding.Forwarder(producer._settings))
    raise_in_steps(monkeypatch, RuntimeError('out of order'))
    sent = forwarder.send('', 'delayed', b'\0\0', b'body', 'id', Queue('delayed', {'durable': True}))
    assert isinstance(sent.exception(TIMEOUT), RuntimeError)


def test_what_steps_raise_that_no_thread_waits_for_is_logged(bench: Bench) -> None:
    def steps() -> Generator[Future[Any], Any, None]:
        yield connection.io.pause(0.0)
        raise RuntimeError('out of order')

    connection = bench.producer().conn_broker
    connection.tell(steps)
    bench.log.expect('ERROR', 'out of order')


def test_a_thread_interrupted_when_it_has_begun_to_read_leaves_reading_to_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'direct')
    queue = bench.collect()
    bench.closing(BareResponder(bench.broker, queue, lambda _, request: answer(request)))
    producer = bench.producer()
    lock = interrupt_behind_the_beginning_of_reading(producer)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: lock.acquire(timeout=PAUSE) and (lock.release() or True)).result(TIMEOUT)
    assert producer.rpc_echo()


def answer(request: Any) -> list[Any]:
    return [(request.reply_to, result(True), request.correlation_id)] if request.reply_to else []


def test_an_operation_that_begins_while_its_channel_closes_is_not_told_the_reason_of_that(bench: Bench) -> None:
    producer = bench.producer()
    outcome = operate_between_the_news_of_a_close_and_the_close(
        producer, lambda control: control.operate('queue_declare', queue='healthy', durable=True)
    )
    with pytest.raises(errors.NotFound):
        producer.channel.queue_declare('missing', passive=True)
    assert outcome.result(TIMEOUT).method.queue == 'healthy'
    assert producer.channel.queue_declare('after', durable=True).method.queue == 'after'
