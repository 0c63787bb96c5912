"""Deliveries: to their handlers, and from the outcome of these to an acknowledgement."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import time
from typing import Any

from postage import errors
from postage.amqp.cancelled import cancelled
from postage.amqp.connection import CLOSE_TIMEOUT
from postage.amqp.deliveries import Delivery, current
from postage.amqp.publishing import Receipt
from postage.amqp.threads import flush_batch
from postage.messaging import tracing
from postage.messaging.counting import Figures
from postage.messaging.failures import Failures
from postage.messaging.gate import Gate
from postage.messaging.handlers import Entry, HandlerTable
from postage.messaging.handling import Handling, call_plain, raised
from postage.messaging.hooks import Hook, MessageContext, around_message
from postage.messaging.messages import MessageResultError, check_envelope
from postage.messaging.outcomes import HANDLED, Failure, Outcome, Reason, Then
from postage.messaging.replies import Reply, unanswerable
from postage.messaging.roles import Consumer, Host
from postage.messaging.unsettled import Unsettled
from postage.messaging.unwanted import why_unwanted
from postage.microthreads import ExitScheduler
from postage.printable import shown
from postage.settings import clock_tolerance

logger = logging.getLogger('postage')

NAMES_REMEMBERED = 1000  # of messages that no handler takes

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
            consumer = self._consumer
            body = check_envelope(consumer.decode(delivery.body))
            reply = None
            if body['category'] == 'rpc':
                addresses = consumer.reply_addresses
                reply = Reply(consumer.rpc_reply, delivery, self._host.fingerprint, None, addresses)
                if self._source.gate is not None:
                    reply.cancel_id = delivery.cancel_id = self._source.gate.cancel_id(delivery, reply.cancel_id)
                deadline = reply.header.deadline
                # Looked at here, without a call for each request.
                is_late = deadline is not None and time() - deadline / 1000 > self.tolerance
                if is_late or reply.cancel_id in cancelled.until:
                    unwanted = why_unwanted(reply.header, self.tolerance, reply.cancel_id)
                    logger.warning('%r is dropped unhandled: %s', delivery, unwanted)
                    self.figures.unwanted += 1
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
                tracing.settled(delivery, None)  # it comes back, and is handled in another
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

    # For the microthreads of its deliveries: see InCharge

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
            tracing.unfinished(delivery)
        if self._source.gate is not None:
            self._source.gate.failed(delivery)

    def leave(self, work: Callable[[], None]) -> None:
        """Have the scheduler's thread do something, before the processor ends. Any thread; does not block."""
        self.unsettled.leave(work)

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
                receipt.when_settled(functools.partial(self._failures.look_at_reply, delivery), is_urgent=False)
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
        self.unsettled.leave(functools.partial(self._failures.unpublished, delivery, failed))
