"""Consumers: queues bound to exchanges, their deliveries, and the acknowledgement of these."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pika.spec

from postage import errors, settings
from postage.amqp.connection import CLOSE_TIMEOUT
from postage.amqp.consuming import ConsumingChannel
from postage.amqp.control import BlockingAccess
from postage.amqp.deliveries import Delivery
from postage.amqp.steps import Steps
from postage.messaging.answering import Answering
from postage.messaging.binding import QueueBinder
from postage.messaging.declarations import check_eqk, check_queue
from postage.messaging.gate import gate_of
from postage.messaging.outcomes import Failure
from postage.messaging.pace import Prefetch
from postage.printable import shown, shown_half_built
from postage.secret import Secret
from postage.settings import Hup

logger = logging.getLogger('postage')


class GenericConsumer(QueueBinder, Answering):
    """Consumes from queues that are bound to exchanges.

    The constructor connects and declares the exchanges, queues and bindings of ``eqk``; nothing is delivered before
    ``start_consuming``. All consumers of a process share a connection, and each has a channel of its own.

    :param eqk: ``[(Exchange, [(queue, key), …]), …]``, by default, or where it is empty, the class's; a queue is a
        name, or ``{'name': …, 'flags': {…}}`` with the flags of ``queue_declare``
    :param hup: which broker: ``{'host': …, 'user': …, 'password': …}``, or an AMQP URL
    :param vhost: which virtual host of it
    :raises errors.ConfigurationError: ``eqk`` or a setting has the wrong shape
    :raises errors.BrokerUnavailable: after ``POSTAGE_CONNECT_TIMEOUT`` seconds
    :raises errors.AuthenticationFailed: at once
    :raises errors.VirtualHostRefused: at once
    :raises errors.DeclarationMismatch: an exchange, or a queue whose flags are spelled out, exists with others

    :cvar encoder_class: has ``encode``, ``decode`` and ``content_type``
    :cvar durable_queues: whether queues without a ``durable`` flag are durable; ``False`` is what Postage 1 did
    :cvar prefetch_count: messages that the broker sends ahead of their acknowledgement, 0 for any number; ``None``
        has it follow the handlers: many while they are quick, one while they are slow
    :cvar signing_keys: what messages have to be signed with, and replies are; ``None`` for what the environment says
    :cvar max_age: seconds that a signature may be old; retries and replays are exempt
    :cvar signed_for: where else messages may have been sent first: pairs ``(Exchange, pattern of routing keys)``, or
        ``True`` for anywhere
    :ivar on_stop: what :meth:`stop_consuming` does where a processor consumes; that sets it
    """

    eqk: Any = ()
    prefetch_count: int | None = None
    max_age: float | None = None
    signed_for: Any = None

    def __init__(self, eqk: Any = None, hup: Hup | None = None, vhost: str | None = None) -> None:
        hup = Secret.of(hup)
        where = f'{type(self).__name__}.eqk'
        if eqk is not None and (not isinstance(eqk, Sequence) or len(eqk)):
            self.eqk, where = eqk, 'eqk'
        for _, queue, _ in check_eqk(self.eqk, where):
            check_queue(queue, {}, where)
        super().__init__(hup, vhost)
        self.gate = gate_of(self, self._signatures, self._take_again) if self._signatures is not None else None
        self.own_ack: Callable[[Any], None] | None = self.ack if type(self).ack is not GenericConsumer.ack else None
        if self.gate is not None:
            self.own_ack = self._ack_handled
        self._stop = threading.Event()
        self._prefetch = Prefetch(self.prefetch_count, f'{type(self).__name__}.prefetch_count')
        self._queues_warned: set[str] = set()
        # A message that the broker has wait comes back without a voucher.
        self._lets_broker_retry = self.gate is None or self.max_age is None
        self.on_stop: Callable[[], None] | None = None
        with self._connecting('consuming'):
            self._channel = self._new_channel()
            self.add_eqk(self.eqk)

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} of {", ".join(self._topology.queues) or "no queue"} on {self._settings}>'

    # Life

    def _new_channel(self) -> ConsumingChannel:
        channel = ConsumingChannel(self._connection, self._topology, self._prefetch.count)
        channel.consumers.origins.lets_broker_retry = self._lets_broker_retry
        return channel

    def close(self) -> None:
        """Stop consuming and give the connection back; the last to do so closes it. Blocks."""
        if self._closed:
            return
        self.on_stop = None  # it stops for good
        self.stop_consuming()
        self._give_back()

    @property
    def channel(self) -> BlockingAccess:
        """pika's methods of the delivering channel, blocking. An error on it has its messages delivered again."""
        if not self._channel.is_open:
            self._connection.add_channel(self._channel)
        return BlockingAccess(self._channel, self._connection)

    # Consuming

    def _consume_steps(self, queue: str) -> Steps:
        if self.is_consuming:
            yield from self._channel.consumers.begin_steps(queue)

    def _leave_steps(self, queue: str) -> Steps:
        yield from self._channel.consumers.end_steps(queue)

    @property
    def is_consuming(self) -> bool:
        """Whether its channel is consuming, or will again as soon as there is a connection."""
        return self._channel.is_wanted and bool(self._channel.consumers.tags)

    def start_consuming(self, callback: Callable[[Any, Any, Any, bytes], object]) -> None:
        """Call ``callback(channel, method, header, body)`` for each delivery until :meth:`stop_consuming`.

        Blocks the thread it is called from, in which the callback runs. ``method`` is what :meth:`ack` and
        :meth:`reject` take, ``header`` the message's AMQP properties. The callback has to settle each message.

        :raises Exception: whatever the callback raises; what was prefetched goes back to the broker then
        :raises errors.BrokerError: what made it impossible to go on consuming
        """
        self._stop.clear()
        deliverable = threading.Event()
        self.begin(deliverable.set)
        try:
            while not self._stop.is_set():
                with self._connection.awaited():
                    deliverable.wait()
                deliverable.clear()
                while not self._stop.is_set() and (delivery := self.next_delivery()) is not None:
                    header = self._properties_of(delivery)
                    if header is not None:
                        began = time.monotonic()
                        callback(self.channel, delivery, header, delivery.body)
                        self.took(1, time.monotonic() - began)
        finally:
            self.end()

    def stop_consuming(self) -> None:
        """Have ``start_consuming`` return; what was prefetched goes back to the broker. Any thread, callbacks too.

        The consumer of a processor is not in :meth:`start_consuming`: there it is ``processor.pause()``, which blocks
        until the broker delivers no more, and ``processor.resume()`` goes on.
        """
        if self.on_stop is not None:
            self.on_stop()
        self._stop.set()
        self._channel.notify()

    def begin(self, notify: Callable[[], None], at_once: int = 1) -> None:
        """Have the broker deliver into the inbox; a processor's way of consuming. Blocks until it does.

        :param notify: called on the connection's thread, and must not block, when there are deliveries
        :param at_once: how many messages are handled at the same time; no fewer are prefetched
        """
        self._check_open()
        if not self._channel.is_wanted:
            self._channel = self._new_channel()
        channel = self._channel
        if self.gate is not None:
            self.gate.begin()
        # To end and begin anew would make another consumer of such a queue the active one, and have a stream deliver
        # again what is in hand.
        queues = self._topology.queues.values()
        arguments = [queue.flags.get('arguments') or {} for queue in queues]
        is_stream = any(queue.position is not None for queue in queues)
        is_fixed = is_stream or any(known.get('x-single-active-consumer') for known in arguments)
        consumers = channel.consumers
        consumers.prefetch = self._prefetch.begin(
            at_once, is_fixed, lambda: self._connection.tell(consumers.resize_steps)
        )
        if is_stream and not consumers.prefetch:
            raise errors.ConfigurationError(f'{type(self).__name__}.prefetch_count is 0; a stream has to have a limit')
        consumers.wish = lambda: self._prefetch.count
        if self._prefetch.pace is not None:
            channel.watch_with(self._prefetch.pace.is_stuck, self._prefetch.slow_down)
        channel.notify = notify
        try:
            self._connection.ask(lambda: self._consume_all_steps(channel))
            self._connection.add_channel(channel)
        except BaseException:
            channel.is_wanted = False  # at once, for the next start may come before the I/O thread closes it
            self._connection.tell(lambda: self._connection.detach(channel))  # so that it takes no message later
            raise

    def _consume_all_steps(self, channel: ConsumingChannel) -> Steps:
        queues = list(self._topology.queues)
        for queue in queues:  # first all, for one that is missing would have the others deliver in vain
            doing = f'find queue {queue!r}'
            yield self._connection.control.operate('queue_declare', doing, queue=queue, passive=True)
        for queue in queues:
            yield from channel.consumers.begin_steps(queue)

    def pause(self) -> None:
        """Have nothing delivered any more; what is not begun goes back. Blocks; any thread but an I/O thread.

        Without a connection it holds for the next one.

        :raises errors.BrokerError: the broker has not answered in time
        """
        self._connection.ask(self._channel.consumers.pause_steps, CLOSE_TIMEOUT, when_open=False)

    def resume(self) -> None:
        """Undo :meth:`pause`. Blocks until the broker delivers again; any thread but an I/O thread.

        :raises errors.BrokerError: it cannot be consumed again, or there was no connection for a minute
        """
        channel = self._channel
        self._connection.ask(lambda: self._consume_all_steps(channel))

    def end(self) -> None:
        """Undo :meth:`begin`: cancel its consumers, and hand what was not settled back to the broker. Blocks."""
        self._connection.remove_channel(self._channel)
        self._channel.inbox.clear()

    def next_delivery(self) -> Delivery | None:
        """Take the oldest delivery out of the inbox, if there is one. For the one thread that consumes.

        :raises errors.BrokerError: what made it impossible to go on consuming
        """
        channel = self._channel
        delivery = None
        if channel.inbox:
            try:
                delivery = channel.inbox.popleft()
            except IndexError:
                pass  # it has been handed back in that very moment
            else:
                pace = self._prefetch.pace
                if pace is not None:
                    pace.taken_at = time.monotonic()
                    pace.bytes_taken += len(delivery.body)
        if delivery is None:
            if channel.error is not None:
                raise channel.error
        elif settings.is_debugging:
            logger.debug('%s: delivered %r: %r', type(self).__name__, delivery, delivery.body)
        return delivery

    def took(self, messages: int, seconds: float) -> None:
        """Say how long it took to handle so many messages, for the prefetch count to follow. Cheap, never blocks."""
        prefetch = self._prefetch
        if prefetch.pace is not None and prefetch.pace.observe(messages, seconds):
            prefetch.resize()

    def keep_retries(self) -> None:
        """Leave no retries to the broker, whatever its queues say: it would count them among all deliveries in vain."""
        self._channel.consumers.origins.lets_broker_retry = self._lets_broker_retry = False

    def set_aside(self, change: int) -> None:
        """Say that one message more, or less, stays unacknowledged while others of its queue are to be delivered.

        Never blocks; for the thread that consumes.

        :param change: 1 or -1
        """
        self._prefetch.set_aside(change)

    def wind_down(self) -> None:
        """Take nothing more: cancel the consumers, and hand what waits in the inbox back. Does not block."""
        channel = self._channel
        for queue in list(channel.consumers.tags):
            self._connection.tell(functools.partial(channel.consumers.end_steps, queue))
        while (delivery := self.next_delivery()) is not None:
            channel.hand_back(delivery)

    def drain(self) -> None:
        """Have the broker deliver no more, and keep what waits in the inbox. Does not block."""
        self._connection.tell(self._channel.drain_steps)

    @property
    def is_drained(self) -> bool:
        """Whether that is done, and the inbox is empty."""
        return self._channel.is_drained and not self._channel.inbox

    def queues_reached(self, exchange: str, routing_key: str) -> list[str]:
        """Which of the queues it consumes from a message would reach, as far as its own bindings tell."""
        reached = self._topology.queues_reached(exchange, routing_key)
        return [queue for queue in reached if queue in self._channel.consumers.tags]

    def is_delivery_of(self, delivery: Delivery) -> bool:
        """Whether that was delivered to the channel that is consuming now."""
        return delivery.channel is self._channel

    def _properties_of(self, delivery: Delivery) -> pika.spec.BasicProperties | None:
        """The properties of a message that is to be handled; ``None`` where it is not, and has been seen to."""
        try:
            if self.gate is None or self.gate.admits(delivery):
                return delivery.properties
        except errors.SignatureRefused as error:
            self.give_up(delivery, Failure('refused', error))
        except errors.DecodingError as error:
            logger.warning('%r is rejected: %s', delivery, error)
            self.reject(delivery, requeue=False)
        return None

    def _take_again(self, delivery: Delivery) -> None:
        """Put a delivery back into the inbox, unless it is the broker's again."""
        channel = self._channel
        if delivery.channel is channel and delivery.generation == channel.generation:
            channel.inbox.appendleft(delivery)
            channel.notify()

    # What becomes of a delivery

    def _ack_handled(self, method: Any) -> None:
        assert self.gate is not None
        self.gate.handled(method)  # here, too: a subclass may acknowledge in a way of its own
        self.ack(method)

    def ack(self, method: Any) -> None:
        """Acknowledge a message. Does not block; any thread.

        One that was delivered before its connection was lost is dropped, for the broker delivers it again.

        :param method: the ``method`` that the callback got
        """
        delivery = self._delivery(method)
        if self.gate is not None:
            self.gate.handled(delivery)
        delivery.channel.settle(delivery)

    def reject(self, method: Any, requeue: bool = False) -> None:
        """Reject a message: back into its queue, or to the queue's dead-letter exchange, if it has one.

        Does not block; any thread.

        :raises errors.ConfigurationError: ``requeue`` for a message of a stream, which takes none back
        """
        delivery = self._delivery(method)
        if requeue and delivery.position is not None:
            raise errors.ConfigurationError(f'{delivery!r} is of a stream, which takes no message back')
        if self.gate is not None:
            self.gate.failed(delivery)
        delivery.channel.settle(method, requeue=bool(requeue))

    def give_up(self, delivery: Delivery, failure: Failure) -> None:
        """Reject a message for good, with a warning where that loses it. Does not block; any thread.

        :param failure: why
        """
        self.reject(delivery, requeue=False)
        queue = self._topology.queues.get(delivery.queue)
        is_kept = delivery.position is not None  # in its stream
        has_dead_letters = queue is not None and 'x-dead-letter-exchange' in (queue.flags.get('arguments') or {})
        if not is_kept and not has_dead_letters and delivery.queue not in self._queues_warned:
            self._queues_warned.add(delivery.queue)
            logger.warning(
                'a message rejected from queue %r is lost: the queue was declared without x-dead-letter-exchange '
                '(said once)',
                delivery.queue,
            )

    def _delivery(self, method: Any) -> Delivery:
        if not isinstance(method, Delivery):
            raise errors.ConfigurationError(
                f'what is acknowledged is the method that start_consuming gave to its callback, not {shown(method)}; '
                'for anything else there is consumer.channel'
            )
        return method
