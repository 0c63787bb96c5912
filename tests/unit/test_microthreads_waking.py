"""Whatever comes at whatever moment: a microthread is resumed once for each wait, with what it waited for.

Most tests step a loop by hand, so that the moment is not a matter of luck.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import pytest

from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread, Signal, sleep
from support.loops import Loop, run

PATIENCE = 10.0

Steps = Generator[Any, Any, Any]


class Main(MicroThread):
    """A microthread whose ``main`` is the given generator function."""

    def __init__(self, main: Callable[[], Steps]) -> None:
        self.main = main  # type: ignore[method-assign]


class Interruption(Exception):
    """What the tests interrupt with."""


class Stepped:
    """A scheduler whose loop a test steps by hand.

    :ivar got: what its noting microthreads were resumed with, in this order
    """

    def __init__(self, autoquit: bool = False) -> None:
        self.scheduler = MicroScheduler(autoquit)
        self.loop = self.scheduler.main(block=False)
        self.got: list[Any] = []

    def add(self, *waits: Callable[[], Any]) -> MicroThread:
        """Add a microthread that waits for one thing after the other, and notes what each gave or raised."""

        def main() -> Steps:
            for wait in waits:
                try:
                    self.got.append((yield wait()))
                except Exception as error:
                    self.got.append(error)

        microthread = Main(main)
        self.scheduler.add_microthread(microthread)
        return microthread

    def step(self, times: int = 1) -> None:
        """Take so many turns, or looks at whether there is one to take."""
        for _ in range(times):
            next(self.loop)


@pytest.fixture
def stepped() -> Generator[Stepped, None, None]:
    """A scheduler that is stepped by hand, and closed at the end."""
    stepped = Stepped()
    yield stepped
    stepped.loop.close()


class HeldBack(deque[Any]):
    """The woken of a scheduler, to which other threads cannot append before they are let go on.

    It stands for a thread that is paused by its operating system just before it says that a wait is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Event()
        self.go_on = threading.Event()
        self._own = threading.current_thread()

    def append(self, item: Any) -> None:
        """Append, once the test allows it."""
        if threading.current_thread() is not self._own:
            self.arrived.set()
            assert self.go_on.wait(PATIENCE)
        super().append(item)


# Interruptions


def signal_that_is_set() -> Signal:
    signal = Signal()
    signal.set()
    return signal


def ended_microthread() -> MicroThread:
    microthread = Main(lambda: iter_nothing())
    run(microthread)
    return microthread


def iter_nothing() -> Steps:
    return
    yield


def done() -> Future[str]:
    future: Future[str] = Future()
    future.set_result('done')
    return future


OVER_AT_ONCE: dict[str, Callable[[], Any]] = {
    'signal': signal_that_is_set,
    'microthread': ended_microthread,
    'future': done,
    'sleep': lambda: sleep(0),
    'nothing': lambda: None,
}


@pytest.mark.parametrize('what', OVER_AT_ONCE)
def test_one_that_may_go_on_at_once_and_is_interrupted_is_resumed_once(stepped: Stepped, what: str) -> None:
    future: Future[int] = Future()
    microthread = stepped.add(OVER_AT_ONCE[what], lambda: future)
    stepped.step()  # its first turn
    error = Interruption()
    stepped.scheduler.interrupt(microthread, error)
    stepped.step(5)
    assert stepped.got == [error], 'it went on before the future was done'
    future.set_result(42)
    stepped.step(3)
    assert stepped.got == [error, 42]


@pytest.mark.parametrize('what', ['signal that was set', 'signal that is set later'])
def test_an_interruption_that_goes_first_leaves_a_signal_set(stepped: Stepped, what: str) -> None:
    signal = Signal()
    waiting = stepped.add(lambda: signal, lambda: signal)
    error = Interruption()

    def interrupts() -> Steps:
        # In one round: the signal has made the other one ready, but its turn comes after this.
        stepped.scheduler.interrupt(waiting, error)
        yield

    if what == 'signal that was set':
        signal.set()
        stepped.step()
        stepped.scheduler.interrupt(waiting, error)
    else:
        stepped.step(2)  # it is parked
        stepped.scheduler.add_microthread(Main(interrupts))
        signal.set()
    stepped.step(6)
    assert stepped.got == [error, None], 'the setting went with the interruption'


