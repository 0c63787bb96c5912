"""One delivery in its handlers: each is called, waited for, closed when its time is over, and its outcome told."""

from __future__ import annotations

import dataclasses
import functools
import logging
from asyncio import CancelledError
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from threading import TIMEOUT_MAX
from time import monotonic, time
from typing import Any

from postage import errors
from postage.amqp.cancelled import cancelled
from postage.amqp.deliveries import Delivery, current
from postage.amqp.durations import BOUNDS
from postage.messaging.calls import RpcFuture
from postage.messaging.delays import pause_after
from postage.messaging.gathering import Gathering, NextReply
from postage.messaging.handlers import Colour, Entry, Retry
from postage.messaging.hooks import MessageContext, failed_by
from postage.messaging.outcomes import CANCELLED, HANDLED, FilterError, Outcome
from postage.messaging.properties import attempt_of
from postage.messaging.replies import UNWANTED, Reply
from postage.messaging.roles import InCharge
from postage.microthreads import MicroScheduler, MicroThread, Timer
from postage.printable import class_of, text_of

logger = logging.getLogger('postage')

LEAST = BOUNDS[0]  # seconds; what takes no longer need not be looked for among the bounds


def call_plain(entry: Entry, body: dict[str, Any], reply: Reply | None, delivery: Delivery) -> Outcome:
    """Run a plain handler to its end. What it raises is its outcome."""
    figures = entry.figures
    figures.began = began = monotonic()
    try:
        result: Any
        if entry.is_simple:
            data = body if entry.body_key is None else body[entry.body_key]
            result = entry.call(data, reply) if entry.is_rpc else entry.call(data)
        else:
            result = entry(body, reply)
            if entry.timeout is not None:
                _say_if_late(entry, monotonic() - began)
        if reply is not None and result is not None and not reply.sent:
            reply(result)
        # As figures.took() does, without a call for each message.
        figures.ended_at = ended = monotonic()
        seconds, durations = ended - began, figures.durations
        durations.buckets[0 if seconds <= LEAST else bisect_left(BOUNDS, seconds)] += 1
        durations.seconds += seconds
        figures.began = 0.0
        return HANDLED
    except (Exception, CancelledError) as error:
        figures.took(monotonic() - began)
        figures.began = 0.0
        outcome = raised(error, entry.label, reply, delivery, entry.retries)
        figures.raised(outcome)
        return outcome


