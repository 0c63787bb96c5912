"""One delivery on its way through its handlers."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import logging
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from postage import errors
from postage.amqp.deliveries import Delivery, current
from postage.messaging.handlers import Colour, Entry
from postage.messaging.messages import Message, MessageResult, MessageResultError, MessageResultException
from postage.messaging.outcomes import HANDLED, Failure, FilterError, Outcome, Reason, outcome_of
from postage.messaging.rpc import RpcFuture
from postage.microthreads import MicroScheduler, MicroThread

if TYPE_CHECKING:
    from postage.messaging.processor import MessageProcessor

logger = logging.getLogger('postage')


class Reply:
    """The ``reply_func`` of one RPC: the first answer counts. May be called from any thread."""

    def __init__(self, processor: MessageProcessor, delivery: Delivery) -> None:
        self._processor = processor
        self._properties = delivery.answerable
        self.sent = False

    def __call__(self, message: Any) -> None:
        """Answer, with a result message or a plain value.

        :raises errors.EncodingError: it cannot be encoded; nothing was sent
        """
        if self.sent:
            logger.warning('a second answer to RPC %s was dropped', self._properties.correlation_id)
            return
        if not isinstance(message, Message):
            message = MessageResult(message)
        if not message.body['fingerprint']:
            message.fingerprint(self._processor.fingerprint)
        self._processor.consumer.rpc_reply(self._properties, message)
        self.sent = True

    def tell(self, error: Exception) -> None:
        """Answer with what a handler raised."""
        if isinstance(error, FilterError):
            self(MessageResultError(str(error)))
        else:
            self(MessageResultException(type(error).__name__, str(error)))


def call_plain(entry: Entry, body: dict[str, Any], reply: Reply | None, delivery: Delivery) -> Outcome:
    """Run a plain handler to its end. What it raises is its outcome."""
    try:
        if entry.timeout is None:
            result = entry(body, reply)
        else:
            began = time.monotonic()
            result = entry(body, reply)
            _say_if_late(entry, time.monotonic() - began)
        return _returned(result, reply)
    except Exception as error:
        return _raised(error, entry, reply, delivery)


class Handling(MicroThread):
    """The microthread that takes a delivery through handlers of every colour, in their order."""

    def __init__(
        self,
        processor: MessageProcessor,
        delivery: Delivery,
        entries: list[Entry],
        body: dict[str, Any],
        reply: Reply | None,
    ) -> None:
        self._processor = processor
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
            with self._processor.hooks_around(self._body, self._delivery):
                for entry in self._entries:
                    outcome = outcome.and_also((yield from self._call(entry)))
        except GeneratorExit:
            self._processor.abandoned(self._delivery)
            raise
        except Exception as error:
            outcome = outcome.and_also(hook_raised(error, self._processor, self._reply, self._delivery))
        current.set(None)
        self._processor.consumer.took(1, time.monotonic() - began)
        self._processor.handled(self._delivery, outcome)

    def _call(self, entry: Entry) -> Generator[Any, Any, Outcome]:
        if entry.colour is Colour.PLAIN:
            return call_plain(entry, self._body, self._reply, self._delivery)
        assert self.scheduler is not None
        timer = None
        try:
            if entry.timeout is not None:
                timer = self.scheduler.call_later(entry.timeout, functools.partial(self._time_is_up, entry))
            result = yield from self._run(entry, self.scheduler)
            return _returned(result, self._reply)
        except _TimeIsUp:
            closed = errors.HandlerTimeout(f'{entry.label} was closed after {entry.timeout:g} s')
            return _raised(closed, entry, self._reply, self._delivery)
        except Exception as error:
            return _raised(error, entry, self._reply, self._delivery)
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
        step = functools.partial(handler.send, None)
        while True:
            try:
                wanted = step()
            except StopIteration as stop:
                return stop.value
            asks_itself = isinstance(wanted, RpcFuture) and self._processor.serves(wanted.exchange, wanted.routing_key)
            if asks_itself:
                self._processor.step_aside()
            try:
                value = yield wanted
            except (_TimeIsUp, GeneratorExit):
                handler.close()
                raise
            except BaseException as error:
                step = functools.partial(handler.throw, error)
            else:
                step = functools.partial(handler.send, value)
            finally:
                if asks_itself:
                    self._processor.step_back()


class _TimeIsUp(BaseException):
    """Thrown in where a handler is parked when its time is over; a handler never sees it."""


def _returned(result: Any, reply: Reply | None) -> Outcome:
    if reply is not None and result is not None and not reply.sent:
        reply(result)
    return HANDLED


def _raised(error: Exception, entry: Entry, reply: Reply | None, delivery: Delivery) -> Outcome:
    """The outcome of a handler that raised, which is logged and told to an RPC's caller, after its last attempt."""
    outcome = outcome_of(error)
    if not outcome.acknowledge:
        reason: Reason = 'exception' if outcome.traceback else 'rejected'
        pause = entry.processor.pause_after(entry, error, delivery) if outcome.traceback and entry.retries else None
        outcome = dataclasses.replace(outcome, failure=Failure(reason, error), pause=pause)
    if outcome.pause is not None:
        wait = f'it is handled again in {outcome.pause.seconds:.3g} s'
        logger.warning('%s raised %s on %r, %s: %s', entry.label, type(error).__name__, delivery, wait, error)
        return outcome
    if outcome.traceback:
        logger.error('%s raised on %r, which is rejected', entry.label, delivery, exc_info=error)
    elif isinstance(error, FilterError):
        logger.warning('%r %s', delivery, error if entry.filters else f'dropped by {entry.label}: {error}')
    if reply is not None and not reply.sent and outcome.then is None:
        try:
            reply.tell(error)
        except Exception as failure:
            logger.error('the caller of %s could not be told: %s', entry.label, failure)
    return outcome


def hook_raised(error: Exception, processor: MessageProcessor, reply: Reply | None, delivery: Delivery) -> Outcome:
    """The outcome of a hook that raised: the message has failed, and an RPC's caller is told."""
    outcome = outcome_of(error)
    if not outcome.acknowledge:
        outcome = dataclasses.replace(outcome, failure=Failure('exception' if outcome.traceback else 'rejected', error))
    if outcome.traceback:
        logger.error('a hook of %s raised on %r, which is rejected', type(processor).__name__, delivery, exc_info=error)
    if reply is not None and not reply.sent and outcome.then is None:
        try:
            reply.tell(error)
        except Exception as failure:
            logger.error('the caller of %r could not be told: %s', delivery, failure)
    return outcome


def _say_if_late(entry: Entry, seconds: float) -> None:
    if entry.timeout is not None and seconds >= entry.timeout:
        logger.warning(
            '%s took longer than its time-out of %g s, and could not be stopped: only generators and coroutines can',
            entry.label,
            entry.timeout,
        )
