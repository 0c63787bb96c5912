"""What is asked of an I/O thread comes to an end in time and is not done later; what it is told and fails is logged."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from postage import errors
from postage.amqp.io_thread import IOThread
from postage.amqp.steps import Operation, Steps, done
from postage.amqp.threads import this_thread
from support.messaging import TIMEOUT, Seen, eventually


class Setting:
    """An I/O thread, and what is noted on it."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.io = IOThread('postage-tried', 'somewhere', lambda: self.seen.put('start'), lambda: self.seen.put('end'))

    def ask(self, steps: Steps, timeout: float = TIMEOUT) -> Any:
        return self.io.ask(steps, timeout, contextlib.nullcontext())

    def end(self) -> None:
        self.io.end(self.io.loop.stop, TIMEOUT, contextlib.nullcontext())

    def noting(self, *futures: Future[Any]) -> Steps:
        """Steps over some futures."""
        try:
            for number, future in enumerate(futures):
                self.seen.put(number)
                yield future
            self.seen.put('all steps')
            return 'answer'
        finally:
            self.seen.put('steps ended')

    @property
    def is_running(self) -> bool:
        return any(thread.name == 'postage-tried' for thread in threading.enumerate())


@pytest.fixture
def on() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    setting.end()


def operation(is_under_way: bool) -> Operation:
    """An operation that has begun, or waits for its turn."""
    declaration = Operation('queue_declare', {'queue': 'jobs'}, "declare queue 'jobs'")
    if is_under_way:
        declaration.set_running_or_notify_cancel()
    return declaration


# The thread


def test_the_thread_begins_with_the_first_thing_there_is_to_do_and_is_told_so_before(on: Setting) -> None:
    assert not on.is_running
    on.io.tell(lambda: on.seen.put('work'))
    assert on.seen.take(2) == ['start', 'work']
    on.end()
    assert on.seen.next() == 'end'
    assert on.io.has_ended
    assert not on.is_running


def test_threads_that_have_something_to_do_at_the_same_time_begin_it_once(on: Setting) -> None:
    together = threading.Barrier(8)

    def tell() -> None:
        together.wait(TIMEOUT)
        on.io.tell(lambda: on.seen.put('work'))

    with ThreadPoolExecutor(8) as pool:
        for telling in [pool.submit(tell) for _ in range(8)]:
            telling.result(TIMEOUT)
    assert on.seen.take(9) == ['start'] + ['work'] * 8


def test_one_that_never_began_ends_at_once_and_never_begins(on: Setting) -> None:
    on.end()
    on.io.tell(lambda: on.seen.put('work'))
    with pytest.raises(errors.ConnectionLost, match='the connection ended'):
        on.ask(on.noting())
    assert not on.is_running
    assert on.seen.empty()


