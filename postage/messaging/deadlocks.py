"""Blocking calls that could never be answered: those to a queue that only the scheduler of the calling thread serves.

Each scheduler's queues are known here, since its processors say when they begin and end to consume. Whether another
program serves the queue, too, only the broker knows. It is asked at the first call; where the answer is yes, that is
believed for :data:`BELIEVED_SECONDS`.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

from postage import errors
from postage.microthreads import MicroScheduler
from postage.settings import BrokerSettings

BELIEVED_SECONDS = 60.0

Reached = Callable[[str, str], 'list[str]']
"""The queues of one consumer that a message comes to, by exchange and routing key."""


class _Known:
    """What is known of one scheduler. For its own thread alone.

    :ivar serving: the broker and the queues of each consumer in it
    :ivar served_elsewhere: brokers and queues that others serve as well, and until when that is believed
    """

    def __init__(self) -> None:
        self.serving: list[tuple[BrokerSettings, Reached]] = []
        self.served_elsewhere: dict[tuple[BrokerSettings, str], float] = {}


_known: weakref.WeakKeyDictionary[MicroScheduler, _Known] = weakref.WeakKeyDictionary()


def remember(scheduler: MicroScheduler, settings: BrokerSettings, reached: Reached) -> None:
    """Note that a consumer's messages are handled by a scheduler. In that scheduler's thread."""
    known = _known.setdefault(scheduler, _Known())
    if (settings, reached) not in known.serving:
        known.serving.append((settings, reached))


def forget(scheduler: MicroScheduler | None, reached: Reached) -> None:
    """Undo :func:`remember`."""
    known = _known.get(scheduler) if scheduler is not None else None
    if known is not None:
        known.serving = [serving for serving in known.serving if serving[1] != reached]


def refuse(
    scheduler: MicroScheduler,
    settings: BrokerSettings,
    name: str,
    route: tuple[str, str],
    channel: Any,
) -> None:
    """Refuse a blocking call from a scheduler's thread where only that thread could answer it.

    :param settings: the broker that is called
    :param name: of the producer's method
    :param route: exchange and routing key
    :param channel: pika's channel methods, for a question to the broker
    :raises errors.Deadlock: every consumer of the queue is a processor of this very scheduler
    """
    known = _known.get(scheduler)
    if known is None:
        return
    served = [queue for its_settings, reached in known.serving if its_settings == settings for queue in reached(*route)]
    for queue in dict.fromkeys(served):
        if known.served_elsewhere.get((settings, queue), 0.0) > time.monotonic():
            continue
        if channel.queue_declare(queue, passive=True).method.consumer_count <= served.count(queue):
            future = name.replace('rpc_', 'rpc_future_', 1)
            raise errors.Deadlock(
                f'{name}() blocks the only scheduler that answers queue {queue!r}, so the answer could never come; '
                f'in a handler that is a generator function write: result = yield producer.{future}(...)'
            )
        known.served_elsewhere[settings, queue] = time.monotonic() + BELIEVED_SECONDS
