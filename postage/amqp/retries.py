"""Retries that the broker delays: a quorum queue's ``x-delayed-retry-type`` and its kin, of RabbitMQ 4.3 and later.

What a consumer rejects with requeue comes back to its place after ``min(minimum * count, maximum)``, the count being
that of ``x-delivery-count``, in which a delivery counts that came to no end as well. Nothing is published, so nothing
can be noted in the message: what the header says is added to our own notes as the message is read.

Earlier versions take the arguments, too, and make nothing of them. So every program can declare them, and has to: from
4.3 on they must agree.

https://www.rabbitmq.com/docs/quorum-queues
"""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

import pika.spec

from postage.amqp.server import Server
from postage.amqp.topology import Queue

ATTEMPTS: Final = 'x-postage-attempts'
"""How often the message has been handled in vain."""
FIRST_ATTEMPT: Final = 'x-postage-first-attempt'
"""When that was first done, in milliseconds since 1970."""
DELIVERY_COUNT: Final = 'x-delivery-count'

LIMIT: Final = 20  # deliveries in vain to a quorum queue that sets none; since RabbitMQ 4.0


class DelayedRetries(NamedTuple):
    """How a queue delays them.

    :ivar minimum: milliseconds before the first one, by which each further one is later
    :ivar maximum: milliseconds before any of them, at most
    :ivar limit: how many there may be; the next one would end in the dead letters of the broker
    """

    minimum: int
    maximum: int
    limit: float = LIMIT

    def wait(self, count: int) -> int:
        """Milliseconds before the delivery that follows so many in vain."""
        return min(self.minimum * count, self.maximum)

    def takes(self, count: int, shortest: int, longest: int) -> bool:
        """Whether a message that was delivered so often in vain before this time would wait as long as it is to.

        :param shortest: milliseconds
        :param longest: milliseconds
        """
        return count < self.limit and shortest <= self.wait(count + 1) <= longest

    def note(self, properties: pika.spec.BasicProperties) -> None:
        """Add what the broker has counted to our notes in the headers of a message.

        When it was first handled is not known, only how long it has waited since.
        """
        count = count_of(properties.headers)
        if not count:
            return
        headers: dict[str, Any] = properties.headers
        waited = sum(map(self.wait, range(1, count + 1)))
        headers.setdefault(FIRST_ATTEMPT, int(time.time() * 1000) - waited)
        before = headers.get(ATTEMPTS)
        headers[ATTEMPTS] = count + (before if isinstance(before, int) else 0)


def count_of(headers: dict[str, Any] | None) -> int:
    """How often the broker says that a message was delivered in vain."""
    count = (headers or {}).get(DELIVERY_COUNT)
    return int(count) if isinstance(count, int) and count > 0 else 0


def delayed_retries(queue: Queue | None, server: Server) -> DelayedRetries | None:
    """How a broker delays the retries of a queue; ``None`` where it does not, or not in a way that is known."""
    if queue is None or not server.delays_retries:
        return None
    arguments = queue.arguments
    if arguments.get('x-delayed-retry-type') not in ('failed', 'all'):
        return None
    minimum, maximum = (arguments.get(f'x-delayed-retry-{end}') for end in ('min', 'max'))
    if not isinstance(minimum, int) or not isinstance(maximum, int):
        return None
    limit = arguments.get('x-delivery-limit')
    return DelayedRetries(
        minimum, maximum, LIMIT if not isinstance(limit, int) else limit if limit >= 0 else float('inf')
    )
