"""A scheduler in a thread of its own, so that a test can wait for its end with a time limit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future

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
