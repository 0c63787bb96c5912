"""A connection that heals itself, on an I/O thread of its own.

Handlers, however slow, never run on the I/O thread, so heartbeats always go out. When the connection is lost it is
made again, to each host in turn and with growing pauses; then everything that was declared on it is declared
again, and every channel is opened again, in that order.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Literal

import pika.adapters.select_connection
import pika.exceptions

from postage import errors
from postage.amqp.channel import Channel, ControlChannel, Steps, describe
from postage.amqp.fallback import PublicConnection
from postage.amqp.io_services import IOServices
from postage.amqp.publishing import PublishingChannel
from postage.amqp.topology import Queue, Topology
from postage.amqp.traffic import Traffic
from postage.amqp.transport import WireConnection, connection_class
from postage.amqp.waiting import check_may_block, this_thread
from postage.settings import BrokerSettings, fast_lane

Role = Literal['publishing', 'consuming']

OPERATION_TIMEOUT = 60.0  # seconds that a blocking operation waits for the broker, reconnects included
CLOSE_TIMEOUT = 10.0  # seconds that a close, or the end of the program, waits for what is pending
ABORT_SECONDS = 0.1  # for an attempt to connect to end when it is given up
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between rounds of attempts; the last one is the ceiling
WATCH_SHARE = 0.95  # of two heartbeats, so that a silent connection is given up within them
FRAME_MIN = 4096  # bytes that every peer accepts in a frame (section 4.2.3)


class Connection(Traffic):
    """The way to one broker for everything in this process that publishes, or that consumes.

    Its public methods may be called from any thread but its own; what is said to run on the I/O thread is for the
    modules of this package.

    :ivar settings: where it leads, and with which credentials
    :ivar role: ``'publishing'`` or ``'consuming'``
    :ivar users: how many hold it, see :mod:`postage.amqp.registry`
    :ivar wire: pika's connection while there is an open one; for the I/O thread only
    """

    logger = logging.getLogger('postage')

    def __init__(self, settings: BrokerSettings, role: Role) -> None:
        self.settings = settings
        self.role = role
        self._fast_lane = fast_lane()
        self.users = 0
        self._publishers: dict[bool, PublishingChannel] = {}
        self._channels: list[Channel] = []
        self._topologies: weakref.WeakSet[Topology] = weakref.WeakSet()
        self._start_over()
        _all.add(self)

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.role} on {self.settings}>'

    def _start_over(self) -> None:
        """The state of a connection that was never opened: at first, and in a forked child."""
        super()._start_over()
        self.wire: PublicConnection | None = None
        self.is_ready = False
        self.error: errors.BrokerError | None = None
        self._thread: threading.Thread | None = None
        self._loop = pika.adapters.select_connection.IOLoop()
        self._attempt: PublicConnection | None = None
        self._opened: Future[None] = Future()
        self._waiting_for_open: list[Future[Any]] = []
        self._closing = self._close_requested = False
        self._lost_at = 0.0
        self._round = 0
        self._endpoint = 0
        self._failures: list[str] = []
        self._control: ControlChannel | None = None
        self._next_look: Any = None  # the timer of _watch

    # Opening and closing, from any thread

    def open(self, timeout: float) -> None:
        """Connect, and wait until that has succeeded.

        :param timeout: seconds to wait for a broker that is down
        :raises errors.AuthenticationFailed: at once
        :raises errors.VirtualHostRefused: at once
        :raises errors.BrokerUnavailable: after ``timeout``
        """
        self._ensure_running()
        try:
            with self.awaited():
                self._opened.result(timeout)
        except FutureTimeout:
            last = self._failures[-1] if self._failures else 'no answer'
            raise errors.BrokerUnavailable(
                f'no broker at {self.settings} within {timeout:g} s ({last}); '
                'is it running, and are POSTAGE_HOST, POSTAGE_PORT or POSTAGE_URL right?'
            ) from None

    def _ensure_running(self) -> None:
        with _lock:
            _quieten_pika()
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name=f'postage-{self.role}', daemon=True)
                self._loop.add_callback_threadsafe(self._connect)
                self._thread.start()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Send what is pending, close the connection and end its thread. Blocks until then, or for ``timeout``."""
        thread = self._thread
        if thread is None:
            self._closing = True
            return
        if thread.is_alive():
            self._loop.add_callback_threadsafe(lambda: self._begin_close(timeout))
        if not this_thread.is_reading:
            with self.awaited():
                thread.join(timeout + 1.0)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed for good."""
        return self._closing

    @property
    def is_open(self) -> bool:
        """Whether there is a connection at the moment, with everything on it restored."""
        return self.is_ready

    def run(self, steps: Callable[[], Steps], timeout: float = OPERATION_TIMEOUT, when_open: bool = True) -> Any:
        """Take steps on the I/O thread and wait for their end.

        Where the connection is lost in between they are taken again from the beginning once it is back, so they
        have to be repeatable.

        :param timeout: seconds for all of it
        :param when_open: wait for a connection first, where there is none at the moment
        :return: what the steps return
        :raises errors.BrokerError: what the broker said, or :class:`errors.ConnectionLost` after ``timeout``
        """
        check_may_block()
        if self._closing:
            raise errors.Closed(f'the connection to {self.settings} is closed')
        self._ensure_running()
        deadline = time.monotonic() + timeout
        while True:
            done: Future[Any] = Future()
            self._loop.add_callback_threadsafe(lambda done=done: self._start(steps, done, when_open))  # type: ignore[misc]
            try:
                with self.awaited():
                    return done.result(max(0.0, deadline - time.monotonic()))
            except FutureTimeout:
                raise errors.ConnectionLost(f'the broker at {self.settings} did not answer for {timeout:g} s') from None
            except errors.ConnectionLost:
                if self._closing or time.monotonic() >= deadline:
                    raise

    def _start(self, steps: Callable[[], Steps], done: Future[Any], when_open: bool) -> None:
        def guarded() -> Steps:
            if when_open:
                yield self.when_open()
            return (yield from steps())

        def finish(finished: Future[Any]) -> None:
            error = finished.exception()
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(finished.result())

        self.drive(guarded()).add_done_callback(finish)

    # Who uses it

    def add_channel(self, channel: Channel) -> None:
        """Open a channel now, and again after every loss. Blocks."""
        self.run(lambda: self._add_steps(channel))

    def _add_steps(self, channel: Channel) -> Steps:
        if channel not in self._channels:
            self._channels.append(channel)
        yield from channel.ensure_open_steps()

    def attach(self, channel: Channel) -> None:
        """Open a channel as soon as there is a connection, and again after every loss. On the I/O thread."""
        self._channels.append(channel)
        if self.wire is not None:
            self.drive(channel.ensure_open_steps()).add_done_callback(channel._on_reopened)

    def detach(self, channel: Channel) -> None:
        """Close a channel for good. On the I/O thread."""
        if channel in self._channels:
            self._channels.remove(channel)
        self.drive(channel.close_steps())

    def remove_channel(self, channel: Channel) -> None:
        """Send what waits on a channel and close it for good. Blocks."""
        channel.is_wanted = False
        if channel in self._channels:
            self._channels.remove(channel)
        if self._thread is None or self._closing:
            return
        try:
            self.run(channel.close_steps, CLOSE_TIMEOUT, when_open=False)
        except errors.BrokerError as error:
            self.logger.debug('closing a channel: %s', error)

    def remember(self, topology: Topology) -> None:
        """Declare this again after every reconnect, for as long as its owner lives."""
        self._topologies.add(topology)

    def forget(self, topology: Topology) -> None:
        """Stop declaring this again."""
        self._topologies.discard(topology)

    def check_exclusive(self, queue: Queue, topology: Topology) -> None:
        """See that nobody else here owns an exclusive queue of that name.

        To the broker the consumers of a process are one connection, which may declare it twice; two owners would
        take each other's messages all the same.

        :raises errors.ResourceLocked: where somebody does
        """
        for other in list(self._topologies):
            owned = other.queues.get(queue.name) if other is not topology else None
            if owned is not None and (owned.flags.get('exclusive') or queue.flags.get('exclusive')):
                raise errors.ResourceLocked(
                    f'queue {queue.name!r} is exclusive, and another consumer of this process owns it', 405
                )

    @property
    def control(self) -> ControlChannel:
        """The channel on which things are declared."""
        if self._control is None:
            self._control = ControlChannel(self)
        return self._control

    @property
    def publishers(self) -> list[PublishingChannel]:
        """The channels through which messages leave."""
        return list(self._publishers.values())

    def publisher(self, confirms: bool) -> PublishingChannel:
        """The channel through which messages leave, with confirms or without. Blocks at its first use."""
        with _lock:
            channel = self._publishers.get(confirms)
            if channel is None or not channel.is_wanted:
                channel = self._publishers[confirms] = PublishingChannel(self, confirms)
        if channel not in self._channels:
            self.add_channel(channel)
        return channel

    def replay_exchanges(self) -> Steps:
        """Declare all exchanges again. On the I/O thread."""
        for topology in list(self._topologies):
            yield from topology.replay_exchanges(self.control)

    @property
    def heartbeat(self) -> float:
        """Seconds between heartbeats, as agreed with the broker; 0 where there are none."""
        return self.wire.heartbeat if self.wire is not None else 0.0

    @property
    def frame_max(self) -> int:
        """Bytes that a frame may have on the present connection."""
        return self.wire.frame_max if self.wire is not None else FRAME_MIN

    # The I/O thread

    def _run(self) -> None:
        """The I/O thread. An exception in a callback must not end it, and with it everything that waits."""
        loop = self._loop
        this_thread.is_reading = True
        while True:
            try:
                loop.start()
                break
            except Exception:
                self.logger.exception('an unexpected error on the connection thread of %s', self.settings)
        loop.close()
        for wire in (self.wire, self._attempt):
            if wire is not None:
                wire.abandon()  # where the broker has not answered the farewell

    def drive(self, steps: Steps) -> Future[Any]:
        """Take steps on the I/O thread, each when the one before it is done. Returns a future of their result."""
        outcome: Future[Any] = Future()

        def advance(finished: Future[Any] | None) -> None:
            try:
                error = finished.exception() if finished is not None else None
                if error is not None:
                    awaited = steps.throw(error)
                else:
                    awaited = steps.send(finished.result() if finished is not None else None)
            except StopIteration as stop:
                outcome.set_result(stop.value)
            except BaseException as failure:
                outcome.set_exception(failure)
            else:
                awaited.add_done_callback(advance)

        advance(None)
        return outcome

    def pause(self, seconds: float) -> Future[None]:
        """A future that is done after that long. On the I/O thread."""
        over: Future[None] = Future()
        self._loop.call_later(seconds, lambda: over.set_result(None))
        return over

    def when_open(self) -> Future[Any]:
        """A future that is done once there is a connection with everything on it restored. On the I/O thread."""
        future: Future[Any] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        elif self._closing:
            future.set_exception(errors.Closed(f'the connection to {self.settings} is closed'))
        elif self.is_ready:
            future.set_result(None)
        else:
            self._waiting_for_open.append(future)
        return future

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        """Call back on the I/O thread. From the I/O thread only. Returns a handle for :meth:`cancel_call`."""
        return self._loop.call_later(seconds, callback)

    def cancel_call(self, handle: Any) -> None:
        """Undo :meth:`call_later`."""
        self._loop.remove_timeout(handle)

    def start(self, steps: Steps) -> None:
        """Take steps on the I/O thread, without waiting for them. From any thread."""
        self.call_soon(lambda: self.drive(steps))

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back on the I/O thread, as soon as it can. From any thread."""
        self._ensure_running()
        self._loop.add_callback_threadsafe(callback)  # type: ignore[arg-type]

    # Connecting

    def _connect(self) -> None:
        if self._closing:
            return
        parameters = self.settings.parameters()
        chosen = parameters[self._endpoint % len(parameters)]
        chosen.client_properties = {'connection_name': f'postage {self.role}, pid {os.getpid()}'}
        self._attempt = self._new_wire(
            chosen,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_open_error,
            on_close_callback=self._on_lost,
        )

    def _new_wire(self, *args: Any, **kwds: Any) -> PublicConnection:
        """pika's connection, with as much of the fast lane as is asked for and possible."""
        services = IOServices(self._loop)
        kind = connection_class(self._fast_lane)
        if issubclass(kind, WireConnection):
            return kind(*args, fast_lane=self._fast_lane, services=services, **kwds)
        return kind(*args, services=services, **kwds)

    def _on_open(self, wire: PublicConnection) -> None:
        if self._closing:
            wire.close()
            return
        self.wire = wire
        wire.add_on_connection_blocked_callback(self._on_blocked)
        wire.add_on_connection_unblocked_callback(self._on_unblocked)
        self._watch(wire, wire.bytes_received, time.monotonic())
        self.drive(self._restore_steps()).add_done_callback(self._on_restored)

    def _watch(self, wire: PublicConnection, received: int, since: float) -> None:
        """Give up a connection on which nothing has come for two heartbeats; pika would wait for five seconds more."""
        self._next_look = None
        if not wire.heartbeat or not wire.is_open:
            return
        now = time.monotonic()
        if wire.bytes_received != received:
            received, since = wire.bytes_received, now
        patience = 2 * wire.heartbeat * WATCH_SHARE - (now - since)
        if patience <= 0:
            wire.fail(pika.exceptions.AMQPHeartbeatTimeout(f'nothing was received for {now - since:.3g} s'))
        else:
            pause = min(patience, wire.heartbeat / 4)
            self._next_look = self._loop.call_later(pause, lambda: self._watch(wire, received, since))

    def _watch_no_more(self) -> None:
        """The wire has gone: its timer would keep it, and all that it has received, for as long as it pauses."""
        if self._next_look is not None:
            self.cancel_call(self._next_look)
            self._next_look = None

    def _restore_steps(self) -> Steps:
        """Declare everything again and open every channel again, in this order."""
        for topology in list(self._topologies):
            yield from topology.replay(self.control)
        for channel in list(self._channels):
            try:
                yield from channel.ensure_open_steps()
            except errors.ConnectionLost:
                raise
            except errors.BrokerError as error:
                channel._on_refused(error)

    def _on_restored(self, done: Future[Any]) -> None:
        error = done.exception()
        if isinstance(error, errors.ConnectionLost):
            return  # _on_lost has taken it from here
        if error is not None:
            self.logger.error('could not restore what was on the connection to %s', self.settings, exc_info=error)
        self.is_ready = True
        self._round = 0
        self._failures.clear()
        waiting, self._waiting_for_open = self._waiting_for_open, []
        for future in waiting:
            future.set_result(None)
        if not self._opened.done():
            self.logger.debug('connected to %s (%s)', self.settings, self.role)
            self._opened.set_result(None)
        else:
            self.logger.warning(
                'connected to %s again (%s) after %.1f s: %d channels, %d queues restored',
                self.settings,
                self.role,
                time.monotonic() - self._lost_at,
                len(self._channels),
                sum(len(topology.queues) for topology in self._topologies),
            )

    def _on_open_error(self, _connection: object, error: BaseException) -> None:
        self._attempt = None
        if self._closing:
            self._loop.stop()
            return
        permanent = _permanent(error, self.settings)
        if permanent is not None:
            self._give_up(permanent)
            return
        self._failures.append(_root_cause(error))
        hosts = len(self.settings.endpoints)
        if len(self._failures) == hosts and not self._opened.done():
            self.logger.warning(
                'the broker at %s cannot be reached (%s); waiting for it up to %g s',
                self.settings,
                '; '.join(dict.fromkeys(self._failures)),
                self.settings.connect_timeout,
            )
        del self._failures[:-hosts]
        self._try_again()

    def _try_again(self) -> None:
        """Try the next host; after a round of all hosts, pause."""
        self._endpoint += 1
        pause = 0.0
        if self._endpoint % len(self.settings.endpoints) == 0:
            pause = PAUSES[min(self._round, len(PAUSES) - 1)] * random.uniform(0.5, 1.0)
            self._round += 1
        self._loop.call_later(pause, self._connect)

    def _give_up(self, error: errors.BrokerError) -> None:
        """An error that no retry cures: told once, to everybody who waits."""
        self.error = error
        if self._opened.done():
            self.logger.error('%s', error)
        else:
            self._opened.set_exception(error)
        waiting, self._waiting_for_open = self._waiting_for_open, []
        for future in waiting:
            future.set_exception(error)
        for channel in list(self._channels):
            channel._on_refused(error)

    def _on_lost(self, wire: PublicConnection, error: BaseException) -> None:
        """pika's connection has gone. pika has told every channel before."""
        self.wire = None
        self._attempt = None
        self.is_ready = False
        self._watch_no_more()
        self._dirty.clear()
        for channel in self._channels:
            channel.needs_flush = False
        if self._closing:
            self._loop.stop()
            return
        self._lost_at = time.monotonic()
        self.logger.warning(
            'the connection to %s (%s) was lost: %s', self.settings, self.role, describe(wire.reason or error)
        )
        self._round = 0
        self._loop.call_later(PAUSES[0] * random.uniform(0.1, 1.0), self._connect)

    def _on_blocked(self, _connection: object, frame: Any) -> None:
        self.logger.warning('the broker at %s takes no messages at present: %s', self.settings, frame.method.reason)

    def _on_unblocked(self, _connection: object, _frame: Any) -> None:
        self.logger.warning('the broker at %s takes messages again', self.settings)

    # Closing

    def _begin_close(self, timeout: float) -> None:
        if not self._close_requested:
            self._close_requested = True
            self.drive(self._close_steps(timeout))

    def _close_steps(self, timeout: float) -> Steps:
        deadline = time.monotonic() + timeout
        self._loop.call_later(timeout, self._loop.stop)
        for channel in list(self._channels):
            settled = channel.when_settled()
            if not settled.done():
                self._loop.call_later(max(0.0, deadline - time.monotonic() - 1.0), _finisher(settled))
            yield settled
        self._closing = True
        waiting, self._waiting_for_open = self._waiting_for_open, []
        for future in waiting:
            future.set_exception(errors.Closed(f'the connection to {self.settings} is closed'))
        for channel in self._channels:
            channel.give_up(errors.Closed(f'the connection to {self.settings} was closed before it was confirmed'))
        connection = self.wire or self._attempt
        if connection is None or connection.is_closed:
            self._loop.stop()
        elif not connection.is_closing:
            self.flush_now()
            for channel in self._channels:
                channel.end_consumers()
            connection.close()
            if connection is not self.wire:
                self._loop.call_later(ABORT_SECONDS, self._loop.stop)  # a peer that never spoke says no farewell


