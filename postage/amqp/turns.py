"""Whose turn it is to read: a thread that waits for what a connection brings may read it in the I/O thread's place.

That saves the time it takes to wake one thread by another. A waiting scheduler, or the caller of an RPC, reads the
links of its connections itself (:class:`ReadingAlarm`) and acts on what it has read. It keeps the turn while it works
on that, for it will be back soon; where it is not, the I/O thread takes the turn back at a tick
(:mod:`postage.amqp.tick`), and at once where another thread waits for the same connection (:class:`Readership`).

Confirms that no thread waits for, those of replies above all, do not wake it: they lie unread for a moment, and the
acknowledgements that follow from them go out as one. So a component that answers RPCs, or hands messages on, is woken
by its next message, and not for each confirm.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import os
import select
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pika.exceptions

from postage.amqp.forks import Stage, call_in_child
from postage.amqp.link import CAN_READ, Holder, Link
from postage.amqp.outbox import Outbox
from postage.amqp.threads import check_may_block, flush_batch, this_thread
from postage.amqp.tick import Loop, Tick

SHARED_SECONDS = 0.1  # for which the I/O thread alone reads a connection that several threads wait for
LONGEST_WAIT = 86400.0  # seconds that poll() is asked to wait at once; it takes no more than 24 days
LENT_SECONDS = 1.0  # between looks at a turn whose thread waits and reads
MILLISECONDS_UNREAD = 2  # for which confirms that no thread waits for may lie unread


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

    def __init__(self, channels: Sequence[Any]) -> None:
        self._channels = channels
        self.is_over = False

    def start_over(self, loop: Loop, tick: Tick, outbox: Outbox) -> None:
        """Be that of a connection which was never opened: at first, and in a forked child."""
        self._loop = loop
        self._tick = tick
        self._outbox = outbox
        # One for each waiting thread, which puts it in and takes it out in one step. Of two threads that begin to wait
        # together each may see itself alone, and ask for the turn: the second question is passed over (Turn.ask).
        self._waiting: set[object] = set()
        self._shared_until = 0.0
        self._is_looked_at_later = False  # for the I/O thread only
        self.link: Link | None = None
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

    def begin(self, alarm: ReadingAlarm) -> None:
        """A thread begins to wait. Where it has the turn, it takes its lock, and the link is added to what it reads."""
        if self._outbox.gathered:
            self._outbox.flush()
        self._waiting.add(alarm)
        link = self.link
        turn = link.turn if link is not None else None
        if link is None or turn is None or turn.is_over:
            return
        if turn.reader is alarm:
            alarm.held.append(turn.lock)  # first: what Ctrl-C leaves held is in this list
            turn.lock.acquire()
            if turn.reader is alarm and not turn.is_over:
                alarm.reading[link.number] = link
                if time.monotonic() - link.read_at <= MILLISECONDS_UNREAD / 1000:
                    for channel in self._channels:
                        if channel.is_awaited:
                            return
                    alarm.unread.append(link.number)  # nothing can come but confirms that no thread waits for
                return
            alarm.held.pop()
            turn.lock.release()
        elif turn.reader is None:
            if len(self._waiting) == 1 and time.monotonic() >= self._shared_until:
                turn.ask(alarm)
                self._tick.stir()  # the thread may have gone by the time it gets the turn
        else:
            self._take_back()

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

    def _take_back(self) -> None:
        link = self.link
        if link is not None and link.turn is not None and link.turn.holder is not Holder.IO_THREAD:
            self._loop.add_callback_threadsafe(link.turn.take_back)

    def _look(self, was_stirred: bool) -> bool:
        """At each tick: take the turn back where its thread has not come back since the last one.

        A question that has not been answered by then was not put: Ctrl-C came in between.
        """
        turn = self.link.turn if self.link is not None else None
        if turn is None or turn.holder is Holder.IO_THREAD or turn.is_over:
            return False
        if was_stirred and turn.holder is Holder.LENT:
            return True
        turn.take_back()
        if turn.holder is not Holder.LENT:
            return True
        # Its thread waits and reads, and stirs the tick when that ends: see end(). Where Ctrl-C kept it from that, the
        # turn is taken back a second later.
        if not self._is_looked_at_later:
            self._is_looked_at_later = True
            self._loop.call_later(LENT_SECONDS, self._look_again)
        return False

    def _look_again(self) -> None:
        self._is_looked_at_later = False
        if not self.is_over:
            self._tick.begin()


class ReadingAlarm:
    """What a thread waits by that reads meanwhile; a scheduler's, too (:meth:`MicroScheduler.sleep_by`).

    Only :meth:`ring` may be called from other threads.

    :ivar readerships: those that it reads by default
    :ivar held: the locks of the turns that the thread has
    :ivar reading: the links that it reads, by number
    :ivar unread: those of them on which what comes may lie unread for a moment
    """

    def __init__(self) -> None:
        self.readerships: list[Readership] = []
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
        self.reading: dict[int, Link] = {}
        self.unread: list[int] = []
        self._polled: dict[int, Link] = {}
        self._unpolled: list[int] = []  # of these
        self._is_acting = False  # on what it has read
        self._has_rung = False

    def add(self, readership: Readership) -> None:
        """Read that one too, whenever the scheduler of this thread waits."""
        if readership not in self.readerships:
            self.readerships = [known for known in self.readerships if not known.is_over]
            self.readerships.append(readership)

    def ring(self) -> None:
        """Wake the thread, or have its next wait return at once. Any thread."""
        if self._is_acting and own.alarm is self:
            self._has_rung = True  # it is awake, and looks before it sleeps again
        else:
            os.eventfd_write(self._bell, 1)

    def ring_for(self, future: Future[Any]) -> None:
        """Have it ring when a future is done; once, however often it is waited for."""
        if future not in self._futures:
            self._futures.add(future)
            future.add_done_callback(lambda _: self.ring())

    def wait(self, timeout: float | None, readerships: Sequence[Readership] | None = None) -> None:
        """Sleep until it rings, or for so many seconds, and read meanwhile.

        :param readerships: of which connections; by default of those that were added
        :raises RuntimeError: in a callback of a connection
        """
        if this_thread.is_reading:
            check_may_block()
        if this_thread.batch:
            flush_batch()
        if self.held:
            self._let_go()  # of what Ctrl-C left held
        if readerships is None:
            readerships = self.readerships
        self.reading, self.unread = {}, []
        try:
            for readership in readerships:
                readership.begin(self)
            if self.reading != self._polled:
                self._poll_instead()
            self._read_until_it_rings(timeout)
            while self.held:
                self.held[-1].release()
                self.held.pop()
        finally:
            if self.held:
                self._let_go()
            has_read = bool(self.reading)
            for readership in readerships:
                readership.end(self, has_read)

    def _let_go(self) -> None:
        """Give up the locks of all turns. One that Ctrl-C kept from being taken is passed over."""
        while self.held:
            try:
                self.held[-1].release()
            except RuntimeError:
                pass  # it is not ours
            self.held.pop()

    def _poll_instead(self) -> None:
        poll = select.poll()  # a new one, so that Ctrl-C leaves the old one whole
        poll.register(self._bell, select.POLLIN)
        for number in self.reading:
            poll.register(number, select.POLLIN)
        self._poll, self._polled, self._unpolled = poll, self.reading, []

    def _poll_all_but(self, unread: list[int]) -> None:
        """Of those links, watch for nothing but their end."""
        for number in self._unpolled:
            self._poll.modify(number, select.POLLIN)
        self._unpolled = unread  # noted first: what Ctrl-C leaves undone is watched, and put right the next time
        for number in unread:
            self._poll.modify(number, 0)

    def _read_until_it_rings(self, timeout: float | None) -> None:
        self._has_rung = False
        unread = self.unread
        if unread != self._unpolled:
            self._poll_all_but(unread)
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
                    self._read(self.reading[number])
            if unread and not self._has_rung:
                unread = []  # no longer than for one look
                self._poll_all_but(unread)

    def _read(self, link: Link) -> None:
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


own = _Own()
_alarms: weakref.WeakSet[ReadingAlarm] = weakref.WeakSet()


def alarm_of_thread() -> ReadingAlarm | None:
    """What the present thread waits by; ``None`` where it cannot read while it waits."""
    if own.alarm is None and CAN_READ:
        own.alarm = ReadingAlarm()
    return own.alarm


def read_by_this_thread(readership: Readership) -> None:
    """Have the scheduler of this thread, where it has one that reads, read that connection as well."""
    alarm = own.alarm
    if alarm is not None and readership not in alarm.readerships:
        alarm.add(readership)


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
        alarm.wait(remaining, (readership,))


def _after_fork_in_child() -> None:
    for alarm in list(_alarms):
        alarm.after_fork()


call_in_child(Stage.ALARMS, _after_fork_in_child)
