"""Microthreads take turns, wait for things, end, fail and are closed; an idle scheduler sleeps."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread, Signal, sleep
from support.loops import Loop, Quitter, run, running
from support.programs import Program

PATIENCE = 10.0


class Stepper(MicroThread):
    """Notes its name in a list, a few times."""

    def __init__(self, name: str, notes: list[str], times: int = 3) -> None:
        self.name = name
        self.notes = notes
        self.times = times

    def step(self) -> None:
        if not self.times:
            raise StopIteration
        self.times -= 1
        self.notes.append(self.name)


class Failing(MicroThread):
    def step(self) -> None:
        raise ValueError('the reason')


class Main(MicroThread):
    """A microthread whose ``main`` is the given generator function."""

    def __init__(self, main: Callable[[], Generator[Any, Any, Any]]) -> None:
        self.main = main  # type: ignore[method-assign]


def finished_future(result: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def from_another_thread(call: Callable[[], object], after: float = 0.02) -> threading.Timer:
    timer = threading.Timer(after, call)
    timer.daemon = True
    timer.start()
    return timer


# Rounds


def test_every_microthread_has_one_turn_in_each_round() -> None:
    notes: list[str] = []
    run(*(Stepper(name, notes) for name in 'abc'))
    assert notes == list('abcabcabc')


def test_main_gives_control_back_after_each_turn() -> None:
    notes: list[str] = []
    scheduler = MicroScheduler(autoquit=True)
    for name in 'ab':
        scheduler.add_microthread(Stepper(name, notes, times=2))
    seen = [''.join(notes) for _ in scheduler.main()]
    assert seen[:4] == ['a', 'ab', 'aba', 'abab']


def test_one_added_during_a_round_has_its_first_turn_in_the_next() -> None:
    notes: list[str] = []

    class Adder(Stepper):
        def step(self) -> None:
            super().step()
            if self.times == 2:
                assert self.scheduler is not None
                self.scheduler.add_microthread(Stepper('new', notes, times=1))

    run(Adder('a', notes), Stepper('b', notes))
    assert notes == ['a', 'b', 'a', 'b', 'new', 'a', 'b']


def test_a_step_may_be_a_generator_whose_yields_are_turns() -> None:
    notes: list[str] = []

    class TwoTurns(Stepper):
        def step(self) -> Any:
            self.times -= 1
            if self.times < 0:
                raise StopIteration
            self.notes.append('begin')
            yield
            self.notes.append('end')
            yield

    class Once(TwoTurns):
        def main(self) -> Generator[Any, Any, Any]:
            yield from self.step()

    run(Once('a', notes, times=1), Stepper('b', notes, times=2))
    assert notes == ['begin', 'b', 'end', 'b']


def test_stop_iteration_inside_a_step_that_is_a_generator_ends_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    class Thrice(MicroThread):
        times = 3

        def step(self) -> Any:
            if not self.times:
                raise StopIteration
            self.times -= 1
            notes.append('a')
            yield

    run(Thrice(), Stepper('b', notes, times=5))
    assert ''.join(notes) == 'abababbb'
    assert not caplog.records


def test_create_may_return_any_generator() -> None:
    notes: list[str] = []

    class Own(MicroThread):
        def create(self) -> Generator[Any, Any, Any]:
            return (notes.append(str(number)) for number in range(3))

    run(Own())
    assert notes == ['0', '1', '2']


@pytest.mark.parametrize('value', [1, 'text', object(), [sleep(60)]])
def test_whatever_is_not_waited_for_means_the_next_round(value: Any) -> None:
    notes: list[str] = []

    def main() -> Generator[Any, Any, Any]:
        for _ in range(3):
            notes.append('a')
            yield value

    run(Main(main), Stepper('b', notes))
    assert notes == list('ababab')


def test_a_microthread_knows_its_scheduler() -> None:
    microthread = MicroThread()
    assert microthread.scheduler is None
    scheduler = MicroScheduler()
    scheduler.add_microthread(microthread)
    assert microthread.scheduler is scheduler
    assert scheduler.microthreads == [microthread]


def test_a_scheduler_lists_those_that_have_not_ended() -> None:
    notes: list[str] = []
    short, long = Stepper('s', notes, times=1), Stepper('l', notes, times=3)
    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(short)
    scheduler.add_microthread(long)
    seen = [scheduler.microthreads for _ in scheduler.main()]
    assert seen[0] == [short, long]
    assert seen[4] == [long]
    assert scheduler.microthreads == []


# Ends


def test_exit_scheduler_lets_the_round_finish() -> None:
    notes: list[str] = []

    class Leaver(Stepper):
        def step(self) -> None:
            super().step()
            if self.times == 1:
                raise ExitScheduler

    run(Stepper('a', notes), Leaver('b', notes), Stepper('c', notes), autoquit=False)
    assert notes == list('abcabc')


def test_the_program_runs_on_after_exit_scheduler() -> None:
    scheduler = MicroScheduler()
    scheduler.add_microthread(Quitter())
    assert len(list(scheduler.main())) == 1


def test_a_scheduler_can_be_run_again() -> None:
    notes: list[str] = []
    scheduler = MicroScheduler(autoquit=True)
    run(Quitter(), scheduler=scheduler)
    run(Stepper('a', notes), scheduler=scheduler)
    assert notes == list('aaa')


def test_stop_iteration_from_a_step_ends_that_one_alone(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    run(Stepper('a', notes, times=1), Stepper('b', notes, times=3))
    assert notes == list('abbb')
    assert not caplog.records


def test_stop_iteration_from_an_overridden_main_ends_that_one_alone(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    def main() -> Generator[Any, Any, Any]:
        notes.append('a')
        yield
        raise StopIteration

    run(Main(main), Stepper('b', notes))
    assert notes == list('abbb')
    assert not caplog.records


def test_with_autoquit_a_scheduler_without_microthreads_ends_at_once() -> None:
    assert list(MicroScheduler(autoquit=True).main()) == []


def test_without_autoquit_a_scheduler_waits_for_others_to_be_added() -> None:
    notes: list[str] = []
    scheduler = MicroScheduler()
    first_has_ended = threading.Event()

    def main() -> Generator[Any, Any, Any]:
        yield
        first_has_ended.set()

    scheduler.add_microthread(Main(main))
    loop = Loop(scheduler)
    assert first_has_ended.wait(PATIENCE)
    scheduler.add_microthread(Stepper('later', notes, times=1))
    scheduler.add_microthread(Quitter())
    loop.wait()
    assert notes == ['later']


# Futures


def test_a_future_gives_its_result() -> None:
    results: list[Any] = []
    future: Future[str] = Future()

    def main() -> Generator[Any, Any, Any]:
        results.append((yield future))

    from_another_thread(lambda: future.set_result('done'))
    run(Main(main))
    assert results == ['done']


def test_a_future_that_is_done_already_gives_its_result_as_well() -> None:
    results: list[Any] = []

    def main() -> Generator[Any, Any, Any]:
        results.append((yield finished_future(1)))
        results.append((yield finished_future(2)))

    run(Main(main))
    assert results == [1, 2]


def test_a_future_may_be_finished_by_another_microthread() -> None:
    results: list[Any] = []
    future: Future[str] = Future()

    def waits() -> Generator[Any, Any, Any]:
        results.append((yield future))

    def finishes() -> Generator[Any, Any, Any]:
        yield
        future.set_result('done')

    run(Main(waits), Main(finishes))
    assert results == ['done']


def raised_at_the_yield(future: Future[None], finish: Callable[[], object]) -> list[BaseException]:
    """Finish a future in another thread, and return what was raised where a microthread waited for it."""
    raised: list[BaseException] = []

    def main() -> Generator[Any, Any, Any]:
        try:
            yield future
        except (ValueError, CancelledError) as error:
            raised.append(error)

    from_another_thread(finish)
    run(Main(main))
    return raised


def test_a_future_raises_its_exception_at_the_yield() -> None:
    future: Future[None] = Future()
    error = ValueError('why')
    assert raised_at_the_yield(future, lambda: future.set_exception(error)) == [error]


def test_a_cancelled_future_raises_at_the_yield() -> None:
    future: Future[None] = Future()
    (error,) = raised_at_the_yield(future, future.cancel)
    assert isinstance(error, CancelledError)


def test_several_microthreads_may_wait_for_one_future() -> None:
    results: list[Any] = []
    future: Future[str] = Future()

    def main() -> Generator[Any, Any, Any]:
        results.append((yield future))

    from_another_thread(lambda: future.set_result('done'))
    run(Main(main), Main(main))
    assert results == ['done', 'done']


def test_one_that_waits_holds_no_other_back() -> None:
    notes: list[str] = []
    future: Future[None] = Future()

    def waits() -> Generator[Any, Any, Any]:
        yield future
        notes.append('w')

    def finishes() -> Generator[Any, Any, Any]:
        for _ in range(3):
            notes.append('f')
            yield
        future.set_result(None)

    run(Main(waits), Main(finishes))
    assert notes == list('fffw')


# Sleep


def test_sleep_takes_at_least_that_long() -> None:
    times = []

    def main() -> Generator[Any, Any, Any]:
        times.append(time.monotonic())
        yield sleep(0.05)
        times.append(time.monotonic())

    run(Main(main))
    assert 0.05 <= times[1] - times[0] < 2.0


def test_sleepers_wake_in_the_order_of_their_time() -> None:
    notes: list[str] = []

    def sleeper(name: str, seconds: float) -> MicroThread:
        def main() -> Generator[Any, Any, Any]:
            yield sleep(seconds)
            notes.append(name)

        return Main(main)

    run(sleeper('c', 0.06), sleeper('a', 0.02), sleeper('b', 0.04), sleeper('now', 0), sleeper('past', -1))
    assert set(notes[:2]) == {'now', 'past'}
    assert notes[2:] == ['a', 'b', 'c']


# Signals


def test_a_signal_set_by_another_thread_wakes_the_one_that_waits() -> None:
    signal_ = Signal()

    def main() -> Generator[Any, Any, Any]:
        yield signal_

    from_another_thread(signal_.set)
    run(Main(main))


def test_a_signal_set_before_the_wait_lets_it_pass_and_only_once() -> None:
    signal_ = Signal()
    notes: list[str] = []

    def main() -> Generator[Any, Any, Any]:
        yield signal_
        notes.append('first')
        yield signal_
        notes.append('second')

    signal_.set()
    with running(Main(main)) as loop:
        done: Future[list[str]] = Future()

        def looks() -> Generator[Any, Any, Any]:
            for _ in range(3):
                yield
            done.set_result(list(notes))

        loop.scheduler.add_microthread(Main(looks))
        assert done.result(PATIENCE) == ['first']


def test_several_settings_before_the_wait_count_as_one() -> None:
    signal_ = Signal()
    notes: list[str] = []

    def main() -> Generator[Any, Any, Any]:
        while True:
            yield signal_
            notes.append('woken')

    for _ in range(3):
        signal_.set()

    def ends() -> Generator[Any, Any, Any]:
        for _ in range(5):
            yield
        raise ExitScheduler

    run(Main(main), Main(ends))
    assert notes == ['woken']


def test_several_settings_during_the_wait_count_as_one() -> None:
    signal_ = Signal()
    notes: list[str] = []

    def main() -> Generator[Any, Any, Any]:
        while True:
            yield signal_
            notes.append('woken')

    def sets() -> Generator[Any, Any, Any]:
        yield
        for _ in range(3):
            signal_.set()
        for _ in range(5):
            yield
        raise ExitScheduler

    run(Main(main), Main(sets))
    assert notes == ['woken']


def test_no_setting_of_a_signal_is_missed() -> None:
    """Two threads hand a number to and fro; a wake-up that is lost would stop them."""
    there, back = Signal(), threading.Semaphore(0)

    def main() -> Generator[Any, Any, Any]:
        for _ in range(2000):
            yield there
            back.release()

    def sets() -> None:
        for _ in range(2000):
            there.set()
            assert back.acquire(timeout=PATIENCE)

    other = threading.Thread(target=sets, daemon=True)
    other.start()
    run(Main(main))
    other.join(PATIENCE)
    assert not other.is_alive()


# Joining


def test_waiting_for_a_microthread_gives_what_it_returned() -> None:
    results: list[Any] = []

    def works() -> Generator[Any, Any, Any]:
        yield
        return 'result'

    worker = Main(works)

    def main() -> Generator[Any, Any, Any]:
        results.append((yield worker))
        results.append((yield worker))  # has ended by now

    run(Main(main), worker)
    assert results == ['result', 'result']


def test_waiting_for_a_microthread_that_fails_raises_its_exception() -> None:
    raised: list[BaseException] = []
    error = ValueError('why')

    def fails() -> Generator[Any, Any, Any]:
        yield
        raise error

    failing = Main(fails)

    def main() -> Generator[Any, Any, Any]:
        for _ in range(2):
            try:
                yield failing
            except ValueError as failure:
                raised.append(failure)

    run(Main(main), failing)
    assert raised == [error, error]


def test_waiting_for_a_microthread_of_no_scheduler_is_an_error() -> None:
    raised: list[BaseException] = []

    def main() -> Generator[Any, Any, Any]:
        try:
            yield MicroThread()
        except RuntimeError as error:
            raised.append(error)

    run(Main(main))
    assert 'added to no scheduler' in str(raised[0])


# Timers


def test_timers_call_once_in_the_order_of_their_time() -> None:
    notes: list[str] = []
    scheduler = MicroScheduler()
    scheduler.call_later(0.04, lambda: notes.append('b'))
    scheduler.call_later(0.02, lambda: notes.append('a'))
    scheduler.call_later(0.06, exit_scheduler)
    Loop(scheduler).wait()
    assert notes == ['a', 'b']


def exit_scheduler() -> None:
    raise ExitScheduler


def test_a_timer_is_called_in_the_scheduler_s_thread() -> None:
    called_in: list[threading.Thread] = []
    stepped_in: list[threading.Thread] = []
    scheduler = MicroScheduler()
    scheduler.call_later(0, lambda: called_in.append(threading.current_thread()))

    def main() -> Generator[Any, Any, Any]:
        yield sleep(0.01)
        stepped_in.append(threading.current_thread())
        raise ExitScheduler

    run(Main(main), scheduler=scheduler)
    assert called_in == stepped_in


def test_a_cancelled_timer_is_not_called() -> None:
    notes: list[str] = []
    scheduler = MicroScheduler()
    timer = scheduler.call_later(0.01, lambda: notes.append('cancelled'))
    scheduler.call_later(0.03, exit_scheduler)
    timer.cancel()
    Loop(scheduler).wait()
    assert notes == []


def test_a_timer_that_was_called_may_be_cancelled() -> None:
    scheduler = MicroScheduler()
    timer = scheduler.call_later(0, exit_scheduler)
    Loop(scheduler).wait()
    timer.cancel()


def test_a_timer_that_raises_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    scheduler = MicroScheduler(autoquit=True)
    scheduler.call_later(0, lambda: 1 / 0)
    run(Stepper('a', notes), scheduler=scheduler)
    assert notes == list('aaa')
    assert 'ZeroDivisionError' in caplog.text


def test_a_busy_scheduler_calls_its_timers_in_time() -> None:
    class Busy(MicroThread):
        pass

    scheduler = MicroScheduler()
    scheduler.call_later(0.02, exit_scheduler)
    run(Busy(), scheduler=scheduler)


# Failures


def test_an_exception_ends_that_one_alone_and_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    run(Stepper('a', notes), Failing(), Stepper('b', notes))
    assert notes == list('ababab')
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert 'Failing' in record.getMessage()
    assert 'Traceback' in caplog.text
    assert 'ValueError: the reason' in caplog.text


def test_with_autoquit_the_last_failure_is_logged_and_ends_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    run(Failing())
    assert 'the reason' in caplog.text


def test_without_autoquit_the_failure_of_the_last_one_leaves_main() -> None:
    with pytest.raises(ValueError, match='the reason'):
        run(Failing(), autoquit=False)


def test_a_failure_leaves_main_only_once_no_other_is_left() -> None:
    class FailsLater(Stepper):
        def step(self) -> None:
            try:
                super().step()
            except StopIteration:
                raise ValueError('the reason') from None

    notes: list[str] = []
    with pytest.raises(ValueError, match='the reason'):
        run(Failing(), FailsLater('a', notes), autoquit=False)
    assert notes == list('aaa')


def test_an_old_failure_does_not_leave_main_when_the_last_one_ends_well() -> None:
    notes: list[str] = []
    scheduler = MicroScheduler()
    scheduler.add_microthread(Failing())
    scheduler.add_microthread(Stepper('a', notes))
    loop = Loop(scheduler)
    deadline = time.monotonic() + PATIENCE
    while scheduler.microthreads and loop.is_running and time.monotonic() < deadline:
        time.sleep(0.005)
    scheduler.add_microthread(Stepper('b', notes))
    scheduler.add_microthread(Quitter())
    loop.wait()
    assert notes == list('aaab')


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_meant_for_the_program_leaves_main_and_closes_the_others(error: type[BaseException]) -> None:
    notes: list[str] = []

    class Raises(MicroThread):
        def step(self) -> None:
            raise error

    with pytest.raises(error):
        run(closes('a', notes), closes('b', notes, Signal()), Raises(), autoquit=False)
    assert sorted(notes) == ['a', 'b']


# Closing


def closes(name: str, notes: list[str], wait_for: Any = None) -> MicroThread:
    """A microthread that notes its name when it is closed."""

    def main() -> Generator[Any, Any, Any]:
        try:
            while True:
                yield wait_for
        finally:
            notes.append(name)

    return Main(main)


def test_exit_scheduler_runs_every_finally() -> None:
    notes: list[str] = []
    waiting = [None, Signal(), Future(), sleep(60)]
    run(*(closes(str(number), notes, what) for number, what in enumerate(waiting)), Late(Quitter), autoquit=False)
    assert sorted(notes) == ['0', '1', '2', '3']


class Late(MicroThread):
    """Adds another microthread after a few rounds."""

    def __init__(self, kind: type[MicroThread]) -> None:
        self.kind = kind

    def main(self) -> Generator[Any, Any, Any]:
        for _ in range(3):
            yield
        assert self.scheduler is not None
        self.scheduler.add_microthread(self.kind())


def test_closing_main_runs_every_finally() -> None:
    notes: list[str] = []
    scheduler = MicroScheduler()
    scheduler.add_microthread(closes('a', notes))
    scheduler.add_microthread(closes('b', notes))
    loop = scheduler.main()
    for _ in range(3):
        next(loop)
    loop.close()
    assert sorted(notes) == ['a', 'b']
    assert scheduler.microthreads == []


def test_a_finally_that_raises_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    def main() -> Generator[Any, Any, Any]:
        try:
            while True:
                yield
        finally:
            raise ValueError('while it was closed')

    run(closes('a', notes), Main(main), closes('b', notes), Late(Quitter), autoquit=False)
    assert sorted(notes) == ['a', 'b']
    assert 'ValueError: while it was closed' in caplog.text


def test_one_that_refuses_to_be_closed_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    def main() -> Generator[Any, Any, Any]:
        try:
            yield Signal()
        except GeneratorExit:
            notes.append('refuses')
        yield

    run(closes('a', notes), Main(main), closes('b', notes), Late(Quitter), autoquit=False)
    assert sorted(notes) == ['a', 'b', 'refuses']
    assert 'generator ignored GeneratorExit' in caplog.text


def test_what_finishes_after_the_loop_has_ended_is_ignored() -> None:
    future: Future[None] = Future()
    signal_ = Signal()
    scheduler = MicroScheduler(autoquit=True)
    run(closes('a', [], future), closes('b', [], signal_), Late(Quitter), scheduler=scheduler)
    future.set_result(None)
    signal_.set()
    notes: list[str] = []
    run(Stepper('c', notes), scheduler=scheduler)
    assert notes == list('ccc')


# Waiting


def test_with_block_false_it_never_sleeps() -> None:
    future: Future[str] = Future()
    results: list[Any] = []

    def main() -> Generator[Any, Any, Any]:
        results.append((yield future))

    scheduler = MicroScheduler()
    scheduler.add_microthread(Main(main))
    loop = scheduler.main(block=False)
    begin = time.monotonic()
    for _ in range(100):
        next(loop)
    assert time.monotonic() - begin < 1.0
    assert results == []
    future.set_result('done')
    for _ in range(3):
        next(loop)
    assert results == ['done']
    for _ in range(3):
        next(loop)  # also without a microthread
    loop.close()


def test_with_block_false_timers_and_sleepers_get_their_turn() -> None:
    notes: list[str] = []

    def main() -> Generator[Any, Any, Any]:
        yield sleep(0.02)
        notes.append('slept')

    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(Main(main))
    scheduler.call_later(0.01, lambda: notes.append('timer'))
    deadline = time.monotonic() + PATIENCE
    for _ in scheduler.main(block=False):
        assert time.monotonic() < deadline
    assert notes == ['timer', 'slept']


def test_a_microthread_added_by_another_thread_wakes_a_sleeping_scheduler() -> None:
    notes: list[str] = []
    with running() as loop:
        for number in itertools.count():
            added = threading.Event()

            def main(added: threading.Event = added) -> Generator[Any, Any, Any]:
                yield
                added.set()

            loop.scheduler.add_microthread(Main(main))
            assert added.wait(PATIENCE)
            if number == 50:
                break
        loop.scheduler.add_microthread(Stepper('a', notes))
    assert notes in ([], list('a'), list('aa'), list('aaa'))


def test_an_idle_scheduler_uses_no_processor_time() -> None:
    future: Future[None] = Future()
    signal_ = Signal()
    with running(closes('future', [], future), closes('signal', [], signal_), closes('sleep', [], sleep(60))):
        threading.Event().wait(0.05)  # until it is idle
        before = time.process_time()
        threading.Event().wait(0.5)
        used = time.process_time() - before
    assert used < 0.05


def test_ten_thousand_parked_microthreads_cost_nothing_and_all_wake() -> None:
    future: Future[int] = Future()
    woken = []

    def main() -> Generator[Any, Any, Any]:
        woken.append((yield future))

    scheduler = MicroScheduler(autoquit=True)
    parked = [Main(main) for _ in range(10_000)]
    for microthread in parked:
        scheduler.add_microthread(microthread)
    turns: list[int] = []

    def counts() -> Generator[Any, Any, Any]:
        yield  # the parked ones have had their first turn
        yield
        begin = time.perf_counter()
        for _ in range(1000):
            yield
        turns.append(int(1000 / (time.perf_counter() - begin)))
        future.set_result(1)

    run(Main(counts), scheduler=scheduler)
    assert len(woken) == 10_000
    assert turns[0] > 10_000  # rounds a second; a look at each parked one would allow a few hundred


CTRL_C = """
from postage.microthreads import MicroScheduler, MicroThread, Signal