def _quieten_pika() -> None:
    """pika logs each loss as several errors, and ours tells the story; a program that wants pika's sets its level."""
    pika_logger = logging.getLogger('pika')
    if pika_logger.level == logging.NOTSET:
        pika_logger.setLevel(logging.CRITICAL)


def _finisher(future: Future[Any]) -> Callable[[], None]:
    return lambda: None if future.done() else future.set_result(None)


def _root_cause(error: BaseException) -> str:
    """The innermost cause of a failed attempt: pika wraps it several times."""
    while True:
        inner: Any = getattr(error, 'exceptions', None) or getattr(error, 'exception', None) or error.args[:1]
        if isinstance(inner, (list, tuple)):
            inner = inner[-1] if inner else None
        if not isinstance(inner, BaseException):
            return describe(error)
        error = inner


_reply = re.compile(r'ConnectionClosedByBroker: \((\d{3})\) (.*)', re.DOTALL)


def _permanent(error: BaseException, settings: BrokerSettings) -> errors.BrokerError | None:
    """The error to raise where trying again would not help.

    pika guesses the cause from the stage at which the connection went; only the broker's own reply code makes it
    certain, for a broker that is killed at that stage looks the same.
    """
    match = _reply.search(_root_cause(error)) or _reply.search(repr(error))
    code = int(match.group(1)) if match else 0
    if code == 403:
        return errors.AuthenticationFailed(
            f'the broker at {settings} refused user {settings.user!r} or its password; '
            'see POSTAGE_USER and POSTAGE_PASSWORD'
        )
    if code == 530:
        return errors.VirtualHostRefused(
            f'the broker at {settings} has no virtual host {settings.vhost!r}, or user {settings.user!r} may not '
            'enter it; see POSTAGE_VHOST'
        )
    return None


_lock = threading.RLock()
_all: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A forked child shares nothing with its parent: each connection starts over, and connects when it is used."""
    global _lock
    _lock = threading.RLock()
    for connection in list(_all):
        if connection.wire is not None:
            connection.wire.abandon()
        connection._channels = [channel for channel in connection._channels if channel.after_fork()]
        connection._start_over()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork_in_child)
