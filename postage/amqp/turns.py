"""Whose turn it is to read: a thread that waits for what a connection brings may read it in the I/O thread's place.

That saves the time it takes to wake one thread by another. A waiting scheduler, or the caller of an RPC, reads the
links of its connections itself (:class:`ReadingAlarm`) and acts on what it has read. It keeps the turn while it works
on that, for it will be back soon; where it is not, the I/O thread takes the turn back at a tick
(:mod:`postage.amqp.tick`), and at once where another thread waits for the same connection (:class:`Readership`).

Confirms that no thread waits for, those of replies above all, do not wake it: they are read together a moment later
(:meth:`Readership.may_lie`), and the acknowledgements that follow from them go out as one.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import enum
import functools
import math
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import pika.exceptions

from postage.amqp.forks import Stage, call_in_child
from postage.amqp.outbox import Outbox
from postage.amqp.threads import check_may_block, flush_batch, this_thread
from postage.amqp.tick import Loop, Tick

PATIENCE = 1.0  # seconds that the end of a link waits for the thread that reads it
SHARED_SECONDS = 0.1  # for which the I/O thread alone reads a connection that several threads wait for
LONGEST_WAIT = 86400.0  # seconds that poll() is asked to wait at once; it takes no more than 24 days
MILLISECONDS_UNREAD = 2  # for which confirms that no thread waits for may lie unread
CAN_READ = hasattr(os, 'eventfd') and hasattr(select, 'poll')  # on Linux


class Reader(Protocol):
    """What a thread waits by that may read in the I/O thread's place."""

    def ring(self) -> None:
        """Have the thread return from its wait. Any thread."""


class Holder(enum.Enum):
    """Which thread has the turn to read a link."""

    IO_THREAD = 'the I/O thread: its loop watches the socket'
    ASKED = 'the I/O thread still; a waiting thread has asked it for the turn'
    LENT = 'a waiting thread: the loop does not watch the socket'


class Turn:
    """Whose turn it is to read one link.

    ::

                    ask (waiting thread)           grant (I/O thread)
        IO_THREAD ───────────────────────▶ ASKED ────────────────────▶ LENT
            ▲                                                           │
            └───────────────────── take_back (I/O thread) ──────────────┘

    until :attr:`is_over` is set, by any thread and for good; in every state that stops the reading.

    What always holds, and why a look at a lock and a field is enough to know which thread reads:

    1. Bytes are read and cut by one thread at a time: in IO_THREAD and ASKED by the I/O thread; in LENT by the thread
       whose alarm is :attr:`reader`, and only while it holds :attr:`lock`.
    2. The I/O thread alone changes :attr:`reader`. It takes a reader away only while it holds :attr:`lock` itself, so
       never while that thread reads. The reading thread takes the lock first and looks at :attr:`reader` after that:
       what it sees holds until it lets go.
    3. In LENT no thread reads while the one with the turn works on what it has read. The tick bounds that: a turn whose
       thread did not come back between two ticks is taken back. A thread that waits for the same link has it taken
       back at once.
    4. Frames that the reading thread meets for pika are queued, and fed to pika by the I/O thread in order; the I/O
       thread itself feeds pika directly only when that queue is empty.
    5. Before the I/O thread forgets a lost link it waits for the lock, for :data:`PATIENCE`: what a thread still reads
       must not reach the channels of the next link.

    :param call_soon: calls back on the I/O thread
    :param set_loop_reads: has the loop watch the socket, or not; on the I/O thread
    :ivar lock: held by the reading thread while it waits and reads. It is re-entrant, so that a thread which Ctrl-C
        took out of its wait between the taking and the noting of it does not wait for itself.
    """

    def __init__(self, call_soon: Callable[[Callable[[], Any]], None], set_loop_reads: Callable[[bool], None]) -> None:
        self._call_soon = call_soon
        self._set_loop_reads = set_loop_reads
        self.lock = threading.RLock()
        self.holder = Holder.IO_THREAD
        self.reader: Reader | None = None
        self.is_over = False

    def ask(self, reader: Reader) -> None:
        """Ask the I/O thread to leave reading to a thread, whose alarm rings when it does. Any thread."""
        if self.holder is Holder.IO_THREAD:
            # Where two threads get here together, the I/O thread grants the first and passes over the second.
            self.holder = Holder.ASKED
            self._call_soon(functools.partial(self._grant, reader))

    def _grant(self, reader: Reader) -> None:
        if self.holder is Holder.ASKED and not self.is_over:
            self._set_loop_reads(False)
            self.reader = reader
            self.holder = Holder.LENT
            reader.ring()

    def take_back(self) -> None:
        """Have the I/O thread read again; where a thread reads at this moment, it asks for that as it ends its wait.

        On the I/O thread.
        """
        if self.holder is Holder.LENT and not self.is_over and self.lock.acquire(blocking=False):
            self.reader = None
            self.holder = Holder.IO_THREAD
            self.lock.release()
            self._set_loop_reads(True)

    def await_end(self) -> None:
        """Have no thread read any more, and wait for the one that does. On the I/O thread."""
        self.is_over = True
        if self.reader is not None:
            self.reader.ring()
        if self.lock.acquire(timeout=PATIENCE):
            self.lock.release()
        self.reader = None


