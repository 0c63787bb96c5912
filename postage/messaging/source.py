"""The deliveries of a consumer, taken one by one: what processors and ``start_consuming()`` stand on.

It is apart from :class:`GenericConsumer`, so that a class derived from that meets none of these names.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from postage import errors, settings
from postage.amqp.connection import CLOSE_TIMEOUT, Connection
from postage.amqp.consuming import ConsumingChannel
from postage.amqp.deliveries import Delivery
from postage.amqp.steps import Steps
from postage.amqp.topology import Topology
from postage.messaging.gate import Gate, check_elsewhere, check_max_age
from postage.messaging.outcomes import Failure
from postage.messaging.pace import Prefetch
from postage.messaging.signing import Signatures

logger = logging.getLogger('postage')


class Consuming(Protocol):
    """A consumer, as the source of its deliveries sees it."""

    max_age: float | None
    prefetch_count: int | None
    signed_for: Any

    @property
    def conn_broker(self) -> Connection: ...
    @property
    def topology(self) -> Topology: ...
    def ack(self, method: Any) -> None: ...
    def reject(self, method: Any, requeue: bool = False) -> None: ...
    def _check_open(self) -> None: ...


class DeliverySource:
    """Has the broker deliver into an inbox, and hands out what is in there, oldest first.

    :param consumer: whose deliveries they are
    :param signatures: verify them, where they have to be signed
    :param own_ack: acknowledges one, where the consumer has a way of its own
    :raises errors.ConfigurationError: a setting of the consumer has the wrong shape

    :ivar gate: lets deliveries through, where they have to be signed
    :ivar own_ack: acknowledges one that was handled, where there is more to it than to settle it
    :ivar channel: the channel that delivers; after :meth:`end` the next :meth:`begin` makes another one
    """

    channel: ConsumingChannel

    def __init__(
        self, consumer: Consuming, signatures: Signatures | None, own_ack: Callable[[Any], None] | None
    ) -> None:
        self._consumer = consumer
        self._label = type(consumer).__name__
        self._prefetch = Prefetch(consumer.prefetch_count, f'{self._label}.prefetch_count')
        self.gate: Gate | None = None
        if signatures is not None:
            max_age = check_max_age(f'{self._label}.max_age', consumer.max_age)
            elsewhere = check_elsewhere(f'{self._label}.signed_for', consumer.signed_for)
            self.gate = Gate(signatures, max_age, elsewhere, consumer.topology, self._take_again)
        self.own_ack = own_ack if self.gate is None else self._ack_handled
        # A message that the broker has wait comes back without a voucher.
        self._lets_broker_retry = self.gate is None or consumer.max_age is None
        self._queues_warned: set[str] = set()

    def open(self) -> None:
        """Its consumer has connected. Does not block."""
        self._connection, self._topology = self._consumer.conn_broker, self._consumer.topology
        self.channel = self._new_channel()

    def _new_channel(self) -> ConsumingChannel:
        channel = ConsumingChannel(self._connection, self._topology, self._prefetch.count)
        channel.consumers.origins.lets_broker_retry = self._lets_broker_retry
        return channel

    def begin(self, notify: Callable[[], None], at_once: int = 1) -> None:
        """Have the broker deliver into the inbox; a processor's way of consuming. Blocks until it does.

        :param notify: called on the connection's thread, and must not block, when there are deliveries
        :param at_once: how many messages are handled at the same time; no fewer are prefetched
        """
        self._consumer._check_open()
        if not self.channel.is_wanted:
            self.channel = self._new_channel()
        channel = self.channel
        if self.gate is not None:
            self.gate.begin()
        # To end and begin anew would make another consumer of such a queue the active one, and have a stream deliver
        # again what is in hand.
        queues = self._topology.queues.values()
        is_stream = any(queue.position is not None for queue in queues)
        is_fixed = is_stream or any(queue.arguments.get('x-single-active-consumer') for queue in queues)
        consumers = channel.consumers
        consumers.prefetch = self._prefetch.begin(
            at_once, is_fixed, lambda: self._connection.tell(consumers.resize_steps)
        )
        if is_stream and not consumers.prefetch:
            raise errors.ConfigurationError(f'{self._label}.prefetch_count is 0; a stream has to have a limit')
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
        self._connection.ask(self.channel.consumers.pause_steps, CLOSE_TIMEOUT, when_open=False)

    def resume(self) -> None:
        """Undo :meth:`pause`. Blocks until the broker delivers again; any thread but an I/O thread.

        :raises errors.BrokerError: it cannot be consumed again, or there was no connection for a minute
        """
        channel = self.channel
        self._connection.ask(lambda: self._consume_all_steps(channel))

    def end(self) -> None:
        """Undo :meth:`begin`: cancel its consumers, and hand what was not settled back to the broker. Blocks."""
        self._connection.remove_channel(self.channel)
        self.channel.inbox.clear()

    def next_delivery(self, now: float | None = None) -> Delivery | None:
        """Take the oldest delivery out of the inbox, if there is one. For the one thread that consumes.

        :param now: what the monotonic clock says, where the caller knows it
        :raises errors.BrokerError: what made it impossible to go on consuming
        """
        channel = self.channel
        delivery = None
        if channel.inbox:
            try:
                delivery = channel.inbox.popleft()
            except IndexError:
                pass  # it has been handed back in that very moment
            else:
                pace = self._prefetch.pace
                if pace is not None:
                    pace.taken_at = time.monotonic() if now is None else now
                    pace.bytes_taken += len(delivery.body)
        if delivery is None:
            if channel.error is not None:
                raise channel.error.again()
        elif settings.is_debugging:
            logger.debug('%s: delivered %r: %r', self._label, delivery, delivery.body)
        return delivery

    def took(self, messages: int, seconds: float) -> None:
        """Say how long it took to handle so many messages, for the prefetch count to follow. Cheap, never blocks."""
        prefetch = self._prefetch
        if prefetch.pace is not None and prefetch.pace.observe(messages, seconds):
            prefetch.resize()

    def keep_retries(self) -> None:
        """Leave no retries to the broker, whatever its queues say: it would count them among all deliveries in vain."""
        self.channel.consumers.origins.lets_broker_retry = self._lets_broker_retry = False

    def set_aside(self, change: int) -> None:
        """Say that one message more, or less, stays unacknowledged while others of its queue are to be delivered.

        Never blocks; for the thread that consumes.

        :param change: 1 or -1
        """
        self._prefetch.set_aside(change)

    def wind_down(self) -> None:
        """Take nothing more: cancel the consumers, and hand what waits in the inbox back. Does not block."""
        channel = self.channel
        for queue in list(channel.consumers.tags):
            self._connection.tell(functools.partial(channel.consumers.end_steps, queue))
        while (delivery := self.next_delivery()) is not None:
            channel.hand_back(delivery)

    def drain(self) -> None:
        """Have the broker deliver no more, and keep what waits in the inbox. Does not block."""
        self._connection.tell(self.channel.drain_steps)

    @property
    def is_drained(self) -> bool:
        """Whether that is done, and the inbox is empty."""
        return self.channel.is_drained and not self.channel.inbox

    def queues_reached(self, exchange: str, routing_key: str) -> list[str]:
        """Which of the queues it consumes from a message would reach, as far as its own bindings tell."""
        reached = self._topology.queues_reached(exchange, routing_key)
        return [queue for queue in reached if queue in self.channel.consumers.tags]

    def is_delivery_of(self, delivery: Delivery) -> bool:
        """Whether that was delivered to the channel that is consuming now."""
        return delivery.channel is self.channel

    def give_up(self, delivery: Delivery, failure: Failure) -> None:
        """Reject a message for good, with a warning where that loses it. Does not block; any thread.

        :param failure: why
        """
        self._consumer.reject(delivery, requeue=False)
        queue = self._topology.queues.get(delivery.queue)
        is_kept = delivery.position is not None  # in its stream
        has_dead_letters = queue is not None and 'x-dead-letter-exchange' in queue.arguments
        if not is_kept and not has_dead_letters and delivery.queue not in self._queues_warned:
            self._queues_warned.add(delivery.queue)
            logger.warning(
                'a message rejected from queue %r is lost: the queue was declared without x-dead-letter-exchange '
                '(said once)',
                delivery.queue,
            )

    def _take_again(self, delivery: Delivery) -> None:
        """Put a delivery back into the inbox, unless it is the broker's again."""
        channel = self.channel
        if delivery.channel is channel and delivery.generation == channel.generation:
            channel.inbox.appendleft(delivery)
            channel.notify()

    def _ack_handled(self, delivery: Delivery) -> None:
        assert self.gate is not None
        self.gate.handled(delivery)  # here, too: a subclass may acknowledge in a way of its own
        self._consumer.ack(delivery)
