"""The supervisor of ``postage run``: it keeps so many workers running, and replaces them one by one."""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import math
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from postage.cli.run.line import CUT, SIGNALLED
from postage.cli.run.options import Options
from postage.cli.run.process import Process
from postage.cli.run.status import Reports
from postage.errors import PostageError
from postage.sparingly import GrowingPauses

logger = logging.getLogger('postage.run')

CLOSE_SECONDS = 15.0  # beyond the grace, for a worker to close its connections
LONGEST_PAUSE = 30.0  # seconds before a worker that ends again and again is started again
SAME_SECONDS = 0.1  # within which signals are one: what ends a program may tell it, and the group of its processes
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class StartFailed(PostageError):
    """The components could not be made at the first start."""


class Slot:
    """The place of one worker.

    :ivar number: counted from 1
    :ivar current: the process that is at work, or begins to be, where there is none to be replaced
    :ivar replacement: the one that is to take its place once it consumes
    :ivar is_due: whether one is to be started after a pause
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.current: Process | None = None
        self.replacement: Process | None = None
        self.is_due = False
        self.pauses = _pauses()


def _pauses() -> GrowingPauses:
    return GrowingPauses(free=1, longest=LONGEST_PAUSE)


class Supervisor:
    """Keeps workers running until it is told to end. All of it is for the main thread, but for :meth:`call_soon`.

    ::

        starting ──▶ current ──▶ leaving ──▶ gone
                        │  ▲
                        ▼  │ after a pause
                       gone

    A worker that is replaced leaves once its replacement consumes: it takes nothing more, ends what it has, and goes.

    :param options: what to run, and how
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._slots = [Slot(number) for number in range(1, options.workers + 1)]
        self._leaving: set[Process] = set()
        self._to_replace: deque[Slot] = deque()
        self._was_ready = self._was_cut = False
        self._failure: str | None = None
        self._times_told = 0
        self._told_at = -math.inf
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._soon: deque[Callable[[], None]] = deque()
        self.reports = Reports(self._ask)

    # The loop

    def run(self) -> int:
        """Run the workers to their end. Blocks; returns the exit status.

        :raises StartFailed: the components cannot be made
        """
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        before = {number: signal.signal(number, _note) for number in SIGNALS}
        waker = signal.set_wakeup_fd(self._wake_writer.fileno())
        try:
            for slot in self._slots:
                self._start(slot)
            while self._processes() or any(slot.is_due for slot in self._slots):
                self._turn()
        finally:
            signal.set_wakeup_fd(waker)
            for number, handler in before.items():
                signal.signal(number, handler)
            self.close()
        if self._failure is not None:
            raise StartFailed(self._failure)
        return CUT if self._was_cut else 0

    def close(self) -> None:
        """Kill the workers that there are, and watch nothing any more. :meth:`run` does so at its end."""
        for process in self._processes():
            process.kill()
            process.line.close()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _turn(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for key, _ in self._selector.select(wait):
            if key.data is None:
                self._on_wake()
            elif key.data in self._processes():  # else its end was seen to in this very round
                self._hear(key.data)
        while self._soon:
            self._soon.popleft()()

    def _on_wake(self) -> None:
        for number in self._wake_reader.recv(4096):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._end()
            elif number == signal.SIGHUP:
                self.replace_all('SIGHUP')
        for process in self._processes():
            if process.status is not None:
                self._ended(process)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have something called in the main thread. Any thread; never blocks."""
        self._soon.append(call)
        try:
            self._wake_writer.send(b'\0')
        except BlockingIOError:
            pass  # it wakes up in any case
        except OSError:
            pass  # it has ended

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), call))

    # Workers

    def _processes(self) -> list[Process]:
        at_work = [process for slot in self._slots for process in (slot.current, slot.replacement) if process]
        return [*at_work, *self._leaving]

    def _new(self, slot: Slot) -> Process:
        process = Process(slot.number, self._options)
        self._selector.register(process.line.socket, selectors.EVENT_READ, process)
        return process

    def _start(self, slot: Slot) -> None:
        if slot.current is None and not self._times_told:
            slot.current = self._new(slot)
        slot.is_due = False

    def _hear(self, process: Process) -> bool:
        """Take in what a process has said. Returns whether that was something."""
        messages = process.line.hear(wait=False)
        for message in messages:
            if 'failed' in message:
                process.failure = message['failed']
            elif message.get('ready'):
                self._ready(process)
            else:
                process.is_asked = False
                self.reports.heard(process, message)
        if process.line.has_ended:
            self._selector.unregister(process.line.socket)  # the signal of its end comes, or has come
        return bool(messages)

    def _slot_of(self, process: Process) -> Slot:
        return self._slots[process.number - 1]

    def _ready(self, process: Process) -> None:
        process.is_ready = self._was_ready = True
        if process.leaves:
            return
        slot = self._slot_of(process)
        if process is not slot.replacement:
            logger.info('%s is ready', process)
            return
        old, slot.current, slot.replacement = slot.current, process, None
        logger.info('%s is ready, in place of pid %s', process, old.pid if old is not None else None)
        if old is not None:
            self._leave(old, 'drain')
        self._replace_next()

    def _leave(self, process: Process, order: str) -> None:
        """Have one end that is at work no more."""
        self._leaving.add(process)
        process.order(order)
        self._after(self._options.grace + CLOSE_SECONDS, lambda: self._kill_late(process))

    def _kill_late(self, process: Process) -> None:
        if process.status is None and process in self._processes():
            logger.error('%s did not end in time, and is killed', process)
            process.kill()

    def _ended(self, process: Process) -> None:
        """A process is gone. Whatever it had in hand has gone back to the broker."""
        while not process.line.has_ended and self._hear(process):
            pass
        if not process.line.has_ended:
            self._selector.unregister(process.line.socket)  # a child of its own holds the other end
        slot = self._slot_of(process)
        if process.status == CUT or (process in self._leaving and process.is_ready and process.was_killed):
            self._was_cut = True  # killed as it ended: it did not end in time, or at a third signal
        if process in self._leaving:
            self._leaving.discard(process)
            is_bad = process.is_ready and process.status not in (0, SIGNALLED)
            logger.log(logging.WARNING if is_bad else logging.INFO, '%s %s', process, process.how_it_ended())
        elif process is slot.replacement:
            slot.replacement = None
            self._to_replace.clear()
            why = process.failure or process.how_it_ended()
            logger.error('%s was to take over and failed, so the old one goes on: %s', process, why)
        elif process is slot.current:
            slot.current = None
            self._current_ended(slot, process)
        process.line.close()
        self.reports.ended(process)

    def _current_ended(self, slot: Slot, process: Process) -> None:
        if slot.replacement is not None:
            slot.current, slot.replacement = slot.replacement, None
            logger.warning('%s %s; its replacement is being started already', process, process.how_it_ended())
        elif process.failure is not None and not self._was_ready and not self._options.reload:
            self._failure = process.failure
            self._end()
        elif process.status == 0:
            logger.info('%s was told to quit', process)
        else:
            pause = slot.pauses.next()
            why = process.failure or process.how_it_ended()
            logger.warning('%s %s; another one begins in %.2g s', process, why, pause)
            slot.is_due = True
            self._after(pause, lambda: self._start(slot))

    def _ask(self, begun: Callable[[list[Process], list[str]], None]) -> None:
        """Ask every worker how it is. Any thread."""

        def ask() -> None:
            asked, faults = [], []
            for slot in self._slots:
                if slot.current is not None and slot.current.is_ready:
                    asked.append(slot.current)
                elif not self._times_told:
                    faults.append(f'{slot.current or f"worker {slot.number}"} is not ready')
            if self._times_told:
                faults.append('it ends')
            begun(asked, faults)
            for process in asked:
                process.ask()

        self.call_soon(ask)

    # Replacing

    def replace_all(self, why: str) -> None:
        """Replace every worker, one after the other, those that are being replaced already as well."""
        if self._times_told:
            return
        logger.info('%s: the workers are replaced', why)
        for slot in self._slots:
            if slot.is_due:  # what made its worker end, again and again, may be mended
                slot.pauses = _pauses()
                self._start(slot)
                continue
            if slot.replacement is not None:  # it began with what is outdated now, and may never end to load that
                self._leave(slot.replacement, 'drain')
                slot.replacement = None
                self._to_replace.appendleft(slot)
            if slot not in self._to_replace:
                self._to_replace.append(slot)
        self._replace_next()

    def _replace_next(self) -> None:
        if self._times_told or any(slot.replacement for slot in self._slots):
            return
        while self._to_replace:
            slot = self._to_replace.popleft()
            if slot.current is not None:
                slot.replacement = self._new(slot)
                return

    # The end

    def _end(self) -> None:
        """End in good order; when told again, at once."""
        if time.monotonic() - self._told_at < SAME_SECONDS:
            return
        self._told_at = time.monotonic()
        self._times_told += 1
        self._to_replace.clear()
        if self._times_told == 1:
            processes = self._processes()
            for slot in self._slots:
                slot.is_due, slot.current, slot.replacement = False, None, None
            for process in processes:
                self._leave(process, 'stop')
        elif self._times_told == 2:
            for process in self._processes():
                process.order('cut')
                self._after(CLOSE_SECONDS, functools.partial(self._kill_late, process))
        else:
            for process in self._processes():
                process.kill()


def _note(number: int, frame: object) -> None:
    """The signal is read from the wake-up descriptor."""
