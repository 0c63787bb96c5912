"""Retries: the decorator that declares them, and the queues in which messages wait for their next attempt.

A message that is to be handled again waits in a queue with a TTL, from which the broker moves it back into the queue
that it came from (https://www.rabbitmq.com/docs/dlx). A queue gives up its messages from its head only, so one that
waits long would hold up those behind it that do not: there is a queue for each original queue and each delay. For the
same reason the jitter is no expiration of each message but a choice of :data:`STEPS` delays, each with its queue.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from postage import errors
from postage.amqp.topology import Queue
from postage.messaging.forwarding import LEASE
from postage.messaging.handlers import RETRIES, mark
from postage.messaging.outcomes import CONTROL_FLOW
from postage.messaging.properties import DELAY_PREFIX

Target = TypeVar('Target', bound=Callable[..., Any])

STEPS = 5  # delays that a jitter makes of one
DELAY_MAX = 40 * 24 * 3600.0  # seconds; a queue's TTL and expiry are 32-bit numbers of milliseconds
NAME_BYTES = 255  # of a queue, a short string of AMQP 0-9-1 (section 4.2.5.3)


class Retry:
    """Has a message handled again when the handler it decorates raises one of these exceptions.

    The message comes back after each of the delays in turn, counted across processes and restarts; when the handler
    raises after the last one it is dead. An RPC is answered after its last attempt. All handlers of the message run
    again. ``RejectMessage``, ``FilterError``, ``AckAndRestart`` and ``ExitScheduler`` are never tried again.

    Of several ``Retry`` on one handler the uppermost that names the exception counts.

    :param exceptions: classes of exceptions; every ``Exception``, where none is named
    :param delays: seconds before each further attempt
    :param jitter: by which part of itself a delay may be shorter or longer, 0 to 1, so that what failed together does
        not come back all at once
    :raises errors.ConfigurationError: an argument has the wrong type or value
    """

    def __init__(self, *exceptions: type[Exception], delays: Sequence[float] = (1, 5, 30), jitter: float = 0.2) -> None:
        for exception in exceptions:
            if not isinstance(exception, type) or not issubclass(exception, Exception):
                raise errors.ConfigurationError(f'@Retry takes classes of exceptions, not {exception!r:.80}')
            if issubclass(exception, CONTROL_FLOW):
                raise errors.ConfigurationError(f'@Retry: {exception.__name__} is no failure and is never tried again')
        self.exceptions = exceptions or (Exception,)
        self.jitter = _number(jitter, 'jitter must be a number from 0 to 1', 0, 1)
        if isinstance(delays, str) or not isinstance(delays, Sequence) or not delays:
            raise errors.ConfigurationError(
                f'@Retry: delays must be a list of seconds and not empty, not {delays!r:.80}'
            )
        limit = DELAY_MAX / (1 + self.jitter)
        self.delays = tuple(_number(delay, 'a delay must be a number of seconds', 0, limit) for delay in delays)

    def __call__(self, target: Target) -> Target:
        return mark(target, RETRIES, self)


def _number(value: Any, rule: str, lowest: float, highest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
        limit = ', 40 days at most' if highest > 1 else ''
        raise errors.ConfigurationError(f'@Retry: {rule}{limit}, not {value!r:.80}')
    return float(value)


class Pause:
    """How long a message waits before its next attempt.

    :ivar milliseconds: this once, jitter included
    """

    __slots__ = ('milliseconds',)

    def __init__(self, delay: float, jitter: float) -> None:
        step = random.randrange(STEPS) / (STEPS - 1)  # 0 to 1
        self.milliseconds = max(1, round(1000 * delay * (1 + jitter * (2 * step - 1))))

    @property
    def seconds(self) -> float:
        """The same in seconds."""
        return self.milliseconds / 1000


def pause_after(retries: Sequence[Retry], error: Exception, failed_before: int) -> Pause | None:
    """How long to wait after a failure; ``None`` where there is no further attempt.

    :param failed_before: how often the message had failed before this time
    """
    for retry in retries:
        if isinstance(error, retry.exceptions):
            if failed_before < len(retry.delays):
                return Pause(retry.delays[failed_before], retry.jitter)
            return None
    return None


def delay_queue(original: Queue | None, name: str, pause: Pause) -> Queue:
    """The queue in which a message waits.

    A durable one, which the broker deletes when it has not been used for a while. It is a quorum queue where the
    original is one: a message should be as safe while it waits.

    :param original: the queue to come back to, where its declaration is known
    :param name: that queue's name
    """
    arguments: dict[str, Any] = {
        'x-dead-letter-exchange': '',
        'x-dead-letter-routing-key': name,
        'x-message-ttl': pause.milliseconds,
        'x-expires': pause.milliseconds + LEASE * 1000,
    }
    kind = ((original.flags.get('arguments') or {}) if original is not None else {}).get('x-queue-type')
    if kind == 'quorum':
        # At least once, also between the two queues; this strategy needs that overflow.
        arguments |= {
            'x-queue-type': 'quorum',
            'x-dead-letter-strategy': 'at-least-once',
            'x-overflow': 'reject-publish',
        }
    return Queue(_delay_name(name, pause.milliseconds), {'durable': True, 'arguments': arguments}, frozenset(arguments))


def _delay_name(name: str, milliseconds: int) -> str:
    """What the queue is called: by the original's name, so that whoever looks at the broker understands it."""
    full = f'{DELAY_PREFIX}{name}.{milliseconds}'
    if len(full.encode()) <= NAME_BYTES:
        return full
    return f'{DELAY_PREFIX}{hashlib.sha256(name.encode()).hexdigest()}.{milliseconds}'
