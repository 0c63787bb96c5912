"""Programs started by tests, and what they print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from support.canaries import note

TIMEOUT = 20.0

ECHO = """
from postage import messaging, microthreads

class EchoExchange(messaging.Exchange):
    name = 'echo-exchange'

class Greedy(messaging.GenericConsumer):
    prefetch_count = 100
"""
"""The head of a program whose exchange is that of :mod:`support.messaging`."""


class Program:
    """A running Python program whose output, both streams in one, is read line by line as it comes.

    :param program: path of a file; or, where it contains a line break, the program's text
    :param arguments: its command line arguments
    :param environment: variables added to this process's own
    :param cwd: where it runs
    """

    def __init__(
        self,
        program: str | Path,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        is_text = isinstance(program, str) and '\n' in program
        command = ['-c', str(program)] if is_text else [str(program)]
        self._start([*command, *arguments], environment, cwd)

    def _start(self, arguments: Sequence[str], environment: Mapping[str, str] | None, cwd: str | Path | None) -> None:
        self.lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, '-X', 'faulthandler', *arguments],
            env={**os.environ, 'PYTHONUNBUFFERED': '1', **(environment or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding='utf-8',
            errors='replace',
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f'output-of-{self.pid}', daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return '\n'.join(self.lines)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, and all that it had printed has been read."""
        return self._ended

    def expect(self, text: str, timeout: float = TIMEOUT, times: int = 1) -> str:
        """Wait until that many lines contain the text, and return the last of them.

        :param timeout: seconds
        :raises AssertionError: at once where the program ends without them, or when the time is over
        """
        self._await(lambda: self.count(text) >= times or self._ended, timeout)
        found = [line for line in self.lines if text in line]
        assert len(found) >= times, f'{len(found)} of {times} lines with {text!r} in:\n{self.output}'
        return found[times - 1]

    def count(self, text: str) -> int:
        """Return how many lines contain the text by now."""
        return sum(text in line for line in self.lines)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait until the program has ended by itself, and return its exit status.

        :param timeout: seconds
        :raises AssertionError: when the time is over
        """
        self._await(lambda: self._ended, timeout)
        assert self._ended, f'still running after {timeout} s, having printed:\n{self.output}'
        return self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as ``signal.SIGINT`` for Ctrl-C."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it, and return once all that it had written has been read."""
        self._process.kill()
        self.wait()

    def stop(self, timeout: float = 5.0) -> None:
        """End it if it still runs: SIGTERM, then, after `timeout` seconds, SIGKILL."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(timeout)
        note(f'the output of {self._process.args[-1]!s:.60}', self.output)
        assert self._process.stdout is not None
        if not self._reader.is_alive():
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._take(line.rstrip('\n'))
                self._changed.notify_all()
        self._process.wait()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self, line: str) -> None:
        """A line has come. On the thread that reads."""
        self.lines.append(line)

    def _await(self, condition: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(condition, deadline - time.monotonic())


class Module(Program):
    """A module run with ``python -m``; everything else is as in :class:`Program`."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        self._start(['-m', module, *arguments], environment, cwd)
