"""One worker process, as its supervisor knows it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

from postage.cli.run.line import SIGNALLED, Line
from postage.cli.run.options import Options

OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)
"""Signals that a terminal sends to all its processes, and that are the supervisor's: a worker begins with them blocked,
and lets them in once it knows to ignore them."""


class Process:
    """A worker process: begun, and then told what to do over its line.

    :param number: of its slot, counted from 1
    :ivar is_ready: whether its components consume
    :ivar leaves: whether it was told to end
    :ivar is_asked: whether it owes an answer to how it is
    :ivar failure: why its components could not be made, if so
    """

    def __init__(self, number: int, options: Options) -> None:
        self.number = number
        self.is_ready = self.leaves = self.is_asked = False
        self.failure: str | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
            if options.reload:
                # Compiled code would be taken for that of a source which changes again in this second.
                flags.append('-B')
            program = [sys.executable, *flags, '-m', 'postage.cli.run.worker']
            before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_TERMINALS)
            try:
                # The descriptor stays open, under the same number, where the worker runs itself anew.
                self._process = subprocess.Popen(
                    [*program, str(theirs.fileno()), options.as_json()],
                    pass_fds=[theirs.fileno()],
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.line = Line(ours)

    def __str__(self) -> str:
        return f'worker {self.number} (pid {self._process.pid})'

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status once it has ended, negative for a signal; ``None`` while it runs. Never blocks."""
        return self._process.poll()

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it."""
        return (self.status or 0) < 0

    def ask(self) -> None:
        """Have it say how it is.

        Once: a worker that hears nothing for long, because it is stopped, must not have its line fill up, for then the
        supervisor would wait until there is room.
        """
        if not self.is_asked:
            self.is_asked = True
            self.line.say(order='report')

    def order(self, what: str) -> None:
        """Have it end: ``drain``, ``stop`` or ``cut``, as :class:`postage.cli.run.worker.Worker` says."""
        self.leaves = True
        self.line.say(order=what)

    def kill(self) -> None:
        """End it at once; what it has in hand goes back to the broker."""
        self._process.kill()

    def how_it_ended(self) -> str:
        """Its end, in words."""
        status = self.status
        if status == SIGNALLED:
            return 'was ended by a signal'
        if status is not None and status < 0:
            try:
                return f'was killed by {signal.Signals(-status).name}'
            except ValueError:
                return f'was killed by signal {-status}'
        return f'ended with status {status}'