def test_what_an_interrupted_microthread_waited_for_ends_no_later_wait(stepped: Stepped) -> None:
    future: Future[str] = Future()
    other = stepped.add(lambda: future)
    later: Future[str] = Future()
    waiting = stepped.add(lambda: other, lambda: later)
    stepped.step(3)
    error = Interruption()
    stepped.scheduler.interrupt(waiting, error)
    stepped.step()
    future.set_exception(ValueError('of the other one'))
    stepped.step(4)
    assert stepped.got[0] is error
    later.set_result('later')
    stepped.step(3)
    assert stepped.got[-1] == 'later'
    assert len(stepped.got) == 3


def test_a_join_that_ends_in_the_same_round_does_not_undo_an_interruption(stepped: Stepped) -> None:
    signal = Signal()
    other = Main(lambda: (yield signal))
    stepped.scheduler.add_microthread(other)
    waiting = stepped.add(lambda: other)
    stepped.step(3)
    signal.set()
    error = Interruption()
    stepped.scheduler.interrupt(waiting, error)  # and then, before its turn, the other one ends
    stepped.step(3)
    assert stepped.got == [error]


def test_a_sleep_that_was_interrupted_ends_no_later_sleep(stepped: Stepped) -> None:
    pause = sleep(0.05)
    waiting = stepped.add(lambda: pause, lambda: pause)
    stepped.step()
    began = time.monotonic()
    while time.monotonic() < began + 0.03:
        stepped.step()
    stepped.scheduler.interrupt(waiting, Interruption())
    interrupted_at = time.monotonic()
    while len(stepped.got) < 2:
        stepped.step()
        assert time.monotonic() < began + PATIENCE
    assert time.monotonic() - interrupted_at >= 0.05


def test_of_two_interruptions_of_one_yield_the_first_counts(stepped: Stepped) -> None:
    waiting = stepped.add(Future, Future)
    stepped.step()
    first, second = Interruption(), Interruption()
    stepped.scheduler.interrupt(waiting, first)
    stepped.scheduler.interrupt(waiting, second)
    stepped.step(5)
    assert stepped.got == [first]


