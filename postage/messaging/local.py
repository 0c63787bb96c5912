"""A ``MessageProcessor`` without a broker: what arrives is handed to it, and what becomes of that is told.

A processor meets its transport in two places only: its consumer, and the channel of a delivery, which settles it. Here
both are objects in memory. Everything between them, from the envelope to the outcome, is the processor's own.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, cast

import pika.spec

from postage import errors
from postage.amqp.deliveries import Delivery
from postage.amqp.topology import Binding, Queue, Topology
from postage.messaging.bindings import check_queue
from postage.messaging.consumer import GenericConsumer
from postage.messaging.exchanges import Exchange
from postage.messaging.messages import Message, MessageResult, result_from_body
from postage.messaging.processor import MessageProcessor
from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread, sleep

Answer = Callable[[bytes, str], object]
"""Sends an encoded answer of some content type back to whoever asked."""

Fate = Literal['ack', 'reject', 'requeue']

# What stands for the broker


class LocalChannel:
    """Stands for a consumer's channel: an inbox, and the news of what became of a delivery."""

    is_wanted = True
    has_stopped = False
    generation = 1
    prefetch = 1  # whoever hands over may wait for each acknowledgement

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.inbox: deque[LocalDelivery] = deque()
        self.consumers: dict[str, str] = {}
        self.notify: Callable[[], None] = _nothing
        self.error: errors.PostageError | None = None

    def settle(self, delivery: LocalDelivery, requeue: bool | None = None) -> None:
        """Note what became of a delivery. Any thread."""
        delivery.settled('ack' if requeue is None else 'requeue' if requeue else 'reject')
        self.notify()  # whoever drives the scheduler looks again


class LocalDelivery(Delivery):
    """A message as it was handed over.

    :param source: the broker's delivery, where there is one behind it
    :param answer: sends an answer back

    :ivar fate: what became of it; ``None`` so far
    :ivar failure: why it was given up, if it was
    :ivar done: set when it is known what becomes of it, or when it never will be
    :ivar answered: set when it was answered
    """

    __slots__ = ('_exchange', '_routing_key', 'answered', 'done', 'failure', 'fate')

    def __init__(
        self,
        channel: LocalChannel,
        body: bytes,
        properties: pika.spec.BasicProperties,
        source: Delivery | None,
        answer: Answer,
    ) -> None:
        self.channel = cast(Any, channel)
        self.generation = channel.generation
        self.body = body
        self.queue = source.queue if source is not None else 'local'
        self.delivery_tag = source.delivery_tag if source is not None else 1
        self.redelivered = source.redelivered if source is not None else False
        self.consumer_tag = source.consumer_tag if source is not None else ''
        self._exchange = source.exchange if source is not None else ''
        self._routing_key = source.routing_key if source is not None else ''
        self.receipts = None
        self.is_handled = False
        self._properties = _Properties.of(properties, self, answer)
        self.fate: Fate | None = None
        self.failure: Any = None
        self.done = threading.Event()
        self.answered = threading.Event()

    @property
    def exchange(self) -> str:
        """Name of the exchange it was published to; empty where there was none."""
        return self._exchange

    @property
    def routing_key(self) -> str:
        """The routing key it was published with; empty where there was none."""
        return self._routing_key

    @property
    def answerable(self) -> Any:
        """All of its properties, which know the way back."""
        return self._properties

    def settled(self, fate: Fate) -> None:
        """It is known what becomes of it. Any thread."""
        self.fate = fate
        self.done.set()


class _Properties(pika.spec.BasicProperties):
    """AMQP properties that know the way back."""

    answer: Answer
    delivery: LocalDelivery

    @classmethod
    def of(cls, properties: pika.spec.BasicProperties, delivery: LocalDelivery, answer: Answer) -> _Properties:
        own = copy.copy(properties)
        own.__class__ = cls
        own = cast(_Properties, own)
        own.delivery, own.answer = delivery, answer
        own.reply_to = own.reply_to or 'local'
        return own


