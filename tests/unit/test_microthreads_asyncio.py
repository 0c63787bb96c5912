"""A scheduler inside asyncio, coroutines and threads beside a scheduler, and how what runs there is ended."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from postage import microthreads
from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread, Signal, running_scheduler, sleep
from support.loops import Loop, Quitter, run, running

PATIENCE = 10.0


class Main(MicroThread):
    """A microthread whose ``main`` is the given generator function."""

    def __init__(self, main: Callable[[], Generator[Any, Any, Any]]) -> None:
        self.main = main  # type: ignore[method-assign]


def result_of(main: Callable[[MicroScheduler], Generator[Any, Any, Any]]) -> Any:
    """Run ``main(scheduler)`` as a microthread, and return what it returns."""
    scheduler = MicroScheduler(autoquit=True)
    results: list[Any] = []

    def noting() -> Generator[Any, Any, None]:
        results.append((yield from main(scheduler)))

    run(Main(noting), scheduler=scheduler)
    return results[0]


def inside_asyncio(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in a loop of its own, with a time limit."""

    async def limited() -> Any:
        return await asyncio.wait_for(main(), PATIENCE)

    return asyncio.run(limited())


def scheduler_of(*mains: Callable[[], Generator[Any, Any, Any]], autoquit: bool = True) -> MicroScheduler:
    scheduler = MicroScheduler(autoquit)
    for main in mains:
        scheduler.add_microthread(Main(main))
    return scheduler


# run_async


def test_it_runs_microthreads_until_the_last_one_has_ended() -> None:
    notes: list[int] = []

    def counts() -> Generator[Any, Any, None]:
        for number in range(3):
            notes.append(number)
            yield

    inside_asyncio(lambda: scheduler_of(counts).run_async())
    assert notes == [0, 1, 2]


def test_it_returns_after_exit_scheduler_and_closes_the_others() -> None:
    closed: list[str] = []

    def waits() -> Generator[Any, Any, None]:
        try:
            yield Future()
        finally:
            closed.append('closed')

    def quits() -> Generator[Any, Any, None]:
        yield sleep(0.01)
        raise ExitScheduler

    inside_asyncio(lambda: scheduler_of(waits, quits, autoquit=False).run_async())
    assert closed == ['closed']


def test_it_can_be_run_again_either_way() -> None:
    notes: list[str] = []

    def note() -> Generator[Any, Any, None]:
        notes.append('turn')
        yield

    scheduler = scheduler_of(note)
    inside_asyncio(scheduler.run_async)
    scheduler.add_microthread(Main(note))
    run(scheduler=scheduler)
    scheduler.add_microthread(Main(note))
    inside_asyncio(scheduler.run_async)
    assert notes == ['turn'] * 3


def test_asyncio_s_own_tasks_go_on_beside_a_busy_scheduler() -> None:
    turns = 0
    longest = 0.0
    stop = False

    def busy() -> Generator[Any, Any, None]:
        while not stop:
            yield

    async def main() -> None:
        nonlocal turns, longest, stop
        task = asyncio.create_task(scheduler_of(busy).run_async())
        last = time.monotonic()
        while turns < 50:
            await asyncio.sleep(0)
            turns += 1
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        stop = True
        await task

    inside_asyncio(main)
    assert longest < 0.2


def test_a_busy_asyncio_loop_lets_the_microthreads_go_on() -> None:
    turns: list[int] = []

    def counts() -> Generator[Any, Any, None]:
        for number in range(1000):
            turns.append(number)
            yield

    async def main() -> int:
        task = asyncio.create_task(scheduler_of(counts).run_async())
        rounds = 0
        while not task.done():
            await asyncio.sleep(0)
            rounds += 1
        return rounds

    rounds: int = inside_asyncio(main)
    assert turns == list(range(1000))
    assert rounds < 1000


def test_it_wakes_for_a_future_that_another_thread_finishes() -> None:
    future: Future[str] = Future()
    took: list[float] = []

    def waits() -> Generator[Any, Any, None]:
        yield future
        took.append(time.monotonic() - finished[0])

    def finish() -> None:
        finished.append(time.monotonic())
        future.set_result('done')

    finished: list[float] = []
    timer = threading.Timer(0.1, finish)
    timer.start()
    inside_asyncio(lambda: scheduler_of(waits).run_async())
    timer.join()
    assert took[0] < 0.1


