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
from postage.messaging.handlers import Colour, HandlerTable, MessageHandler, check_timeout
from postage.messaging.handling import Handling, Reply, call_plain
from postage.messaging.messages import MessageResultError, check_envelope
from postage.messaging.outcomes import HANDLED, AckAndRestart, Outcome
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

    Handlers may be functions, which run in the scheduler's thread; generator functions, which may yield what
    :mod:`postage.microthreads` knows to wait for; ``async`` functions; and functions marked ``@Threaded``.

    :cvar consumer_class: makes :attr:`consumer`
    :cvar concurrency: messages handled at the same time, where their handlers wait; with 1 their order holds. A
        handler that waits for an answer from its own processor does not count.
    :cvar timeout: seconds after which a generator or a coroutine is closed; see :class:`Timeout`
    :ivar consumer: the consumer it reads from
    :ivar fingerprint: its fingerprint, as a dictionary
    """

    consumer_class: ClassVar[type[GenericConsumer]] = GenericConsumer
    concurrency: int = 1
    timeout: float | None = None

    def __init__(self, fingerprint: Any = None, eqk: Any = None, hup: Any = None, vhost: str | None = None) -> None:
        self.fingerprint: dict[str, Any] = as_fingerprint_dict(fingerprint)
        self._check_settings()
        self._handlers = HandlerTable(self)
        self._deliverable = Signal()
        self._timers: list[tuple[float, Callable[[], object]]] = []
        self._in_hand = 0
        self._stop_requested = False
        self._is_winding_down = False
        self._unsettled = _Unsettled(self._deliverable.set)
        self._queues_warned: set[str] = set()
        self.consumer = self.consumer_class(eqk, hup, vhost)
        if self._handlers.answers:
            self.consumer.prepare_replies()

    def _check_settings(self) -> None:
        name = type(self).__name__
        if self.timeout is not None:
            check_timeout(f'{name}.timeout', self.timeout)
        if not isinstance(self.concurrency, int) or self.concurrency < 1:
            raise errors.ConfigurationError(f'{name}.concurrency must be 1 or more, not {self.concurrency!r:.80}')

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
        """Begin to handle some of the messages that have arrived. Returns whether there may be more to begin."""
        until = time.monotonic() + SLICE_SECONDS
        for _ in range(SLICE_MESSAGES):
            if self._in_hand >= self.concurrency or self._is_winding_down:
                return False
            delivery = self.consumer.next_delivery()
            if delivery is None:
                return False
            self._begin(delivery)
            if time.monotonic() >= until:
                break
        return True

    def start_consuming(self) -> None:
        """Have the broker deliver. Called when the scheduler starts it; blocks until the broker has agreed."""
        self._stop_requested = self._is_winding_down = False
        self.consumer.begin(self._deliverable.set, self.concurrency)

    @property
    def is_busy(self) -> bool:
        """Whether messages are being handled, or wait for their acknowledgement."""
        return self._in_hand > 0 or not self._unsettled.wait(0)

    def wind_down(self) -> None:
        """Begin with no more messages; those in the inbox go back to the broker. Does not block."""
        if not self._is_winding_down:
            self._is_winding_down = True
            self.consumer.wind_down()

    def stop_consuming(self) -> None:
        """Stop consuming; what was prefetched goes back to the broker. :meth:`start_consuming` goes on again.

        In a handler of its own it takes effect when that message has been settled. Blocks until what handlers
        published is confirmed, for 10 seconds at most.
        """
        delivery = current.get()
        if delivery is not None and self.consumer.is_delivery_of(delivery):
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

    def _begin(self, delivery: Delivery) -> None:
        """Handle a delivery: at once where all of its handlers are plain, else in a microthread of its own."""
        try:
            body = check_envelope(self.consumer.decode(delivery.body))
            reply = Reply(self, delivery) if body['category'] == 'rpc' else None
        except errors.DecodingError as error:
            self._refuse(delivery, error)
            return
        entries = self._handlers.find(body['category'], body['type'], body['name'])
        if not all(entry.colour is Colour.PLAIN for entry in entries):
            assert self.scheduler is not None
            self._in_hand += 1
            self.scheduler.add_microthread(Handling(self, delivery, entries, body, reply))
            return
        outcome = HANDLED
        token = current.set(delivery)
        try:
            if not entries and reply is not None:
                reply(MessageResultError(f'no handler for {body["type"]} {body["name"]!r}'))
            for entry in entries:
                outcome = outcome.and_also(call_plain(entry, body, reply, delivery))
        finally:
            current.reset(token)
        self._conclude(delivery, outcome)

    def _refuse(self, delivery: Delivery, error: errors.DecodingError) -> None:
        """Reject what cannot be understood, and tell whoever sent it, if it wants an answer."""
        logger.warning('%r is rejected: %s; its body begins %r', delivery, error, delivery.body[:100])
        try:
            if delivery.properties.reply_to:
                Reply(self, delivery)(MessageResultError(f'the request cannot be understood: {error}'))
        except errors.PostageError as failure:
            logger.debug('its sender could not be told: %s', failure)
        self._settle(delivery, Outcome(acknowledge=False))

    # For the microthreads of its deliveries

    def handled(self, delivery: Delivery, outcome: Outcome) -> None:
        """The handlers of a delivery have ended."""
        self._in_hand -= 1
        self._deliverable.set()
        self._conclude(delivery, outcome)

    def abandoned(self, delivery: Delivery) -> None:
        """The handlers of a delivery were closed before their end; the broker will deliver it again."""
        self._in_hand -= 1
        delivery.is_handled = True

    def serves(self, exchange: str, routing_key: str) -> bool:
        """Whether a message sent there would come to this processor."""
        return bool(self.consumer.queues_reached(exchange, routing_key))

    def step_aside(self) -> None:
        """A handler waits for an answer from this very processor: it does not count as in hand meanwhile."""
        self._in_hand -= 1
        self._deliverable.set()

    def step_back(self) -> None:
        """It has its answer."""
        self._in_hand += 1

    # From the outcome to the acknowledgement

    def _conclude(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle a delivery, and do what its handlers asked for."""
        self._settle(delivery, outcome)
        if outcome.then == 'exit':
            raise ExitScheduler
        if outcome.then == 'restart':
            self.restart()
        if self._stop_requested:
            self._stop_requested = False
            self._stop_now()

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        delivery.is_handled = True
        if not outcome.acknowledge:
            self._reject(delivery)
        elif delivery.receipts is None:
            delivery.channel.settle(delivery)
        else:
            self._unsettled.add(delivery, delivery.receipts, self._settle_published)

    def _settle_published(self, delivery: Delivery, failed: Receipt | None) -> None:
        """All that the handlers of a delivery published is settled, too. Called on a connection's thread."""
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


class _Unsettled:
    """Deliveries whose acknowledgement waits for what their handlers published. Safe from any thread.

    :param notify: called whenever one of them has been settled
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
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
            self._notify()

        for receipt in receipts:
            receipt.add_done_callback(one_less)

    def wait(self, timeout: float) -> bool:
        """Wait until there is none. Returns whether that is so within that many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, timeout)
