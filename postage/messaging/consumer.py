"""Consumers: queues bound to exchanges, their deliveries, and the acknowledgement of these."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pika.spec

from postage import errors
from postage.amqp.control import BlockingAccess
from postage.amqp.deliveries import Delivery
from postage.amqp.steps import Steps
from postage.messaging.binding import QueueBinder
from postage.messaging.declarations import check_eqk, check_queue
from postage.messaging.outcomes import Failure
from postage.messaging.replies import Answering
from postage.messaging.source import DeliverySource
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
    :cvar accept_reply_to: where answers may go beside direct reply-to and queues whose names look generated: ``None``
        for exclusive queues; ``True`` for all; a pattern as for file names, a compiled regular expression, or a list of
        these; a method that gets the request, and returns ``True`` where an answer may go there; ``False`` for none
    :ivar delivery_source: its deliveries, as processors take them
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
        own_ack = self.ack if type(self).ack is not GenericConsumer.ack else None
        self.delivery_source = DeliverySource(self, self._signatures, own_ack)
        self._stop = threading.Event()
        self.on_stop: Callable[[], None] | None = None
        with self._connecting('consuming'):
            self.delivery_source.open()
            self.add_eqk(self.eqk)

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} of {", ".join(self.topology.queues) or "no queue"} on {self._settings}>'

    # Life

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
        if not self.delivery_source.channel.is_open:
            self._connection.add_channel(self.delivery_source.channel)
        return BlockingAccess(self.delivery_source.channel)

    # Consuming

    def _consume_steps(self, queue: str) -> Steps:
        if self.is_consuming:
            yield from self.delivery_source.channel.consumers.begin_steps(queue)

    def _leave_steps(self, queue: str) -> Steps:
        yield from self.delivery_source.channel.consumers.end_steps(queue)

    @property
    def is_consuming(self) -> bool:
        """Whether its channel is consuming, or will again as soon as there is a connection."""
        return self.delivery_source.channel.is_wanted and bool(self.delivery_source.channel.consumers.tags)

    def start_consuming(self, callback: Callable[[Any, Any, Any, bytes], object]) -> None:
        """Call ``callback(channel, method, header, body)`` for each delivery until :meth:`stop_consuming`.

        Blocks the thread it is called from, in which the callback runs. ``method`` is what :meth:`ack` and
        :meth:`reject` take, ``header`` the message's AMQP properties. The callback has to settle each message.

        :raises Exception: whatever the callback raises; what was prefetched goes back to the broker then
        :raises errors.BrokerError: what made it impossible to go on consuming
        """
        self._stop.clear()
        deliverable = threading.Event()
        self.delivery_source.begin(deliverable.set)
        try:
            while not self._stop.is_set():
                with self._connection.awaited():
                    deliverable.wait()
                deliverable.clear()
                while not self._stop.is_set() and (delivery := self.delivery_source.next_delivery()) is not None:
                    header = self._properties_of(delivery)
                    if header is not None:
                        began = time.monotonic()
                        callback(self.channel, delivery, header, delivery.body)
                        self.delivery_source.took(1, time.monotonic() - began)
        finally:
            self.delivery_source.end()

    def stop_consuming(self) -> None:
        """Have ``start_consuming`` return; what was prefetched goes back to the broker. Any thread, callbacks too.

        The consumer of a processor is not in :meth:`start_consuming`: there it is ``processor.pause()``, which blocks
        until the broker delivers no more, and ``processor.resume()`` goes on.
        """
        if self.on_stop is not None:
            self.on_stop()
        self._stop.set()
        self.delivery_source.channel.notify()

    def _properties_of(self, delivery: Delivery) -> pika.spec.BasicProperties | None:
        """The properties of a message that is to be handled; ``None`` where it is not, and has been seen to."""
        try:
            gate = self.delivery_source.gate
            if gate is None or gate.admits(delivery):
                return delivery.properties
        except errors.SignatureRefused as error:
            self.delivery_source.give_up(delivery, Failure('refused', error))
        except errors.DecodingError as error:
            logger.warning('%r is rejected: %s', delivery, error)
            self.reject(delivery, requeue=False)
        return None

    # What becomes of a delivery

    def ack(self, method: Any) -> None:
        """Acknowledge a message. Does not block; any thread.

        One that was delivered before its connection was lost is dropped, for the broker delivers it again.

        :param method: the ``method`` that the callback got
        """
        delivery = self._delivery(method)
        if self.delivery_source.gate is not None:
            self.delivery_source.gate.handled(delivery)
        delivery.channel.settle(delivery)

    def reject(self, method: Any, requeue: bool = False) -> None:
        """Reject a message: back into its queue, or to the queue's dead-letter exchange, if it has one.

        Does not block; any thread.

        :raises errors.ConfigurationError: ``requeue`` for a message of a stream, which takes none back
        """
        delivery = self._delivery(method)
        if requeue and delivery.position is not None:
            raise errors.ConfigurationError(f'{delivery!r} is of a stream, which takes no message back')
        if self.delivery_source.gate is not None:
            self.delivery_source.gate.failed(delivery)
        delivery.channel.settle(method, requeue=bool(requeue))

    def _delivery(self, method: Any) -> Delivery:
        if not isinstance(method, Delivery):
            raise errors.ConfigurationError(
                f'what is acknowledged is the method that start_consuming gave to its callback, not {shown(method)}; '
                'for anything else there is consumer.channel'
            )
        return method
