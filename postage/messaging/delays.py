"""The queues in which messages wait for their next attempt.

The broker moves a message out of such a queue, which has a TTL, back into the queue that it came from
(https://www.rabbitmq.com/docs/dlx). A queue gives up its messages from its head only, so one that waits long would hold
up those behind it: there is a queue for each original queue and each delay.

The jitter makes no further queues: it is an expiration of the message. One that is held up leaves with the one before
it, which was sent earlier and may wait no longer than the longest time of their delay, so neither does the one behind.
But what failed together would leave together, behind the one that drew the longest. So each process sends its messages
in the order in which they are to leave, each a little later than the one before: see :class:`Spread`.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from typing import Any

from postage import errors
from postage.amqp.deliveries import Delivery
from postage.amqp.frames import answerable_of
from postage.amqp.topology import Queue
from postage.messaging import properties as notes
from postage.messaging.forwarding import LEASE
from postage.messaging.handlers import Retry
from postage.messaging.letters import first_attempt_at
from postage.messaging.outcomes import Pause
from postage.messaging.properties import DELAY_PREFIX, whole_header
from postage.settings import SHORT_STRING_BYTES

GAPS = 8  # how much of the time that is left lies between two messages which failed together, on average: 1/16


def pause_after(retries: Sequence[Retry], error: BaseException, delivery: Delivery) -> Pause | None:
    """How long a message waits for its next attempt; ``None`` where there is none.

    :param retries: those of the handler that raised; where it has none, that of the queue counts
    There is none, either, for a message that would have expired by then, nor for a request whose deadline will have
    passed: its caller is gone, and hears now what went wrong.
    """
    if not retries:
        queue = delivery.channel.topology.queues.get(delivery.queue)
        retries = [queue.retry] if queue is not None and queue.retry is not None else []
    retry = next((retry for retry in retries if isinstance(error, retry.exceptions)), None)
    if retry is None:
        return None
    try:
        properties = delivery.properties
    except errors.DecodingError:
        return None  # what cannot be read cannot be sent on
    failed_before = whole_header(properties.headers or {}, notes.ATTEMPTS)
    if failed_before >= len(retry.delays):
        return None
    pause = Pause(retry.delays[failed_before], retry.jitter)
    deadline = answerable_of(properties).deadline
    if deadline is not None and time.time() + pause.seconds > deadline / 1000:
        return None
    expiration = notes.original(properties).expiration
    if expiration is not None and expiration.isascii() and expiration.isdecimal() and len(expiration) <= 20:
        expires_at = first_attempt_at(properties) + int(expiration) / 1000
        if time.time() + pause.seconds > expires_at:
            return None
    return pause


def delay_queue(original: Queue | None, name: str, pause: Pause) -> Queue:
    """The queue in which a message waits.

    It is for all messages that may wait as long as this one. A durable one, which the broker deletes when it has not
    been used for a while; a quorum queue where the original is one: a message should be as safe while it waits.

    :param original: the queue to come back to, where its declaration is known
    :param name: that queue's name
    """
    arguments: dict[str, Any] = {
        'x-dead-letter-exchange': '',
        'x-dead-letter-routing-key': name,
        'x-message-ttl': pause.longest,
        'x-expires': pause.longest + LEASE * 1000,
    }
    if original is not None and original.arguments.get('x-queue-type') == 'quorum':
        # At least once, also between the two queues; this strategy needs that overflow.
        arguments |= {
            'x-queue-type': 'quorum',
            'x-dead-letter-strategy': 'at-least-once',
            'x-overflow': 'reject-publish',
        }
    return Queue(_delay_name(name, pause.longest), {'durable': True, 'arguments': arguments}, frozenset(arguments))


class Spread:
    """When the messages leave that one process has put off. For one thread."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}  # by the name of the delay queue: when the last one leaves

    def wait(self, name: str, pause: Pause) -> int:
        """Milliseconds that a message is to wait in a delay queue, from now on.

        As its pause says, where all that was sent there before will have left by then. Else a bit of what is left of
        its time later than the last one.
        """
        now = time.monotonic() * 1000
        before, latest = self._due.get(name, 0.0), now + pause.longest
        if before <= now + pause.shortest:
            due = now + pause.milliseconds
        else:
            before = min(before, latest)
            due = before + random.random() * (latest - before) / GAPS
        self._due[name] = due
        return round(due - now)


def _delay_name(name: str, milliseconds: int) -> str:
    """What the queue is called: by the original's name, for people who look at the broker."""
    full = f'{DELAY_PREFIX}{name}.{milliseconds}'
    if len(full.encode()) <= SHORT_STRING_BYTES:
        return full
    return f'{DELAY_PREFIX}{hashlib.sha256(name.encode()).hexdigest()}.{milliseconds}'
