"""What is known of the queues that a channel consumes from, and put on each delivery from them."""

from __future__ import annotations

from typing import Any

from postage import errors
from postage.amqp.deliveries import Delivery
from postage.amqp.retries import DelayedRetries, delayed_retries
from postage.amqp.server import Server
from postage.amqp.streams import OFFSET, Position
from postage.amqp.topology import Topology


class Origins:
    """The queues of one channel whose deliveries differ from those of others.

    :ivar has_marks: whether there is anything to put on a delivery
    :ivar lets_broker_retry: whether failed messages may wait in their queues, where the broker delays them
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self.has_marks = False
        self.lets_broker_retry = True
        # Changed by the I/O thread before it consumes; looked up by the thread that reads.
        self._retries: dict[str, DelayedRetries] = {}
        self._positions: dict[str, Position] = {}

    def consume_arguments(self, name: str, server: Server) -> dict[str, Any] | None:
        """What ``basic.consume`` is told about a queue, as it is declared by now, on the present connection."""
        queue = self._topology.queues.get(name)
        retries = delayed_retries(queue, server)
        if retries is not None and self.lets_broker_retry:
            self._retries[name] = retries
        else:
            self._retries.pop(name, None)
        if queue is None:
            return None
        if queue.position is not None:
            self._positions[name] = queue.position
        self.has_marks = bool(self._retries or self._positions)
        arguments = dict(queue.consume)
        if queue.position is not None:
            offset = queue.position.where_from(arguments.get(OFFSET))
            if offset is not None:
                arguments[OFFSET] = offset
        return arguments or None

    def is_stream(self, name: str) -> bool:
        """Whether a queue is a stream, as far as its declaration tells."""
        queue = self._topology.queues.get(name)
        return queue is not None and queue.position is not None

    def mark(self, delivery: Delivery) -> None:
        """Note on a delivery what is known of its queue. On the thread that reads."""
        if self._retries:
            delivery.retries = self._retries.get(delivery.queue)
        if self._positions:
            delivery.position = self._positions.get(delivery.queue)
            offset = _offset(delivery)
            if delivery.position is not None and offset is not None:
                delivery.position.delivered(offset)


def leave_behind(delivery: Delivery) -> None:
    """A message of a stream was handled, or given up. Any thread."""
    offset = _offset(delivery)
    if delivery.position is not None and offset is not None:
        delivery.position.handled(offset)


def _offset(delivery: Delivery) -> int | None:
    """The offset of a delivery; ``None`` also where it cannot be read: it is rejected, and comes again after a loss."""
    try:
        return delivery.offset if delivery.position is not None else None
    except errors.DecodingError:
        return None