class Readable(Protocol):
    """What is read: a link.

    :ivar turn: whose turn it is; ``None`` where the I/O thread alone reads
    :ivar number: of the socket, to be polled
    :ivar read_at: when something was last read, on the monotonic clock
    """

    turn: Turn | None
    number: int
    read_at: float

    def read(self) -> Exception | None:
        """Read what has come and act on it. Returns why it is the end, if it is."""

    def fail_soon(self, error: Exception) -> None:
        """Give the link up. Any thread."""


class Awaited(Protocol):
    """A channel, to whoever has to know whether what comes for it may lie unread for a moment."""

    is_awaited: bool


class Readership:
    """The threads that wait for one connection, and which of them reads its link.

    Any thread may wait; one that waits alone asks for the turn to read, which saves the time it takes to wake one
    thread by another. Several threads that wait for the same connection leave the turn to the I/O thread.

    :param channels: the connection's, in a list that the connection changes in place
    :ivar link: what is read, while there is a connection; written by the I/O thread
    :ivar is_over: whether the connection is closed for good
    """

    _loop: Loop
    _tick: Tick
    _outbox: Outbox

    def __init__(self, channels: Sequence[Awaited]) -> None:
        self._channels = channels
        self.is_over = False

    def start_over(self, loop: Loop, tick: Tick, outbox: Outbox) -> None:
        """Be that of a connection which was never opened: at first, and in a forked child."""
        self._loop = loop
        self._tick = tick
        self._outbox = outbox
        self._waiting: set[object] = set()  # one for each waiting thread
        self._shared_until = 0.0
        self.link: Readable | None = None
        tick.add(self._look)

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Round everything in which a thread blocks until this connection has brought something.

        What the thread has gathered is sent, and the I/O thread reads, whichever thread has the turn.

        :raises RuntimeError: in a callback of a connection
        """
        check_may_block()
        flush_batch()
        if self._outbox.gathered:
            self._outbox.flush()
        token = object()
        self._waiting.add(token)
        self._take_back()
        try:
            yield
        finally:
            self._waiting.discard(token)

    def begin(self, alarm: ReadingAlarm) -> Readable | None:
        """A thread begins to wait. Returns what it is to read meanwhile, if it has the turn; it holds its lock then."""
        if self._outbox.gathered:
            self._outbox.flush()
        self._waiting.add(alarm)
        link = self.link
        turn = link.turn if link is not None else None
        if turn is None or turn.is_over:
            return None
        if turn.reader is alarm:
            alarm.held.append(turn.lock)  # first: what Ctrl-C leaves held is in this list
            turn.lock.acquire()
            if turn.reader is alarm and not turn.is_over:
                return link
            alarm.held.pop()
            turn.lock.release()
        elif turn.reader is None:
            if len(self._waiting) == 1 and time.monotonic() >= self._shared_until:
                turn.ask(alarm)
                self._tick.stir()  # the thread may have gone by the time it gets the turn
        else:
            self._take_back()
        return None

    def end(self, alarm: ReadingAlarm, has_read: bool) -> None:
        """The thread waits no more; it holds no lock any more."""
        self._waiting.discard(alarm)
        if self._waiting:
            if has_read:
                self._shared_until = time.monotonic() + SHARED_SECONDS
            self._take_back()
        elif has_read:
            tick = self._tick
            tick.is_stirred = True
            if not tick.is_ticking:
                tick.begin()

    def may_lie(self, link: Readable) -> bool:
        """Whether nothing can come now but confirms that no thread waits for: in a moment they are read at one go.

        A component that answers RPCs, or hands messages on, is woken by its next message, and not for each confirm.
        """
        if time.monotonic() - link.read_at > MILLISECONDS_UNREAD / 1000:
            return False
        for channel in self._channels:  # noqa: SIM110 - a generator would cost a call for each
            if channel.is_awaited:
                return False
        return True

    def _take_back(self) -> None:
        link = self.link
        if link is not None and link.turn is not None and link.turn.holder is not Holder.IO_THREAD:
            self._loop.add_callback_threadsafe(link.turn.take_back)

    def _look(self, was_stirred: bool) -> bool:
        """At each tick: take the turn back where its thread has not come back since the last one."""
        turn = self.link.turn if self.link is not None else None
        if turn is None or turn.holder is not Holder.LENT or turn.is_over:
            return False
        if not was_stirred:
            turn.take_back()
        return True


class ReadingAlarm:
    """What a thread waits by that reads meanwhile; a scheduler's, too (:meth:`MicroScheduler.sleep_by`).

    Only :meth:`ring` may be called from other threads.

    :ivar held: the locks of the turns that the thread has
    """

    def __init__(self) -> None:
        self._readerships: list[Readership] = []
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._start_over()
        _alarms.add(self)

    def _start_over(self) -> None:
        self.held: list[threading.RLock] = []
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._bell)
        self._close.atexit = False  # connections that close at exit may still ring it
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._polled: dict[int, Readable] = {}
        self._unread: list[int] = []  # of these
        self._is_acting = False  # on what it has read
        self._has_rung = False

    def add(self, readership: Readership) -> None:
        """Read that one too, whenever the scheduler of this thread waits."""
        if readership not in self._readerships:
            self._readerships = [known for known in self._readerships if not known.is_over]
            self._readerships.append(readership)

    def ring(self) -> None:
        """Wake the thread, or have its next wait return at once. Any thread."""
        if self._is_acting and _own.alarm is self:
            self._has_rung = True  # it is awake, and looks before it sleeps again
        else:
            os.eventfd_write(self._bell, 1)

    def ring_for(self, future: Future[Any]) -> None:
        """Have it ring when a future is done; once, however often it is waited for."""
        if future not in self._futures:
            self._futures.add(future)
            future.add_done_callback(lambda _: self.ring())

    def wait(self, timeout: float | None) -> None:
        """Sleep until it rings, or for so many seconds."""
        self.wait_for(self._readerships, timeout)

    def wait_for(self, readerships: Sequence[Readership], timeout: float | None) -> None:
        """The same, reading those.

        :raises RuntimeError: in a callback of a connection
        """
        if this_thread.is_reading:
            check_may_block()
        if this_thread.batch:
            flush_batch()
        if self.held:
            self._let_go()  # of what Ctrl-C left held
        reading: dict[int, Readable] = {}
        unread: list[int] = []
        try:
            for readership in readerships:
                link = readership.begin(self)
                if link is not None:
                    reading[link.number] = link
                    if readership.may_lie(link):
                        unread.append(link.number)
            if reading != self._polled:
                self._poll_instead(reading)
            self._read_until_it_rings(reading, unread, timeout)
        finally:
            if self.held:
                self._let_go()
            for readership in readerships:
                readership.end(self, bool(reading))

    def _let_go(self) -> None:
        """Give up the locks of all turns. One that Ctrl-C kept from being taken is passed over."""
        while self.held:
            try:
                self.held[-1].release()
            except RuntimeError:
                pass  # it is not ours
            self.held.pop()

    def _poll_instead(self, reading: dict[int, Readable]) -> None:
        for number in self._polled:
            self._poll.unregister(number)
        for number in reading:
            self._poll.register(number, select.POLLIN)
        self._polled = reading
        self._unread = []

    def _poll_but(self, unread: list[int]) -> None:
        """Of those links, watch for nothing but their end."""
        for number in self._unread:
            self._poll.modify(number, select.POLLIN)
        for number in unread:
            self._poll.modify(number, 0)
        self._unread = unread

    def _read_until_it_rings(self, reading: dict[int, Readable], unread: list[int], timeout: float | None) -> None:
        self._has_rung = False
        if unread != self._unread:
            self._poll_but(unread)
        deadline = None if timeout is None else time.monotonic() + min(timeout, LONGEST_WAIT)
        while not self._has_rung:
            rest = None if deadline is None else math.ceil(max(0.0, deadline - time.monotonic()) * 1000)
            if unread:
                rest = MILLISECONDS_UNREAD if rest is None else min(rest, MILLISECONDS_UNREAD)
            ready = self._poll.poll(rest)
            if not (ready or unread):
                return
            for number, _ in ready:
                if number == self._bell:
                    os.eventfd_read(self._bell)
                    self._has_rung = True
                else:
                    self._read(reading[number])
            if unread and not self._has_rung:
                unread = []  # no longer than for one look
                self._poll_but(unread)

    def _read(self, link: Readable) -> None:
        error: Exception | None = None
        thread = this_thread
        outer, thread.batch = thread.batch, []
        self._is_acting = thread.is_reading = True
        try:
            error = link.read()
        except BaseException:
            # Ctrl-C, above all. What was read and not acted on is lost, so the broker has to send it again.
            error = pika.exceptions.StreamLostError('interrupted while reading')
            raise
        finally:
            self._is_acting = thread.is_reading = False
            if error is not None:
                self._has_rung = True
                link.fail_soon(error)
            try:
                if thread.batch:
                    flush_batch()
            finally:
                thread.batch = outer

    def after_fork(self) -> None:
        """In a forked child the bell is the parent's."""
        self._close()
        self._start_over()


