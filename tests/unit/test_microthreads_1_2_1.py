"""Microthreads of programs that were written for Postage 1.2.1."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

import pytest

from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread, Signal, running_scheduler, sleep
from support.loops import Loop, run

PATIENCE = 10.0

Steps = Generator[Any, Any, Any]


# create


class Prepared(MicroThread):
    """Notes its life."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def create(self) -> Any:
        self.notes.append('create')

    def step(self) -> None:
        self.notes.append('step')
        if len(self.notes) == 3:
            raise StopIteration


def test_create_is_called_once_by_add_microthread_and_main_follows() -> None:
    prepared = Prepared()
    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(prepared)
    assert prepared.notes == ['create']
    run(scheduler=scheduler)
    assert prepared.notes == ['create', 'step', 'step']


def test_create_is_called_before_a_main_that_was_overridden() -> None:
    class Own(Prepared):
        def main(self) -> Steps:
            self.notes.append('main')
            yield

    own = Own()
    run(own)
    assert own.notes == ['create', 'main']


@pytest.mark.parametrize('result', [None, True, 1, 'text', [1, 2, 3]])
def test_what_create_returns_is_ignored_where_it_is_no_generator(result: Any) -> None:
    class Returning(Prepared):
        def create(self) -> Any:
            super().create()
            return result

    returning = Returning()
    run(returning)
    assert returning.notes == ['create', 'step', 'step']


def test_a_generator_that_create_returns_is_driven_in_place_of_main() -> None:
    class Returning(Prepared):
        def create(self) -> Steps:
            return (self.notes.append(name) for name in 'ab')

        def main(self) -> Steps:
            raise AssertionError('main was called, too')

    returning = Returning()
    run(returning)
    assert returning.notes == ['a', 'b']


def test_create_knows_the_scheduler() -> None:
    class Adding(MicroThread):
        def create(self) -> None:
            assert self.scheduler is not None
            self.scheduler.add_microthread(prepared)

        def step(self) -> None:
            raise StopIteration

    prepared = Prepared()
    run(Adding())
    assert prepared.notes == ['create', 'step', 'step']


def test_what_create_raises_leaves_add_microthread_and_nothing_is_added() -> None:
    class Failing(MicroThread):
        def create(self) -> None:
            raise ValueError('the reason')

    failing = Failing()
    scheduler = MicroScheduler(autoquit=True)
    with pytest.raises(ValueError, match='the reason'):
        scheduler.add_microthread(failing)
    assert scheduler.microthreads == []
    assert failing.scheduler is None
    run(scheduler=scheduler)


# Anything with a main


