"""Processors: from a delivery to its handlers, and from their outcome to an acknowledgement."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, ClassVar

from postage import errors
from postage.amqp.connection import CLOSE_TIMEOUT, close_all, flush_all
from postage.amqp.consuming import Delivery, current
from postage.amqp.publishing import Receipt
from postage.messaging.consumer import GenericConsumer
from postage.messaging.fingerprint import as_fingerprint_dict
from postage.messaging.handlers import Entry, HandlerTable, MessageHandler
from postage.messaging.messages import (
    Message,
    MessageResult,
    MessageResultError,
    MessageResultException,
    check_envelope,
)
from postage.messaging.outcomes import HANDLED, AckAndRestart, FilterError, Outcome, outcome_of
from postage.microthreads import ExitScheduler, MicroThread, Signal, Timer

logger = logging.getLogger('postage')

SLICE_MESSAGES = 64  # messages handled before other microthreads get their turn
SLICE_SECONDS = 0.002  # the same in time; one slow handler is a turn of its own


def current_delivery() -> Delivery | None:
    """The delivery whose handler is running: exchange, routing key, queue, properties, headers, redelivered.

    ``None`` outside handlers. Never blocks.
    """
    return current.get()


class MessageProcessor(MicroThread):
    """A microthread that consumes messages and calls the handlers defined in it.

    The constructor connects and declares; the messages come once a scheduler runs it. Every message is acknowledged
    when its handlers have returned and what they published is confirmed. One of which a handler raises is rejected,
    without requeue.

    :param fingerprint: a ``Fingerprint`` or its dictionary
    :param eqk: exchanges, queues and keys, as for :class:`GenericConsumer`
    :param hup: which broker
    :param vhost: which virtual host of it
    :raises errors.PostageError: as :class:`GenericConsumer` does

    :cvar consumer_class: makes :attr:`consumer`
    :ivar consumer: the consumer it reads from
    :ivar fingerprint: its fingerprint, as a dictionary
    """

    consumer_class: ClassVar[type[GenericConsumer]] = GenericConsumer

    def __init__(self, fingerprint: Any = None, eqk: Any = None, hup: Any = None, vhost: str | None = None) -> None:
        self.fingerprint: dict[str, Any] = as_fingerprint_dict(fingerprint)
        self._handlers = HandlerTable(self)
        self._deliverable = Signal()
        self._timers: list[tuple[float, Callable[[], object]]] = []
        self._handling = False
        self._stop_requested = False
        self._unsettled = _Unsettled()
        self._queues_warned: set[str] = set()
        self.consumer = self.consumer_class(eqk, hup, vhost)
        if self._handlers.answers:
            self.consumer.prepare_replies()

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.fingerprint.get("name") or ""} {self.consumer!r}>'

    # Life

    def main(self) -> Generator[Any, Any, Any]:
        """Consume until the scheduler ends; then hand back to the broker what was not handled."""
        self.start_consuming()
        try:
            while True:
                try:
                    more = self.step()
                except StopIteration:
                    return
                if isinstance(more, Generator):
                    more = yield from more
                yield None if more else self._deliverable
        finally:
            self._stop_now()

    def step(self) -> Any:
        """Handle some of the messages that have arrived. Returns whether there may be more."""
        until = time.monotonic() + SLICE_SECONDS
        left = SLICE_MESSAGES
        for delivery in self.consumer.deliveries():
            self._handle(delivery)
            left -= 1
            if left == 0 or time.monotonic() >= until:
                return True
        return False

    def start_consuming(self) -> None:
        """Have the broker deliver. Called when the scheduler starts it; blocks until the broker has agreed."""
        self._stop_requested = False
        self.consumer.begin(self._deliverable.set)

    def stop_consuming(self) -> None:
        """Stop consuming; what was prefetched goes back to the broker. :meth:`start_consuming` goes on again.

        Inside a handler it takes effect when that message has been settled. Blocks until what handlers published is
        confirmed, for 10 seconds at most.
        """
        if self._handling:
            self._stop_requested = True
        else:
            self._stop_now()

    def _stop_now(self) -> None:
        if not self._unsettled.wait(CLOSE_TIMEOUT):
            logger.error('%r stops with messages that wait for a confirm; the broker delivers those again', self)
        self.consumer.end()

    def close(self) -> None:
        """Stop consuming and give the connections back. Blocks."""
        self._stop_now()
        self.consumer.close()

    def add_eqk(self, eqk: Any) -> None:
        """Declare and consume from more queues. Blocks."""
        self.consumer.add_eqk(eqk)

    def add_timeout(self, seconds: float, callback: Callable[[], object] | None = None) -> Timer | None:
        """Call ``callback()`` in the scheduler's thread after that many seconds.

        Without a callback it sleeps that long, and the whole scheduler with it.

        :return: what has ``cancel()``; ``None`` where it slept, or is not yet in a scheduler
        """
        if callback is None:
            time.sleep(seconds)
            return None
        if self.scheduler is None:
            self._timers.append((seconds, callback))
            return None
        return self.scheduler.call_later(seconds, callback)

    def create(self) -> Generator[Any, Any, Any]:
        """Return the generator that the scheduler drives."""
        return self._main_with_timers()

    def _main_with_timers(self) -> Generator[Any, Any, Any]:
        if self.scheduler is not None:
            self.scheduler.at_end(flush_all)
            while self._timers:
                self.scheduler.call_later(*self._timers.pop(0))
        return (yield from self.main())

    def restart(self) -> None:
        """Send what is pending, close the connections and run the same program again, in this process. Never returns.

        Interpreter flags, ``-m`` and arguments stay as they were.
        """
        for microthread in self.scheduler.microthreads if self.scheduler is not None else [self]:
            if isinstance(microthread, MessageProcessor):
                microthread._stop_now()
        close_all()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os.execv(sys.executable, sys.orig_argv)

    # Default handlers

    @MessageHandler('command', 'quit')
    def msg_quit(self, content: dict[str, Any]) -> None:
        """End the scheduler's loop."""
        raise ExitScheduler

    @MessageHandler('command', 'restart')
    def msg_restart(self, content: dict[str, Any]) -> None:
        """Run the program again."""
        raise AckAndRestart

    # From a delivery to its outcome

    def _handle(self, delivery: Delivery) -> None:
        self._handling = True
        token = current.set(delivery)
        try:
            outcome = self._dispatch(delivery)
        finally:
            current.reset(token)
            self._handling = False
        self._settle(delivery, outcome)
        if outcome.then == 'exit':
            raise ExitScheduler
        if outcome.then == 'restart':
            self.restart()
        if self._stop_requested:
            self._stop_requested = False
            self._stop_now()

    def _dispatch(self, delivery: Delivery) -> Outcome:
        try:
            body = check_envelope(self.consumer.decode(delivery.body))
            reply = _Reply(self, delivery) if body['category'] == 'rpc' else None
        except errors.DecodingError as error:
            logger.warning('%r is rejected: %s; its body begins %r', delivery, error, delivery.body[:100])
            _Reply.refuse(self, delivery, f'the request cannot be understood: {error}')
            return Outcome(acknowledge=False)
        entries = self._handlers.find(body['category'], body['type'], body['name'])
        if not entries:
            if reply is not None:
                reply(MessageResultError(f'no handler for {body["type"]} {body["name"]!r}'))
            return HANDLED
        outcome = HANDLED
        for entry in entries:
            outcome = outcome.and_also(self._call(entry, body, reply, delivery))
        return outcome

    def _call(self, entry: Entry, body: dict[str, Any], reply: _Reply | None, delivery: Delivery) -> Outcome:
        """Run one handler; what it raises is its outcome."""
        try:
            result = entry(body, reply)
            if reply is not None and result is not None and not reply.sent:
                reply(result)
            return HANDLED
        except Exception as error:
            outcome = outcome_of(error)
            if outcome.traceback:
                logger.exception('%s raised on %r, which is rejected', entry.label, delivery)
            elif isinstance(error, FilterError):
                logger.warning('%r %s', delivery, error if entry.filters else f'dropped by {entry.label}: {error}')
            if reply is not None and not reply.sent and outcome.then is None:
                reply.tell(error)
            return outcome

    # From the outcome to the acknowledgement

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        if not outcome.acknowledge:
            self._reject(delivery)
        elif delivery.receipts is None:
            delivery.channel.settle(delivery)
        else:
            self._unsettled.add(delivery, delivery.receipts, self._settle_published)

    def _settle_published(self, delivery: Delivery, failed: Receipt | None) -> None:
        """All that the handlers of a delivery published is settled, too."""
        if failed is None:
            delivery.channel.settle(delivery)
        else:
            logger.error('%r is rejected, because what its handler published failed: %s', delivery, failed.error)
            self._reject(delivery)

    def _reject(self, delivery: Delivery) -> None:
        delivery.channel.settle(delivery, requeue=False)
        if delivery.queue not in self._queues_warned and not self.consumer.has_dead_letters(delivery.queue):
            self._queues_warned.add(delivery.queue)
            logger.warning(
                'a message rejected from queue %r is lost: the queue was declared without x-dead-letter-exchange '
                '(said once)',
                delivery.queue,
            )