def test_one_that_is_interrupted_before_its_first_turn_ends_with_that(
    stepped: Stepped, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = stepped.add(lambda: None)
    error = Interruption()
    stepped.scheduler.interrupt(waiting, error)
    joined = stepped.add(lambda: waiting)
    assert joined in stepped.scheduler.microthreads
    stepped.step(5)
    assert stepped.got == [error]
    assert caplog.records[0].exc_info is not None


def test_one_that_interrupts_itself_is_left_alone(stepped: Stepped) -> None:
    def main() -> Steps:
        stepped.scheduler.interrupt(itself, Interruption())
        stepped.got.append((yield))

    itself = Main(main)
    stepped.scheduler.add_microthread(itself)
    stepped.step(3)
    assert stepped.got == [None]


def test_the_microthread_of_another_scheduler_is_not_interrupted(stepped: Stepped) -> None:
    waiting = stepped.add(Future)
    stepped.step()
    with pytest.raises(RuntimeError, match='added to another scheduler'):
        MicroScheduler().interrupt(waiting, Interruption())


def test_what_is_interrupted_again_and_again_leaves_nothing_behind(stepped: Stepped) -> None:
    signal, other = Signal(), stepped.add(Future)
    waits = [lambda: sleep(3600), lambda: signal, lambda: other]
    waiting = stepped.add(*(1000 * waits))
    stepped.step(3)
    for _ in range(3000):
        stepped.scheduler.interrupt(waiting, Interruption())
        stepped.step(2)
    assert len(stepped.got) == 3000
    assert len(stepped.scheduler._timers.heap) < 200
    assert other._task is not None
    assert other._task.joiners == []
    assert signal.wait is None


# Late wake-ups


def test_a_wake_up_that_comes_late_ends_no_later_wait(stepped: Stepped) -> None:
    woken = stepped.scheduler._lot.woken = HeldBack()
    stepped.loop = stepped.scheduler.main(block=False)
    signal = Signal()
    stepped.add(lambda: signal, lambda: signal)
    stepped.step(2)  # parked
    setter = threading.Thread(target=signal.set)
    setter.start()
    assert woken.arrived.wait(PATIENCE)  # the flag is set, the wake-up on its way
    signal.set()  # this one is quicker
    stepped.step(2)
    assert stepped.got == [None]
    woken.go_on.set()
    setter.join(PATIENCE)
    stepped.step(3)
    assert stepped.got == [None], 'one wait was ended by the setting of another'
    signal.set()
    stepped.step(2)
    assert stepped.got == [None, None], 'the late wake-up has made the signal forget its microthread'


def test_a_set_that_is_cut_short_leaves_the_waking_to_the_next(stepped: Stepped) -> None:
    """A Ctrl-C, for one, may come anywhere in ``set()``, and the program may catch it."""

    class CutShort(deque[Any]):
        cuts = True

        def append(self, item: Any) -> None:
            if self.cuts and item is signal.wait:
                raise KeyboardInterrupt
            super().append(item)

    signal = Signal()
    woken = stepped.scheduler._lot.woken = CutShort()
    stepped.loop = stepped.scheduler.main(block=False)
    stepped.add(lambda: signal)
    stepped.step(2)
    with pytest.raises(KeyboardInterrupt):
        signal.set()
    woken.cuts = False
    signal.set()
    stepped.step(2)
    assert stepped.got == [None]


def test_many_settings_during_one_wait_are_one_wake_up(stepped: Stepped) -> None:
    signal = Signal()
    stepped.add(lambda: signal, lambda: signal)
    stepped.step(2)
    for _ in range(1000):
        signal.set()
    assert len(stepped.scheduler._lot.woken) == 1
    stepped.step(4)
    assert stepped.got == [None]


def test_a_future_that_was_waited_for_before_ends_its_second_wait_once(stepped: Stepped) -> None:
    future: Future[int] = Future()
    waiting = stepped.add(lambda: future, lambda: future, Future)
    stepped.step()
    error = Interruption()
    stepped.scheduler.interrupt(waiting, error)
    stepped.step()
    future.set_result(1)  # two callbacks: one of the interrupted wait
    stepped.step(6)
    assert stepped.got == [error, 1]


def test_a_future_that_was_waited_for_is_freed_at_once(stepped: Stepped) -> None:
    """Its result may be large, and the next run of the garbage collector far away."""
    future: Future[None] = Future()
    futures, reference = [future], weakref.ref(future)
    gc.disable()
    try:
        stepped.add(futures.pop, Future)
        stepped.step()
        future.set_result(None)
        del future
        stepped.step(3)
        assert stepped.got == [None]
        assert reference() is None
    finally:
        gc.enable()


# Signals and those that wait for them


def test_a_second_microthread_that_waits_for_a_signal_is_told(stepped: Stepped) -> None:
    signal = Signal()
    stepped.add(lambda: signal)
    stepped.add(lambda: signal)
    stepped.step(4)
    (error,) = stepped.got
    assert isinstance(error, RuntimeError)
    assert 'another microthread waits for this signal' in str(error)
    signal.set()
    stepped.step(2)
    assert stepped.got == [error, None], 'the first one waits on'


@pytest.mark.parametrize('how', ['interrupted', 'ended'])
def test_another_microthread_may_wait_for_a_signal_when_the_first_has_left(stepped: Stepped, how: str) -> None:
    signal = Signal()
    first = stepped.add(lambda: signal)
    stepped.step()
    if how == 'interrupted':
        stepped.scheduler.interrupt(first, Interruption())
        stepped.step(3)
    else:
        stepped.loop.close()
        stepped.loop = stepped.scheduler.main(block=False)
    stepped.got.clear()
    stepped.add(lambda: signal)
    stepped.step(2)
    signal.set()
    stepped.step(2)
    assert stepped.got == [None]


@pytest.mark.parametrize('seconds', [None, 'long', float('nan'), 10**400])
def test_a_sleep_that_makes_no_sense_is_raised_at_its_yield(stepped: Stepped, seconds: Any) -> None:
    stepped.add(lambda: sleep(seconds), lambda: None)
    stepped.step(4)
    assert isinstance(stepped.got[0], (TypeError, ValueError, OverflowError))
    assert stepped.got[1:] == [None]


# Joining from another scheduler


def test_a_microthread_of_another_scheduler_in_another_thread_may_be_waited_for() -> None:
    """Thousands of microthreads end while others, elsewhere, begin to wait for them."""
    number = 3000
    got: list[int] = []
    ending, joining = MicroScheduler(), MicroScheduler(autoquit=True)

    def ends(value: int) -> Callable[[], Steps]:
        def main() -> Steps:
            yield
            return value

        return main

    def joins(other: MicroThread) -> Callable[[], Steps]:
        def main() -> Steps:
            got.append((yield other))

        return main

    loop = Loop(ending)
    others = [Main(ends(value)) for value in range(number)]

    def adds() -> Steps:
        for other in others:
            ending.add_microthread(other)
            joining.add_microthread(Main(joins(other)))
            yield

    run(Main(adds), scheduler=joining)
    assert sorted(got) == list(range(number))
    loop.stop()


def test_a_microthread_that_ends_between_the_two_looks_is_joined(stepped: Stepped) -> None:
    """The wait is among the joiners before ``ended`` is looked at, so an end in between is seen."""
    other = stepped.add()
    stepped.step()
    task = other._task
    assert task is not None

    class EndsMeanwhile(list[Any]):
        def append(self, item: Any) -> None:
            super().append(item)
            task.end('the result', None)

    task.ended = False
    task.joiners = EndsMeanwhile()
    stepped.add(lambda: other, Future)
    stepped.step(5)
    assert stepped.got == ['the result']


# Timers


def test_a_timer_that_sets_another_one_for_now_lets_turns_go_on() -> None:
    turns: list[int] = []
    scheduler = MicroScheduler()

    def again() -> None:
        scheduler.call_later(0, again)

    def main() -> Steps:
        for number in range(5):
            turns.append(number)
            yield
        raise ExitScheduler

    scheduler.call_later(0, again)
    run(Main(main), scheduler=scheduler)
    assert turns == list(range(5))


def test_a_timer_may_cancel_another_one_that_is_due() -> None:
    notes: list[str] = []
    scheduler = MicroScheduler(autoquit=True)
    scheduler.call_later(0, lambda: second.cancel())
    second = scheduler.call_later(0, lambda: notes.append('called'))
    run(Main(lambda: (yield sleep(0.01))), scheduler=scheduler)
    assert notes == []


def test_cancelled_timers_are_swept_out_and_the_others_stay() -> None:
    notes: list[int] = []
    scheduler = MicroScheduler()
    kept = [scheduler.call_later(0.01 + number / 1000, lambda n=number: notes.append(n)) for number in range(10)]
    big: list[Any] = []
    for _ in range(5000):
        held = threading.Event()
        big.append(weakref.ref(held))
        scheduler.call_later(3600, held.set).cancel()
        del held
    assert len(kept) == 10
    gc.collect()
    assert [ref for ref in big if ref() is not None] == []
    assert len(scheduler._timers.heap) < 200
    scheduler.call_later(0.05, scheduler.stop)
    Loop(scheduler).wait()
    assert notes == list(range(10))


# stop, at every moment


def waiting_for(what: Any) -> MicroThread:
    return Main(lambda: (yield what))


def test_stop_before_the_loop_is_made_counts() -> None:
    turns: list[str] = []

    def main() -> Steps:
        turns.append('began')
        yield sleep(60)

    scheduler = MicroScheduler()
    scheduler.add_microthread(Main(main))
    scheduler.stop()
    Loop(scheduler).wait()
    assert turns == []


def test_stop_before_the_first_step_of_the_loop_counts(stepped: Stepped) -> None:
    stepped.add(Future)
    stepped.scheduler.stop()
    with pytest.raises(StopIteration):
        stepped.step()


def test_stop_counts_for_one_loop() -> None:
    scheduler = MicroScheduler(autoquit=True)
    scheduler.stop()
    run(waiting_for(None), scheduler=scheduler)
    got: list[str] = []

    def main() -> Steps:
        yield
        got.append('ran')

    run(Main(main), scheduler=scheduler)
    assert got == ['ran']


def test_stop_while_the_loop_closes_counts_for_that_loop() -> None:
    scheduler = MicroScheduler()

    def main() -> Steps:
        try:
            yield Future()
        finally:
            scheduler.stop()

    scheduler.add_microthread(Main(main))
    loop = Loop(scheduler)
    loop.stop()
    again = scheduler.main(block=False)
    next(again)
    next(again)  # it has not ended
    again.close()


@pytest.mark.parametrize('ends_by', ['stop', 'shutdown'])
@pytest.mark.parametrize('steps', range(8))
def test_an_end_that_is_asked_for_between_two_steps_is_not_slept_through(steps: int, ends_by: str) -> None:
    scheduler = MicroScheduler()
    signal = Signal()
    signal.set()
    scheduler.add_microthread(waiting_for(signal))
    scheduler.add_microthread(waiting_for(None))
    scheduler.add_microthread(waiting_for(Future()))
    loop = scheduler.main(block=False)
    for _ in range(steps):
        next(loop)
    end_by(scheduler, ends_by)
    assert len(list(zip(range(10), loop, strict=False))) < 5


def end_by(scheduler: MicroScheduler, how: str) -> None:
    if how == 'stop':
        scheduler.stop()
    else:
        scheduler.shutdown = True


@pytest.mark.parametrize('ends_by', ['stop', 'shutdown'])
@pytest.mark.parametrize('moment', ['before the wait', 'in the wait'])
def test_an_end_that_is_asked_for_when_it_falls_asleep_wakes_it(moment: str, ends_by: str) -> None:
    class Falling:
        """Has the scheduler ended by another thread just when it begins to sleep, or while it does."""

        def __init__(self) -> None:
            self._bell = threading.Event()

        def ring(self) -> None:
            self._bell.set()

        def wait(self, timeout: float | None) -> None:
            ender = threading.Timer(0.05 if moment == 'in the wait' else 0, lambda: end_by(scheduler, ends_by))
            ender.start()
            if moment == 'before the wait':
                ender.join()
            assert self._bell.wait(PATIENCE)
            ender.join()

    def main() -> Steps:
        scheduler.sleep_by(Falling())
        yield Future()

    scheduler = MicroScheduler()
    run(Main(main), scheduler=scheduler)


def test_stop_from_another_thread_while_the_loop_changes_its_alarm_is_noticed() -> None:
    """The stopping thread has looked up the old alarm, and rings it when the loop sleeps by the new one already."""

    class Silent:
        def ring(self) -> None:
            pass

        def wait(self, timeout: float | None) -> None:
            raise AssertionError('it went to sleep in spite of stop()')

    def main() -> Steps:
        scheduler.stop()  # rings the alarm that it has now
        scheduler.sleep_by(Silent())
        yield Future()

    scheduler = MicroScheduler()
    run(Main(main), scheduler=scheduler)


def test_a_scheduler_that_runs_cannot_be_run_once_more(stepped: Stepped) -> None:
    stepped.add(Future)
    stepped.step()
    with pytest.raises(RuntimeError, match='runs already'):
        next(stepped.scheduler.main())
    stepped.step()


def test_what_interrupts_the_closing_of_one_does_not_keep_the_others_from_it() -> None:
    closed: list[str] = []

    def closes(name: str, error: BaseException | None = None) -> MicroThread:
        def main() -> Steps:
            try:
                yield Future()
            finally:
                closed.append(name)
                if error is not None:
                    raise error

        return Main(main)

    scheduler = MicroScheduler()
    for microthread in (closes('a'), closes('b', KeyboardInterrupt()), closes('c')):
        scheduler.add_microthread(microthread)
    loop = scheduler.main(block=False)
    for _ in range(4):
        next(loop)
    with pytest.raises(KeyboardInterrupt):
        loop.close()
    assert closed == ['c', 'b', 'a']
    assert scheduler.microthreads == []


# All at once


class Storm:
    """Microthreads that wait for random things, threads that end the waits, and interruptions in between.

    Each wait knows what it has to give, so that what goes to another wait is seen. Each is ended sooner or later, so
    that a wake-up which is lost stops the storm.
    """

    def __init__(self, seed: int, microthreads: int, waits: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = MicroScheduler(autoquit=True)
        self.wrong: list[str] = []
        self.number = self.interrupted = 0
        self.waiting: list[MicroThread] = [Main(self.waits(waits)) for _ in range(microthreads)]
        self.futures: deque[tuple[Future[int], int]] = deque()
        self.signals: set[Signal] = set()
        self.is_over = threading.Event()

    def waits(self, number: int) -> Callable[[], Steps]:
        """A microthread that waits so many times, and looks at what each wait gives."""

        def main() -> Steps:
            signal = Signal()
            for _ in range(number):
                self.number += 1
                wanted, check = self.choose(signal, self.number)
                try:
                    got = yield wanted
                except Interruption:
                    self.interrupted += 1
                else:
                    if not check(got):
                        self.wrong.append(f'{wanted!r} gave {got!r}')
            self.signals.discard(signal)

        return main

    def choose(self, signal: Signal, number: int) -> tuple[Any, Callable[[Any], bool]]:
        """Something to wait for, and what looks at what it gives."""
        kind = self.random.choice(['future', 'future', 'signal', 'signal', 'sleep', 'microthread', 'nothing'])
        if kind == 'future':
            future: Future[int] = Future()
            self.futures.append((future, number))
            return future, lambda got: bool(got == number)
        if kind == 'signal':
            self.signals.add(signal)
            return signal, lambda got: got is None
        if kind == 'sleep':
            due = time.monotonic() + 0.0005
            return sleep(0.0005), lambda got: got is None and time.monotonic() >= due

        def ends() -> Steps:
            yield
            return number

        if kind == 'microthread':
            other = Main(ends)
            self.scheduler.add_microthread(other)
            return other, lambda got: bool(got == number)
        return None, lambda got: got is None

    def interrupts(self) -> Steps:
        """The microthread that interrupts the others."""
        while any(each in self.scheduler.microthreads for each in self.waiting):
            for _ in range(self.random.randrange(4)):
                self.scheduler.interrupt(self.random.choice(self.waiting), Interruption())
            yield sleep(self.random.random() / 1000)

    def end_waits(self) -> None:
        """What the other threads do."""
        while not self.is_over.is_set():
            try:
                future, number = self.futures.popleft()
            except IndexError:
                self.is_over.wait(0.0002)
            else:
                future.set_result(number)
            for signal in list(self.signals):
                signal.set()


def test_in_a_storm_of_wake_ups_each_wait_gets_its_own(caplog: pytest.LogCaptureFixture) -> None:
    seed = int(os.environ.get('SEED') or random.randrange(2**32))
    print(f'seed {seed}')
    storm = Storm(seed, microthreads=20, waits=1000)
    threads = [threading.Thread(target=storm.end_waits) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        run(*storm.waiting, Main(storm.interrupts), scheduler=storm.scheduler)
    finally:
        storm.is_over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert storm.wrong == []
    assert storm.number == 20 * 1000
    assert storm.interrupted > 0
    assert [record for record in caplog.records if record.levelname == 'ERROR'] == []
