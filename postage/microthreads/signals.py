"""Ending a scheduler in good order on SIGTERM and SIGINT."""

from __future__ import annotations

import _thread
import contextlib
import logging
import signal
import threading
from collections.abc import Generator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postage.microthreads.scheduler import MicroScheduler

logger = logging.getLogger('postage.microthreads')


@contextlib.contextmanager
def ends_on_signals(scheduler: MicroScheduler, grace: float) -> Generator[None, None, None]:
    """Let the first signal stop the scheduler, the second the process, and the end of ``grace`` what is in hand.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop(scheduler, grace)
    previous = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Interrupted:
        logger.error('what was in hand did not end within %g s of the signal, and was interrupted', grace)
    finally:
        stop.cancel()
        for number, handler in previous.items():
            signal.signal(number, handler)


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
        self._scheduler.stop()

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