class Waits(MicroThread):
    def main(self):
        try:
            print('waiting')
            yield Signal()
        finally:
            print('closed')

scheduler = MicroScheduler()
scheduler.add_microthread(Waits())
try:
    for _ in scheduler.main():
        pass
except KeyboardInterrupt:
    print('interrupted')
"""


def test_ctrl_c_ends_a_sleeping_scheduler_with_keyboard_interrupt(run_program: Callable[..., Program]) -> None:
    program = run_program(CTRL_C)
    program.expect('waiting')
    program.send_signal(signal.SIGINT)
    assert program.wait() == 0
    assert program.lines == ['waiting', 'closed', 'interrupted']


CTRL_C_BUSY = CTRL_C.replace('yield Signal()', 'while True: yield').replace('waiting', 'busy')


def test_ctrl_c_ends_a_busy_scheduler_with_keyboard_interrupt(run_program: Callable[..., Program]) -> None:
    program = run_program(CTRL_C_BUSY)
    program.expect('busy')
    program.send_signal(signal.SIGINT)
    assert program.wait() == 0
    assert program.lines == ['busy', 'closed', 'interrupted']


# Sleeping by another alarm


class Dozing:
    """An alarm that notes what it is asked for."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []
        self._bell = threading.Event()

    def ring(self) -> None:
        self._bell.set()

    def wait(self, timeout: float | None) -> None:
        self.timeouts.append(timeout)
        assert self._bell.wait(10 if timeout is None else timeout) or timeout is not None
        self._bell.clear()


