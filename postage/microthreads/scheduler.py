"""Microthreads, and the loop that runs them in turn."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from postage.microthreads.alarm import Alarm, Sleeper
from postage.microthreads.signals import ends_on_signals
from postage.microthreads.traps import ExitScheduler, Signal, Timer, sleep

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from postage.microthreads.asyncio_bridge import AsyncioThread

logger = logging.getLogger('postage.microthreads')

BREATH_SECONDS = 0.0005  # for which a loop that never waits may keep other threads from running

A = TypeVar('A', bound=Alarm)


class MicroThread:
    """Something a scheduler runs: override :meth:`step`, called once a round, or :meth:`main`, a generator.

    :ivar scheduler: the scheduler it was added to, ``None`` before that
    """

    scheduler: MicroScheduler | None = None
    _task: Task | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it has something in hand that is worth waiting for when the scheduler ends in good order."""
        return False

    def wind_down(self) -> None:
        """Begin nothing new, for the scheduler is about to end. Called in its thread; what is in hand goes on."""

    def create(self) -> Generator[Any, Any, Any]:
        """Return the generator that the scheduler drives. Called once, by ``add_microthread``."""
        return self.main()

    def step(self) -> Any:
        """Do one round's work. May be a generator function. ``StopIteration`` ends this microthread alone."""

    def main(self) -> Generator[Any, Any, Any]:
        """Call :meth:`step` in every round until it raises ``StopIteration``."""
        while True:
            try:
                result = self.step()
            except StopIteration:
                return
            if isinstance(result, Generator):
                yield from result
            else:
                yield


class Task:
    """One microthread under one scheduler: its generator, and what it is to be resumed with."""

    __slots__ = ('context', 'ended', 'error', 'generator', 'joiners', 'microthread', 'result', 'scheduler', 'waits_for')

    def __init__(self, scheduler: MicroScheduler, microthread: MicroThread) -> None:
        self.scheduler = scheduler
        self.microthread = microthread
        self.generator = microthread.create()
        if not isinstance(self.generator, Generator):
            raise TypeError(f'{type(microthread).__name__}.create() gave {self.generator!r} instead of a generator')
        self.context = contextvars.copy_context()
        self.waits_for: object = None
        self.result: Any = None  # sent in at the next turn; once ended, what the generator returned
        self.error: BaseException | None = None  # thrown in at the next turn; once ended, what ended it
        self.joiners: list[Task] = []
        self.ended = False


