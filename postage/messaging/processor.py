"""Processors: from a delivery to its handlers, and from their outcome to an acknowledgement."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from postage import errors
from postage.amqp.connection import CLOSE_TIMEOUT
from postage.amqp.deliveries import Delivery, current
from postage.amqp.publishing import Receipt
from postage.amqp.registry import close_all, flush_all
from postage.amqp.threads import Batch, flush_batch
from postage.amqp.turns import alarm_of_thread
from postage.messaging.consumer import GenericConsumer
from postage.messaging.failures import Failures
from postage.messaging.fingerprint import as_fingerprint_dict
from postage.messaging.handlers import Entry, HandlerTable, MessageHandler, check_timeout
from postage.messaging.handling import Handling, Reply, call_plain, hook_raised
from postage.messaging.hooks import MessageContext, State, between
from postage.messaging.messages import MessageResultError, check_envelope
from postage.messaging.outcomes import HANDLED, AckAndRestart, DeadLetterStore, Failure, Outcome, Reason
from postage.messaging.retry import Pause
from postage.messaging.unsettled import Unsettled
from postage.microthreads import ExitScheduler, MicroThread, Signal, Timer, running_scheduler

if TYPE_CHECKING:
    from postage.messaging.local import LocalClient

logger = logging.getLogger('postage')

SLICE_MESSAGES = 64  # messages handled before other microthreads get their turn

SLICE_SECONDS = 0.002  # the same in time; one slow handler is a turn of its own


_NO_HOOKS = nullcontext()


def current_delivery() -> Delivery | None:
    """The delivery whose handler is running: exchange, routing key, queue, properties, headers, redelivered.

    ``None`` outside handlers. Never blocks.
    """
    return current.get()


class MessageProcessor(MicroThread):
    """A microthread that consumes messages and calls the handlers defined in it.

    The constructor connects and declares; the messages come once a scheduler runs it. Every message is acknowledged
    when its handlers have returned and what they published is confirmed. One of which a handler raises is handled
    again where that handler says so (:class:`Retry`); else it is dead: put into :attr:`dead_letters`, or where that is
    not set rejected without requeue, so that the queue's dead-letter exchange has it, if there is one.

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
    :cvar dead_letters: a store for messages that could not be handled
    :cvar max_deliveries: how often a message is delivered, without ever being handled to its end, before it is dead;
        so that one that kills its process does not do so for ever. With it, no more messages are fetched than are
        handled at the same time, unless ``prefetch_count`` says so, for a crash counts against each that was fetched
    :ivar consumer: the consumer it reads from
    :ivar fingerprint: its fingerprint, as a dictionary
    :ivar state: what its hooks and handlers keep
    """

    consumer_class: ClassVar[type[GenericConsumer]] = GenericConsumer
    concurrency: int = 1
    timeout: float | None = None
    dead_letters: DeadLetterStore | None = None
    max_deliveries: int | None = None

    def __init__(self, fingerprint: Any = None, eqk: Any = None, hup: Any = None, vhost: str | None = None) -> None:
        self.fingerprint: dict[str, Any] = as_fingerprint_dict(fingerprint)
        self.state: Any = State()
        self._check_settings()
        self._handlers = HandlerTable(self)
        self._deliverable = Signal()
        self._timers: list[tuple[float, Callable[[], object]]] = []
        self._in_hand = 0
        self._stop_requested = False
        self._is_winding_down = False
        self._unsettled = Unsettled(self._one_is_settled)
        self._queues_warned: set[str] = set()
        own, base = type(self), MessageProcessor
        self._has_hooks = (own.before_handling, own.after_handling) != (base.before_handling, base.after_handling)
        self.consumer = self._consumer_class()(eqk, hup, vhost)
        if self._handlers.answers:
            self.consumer.prepare_replies()
        self._failures = Failures(self, self._unsettled.one_more, self._unsettled.one_less)
        self._take = self._begin if self.max_deliveries is None else self._begin_counted

    def _check_settings(self) -> None:
        name = type(self).__name__
        if self.timeout is not None:
            check_timeout(f'{name}.timeout', self.timeout)
        if not isinstance(self.concurrency, int) or isinstance(self.concurrency, bool) or self.concurrency < 1:
            raise errors.ConfigurationError(f'{name}.concurrency must be 1 or more, not {self.concurrency!r:.80}')
        most = self.max_deliveries
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise errors.ConfigurationError(f'{name}.max_deliveries must be 1 or more, or None, not {most!r:.80}')
        if self.dead_letters is not None and not callable(getattr(self.dead_letters, 'put', None)):
            raise errors.ConfigurationError(
                f'{name}.dead_letters must be a store, which has put(letter), or None, not {self.dead_letters!r:.80}'
            )

    def _consumer_class(self) -> type[GenericConsumer]:
        """What makes the consumer; where deliveries are counted, one that fetches no message which has to wait."""
        consumer_class = self.consumer_class
        if self.max_deliveries is None or consumer_class.prefetch_count is not None:
            return consumer_class
        return type(consumer_class.__name__, (consumer_class,), {'prefetch_count': self.concurrency})

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.fingerprint.get("name") or ""} {self.consumer!r}>'

    # Life

    def main(self) -> Generator[Any, Any, Any]:
        """Consume until the scheduler ends; then hand back to the broker what was not handled."""
        with between((self.before_processing,), (self.after_processing,)):
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
        began = now = time.monotonic()
        in_hand, taken, more = self._in_hand, 0, True
        with Batch():
            while taken < SLICE_MESSAGES and now - began < SLICE_SECONDS:
                delivery = None if self._is_full else self.consumer.next_delivery()
                if delivery is None:
                    more = False
                    break
                self._take(delivery)
                taken += 1
                now = time.monotonic()
        # Those that have only begun say themselves how long they took.
        self.consumer.took(taken - (self._in_hand - in_hand), now - began)
        return more

    @property
    def _is_full(self) -> bool:
        return self._in_hand >= self.concurrency or self._is_winding_down

    def start_consuming(self) -> None:
        """Have the broker deliver. Called when the scheduler starts it; blocks until the broker has agreed."""
        self._stop_requested = self._is_winding_down = False
        self.consumer.begin(self._deliverable.set, self.concurrency)
        alarm = alarm_of_thread()
        if alarm is not None and self.scheduler is not None and self.scheduler is running_scheduler():
            for connection in self.consumer.connections:
                alarm.add(connection.readership)
            self.scheduler.sleep_by(alarm)

    @property
    def is_busy(self) -> bool:
        """Whether messages are being handled, or wait for their acknowledgement."""
        return self._in_hand > 0 or not self._unsettled.wait(0)

    def _one_is_settled(self) -> None:
        if self._is_winding_down:
            self._deliverable.set()  # it may have been the last that the end waits for

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
        flush_batch()
        if not self._unsettled.wait(CLOSE_TIMEOUT):
            logger.error('%r stops with messages that wait for a confirm; the broker delivers those again', self)
        self.consumer.end()

    def close(self) -> None:
        """Stop consuming and give the connections back. Blocks."""
        self._stop_now()
        self._failures.close()
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

    # Hooks, to be overridden

    def before_processing(self) -> None:
        """Called before it consumes. An exception ends this microthread."""

    def after_processing(self) -> None:
        """Called when it has stopped consuming because its scheduler ends, however that came."""

    def before_handling(self, handling: MessageContext) -> None:
        """Called before the handlers of each message. An exception fails the message, and its handlers do not run."""

    def after_handling(self, handling: MessageContext) -> None:
        """Called after the handlers of each message, whatever they raised. An exception fails the message."""

    def hooks_around(self, body: dict[str, Any], delivery: Delivery) -> AbstractContextManager[None]:
        """The hooks of one message, around its handlers."""
        if not self._has_hooks:
            return _NO_HOOKS
        return between((self.before_handling,), (self.after_handling,), MessageContext(body, delivery))

    # Without a broker

    @classmethod
    def test_client(cls, *arguments: Any, **keywords: Any) -> LocalClient:
        """A processor of this class that a test sends messages and RPCs to, with neither a broker nor threads.

        ::

            with EchoProcessor.test_client(fingerprint) as client:
                assert client.send(messaging.RpcCommand('echo', 1)).body['content']['value'] == 1

        The arguments are those of the constructor.
        """
        from postage.messaging.local import LocalClient

        return LocalClient(cls, arguments, keywords)

    # From a delivery to its outcome

    def _begin(self, delivery: Delivery) -> None:
        """Handle a delivery: at once where all of its handlers are plain, else in a microthread of its own."""
        try:
            body = check_envelope(self.consumer.decode(delivery.body))
            reply = Reply(self, delivery) if body['category'] == 'rpc' else None
        except errors.DecodingError as error:
            logger.warning('%r is rejected: %s; its body begins %r', delivery, error, delivery.body[:100])
            self._refuse(delivery, 'undecodable', error, f'the request cannot be understood: {error}')
            return
        entries = self._handlers.find(body['category'], body['type'], body['name'])
        for entry in entries:
            if not entry.is_plain:
                assert self.scheduler is not None
                self._in_hand += 1
                self.scheduler.add_microthread(Handling(self, delivery, entries, body, reply))
                return
        outcome = HANDLED
        token = current.set(delivery)
        try:
            with self.hooks_around(body, delivery):
                if not entries and reply is not None:
                    reply(MessageResultError(f'no handler for {body["type"]} {body["name"]!r}'))
                for entry in entries:
                    outcome = outcome.and_also(call_plain(entry, body, reply, delivery))
        except Exception as error:
            outcome = outcome.and_also(hook_raised(error, self, reply, delivery))
        finally:
            current.reset(token)
        self._conclude(delivery, outcome)

    def _begin_counted(self, delivery: Delivery) -> None:
        """Handle a delivery, unless it was delivered too often, or has to be put back with a count of that first."""
        assert self.max_deliveries is not None
        try:
            unfinished = self._failures.unfinished(delivery)
            if unfinished < self.max_deliveries and self._failures.has_to_be_counted(delivery):
                self._failures.count(delivery)
                return
        except (errors.DecodingError, errors.EncodingError) as error:
            logger.error('%r is rejected, for its deliveries cannot be counted: %s', delivery, error)
            self._refuse(delivery, 'undecodable', error, f'the request cannot be understood: {error}')
            return
        if unfinished < self.max_deliveries:
            self._begin(delivery)
            return
        times = 'once' if unfinished == 1 else f'{unfinished} times'
        why = f'it was delivered {times} and never handled to its end'
        logger.error('%r is given up: %s', delivery, why)
        self._refuse(delivery, 'deliveries', errors.HandlingUnfinished(why), why)

    def _refuse(self, delivery: Delivery, reason: Reason, error: errors.PostageError, answer: str) -> None:
        """Give up what no handler shall see, and tell whoever sent it, if it wants an answer."""
        try:
            if delivery.properties.reply_to:
                Reply(self, delivery)(MessageResultError(answer))
        except errors.PostageError as failure:
            logger.debug('its sender could not be told: %s', failure)
        self._settle(delivery, Outcome(acknowledge=False, failure=Failure(reason, error)))

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

    def pause_after(self, entry: Entry, error: Exception, delivery: Delivery) -> Pause | None:
        """How long a message waits for its next attempt after a handler raised; ``None`` where there is none."""
        return self._failures.pause_after(entry, error, delivery)

    def begin_again(self, delivery: Delivery) -> bool:
        """Handle a delivery once more. Returns whether there was room for it."""
        if self._is_full:
            return False
        delivery.is_handled = False
        self._begin(delivery)
        return True

    def serves(self, exchange: str, routing_key: str) -> bool:
        """Whether a message sent there would come to this processor."""
        return bool(self.consumer.queues_reached(exchange, routing_key))

    def step_aside(self) -> None:
        """A handler waits for an answer from this very processor: it does not count as in hand meanwhile."""
        self._in_hand -= 1
        self.consumer.set_aside(1)
        self._deliverable.set()

    def step_back(self) -> None:
        """It has its answer."""
        self._in_hand += 1
        self.consumer.set_aside(-1)

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
            self._fail(delivery, outcome)
        elif delivery.receipts is None:
            delivery.channel.settle(delivery)
        else:
            self._unsettled.add(delivery, delivery.receipts, self._settle_published)

    def _fail(self, delivery: Delivery, outcome: Outcome) -> None:
        assert outcome.failure is not None
        if outcome.pause is not None:
            self._failures.put_off(delivery, outcome.pause, outcome.failure)
        else:
            self._give_up(delivery, outcome.failure)

    def _give_up(self, delivery: Delivery, failure: Failure) -> None:
        if self.dead_letters is not None:
            self._failures.bury(delivery, failure)
        else:
            self._reject(delivery)

    def _settle_published(self, delivery: Delivery, failed: Receipt | None) -> None:
        """All that the handlers of a delivery published is settled, too. Called on a connection's thread."""
        if failed is None:
            delivery.channel.settle(delivery)
        else:
            logger.error('%r is rejected, because what its handler published failed: %s', delivery, failed.error)
            assert failed.error is not None
            failure = Failure('unpublished', failed.error)
            if self.dead_letters is not None:
                self._failures.soon(lambda: self._give_up(delivery, failure))
            else:
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
