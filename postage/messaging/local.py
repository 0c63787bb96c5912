"""A ``MessageProcessor`` without a broker: what arrives is handed to it, and what becomes of that is told.

A processor meets its transport in two places only: its source, and the settler of a delivery (see
:mod:`postage.messaging.roles`). Here one object in memory is both. Everything between them is the processor's own.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from postage import errors
from postage.amqp.cutter import Content
from postage.amqp.deliveries import Delivery
from postage.amqp.frames import DEADLINE
from postage.amqp.topology import Binding, Queue, Topology
from postage.living import Living
from postage.messaging.declarations import check_eqk, check_queue
from postage.messaging.dispatching import Dispatcher
from postage.messaging.encoders import Encoding
from postage.messaging.exchanges import Exchange, check_exchange
from postage.messaging.messages import MessageResult
from postage.messaging.outcomes import Failure
from postage.messaging.properties import Properties
from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread
from postage.printable import shown, shown_half_built
from postage.settings import Hup

SendAnswer = Callable[[bytes, str], object]
"""Sends an encoded answer of some content type back to the sender of a message."""

# What stands for the broker


class LocalDelivery(Delivery):
    """A message as it was handed over.

    :param given: its properties
    :param source: the broker's delivery, where there is one behind it
    :param answer: sends an answer back

    :ivar fate: what became of it; ``None`` so far
    :ivar failure: why it was given up, if it was
    :ivar done: set when it is known what becomes of it, or when it never will be
    :ivar answered: set when it was answered
    """

    __slots__ = ('__weakref__', 'answer', 'answered', 'done', 'failure', 'fate')

    def __init__(
        self, settler: Any, body: bytes, given: Properties, source: Delivery | None, answer: SendAnswer
    ) -> None:
        content = Content()
        content.body = body
        content.exchange = source.exchange.encode() if source is not None else b''
        content.routing_key = source.routing_key.encode() if source is not None else b''
        content.delivery_tag = source.delivery_tag if source is not None else 1
        content.redelivered = source.redelivered if source is not None else False
        content.tag_or_text = source.consumer_tag.encode() if source is not None else b''
        super().__init__(settler, source.queue if source is not None else 'local', content)
        self._properties = copy.copy(given)
        self._properties.reply_to = given.reply_to or 'local'
        self.answer = answer
        self.fate: Literal['ack', 'reject', 'requeue'] | None = None
        self.failure: Failure | None = None
        self.done = threading.Event()
        self.answered = threading.Event()

    @property
    def answerable(self) -> Any:
        """Itself, which knows the way back."""
        return self

    salvaged = answerable

    @property
    def reply_to(self) -> str | None:
        """That of its properties."""
        return self.properties.reply_to  # type: ignore[no-any-return]

    @property
    def correlation_id(self) -> str | None:
        """That of its properties."""
        return self.properties.correlation_id  # type: ignore[no-any-return]

    @property
    def deadline(self) -> int | None:
        """That of its headers."""
        return self.headers.get(DEADLINE)


class LocalSource(Encoding):
    """Stands for a processor's consumer, and the channel of it: it connects to nothing.

    What it would declare it only remembers.
    """

    eqk: Any = ()
    prefetch_count = 0
    prefetch = 1  # each acknowledgement may be waited for
    generation = 1
    frame_max = 131_072
    is_open = is_wanted = True
    own_ack = on_stop = gate = reply_addresses = None

    def __init__(self, eqk: Any = None, hup: Hup | None = None, vhost: str | None = None) -> None:
        del hup  # it leads nowhere
        super().__init__()
        self.vhost = vhost
        self.topology = Topology()
        self.inbox: deque[LocalDelivery] = deque()
        self.is_stopped = False
        self._notify: Callable[[], None] = self._nothing
        self._given: Living[LocalDelivery] = Living()
        self.add_eqk(self.eqk if eqk is None else eqk)

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__}>'

    @property
    def delivery_source(self) -> LocalSource:
        """Itself."""
        return self

    reply_sender = delivery_source

    @property
    def conn_broker(self) -> Any:
        """There is no connection.

        :raises errors.ConfigurationError: always
        """
        raise errors.ConfigurationError('a processor that runs without a broker has no connection')

    channel = conn_broker

    @property
    def connections(self) -> list[Any]:
        """There is none."""
        return []

    def _nothing(self, *_: object) -> None:
        """There is nothing to do without a broker."""

    close = open = keep_retries = wind_down = drain = pause = resume = took = set_aside = _nothing

    # Queues

    def expect(self, queue: str) -> None:
        """Messages may come from this queue."""
        # Exclusive: what is to be handled once more waits in this process, there being no broker to wait in.
        self.topology.queues.setdefault(queue, Queue(queue, {'exclusive': True}))

    def add_eqk(self, eqk: Any) -> None:
        """Remember exchanges, queues and bindings."""
        for exchange, queue, key in check_eqk(eqk, 'eqk'):
            self.queue_bind(exchange, queue, key)

    def queue_bind(self, exchange: type[Exchange] | Exchange, queue: Any, key: str, **flags: Any) -> None:
        """Remember a binding."""
        exchange = check_exchange(exchange, 'queue_bind')
        self.topology.exchanges.setdefault(exchange.name, exchange.parameters)
        self.queue_declare(queue, **flags)
        self.topology.bindings.append(Binding(check_queue(queue, flags, 'queue_bind').name, exchange.name, key))

    def queue_declare(self, queue: Any, **flags: Any) -> None:
        """Remember a queue."""
        self.expect(check_queue(queue, flags, 'queue_declare').name)

    def queue_unbind(self, exchange: type[Exchange] | Exchange, queue: Any, key: str) -> None:
        """Forget a binding."""
        binding = Binding(check_queue(queue, {}, 'queue_unbind').name, exchange.name, key)
        with contextlib.suppress(ValueError):
            self.topology.bindings.remove(binding)

    def queue_leave(self, queue: Any) -> None:
        """Forget a queue."""
        self.topology.queues.pop(check_queue(queue, {}, 'queue_leave').name, None)

    def queues_reached(self, exchange: str, routing_key: str) -> list[str]:
        """Which of its queues a message would reach."""
        return self.topology.queues_reached(exchange, routing_key)

    # Deliveries: a processor's source

    def begin(self, notify: Callable[[], None], at_once: int = 1) -> None:
        """Have the processor told of what is in the inbox, and of what is to come."""
        self.is_stopped, self._notify = False, notify
        notify()

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits to be handled."""
        return not self.inbox

    def end(self) -> None:
        """Undo :meth:`begin`."""
        self.is_stopped, self._notify = True, self._nothing

    def give(self, delivery: LocalDelivery) -> None:
        """Put a delivery into the inbox."""
        self.expect(delivery.queue)
        self._given.add(delivery)
        self.inbox.append(delivery)
        self._notify()

    def next_delivery(self, now: float | None = None) -> LocalDelivery | None:
        """Take the oldest delivery out of the inbox."""
        try:
            return self.inbox.popleft()
        except IndexError:
            return None

    def is_delivery_of(self, delivery: Delivery) -> bool:
        """Whether it came from here."""
        return isinstance(delivery, LocalDelivery)

    # What becomes of them: their settler

    def settle(self, delivery: Delivery, requeue: bool | None = None) -> None:
        """Note what became of a delivery. Any thread."""
        assert isinstance(delivery, LocalDelivery)
        delivery.fate = 'ack' if requeue is None else 'requeue' if requeue else 'reject'
        delivery.done.set()
        self._notify()  # the thread that drives the scheduler looks again

    def give_up(self, delivery: Delivery, failure: Failure) -> None:
        """Note why a delivery was given up. What becomes of a rejected message is the transport's affair."""
        assert isinstance(delivery, LocalDelivery)
        delivery.failure = failure
        self.settle(delivery, requeue=False)

    def refused(self, header: Any, error: BaseException) -> None:
        """There is no broker that could refuse a reply."""

    def rpc_reply(self, header: Any, message: Any) -> None:
        """Answer an RPC.

        :param header: the properties of the request, or what it is answerable by
        :raises errors.EncodingError: the result cannot be encoded
        """
        delivery = header
        if not isinstance(header, LocalDelivery):
            delivery = next((delivery for delivery in self._given if delivery.properties is header), None)
        if delivery is None:
            raise errors.ConfigurationError(f'a request is answered with its own properties, not {shown(header)}')
        if not hasattr(message, 'body'):
            message = MessageResult(message)
        delivery.answer(self.encode(message.body), self.encoder.content_type)
        delivery.answered.set()
        self._notify()  # the thread that drives the scheduler looks again

    unsigned = rpc_reply