class LocalConsumer(GenericConsumer):
    """Stands for a processor's consumer: it connects to nothing, and what it would declare it only remembers."""

    def __init__(self, eqk: Any = None, hup: Any = None, vhost: str | None = None) -> None:
        self.vhost = vhost
        self.encoder = self.encoder_class()
        self.local = LocalChannel(Topology())
        self._channel = cast(Any, self.local)
        self._topology = self.local.topology
        self._pace = None
        self._closed = False
        self.add_eqk(self.eqk if eqk is None else eqk)

    def __repr__(self) -> str:
        return f'<{type(self).__name__}>'

    @property
    def conn_broker(self) -> Any:
        """A connection that leads nowhere."""
        return _NoConnection

    @property
    def connections(self) -> list[Any]:
        """There is none."""
        return []

    @property
    def channel(self) -> Any:
        """There is none.

        :raises errors.ConfigurationError: always
        """
        raise errors.ConfigurationError('a processor that runs without a broker has no AMQP channel')

    def close(self) -> None:
        """Take nothing more."""
        self._closed = True

    def _bind(self, exchange: type[Exchange] | Exchange, queue: Queue, key: str) -> None:
        self._topology.exchanges.setdefault(exchange.name, exchange.parameters)
        self.expect(queue.name)
        self._topology.bindings.append(Binding(queue.name, exchange.name, key))

    def expect(self, queue: str) -> None:
        """Messages may come from this queue."""
        # Exclusive: what is to be handled once more waits in this process, there being no broker to wait in.
        self._topology.queues.setdefault(queue, Queue(queue, {'exclusive': True}))
        self.local.consumers.setdefault(queue, queue)

    def queue_declare(self, queue: Any, **flags: Any) -> None:
        """Messages may come from this queue."""
        self._check_open()
        self.expect(check_queue(queue, flags, 'queue_declare').name)

    def queue_unbind(self, exchange: type[Exchange] | Exchange, queue: Any, key: str) -> None:
        """Forget a binding."""
        name = queue['name'] if isinstance(queue, Mapping) else queue
        binding = Binding(name, exchange.name, key)
        if binding in self._topology.bindings:
            self._topology.bindings.remove(binding)

    def queue_leave(self, queue: Any) -> None:
        """Forget a queue."""
        self._topology.queues.pop(queue['name'] if isinstance(queue, Mapping) else queue, None)

    def begin(self, notify: Callable[[], None], at_once: int = 1) -> None:
        """Take what is in the inbox, and be told of what is to come."""
        self.local.has_stopped = False
        self.local.notify = notify
        notify()

    def end(self) -> None:
        """Undo :meth:`begin`."""
        self.local.has_stopped = True
        self.local.notify = _nothing

    def wind_down(self) -> None:
        """Nothing: whoever hands messages over stops doing so first."""

    def took(self, messages: int, seconds: float) -> None:
        """Nothing: nobody sends ahead."""

    def set_aside(self, change: int) -> None:
        """Nothing, for the same reason."""

    def rpc_reply(self, header: Any, message: Any) -> None:
        """Answer an RPC.

        :raises errors.EncodingError: the result cannot be encoded
        """
        if not isinstance(header, _Properties):
            raise errors.ConfigurationError(f'a request is answered with its own properties, not {header!r:.80}')
        if not isinstance(message, Message):
            message = MessageResult(message)
        header.answer(self.encode(message.body), self.encoder.content_type)
        header.delivery.answered.set()
        self.local.notify()  # whoever drives the scheduler looks again

    def prepare_replies(self) -> None:
        """Nothing: the way back is there."""

    def has_dead_letters(self, queue: str) -> bool:
        """What becomes of a rejected message is the transport's affair."""
        return True


class _NoConnection:
    settings = None


# The processor


