"""Ending a scheduler in good order on SIGTERM and SIGINT."""

from __future__ import annotations

import _thread
import itertools
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

logger = logging.getLogger('postage.microthreads')


def run_until_signal(call: Callable[[], object], stop: Callable[[], object], grace: float) -> None:
    """Call ``call()``; the first signal meanwhile calls ``stop()``, and the second ends the process. Blocks.

    Outside the main thread, where Python allows no signal handlers, it is the call alone.

    :param stop: called by the signal handler, so between two instructions of whatever the main thread is running
    :param grace: seconds after the first signal until the call is interrupted, where it has not ended by then
    """
    if threading.current_thread() is not threading.main_thread():
        call()
        return
    Ending(stop, grace).run(call)


class _Interrupted(BaseException):
    """Raised in the main thread, whatever it is running, when the time of grace after a signal is over."""


class Ending:
    """What signals do to a scheduler: the first ends it in good order, the second ends the process.

    When the time of grace is over a thread, the watch, sends the process one more signal, for that alone interrupts the
    main thread in whatever it waits for.

    :param stop: as for :func:`run_until_signal`
    :param grace: the same
    :param obeys: whether signals after the first do nothing, for :meth:`cut` is called; else they end the process
    :ivar has_ended: whether the scheduler has ended, so that there is nothing left to interrupt
    :ivar was_cut: whether the call was interrupted
    :ivar was_signalled: whether it was a signal that began the end
    """

    def __init__(self, stop: Callable[[], object], grace: float, obeys: bool = False) -> None:
        self.has_ended = self.was_cut = self.was_signalled = False
        self._stop = stop
        self._obeys = obeys
        self._grace = grace
        self._times_begun = itertools.count()
        self._watch: threading.Timer | None = None
        self._is_cut = False  # told to end at once, before the time of grace is over
        self._is_over = False  # the time of grace: the next signal is the watch's own
        self._previous: dict[int, Any] = {}

    def run(self, call: Callable[[], object]) -> None:
        """Call ``call()`` with the signals handled here. Blocks; for the main thread."""
        try:
            try:
                self.take_signals()
                call()
            finally:
                self.has_ended = True
        except _Interrupted:
            self.was_cut = True
            why = 'was told to end at once' if self._is_cut else f'did not end within {self._grace:g} s of the signal'
            logger.error('what was in hand %s, and was interrupted', why)
        finally:
            self.give_signals_back()

    def begin(self, number: int = signal.SIGTERM) -> None:
        """Begin to end, as at the first signal. Any thread; never blocks. Nothing happens the second time."""
        # One step, for a signal handler and another thread may both be here.
        if next(self._times_begun) == 0:
            self._watch = threading.Timer(self._grace, self._interrupt, (number,))
            self._watch.daemon = True
            self._watch.start()
            self._stop()

    def cut(self) -> None:
        """Interrupt the call now, as at the end of the time of grace. Any thread but the main one; never blocks."""
        if not self.has_ended:
            self._is_cut = True
            self._interrupt(signal.SIGTERM)

    def take_signals(self) -> None:
        """Have SIGTERM and SIGINT handled here."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # Noted first: where a Ctrl-C comes between the two, give_signals_back() knows what to put back.
            self._previous[number] = signal.getsignal(number)
            signal.signal(number, self._on_signal)

    def give_signals_back(self) -> None:
        """Have them handled as they were before. Waits for the watch, whose signal must not come later than that."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch.join()
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed by Python, and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. Runs in the main thread, between two instructions of whatever is running there."""
        if self._is_over:
            self._is_over = False
            # `has_ended` is written in this thread, too. Until then the exception is caught; after that it would come
            # out of run() in spite of a good end.
            if not self.has_ended:
                raise _Interrupted
        elif self._watch is None:
            self.was_signalled = True
            self.begin(number)
        elif not self._obeys:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _interrupt(self, number: int) -> None:
        """The time of grace is over. Called in the watch's thread."""
        self._is_over = True
        main_thread = threading.main_thread().ident
        if hasattr(signal, 'pthread_kill') and main_thread is not None:
            signal.pthread_kill(main_thread, number)  # also wakes it from a system call
        else:
            _thread.interrupt_main(signal.Signals(number))
