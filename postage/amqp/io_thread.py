"""An I/O thread, and what other threads have it do.

There are two ways. A thread that *asks* waits for the end of some steps, for so long at most; one that *tells* does not
wait, and what fails then is logged. Nothing else crosses to the I/O thread but what is sent
(:mod:`postage.amqp.outbox`) and whose turn it is to read (:mod:`postage.amqp.turns`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

import pika.adapters.select_connection

from postage import errors
from postage.amqp.steps import Drive, Operation, Steps, when_done
from postage.amqp.threads import check_may_block, this_thread
from postage.amqp.tick import Loop

logger = logging.getLogger('postage')


class IOThread:
    """The thread of one connection, and its loop. It begins with the first thing there is to do.

    :param name: of the thread
    :param where: what it leads to, for the log
    :param on_start: called on it before all else
    :param on_end: called on it when its loop has ended
    :ivar loop: pika's
    :ivar has_ended: whether it does nothing more
    """

    def __init__(self, name: str, where: object, on_start: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._name = name
        self._where = where
        self._on_start = on_start
        self._on_end = on_end
        self.loop = pika.adapters.select_connection.IOLoop()
        self.has_ended = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_running = False
        self._asked: set[Asked] = set()  # to put one in, to take one out and to copy all is one step each

    # From any thread

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back on the I/O thread, as soon as it can. From any thread; never blocks."""
        if self._thread is None:
            self._begin()
        self.loop.add_callback_threadsafe(callback)  # type: ignore[arg-type]

    def _begin(self) -> None:
        with self._lock:  # and look again: of two threads that found none, one begins it
            if self._thread is None and not self.has_ended:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    self._thread.start()
                except BaseException:
                    # The system has no thread left, or it is Ctrl-C, and the thread may have been started or not. The
                    # next one that has something to do tries again.
                    self._thread = None
                    raise

    def ask(self, steps: Steps, timeout: float, awaited: contextlib.AbstractContextManager[None]) -> Any:
        """Take steps, and wait for their end. From any thread but this one; blocks.

        :param timeout: seconds; what has failed by then is not done later, see :class:`Asked`
        :param awaited: what to be in while waiting
        :raises errors.ConnectionLost: after ``timeout``
        """
        check_may_block()
        asked = Asked(steps)
        self._asked.add(asked)
        late = f'the broker at {self._where} did not answer for {timeout:g} s'
        try:
            self.call_soon(lambda: asked.begin(self.loop, timeout, late))
            if self.has_ended:  # the I/O thread notes that first, and looks for the asked after that
                asked.give_up('the connection ended')
            with awaited:
                return asked.answer.result()
        except BaseException:
            if not asked.answer.done():  # Ctrl-C: what the caller no longer waits for is not to happen later
                asked.give_up('the caller was interrupted')  # where it has not begun, it never does
                self.call_soon(lambda: asked.fail('the caller was interrupted'))
            raise
        finally:
            self._asked.discard(asked)

    def tell(self, work: Callable[[], Steps | None]) -> None:
        """Have something done: a call, or the steps that it returns. From any thread; never blocks.

        What fails is logged.
        """
        self.call_soon(lambda: self._do(work))

    def end(
        self, farewell: Callable[[], None], timeout: float, awaited: contextlib.AbstractContextManager[None]
    ) -> None:
        """Have it say farewell, which ends its loop, and wait for it. From any thread; waits in others only.

        :param timeout: seconds to wait
        """
        with self._lock:
            if self._thread is None:
                if not self.has_ended:
                    self.has_ended = True
                    self.loop.close()
                return
        if self._thread.is_alive():
            self.loop.add_callback_threadsafe(farewell)
        if not this_thread.is_reading:
            with awaited:
                self._thread.join(timeout)

    # On the I/O thread

    def _do(self, work: Callable[[], Steps | None]) -> None:
        try:
            steps = work()
        except Exception as error:
            self._log(error)
        else:
            if steps is not None:
                when_done(steps, self._log)

    def _log(self, error: BaseException | None) -> None:
        if isinstance(error, (errors.ConnectionLost, errors.Closed)):
            logger.debug('something was left undone: %s', error)  # when it is back, everything is declared again
        elif isinstance(error, errors.BrokerError):
            logger.error('%s', error)
        elif error is not None:
            logger.error('unexpected, on the connection thread of %s', self._where, exc_info=error)

    def _run(self) -> None:
        """An exception in a callback must not end the thread, and with it everything that waits."""
        with self._lock:  # of two threads, where the start of the first one was interrupted, one runs the loop
            if self._is_running or self.has_ended:
                return
            self._is_running = True
            self._thread = threading.current_thread()
        this_thread.is_reading = True
        self._on_start()
        while True:
            try:
                self.loop.start()
                break
            except Exception:
                logger.exception('an unexpected error on the connection thread of %s', self._where)
        self.has_ended = True
        for asked in list(self._asked):
            asked.fail('the connection ended')
        self.loop.close()
        self._on_end()

    def pause(self, seconds: float) -> Future[None]:
        """A future that is done after that long."""
        over: Future[None] = Future()
        over.set_running_or_notify_cancel()
        self.loop.call_later(seconds, lambda: over.set_result(None))
        return over

    def settled_by(self, settled: Future[Any], deadline: float) -> Future[Any]:
        """A future that is done, on this thread, when that one is, which another thread may do; or at the deadline."""
        over: Future[Any] = Future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        if settled.done():
            end()
        else:
            self.loop.call_later(max(0.0, deadline - time.monotonic()), end)
            settled.add_done_callback(lambda _: self.loop.add_callback_threadsafe(end))
        return over


class Asked:
    """Steps that a thread waits for. The I/O thread takes them, and keeps their time.

    Because the same thread does both, what has failed by its time-out is not done later: from then on no step is taken,
    and an operation that waits for its turn is withdrawn. Only one whose answer did not come may have been carried out,
    or still be, by the broker; the error says so.

    :ivar answer: the future of what they return
    """

    def __init__(self, steps: Steps) -> None:
        self.answer: Future[Any] = Future()
        self._steps = steps
        self._drive: Drive | None = None

    def begin(self, loop: Loop, timeout: float, late: str) -> None:
        """Take them, for so many seconds at most. On the I/O thread.

        :param late: what to say when the time is over
        """
        if self.answer.done():
            return
        self._drive = Drive(self._steps)
        timer = loop.call_later(timeout, lambda: self.fail(late))
        self._drive.outcome.add_done_callback(lambda _: loop.remove_timeout(timer))
        self._drive.outcome.add_done_callback(self._end)

    def fail(self, why: str) -> None:
        """Take no further step. On the I/O thread, or at its end."""
        if self._drive is None:
            self.give_up(why)
            return
        if isinstance(self._drive.awaited, Operation) and self._drive.awaited.running():
            why = f'{why}; it was asked to {self._drive.awaited.doing}, which it may still do'
        self._drive.abandon(errors.ConnectionLost(why))

    def give_up(self, why: str) -> None:
        """Say that they failed, where no thread takes them any more. Any thread."""
        with contextlib.suppress(InvalidStateError):  # they ended in that very moment
            self.answer.set_exception(errors.ConnectionLost(why))

    def _end(self, outcome: Future[Any]) -> None:
        error = outcome.exception()
        with contextlib.suppress(InvalidStateError):  # the connection ended in that very moment
            if error is not None:
                self.answer.set_exception(error)
            else:
                self.answer.set_result(outcome.result())
