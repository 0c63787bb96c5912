"""Processors: microthreads that consume messages and have them handled."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Generator
from sys import modules
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from postage import errors
from postage.amqp.deliveries import Delivery, current
from postage.amqp.registry import close_all, flush_all
from postage.amqp.threads import Batch
from postage.amqp.turns import alarm_of_thread
from postage.messaging import cancelling, deadlocks, tracing
from postage.messaging.commands import authorise, check_decision, slow_down_restarts
from postage.messaging.consumer import GenericConsumer
from postage.messaging.control import Control
from postage.messaging.counting import Figures
from postage.messaging.dispatching import Dispatcher
from postage.messaging.fingerprint import as_fingerprint_dict
from postage.messaging.gate import check_elsewhere, check_max_age
from postage.messaging.handler_checks import check_hooks
from postage.messaging.handlers import HandlerTable, MessageHandler, check_timeout
from postage.messaging.health import counted, watched
from postage.messaging.hooks import MessageContext, State, between
from postage.messaging.keys import keys_of
from postage.messaging.letters import DeadLetterStore
from postage.messaging.outcomes import AckAndRestart
from postage.messaging.reply_addresses import check_accepted
from postage.microthreads import ExitScheduler, MicroThread, Signal, Timer, running_scheduler
from postage.printable import shown, shown_half_built
from postage.secret import Secret, revealed
from postage.settings import Hup, clock_tolerance

if TYPE_CHECKING:
    from postage.messaging.local_client import LocalClient

SLICE_MESSAGES = 64  # messages handled before other microthreads get their turn

SLICE_SECONDS = 0.002  # the same in time; one slow handler is a turn of its own

_OF_CONSUMER = ('signing_keys', 'max_age', 'signed_for', 'accept_reply_to')
"""Settings of a consumer that its processor may have in their place."""

P = TypeVar('P', bound='MessageProcessor')


def current_delivery() -> Delivery | None:
    """The delivery whose handler is running: exchange, routing key, queue, properties, headers, redelivered.

    ``None`` outside handlers. Never blocks.
    """
    return current.get()


def delivery() -> Delivery:
    """The delivery whose handler is running, for code that runs in handlers only. Never blocks.

    :raises errors.NoDelivery: it is called outside of a handler
    """
    found = current.get()
    if found is None:
        raise errors.NoDelivery('no handler is running here; current_delivery() is None in that case')
    return found


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
    :cvar remote_commands: whether ``quit``, ``restart`` and the commands about groups of a ``GenericApplication`` are
        obeyed: ``True``, ``False``, or a method that gets the delivery and returns ``True`` where they are
    :cvar signing_keys: as that of a consumer, in whose place it counts where it is set; so do the next three
    :cvar max_age: seconds that a signature may be old
    :cvar signed_for: where else messages may have been sent first
    :cvar accept_reply_to: where else answers may go, as that of a consumer; a method gets the delivery
    :cvar control: whether it answers questions and commands on :class:`ControlExchange`, as ``postage ps`` and its kin
        send them, beside its handlers: see :mod:`postage.messaging.control`
    :cvar version: what it calls its own version there
    :ivar consumer: the consumer it reads from
    :ivar fingerprint: its fingerprint, as a dictionary
    :ivar state: what its hooks and handlers keep
    """

    consumer_class: ClassVar[type[GenericConsumer]] = GenericConsumer
    concurrency: int = 1
    timeout: float | None = None
    dead_letters: DeadLetterStore | None = None
    max_deliveries: int | None = None
    remote_commands: Any = True
    signing_keys: Any = None
    max_age: float | None = None
    signed_for: Any = None
    accept_reply_to: Any = None
    control: bool = False
    version: str | None = None

    def __init__(
        self, fingerprint: Any = None, eqk: Any = None, hup: Hup | None = None, vhost: str | None = None
    ) -> None:
        hup = Secret.of(hup)
        self.fingerprint: dict[str, Any] = as_fingerprint_dict(fingerprint)
        self.state: Any = State()
        _check_settings(self)
        self._deliverable = Signal()
        self._may_have_more = True
        self._timers: list[tuple[float, Callable[[], object]]] = []
        table = HandlerTable(self)  # a fault in it is told before anything is connected
        check_hooks(self)
        self.consumer = self._consumer_class()(eqk, revealed(hup), vhost)  # a class of the user's may look at it
        if self.max_deliveries is not None:
            self.consumer.delivery_source.keep_retries()
        self._answers = table.answers
        if self._answers:
            self.consumer.reply_sender.open()
        own, base = type(self), MessageProcessor
        has_hooks = (own.before_handling, own.after_handling) != (base.before_handling, base.after_handling)
        hooks = (self.before_handling, self.after_handling) if has_hooks else None
        self._dispatcher = Dispatcher(self, self.consumer, table, hooks, self._deliverable.set)
        self.consumer.on_stop = self.pause
        self._control = Control(self, table, self._dispatcher, self.consumer, hup, vhost) if self.control else None

    def _consumer_class(self) -> type[GenericConsumer]:
        """What makes the consumer, with what this class says in its place.

        Where deliveries are counted, it fetches no message which has to wait.
        """
        consumer_class = self.consumer_class
        changes = {name: getattr(self, name) for name in _OF_CONSUMER if getattr(self, name) is not None}
        if self.max_deliveries is not None and consumer_class.prefetch_count is None:
            changes['prefetch_count'] = self.concurrency
        return type(consumer_class.__name__, (consumer_class,), changes) if changes else consumer_class

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.fingerprint.get("name") or ""} {self.consumer!r}>'

    # Life

    def main(self) -> Generator[Any, Any, Any]:
        """Consume until the scheduler ends; then hand back to the broker what was not handled."""
        if self.scheduler is not None:
            self.scheduler.at_end(flush_all)
            while self._timers:
                self.scheduler.call_later(*self._timers.pop(0))
        with between((self.before_processing,), (self.after_processing,)):
            self.start_consuming()
            watched.add(self._dispatcher)
            counted.add(self)
            try:
                yield None  # all others begin to consume before the first message, which may take long
                while self._dispatcher.ends_by != 'end':
                    self._may_have_more = True
                    try:
                        more = self.step()
                    except StopIteration:
                        return
                    if more is not True and more is not False and isinstance(more, Generator):  # a user's own step
                        more = yield from more
                    if more is None:  # an overridden step() need not hand on what super().step() returned
                        more = self._may_have_more
                    yield None if more else self._deliverable
            finally:
                watched.discard(self._dispatcher)
                deadlocks.forget(self.scheduler, self.consumer.delivery_source.queues_reached)
                self._end_control()
                self._dispatcher.stop_now()

    def step(self) -> Any:
        """Begin to handle some of the messages that have arrived. Returns whether there may be more to begin."""
        dispatcher = self._dispatcher
        if dispatcher.unsettled.work:
            dispatcher.unsettled.work_off()
        began = now = monotonic()
        if now >= dispatcher.figures.next_mark:
            dispatcher.figures.mark(now)
        in_hand, taken, more = dispatcher.in_hand, 0, True
        source = self.consumer.delivery_source
        take: Callable[[Delivery], None] = dispatcher.take
        if tracing.NEEDED in modules:
            take = tracing.taker(take, self.consumer.connections)
        with Batch():
            while taken < SLICE_MESSAGES and now - began < SLICE_SECONDS:
                delivery = None
                if dispatcher.in_hand < self.concurrency and not (dispatcher.is_winding_down or dispatcher.is_paused):
                    delivery = source.next_delivery(now)
                if delivery is None:
                    more = False
                    break
                take(delivery)
                taken += 1
                now = dispatcher.ended_at if dispatcher.ended_at > now else monotonic()
        # Those that have only begun say themselves how long they took.
        source.took(taken - (dispatcher.in_hand - in_hand), now - began)
        self._may_have_more = more
        return more

    def start_consuming(self) -> None:
        """Have the broker deliver. Called when the scheduler starts it; blocks until the broker has agreed."""
        self._dispatcher.start()
        self.consumer.delivery_source.begin(self._deliverable.set, self.concurrency)
        if self._dispatcher.is_paused:
            self.consumer.delivery_source.pause()
        if self._control is not None:
            self._control.begin()
        self._listen_for_cancels()
        connections = self.consumer.connections
        if self.scheduler is None or self.scheduler is not running_scheduler() or not connections:
            return
        deadlocks.remember(self.scheduler, connections[0].settings, self.consumer.delivery_source.queues_reached)
        alarm = alarm_of_thread()
        if alarm is not None:
            for connection in connections:
                alarm.add(connection.readership)
            self.scheduler.sleep_by(alarm)

    def pause(self) -> None:
        """Begin with no more messages until :meth:`resume`; those that are fetched and not begun go back to the broker.

        What is in hand goes on, and is settled. Timers and other microthreads go on, too. A queue that deletes itself
        keeps its consumer, so some of its messages wait here. Before the processor runs: it begins paused. Any thread,
        handlers included; blocks until the broker delivers no more.

        :raises errors.BrokerError: the broker has not answered; nothing is begun all the same
        """
        self._dispatcher.is_paused = True
        self.consumer.delivery_source.pause()

    def resume(self) -> None:
        """Undo :meth:`pause`. Any thread; blocks until the broker delivers again.

        :raises errors.BrokerError: it cannot be consumed again, or there was no connection for a minute
        """
        was_paused, self._dispatcher.is_paused = self._dispatcher.is_paused, False
        if was_paused:
            self.consumer.delivery_source.resume()
            self._deliverable.set()

    @property
    def is_paused(self) -> bool:
        """Whether it begins with no messages at present, because of :meth:`pause`."""
        return self._dispatcher.is_paused

    @property
    def figures(self) -> Figures:
        """What is counted of its messages, to be read from any thread."""
        return self._dispatcher.figures

    @property
    def is_busy(self) -> bool:
        """Whether messages are being handled, or wait for their acknowledgement."""
        return self._dispatcher.is_busy

    def wind_down(self) -> None:
        """Begin with no more messages; those in the inbox go back to the broker. Does not block."""
        self._dispatcher.wind_down()

    def drain(self) -> None:
        """Have the broker deliver no more, and handle what it has delivered. Does not block.

        A scheduler that is told to ``stop()`` then ends once all of that is handled, and nothing goes back to be
        delivered again. In the scheduler's thread.
        """
        self._dispatcher.drain()

    def stop_consuming(self) -> None:
        """Stop consuming; what was prefetched goes back to the broker. :meth:`start_consuming` goes on again.

        In a handler of its own it takes effect when that message has been settled. Blocks until what handlers
        published is confirmed, for 10 seconds at most.
        """
        self._dispatcher.stop()

    def close(self) -> None:
        """Stop consuming and give the connections back. Blocks."""
        self._end_control()
        self._dispatcher.close()
        self.consumer.close()

    def _end_control(self) -> None:
        if self._control is not None:
            self._control.end()

    def add_eqk(self, eqk: Any) -> None:
        """Declare and consume from more queues. Blocks."""
        self.consumer.add_eqk(eqk)
        self._listen_for_cancels()

    def _listen_for_cancels(self) -> None:
        if self._answers:
            for connection in self.consumer.connections[:1]:
                cancelling.listen(connection, self.consumer.topology)

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

    def restart(self) -> None:
        """Send what is pending, close the connections and run the same program again, in this process. Never returns.

        Interpreter flags, ``-m`` and arguments stay as they were.
        """
        for microthread in self.scheduler.microthreads if self.scheduler is not None else [self]:
            if isinstance(microthread, MessageProcessor):
                microthread._dispatcher.stop_now()
        close_all()
        slow_down_restarts()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os.execv(sys.executable, sys.orig_argv)

    # Default handlers

    @MessageHandler('command', 'quit')
    def msg_quit(self, content: dict[str, Any]) -> None:
        """End the scheduler's loop."""
        self.authorise('quit')
        raise ExitScheduler

    @MessageHandler('command', 'restart')
    def msg_restart(self, content: dict[str, Any]) -> None:
        """Run the program again."""
        self.authorise('restart')
        raise AckAndRestart

    def authorise(self, command: str) -> None:
        """See whether a command is to be obeyed, by :attr:`remote_commands`, and log that. For its handler.

        :param command: its name
        :raises FilterError: it is not; the message is dropped
        """
        # Not consumer.decode, which a program may have overridden to count its messages.
        authorise(command, self.remote_commands, self.consumer.encoder.decode)

    # Hooks, to be overridden

    def before_processing(self) -> None:
        """Called before it consumes. An exception ends this microthread."""

    def after_processing(self) -> None:
        """Called when it has stopped consuming because its scheduler ends, however that came."""

    def before_handling(self, handling: MessageContext) -> None:
        """Called before the handlers of each message. An exception fails the message, and its handlers do not run."""

    def after_handling(self, handling: MessageContext) -> None:
        """Called after the handlers of each message, whatever they raised. An exception fails the message."""

    # Without a broker

    @classmethod
    def test_client(cls: type[P], *arguments: Any, **keywords: Any) -> LocalClient[P]:
        """A processor of this class that a test sends messages and RPCs to, with neither a broker nor threads.

        ::

            with EchoProcessor.test_client(fingerprint) as client:
                assert client.send(messaging.RpcCommand('echo', 1)).body['content']['value'] == 1

        The arguments are those of the constructor.
        """
        from postage.messaging.local_client import LocalClient

        return LocalClient(cls, arguments, keywords)


def _check_settings(processor: MessageProcessor) -> None:
    """See that what a class of processors says of itself makes sense.

    :raises errors.ConfigurationError: it does not
    """
    name = type(processor).__name__
    if processor.timeout is not None:
        check_timeout(f'{name}.timeout', processor.timeout)
    at_once = processor.concurrency
    if not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1:
        raise errors.ConfigurationError(f'{name}.concurrency must be 1 or more, not {shown(at_once)}')
    check_decision(f'{name}.remote_commands', processor.remote_commands)
    keys_of(f'{name}.signing_keys', processor.signing_keys)
    check_max_age(f'{name}.max_age', processor.max_age)
    check_elsewhere(f'{name}.signed_for', processor.signed_for)
    check_accepted(f'{name}.accept_reply_to', processor.accept_reply_to)
    clock_tolerance()
    most = processor.max_deliveries
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise errors.ConfigurationError(f'{name}.max_deliveries must be 1 or more, or None, not {shown(most)}')
    if processor.dead_letters is not None and not callable(getattr(processor.dead_letters, 'put', None)):
        raise errors.ConfigurationError(
            f'{name}.dead_letters must be a store, which has put(letter), or None, not {shown(processor.dead_letters)}'
        )
