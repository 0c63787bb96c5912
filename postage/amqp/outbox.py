"""When a connection sends: a channel submits, and the outbox flushes what has come together, in one write.

The thread that has something to send sends it, where the link allows that; else the I/O thread does. Messages that
follow each other closely are gathered: a write for each costs more than everything else.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pika.exceptions

from postage.amqp.link import Link
from postage.amqp.threads import this_thread
from postage.amqp.tick import Loop, Tick

BACKLOG_MAX = 512 * 1024  # bytes handed to the transport before it has to take some away
BACKLOG_SECONDS = 0.005  # between looks whether it has
GATHERED_MOST = 256  # messages and acknowledgements that come together before they are sent
GATHER_SECONDS = 0.001  # that the first of them waits for others
LULL_SECONDS = 0.0005  # after which the next message is sent at once, and not gathered with others


class Sender:
    """What has messages or acknowledgements to send: a channel. One that does not say what has nothing.

    :ivar needs_flush: whether it waits in the outbox; written by the outbox
    :ivar is_open: whether its frames may be sent; changes only under the link's lock
    """

    needs_flush = False
    is_open = False

    def drain(self, frames: list[bytes]) -> None:
        """Append what is to be sent. Called with it open, by the sending thread, which holds the link's lock."""

    def drained(self) -> None:
        """What was drained has been sent. Called by the same thread, without the lock."""


class Outbox:
    """What the channels of one connection have ready.

    Two threads may submit one channel at the same time: the flag ``needs_flush`` may then put it into the queue twice,
    which sends nothing twice, for the second one finds it drained. The flag is cleared before the drain, so what is
    added after the drain puts the channel in again: nothing is left behind.

    :param call_soon: calls back on the I/O thread, which it starts where it does not run; any thread
    :ivar link: where to, while there is a connection; written by the I/O thread
    :ivar io_thread: the identifier of the I/O thread
    :ivar gathered: how many were submitted since something was last sent
    """

    def __init__(self, loop: Loop, tick: Tick, call_soon: Callable[[Callable[[], Any]], None]) -> None:
        self._loop = loop
        self._tick = tick
        self._call_soon = call_soon
        self.link: Link | None = None
        self.io_thread = 0
        self.gathered = 0
        self._ready: deque[Sender] = deque()
        self._is_requested = False  # of the I/O thread, to flush
        self._is_backed_up = False
        self._sent_at = 0.0
        tick.add(self._look)

    def submit(self, sender: Sender) -> None:
        """Have sent what a channel has ready. From any thread; never blocks.

        In a batch that is done at its end, for what has come together by then. Else it is done here and now where
        nothing has been sent for a while, or enough has come together; and where the thread stops before that, the I/O
        thread does it, a moment later.
        """
        if not sender.needs_flush:
            sender.needs_flush = True
            self._ready.append(sender)
        batch = this_thread.batch
        if batch is not None:
            if self not in batch:
                batch.append(self)
                tick = self._tick
                tick.is_stirred = True
                if not tick.is_ticking:
                    tick.begin()
            return
        self.gathered += 1
        if self.gathered >= GATHERED_MOST or (
            not self._is_requested and time.monotonic() - self._sent_at > LULL_SECONDS
        ):
            self.flush()
        elif not self._is_requested:
            self._request(GATHER_SECONDS)

    def flush(self) -> None:
        """Send what the channels have ready, in one write: at once where this thread may. From any thread."""
        link = self.link
        if link is None or not (link.is_direct or threading.get_ident() == self.io_thread):
            self._request(0.0)
            return
        self._is_requested = False
        if not self._ready:
            return
        drained: list[Sender] = []
        frames: list[bytes] = []
        try:
            with link.writing:
                if link.is_lost:
                    return  # what opens the channels again has it sent
                is_full = link.may_lag and link.backlog > BACKLOG_MAX
                self.gathered = 0
                while self._ready and not is_full:
                    sender = self._ready.popleft()
                    sender.needs_flush = False
                    if sender.is_open:
                        sender.drain(frames)
                        drained.append(sender)
                if frames:
                    link.write(frames[0] if len(frames) == 1 else b''.join(frames))
                    self._sent_at = time.monotonic()
        except BaseException:
            # Ctrl-C, above all. What was counted may not have been sent, and a frame may have been sent in part.
            link.fail_soon(pika.exceptions.StreamLostError('interrupted while sending'))
            raise
        for sender in drained:
            sender.drained()
        if is_full and not self._is_backed_up:
            # The transport does not tell when it is empty; the broker is slow anyway, so looking again does no harm.
            self._is_backed_up = self._is_requested = True
            self._call_soon(lambda: self._loop.call_later(BACKLOG_SECONDS, self._flush_again))

    def lost(self) -> None:
        """The link has gone, and what was ready with it; the channels submit again. On the I/O thread."""
        self.link = None
        while self._ready:
            self._ready.popleft().needs_flush = False

    def _request(self, pause: float) -> None:
        """Have the I/O thread flush. However much is added meanwhile, it is woken once."""
        if not self._is_requested:
            self._is_requested = True
            try:
                flush: Callable[[], Any] = self._flush_requested
                if pause:
                    flush = functools.partial(self._loop.call_later, pause, self._flush_requested)
                self._call_soon(flush)
            except BaseException:  # Ctrl-C, after which others still want to be sent
                self._is_requested = False
                raise

    def _flush_requested(self) -> None:
        self._is_requested = False
        if self.link is not None:
            self.flush()

    def _flush_again(self) -> None:
        self._is_backed_up = False
        self._flush_requested()

    def _look(self, _: bool) -> bool:
        """At each tick: send what a thread has gathered that has become busy with something else."""
        if self._ready and self.link is not None:
            self.flush()
        return False
