"""Deliveries: to their handlers, and from the outcome of these to an acknowledgement."""

from __future__ import annotations

import dataclasses
import functools
import logging
from asyncio import CancelledError
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from threading import TIMEOUT_MAX
from time import monotonic, time
from typing import Any

from postage import errors
from postage.amqp.cancelled import cancelled
from postage.amqp.connection import CLOSE_TIMEOUT
from postage.amqp.deliveries import Delivery, current
from postage.amqp.durations import BOUNDS
from postage.amqp.publishing import Receipt
from postage.amqp.threads import flush_batch
from postage.messaging import tracing
from postage.messaging.counting import Figures
from postage.messaging.delays import pause_after
from postage.messaging.failures import Failures
from postage.messaging.forwarding import is_final
from postage.messaging.gate import Gate
from postage.messaging.gathering import Gathering
from postage.messaging.handlers import Colour, Entry, HandlerTable, Retry
from postage.messaging.hooks import Hook, MessageContext, around_message, failed_by
from postage.messaging.messages import MessageResultError, check_envelope
from postage.messaging.outcomes import CANCELLED, HANDLED, Failure, FilterError, Outcome, Reason, Then
from postage.messaging.properties import attempt_of
from postage.messaging.replies import Reply, unanswerable
from postage.messaging.roles import Consumer, Host
from postage.messaging.rpc import RpcFuture
from postage.messaging.unsettled import Unsettled
from postage.messaging.unwanted import UNWANTED, why_unwanted
from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread, Timer
from postage.printable import class_of, shown, text_of
from postage.settings import clock_tolerance

logger = logging.getLogger('postage')

LEAST = BOUNDS[0]  # seconds; what takes no longer need not be looked for among the bounds
NAMES_REMEMBERED = 1000  # of messages that no handler takes

AFTER_REFUSAL = Retry(errors.Nacked)
"""When a message is handled again because the broker refused what its handler published."""

_NO_HOOKS = nullcontext()


class Unhandled:
    """The messages that a processor has no handler for. Each name is said once.

    :param processor: the name of its class
    """

    def __init__(self, processor: str) -> None:
        self._processor = processor
        self._said: set[tuple[str, str, str]] = set()

    def say(self, body: dict[str, Any]) -> None:
        """Log it, unless that was done for this name; those that others make up are not remembered without end."""
        what = (body['category'], body['type'], body['name'])
        if what not in self._said and len(self._said) < NAMES_REMEMBERED:
            self._said.add(what)
            category, kind, name = (shown(each) for each in what)
            logger.warning('%s has no handler for %s, %s, %s (said once)', self._processor, category, kind, name)