class Handling(MicroThread):
    """The microthread that takes a delivery through handlers of every colour, in their order."""

    def __init__(
        self,
        dispatcher: InCharge,
        delivery: Delivery,
        entries: list[Entry],
        body: dict[str, Any],
        reply: Reply | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._entries = entries
        self._body = body
        self._reply = reply
        self._can_be_closed = False  # by a cancel
        self._in_pool: Future[Any] | None = None  # a threaded handler
        self.label = ', '.join(entry.label for entry in entries)

    @property
    def is_busy(self) -> bool:
        """Always: it is worth waiting for."""
        return True

    def main(self) -> Generator[Any, Any, None]:
        """Call the handlers, then settle the delivery."""
        current.set(self._delivery)
        began = monotonic()
        outcome = HANDLED
        try:
            context = MessageContext(self._body, self._delivery)
            with self._dispatcher.hooks_around(context):
                for entry in self._entries:
                    outcome = outcome.and_also((yield from self._call(entry)))
                context.conclude(outcome)
        except GeneratorExit:
            self._dispatcher.abandoned(self._delivery)
            raise
        except Exception as error:
            outcome = outcome.and_also(raised(error, self._dispatcher.label, self._reply, self._delivery))
        current.set(None)
        self._dispatcher.handled(self._delivery, outcome, monotonic() - began)

    def _call(self, entry: Entry) -> Generator[Any, Any, Outcome]:
        if entry.colour is Colour.PLAIN:
            return call_plain(entry, self._body, self._reply, self._delivery)
        assert self.scheduler is not None
        figures = entry.figures
        figures.begun[self._delivery] = monotonic()
        timers = self._timers_of(entry)
        try:
            self._can_be_closed = self._reply is not None
            cancel_id = None if self._reply is None else self._reply.cancel_id
            with cancelled.watching(cancel_id, self._on_cancel):
                result = yield from self._run(entry, self.scheduler)
            if self._reply is not None and result is not None and not self._reply.sent:
                self._reply(result)
            figures.ended(self._delivery)
            return HANDLED
        except _Cancelled as cancel:
            logger.info('%s was %s: %s', entry.label, cancel.verb, cancel.why)
            figures.cancelled += 1
            return CANCELLED
        except _TimeIsUp:
            return self._raised(entry, errors.HandlerTimeout(f'{entry.label} was closed after {entry.timeout:g} s'))
        except (Exception, CancelledError) as error:
            return self._raised(entry, error)
        finally:
            self._can_be_closed = False
            figures.begun.pop(self._delivery, None)  # of a handler that was closed before its end
            for timer in timers:
                timer.cancel()

    def _timers_of(self, entry: Entry) -> list[Timer]:
        """What is to happen when the handler has taken too long: for its own time-out, and for its request."""
        assert self.scheduler is not None
        later, timers = self.scheduler.call_later, []
        if entry.timeout is not None:
            timers.append(later(entry.timeout, functools.partial(self._time_is_up, entry)))
        if self._reply is not None and self._reply.header.deadline is not None:
            # At its deadline the caller itself cancels it, unless it was killed, or cannot reach the broker.
            seconds = self._reply.header.deadline / 1000 - time() + self._dispatcher.tolerance
            if seconds < TIMEOUT_MAX:
                timers.append(later(seconds, functools.partial(self._close_cancelled, 'its deadline has passed')))
        return timers

    def _raised(self, entry: Entry, error: BaseException) -> Outcome:
        entry.figures.ended(self._delivery)
        outcome = raised(error, entry.label, self._reply, self._delivery, entry.retries)
        entry.figures.raised(outcome)
        return outcome

    def _on_cancel(self) -> None:
        """Its caller wants no answer any more. Any thread; the scheduler's closes the handler."""
        self._dispatcher.leave(functools.partial(self._close_cancelled, UNWANTED))

    def _close_cancelled(self, why: str) -> None:
        if not self._can_be_closed or self.scheduler is None:
            return
        if self._in_pool is None:
            self.scheduler.interrupt(self, _Cancelled('closed', why))
        elif self._in_pool.cancel():  # no thread has begun it; one that has goes on, and may look whether it is wanted
            self.scheduler.interrupt(self, _Cancelled('dropped before it began', why))

    def _time_is_up(self, entry: Entry) -> None:
        if entry.colour is Colour.THREADED:
            _say_if_late(entry, entry.timeout or 0.0)
        elif self.scheduler is not None:
            self.scheduler.interrupt(self, _TimeIsUp())

    def _run(self, entry: Entry, scheduler: MicroScheduler) -> Generator[Any, Any, Any]:
        """Run one handler that is not plain, and return its result."""
        if entry.colour is Colour.THREADED:
            self._in_pool = scheduler.executor.submit(self._run_in_thread, entry)
            try:
                return (yield self._in_pool)
            finally:
                self._in_pool = None
        running = self.inner = entry(self._body, self._reply)
        if entry.colour is Colour.GENERATOR:
            return (yield from self._run_generator(running))
        future = scheduler.run_coroutine(running)
        try:
            return (yield future)
        except (_Cut, GeneratorExit):
            future.cancel()
            raise

    def _run_in_thread(self, entry: Entry) -> Any:
        """Run a handler in a thread of the pool, unless its answer has become unwanted while it waited for one."""
        why = '' if self._reply is None else self._reply.why_unwanted(self._dispatcher.tolerance)
        if why:
            raise _Cancelled('dropped before it began', why)
        return entry(self._body, self._reply)

    def _run_generator(self, handler: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """``yield from``, but for the two ways in which it is cut short: both close the handler."""
        resume: Callable[[Any], Any] = handler.send
        value: Any = None
        while True:
            try:
                wanted = resume(value)
            except StopIteration as stop:
                return stop.value
            asked = _asked(wanted)
            asks_itself = asked is not None and self._dispatcher.serves(asked.exchange, asked.routing_key)
            if asks_itself:
                self._dispatcher.set_aside(1)
            try:
                resume, value = handler.send, (yield wanted)
            except (_Cut, GeneratorExit):
                if asked is not None:
                    asked.cancel()  # its handler waits for it no more
                self._close(handler)
                raise
            except BaseException as error:
                resume, value = handler.throw, error
            finally:
                if asks_itself:
                    self._dispatcher.set_aside(-1)

    def _close(self, handler: Generator[Any, Any, Any]) -> None:
        try:
            handler.close()
        except Exception:  # of what it does at its end: it is closed all the same
            logger.exception('%s raised while it was closed', self.label)


class _Cut(BaseException):
    """Thrown in where a handler is parked that is to be closed; a handler never sees it."""


class _TimeIsUp(_Cut):
    """Its time is over."""


class _Cancelled(_Cut):
    """Its caller wants no answer any more.

    :param verb: what was done to it, in words
    :param why: in words
    """

    def __init__(self, verb: str, why: str) -> None:
        super().__init__(verb, why)
        self.verb, self.why = verb, why


def _asked(wanted: Any) -> RpcFuture | Gathering | None:
    """The call, or the gathering, for whose answer a handler waits, if it waits for one."""
    if isinstance(wanted, NextReply):
        return wanted.gathering
    return wanted if isinstance(wanted, (RpcFuture, Gathering)) else None


def raised(
    error: BaseException, label: str, reply: Reply | None, delivery: Delivery, retries: Sequence[Retry] = ()
) -> Outcome:
    """The outcome of a handler or hook that raised. It is logged; an RPC's caller is told after its last attempt.

    :param label: what to call it in the log
    :param retries: when the message is to be handled again
    """
    outcome = failed_by(error)
    if outcome.traceback:
        outcome = dataclasses.replace(outcome, pause=pause_after(retries, error, delivery))
    if outcome.pause is not None:
        wait = f'it is handled again in about {round(outcome.pause.seconds, 3):g} s'
        logger.warning('%s raised %s on %r, %s: %s', label, class_of(error), delivery, wait, text_of(error))
        return outcome
    if outcome.traceback:
        tried = attempt_of(delivery)
        after = f' after {tried} attempts' if tried > 1 else ''
        logger.error('%s raised on %r, which is rejected%s', label, delivery, after, exc_info=error)
    elif isinstance(error, FilterError):
        text = text_of(error)
        logger.warning('%r %s', delivery, text if text.startswith('dropped') else f'dropped by {label}: {text}')
    if reply is not None and not reply.sent:
        try:
            reply.tell(error)
        except Exception as failure:
            logger.error('the caller of %s could not be told: %s', label, text_of(failure))
    return outcome


def _say_if_late(entry: Entry, seconds: float) -> None:
    if entry.timeout is not None and seconds >= entry.timeout:
        logger.warning(
            '%s took longer than its time-out of %g s, and could not be stopped: only generators and coroutines can',
            entry.label,
            entry.timeout,
        )
