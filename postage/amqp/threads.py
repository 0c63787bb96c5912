"""What is known of the present thread: whether it may block, and what it has gathered to be sent."""

from __future__ import annotations

import threading
from typing import Protocol

from postage.amqp.forks import Stage, call_in_child


class Flushable(Protocol):
    """What gathers messages while a batch is in hand: an outbox."""

    def flush(self) -> None:
        """Send what has come together. Never blocks."""


class _Thread(threading.local):
    """One for each thread.

    :ivar batch: outboxes with something to send at the end of the batch that this thread has in hand; ``None`` where it
        has none in hand
    :ivar is_reading: whether it is an I/O thread, or acts on what it has just read: it must not block
    """

    batch: list[Flushable] | None = None
    is_reading = False


this_thread = _Thread()


def check_may_block() -> None:
    """See that the present thread may wait for what a connection brings.

    :raises RuntimeError: in a callback of a connection, where the thread would wait for itself
    """
    if this_thread.is_reading:
        raise RuntimeError('a blocking call from a callback of a connection, where it could never be answered')


class Batch:
    """Messages that are handled one after the other: what they send goes out together. Use it in a ``with``."""

    __slots__ = ('_is_outermost',)

    def __enter__(self) -> None:
        self._is_outermost = this_thread.batch is None
        if self._is_outermost:
            this_thread.batch = []

    def __exit__(self, *_: object) -> None:
        if self._is_outermost:
            try:
                batch = this_thread.batch
                while batch:
                    batch.pop().flush()
            finally:
                this_thread.batch = None


def flush_batch() -> None:
    """Send what the present thread has gathered; before it waits for anything. Never blocks."""
    batch = this_thread.batch
    while batch:
        batch.pop().flush()


def _start_over() -> None:
    this_thread.is_reading = False
    if this_thread.batch:
        this_thread.batch.clear()  # the parent sends it


call_in_child(Stage.THREAD, _start_over)
