"""Adapters that receive messages themselves, until they are told to end."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext

from postage.missive.adapters.base import Adapter
from postage.missive.contexts import ProcessingContext
from postage.missive.messages import M
from postage.missive.processor import Processor
from postage.missive.shutdown_handler import ShutdownHandler

logger = logging.getLogger('postage')


class RunnableAdapter(Adapter[M]):
    """Base of adapters with a :meth:`run`: they define :meth:`_run`, and where that one sleeps :meth:`_wake`.

    :param message_cls: makes a message out of bytes, such as ``RawMessage``
    :param processor: what handles the messages
    :ivar shutdown_handler: ends a run; a new one after each run
    :ivar disable_shutdown_handler: leave the signals to the program, so that only :meth:`stop` ends a run
    """

    disable_shutdown_handler: bool = False

    def __init__(self, message_cls: Callable[[bytes], M], processor: Processor[M]) -> None:
        self.message_cls = message_cls
        self.processor = processor
        self.shutdown_handler = ShutdownHandler()
        self._is_told: set[str] = set()

    def run(self) -> None:
        """Receive messages and have them handled until SIGTERM or SIGINT (Ctrl-C), or :meth:`stop`.

        Blocks. At the signal the message in hand is finished; a second signal ends the process at once. Signals are
        handled where it is called from the main thread.

        :raises Exception: whatever a processing hook raises, and handling a message where there is no dead letter queue
        """
        with self._ended_by_signals(), self.processor.context(self.message_cls, self) as ctx:
            self._run(ctx)

    @contextmanager
    def _ended_by_signals(self) -> Generator[None, None, None]:
        """Have signals end the body of the ``with``, unless they are left to the program."""
        self.shutdown_handler.wake = self._wake
        try:
            with nullcontext() if self.disable_shutdown_handler else self.shutdown_handler:
                yield
        finally:
            self.shutdown_handler = ShutdownHandler()

    def stop(self) -> None:
        """End :meth:`run` in good order, as a signal does. Any thread; does not wait for the end."""
        self.shutdown_handler.set_exit()
        self._wake()

    @abstractmethod
    def _run(self, ctx: ProcessingContext[M]) -> None:
        """Receive and handle until ``self.shutdown_handler.should_exit()``."""

    def _wake(self) -> None:
        """Have :meth:`_run` look whether it should end. Any thread."""

    def _tell_once(self, text: str) -> None:
        """Log a limit of the transport, the first time it matters."""
        if text not in self._is_told:
            self._is_told.add(text)
            logger.warning('%s (said once)', text)
