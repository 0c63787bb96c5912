"""How a thread waits for what a connection brings, and what it sends before it does.

Three things save a component that is asked and answers all day most of what threads cost, and half of its wake-ups:

* What handlers publish and acknowledge while a scheduler has a batch of messages in hand is sent when that is done, in
  one write (:class:`Batch`).
* A thread that waits reads the connections that it waits for itself, instead of being woken by the I/O thread that has
  read them (:class:`ReadingAlarm`). It keeps that task while it works on what it has read, for it will be back soon;
  where it is not, the I/O thread takes the task back at a tick (``Traffic.stir``), and at once where somebody else
  waits for the same connection.
* Confirms that nobody waits for, those of replies above all, do not wake it: they are read together a moment later
  (``Traffic.can_wait``), and the acknowledgements that follow from them go out as one.
"""

from __future__ import annotations

import concurrent.futures
import math
import os
import select
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pika.exceptions

if TYPE_CHECKING:
    from postage.amqp.traffic import Traffic
    from postage.amqp.transport import WireConnection

LONGEST_WAIT = 86400.0  # seconds that poll() is asked to wait at once; it takes no more than 24 days
PATIENCE_MILLISECONDS = 2  # for which confirms may wait to be read that nobody waits for
CAN_READ = hasattr(os, 'eventfd') and hasattr(select, 'poll')  # on Linux


class _Thread(threading.local):
    """What is known of the present thread.

    :ivar batch: connections with something to send at the end of the batch that it has in hand
    :ivar alarm: what it waits by
    :ivar is_reading: whether it is an I/O thread, or is acting on what it has just read: nothing may block
    """

    batch: list[Traffic] | None = None
    alarm: ReadingAlarm | None = None
    is_reading = False


this_thread = _Thread()


def check_may_block() -> None:
    """See that the present thread may wait for what a connection brings.

    :raises RuntimeError: in a callback of a connection, where it would wait for itself
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
                send_batch()
            finally:
                this_thread.batch = None


def send_batch() -> None:
    """Send what the present thread has gathered; before it waits for anything."""
    batch = this_thread.batch
    while batch:
        batch.pop().send()


def alarm_of_thread() -> ReadingAlarm | None:
    """What the present thread waits by; ``None`` where it cannot read while it waits."""
    if this_thread.alarm is None and CAN_READ:
        this_thread.alarm = ReadingAlarm()
    return this_thread.alarm


class ReadingAlarm:
    """What a thread waits by that reads meanwhile; a scheduler's, too (:meth:`MicroScheduler.sleep_by`).

    Only :meth:`ring` may be called from other threads.
    """

    def __init__(self) -> None:
        self._connections: list[Traffic] = []
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._start_over()
        _alarms.add(self)

    def _start_over(self) -> None:
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._bell)
        self._close.atexit = False  # connections that close at exit may still ring it
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._polled: dict[int, WireConnection] = {}
        self._unheeded: list[int] = []  # of these
        self._is_acting = False  # on what it has read
        self._has_rung = False

    def add(self, connection: Traffic) -> None:
        """Read that one too, whenever the scheduler of this thread waits."""
        if connection not in self._connections:
            self._connections = [known for known in self._connections if not known.is_closed]
            self._connections.append(connection)

    def ring(self) -> None:
        """Wake the sleeper, or have the next wait return at once. Any thread."""
        if self._is_acting and this_thread.alarm is self:
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
        self.wait_for(self._connections, timeout)

    def wait_for(self, connections: Sequence[Traffic], timeout: float | None) -> None:
        """The same, reading those connections.

        :raises RuntimeError: in a callback of a connection
        """
        check_may_block()
        send_batch()
        reading: dict[int, WireConnection] = {}
        unheeded: list[int] = []
        try:
            for connection in connections:
                wire = connection.begin_reading(self)
                if wire is not None:
                    reading[wire.number] = wire
                    if connection.can_wait(wire):
                        unheeded.append(wire.number)
            if reading != self._polled:
                self._poll_instead(reading)
            self._read_until_it_rings(reading, unheeded, timeout)
        finally:
            for wire in reading.values():
                wire.reading.release()
            for connection in connections:
                connection.end_reading(self, bool(reading))

    def _poll_instead(self, reading: dict[int, WireConnection]) -> None:
        for number in self._polled:
            self._poll.unregister(number)
        for number in reading:
            self._poll.register(number, select.POLLIN)
        self._polled = reading
        self._unheeded = []

    def _heed_all_but(self, unheeded: list[int]) -> None:
        """Of those connections nothing is heeded but their end."""
        for number in self._unheeded:
            self._poll.modify(number, select.POLLIN)
        for number in unheeded:
            self._poll.modify(number, 0)
        self._unheeded = unheeded

    def _read_until_it_rings(
        self, reading: dict[int, WireConnection], unheeded: list[int], timeout: float | None
    ) -> None:
        self._has_rung = False
        if unheeded != self._unheeded:
            self._heed_all_but(unheeded)
        deadline = None if timeout is None else time.monotonic() + min(timeout, LONGEST_WAIT)
        while not self._has_rung:
            rest = None if deadline is None else math.ceil(max(0.0, deadline - time.monotonic()) * 1000)
            if unheeded:
                rest = PATIENCE_MILLISECONDS if rest is None else min(rest, PATIENCE_MILLISECONDS)
            ready = self._poll.poll(rest)
            if not (ready or unheeded):
                return
            for number, _ in ready:
                if number == self._bell:
                    os.eventfd_read(self._bell)
                    self._has_rung = True
                else:
                    self._read(reading[number])
            if unheeded and not self._has_rung:
                unheeded = []  # no longer than for one look
                self._heed_all_but(unheeded)

    def _read(self, wire: WireConnection) -> None:
        error: Exception | None = None
        thread = this_thread
        outer, thread.batch = thread.batch, []
        self._is_acting = thread.is_reading = True
        try:
            error = wire.read()
        except BaseException:
            # Ctrl-C, above all. What was read and not acted on is lost, so the broker has to send it again.
            error = pika.exceptions.StreamLostError('interrupted while reading')
            raise
        finally:
            self._is_acting = thread.is_reading = False
            if error is not None:
                self._has_rung = True
                wire.fail_soon(error)
            try:
                send_batch()
            finally:
                thread.batch = outer

    def after_fork(self) -> None:
        """In a forked child the bell is the parent's."""
        self._close()
        self._start_over()


_alarms: weakref.WeakSet[ReadingAlarm] = weakref.WeakSet()


def wait_until_done(future: Future[Any], connection: Traffic, timeout: float | None) -> None:
    """Wait until a future is done that the connection will bring the answer to, or for so many seconds. Blocks."""
    alarm = alarm_of_thread()
    if alarm is None:
        with connection.awaited():
            concurrent.futures.wait([future], timeout)
        return
    deadline = None if timeout is None else time.monotonic() + timeout
    alarm.ring_for(future)
    while not future.done():
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            return
        alarm.wait_for((connection,), remaining)


def _after_fork_in_child() -> None:
    this_thread.is_reading = False
    if this_thread.batch:
        this_thread.batch.clear()  # the parent sends it
    for alarm in list(_alarms):
        alarm.after_fork()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork_in_child)
