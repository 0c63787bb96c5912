"""What goes over a connection, and which thread sees to it: when messages are sent, and who reads what comes.

The thread that has something to send sends it, and the one that waits for something reads, as far as the wire allows
it (:mod:`postage.amqp.transport`). The I/O thread does what they leave undone: at a tick, which it has while there is
activity, it sends what was held back, reads again where nobody does, and looks after inboxes that nobody touches.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pika.adapters.select_connection
import pika.exceptions

from postage.amqp.channel import Channel
from postage.amqp.fallback import PublicConnection
from postage.amqp.transport import WireConnection
from postage.amqp.waiting import PATIENCE_MILLISECONDS, ReadingAlarm, check_may_block, send_batch, this_thread

BACKLOG_MAX = 512 * 1024  # bytes handed to the transport before it has to take some away
BACKLOG_SECONDS = 0.005  # between looks whether it has
GATHERED_MOST = 256  # messages and acknowledgements that come together before they are sent
GATHER_SECONDS = 0.001  # that the first of them waits for others
LULL_SECONDS = 0.0005  # after which the next message is sent at once, and not gathered with others
TICK_SECONDS = 0.01  # between looks at what a busy thread may have left undone
SHARED_SECONDS = 0.1  # for which nobody but the I/O thread reads a connection that several threads wait for


class Traffic:
    """The part of a connection that this module is about.

    :ivar wire: pika's connection while there is an open one
    :ivar urgent: how many messages there are whose confirm somebody waits for
    """

    wire: PublicConnection | None
    urgent: int
    _channels: list[Channel]
    _loop: pika.adapters.select_connection.IOLoop
    _thread: threading.Thread | None

    def _start_over(self) -> None:
        """The state of a connection that was never opened."""
        self._dirty: deque[Channel] = deque()
        self._flush_requested = self._is_backed_up = False
        self._sent_at = 0.0
        self._gathered = 0
        self._waiting: set[object] = set()  # one for each thread that waits for this connection
        self._shared_until = 0.0
        self._watched: set[Channel] = set()
        self.urgent = 0
        self._is_stirred = self._is_ticking = False

    def _ensure_running(self) -> None:
        """Start the I/O thread where it does not run."""
        raise NotImplementedError

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed for good."""
        raise NotImplementedError

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back on the I/O thread, as soon as it can. From any thread."""
        raise NotImplementedError

    # Sending

    def request_flush(self, channel: Channel) -> None:
        """Have sent what a channel has ready. From any thread; never blocks.

        In a batch that is done at its end, for what has come together by then. Else it is done here and now where
        nothing has been sent for a while, or enough has come together; and where the thread stops before that, the I/O
        thread does it, a moment later.
        """
        if not channel.needs_flush:
            channel.needs_flush = True
            self._dirty.append(channel)
        batch = this_thread.batch
        if batch is not None:
            if self not in batch:
                batch.append(self)
                self.stir()
            return
        self._gathered += 1
        if self._gathered >= GATHERED_MOST or (
            not self._flush_requested and time.monotonic() - self._sent_at > LULL_SECONDS
        ):
            self.send()
        else:
            self._send_soon(GATHER_SECONDS)

    def send(self) -> None:
        """Send what the channels have ready: at once where this thread may. From any thread; never blocks."""
        wire = self.wire
        if wire is not None and wire.sends_directly:
            self.flush_now()
        else:
            self._send_soon()

    def send_gathered(self) -> None:
        """Send what is gathered, before a wait for what comes of it."""
        if self._gathered:
            self.send()

    def _send_soon(self, pause: float = 0.0) -> None:
        """Have the I/O thread send. However much is added meanwhile, it is woken once."""
        if not self._flush_requested:
            self._flush_requested = True
            try:
                if self._thread is None:
                    self._ensure_running()
                send: Callable[[], Any] = self.flush_now
                if pause:
                    send = functools.partial(self._loop.call_later, pause, self.flush_now)
                self._loop.add_callback_threadsafe(send)
            except BaseException:  # Ctrl-C, after which others still want to be sent
                self._flush_requested = False
                raise

    def flush_now(self) -> None:
        """Send what the channels have ready, in one write. On the I/O thread, or where the wire sends directly."""
        self._flush_requested = False
        wire = self.wire
        if wire is None or not self._dirty:
            return
        drained: list[Channel] = []
        frames: list[bytes] = []
        try:
            with wire.writing:
                if wire.is_lost:
                    return  # whoever opens the channels again has it sent
                is_full = wire.backlog > BACKLOG_MAX
                self._gathered = 0
                while self._dirty and not is_full:
                    channel = self._dirty.popleft()
                    channel.needs_flush = False
                    if channel.is_open:
                        channel.drain(frames)
                        drained.append(channel)
                if frames:
                    wire.write(frames[0] if len(frames) == 1 else b''.join(frames))
                    self._sent_at = time.monotonic()
        except BaseException:
            # Ctrl-C, above all. What was counted may not have been sent, and a frame may have been sent in part.
            wire.fail_soon(pika.exceptions.StreamLostError('interrupted while sending'))
            raise
        for channel in drained:
            channel.drained()
        if is_full and not self._is_backed_up:
            # The transport tells nobody when it is empty; the broker is slow anyway, so looking again does no harm.
            self._is_backed_up = self._flush_requested = True
            self.call_soon(lambda: self._loop.call_later(BACKLOG_SECONDS, self._flush_again))

    def _flush_again(self) -> None:
        self._is_backed_up = False
        self.flush_now()

    # Waiting: see the module of that name

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Round everything in which a thread blocks until this connection has brought something.

        What the thread has gathered is sent, and nobody who works on something else keeps the socket from being read.

        :raises RuntimeError: in a callback of a connection
        """
        check_may_block()
        send_batch()
        self.send_gathered()
        token = object()
        self._waiting.add(token)
        self._reclaim()
        try:
            yield
        finally:
            self._waiting.discard(token)

    def _reclaim(self) -> None:
        wire = self.wire
        if isinstance(wire, WireConnection) and wire.is_lent:
            self._loop.add_callback_threadsafe(wire.take_back)

    def begin_reading(self, alarm: ReadingAlarm) -> WireConnection | None:
        """A thread begins to wait. Returns what it is to read meanwhile, if it is the one to read this connection."""
        self.send_gathered()
        self._waiting.add(alarm)
        wire = self.wire
        if not isinstance(wire, WireConnection) or not wire.may_be_read_elsewhere:
            return None
        if wire.reader is alarm:
            wire.reading.acquire()
            if wire.reader is alarm and not wire.is_lost:
                return wire
            wire.reading.release()
        elif wire.reader is None:
            if len(self._waiting) == 1 and time.monotonic() >= self._shared_until:
                wire.ask_to_read(alarm)
                self.stir()  # it may have gone by the time it gets it
        else:
            self._reclaim()
        return None

    def can_wait(self, wire: WireConnection) -> bool:
        """Whether nothing can come now but confirms that nobody waits for: in a moment they are read at one go.

        A component that answers RPCs, or hands messages on, is woken by its next message, and not for each confirm.
        """
        if self.urgent or time.monotonic() - wire.read_at > PATIENCE_MILLISECONDS / 1000:
            return False
        return not any(channel.is_awaited for channel in self._channels)

    def end_reading(self, alarm: ReadingAlarm, has_read: bool) -> None:
        """It waits no more."""
        self._waiting.discard(alarm)
        if self._waiting:
            if has_read:
                self._shared_until = time.monotonic() + SHARED_SECONDS
            self._reclaim()
        elif has_read:
            self.stir()

    # The tick: what a thread may leave undone that is busy with something else

    def stir(self) -> None:
        """Say that there is activity, after which the I/O thread looks to it that nothing is held up. Any thread."""
        self._is_stirred = True
        if not self._is_ticking and self.wire is not None:
            self._is_ticking = True
            self.call_soon(lambda: self._loop.call_later(TICK_SECONDS, self._tick))

    def watch(self, channel: Channel) -> None:
        """Have a channel look after its inbox at each tick, until it has seen enough. Any thread."""
        self._watched.add(channel)
        self.stir()

    def _tick(self) -> None:
        was_stirred, self._is_stirred = self._is_stirred, False
        is_busy = self._take_back(was_stirred) or was_stirred
        try:
            self._look_after_channels()
        finally:
            if is_busy or self._watched:
                self._loop.call_later(TICK_SECONDS, self._tick)
            else:
                self._is_ticking = False
                if self._is_stirred:
                    self.stir()

    def _take_back(self, was_stirred: bool) -> bool:
        """Read again, where whoever should do so has not been back since the last tick. Returns whether he is away."""
        wire = self.wire
        if not isinstance(wire, WireConnection) or wire.reader is None or wire.reading.locked():
            return False
        if not was_stirred:
            wire.take_back()
        return True

    def _look_after_channels(self) -> None:
        if self._dirty:
            self.flush_now()
        for channel in list(self._watched):
            self._watched.discard(channel)  # before the look, for another thread may add it again meanwhile
            if channel.look():
                self._watched.add(channel)
