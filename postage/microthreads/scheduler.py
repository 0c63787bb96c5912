"""Microthreads, and the loop that runs them in turn."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from postage.microthreads.alarm import Alarm, Sleeper
from postage.microthreads.parking import Joinable, Task
from postage.microthreads.signals import run_until_signal
from postage.microthreads.timers import Timer, Timers
from postage.microthreads.traps import ExitScheduler, Signal
from postage.microthreads.turns import Turns, generator_of
from postage.microthreads.workers import Workers

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

logger = logging.getLogger('postage.microthreads')

BREATH_SECONDS = 0.0005  # for which a loop that never waits may keep other threads from running


class HasMain(Protocol):
    """What a scheduler runs: a :class:`MicroThread`, another scheduler, or any object with a ``main()``."""

    def main(self) -> Generator[Any, Any, Any]:
        """Return the generator that is driven."""


class MicroThread(Joinable):
    """Something a scheduler runs: override :meth:`step`, called once a round, or :meth:`main`, a generator.

    :ivar scheduler: the scheduler it was added to, ``None`` before that
    """

    scheduler: MicroScheduler | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it has something in hand that is worth waiting for when the scheduler ends in good order.

        Asked in the scheduler's thread after each wake-up. Where it becomes false in another thread, that thread has to
        wake the scheduler, with a signal that this microthread waits for.
        """
        return False

    def wind_down(self) -> None:
        """Begin nothing new, for the scheduler is about to end. Called in its thread; what is in hand goes on.

        It may be called several times.
        """

    def create(self) -> Generator[Any, Any, Any] | None:
        """Prepare it: the hook for its initialisation. Does nothing unless overridden.

        ``add_microthread`` calls it once, in the thread of the caller, with :attr:`scheduler` set, and raises what it
        raises. Then :meth:`main` follows, in the scheduler. Where it returns a generator, that one is driven in place
        of :meth:`main`; anything else that it returns is ignored.
        """
        return None

    def step(self) -> Any:
        """Do one round's work. May be a generator function. ``StopIteration`` ends this microthread alone."""

    def main(self) -> Generator[Any, Any, Any]:
        """Call :meth:`step` in every round until it raises ``StopIteration``.

        A method that overrides it is a generator function, which ends its microthread by returning, or by raising
        ``StopIteration``. It need not call :meth:`create`.
        """
        while True:
            try:
                result = self.step()
            except StopIteration:
                return
            if isinstance(result, Generator):
                yield from result
            else:
                yield


