"""Generator-based microthreads, and the scheduler that drives them.

A microthread is a generator that gives control back by ``yield``. What it yields says what it waits for; these
are the only things that ever park one:

``concurrent.futures.Future``
    resumed with its result, or its exception raised at the ``yield``
:class:`sleep`
    resumed after that many seconds
:class:`Signal`
    resumed once somebody, in any thread, has set it
:class:`MicroThread`
    resumed when that one has ended, with what it returned, or with its exception

Anything else, ``None`` above all, means "go on with me in the next round". A parked microthread costs nothing while
it waits, and a scheduler with nothing to run sleeps until a future, a signal or a timer wakes it.

This module knows nothing of messages and imports nothing of Postage.
"""

from __future__ import annotations

import _thread
import contextlib
import heapq
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from itertools import count
from types import FrameType
from typing import Any

__all__ = ['ExitScheduler', 'MicroScheduler', 'MicroThread', 'Signal', 'Timer', 'sleep']

logger = logging.getLogger('postage.microthreads')


class ExitScheduler(Exception):
    """Raised by a microthread to end its scheduler: the current round is finished, then the loop ends.

    This is control flow, not an error.
    """


class sleep:  # noqa: N801 - it is written as a call: yield sleep(1)
    """``yield sleep(seconds)`` parks the microthread for at least that long."""

    __slots__ = ('seconds',)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Signal:
    """What one microthread waits for until another thread, or another microthread, has something for it.

    It remembers: a signal that is set before anybody waits lets the next wait pass at once. Several settings
    before the wait count as one.
    """

    __slots__ = ('_is_set', '_task')

    def __init__(self) -> None:
        self._is_set = False
        self._task: _Task | None = None

    def set(self) -> None:
        """Let the waiting microthread, or the next one to wait, go on. May be called from any thread; never blocks."""
        self._is_set = True
        task = self._task
        if task is not None:
            self._task = None
            task.scheduler._wake(task, self)

    def _park(self, task: _Task) -> bool:
        # The order matters: whoever sets the flag after our look at it finds the task.
        self._task = task
        if self._is_set:
            self._is_set = False
            self._task = None
            return False
        return True


class Timer:
    """A call that a scheduler makes later. Returned by :meth:`MicroScheduler.call_later`."""

    __slots__ = ('_callback',)

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """See to it that the call is not made, if it has not been made yet."""
        self._callback = None


class MicroThread:
    """Something a scheduler runs: override :meth:`step`, called once a round, or :meth:`main`, a generator.

    :ivar scheduler: the scheduler it was added to, ``None`` before that
    """

    scheduler: MicroScheduler | None = None
    _task: _Task | None = None

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


class _Interrupted(BaseException):
    """Raised in the main thread, whatever it is at, when the time of grace after a signal is over."""


class _Stop:
    """What a signal does to a scheduler: the first ends it in good order, the second ends the process."""

    def __init__(self, scheduler: MicroScheduler, grace: float) -> None:
        self._scheduler = scheduler
        self._grace = grace
        self._watch: threading.Timer | None = None
        self._is_over = False

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. Runs in the main thread, between two instructions of whatever is running there."""
        if self._is_over:
            raise _Interrupted
        if self._watch is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        self._watch = threading.Timer(self._grace, self._interrupt, (number,))
        self._watch.daemon = True
        self._watch.start()
        self._scheduler._exiting = True
        self._scheduler._ring()

    def _interrupt(self, number: int) -> None:
        self._is_over = True
        main_thread = threading.main_thread().ident
        if hasattr(signal, 'pthread_kill') and main_thread is not None:
            signal.pthread_kill(main_thread, number)  # also wakes it from a system call
        else:
            _thread.interrupt_main(signal.Signals(number))

    def cancel(self) -> None:
        """The scheduler has ended in time, or for another reason."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch.join()


