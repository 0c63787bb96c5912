"""Blocking calls that could never be answered: those to a queue that only the scheduler of the calling thread serves.

Each scheduler's queues are known here, since its processors say when they begin and end to consume. Whether another
program serves the queue, too, only the broker knows. It is asked at the first call, and its answer that somebody does
is believed for a while: :data:`BELIEVED_SECONDS`.
"""

from __future__ import annotations

import time
import weakref
from typing import Any, Protocol

from postage import errors
from postage.amqp.connection import Connection
from postage.microthreads import MicroScheduler

BELIEVED_SECONDS = 60.0


class Serving(Protocol):
    """What consumes in a scheduler."""

    @property
    def conn_broker(self) -> Connection:
        """The connection it consumes on."""

    def queues_reached(self, exchange: str, routing_key: str) -> list[str]:
        """The queues it consumes from that a message would come to."""


class Calling(Protocol):
    """What makes a blocking call."""

    @property
    def conn_broker(self) -> Connection:
        """The connection it publishes on."""

    @property
    def channel(self) -> Any:
        """pika's channel methods."""


class _Known:
    """What is known of one scheduler. For its own thread alone.

    :ivar serving: what consumes in it
    :ivar served_elsewhere: virtual hosts and queues that others serve as well, and until when that is believed
    """

    def __init__(self) -> None:
        self.serving: list[Serving] = []
        self.served_elsewhere: dict[Any, float] = {}


_known: weakref.WeakKeyDictionary[MicroScheduler, _Known] = weakref.WeakKeyDictionary()


def remember(scheduler: MicroScheduler, serving: Serving) -> None:
    """Note that a consumer's messages are handled by a scheduler. In that scheduler's thread."""
    known = _known.setdefault(scheduler, _Known())
    if serving not in known.serving:
        known.serving.append(serving)


def forget(scheduler: MicroScheduler | None, serving: Serving) -> None:
    """Undo :func:`remember`."""
    known = _known.get(scheduler) if scheduler is not None else None
    if known is not None and serving in known.serving:
        known.serving.remove(serving)


def refuse(scheduler: MicroScheduler, caller: Calling, name: str, route: tuple[str, str]) -> None:
    """Refuse a blocking call from a scheduler's thread where only that thread could answer it.

    Blocks for an answer of the broker where the call would come back to this scheduler, unless it was asked lately.

    :param name: of the producer's method
    :param route: exchange and routing key
    :raises errors.Deadlock: every consumer of the queue is a processor of this very scheduler
    """
    known = _known.get(scheduler)
    if known is None:
        return
    settings = caller.conn_broker.settings
    served = [
        queue
        for serving in known.serving
        if serving.conn_broker.settings == settings
        for queue in serving.queues_reached(*route)
    ]
    for queue in dict.fromkeys(served):
        if known.served_elsewhere.get((settings, queue), 0.0) > time.monotonic():
            continue
        if caller.channel.queue_declare(queue, passive=True).method.consumer_count <= served.count(queue):
            future = name.replace('rpc_', 'rpc_future_', 1)
            raise errors.Deadlock(
                f'{name}() blocks the only scheduler that answers queue {queue!r}, so the answer could never come; '
                f'in a handler that is a generator function write: result = yield producer.{future}(...)'
            )
        known.served_elsewhere[settings, queue] = time.monotonic() + BELIEVED_SECONDS