def local_class(cls: type[MessageProcessor]) -> type[MessageProcessor]:
    """The same processor, with a consumer that connects to nothing."""
    consumer_class = type(cls.consumer_class.__name__, (LocalConsumer, cls.consumer_class), {})
    return type(cls.__name__, (_Local, cls), {'consumer_class': consumer_class, '__module__': cls.__module__})


class _Local(MessageProcessor):
    """What a processor does otherwise where there is no broker."""

    ends = False
    restart_requested = False

    def _conclude(self, delivery: Any, outcome: Any) -> None:
        # Said before the delivery is settled, so that whoever learns of that knows this, too.
        self.ends = self.ends or outcome.then is not None
        super()._conclude(delivery, outcome)

    def restart(self) -> None:
        """Leave that to whoever runs it, once the acknowledgement is out."""
        self.restart_requested = True
        raise ExitScheduler

    def _give_up(self, delivery: Any, failure: Any) -> None:
        delivery.failure = failure
        super()._give_up(delivery, failure)


class LocalRun:
    """A processor that runs, and is handed one message after the other, by one thread or by several.

    :param cls: the processor's class; the other arguments are those of its constructor
    :param threaded: run it in a thread of its own, so that its timers and other microthreads go on between messages;
        else in the threads that hand messages over, while they do
    :ivar processor: the processor
    """

    def __init__(
        self, cls: type[MessageProcessor], arguments: Sequence[Any], keywords: Mapping[str, Any], threaded: bool
    ) -> None:
        self.processor = local_class(cls)(*arguments, **keywords)
        self._original = cls
        self._channel = cast(LocalConsumer, self.processor.consumer).local
        self._scheduler = MicroScheduler()
        self._scheduler.add_microthread(self.processor)
        self._turns = self._scheduler.main()
        self._pending: set[LocalDelivery] = set()
        self._ended = False
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name='postage-component')
            self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it has ended, by a command for one, and takes no more."""
        return self._ended

    @property
    def restart_requested(self) -> bool:
        """Whether it has ended because it wants the program to be run again."""
        return bool(cast(_Local, self.processor).restart_requested)

    def restart(self) -> None:
        """Run the program again, as the processor would with a broker. Never returns."""
        self._original.restart(self.processor)

    def take(
        self,
        body: bytes,
        properties: pika.spec.BasicProperties,
        answer: Answer,
        source: Delivery | None = None,
        timeout: float | None = None,
    ) -> LocalDelivery:
        """Have a message handled. Blocks until it is known what becomes of it; its answer may come later.

        :param timeout: seconds; ``None`` for as long as it takes
        :raises errors.Closed: the processor has ended, before the message was settled
        :raises errors.HandlerTimeout: the time is over
        """
        delivery = LocalDelivery(self._channel, body, properties, source, answer)
        cast(LocalConsumer, self.processor.consumer).expect(delivery.queue)
        with self._lock:
            if self._ended or self._channel.has_stopped:
                raise errors.Closed(f'{self.processor!r} has ended, or stopped consuming') from self._failure
            self._pending.add(delivery)
        self._channel.inbox.append(delivery)
        self._channel.notify()
        if self._thread is None:
            self.drive(delivery.done, timeout)
        else:
            delivery.done.wait(timeout)
        self._pending.discard(delivery)
        if cast(_Local, self.processor).ends:
            self._end()
        if delivery.fate is None:
            if self._ended:
                raise errors.Closed(f'{self.processor!r} ended before it had handled {delivery!r}') from self._failure
            raise errors.HandlerTimeout(f'{delivery!r} was not handled within {timeout or 0:g} s')
        return delivery

    def _end(self) -> None:
        """The processor has said that it ends."""
        if self._thread is None:
            for _ in self._turns:
                pass
        self._has_ended()

    def drive(self, until: threading.Event, timeout: float | None) -> None:
        """Run the scheduler in this thread until something has happened, or for so many seconds."""
        bell = _Bell(timeout)
        if timeout is not None:
            self._scheduler.add_microthread(bell)
        while not until.is_set() and not bell.has_rung:
            try:
                next(self._turns)
            except StopIteration:
                self._has_ended()
                return
            except Exception as error:
                self._failure = error
                self._has_ended()
                return
        if timeout is not None:
            self._scheduler.interrupt(bell, StopIteration())

    def _run(self) -> None:
        try:
            for _ in self._turns:
                pass
        except Exception as error:  # the scheduler has logged it
            self._failure = error
        finally:
            self._has_ended()

    def _has_ended(self) -> None:
        with self._lock:
            self._ended = True
        for delivery in list(self._pending):
            delivery.done.set()

    def close(self) -> None:
        """End the processor. What it has not handled is lost to it. Blocks."""
        if self._thread is not None:
            self._scheduler.add_microthread(_Exit())
            self._thread.join()
        self._turns.close()
        self._has_ended()
        self.processor.close()


class LocalClient:
    """A processor that a test sends messages to, with neither a broker nor threads.

    Its handlers run while a message is sent, in the caller's thread; those that are coroutines or ``@Threaded`` where
    they always do.

    :ivar acked: the messages that were acknowledged, in this order
    :ivar rejected: those that were rejected
    :ivar replies: the answers to RPCs
    :ivar processor: the processor
    """

    def __init__(
        self, cls: type[MessageProcessor], arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> None:
        self.acked: list[Message] = []
        self.rejected: list[Message] = []
        self.replies: list[MessageResult] = []
        self._run = LocalRun(cls, arguments, keywords or {}, threaded=False)
        self.processor = self._run.processor

    @property
    def ended(self) -> Literal['quit', 'restart'] | None:
        """How a command has ended the processor, if one has; it takes no more messages then."""
        if not self._run.ended:
            return None
        return 'restart' if self._run.restart_requested else 'quit'

    def send(
        self, message: Message, headers: Mapping[str, Any] | None = None, timeout: float = 10.0
    ) -> MessageResult | None:
        """Have a message, or an RPC request, handled.

        :param headers: AMQP headers
        :param timeout: seconds that it may take, and its answer after that
        :return: the answer to an RPC; ``None`` where there was none, and for other messages
        :raises errors.HandlerTimeout: it was not handled in time
        :raises errors.Closed: the processor has ended
        """
        consumer, answers = self.processor.consumer, list[MessageResult]()

        def answer(data: bytes, content_type: str) -> None:
            answers.append(result_from_body(consumer.encoder.decode(data)))
            self.replies.append(answers[-1])

        properties = properties_of(headers=headers)
        delivery = self._run.take(consumer.encode(message.body), properties, answer, timeout=timeout)
        (self.acked if delivery.fate == 'ack' else self.rejected).append(message)
        if message.body['category'] == 'rpc':
            self._run.drive(delivery.answered, timeout)
        return answers[0] if answers else None

    def close(self) -> None:
        """End the processor. Does nothing the second time."""
        self._run.close()

    def __enter__(self) -> LocalClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Bell(MicroThread):
    """Rings after a while."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds or 0.0
        self.has_rung = False

    def main(self) -> Any:
        try:
            yield sleep(self._seconds)
        except StopIteration:
            return
        self.has_rung = True


class _Exit(MicroThread):
    def step(self) -> None:
        raise ExitScheduler


def properties_of(message_id: str = '', headers: Mapping[str, Any] | None = None) -> pika.spec.BasicProperties:
    """AMQP properties for a message that came without them."""
    properties: Any = pika.spec.BasicProperties(  # type: ignore[no-untyped-call]
        headers=dict(headers) if headers else None, message_id=message_id or None
    )
    return properties  # type: ignore[no-any-return]


def _nothing() -> None:
    """Nobody is to be told."""
