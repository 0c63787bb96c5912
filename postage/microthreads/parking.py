"""Who waits for what, and how each wait ends: the place where the threads of a program meet a scheduler.

A scheduler runs in one thread, its *own*. A future may be done, a signal set, or a microthread added in any other
thread at any moment. This page says why each of them resumes the right microthread, for the right wait, once.

A task is in one of four states::

                 add_microthread()
                        |
                        v        its wait is over: collect(); or interrupt()
                     PARKED ----------------------------------------------> READY
                        ^                                                   |  ^
      it yields what it |                               its turn: popleft() |  | it yields nothing to wait for,
      waits for         |                                                   v  | or what has happened already
                        +------------------------------------------------ RUNNING ---> ENDED

1. *A task is PARKED exactly while* ``task.wait`` *is not* ``None``. Only the own thread writes ``task.wait``, but
   for the first one, which the adding thread writes before any other thread knows the task.
2. *A wait is an object of its own*, the tuple ``(task,)``, made at each ``yield`` and never used again.
   ``wake(wait)`` says "this wait is over", not "this task may run". ``collect()`` makes the task ready only where
   ``task.wait is wait``. So a wake-up that comes late, twice, or for a wait that was interrupted is ignored, even
   where the task waits for the same future, signal or microthread again. (To compare the reasons is not enough: a
   setter that is paused half-way through ``Signal.set()`` would end the *next* wait for that signal.)
3. *A READY task stands in* ``lot.ready`` *exactly once*. Whatever appends it there has just set ``task.wait`` to
   ``None``, in the own thread, and does so only for a task that is PARKED or RUNNING. So nothing appends it a
   second time before its turn.
4. *What a wait gives is read in the turn, not when the wait ends.* A future's result, a microthread's outcome and a
   signal's flag stay where they are until then. Where an interruption goes first nothing was taken out that would
   be lost with it: a signal stays set for the next wait. And as nothing else writes into a task what it is to be
   resumed with, an interruption is never written over.
5. ``lot.woken`` *is the one way in from other threads*: a deque, whose ``append`` and ``popleft`` are atomic. Other
   threads append, the own thread takes out. ``lot.ready`` is the own thread's alone.
6. *No wake-up is slept through.* The own thread writes ``is_sleeping = True`` and then looks whether anything is
   woken. The waking thread appends to the woken and then looks at ``is_sleeping``. Whichever way these four steps
   are mixed, either the own thread sees what was appended, or the waking thread sees that it has to ring; and an
   alarm remembers a ring that comes before the wait. ``is_sleeping`` only saves rings, so a ring for a scheduler
   that has just woken does no harm. Whatever else ends a sleep (``stop()``, ``shutdown``) is written first, and
   then the alarm rings in any case.
7. *The same order protects each reason.* A signal: the own thread writes the wait and then looks at the flag, the
   setter does it the other way round. A microthread: the own thread appends the wait to the joiners and then looks
   at ``ended``; the scheduler of that microthread, which may run in another thread, writes the outcome, then
   ``ended``, and then wakes the joiners. A future does it under its own lock. A wait may be found over and be woken
   as well; then rule 2 drops the wake-up.
8. *A wait that is interrupted is left*: its timer is cancelled, the signal forgets it, the microthread drops it
   from its joiners. That frees memory, and lets another microthread wait for the signal. No other rule needs it: a
   wake-up that is on its way already falls under rule 2.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections import deque
from collections.abc import Generator
from typing import Any

from postage.microthreads.alarm import Alarm, Sleeper


class Task:
    """One microthread under one scheduler: its generator, what it waits for, and how it ended.

    :ivar wait: the wait that it is parked in; ``None`` while it is ready, runs, or has ended
    :ivar reason: what it waits for, from the ``yield`` to its next turn; ``None`` where that is nothing
    :ivar interruption: what is raised at its ``yield`` in its next turn, whatever it waits for
    :ivar joiners: the waits for its end
    :ivar ended: whether it has ended. Written after the two that follow, for other threads look at it
    :ivar result: what its generator returned
    :ivar failure: the exception that ended it
    """

    __slots__ = (
        'context',
        'ended',
        'failure',
        'generator',
        'interruption',
        'joiners',
        'lot',
        'microthread',
        'reason',
        'result',
        'wait',
    )

    def __init__(self, lot: ParkingLot, microthread: Any, generator: Generator[Any, Any, Any]) -> None:
        self.lot = lot
        self.microthread = microthread
        self.generator = generator
        self.context = contextvars.copy_context()
        self.wait: Wait | None = None
        self.reason: object = None
        self.interruption: BaseException | None = None
        self.joiners: list[Wait] = []
        self.ended = False
        self.result: Any = None
        self.failure: BaseException | None = None

    def join(self, wait: Wait) -> bool:
        """Have a wait end with this task; ``False`` where it has ended. From the thread of the task that waits."""
        self.joiners.append(wait)
        if self.ended:
            self.unjoin(wait)
            return False
        return True

    def unjoin(self, wait: Wait) -> None:
        """Undo :meth:`join`. From the thread of the task that waits."""
        with contextlib.suppress(ValueError):  # this one has ended meanwhile, in another thread
            self.joiners.remove(wait)

    def end(self, result: Any, failure: BaseException | None) -> None:
        """Say how it has ended, and wake what waits for that. From its scheduler's own thread."""
        self.wait = self.reason = self.interruption = None
        self.result, self.failure = result, failure
        self.ended = True
        # A task that joins from another thread during this loop is in it, or sees that this one has ended. Each wait is
        # popped, so that one which is undone meanwhile moves no other one past the loop.
        with contextlib.suppress(IndexError):
            while True:
                wait = self.joiners.pop(0)
                wait[0].lot.wake(wait)