class _Reply:
    """The ``reply_func`` of one RPC: the first answer counts. May be called from any thread."""

    def __init__(self, processor: MessageProcessor, delivery: Delivery) -> None:
        self._processor = processor
        self._properties = delivery.properties
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

    @classmethod
    def refuse(cls, processor: MessageProcessor, delivery: Delivery, reason: str) -> None:
        """Tell whoever sent something that makes no sense, if it wants an answer."""
        try:
            if delivery.properties.reply_to:
                cls(processor, delivery)(MessageResultError(reason))
        except errors.PostageError as error:
            logger.debug('it could not be told so: %s', error)


class _Unsettled:
    """Deliveries whose acknowledgement waits for what their handlers published. Safe from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def add(
        self, delivery: Delivery, receipts: list[Receipt], settle: Callable[[Delivery, Receipt | None], None]
    ) -> None:
        """Call ``settle(delivery, failed)`` once all of the receipts are settled; ``failed`` is one that was not
        confirmed, if there is one."""
        missing = len(receipts)
        with self._changed:
            self._count += 1

        def one_less() -> None:
            nonlocal missing
            with self._changed:
                missing -= 1
                if missing:
                    return
            settle(delivery, next((receipt for receipt in receipts if receipt.error is not None), None))
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

        for receipt in receipts:
            receipt.add_done_callback(one_less)

    def wait(self, timeout: float) -> bool:
        """Wait until there is none. Returns whether that is so within that many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, timeout)