class MicroScheduler(Joinable):
    """Runs microthreads in turn, in the thread that iterates over :meth:`main`.

    Which thread may do what, and why no wake-up is lost, is told in :mod:`postage.microthreads.parking`.

    :param autoquit: end the loop when no microthread is left. Without it the scheduler goes on waiting for others
        to be added, unless the last one ended by an exception: then that leaves :meth:`main`.
    :cvar threads: how many threads :attr:`executor` may have
    :ivar is_idle: whether ``main(block=False)`` gave control back because nothing could run
    """

    threads: int = 16

    def __init__(self, autoquit: bool = False) -> None:
        self.autoquit = autoquit
        self.is_idle = False
        self._timers = Timers()
        self._turns = Turns(self._timers)
        self._lot = self._turns.lot
        self._workers = Workers()
        self._is_running = False  # its loop, from the first step to the end
        self._winding_down = False  # the loop ends once nothing is in hand
        self._was_shut_down = False  # the last loop ended by `shutdown`
        self._at_end: list[Callable[[], object]] = []
        self._outer: MicroScheduler | None = None  # the one that this one is a microthread of

    def add_microthread(self, microthread: HasMain) -> None:
        """Run a microthread from the next round on. May be called from any thread; never blocks.

        :param microthread: a :class:`MicroThread`, whose ``create()`` is called now, another scheduler, which then runs
            inside this one, or anything else with a ``main()`` that returns a generator
        :raises TypeError: it has no such ``main()``
        :raises Exception: whatever its ``create()`` raises; it is not added then
        """
        if isinstance(microthread, MicroThread):
            before, microthread.scheduler = microthread.scheduler, self
            try:
                task = Task(self._lot, microthread, generator_of(microthread, microthread.create()))
            except BaseException:
                microthread.scheduler = before
                raise
        else:
            task = Task(self._lot, microthread, generator_of(microthread, None))
        if isinstance(microthread, Joinable):
            microthread._task = task
        self._turns.add(task)

    @property
    def microthreads(self) -> list[Any]:
        """Those that have not ended, in the order in which they were added. Any thread."""
        return [task.microthread for task in list(self._turns.tasks)]

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback()`` in the scheduler's thread after that many seconds, once.

        To be called from the scheduler's own thread, or before its loop starts. An exception is logged;
        ``ExitScheduler`` ends the loop.
        """
        return self._timers.add(seconds, callback)

    def interrupt(self, microthread: MicroThread, error: BaseException) -> None:
        """Raise an exception at the ``yield`` where a microthread is. From the scheduler's own thread; never blocks.

        Whatever it waits for is left, and keeps its result. One that has not begun ends with the exception. One that
        has ended, runs, or is interrupted already is left alone.

        :raises RuntimeError: the microthread is another scheduler's
        """
        task = microthread._task
        if task is None or task.ended:
            return
        if task.lot is not self._lot:
            raise RuntimeError(f'{microthread!r} was added to another scheduler, which alone can interrupt it')
        self._turns.interrupt(task, error)

    def main(self, block: bool | None = None) -> Generator[Signal | None, None, None]:
        """The loop of every program: ``for _ in scheduler.main(): pass``.

        Gives control back after each microthread's turn. Ends when a microthread raises :class:`ExitScheduler`, with
        :meth:`stop` or :attr:`shutdown`, or with ``autoquit`` when no microthread is left. Every generator that still
        runs is closed then, so that its ``finally`` clauses run. Signals and Ctrl-C reach the program as always.

        :param block: what it does where nothing can run. ``True``: it sleeps. ``False``: it gives control back at once,
            for a program that steps it from another loop. By default it sleeps, but where it begins in a turn of
            another scheduler it yields what it waits for, as every microthread does.
        :raises RuntimeError: it runs already
        """
        if self._is_running:
            raise RuntimeError('this scheduler runs already')
        turns, lot, timers = self._turns, self._lot, self._timers.heap
        ready, woken, take_turn = lot.ready, lot.woken, turns.take
        breathe_at, enclosing = 0.0, None
        try:
            enclosing = self._begin(block)
            while True:
                if timers and timers[0][0] <= time.monotonic():
                    self._run_timers()
                if woken:
                    lot.collect()
                if self._winding_down and not self._has_something_in_hand():
                    return
                if ready:
                    for _ in range(len(ready)):
                        take_turn(ready.popleft())
                        yield None
                        _running.scheduler = self  # another one may have been stepped meanwhile
                    if time.monotonic() >= breathe_at:
                        # A loop that never waits would leave the other threads, which read and write the sockets,
                        # only what the interpreter's switch interval gives them: one turn in 5 ms.
                        time.sleep(0)
                        breathe_at = time.monotonic() + BREATH_SECONDS
                elif turns.exiting or (self.autoquit and not turns.tasks):
                    return
                elif turns.last_failure and not turns.tasks:
                    raise turns.last_failure
                elif self._outer is not None:
                    yield from self._wait_inside(self._outer)
                    _running.scheduler = self
                elif block is False:
                    self.is_idle = True
                    yield None
                    self.is_idle = False
                    _running.scheduler = self
                else:
                    lot.sleep(self._seconds_to_next_timer() if timers else None)
                    breathe_at = time.monotonic() + BREATH_SECONDS
                if turns.exiting:
                    return
        finally:
            self._finish(enclosing)

    def _begin(self, block: bool | None) -> MicroScheduler | None:
        """Start a loop. Returns the scheduler in one of whose turns that happens, if there is one."""
        enclosing = _running.scheduler
        if enclosing is not None and enclosing._turns.current is None:
            enclosing = None  # it is stepped in this thread, but this is not one of its turns
        if enclosing is not None and block is None:
            self._outer = enclosing
            self._lot.alarm = _Doorbell()
        self._is_running = True
        self._was_shut_down = False
        _running.scheduler = self
        return enclosing

    def _finish(self, enclosing: MicroScheduler | None) -> None:
        """End a loop. What has been asked of it counts for this one, and not for the next."""
        try:
            self._turns.close()
        finally:
            self._workers.close()
            self._was_shut_down = self._turns.exiting
            self._turns.exiting = self._winding_down = self._is_running = self.is_idle = False
            self._outer = None
            if self._workers.loop is None:
                self._lot.alarm = Alarm()
            if _running.scheduler is self:  # not where the loop is closed in another thread than it ran in
                goes_on = enclosing is not None and enclosing._turns.current is not None
                _running.scheduler = enclosing if goes_on else None

    async def run_async(self) -> None:
        """Run :meth:`main` inside a running asyncio loop, which goes on with its own tasks in between.

        Coroutine handlers run on that same loop. Cancelling it closes the microthreads.
        """
        from postage.microthreads.asyncio_bridge import drive

        await drive(self)

    # The end

    @property
    def shutdown(self) -> bool:
        """Whether the loop ends, or has ended, because of ``ExitScheduler`` or of this attribute.

        To set it ends the loop after the present round, or, where none runs, the next one after its first round. Any
        thread; never blocks.
        """
        return self._turns.exiting or self._was_shut_down

    @shutdown.setter
    def shutdown(self, ends: bool) -> None:
        self._turns.exiting = self._was_shut_down = ends
        self._lot.alarm.ring()

    def stop(self) -> None:
        """Have the loop end in good order: nothing new is begun, what is in hand is finished.

        Where no loop runs the next one ends in this way, before its first turn. Any thread, signal handlers included;
        never blocks.
        """
        # The order is safe: the loop looks at the flag after each wait, and an alarm remembers that it rang. Where the
        # loop changes to another alarm between these two steps it does so in a turn, and looks at the flag after that.
        self._winding_down = True
        self._lot.alarm.ring()

    def wind_down(self) -> None:
        """The same, for a scheduler that runs inside another one which winds down."""
        self.stop()

    @property
    def is_busy(self) -> bool:
        """Whether its loop has begun and not ended: a scheduler around it waits for that."""
        return self._is_running

    def _has_something_in_hand(self) -> bool:
        """Tell every microthread to wind down; whether one of them still has to finish something."""
        busy = False
        for task in list(self._turns.tasks):
            microthread = task.microthread
            if isinstance(microthread, (MicroThread, MicroScheduler)):
                _call_guarded(microthread.wind_down)
                busy = busy or microthread.is_busy
        return busy

    def run(self, grace: float = 30.0) -> None:
        """Run :meth:`main` until it ends, and end it in good order on SIGTERM and SIGINT (Ctrl-C).

        At the signal nothing new is begun: what is in hand is finished, every microthread is closed, and what was
        registered with :meth:`at_end` is called. What has not ended ``grace`` seconds later is interrupted. A second
        signal ends the process at once, as that signal does by default.

        Blocks. Signals are handled where it is called from the main thread, which alone may do so in Python; in
        another thread it is the loop alone.

        :param grace: seconds
        """
        run_until_signal(self._run_to_the_end, self.stop, grace)

    def _run_to_the_end(self) -> None:
        for _ in self.main():
            pass
        for callback in self.callbacks_at_end():
            callback()

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have :meth:`run` call this when the loop has ended, once. Equal callbacks count once."""
        if callback not in self._at_end:
            self._at_end.append(callback)

    def callbacks_at_end(self) -> Iterator[Callable[[], None]]:
        """Yield what was registered with :meth:`at_end`, each so that an exception is logged."""
        while self._at_end:
            yield functools.partial(_call_guarded, self._at_end.pop(0))

    # Coroutines and threads

    def run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the asyncio loop that drives the scheduler, else on one in a thread of its own.

        :return: a future of its result, which a microthread may yield; cancelling it cancels the coroutine
        """
        if self._outer is not None:
            return self._outer.run_coroutine(coroutine)
        return self._workers.run_coroutine(coroutine)

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The bounded pool for functions that block."""
        return self._workers.executor(self.threads)

    # Timers and waiting

    def _run_timers(self) -> None:
        """Call what is due by now; what a timer adds waits for the next round, so that turns go on in between."""
        now = time.monotonic()
        while (callback := self._timers.pop_due(now)) is not None:
            try:
                callback()
            except ExitScheduler:
                self._turns.exiting = True
            except Exception:
                logger.exception('a timer of the scheduler raised')

    def _seconds_to_next_timer(self) -> float | None:
        heap = self._timers.heap
        return max(0.0, heap[0][0] - time.monotonic()) if heap else None

    def sleep_by(self, alarm: Sleeper) -> None:
        """Sleep by another alarm until :meth:`main` ends, which does something useful meanwhile.

        To be called from the scheduler's own thread while it runs. Inside asyncio, whose loop does the sleeping, it has
        no effect; inside another scheduler it is that one's alarm, which sleeps for both.
        """
        if self._outer is not None:
            self._outer.sleep_by(alarm)
        elif self._workers.loop is None:
            self._lot.alarm = alarm

    def _wait_inside(self, outer: MicroScheduler) -> Generator[Signal, None, None]:
        """Sleep as a microthread of another scheduler, which may run others meanwhile."""
        lot = self._lot
        assert isinstance(lot.alarm, _Doorbell)
        signal, timer = lot.alarm.signal, None
        lot.is_sleeping = True
        try:
            if not lot.woken:
                seconds = self._seconds_to_next_timer()
                timer = None if seconds is None else outer.call_later(seconds, signal.set)
                yield signal
        finally:
            lot.is_sleeping = False
            if timer is not None:
                timer.cancel()

    # For the module that drives it from asyncio

    @contextlib.contextmanager
    def inside(self, loop: asyncio.AbstractEventLoop, alarm: Alarm) -> Generator[None, None, None]:
        """Be driven by an asyncio loop, and be woken by its alarm, for the length of a ``with``."""
        self._workers.loop = loop
        usual, self._lot.alarm = self._lot.alarm, alarm
        try:
            yield
        finally:
            self._workers.loop, self._lot.alarm = None, usual

    async def wait_with(self, wait: Callable[[float | None], Awaitable[None]]) -> None:
        """Sleep as :meth:`main` does, but by awaiting."""
        lot = self._lot
        lot.is_sleeping = True
        try:
            if not lot.woken:
                await wait(self._seconds_to_next_timer())
        finally:
            lot.is_sleeping = False


class _Doorbell:
    """The alarm of a scheduler inside another one: it rings by a signal, which the outer one waits for."""

    def __init__(self) -> None:
        self.signal = Signal()

    def ring(self) -> None:
        """Have the inner scheduler's next turn come. Any thread; never blocks."""
        self.signal.set()

    def wait(self, timeout: float | None) -> None:
        """Nothing: the outer scheduler does the sleeping."""


class _Running(threading.local):
    scheduler: MicroScheduler | None = None


_running = _Running()


def running_scheduler() -> MicroScheduler | None:
    """The scheduler whose loop is running in this thread, if there is one."""
    return _running.scheduler


def _call_guarded(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        logger.exception('a callback at the end of the scheduler raised')
