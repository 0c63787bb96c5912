"""Until when something is wanted: the deadline of the request that is handled, and of a block of a program.

A request carries the moment at which its caller stops waiting. What its handler asks others for is wanted no longer
than that, and so is what they ask for in their turn. Both kinds of deadline are kept in context variables: of each
thread, each asyncio task and each microthread, and of each handler, whatever it is.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

from postage import errors
from postage.amqp.deliveries import Delivery, current
from postage.messaging.options import check_number

Block = tuple[float, 'Block | None']
"""Until when the block of a ``with deadline(…)`` may take, on the monotonic clock, and the block around it."""

of_block: ContextVar[Block | None] = ContextVar('postage_deadline', default=None)
"""The block that runs here, if one does."""


class deadline:  # noqa: N801 - it is written as a call: with deadline(2.0)
    """``with messaging.deadline(2.0):`` gives a block that many seconds, for all its RPC calls together.

    A call in it waits no longer than that, whatever its own time-out, with all its attempts; the components that are
    called know, and neither begin what is too late nor wait for others beyond it. One inside another, or inside a
    handler, can only shorten it. The block itself is not interrupted. In threads, microthreads and coroutines alike.

    :param seconds: 0 or more
    :raises errors.ConfigurationError: it is no such number
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = check_number(seconds, 'a deadline in seconds')

    def __enter__(self) -> deadline:
        outer = of_block.get()
        until = time.monotonic() + self._seconds
        of_block.set((until if outer is None else min(outer[0], until), outer))
        return self

    def __exit__(self, *_: object) -> None:
        block = of_block.get()
        of_block.set(None if block is None else block[1])


def remaining() -> float | None:
    """Seconds until the deadline of the request that is handled, or of the ``with deadline(…)`` around this.

    ``None`` where there is neither; 0 where it has passed. Never blocks; any thread.
    """
    until = limit()
    return None if until is None else max(0.0, until - time.monotonic())


def limit() -> float | None:
    """The deadline that holds here, on the monotonic clock, if there is one."""
    block, delivery = of_block.get(), current.get()
    own = None if block is None else block[0]
    # What a handler has left running behind it has no caller that waits.
    theirs = limit_of(delivery) if delivery is not None and not delivery.is_handled else None
    if own is None or theirs is None:
        return theirs if own is None else own
    return min(own, theirs)


def limit_of(delivery: Delivery) -> float | None:
    """The deadline of a request, on the monotonic clock; ``None`` where it has none."""
    try:
        header: Any = delivery.answerable
    except errors.DecodingError:
        return None
    return None if header.deadline is None else time.monotonic() + header.deadline / 1000 - time.time()
