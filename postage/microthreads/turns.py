"""The tasks of one scheduler: each is taken through its turns, parked in between, and ended."""

from __future__ import annotations

import logging
from collections.abc import Generator
from concurrent.futures import Future
from types import FunctionType
from typing import Any

from postage.microthreads.parking import Joinable, ParkingLot, Task, Wait
from postage.microthreads.timers import Timer, Timers
from postage.microthreads.traps import ExitScheduler, Signal, sleep

logger = logging.getLogger('postage.microthreads')


class Turns:
    """The tasks of one scheduler. Used in its own thread, but for :meth:`add`.

    :param timers: those of the scheduler, for tasks that sleep

    :ivar lot: the tasks that may run, and the way back for those that are parked
    :ivar tasks: those that have not ended, in the order in which they were added
    :ivar current: the task whose turn it is
    :ivar exiting: whether the scheduler's loop ends after the present round
    :ivar last_failure: the exception that ended a task, where no other task has ended since
    """

    __slots__ = ('_timers', 'current', 'exiting', 'last_failure', 'lot', 'tasks')

    def __init__(self, timers: Timers) -> None:
        self.lot = ParkingLot()
        self.tasks: dict[Task, None] = {}
        self.current: Task | None = None
        self.exiting = False
        self.last_failure: Exception | None = None
        self._timers = timers

    def add(self, task: Task) -> None:
        """Have a new task take its first turn in the next round. Any thread."""
        wait = task.wait = (task,)
        self.tasks[task] = None
        self.lot.wake(wait)

    def take(self, task: Task) -> None:
        """Resume one generator and act on what it yields."""
        error, value = task.interruption, None
        if error is not None:
            task.interruption = None
        elif task.reason is not None:
            reason, task.reason = task.reason, None
            if isinstance(reason, Signal):
                # Cleared before the microthread looks at what was signalled, so a setting after its look counts anew.
                reason.is_set, reason.wait = False, None
            else:
                value, error = _outcome_of(reason)
        self.current = task
        try:
            if error is None:
                wanted = task.context.run(task.generator.send, value)
            else:
                wanted = task.context.run(task.generator.throw, error)
        except StopIteration as stop:
            self._end(task, result=stop.value)
        except ExitScheduler:
            self.exiting = True
            self._end(task)
        except Exception as failure:
            self._fail(task, failure)
        else:
            if wanted is None or not self._park(task, wanted):
                self.lot.ready.append(task)
        finally:
            self.current = None

    def interrupt(self, task: Task, error: BaseException) -> None:
        """Raise an exception at the ``yield`` where a task is, unless it runs, or is interrupted already."""
        if task is not self.current and task.interruption is None:
            _leave(task)
            self.lot.interrupt(task, error)

    def close(self) -> None:
        """Close every generator, so that none is left half-run. What is meant for the program is raised after that."""
        leaving: BaseException | None = None
        while self.tasks:
            task, _ = self.tasks.popitem()
            try:
                task.context.run(task.generator.close)
            except Exception:
                logger.exception('%s raised while it was closed', type(task.microthread).__name__)
            except BaseException as error:  # a Ctrl-C, or the end of the time of grace
                leaving = leaving or error
            self._end(task)
        self.lot.ready.clear()
        self.last_failure = None
        if leaving is not None:
            raise leaving

    def _park(self, task: Task, wanted: object) -> bool:
        """Set a task aside until what it waits for has happened; ``False`` where it goes on in the next round.

        What cannot be waited for is raised at its ``yield``, for it is no fault of the scheduler.
        """
        wait = task.wait = (task,)
        task.reason = wanted
        try:
            if isinstance(wanted, Signal):
                if wanted.wait is not None:
                    raise RuntimeError('another microthread waits for this signal, and a setting wakes only one')
                # The order is safe: Signal.set() writes the flag before it looks at the wait.
                wanted.wait = wait
                if not wanted.is_set:
                    return True
            elif self._is_parked_by(wanted, wait):
                return True
        except Exception as error:
            task.interruption, task.reason = error, None
        task.wait = None
        return False

    def _is_parked_by(self, wanted: object, wait: Wait) -> bool:
        """Have a wait ended by what it is for, which is no signal; ``False`` where there is nothing to wait for."""
        (task,) = wait
        if isinstance(wanted, Future):
            wanted.add_done_callback(lambda _: task.lot.wake(wait))
        elif isinstance(wanted, sleep):
            task.reason = self._timers.add(wanted.seconds, lambda: task.lot.wake(wait))
        elif isinstance(wanted, Joinable):
            other = wanted._task
            if other is None:
                raise RuntimeError(f'{wanted!r} was added to no scheduler, so its end cannot be waited for')
            task.reason = other
            return other.join(wait)
        else:
            task.reason = None
            return False
        return True

    def _fail(self, task: Task, failure: Exception) -> None:
        if isinstance(failure, RuntimeError) and isinstance(failure.__cause__, StopIteration):
            # PEP 479: a generator cannot let StopIteration out. Here it means what it always meant.
            self._end(task, result=failure.__cause__.value)
            return
        logger.error('%s ended by an exception', type(task.microthread).__name__, exc_info=failure)
        self._end(task, failure=failure)
        self.last_failure = failure

    def _end(self, task: Task, result: Any = None, failure: BaseException | None = None) -> None:
        self.last_failure = None
        self.tasks.pop(task, None)
        _leave(task)
        task.end(result, failure)


def generator_of(microthread: object, made: object) -> Generator[Any, Any, Any]:
    """What is driven: the generator that was made by ``create()``, else that of ``main()``.

    :raises TypeError: there is none
    """
    if isinstance(made, Generator):
        return made
    main = getattr(microthread, 'main', None)
    if not callable(main):
        raise TypeError(f'{microthread!r:.80} is no microthread, for it has no main()')
    if isinstance(microthread, type) and isinstance(main, FunctionType):
        raise TypeError(f'{microthread.__name__} is a class; what runs is an object of it, {microthread.__name__}(…)')
    generator = main()
    if not isinstance(generator, Generator):
        raise TypeError(f'{type(microthread).__name__}.main() gave {generator!r:.80} instead of a generator')
    return generator


def _outcome_of(reason: object) -> tuple[Any, BaseException | None]:
    """What a task is resumed with whose wait is over: a value to send, or an exception to throw."""
    if isinstance(reason, Future):
        try:
            return reason.result(), None
        except BaseException as error:  # its exception, or that it was cancelled
            return None, error
    if isinstance(reason, Task):
        return reason.result, reason.failure
    return None, None


def _leave(task: Task) -> None:
    """Have what a task waits for forget it."""
    reason = task.reason
    if isinstance(reason, Signal):
        reason.wait = None
    elif isinstance(reason, Timer):
        reason.cancel()
    elif isinstance(reason, Task) and task.wait is not None:
        reason.unjoin(task.wait)