# The processor


class LocalRun:
    """A processor that runs, and is handed one message after the other, by one thread or by several.

    :param cls: the processor's class; the other arguments are those of its constructor
    :param threaded: run it in a thread of its own, so that its timers and other microthreads go on between messages;
        else in the threads that hand messages over, while they do
    :ivar processor: the processor
    :ivar ended: whether it has ended, by a command for one, and takes no more
    :ivar restart_requested: whether it has ended because it wants the program to be run again
    """

    def __init__(self, cls: Any, arguments: Sequence[Any], keywords: Mapping[str, Any], threaded: bool) -> None:
        self._original = cls
        consumer_class = cls.consumer_class
        source_class = type(
            consumer_class.__name__,
            (LocalSource,),
            {'encoder_class': consumer_class.encoder_class, 'eqk': consumer_class.eqk},
        )
        changes = {'consumer_class': source_class, 'restart': self._end_for_restart, '__module__': cls.__module__}
        self.processor: Any = type(cls.__name__, (cls,), changes)(*arguments, **keywords)
        self.source: LocalSource = self.processor.consumer
        self.ended = self.restart_requested = False
        self._dispatcher: Dispatcher = self.processor._dispatcher
        self._scheduler = MicroScheduler()
        self._scheduler.add_microthread(self.processor)
        self._turns = self._scheduler.main(block=True)
        self._pending: set[LocalDelivery] = set()
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name='postage-component')
            self._thread.start()

    def _end_for_restart(self, *_: object) -> None:
        """What the processor does in place of its own ``restart``: leave that to the owner of this run."""
        self.restart_requested = True
        raise ExitScheduler

    def restart(self) -> None:
        """Run the program again, as the processor would with a broker. Never returns."""
        self._original.restart(self.processor)

    def take(
        self,
        body: bytes,
        properties: Properties,
        answer: SendAnswer,
        source: Delivery | None = None,
        timeout: float | None = None,
    ) -> LocalDelivery:
        """Have a message handled. Blocks until it is known what becomes of it; its answer may come later.

        :param timeout: seconds; ``None`` for as long as it takes
        :raises errors.Closed: the processor has ended, before the message was settled
        :raises errors.HandlerTimeout: the time is over. Where no handler had begun, none will
        """
        delivery = LocalDelivery(self.source, body, properties, source, answer)
        with self._lock:
            if self.ended or self.source.is_stopped:
                raise errors.Closed(f'{self.processor!r} has ended, or stopped consuming') from self._failure
            self._pending.add(delivery)
        self.source.give(delivery)
        if self._thread is None:
            self.drive(delivery.done, timeout)
        else:
            delivery.done.wait(timeout)
        self._pending.discard(delivery)
        if not delivery.done.is_set():
            with contextlib.suppress(ValueError):  # a handler has begun
                self.source.inbox.remove(delivery)
        if self._dispatcher.ends_by is not None:
            if self._dispatcher.ends_by == 'end':  # of the processor: the loop goes on, for other microthreads
                self._scheduler.stop()
            if self._thread is None:
                for _ in self._turns:
                    pass
            self._has_ended()
        if delivery.fate is None:
            if self.ended:
                raise errors.Closed(f'{self.processor!r} ended before it had handled {delivery!r}') from self._failure
            raise errors.HandlerTimeout(f'{delivery!r} was not handled within {timeout or 0:g} s')
        return delivery

    def drive(self, until: threading.Event, timeout: float | None) -> None:
        """Run the scheduler in this thread until something has happened, or for so many seconds."""
        bell = _Bell()
        timer = None
        if timeout is not None:
            timer = self._scheduler.call_later(timeout, lambda: self._scheduler.add_microthread(bell))
        try:
            while not until.is_set() and not bell.has_rung:
                next(self._turns)
        except StopIteration:
            self._has_ended()
        except Exception as error:
            self._failure = error
            self._has_ended()
        if timer is not None:
            timer.cancel()

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
            self.ended = True
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


class _Bell(MicroThread):
    """Rings once; a microthread, for after its turn the scheduler gives control back."""

    has_rung = False

    def step(self) -> None:
        self.has_rung = True
        raise StopIteration


class _Exit(MicroThread):
    def step(self) -> None:
        raise ExitScheduler


def properties_of(message_id: str = '', headers: Mapping[str, Any] | None = None) -> Properties:
    """AMQP properties for a message that came without them."""
    return Properties(headers=dict(headers) if headers else None, message_id=message_id or None)  # type: ignore[no-untyped-call]