def test_a_thread_that_the_system_does_not_allow_is_an_error_each_time_and_not_a_wait_for_ever(
    on: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, 'start', refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start"):
                on.ask(on.noting())
    assert on.ask(on.noting()) == 'answer'


@pytest.fixture(params=['before', 'after'])
def interrupted(on: Setting, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> threading.Thread:
    """The I/O thread that was being started when Ctrl-C came: before the system had one, or just after that."""
    begun: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupt(thread: threading.Thread) -> None:
        begun.append(thread)
        if request.param == 'after':
            start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, 'start', interrupt)
        with pytest.raises(KeyboardInterrupt):
            on.io.tell(lambda: on.seen.put('never'))
    return begun[0]


@pytest.mark.usefixtures('interrupted')
def test_ctrl_c_while_its_thread_is_started_leaves_it_one_thread(on: Setting) -> None:
    assert on.ask(on.noting()) == 'answer'
    assert on.seen.take(3) == ['start', 'all steps', 'steps ended']
    on.end()
    assert on.seen.next() == 'end'
    assert on.seen.empty()
    assert not on.is_running


def test_one_whose_start_was_interrupted_can_be_ended(on: Setting, interrupted: threading.Thread) -> None:
    on.end()
    if interrupted.ident is not None:
        interrupted.join(TIMEOUT)
    assert not on.is_running


def test_an_exception_in_a_callback_is_logged_and_ends_neither_the_thread_nor_what_waits(
    on: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise ValueError('in a callback')

    on.io.call_soon(fails)
    assert on.ask(on.noting(done())) == 'answer'
    assert 'an unexpected error on the connection thread of somewhere' in caplog.text
    assert 'in a callback' in caplog.text


# Asking


def test_what_steps_return_is_the_answer(on: Setting) -> None:
    assert on.ask(on.noting(done(), done())) == 'answer'
    assert on.seen.take(5) == ['start', 0, 1, 'all steps', 'steps ended']


def test_what_steps_raise_is_raised(on: Setting) -> None:
    failed: Future[None] = Future()
    failed.set_exception(errors.NotFound('no such queue', 404, 'NOT_FOUND'))
    with pytest.raises(errors.NotFound, match='no such queue'):
        on.ask(on.noting(failed))


def test_after_the_time_out_nothing_of_it_is_done_later(on: Setting) -> None:
    answer = operation(is_under_way=False)
    with pytest.raises(errors.ConnectionLost, match=r'^the broker at somewhere did not answer for 0.05 s$'):
        on.ask(on.noting(answer), 0.05)
    assert on.seen.take(3) == ['start', 0, 'steps ended']
    eventually(answer.cancelled)  # withdrawn: no channel begins it any more
    assert on.ask(on.noting()) == 'answer'


def test_an_operation_under_way_at_the_time_out_is_named_for_it_may_still_be_done(on: Setting) -> None:
    answer = operation(is_under_way=True)
    with pytest.raises(errors.ConnectionLost, match=r"for 0.05 s; it was asked to declare queue 'jobs', which it may"):
        on.ask(on.noting(answer), 0.05)
    on.io.tell(lambda: answer.set_result('late'))
    assert on.ask(on.noting()) == 'answer'
    assert on.seen.take(5) == ['start', 0, 'steps ended', 'all steps', 'steps ended']


def test_the_time_out_is_kept_while_the_thread_is_slow_and_nothing_is_done_behind_it(on: Setting) -> None:
    """The same thread takes the steps and keeps their time, so there is no moment at which both could happen."""
    released = threading.Event()
    answer = operation(is_under_way=False)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(on.ask, on.noting(answer), 0.05)
        assert on.seen.take(2) == ['start', 0]
        on.io.tell(lambda: released.wait(TIMEOUT) and None)
        with pytest.raises(TimeoutError):
            asking.result(0.2)
        released.set()
        with pytest.raises(errors.ConnectionLost):
            asking.result(TIMEOUT)
    assert answer.cancelled()
    assert on.seen.next() == 'steps ended'
    assert on.seen.empty()


def test_a_time_out_that_is_not_reached_leaves_no_timer(on: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Any] = []
    call_later, remove_timeout = on.io.loop.call_later, on.io.loop.remove_timeout

    def noted(delay: float, callback: Callable[[], Any]) -> Any:
        timers.append(timer := call_later(delay, callback))
        return timer

    monkeypatch.setattr(on.io.loop, 'call_later', noted)
    monkeypatch.setattr(on.io.loop, 'remove_timeout', lambda timer: (timers.remove(timer), remove_timeout(timer)))
    for _ in range(10):
        on.ask(on.noting(done()), 3600.0)
    eventually(lambda: not timers)


def test_the_end_fails_those_who_ask(on: Setting) -> None:
    answer = operation(is_under_way=True)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(on.ask, on.noting(answer))
        assert on.seen.take(2) == ['start', 0]
        on.end()
        with pytest.raises(errors.ConnectionLost, match='the connection ended'):
            asking.result(TIMEOUT)


def test_whoever_asks_at_the_moment_of_the_end_gets_an_answer() -> None:
    """From many threads, many times: none waits for ever, and what was done was answered."""
    for _ in range(30):
        setting = Setting()
        setting.io.tell(lambda: None)
        answers = Seen()
        begin = threading.Barrier(5)

        def ask(setting: Setting, begin: threading.Barrier, answers: Seen) -> None:
            begin.wait(TIMEOUT)
            try:
                while True:
                    answers.put(setting.ask(setting.noting(done())))
            except errors.ConnectionLost as error:
                answers.put(str(error))

        asking = [threading.Thread(target=ask, args=(setting, begin, answers), daemon=True) for _ in range(4)]
        for thread in asking:
            thread.start()
        begin.wait(TIMEOUT)
        setting.end()
        for thread in asking:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), 'it waits for ever'
        told = answers.take(answers.qsize())
        assert set(told) <= {'answer', 'the connection ended'}
        assert told.count('the connection ended') == 4


def test_a_question_whose_thread_sees_the_end_first_is_answered_once(
    on: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asking thread sees that the loop has ended, while the I/O thread looks for those who ask."""
    answer = operation(is_under_way=True)
    call_soon = on.io.call_soon

    def until_the_end(callback: Callable[[], object]) -> None:
        call_soon(callback)
        assert on.seen.take(2) == ['start', 0]
        on.io.loop.add_callback_threadsafe(on.io.loop.stop)
        eventually(lambda: on.io.has_ended)

    monkeypatch.setattr(on.io, 'call_soon', until_the_end)
    with pytest.raises(errors.ConnectionLost, match='the connection ended'):
        on.ask(on.noting(answer))
    assert on.seen.take(2) == ['steps ended', 'end']  # the I/O thread has met nothing on its way to its end


def test_ctrl_c_of_the_one_who_asks_withdraws_the_question(on: Setting) -> None:
    answer = operation(is_under_way=False)

    def interrupt() -> None:
        assert on.seen.take(2) == ['start', 0]
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        on.ask(on.noting(answer))
    interrupting.join(TIMEOUT)
    assert on.seen.next() == 'steps ended'
    eventually(answer.cancelled)


def test_ctrl_c_before_the_steps_were_begun_leaves_them_undone(on: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    call_soon = on.io.call_soon

    def interrupted(callback: Callable[[], object]) -> None:
        monkeypatch.setattr(on.io, 'call_soon', call_soon)
        call_soon(functools.partial(released.wait, TIMEOUT))
        call_soon(callback)
        raise KeyboardInterrupt

    released = threading.Event()
    monkeypatch.setattr(on.io, 'call_soon', interrupted)
    with pytest.raises(KeyboardInterrupt):
        on.ask(on.noting(done()))
    released.set()
    assert on.ask(done_steps()) is None
    assert on.seen.take(1) == ['start']
    assert on.seen.empty()


def done_steps() -> Steps:
    yield done()


def test_a_question_in_a_callback_is_refused_at_once(on: Setting) -> None:
    def ask() -> None:
        try:
            on.ask(on.noting(done()))
        except RuntimeError as error:
            on.seen.put(str(error))

    on.io.tell(ask)
    start, refusal = on.seen.take(2)
    assert start == 'start'
    assert 'blocking call from a callback' in refusal


# Telling


@pytest.mark.parametrize(
    ('error', 'level', 'text'),
    [
        (errors.ConnectionLost('it went'), 'DEBUG', 'something was left undone: it went'),
        (errors.Closed('it is closed'), 'DEBUG', 'something was left undone: it is closed'),
        (errors.NotFound('no such queue', 404, 'NOT_FOUND'), 'ERROR', 'no such queue'),
        (errors.ChannelLost('another was refused'), 'ERROR', 'another was refused'),
        (ValueError('a bug'), 'ERROR', 'unexpected, on the connection thread of somewhere'),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize('at', ['once', 'a step', 'a later step'])
def test_what_it_is_told_and_fails_is_logged(
    on: Setting, caplog: pytest.LogCaptureFixture, error: Exception, level: str, text: str, at: str
) -> None:
    def work() -> Steps | None:
        if at == 'once':
            raise error
        return steps()

    def steps() -> Steps:
        if at == 'a later step':
            yield later
        yield done()
        raise error

    caplog.set_level(logging.DEBUG, logger='postage')
    later: Future[None] = Future()
    on.io.tell(work)
    on.io.tell(lambda: later.set_result(None))
    on.ask(on.noting())
    (record,) = [record for record in caplog.records if record.name == 'postage']
    assert (record.levelname, text in record.getMessage()) == (level, True)
    if isinstance(error, ValueError):
        assert record.exc_info is not None
        assert 'a bug' in caplog.text


def test_what_is_told_is_done_in_order_and_not_waited_for(on: Setting) -> None:
    released = threading.Event()
    begin = time.monotonic()
    on.io.tell(lambda: released.wait(TIMEOUT) and None)
    for number in range(100):
        on.io.tell(functools.partial(on.seen.put, number))
    assert time.monotonic() - begin < 1.0
    assert on.seen.next() == 'start'
    released.set()
    assert on.seen.take(100) == list(range(100))


def test_the_i_o_thread_knows_that_it_must_not_block(on: Setting) -> None:
    on.io.tell(lambda: on.seen.put(this_thread.is_reading))
    assert on.seen.take(2) == ['start', True]
    assert not this_thread.is_reading


# What another thread settles


def test_what_another_thread_settles_is_known_on_the_i_o_thread(on: Setting) -> None:
    settled: Future[None] = Future()

    def wait() -> Steps:
        yield on.io.settled_by(settled, time.monotonic() + TIMEOUT)
        on.seen.put(threading.current_thread().name)

    on.io.tell(wait)
    assert on.seen.next() == 'start'
    settled.set_result(None)
    assert on.seen.next() == 'postage-tried'


def test_what_is_not_settled_in_time_is_not_waited_for(on: Setting) -> None:
    never: Future[None] = Future()
    settled: Future[None] = done()
    for future, at_least in ((never, 0.05), (settled, 0.0)):
        begin = time.monotonic()
        on.ask(waiting_for(on, future, begin + 0.05))
        assert at_least <= time.monotonic() - begin < 1.0
    never.set_result(None)
    assert on.ask(on.noting()) == 'answer'


def waiting_for(on: Setting, future: Future[None], deadline: float) -> Steps:
    yield on.io.settled_by(future, deadline)


def test_a_pause_ends_in_its_time(on: Setting) -> None:
    def pause() -> Steps:
        yield on.io.pause(0.05)

    begin = time.monotonic()
    on.ask(pause())
    assert time.monotonic() - begin >= 0.05