class Dispatcher:
    """Handles the deliveries of one processor. Its methods are for the scheduler's thread.

    :param host: the processor
    :param consumer: from whose source they come, and which answers them
    :param table: its handlers
    :param hooks: what it wants called before and after the handlers of each message, if it does
    :param wake: has the processor look for deliveries again; called from any thread
    :ivar in_hand: how many deliveries have handlers that have not ended
    :ivar is_winding_down: whether nothing new is to be begun
    :ivar figures: what is counted of its messages
    :ivar is_paused: whether nothing new is to be begun before that ends; written by any thread
    :ivar is_draining: whether what has been delivered is handled, and nothing more is delivered
    :ivar ended_at: when it last handled one by plain functions alone, on the monotonic clock
    :ivar ends_by: how a handler has asked to end the processor, if one has
    :ivar tolerance: seconds by which the clocks of callers may differ
    """

    def __init__(
        self,
        host: Host,
        consumer: Consumer,
        table: HandlerTable,
        hooks: tuple[Hook, Hook] | None,
        wake: Callable[[], None],
    ) -> None:
        self._host = host
        self._consumer = consumer
        self._source = source = consumer.delivery_source
        self._table = table
        self._hooks, self._wake = hooks, wake
        self.figures = Figures([entry.figures for entry in table.entries])
        self.label = f'a hook of {type(host).__name__}'
        self.in_hand, self.ended_at = 0, 0.0
        self.is_winding_down = self.is_draining = self.is_paused = False
        self.ends_by: Then | None = None
        self._stop_requested = False
        self._unhandled = Unhandled(type(host).__name__)
        settle = None if source.own_ack is None else self._leave_own_ack
        self.unsettled = Unsettled(self._unpublished, settle, wake)
        self._failures = Failures(host, consumer, self.unsettled, self.figures, self._begin_again)
        self._own_ack = source.own_ack
        if source.gate is not None:
            self._begin = functools.partial(self._begin_admitted, source.gate)  # type: ignore[method-assign]
        self.tolerance = clock_tolerance()
        self.take = self._begin if host.max_deliveries is None else self._begin_counted

    # Life

    def start(self) -> None:
        """Deliveries are about to come."""
        self._stop_requested = self.is_winding_down = self.is_draining = self.unsettled.is_awaited = False
        self.ends_by = None

    def wind_down(self) -> None:
        """Begin with no more messages; those in the inbox go back to the broker. Does not block."""
        if not self.is_winding_down and not self.is_draining:
            self.is_winding_down = self.unsettled.is_awaited = True
            self._source.wind_down()

    def drain(self) -> None:
        """Have no more delivered, and handle what has come. Does not block."""
        if not self.is_winding_down and not self.is_draining:
            self.is_draining = self.unsettled.is_awaited = True
            self._source.drain()

    def end_drain(self) -> None:
        """What has come need not be handled after all: :meth:`wind_down` hands it back."""
        self.is_draining = False

    def stop(self) -> None:
        """End the deliveries, once what handlers published is confirmed. Blocks, for 10 seconds at most.

        In a handler of its own it takes effect when that message has been settled.
        """
        delivery = current.get()
        logger.info('%r stops consuming, until start_consuming() is called', self._host)
        if delivery is not None and self._source.is_delivery_of(delivery):
            self._stop_requested = True
        else:
            self.stop_now()

    def stop_now(self) -> None:
        """The same, without regard to a handler that may be running."""
        flush_batch()
        if not self.unsettled.wait(CLOSE_TIMEOUT):
            logger.error('%r stops with messages that wait for a confirm; the broker delivers those again', self._host)
        self._source.end()

    def close(self) -> None:
        """Stop, and give up the connection for failed deliveries. Blocks."""
        self.stop_now()
        self._failures.close()

    @property
    def is_busy(self) -> bool:
        """Whether deliveries are being handled, or wait for their acknowledgement."""
        return self.in_hand > 0 or self.unsettled.count > 0 or (self.is_draining and not self._source.is_drained)

    @property
    def entries(self) -> Sequence[Entry]:
        """The handlers."""
        return self._table.entries

    @property
    def troubles(self) -> list[str]:
        """What could not be done with messages that failed, and is tried again. Any thread."""
        return [f'{self.label}: {each}' for each in dict.fromkeys(list(self._failures.troubles.values()))]

    # From a delivery to its handlers

    def _begin(self, delivery: Delivery) -> None:
        """Handle a delivery: at once where all of its handlers are plain, else in a microthread of its own."""
        try:
            body = check_envelope(self._consumer.decode(delivery.body))
            reply = None
            if body['category'] == 'rpc':
                addresses = self._consumer.reply_addresses
                reply = Reply(self._consumer.rpc_reply, delivery, self._host.fingerprint, None, addresses)
                if self._source.gate is not None:
                    reply.cancel_id = delivery.cancel_id = self._source.gate.cancel_id(delivery, reply.cancel_id)
                deadline = reply.header.deadline
                # Looked at here, without a call for each request.
                is_late = deadline is not None and time() - deadline / 1000 > self.tolerance
                if is_late or reply.cancel_id in cancelled.until:
                    unwanted = why_unwanted(reply.header, self.tolerance, reply.cancel_id)
                    logger.warning('%r is dropped unhandled: %s', delivery, unwanted)
                    self._settle(delivery, HANDLED)
                    return
        except errors.DecodingError as error:
            logger.warning('%r is rejected: %s; its body begins %r', delivery, error, delivery.body[:100])
            self._refuse(delivery, 'undecodable', error, f'the request cannot be understood: {error}')
            return
        entries = self._table.find(body['category'], body['type'], body['name'])
        self.figures.received += 1
        if delivery.redelivered:
            self.figures.redelivered += 1
        for entry in entries:
            if not entry.is_plain:
                assert self._host.scheduler is not None
                self.in_hand += 1
                self._host.scheduler.add_microthread(Handling(self, delivery, entries, body, reply))
                return
        outcome = HANDLED
        token = current.set(delivery)
        try:
            if self._hooks is not None or not entries:
                outcome = self._call_within_hooks(entries, body, reply, delivery)
            else:
                for entry in entries:
                    one = call_plain(entry, body, reply, delivery)
                    if one is not HANDLED:
                        outcome = outcome.and_also(one)
                self.ended_at = entry.figures.ended_at
        finally:
            current.reset(token)
        if outcome is not HANDLED or self._stop_requested or self._own_ack is not None:
            self._conclude(delivery, outcome)
            return
        delivery.is_handled = True
        if delivery.receipts is None:
            delivery.channel.settle(delivery)
        else:
            self.unsettled.add(delivery, delivery.receipts)

    def _begin_admitted(self, gate: Gate, delivery: Delivery) -> None:
        """Handle a delivery where it is signed as it has to be, and no copy. For a consumer with keys."""
        try:
            if gate.admits(delivery):
                Dispatcher._begin(self, delivery)
        except errors.SignatureRefused as error:
            # A signed answer would go to any program that asks in another's name. Where the request was signed, though
            # long ago, a program with the key has asked, and can have one.
            send = self._consumer.rpc_reply if error.reason == 'stale' else self._consumer.reply_unsigned
            self._refuse(delivery, 'refused', error, f'the request is refused: {error}', send)

    def _call_within_hooks(
        self, entries: Sequence[Entry], body: dict[str, Any], reply: Reply | None, delivery: Delivery
    ) -> Outcome:
        outcome = HANDLED
        context = MessageContext(body, delivery)
        if not entries:
            self.figures.unhandled += 1
            self._unhandled.say(body)
        try:
            with self.hooks_around(context):
                if not entries and reply is not None:
                    reply(unanswerable(body, bool(self._table.find('message', body['type'], body['name']))))
                for entry in entries:
                    outcome = outcome.and_also(call_plain(entry, body, reply, delivery))
                context.conclude(outcome, bool(entries))
        except Exception as error:
            outcome = outcome.and_also(raised(error, self.label, reply, delivery))
        return outcome

    def _begin_counted(self, delivery: Delivery) -> None:
        """Handle a delivery, unless it was delivered too often, or has to be put back with a count of that first."""
        most = self._host.max_deliveries
        assert most is not None
        try:
            unfinished = self._failures.unfinished(delivery)
            if unfinished < most and self._failures.has_to_be_counted(delivery):
                self._failures.count(delivery, functools.partial(self._refuse_uncounted, delivery))
                return
        except errors.PostageError as error:
            self._refuse_uncounted(delivery, error)
            return
        if unfinished < most:
            self._begin(delivery)
            return
        times = 'once' if unfinished == 1 else f'{unfinished} times'
        why = f'it was delivered {times} and never handled to its end'
        logger.error('%r is given up: %s', delivery, why)
        self._refuse(delivery, 'deliveries', errors.HandlingUnfinished(why), why)

    def _refuse_uncounted(self, delivery: Delivery, error: BaseException) -> None:
        logger.error('%r is rejected, for its deliveries cannot be counted: %s', delivery, error)
        self._refuse(delivery, 'undecodable', error, f'the request cannot be understood: {error}')

    def _refuse(
        self,
        delivery: Delivery,
        reason: Reason,
        error: BaseException,
        answer: str,
        send: Callable[[Any, Any], object] | None = None,
    ) -> None:
        """Give up what no handler shall see, and tell its sender, if that wants an answer.

        :param send: sends that, by default as any reply
        """
        try:
            header = delivery.salvaged
            if header.reply_to:
                send, addresses = send or self._consumer.rpc_reply, self._consumer.reply_addresses
                reply = Reply(send, delivery, self._host.fingerprint, header, addresses)
                reply(MessageResultError(answer))
        except errors.PostageError as failure:
            logger.debug('its sender could not be told: %s', failure)
        self._settle(delivery, Outcome(acknowledge=False, failure=Failure(reason, error)))

    def _begin_again(self, delivery: Delivery) -> bool:
        """Handle a delivery once more. Returns whether there was room for it."""
        if self.in_hand >= self._host.concurrency or self.is_winding_down or self.is_paused:
            return False
        delivery.is_handled = False
        tracing.taker(self._begin, self._consumer.connections)(delivery)
        return True

    # For the microthreads of its deliveries

    def hooks_around(self, context: MessageContext) -> AbstractContextManager[None]:
        """The hooks of one message, around its handlers."""
        return _NO_HOOKS if self._hooks is None else around_message(*self._hooks, context)

    def handled(self, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
        """The handlers of a delivery have ended, after so long."""
        self._source.took(1, seconds)
        self.in_hand -= 1
        self._wake()
        self._conclude(delivery, outcome)

    def abandoned(self, delivery: Delivery) -> None:
        """The handlers of a delivery were closed before their end; the broker will deliver it again."""
        self.in_hand -= 1
        delivery.is_handled = True
        if delivery.span is not None:
            tracing.settled(delivery, None)
        if self._source.gate is not None:
            self._source.gate.failed(delivery)

    def serves(self, exchange: str, routing_key: str) -> bool:
        """Whether a message sent there would come to this processor."""
        return bool(self._source.queues_reached(exchange, routing_key))

    def set_aside(self, change: int) -> None:
        """A handler begins (1), or ends (-1), to wait for an answer from this very processor.

        Meanwhile it does not count as in hand: the request that it waits for would find no room.
        """
        self.in_hand -= change
        self._source.set_aside(change)
        self._wake()

    # From the outcome to the acknowledgement

    def _conclude(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle a delivery, and do what its handlers asked for."""
        if outcome.then is not None:
            self.ends_by = outcome.then  # before it is settled: a thread that learns of that may ask for this
        self._settle(delivery, outcome)
        if outcome.then == 'exit':
            raise ExitScheduler
        if outcome.then == 'restart':
            self._host.restart()
        if outcome.then == 'end':
            self.wind_down()
            self._wake()
        if self._stop_requested:
            self._stop_requested = False
            self.stop_now()

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        delivery.is_handled = True
        if delivery.span is not None:
            tracing.settled(delivery, outcome.failure)
        if outcome.failure is not None:
            for receipt in delivery.receipts or ():  # such as that of a reply which tells the failure
                receipt.when_settled(functools.partial(self._look_at_reply, delivery), is_urgent=False)
            if outcome.pause is not None:
                self._failures.put_off(delivery, outcome.pause, outcome.failure)
            else:
                self._failures.give_up(delivery, outcome.failure)
        elif delivery.receipts is not None:
            self.unsettled.add(delivery, delivery.receipts)
        elif self._own_ack is not None:
            self._own_ack(delivery)
        else:
            delivery.channel.settle(delivery)

    def _leave_own_ack(self, delivery: Delivery) -> None:
        """All that the handlers of a delivery published is confirmed. Called on a connection's thread."""
        assert self._own_ack is not None
        self.unsettled.leave(functools.partial(self._own_ack, delivery))

    def _unpublished(self, delivery: Delivery, failed: Receipt) -> None:
        """Something that they published was not confirmed. Called on a connection's thread."""
        assert failed.error is not None
        self.unsettled.leave(functools.partial(self._give_up_unpublished, delivery, failed, failed.error))

    def _look_at_reply(self, delivery: Delivery, receipt: Receipt) -> None:
        """Where this is a reply that the broker has refused, say so to its caller, which would wait in vain."""
        if receipt.error is not None and receipt.ledger.has_replies:
            self._consumer.answer_refused(delivery.salvaged, receipt.error)

    def _give_up_unpublished(self, delivery: Delivery, failed: Receipt, error: errors.PublishError) -> None:
        """The broker may take later what it refused: a queue was full, say, or had no leader."""
        failure = Failure('unpublished', error)
        is_reply = failed.ledger.has_replies
        pause = None if is_reply or is_final(error) else pause_after([AFTER_REFUSAL], error, delivery)
        if pause is not None:
            text = '%r is handled again in about %.3g s, because what its handler published failed: %s'
            logger.warning(text, delivery, pause.seconds, error)
            for receipt in delivery.receipts or ():
                receipt.note_told()
            self._failures.put_off(delivery, pause, failure)
            return
        logger.error('%r is rejected, because what its handler published failed: %s', delivery, error)
        self._look_at_reply(delivery, failed)
        self._failures.give_up(delivery, failure)


# Handlers


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
        dispatcher: Dispatcher,
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
            with cancelled.watching(self._id_to_watch(), self._on_cancel):
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
                timers.append(later(seconds, self._deadline_has_passed))
        return timers

    def _deadline_has_passed(self) -> None:
        self._close_cancelled('its deadline has passed')

    def _raised(self, entry: Entry, error: BaseException) -> Outcome:
        entry.figures.ended(self._delivery)
        outcome = raised(error, entry.label, self._reply, self._delivery, entry.retries)
        entry.figures.raised(outcome)
        return outcome

    def _id_to_watch(self) -> str | None:
        """The id of a request whose handler is closed when it is cancelled."""
        self._can_be_closed = self._reply is not None
        return self._reply.cancel_id if self._reply is not None else None

    def _on_cancel(self) -> None:
        """Its caller wants no answer any more. Any thread; the scheduler's closes the handler."""
        self._dispatcher.unsettled.leave(functools.partial(self._close_cancelled, UNWANTED))

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
        reply = self._reply
        why = why_unwanted(reply.header, self._dispatcher.tolerance, reply.cancel_id) if reply is not None else ''
        if why:
            raise _Cancelled('dropped before it began', why)
        return entry(self._body, reply)

    def _run_generator(self, handler: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """``yield from``, but for the two ways in which it is cut short: both close the handler."""
        resume: Callable[[Any], Any] = handler.send
        value: Any = None
        while True:
            try:
                wanted = resume(value)
            except StopIteration as stop:
                return stop.value
            asks_itself = isinstance(wanted, RpcFuture) and self._dispatcher.serves(wanted.exchange, wanted.routing_key)
            if asks_itself:
                self._dispatcher.set_aside(1)
            try:
                resume, value = handler.send, (yield wanted)
            except (_Cut, GeneratorExit):
                if isinstance(wanted, (RpcFuture, Gathering)):
                    wanted.cancel()  # its handler waits for it no more
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
