"""One delivery on its way through its handlers."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from postage import errors
from postage.amqp.consuming import Delivery, current
from postage.messaging.delays import pause_after
from postage.messaging.handlers import Colour, Entry, Retry
from postage.messaging.outcomes import HANDLED, Failure, FilterError, Outcome, outcome_of
from postage.messaging.replies import Reply
from postage.messaging.rpc import RpcFuture
from postage.microthreads import MicroScheduler, MicroThread

logger = logging.getLogger('postage')


class Desk(Protocol):
    """What a delivery in a microthread of its own needs of its processor.

    :ivar label: what the processor's hooks are called in the log
    """

    label: str

    def hooks_around(self, body: dict[str, Any], delivery: Delivery) -> AbstractContextManager[None]:
        """The hooks of one message, around its handlers."""

    def serves(self, exchange: str, routing_key: str) -> bool:
        """Whether a message sent there would come to this processor."""

    def set_aside(self, change: int) -> None:
        """A handler begins (1), or ends (-1), to wait for an answer from this very processor."""

    def handled(self, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
        """The handlers have ended, after so long."""

    def abandoned(self, delivery: Delivery) -> None:
        """The handlers were closed before their end."""


def call_plain(entry: Entry, body: dict[str, Any], reply: Reply | None, delivery: Delivery) -> Outcome:
    """Run a plain handler to its end. What it raises is its outcome."""
    try:
        result: Any
        if entry.is_simple:
            data = body if entry.body_key is None else body[entry.body_key]
            result = entry.call(data, reply) if entry.is_rpc else entry.call(data)
        elif entry.timeout is None:
            result = entry(body, reply)
        else:
            began = time.monotonic()
            result = entry(body, reply)
            _say_if_late(entry, time.monotonic() - began)
        if reply is not None and result is not None and not reply.sent:
            reply(result)
        return HANDLED
    except Exception as error:
        return raised(error, entry.label, reply, delivery, entry.retries)


class Handling(MicroThread):
    """The microthread that takes a delivery through handlers of every colour, in their order."""

    def __init__(
        self, desk: Desk, delivery: Delivery, entries: list[Entry], body: dict[str, Any], reply: Reply | None
    ) -> None:
        self._desk = desk
        self._delivery = delivery
        self._entries = entries
        self._body = body
        self._reply = reply

    @property
    def is_busy(self) -> bool:
        """Always: it is worth waiting for."""
        return True

    def main(self) -> Generator[Any, Any, None]:
        """Call the handlers, then settle the delivery."""
        current.set(self._delivery)
        began = time.monotonic()
        outcome = HANDLED
        try:
            with self._desk.hooks_around(self._body, self._delivery):
                for entry in self._entries:
                    outcome = outcome.and_also((yield from self._call(entry)))
        except GeneratorExit:
            self._desk.abandoned(self._delivery)
            raise
        except Exception as error:
            outcome = outcome.and_also(raised(error, self._desk.label, self._reply, self._delivery))
        current.set(None)
        self._desk.handled(self._delivery, outcome, time.monotonic() - began)

    def _call(self, entry: Entry) -> Generator[Any, Any, Outcome]:
        if entry.colour is Colour.PLAIN:
            return call_plain(entry, self._body, self._reply, self._delivery)
        assert self.scheduler is not None
        timer = None
        try:
            if entry.timeout is not None:
                timer = self.scheduler.call_later(entry.timeout, functools.partial(self._time_is_up, entry))
            result = yield from self._run(entry, self.scheduler)
            if self._reply is not None and result is not None and not self._reply.sent:
                self._reply(result)
            return HANDLED
        except _TimeIsUp:
            closed = errors.HandlerTimeout(f'{entry.label} was closed after {entry.timeout:g} s')
            return raised(closed, entry.label, self._reply, self._delivery, entry.retries)
        except Exception as error:
            return raised(error, entry.label, self._reply, self._delivery, entry.retries)
        finally:
            if timer is not None:
                timer.cancel()

    def _time_is_up(self, entry: Entry) -> None:
        if entry.colour is Colour.THREADED:
            _say_if_late(entry, entry.timeout or 0.0)
        elif self.scheduler is not None:
            self.scheduler.interrupt(self, _TimeIsUp())

    def _run(self, entry: Entry, scheduler: MicroScheduler) -> Generator[Any, Any, Any]:
        """Run one handler that is not plain, and return its result."""
        if entry.colour is Colour.THREADED:
            context = contextvars.copy_context()
            return (yield scheduler.executor.submit(context.run, entry, self._body, self._reply))
        running = entry(self._body, self._reply)
        if entry.colour is Colour.GENERATOR:
            return (yield from self._run_generator(running))
        future = scheduler.run_coroutine(running)
        try:
            return (yield future)
        except (_TimeIsUp, GeneratorExit):
            future.cancel()
            raise

    def _run_generator(self, handler: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """``yield from``, but for the two ways in which it is cut short: both close the handler."""
        resume: Callable[[Any], Any] = handler.send
        value: Any = None
        while True:
            try:
                wanted = resume(value)
            except StopIteration as stop:
                return stop.value
            asks_itself = isinstance(wanted, RpcFuture) and self._desk.serves(wanted.exchange, wanted.routing_key)
            if asks_itself:
                self._desk.set_aside(1)
            try:
                resume, value = handler.send, (yield wanted)
            except (_TimeIsUp, GeneratorExit):
                handler.close()
                raise
            except BaseException as error:
                resume, value = handler.throw, error
            finally:
                if asks_itself:
                    self._desk.set_aside(-1)


class _TimeIsUp(BaseException):
    """Thrown in where a handler is parked when its time is over; a handler never sees it."""


def raised(
    error: Exception, label: str, reply: Reply | None, delivery: Delivery, retries: Sequence[Retry] = ()
) -> Outcome:
    """The outcome of a handler or hook that raised. It is logged; an RPC's caller is told after its last attempt.

    :param label: what to call it in the log
    :param retries: when the message is to be handled again
    """
    outcome = outcome_of(error)
    if not outcome.acknowledge:
        pause = pause_after(retries, error, delivery) if outcome.traceback and retries else None
        failure = Failure('exception' if outcome.traceback else 'rejected', error)
        outcome = dataclasses.replace(outcome, failure=failure, pause=pause)
    if outcome.pause is not None:
        wait = f'it is handled again in {outcome.pause.seconds:.3g} s'
        logger.warning('%s raised %s on %r, %s: %s', label, type(error).__name__, delivery, wait, error)
        return outcome
    if outcome.traceback:
        logger.error('%s raised on %r, which is rejected', label, delivery, exc_info=error)
    elif isinstance(error, FilterError):
        logger.warning('%r %s', delivery, error if str(error).startswith('dropped') else f'dropped by {label}: {error}')
    if reply is not None and not reply.sent and outcome.then is None:
        try:
            reply.tell(error)
        except Exception as failure:
            logger.error('the caller of %s could not be told: %s', label, failure)
    return outcome


def _say_if_late(entry: Entry, seconds: float) -> None:
    if entry.timeout is not None and seconds >= entry.timeout:
        logger.warning(
            '%s took longer than its time-out of %g s, and could not be stopped: only generators and coroutines can',
            entry.label,
            entry.timeout,
        )