def test_it_wakes_for_sleepers_signals_timers_and_new_microthreads() -> None:
    notes: list[str] = []
    signal = Signal()

    def sleeps() -> Generator[Any, Any, None]:
        yield sleep(0.01)
        notes.append('slept')

    def waits() -> Generator[Any, Any, None]:
        yield signal
        notes.append('signalled')

    def added() -> Generator[Any, Any, None]:
        notes.append('added')
        yield

    async def noted(number: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(notes) < number and time.monotonic() < deadline:
            await asyncio.sleep(0.001)

    async def main() -> None:
        scheduler = scheduler_of(sleeps, waits, autoquit=False)
        scheduler.call_later(0.02, lambda: notes.append('timer'))
        task = asyncio.create_task(scheduler.run_async())
        for number, action in ((2, signal.set), (3, lambda: scheduler.add_microthread(Main(added)))):
            await noted(number)
            action()
        await noted(4)
        scheduler.stop()
        await task

    inside_asyncio(main)
    assert notes == ['slept', 'timer', 'signalled', 'added']


def test_idle_inside_asyncio_it_uses_no_processor_time() -> None:
    used: list[float] = []

    def waits() -> Generator[Any, Any, None]:
        yield Future()

    async def main() -> None:
        scheduler = scheduler_of(*10_000 * [waits])
        task = asyncio.create_task(scheduler.run_async())
        while not scheduler.is_idle:
            await asyncio.sleep(0.01)
        before = time.process_time()
        await asyncio.sleep(0.5)
        used.append(time.process_time() - before)
        scheduler.stop()
        await task

    inside_asyncio(main)
    assert used[0] < 0.05


def test_cancelling_it_closes_the_microthreads() -> None:
    closed: list[str] = []

    def waits() -> Generator[Any, Any, None]:
        try:
            yield Future()
        finally:
            closed.append('closed')

    async def main() -> None:
        task = asyncio.create_task(scheduler_of(waits, waits).run_async())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == ['closed', 'closed']

    inside_asyncio(main)
    assert running_scheduler() is None


def test_a_failure_leaves_it_as_it_leaves_main(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Generator[Any, Any, None]:
        yield
        raise ValueError('the reason')

    with pytest.raises(ValueError, match='the reason'):
        inside_asyncio(lambda: scheduler_of(fails, autoquit=False).run_async())
    assert caplog.records[0].exc_info is not None


def test_what_was_registered_for_the_end_is_called_without_blocking_the_loop() -> None:
    calls: list[threading.Thread] = []
    scheduler = scheduler_of()
    scheduler.at_end(lambda: calls.append(threading.current_thread()))
    inside_asyncio(scheduler.run_async)
    assert len(calls) == 1
    assert calls[0] is not threading.current_thread()


def test_a_coroutine_runs_on_the_loop_that_drives_the_scheduler() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def which() -> asyncio.AbstractEventLoop:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async def main() -> None:
        scheduler = MicroScheduler(autoquit=True)

        def asks() -> Generator[Any, Any, None]:
            loops.append((yield scheduler.run_coroutine(which())))

        scheduler.add_microthread(Main(asks))
        await scheduler.run_async()
        assert loops == [asyncio.get_running_loop()]

    inside_asyncio(main)


def test_schedulers_inside_one_loop_and_in_other_threads_do_not_meet() -> None:
    notes: list[MicroScheduler | None] = []

    def asks() -> Generator[Any, Any, None]:
        for _ in range(20):
            notes.append(running_scheduler())
            yield

    first, second = scheduler_of(asks), scheduler_of(asks)

    async def main() -> None:
        await asyncio.gather(first.run_async(), second.run_async())

    inside_asyncio(main)
    assert notes.count(first) == notes.count(second) == 20
    assert running_scheduler() is None


# run_coroutine


async def answer(value: Any = 42) -> Any:
    await asyncio.sleep(0.01)
    return value


def test_a_microthread_gets_the_result_of_a_coroutine() -> None:
    def main(scheduler: MicroScheduler) -> Generator[Any, Any, Any]:
        return (yield scheduler.run_coroutine(answer()))

    assert result_of(main) == 42


def test_a_microthread_gets_the_exception_of_a_coroutine_at_the_yield() -> None:
    async def fails() -> None:
        raise KeyError('lost')

    def main(scheduler: MicroScheduler) -> Generator[Any, Any, Any]:
        try:
            yield scheduler.run_coroutine(fails())
        except KeyError as error:
            return str(error)

    assert result_of(main) == "'lost'"


def test_coroutines_share_one_thread_and_run_at_the_same_time() -> None:
    threads: set[str] = set()

    async def slow() -> None:
        threads.add(threading.current_thread().name)
        await asyncio.sleep(0.1)

    def main(scheduler: MicroScheduler) -> Generator[Any, Any, float]:
        began = time.monotonic()
        futures = [scheduler.run_coroutine(slow()) for _ in range(100)]
        for future in futures:
            assert (yield future) is None
        return time.monotonic() - began

    assert result_of(main) < 5
    assert threads == {'postage-asyncio'}


def test_cancelling_its_future_cancels_a_coroutine() -> None:
    notes: list[str] = []
    begun = threading.Event()
    ended = threading.Event()

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            notes.append('cancelled')
            ended.set()

    def main(scheduler: MicroScheduler) -> Generator[Any, Any, None]:
        future = scheduler.run_coroutine(waits())
        assert begun.wait(PATIENCE)
        future.cancel()
        try:
            yield future
        except CancelledError:
            notes.append('raised')
        assert ended.wait(PATIENCE)

    result_of(main)
    assert sorted(notes) == ['cancelled', 'raised']


def test_the_end_of_the_scheduler_cancels_its_coroutines_and_ends_their_thread() -> None:
    notes: list[str] = []
    begun = threading.Event()

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            notes.append('finally')

    scheduler = MicroScheduler()

    def starts() -> Generator[Any, Any, None]:
        yield scheduler.run_coroutine(waits())

    scheduler.add_microthread(Main(starts))
    loop = Loop(scheduler)
    assert begun.wait(PATIENCE)
    loop.stop()
    assert notes == ['finally'], 'before the loop has ended'
    assert 'postage-asyncio' not in {thread.name for thread in threading.enumerate()}


def test_a_coroutine_may_be_run_in_each_life_of_a_scheduler() -> None:
    scheduler = MicroScheduler(autoquit=True)
    results: list[Any] = []

    def main() -> Generator[Any, Any, None]:
        results.append((yield scheduler.run_coroutine(answer())))

    for _ in range(2):
        run(Main(main), scheduler=scheduler)
    assert results == [42, 42]


# executor


def test_functions_that_block_run_in_a_bounded_pool() -> None:
    together = 0
    most = 0
    lock = threading.Lock()

    def blocks() -> str:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.02)
        with lock:
            together -= 1
        return threading.current_thread().name

    def main(scheduler: MicroScheduler) -> Generator[Any, Any, list[str]]:
        scheduler.threads = 3
        names = []
        for future in [scheduler.executor.submit(blocks) for _ in range(10)]:
            names.append((yield future))
        return names

    names = result_of(main)
    assert most == 3
    assert all(name.startswith('postage-worker') for name in names)


def test_the_end_of_the_scheduler_drops_what_no_thread_has_begun() -> None:
    go_on = threading.Event()
    begun = threading.Event()
    futures: list[Future[Any]] = []
    scheduler = MicroScheduler()
    scheduler.threads = 1

    def blocks() -> None:
        begun.set()
        go_on.wait(PATIENCE)

    def main() -> Generator[Any, Any, None]:
        futures.extend(scheduler.executor.submit(blocks) for _ in range(3))
        yield futures[-1]

    scheduler.add_microthread(Main(main))
    loop = Loop(scheduler)
    assert begun.wait(PATIENCE)
    loop.stop()
    assert [future.cancelled() for future in futures] == [False, True, True]
    go_on.set()
    futures[0].result(PATIENCE)


# interrupt


class Interruption(Exception):
    """What the tests interrupt with."""


WAITS: dict[str, Callable[[], Any]] = {
    'future': Future,
    'sleep': lambda: sleep(60),
    'signal': Signal,
    'microthread': lambda: NEVER_ENDING,
}
NEVER_ENDING = MicroThread()


@pytest.mark.parametrize('waits_for', WAITS)
def test_interrupting_a_parked_microthread_raises_at_its_yield(waits_for: str) -> None:
    notes: list[str] = []
    scheduler = MicroScheduler()

    def waits() -> Generator[Any, Any, None]:
        try:
            yield WAITS[waits_for]()
        except Interruption:
            notes.append('interrupted')
        yield sleep(0)
        notes.append('goes on')

    parked = Main(waits)

    def interrupts() -> Generator[Any, Any, None]:
        yield sleep(0.01)
        scheduler.interrupt(parked, Interruption())
        yield parked
        raise ExitScheduler

    if waits_for == 'microthread':
        scheduler.add_microthread(NEVER_ENDING)
    run(parked, Main(interrupts), scheduler=scheduler)
    assert notes == ['interrupted', 'goes on']


def test_what_an_interrupted_microthread_waited_for_is_forgotten() -> None:
    future: Future[str] = Future()
    got: list[Any] = []
    scheduler = MicroScheduler(autoquit=True)

    def waits() -> Generator[Any, Any, None]:
        try:
            yield future
        except Interruption:
            got.append((yield sleep(0.05)))

    parked = Main(waits)

    def interrupts() -> Generator[Any, Any, None]:
        yield sleep(0.01)
        scheduler.interrupt(parked, Interruption())
        yield
        future.set_result('too late')

    run(parked, Main(interrupts), scheduler=scheduler)
    assert got == [None]


def test_an_interruption_that_is_not_caught_ends_that_microthread_alone(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    scheduler = MicroScheduler(autoquit=True)

    def waits() -> Generator[Any, Any, None]:
        yield Future()

    parked = Main(waits)

    def interrupts() -> Generator[Any, Any, None]:
        yield sleep(0.01)
        scheduler.interrupt(parked, Interruption())
        try:
            yield parked
        except Interruption:
            notes.append('joined')

    run(parked, Main(interrupts), scheduler=scheduler)
    assert notes == ['joined']
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[0] is Interruption


@pytest.mark.parametrize('added', [True, False])
def test_one_that_has_ended_or_was_never_added_is_left_alone(added: bool) -> None:
    scheduler = MicroScheduler(autoquit=True)

    def ends() -> Generator[Any, Any, None]:
        yield

    other = Main(ends)
    if added:
        run(other, scheduler=scheduler)
    scheduler.interrupt(other, Interruption())
    run(Main(ends), scheduler=scheduler)


# stop and wind_down


class Working(MicroThread):
    """Has something in hand until its time is over.

    :ivar notes: what has happened to it
    """

    def __init__(self, seconds: float) -> None:
        self.notes: list[str] = []
        self._seconds = seconds
        self._is_busy = True

    @property
    def is_busy(self) -> bool:
        return self._is_busy

    def wind_down(self) -> None:
        if 'wind down' not in self.notes:
            self.notes.append('wind down')

    def main(self) -> Generator[Any, Any, None]:
        try:
            yield sleep(self._seconds)
            self.notes.append('done')
            self._is_busy = False
            yield Future()
        finally:
            self.notes.append('closed')


def test_stop_ends_the_loop_once_what_is_in_hand_is_finished() -> None:
    working = [Working(0.05), Working(0.15)]
    scheduler = MicroScheduler()
    for each in working:
        scheduler.add_microthread(each)
    loop = Loop(scheduler)
    scheduler.stop()  # from another thread than the loop's
    loop.wait()
    assert [each.notes for each in working] == 2 * [['wind down', 'done', 'closed']]


def test_stop_ends_an_idle_loop_at_once() -> None:
    closed = threading.Event()

    def waits() -> Generator[Any, Any, None]:
        try:
            yield Future()
        finally:
            closed.set()

    with running(Main(waits)) as loop:
        threading.Event().wait(0.05)  # until it sleeps
        began = time.monotonic()
        loop.scheduler.stop()
        loop.wait()
        assert time.monotonic() - began < 1
    assert closed.is_set()


def test_stop_from_a_microthread_works_as_well() -> None:
    working = Working(0.05)
    scheduler = MicroScheduler()

    def stops() -> Generator[Any, Any, None]:
        yield
        scheduler.stop()

    run(working, Main(stops), scheduler=scheduler)
    assert working.notes == ['wind down', 'done', 'closed']


def test_stop_ends_a_scheduler_inside_asyncio() -> None:
    working = Working(0.05)

    async def main() -> None:
        scheduler = MicroScheduler()
        scheduler.add_microthread(working)
        task = asyncio.create_task(scheduler.run_async())
        await asyncio.sleep(0.01)
        scheduler.stop()
        await task

    inside_asyncio(main)
    assert working.notes == ['wind down', 'done', 'closed']


def test_a_wind_down_that_raises_is_logged_and_keeps_nobody_from_ending(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Working):
        def wind_down(self) -> None:
            super().wind_down()
            raise ValueError('the reason')

    failing, working = Failing(0), Working(0)
    scheduler = MicroScheduler()
    scheduler.stop()
    for each in (failing, working):
        scheduler.add_microthread(each)
    loop = Loop(scheduler)
    scheduler.stop()
    loop.wait()
    assert working.notes[-1] == 'closed'
    assert 'the reason' in caplog.text


def test_outside_the_main_thread_run_is_the_loop_and_calls_what_is_registered_for_its_end_once() -> None:
    calls: list[str] = []
    scheduler = MicroScheduler(autoquit=True)

    def note() -> None:
        calls.append('called')

    scheduler.at_end(note)
    scheduler.at_end(note)
    for _ in range(2):
        thread = threading.Thread(target=scheduler.run)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert calls == ['called'], 'equal callbacks count once, and are called once'


def test_a_callback_for_the_end_that_raises_is_logged_and_the_next_is_called(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    scheduler = MicroScheduler(autoquit=True)
    scheduler.at_end(lambda: 1 / 0)
    scheduler.at_end(lambda: calls.append('called'))
    scheduler.run()
    assert calls == ['called']
    assert 'ZeroDivisionError' in caplog.text


# Contexts

variable: contextvars.ContextVar[str] = contextvars.ContextVar('variable', default='unset')


def test_each_microthread_has_a_context_of_its_own() -> None:
    seen: list[tuple[str, str]] = []

    def sets(name: str) -> Callable[[], Generator[Any, Any, None]]:
        def main() -> Generator[Any, Any, None]:
            variable.set(name)
            for _ in range(3):
                yield
                seen.append((name, variable.get()))

        return main

    run(*(Main(sets(name)) for name in 'abc'))
    assert len(seen) == 9
    assert all(name == value for name, value in seen)
    assert variable.get() == 'unset'


def test_a_microthread_begins_with_the_context_in_which_it_was_added() -> None:
    seen: list[str] = []

    def looks() -> Generator[Any, Any, None]:
        seen.append(variable.get())
        yield

    scheduler = MicroScheduler(autoquit=True)
    token = variable.set('at the start')
    scheduler.add_microthread(Main(looks))
    variable.reset(token)
    run(scheduler=scheduler)
    assert seen == ['at the start']


def test_a_coroutine_and_a_finally_see_the_context_of_their_microthread() -> None:
    seen: list[str] = []

    async def looks() -> str:
        return variable.get()

    scheduler = MicroScheduler()

    def main() -> Generator[Any, Any, None]:
        variable.set('of the microthread')
        try:
            seen.append((yield scheduler.run_coroutine(looks())))
            scheduler.add_microthread(Quitter())
            yield Future()
        finally:
            seen.append(variable.get())

    run(Main(main), scheduler=scheduler)
    assert seen == ['of the microthread', 'of the microthread']


# Futures from many threads


def test_ten_thousand_parked_microthreads_are_woken_by_many_threads(caplog: pytest.LogCaptureFixture) -> None:
    number = 10_000
    futures: list[Future[int]] = [Future() for _ in range(number)]
    got: list[int] = []

    def waits(future: Future[int]) -> Callable[[], Generator[Any, Any, None]]:
        def main() -> Generator[Any, Any, None]:
            got.append((yield future))

        return main

    def finish(first: int) -> None:
        for index in range(first, number, 8):
            futures[index].set_result(index)

    scheduler = MicroScheduler(autoquit=True)
    for future in futures:
        scheduler.add_microthread(Main(waits(future)))
    loop = Loop(scheduler)
    threads = [threading.Thread(target=finish, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    loop.wait()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(number))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_future_finished_in_another_thread_wakes_a_sleeping_scheduler_at_once() -> None:
    delays: list[float] = []
    futures: list[Future[float]] = [Future() for _ in range(50)]

    def waits() -> Generator[Any, Any, None]:
        for future in futures:
            finished_at = yield future
            delays.append(time.monotonic() - finished_at)
            woken.set()

    woken = threading.Event()
    scheduler = scheduler_of(waits)
    loop = Loop(scheduler)
    for future in futures:
        threading.Event().wait(0.002)  # until it sleeps
        woken.clear()
        future.set_result(time.monotonic())
        assert woken.wait(PATIENCE)
    loop.wait()
    assert sorted(delays)[25] < 0.005


# Exceptions


def test_an_exception_is_logged_with_the_traceback_of_its_generator(caplog: pytest.LogCaptureFixture) -> None:
    def outer() -> Generator[Any, Any, None]:
        yield from inner()

    def inner() -> Generator[Any, Any, None]:
        yield sleep(0.001)
        raise ValueError('deep inside')

    run(Main(outer), Main(outer))
    (first, _) = caplog.records
    assert 'in outer' in (first.exc_text or caplog.text)
    assert 'in inner' in caplog.text
    assert 'deep inside' in caplog.text


def test_microthreads_alone_import_no_asyncio(run_program: Callable[..., Any]) -> None:
    """It takes longer to import than all the rest."""
    program = run_program("""
import sys
from postage import microthreads
microthreads.MicroScheduler(autoquit=True).run()
print('asyncio' in sys.modules, 'concurrent.futures.thread' in sys.modules)
""")
    assert program.wait() == 0
    assert program.lines == ['False False']


def test_the_public_names_are_these() -> None:
    assert sorted(microthreads.__all__) == [
        'ExitScheduler',
        'MicroScheduler',
        'MicroThread',
        'Signal',
        'Timer',
        'running_scheduler',
        'sleep',
    ]