class MicroScheduler:
    """Runs microthreads in turn, in the thread that iterates over :meth:`main`.

    :param autoquit: end the loop when no microthread is left. Without it the scheduler goes on waiting for others
        to be added, unless the last one ended by an exception: then that leaves :meth:`main`.
    :cvar threads: how many threads :attr:`executor` may have
    :ivar is_idle: whether ``main(block=False)`` gave control back because nothing could run
    """

    threads: int = 16

    def __init__(self, autoquit: bool = False) -> None:
        self.autoquit = autoquit
        self._tasks: dict[Task, None] = {}
        self._ready: deque[Task] = deque()
        self._woken: deque[tuple[Task, object]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_numbers = count()
        self._exiting = False
        self._current: Task | None = None  # the one whose turn it is
        self._at_end: list[Callable[[], object]] = []
        self._last_failure: Exception | None = None
        self.is_idle = False
        self._sleeping = False
        self._alarm: Sleeper = Alarm()
        self._winding_down = False
        self._asyncio: AsyncioThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: ThreadPoolExecutor | None = None

    def add_microthread(self, microthread: MicroThread) -> None:
        """Run a microthread from the next round on. May be called from any thread; never blocks.

        :raises TypeError: where its ``create()`` returns no generator
        """
        task = Task(self, microthread)
        microthread.scheduler = self
        microthread._task = task
        self._tasks[task] = None
        self.wake(task, None)

    @property
    def microthreads(self) -> list[MicroThread]:
        """Those that have not ended, in the order in which they were added."""
        return [task.microthread for task in list(self._tasks)]

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback()`` in the scheduler's thread after that many seconds, once.

        To be called from the scheduler's own thread, or before its loop starts. An exception is logged;
        ``ExitScheduler`` ends the loop.
        """
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), timer))
        return timer

    def main(self, block: bool = True) -> Generator[None, None, None]:
        """The loop of every program: ``for _ in scheduler.main(): pass``.

        Gives control back after each microthread's turn. Ends when a microthread raises :class:`ExitScheduler`, or
        with ``autoquit`` when none is left; every generator that still runs is closed then, so that its ``finally``
        clauses run. Signals and Ctrl-C reach the program as they always do.

        :param block: with ``False`` it never sleeps: where nothing can run it gives control back at once, for a
            program that steps it from another loop
        """
        self._exiting = self._winding_down = False
        _running.scheduler = self
        breathe_at = 0.0
        try:
            while not self._exiting:
                self._run_timers()
                self._collect_woken()
                if self._winding_down and not self._has_something_in_hand():
                    break
                if self._ready:
                    for _ in range(len(self._ready)):
                        self._turn(self._ready.popleft())
                        yield
                        _running.scheduler = self  # another one may have been stepped meanwhile
                    if time.monotonic() >= breathe_at:
                        # A loop that never waits would leave the other threads, which read and write the sockets,
                        # only what the interpreter's switch interval gives them: one turn in 5 ms.
                        time.sleep(0)
                        breathe_at = time.monotonic() + BREATH_SECONDS
                elif self.autoquit and not self._tasks:
                    break
                elif self._last_failure and not self._tasks:
                    raise self._last_failure
                elif not block:
                    self.is_idle = True
                    yield
                    self.is_idle = False
                    _running.scheduler = self
                elif not self._exiting:
                    self._wait()
                    breathe_at = time.monotonic() + BREATH_SECONDS
        finally:
            self._last_failure = None
            self._close()
            _running.scheduler = None

    async def run_async(self) -> None:
        """Run :meth:`main` inside a running asyncio loop, which goes on with its own tasks in between.

        Coroutine handlers run on that same loop. Cancelling it closes the microthreads.
        """
        from postage.microthreads.asyncio_bridge import drive

        await drive(self)

    def stop(self) -> None:
        """Have the loop end in good order: nothing new is begun, what is in hand is finished. Any thread."""
        self._winding_down = True
        self._alarm.ring()

    def _has_something_in_hand(self) -> bool:
        """Tell every microthread to wind down; whether one of them still has to finish something."""
        busy = False
        for task in list(self._tasks):
            _call_guarded(task.microthread.wind_down)
            busy = busy or task.microthread.is_busy
        return busy

    def run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the asyncio loop that drives the scheduler, else on one in a thread of its own.

        :return: a future of its result, which a microthread may yield; cancelling it cancels the coroutine
        """
        import asyncio

        loop = self._loop
        if loop is None:
            if self._asyncio is None:
                from postage.microthreads.asyncio_bridge import AsyncioThread

                self._asyncio = AsyncioThread()
            loop = self._asyncio.loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The bounded pool for functions that block."""
        if self._threads is None:
            from concurrent.futures import ThreadPoolExecutor

            self._threads = ThreadPoolExecutor(self.threads, 'postage-worker')
        return self._threads

    def interrupt(self, microthread: MicroThread, error: BaseException) -> None:
        """Raise an exception at the ``yield`` where a microthread is. From the scheduler's own thread.

        One that has ended, or is running, is left alone.
        """
        task = microthread._task
        if task is None or task.ended or task is self._current:
            return
        task.result, task.error = None, error
        if task.waits_for is not None:
            task.waits_for = None
            self._ready.append(task)

    def run(self, grace: float = 30.0) -> None:
        """Run :meth:`main` until it ends, and end it in good order on SIGTERM and SIGINT (Ctrl-C).

        At the signal nothing new is begun: what is in hand is finished, every microthread is closed, and what was
        registered with :meth:`at_end` is called. What has not ended ``grace`` seconds later is interrupted. A second
        signal ends the process at once, as that signal does by default.

        Blocks. Signals are handled where it is called from the main thread, which alone may do so in Python; in
        another thread it is the loop alone.

        :param grace: seconds
        """
        with ends_on_signals(self, grace):
            for _ in self.main():
                pass
            for callback in self.callbacks_at_end():
                callback()

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have :meth:`run` call this when the loop has ended, once. Equal callbacks count once."""
        if callback not in self._at_end:
            self._at_end.append(callback)

    # Turns

    def _turn(self, task: Task) -> None:
        """Resume one generator and act on what it yields."""
        if task.ended:
            return
        error, task.error = task.error, None
        result, task.result = task.result, None
        task.waits_for = None
        self._current = task
        try:
            if error is None:
                wanted = task.context.run(task.generator.send, result)
            else:
                wanted = task.context.run(task.generator.throw, error)
        except StopIteration as stop:
            self._end(task, result=stop.value)
        except ExitScheduler:
            self._exiting = True
            self._end(task)
        except Exception as failure:
            self._fail(task, failure)
        else:
            if wanted is None or not self._park(task, wanted):
                self._ready.append(task)
        finally:
            self._current = None

    def _park(self, task: Task, wanted: object) -> bool:
        """Set a task aside until what it waits for has happened; ``False`` where it may go on at once."""
        task.waits_for = wanted
        if isinstance(wanted, Signal):
            return wanted.park(task)
        if isinstance(wanted, Future):
            wanted.add_done_callback(lambda future: self.wake(task, future))
            return True
        if isinstance(wanted, sleep):
            self.call_later(wanted.seconds, lambda: self.wake(task, wanted))
            return True
        if isinstance(wanted, MicroThread):
            return self._join(task, wanted)
        task.waits_for = None
        return False

    def _join(self, task: Task, microthread: MicroThread) -> bool:
        other = microthread._task
        if other is None:
            task.error = RuntimeError(f'{microthread!r} was added to no scheduler, so its end cannot be waited for')
            return False
        if other.ended:
            task.result, task.error = other.result, other.error
            return False
        other.joiners.append(task)
        return True

    def _fail(self, task: Task, failure: Exception) -> None:
        if isinstance(failure, RuntimeError) and isinstance(failure.__cause__, StopIteration):
            # PEP 479: a generator cannot let StopIteration out. Here it means what it always meant.
            self._end(task, result=failure.__cause__.value)
            return
        logger.error('%s ended by an exception', type(task.microthread).__name__, exc_info=failure)
        self._end(task, error=failure)
        self._last_failure = failure

    def _end(self, task: Task, result: Any = None, error: BaseException | None = None) -> None:
        task.ended, task.result, task.error = True, result, error
        self._last_failure = None
        self._tasks.pop(task, None)
        for joiner in task.joiners:
            joiner.result, joiner.error = result, error
            joiner.scheduler.wake(joiner, task.microthread)
        task.joiners.clear()

    def _close(self) -> None:
        """Close every generator, so that none is left half-run."""
        self._ready.clear()
        if self._loop is None:
            self._alarm = Alarm()
        while self._tasks:
            task, _ = self._tasks.popitem()
            try:
                task.context.run(task.generator.close)
            except Exception:
                logger.exception('%s raised while it was closed', type(task.microthread).__name__)
            self._end(task)
        if self._asyncio is not None:
            self._asyncio.close()
            self._asyncio = None
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    # Waking and waiting

    def wake(self, task: Task, reason: object) -> None:
        """Make a parked task ready, from any thread. What it no longer waits for is ignored."""
        self._woken.append((task, reason))
        if self._sleeping:
            self._alarm.ring()

    def _collect_woken(self) -> None:
        woken = self._woken
        while woken:
            task, reason = woken.popleft()
            if task.ended or task.waits_for is not reason:
                continue
            if isinstance(reason, Signal):
                reason.woken()
            elif isinstance(reason, Future):
                task.error = _exception_of(reason)
                task.result = None if task.error else reason.result()
            task.waits_for = None
            self._ready.append(task)

    def _run_timers(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= time.monotonic():
            callback = heapq.heappop(timers)[2]._callback
            if callback is None:
                continue
            try:
                callback()
            except ExitScheduler:
                self._exiting = True
            except Exception:
                logger.exception('a timer of the scheduler raised')

    def _wait(self) -> None:
        """Sleep until something is woken or the next timer is due. The one place where a scheduler waits."""
        # The order matters: whoever adds to the woken after our look at them sees that we sleep.
        self._sleeping = True
        try:
            if not self._woken:
                self._alarm.wait(self._time_to_next_timer())
        finally:
            self._sleeping = False

    def sleep_by(self, alarm: Sleeper) -> None:
        """Sleep by another alarm until :meth:`main` ends, which does something useful meanwhile.

        To be called from the scheduler's own thread while it runs. Inside asyncio, whose loop does the sleeping, it has
        no effect.
        """
        if self._loop is None:
            self._alarm = alarm

    # For the modules beside this one

    @contextlib.contextmanager
    def inside(self, loop: asyncio.AbstractEventLoop, alarm: A) -> Generator[A, None, None]:
        """Be driven by an asyncio loop for a while, and be woken by its alarm."""
        self._loop = loop
        usual, self._alarm = self._alarm, alarm
        try:
            yield alarm
        finally:
            self._loop, self._alarm = None, usual

    async def wait_with(self, wait: Callable[[float | None], Awaitable[None]]) -> None:
        """Sleep as :meth:`main` does, but by awaiting."""
        self._sleeping = True
        try:
            if not self._woken:
                await wait(self._time_to_next_timer())
        finally:
            self._sleeping = False

    def callbacks_at_end(self) -> Iterator[Callable[[], None]]:
        """What was registered with :meth:`at_end`, each so that an exception is logged."""
        while self._at_end:
            yield functools.partial(_call_guarded, self._at_end.pop(0))

    def _time_to_next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None


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


def _exception_of(future: Future[Any]) -> BaseException | None:
    """The exception a finished future carries, its cancellation included."""
    try:
        return future.exception()
    except BaseException as cancelled:
        return cancelled