Wait = tuple[Task]
"""One wait of one task, compared by identity: see rule 2.

What it waits for is not in it: a future keeps the callback that has the wait, so that would be a circle of references,
which keeps the future's result in memory.
"""


class Joinable:
    """What a microthread may yield to wait for its end.

    :ivar _task: how it runs; ``None`` where it was added to no scheduler
    """

    _task: Task | None = None


class ParkingLot:
    """The tasks of one scheduler that may run, and the way back for those that are parked.

    :ivar ready: the tasks that may run, in the order of their turns
    :ivar woken: the waits that are over, and not collected yet
    :ivar is_sleeping: whether the own thread sleeps, or is about to, so that what wakes it has to ring
    :ivar alarm: what the own thread sleeps by
    """

    __slots__ = ('alarm', 'is_sleeping', 'ready', 'woken')

    def __init__(self) -> None:
        self.ready: deque[Task] = deque()
        self.woken: deque[Wait] = deque()
        self.is_sleeping = False
        self.alarm: Sleeper = Alarm()

    def wake(self, wait: Wait) -> None:
        """Say that a wait is over. Any thread; never blocks."""
        self.woken.append(wait)
        if self.is_sleeping:
            self.alarm.ring()

    def collect(self) -> None:
        """Make the tasks ready whose waits are over. From the own thread, as all that follows."""
        woken = self.woken
        while woken:
            wait = woken.popleft()
            task = wait[0]
            if task.wait is wait:
                task.wait = None
                self.ready.append(task)

    def interrupt(self, task: Task, error: BaseException) -> None:
        """Have a task that is parked or ready resumed by an exception, and by nothing else."""
        task.interruption = error
        task.reason = None
        if task.wait is not None:
            task.wait = None
            self.ready.append(task)

    def sleep(self, timeout: float | None) -> None:
        """Sleep until a wait is over or the alarm rings, or for so many seconds. Blocks."""
        self.is_sleeping = True
        try:
            if not self.woken:
                self.alarm.wait(timeout)
        finally:
            self.is_sleeping = False