def _call_guarded(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        logger.exception('a callback at the end of the scheduler raised')


class _Task:
    """One microthread under one scheduler: its generator, and what it is to be resumed with."""

    __slots__ = ('ended', 'error', 'generator', 'joiners', 'microthread', 'result', 'scheduler', 'waits_for')

    def __init__(self, scheduler: MicroScheduler, microthread: MicroThread) -> None:
        self.scheduler = scheduler
        self.microthread = microthread
        self.generator = microthread.create()
        if not isinstance(self.generator, Generator):
            raise TypeError(f'{type(microthread).__name__}.create() gave {self.generator!r} instead of a generator')
        self.waits_for: object = None
        self.result: Any = None  # sent in at the next turn; once ended, what the generator returned
        self.error: BaseException | None = None  # thrown in at the next turn; once ended, what ended it
        self.joiners: list[_Task] = []
        self.ended = False


class MicroScheduler:
    """Runs microthreads in turn, in the thread that iterates over :meth:`main`.

    :param autoquit: end the loop when no microthread is left. Without it the scheduler goes on waiting for others
        to be added, unless the last one ended by an exception: then that leaves :meth:`main`.
    """

    def __init__(self, autoquit: bool = False) -> None:
        self.autoquit = autoquit
        self._tasks: dict[_Task, None] = {}
        self._ready: deque[_Task] = deque()
        self._woken: deque[tuple[_Task, object]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_numbers = count()
        self._exiting = False
        self._at_end: list[Callable[[], object]] = []
        self._last_failure: Exception | None = None
        self._sleeping = False
        self._alarm = threading.Lock()
        self._alarm.acquire()

    def add_microthread(self, microthread: MicroThread) -> None:
        """Run a microthread from the next round on. May be called from any thread; never blocks.

        :raises TypeError: where its ``create()`` returns no generator
        """
        task = _Task(self, microthread)
        microthread.scheduler = self
        microthread._task = task
        self._tasks[task] = None
        self._wake(task, None)

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
        self._exiting = False
        try:
            while not self._exiting:
                self._run_timers()
                self._collect_woken()
                if self._ready:
                    for _ in range(len(self._ready)):
                        self._turn(self._ready.popleft())
                        yield
                elif self.autoquit and not self._tasks:
                    break
                elif not block:
                    yield
                elif self._last_failure and not self._tasks:
                    raise self._last_failure
                elif not self._exiting:
                    self._wait()
        finally:
            self._last_failure = None
            self._close()

    def run(self, grace: float = 30.0) -> None:
        """Run :meth:`main` until it ends, and end it in good order on SIGTERM and SIGINT (Ctrl-C).

        At the signal nothing new is begun: what is in hand is finished, every microthread is closed, and what was
        registered with :meth:`at_end` is called. What has not ended ``grace`` seconds later is interrupted. A second
        signal ends the process at once, as that signal does by default.

        Blocks. Signals are handled where it is called from the main thread, which alone may do so in Python; in
        another thread it is the loop alone.

        :param grace: seconds
        """
        with self._handling_signals(grace):
            for _ in self.main():
                pass
            while self._at_end:
                _call_guarded(self._at_end.pop(0))

    @contextlib.contextmanager
    def _handling_signals(self, grace: float) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        stop = _Stop(self, grace)
        previous = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        except _Interrupted:
            logger.error('what was in hand did not end within %g s of the signal, and was interrupted', grace)
        finally:
            stop.cancel()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have :meth:`run` call this when the loop has ended, once. Equal callbacks count once."""
        if callback not in self._at_end:
            self._at_end.append(callback)

    # Turns

    def _turn(self, task: _Task) -> None:
        """Resume one generator and act on what it yields."""
        if task.ended:
            return
        error, task.error = task.error, None
        result, task.result = task.result, None
        task.waits_for = None
        try:
            wanted = task.generator.throw(error) if error is not None else task.generator.send(result)
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

    def _park(self, task: _Task, wanted: object) -> bool:
        """Set a task aside until what it waits for has happened; ``False`` where it may go on at once."""
        task.waits_for = wanted
        if isinstance(wanted, Signal):
            return wanted._park(task)
        if isinstance(wanted, Future):
            wanted.add_done_callback(lambda future: self._wake(task, future))
            return True
        if isinstance(wanted, sleep):
            self.call_later(wanted.seconds, lambda: self._wake(task, wanted))
            return True
        if isinstance(wanted, MicroThread):
            return self._join(task, wanted)
        task.waits_for = None
        return False

    def _join(self, task: _Task, microthread: MicroThread) -> bool:
        other = microthread._task
        if other is None:
            task.error = RuntimeError(f'{microthread!r} was added to no scheduler, so its end cannot be waited for')
            return False
        if other.ended:
            task.result, task.error = other.result, other.error
            return False
        other.joiners.append(task)
        return True

    def _fail(self, task: _Task, failure: Exception) -> None:
        if isinstance(failure, RuntimeError) and isinstance(failure.__cause__, StopIteration):
            # PEP 479: a generator cannot let StopIteration out. Here it means what it always meant.
            self._end(task, result=failure.__cause__.value)
            return
        logger.error('%s ended by an exception', type(task.microthread).__name__, exc_info=failure)
        self._last_failure = failure
        self._end(task, error=failure)

    def _end(self, task: _Task, result: Any = None, error: BaseException | None = None) -> None:
        task.ended, task.result, task.error = True, result, error
        self._tasks.pop(task, None)
        for joiner in task.joiners:
            joiner.result, joiner.error = result, error
            other_scheduler = joiner.scheduler
            other_scheduler._wake(joiner, task.microthread)
        task.joiners.clear()

    def _close(self) -> None:
        """Close every generator, so that none is left half-run."""
        self._ready.clear()
        while self._tasks:
            task, _ = self._tasks.popitem()
            try:
                task.generator.close()
            except Exception:
                logger.exception('%s raised while it was closed', type(task.microthread).__name__)
            self._end(task)

    # Waking and waiting

    def _wake(self, task: _Task, reason: object) -> None:
        """Make a parked task ready, from any thread. What it no longer waits for is ignored."""
        self._woken.append((task, reason))
        if self._sleeping:
            self._ring()

    def _ring(self) -> None:
        try:
            self._alarm.release()
        except RuntimeError:
            pass  # it rings already

    def _collect_woken(self) -> None:
        woken = self._woken
        while woken:
            task, reason = woken.popleft()
            if task.ended or task.waits_for is not reason:
                continue
            if isinstance(reason, Signal):
                reason._is_set = False
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
                timeout = self._timers[0][0] - time.monotonic() if self._timers else None
                if timeout is None:
                    self._alarm.acquire()
                elif timeout > 0:
                    self._alarm.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        finally:
            self._sleeping = False


def _exception_of(future: Future[Any]) -> BaseException | None:
    """The exception a finished future carries, its cancellation included."""
    try:
        return future.exception()
    except BaseException as cancelled:
        return cancelled