class _Own(threading.local):
    alarm: ReadingAlarm | None = None


_own = _Own()
_alarms: weakref.WeakSet[ReadingAlarm] = weakref.WeakSet()


def alarm_of_thread() -> ReadingAlarm | None:
    """What the present thread waits by; ``None`` where it cannot read while it waits."""
    if _own.alarm is None and CAN_READ:
        _own.alarm = ReadingAlarm()
    return _own.alarm


def read_by_this_thread(readership: Readership) -> None:
    """Have the scheduler of this thread, where it has one that reads, read that connection as well."""
    if _own.alarm is not None:
        _own.alarm.add(readership)


def wait_until_done(future: Future[Any], readership: Readership, timeout: float | None) -> None:
    """Wait until a future is done that a connection will bring the answer to, or for so many seconds. Blocks."""
    alarm = alarm_of_thread()
    if alarm is None:
        with readership.awaited():
            concurrent.futures.wait([future], timeout)
        return
    deadline = None if timeout is None else time.monotonic() + timeout
    alarm.ring_for(future)
    while not future.done():
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            return
        alarm.wait_for((readership,), remaining)


def _after_fork_in_child() -> None:
    for alarm in list(_alarms):
        alarm.after_fork()


call_in_child(Stage.ALARMS, _after_fork_in_child)
