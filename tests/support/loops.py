"""Loops for tests: a scheduler in a thread of its own, and the loop of an I/O thread that is taken step by step."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread

PATIENCE = 20.0
"""Seconds that a loop is given to end."""


class Quitter(MicroThread):
    """Ends its scheduler in its first turn."""

    def step(self) -> None:
        raise ExitScheduler


class Loop:
    """The loop of a program, run in a thread of its own.

    :param scheduler: the scheduler to run
    """

    def __init__(self, scheduler: MicroScheduler) -> None:
        self.scheduler = scheduler
        self._outcome: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name='scheduler-of-the-test', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for _ in self.scheduler.main():
                pass
        except BaseException as error:
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(None)

    @property
    def is_running(self) -> bool:
        """Whether the loop goes on."""
        return not self._outcome.done()

    def wait(self, timeout: float = PATIENCE) -> None:
        """Wait until the loop has ended by itself; what left it is raised.

        :param timeout: seconds
        :raises TimeoutError: when the time is over
        """
        self._outcome.result(timeout)
        self._thread.join(timeout)

    def stop(self) -> None:
        """End the loop, where it still runs, and wait for that."""
        if self.is_running:
            self.scheduler.add_microthread(Quitter())
        self.wait()


def run(*microthreads: MicroThread, scheduler: MicroScheduler | None = None, autoquit: bool = True) -> None:
    """Run microthreads in one scheduler until its loop ends by itself.

    :raises TimeoutError: where it does not within :data:`PATIENCE`
    """
    scheduler = scheduler or MicroScheduler(autoquit)
    for microthread in microthreads:
        scheduler.add_microthread(microthread)
    Loop(scheduler).wait()


@contextlib.contextmanager
def running(*microthreads: MicroThread) -> Iterator[Loop]:
    """Microthreads in one scheduler, for the length of a ``with``."""
    scheduler = MicroScheduler()
    for microthread in microthreads:
        scheduler.add_microthread(microthread)
    loop = Loop(scheduler)
    try:
        yield loop
    finally:
        loop.stop()


class StepLoop:
    """What stands for pika's loop: its time passes when a test says so, in the thread that says so.

    :ivar now: its time, in seconds
    :ivar asked: how often it was asked to call back soon
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self._due: list[tuple[float, int, Callable[[], Any]]] = []
        self._numbers = itertools.count()
        self._removed: set[int] = set()

    def add_callback_threadsafe(self, callback: Callable[[], Any]) -> None:
        self.asked += 1
        heapq.heappush(self._due, (self.now, next(self._numbers), callback))

    def call_later(self, delay: float, callback: Callable[[], Any]) -> int:
        number = next(self._numbers)
        heapq.heappush(self._due, (self.now + delay, number, callback))
        return number

    def remove_timeout(self, timeout_handle: int) -> None:
        self._removed.add(timeout_handle)

    def run(self, seconds: float = 0.0) -> None:
        """Let so much time pass, and call all that comes due in it."""
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, number, callback = heapq.heappop(self._due)
            if number not in self._removed:
                callback()
        self.now = end

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be called back."""
        return all(number in self._removed for _, number, _ in self._due)