class Borrowing(MicroThread):
    """Has its scheduler sleep by another alarm, and waits for a future."""

    def __init__(self, dozing: Dozing, future: Future[Any]) -> None:
        self.dozing = dozing
        self.future = future

    def main(self) -> Generator[Any, Any, Any]:
        assert self.scheduler is not None
        self.scheduler.sleep_by(self.dozing)
        yield self.future


def test_a_scheduler_may_sleep_by_another_alarm_until_it_ends() -> None:
    dozing, future = Dozing(), Future[None]()
    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(Borrowing(dozing, future))
    from_another_thread(lambda: future.set_result(None))
    for _ in scheduler.main():
        pass
    assert dozing.timeouts == [None]
    second = Future[None]()
    scheduler.add_microthread(Waiting(second))
    from_another_thread(lambda: second.set_result(None))
    for _ in scheduler.main():
        pass
    assert dozing.timeouts == [None]


class Waiting(MicroThread):
    def __init__(self, future: Future[Any]) -> None:
        self.future = future

    def main(self) -> Generator[Any, Any, Any]:
        yield self.future


def test_another_alarm_is_told_of_the_next_timer() -> None:
    dozing, future = Dozing(), Future[None]()
    scheduler = MicroScheduler(autoquit=True)
    scheduler.call_later(0.05, lambda: future.set_result(None))
    scheduler.add_microthread(Borrowing(dozing, future))
    for _ in scheduler.main():
        pass
    assert dozing.timeouts
    assert dozing.timeouts[0] is not None
    assert 0 < dozing.timeouts[0] <= 0.05


def test_stop_rings_another_alarm() -> None:
    dozing = Dozing()
    scheduler = MicroScheduler()
    scheduler.add_microthread(Borrowing(dozing, Future()))
    from_another_thread(scheduler.stop)
    for _ in scheduler.main():
        pass
    assert dozing.timeouts == [None]