class Plain:
    """What derives from nothing of Postage."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def create(self) -> None:
        raise AssertionError('create() is a hook of MicroThread alone')

    def main(self) -> Steps:
        for name in 'ab':
            self.notes.append(name)
            yield 1


class Slots:
    """What takes no attributes."""

    __slots__ = ()

    def main(self) -> Steps:
        yield 1
        raise StopIteration


def test_anything_with_a_main_that_gives_a_generator_may_be_added() -> None:
    plain, slots = Plain(), Slots()
    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(plain)
    scheduler.add_microthread(slots)
    assert scheduler.microthreads == [plain, slots]
    run(scheduler=scheduler)
    assert plain.notes == ['a', 'b']


def test_stop_ends_a_scheduler_of_what_derives_from_nothing() -> None:
    class Endless:
        def main(self) -> Steps:
            while True:
                yield

    scheduler = MicroScheduler()
    scheduler.add_microthread(Endless())
    loop = Loop(scheduler)
    scheduler.stop()
    loop.wait()


def test_what_has_no_main_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'text' is no microthread, for it has no main\(\)"):
        MicroScheduler().add_microthread('text')  # type: ignore[arg-type]


def test_a_class_in_place_of_its_object_is_refused() -> None:
    with pytest.raises(TypeError, match=r'^MicroThread is a class; what runs is an object of it, MicroThread\(…\)$'):
        MicroScheduler().add_microthread(MicroThread)  # type: ignore[arg-type]


def test_a_main_that_gives_no_generator_is_refused_with_its_name() -> None:
    class NoGenerator(MicroThread):
        def main(self) -> Any:
            return [1, 2, 3]

    scheduler = MicroScheduler()
    with pytest.raises(TypeError, match=r'NoGenerator\.main\(\) gave \[1, 2, 3\] instead of a generator'):
        scheduler.add_microthread(NoGenerator())
    assert scheduler.microthreads == []


# shutdown


class Counting(MicroThread):
    """Counts its turns, and shuts its scheduler down in one of them."""

    def __init__(self, shuts_down_in: int | None = None) -> None:
        self.turns = 0
        self._shuts_down_in = shuts_down_in

    def step(self) -> None:
        self.turns += 1
        if self.turns == self._shuts_down_in:
            assert self.scheduler is not None
            self.scheduler.shutdown = True


def test_shutdown_ends_the_loop_after_the_round() -> None:
    counting = [Counting(), Counting(shuts_down_in=3), Counting()]
    scheduler = MicroScheduler()
    run(*counting, scheduler=scheduler)
    assert [each.turns for each in counting] == [3, 3, 3]
    assert scheduler.shutdown


def test_shutdown_between_two_steps_lets_the_round_finish() -> None:
    counting = [Counting(), Counting()]
    scheduler = MicroScheduler()
    for each in counting:
        scheduler.add_microthread(each)
    loop = scheduler.main()
    next(loop)
    scheduler.shutdown = True
    assert len(list(loop)) == 1
    assert [each.turns for each in counting] == [1, 1]


def test_shutdown_before_the_loop_starts_ends_it_after_one_round() -> None:
    counting = [Counting(), Counting()]
    scheduler = MicroScheduler()
    scheduler.shutdown = True
    run(*counting, scheduler=scheduler)
    assert [each.turns for each in counting] == [1, 1]


def test_shutdown_from_another_thread_wakes_a_sleeping_scheduler() -> None:
    class Waits(MicroThread):
        def main(self) -> Steps:
            has_begun.set()
            yield Future()

    has_begun = threading.Event()
    scheduler = MicroScheduler()
    scheduler.add_microthread(Waits())
    loop = Loop(scheduler)
    assert has_begun.wait(PATIENCE)
    scheduler.shutdown = True
    loop.wait()


def test_shutdown_tells_how_a_loop_ended_until_the_next_one() -> None:
    scheduler = MicroScheduler(autoquit=True)
    assert not scheduler.shutdown
    run(Exiting(), scheduler=scheduler)
    assert scheduler.shutdown
    prepared = Prepared()
    run(prepared, scheduler=scheduler)
    assert prepared.notes == ['create', 'step', 'step'], 'the shutdown of one loop has ended another'
    assert not scheduler.shutdown


class Exiting(MicroThread):
    def step(self) -> None:
        raise ExitScheduler


# A scheduler inside a scheduler


def test_a_scheduler_inside_a_scheduler_runs_its_microthreads_in_between() -> None:
    notes: list[str] = []

    class Noting(MicroThread):
        def __init__(self, name: str) -> None:
            self.name = name

        def main(self) -> Steps:
            for _ in range(3):
                notes.append(self.name)
                yield 1

    inner, outer = MicroScheduler(autoquit=True), MicroScheduler(autoquit=True)
    inner.add_microthread(Noting('i'))
    outer.add_microthread(inner)
    outer.add_microthread(Noting('o'))
    run(scheduler=outer)
    assert ''.join(notes) == 'ioioio'


def test_the_end_of_an_inner_scheduler_is_not_that_of_the_outer_one() -> None:
    counting = Counting()
    inner, outer = MicroScheduler(), MicroScheduler()
    inner.add_microthread(Exiting())
    outer.add_microthread(inner)
    outer.add_microthread(counting)
    loop = outer.main()
    for _ in range(10):
        next(loop)
    assert outer.microthreads == [counting]
    assert running_scheduler() is outer
    loop.close()


def test_an_idle_inner_scheduler_holds_nothing_up_and_uses_no_processor_time() -> None:
    signal, got = Signal(), Future[str]()
    inner, outer = MicroScheduler(), MicroScheduler()

    class Waits(MicroThread):
        def main(self) -> Steps:
            yield signal
            yield sleep(0.01)
            got.set_result('woken')
            yield Future()

    class Sets(MicroThread):
        def main(self) -> Steps:
            yield sleep(0.1)
            signal.set()
            yield got

    inner.add_microthread(Waits())
    outer.add_microthread(inner)
    outer.add_microthread(Sets())
    loop = Loop(outer)
    assert got.result(PATIENCE) == 'woken'
    before = time.process_time()
    threading.Event().wait(0.3)
    assert time.process_time() - before < 0.05
    outer.stop()
    loop.wait()


@pytest.mark.parametrize('how', ['yield from', 'step by step'])
def test_a_scheduler_that_a_microthread_steps_does_not_block_the_one_around_it(how: str) -> None:
    future: Future[str] = Future()
    got: list[str] = []
    inner = MicroScheduler(autoquit=True)

    class Waits(MicroThread):
        def main(self) -> Steps:
            got.append((yield future))

    class Drives(MicroThread):
        def main(self) -> Steps:
            if how == 'yield from':
                yield from inner.main()
            else:
                for _ in inner.main():
                    yield

    class Finishes(MicroThread):
        def main(self) -> Steps:
            yield sleep(0.05)
            future.set_result('done')

    inner.add_microthread(Waits())
    run(Drives(), Finishes())
    assert got == ['done']


def test_an_inner_scheduler_is_ended_in_good_order_by_the_outer_one() -> None:
    notes: list[str] = []

    class Working(MicroThread):
        is_busy = True

        def wind_down(self) -> None:
            if 'wind down' not in notes:
                notes.append('wind down')

        def main(self) -> Steps:
            try:
                has_begun.set()
                yield sleep(0.1)
                notes.append('done')
                self.is_busy = False
                yield Future()
            finally:
                notes.append('closed')

    has_begun = threading.Event()
    inner, outer = MicroScheduler(), MicroScheduler()
    inner.add_microthread(Working())
    outer.add_microthread(inner)
    loop = Loop(outer)
    assert has_begun.wait(PATIENCE)
    outer.stop()
    loop.wait()
    assert notes == ['wind down', 'done', 'closed']


def test_the_alarm_of_an_inner_scheduler_is_that_of_the_outer_one() -> None:
    """What reads sockets while a scheduler sleeps reads them for both."""

    class Dozing:
        def __init__(self) -> None:
            self.waits = 0
            self._bell = threading.Event()

        def ring(self) -> None:
            self._bell.set()

        def wait(self, timeout: float | None) -> None:
            self.waits += 1
            assert self._bell.wait(PATIENCE if timeout is None else timeout) or timeout is not None
            self._bell.clear()

    class Borrows(MicroThread):
        def main(self) -> Steps:
            inner.sleep_by(dozing)
            yield future
            inner.shutdown = True

    dozing, future = Dozing(), Future[None]()
    inner, outer = MicroScheduler(), MicroScheduler(autoquit=True)
    inner.add_microthread(Borrows())
    outer.add_microthread(inner)
    timer = threading.Timer(0.05, future.set_result, (None,))
    timer.start()
    run(scheduler=outer)
    timer.join()
    assert dozing.waits > 0


def test_a_scheduler_inside_itself_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(scheduler)
    run(scheduler=scheduler)
    assert 'this scheduler runs already' in caplog.text
