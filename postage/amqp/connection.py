"""A connection that heals itself, on an I/O thread of its own.

Handlers, however slow, never run on the I/O thread, so heartbeats always go out. When the connection is lost it is
made again, to each host in turn and with growing pauses; then everything that was declared on it is declared
again, and every channel is opened again, in that order.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Literal

import pika.adapters.select_connection
import pika.exceptions

from postage import errors
from postage.amqp.attempts import permanent_error, quieten_pika, root_cause
from postage.amqp.channel import Channel, describe
from postage.amqp.consuming import ConsumingChannel
from postage.amqp.control import ControlChannel, replay, replay_exchanges
from postage.amqp.forks import Stage, call_in_child
from postage.amqp.frames import FRAME_MIN
from postage.amqp.link import Link, Services
from postage.amqp.outbox import Outbox
from postage.amqp.publishing import PublishingChannel
from postage.amqp.steps import Drive, Steps, drive, when_done
from postage.amqp.threads import check_may_block, this_thread
from postage.amqp.tick import Loop, Tick
from postage.amqp.topology import Queue, Topology
from postage.amqp.turns import Readership
from postage.settings import BrokerSettings, FastLane, fast_lane

logger = logging.getLogger('postage')

Role = Literal['publishing', 'consuming']

OPERATION_TIMEOUT = 60.0  # seconds that a blocking operation waits for the broker, reconnects included
CLOSE_TIMEOUT = 10.0  # seconds that a close, or the end of the program, waits for what is pending
ABORT_SECONDS = 0.1  # for an attempt to connect to end when it is given up
AGAIN_SECONDS = 0.01  # before steps that lost their connection are taken again
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between rounds of attempts; the last one is the ceiling
WATCH_SHARE = 0.95  # of two heartbeats, so that a silent connection is given up within them


class State(enum.Enum):
    """What a connection is at. The I/O thread alone changes it, but for the step out of NEW."""

    NEW = 'no thread runs for it'
    CONNECTING = 'an attempt is under way'
    RESTORING = 'connected; what was on it is declared and opened again'
    OPEN = 'connected, with everything on it'
    LOST = 'waits for the next attempt'
    REFUSED = 'no attempt can succeed; says why in `error`'
    CLOSING = 'says farewell'
    CLOSED = 'for good'


class Connection:
    """The way to one broker for everything in this process that publishes, or that consumes.

    ::

        NEW ──▶ CONNECTING ──▶ RESTORING ──▶ OPEN
                  │  ▲  │           │          │
         refused  │  │  ▼           ▼          ▼
                  │  └─ LOST ◀──────┴──────────┘      close: what is pending is settled first, through losses if need
                  ▼                                   be; then, from any state: CLOSING ──▶ CLOSED
               REFUSED

    Its public methods may be called from any thread but its own; what is said to be for the I/O thread is for the
    modules of this package.

    :ivar settings: where it leads, and with which credentials
    :ivar role: ``'publishing'`` or ``'consuming'``
    :ivar users: how many hold it, see :mod:`postage.amqp.registry`
    :ivar state: what it is at
    :ivar error: what no attempt can cure, in state REFUSED
    :ivar link: the socket to the broker while there is one; for the I/O thread only
    :ivar outbox: where channels say that they have something to send
    :ivar readership: the threads that wait for what it brings
    """

    def __init__(self, settings: BrokerSettings, role: Role) -> None:
        self.settings = settings
        self.role = role
        self.users = 0
        self._is_direct = fast_lane() is FastLane.DIRECT
        self._publishers: dict[bool, PublishingChannel] = {}
        self._channels: list[Channel] = []
        self._topologies: weakref.WeakSet[Topology] = weakref.WeakSet()
        self.readership = Readership(self._channels)
        self._start_over()
        _all.add(self)

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.role} on {self.settings}>'

    def _start_over(self) -> None:
        """The state of a connection that was never opened: at first, and in a forked child."""
        self.state = State.NEW
        self.error: errors.BrokerError | None = None
        self.link: Link | None = None
        self._loop = pika.adapters.select_connection.IOLoop()
        self._tick = Tick(self._loop, self._call_soon)
        self._tick.add(self._look_after_inboxes)
        self.outbox = Outbox(self._loop, self._tick, self._call_soon)
        self.readership.start_over(self._loop, self._tick, self.outbox)
        self._thread: threading.Thread | None = None
        self._attempt: Link | None = None
        self._waiting_for_open: list[Future[Any]] = []
        self._was_open = self._is_to_close = False
        self._lost_at = 0.0
        self._round = 0
        self._endpoint = 0
        self._failures: list[str] = []
        self._control: ControlChannel | None = None
        self._asked: set[_Asked] = set()
        self._watched: set[ConsumingChannel] = set()
        self._next_look: Any = None  # the timer of _watch_for_silence

    # Opening and closing, from any thread

    def open(self, timeout: float) -> None:
        """Connect, and wait until that has succeeded. Blocks.

        :param timeout: seconds to wait for a broker that is down
        :raises errors.AuthenticationFailed: at once
        :raises errors.VirtualHostRefused: at once
        :raises errors.BrokerUnavailable: after ``timeout``
        """
        try:
            self.ask(_nothing, timeout)
        except errors.ConnectionLost:
            last = self._failures[-1] if self._failures else 'no answer'
            raise errors.BrokerUnavailable(
                f'no broker at {self.settings} within {timeout:g} s ({last}); '
                'is it running, and are POSTAGE_HOST, POSTAGE_PORT or POSTAGE_URL right?'
            ) from None

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Send what is pending, close the connection and end its thread. Blocks until then, or for ``timeout``."""
        with _lock:
            thread = self._thread
            if thread is None:
                self.state = State.CLOSED
                self.readership.is_over = True
                return
        if thread.is_alive():
            self._loop.add_callback_threadsafe(lambda: self._begin_close(timeout))
        if not this_thread.is_reading:
            with self.awaited():
                thread.join(timeout + 1.0)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed for good."""
        return self.state in (State.CLOSING, State.CLOSED)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection at the moment, with everything on it restored."""
        return self.state is State.OPEN

    def awaited(self) -> contextlib.AbstractContextManager[None]:
        """Round everything in which a thread blocks until this connection has brought something."""
        return self.readership.awaited()

    # Work for the I/O thread, from any thread

    def ask(self, steps: Callable[[], Steps], timeout: float = OPERATION_TIMEOUT, when_open: bool = True) -> Any:
        """Take steps on the I/O thread and wait for their end. Blocks.

        Where the connection is lost in between they are taken again from the beginning once it is back, so they
        have to be repeatable. When the time is over the I/O thread itself takes no further step, so that what was told
        to have failed does not happen later; only what was sent already, and not answered, may.

        :param timeout: seconds for all of it
        :param when_open: wait for a connection first, where there is none at the moment
        :return: what the steps return
        :raises errors.BrokerError: what the broker said, or :class:`errors.ConnectionLost` after ``timeout``
        """
        check_may_block()
        if self.is_closed:
            raise self._closed()
        asked = _Asked(self._asked_steps(steps, when_open))
        self._asked.add(asked)
        self._call_soon(lambda: asked.begin(self._loop, timeout, self._late(timeout)))
        if self.state is State.CLOSED:  # the I/O thread enters that state first, and looks for the asked after that
            asked.fail(self._closed())
        try:
            with self.awaited():
                return asked.answer.result()
        except BaseException:
            if not asked.answer.done():  # Ctrl-C: what the caller no longer waits for is not to happen later
                self._call_soon(lambda: asked.fail(errors.ConnectionLost('the caller was interrupted')))
            raise
        finally:
            self._asked.discard(asked)

    def _late(self, timeout: float) -> errors.ConnectionLost:
        return errors.ConnectionLost(f'the broker at {self.settings} did not answer for {timeout:g} s')

    def _asked_steps(self, steps: Callable[[], Steps], when_open: bool) -> Steps:
        while True:
            if when_open:
                yield self.when_open()
            try:
                return (yield from steps())
            except errors.ConnectionLost:
                if self.is_closed:
                    raise
                yield self.pause(AGAIN_SECONDS)

    def tell(self, work: Callable[[], Steps | None]) -> None:
        """Have something done on the I/O thread: a call, or the steps that it returns. Never blocks.

        What fails is logged.
        """
        self._call_soon(lambda: self._do(work))

    def _do(self, work: Callable[[], Steps | None]) -> None:
        try:
            steps = work()
        except Exception as error:
            self._log_failure(error)
        else:
            if steps is not None:
                when_done(steps, self._log_failure)

    def _log_failure(self, error: BaseException | None) -> None:
        if isinstance(error, (errors.ConnectionLost, errors.Closed)):
            logger.debug('something was left undone: %s', error)  # when it is back, everything is declared again
        elif isinstance(error, errors.BrokerError):
            logger.error('%s', error)
        elif error is not None:
            logger.error('unexpected, on the connection thread of %s', self.settings, exc_info=error)

    def _call_soon(self, callback: Callable[[], object]) -> None:
        """Call back on the I/O thread, as soon as it can. From any thread."""
        if self._thread is None:
            self._ensure_running()
        self._loop.add_callback_threadsafe(callback)  # type: ignore[arg-type]

    def _ensure_running(self) -> None:
        with _lock:
            quieten_pika()
            if self.state is State.NEW:
                self.state = State.CONNECTING
                self._thread = threading.Thread(target=self._run, name=f'postage-{self.role}', daemon=True)
                self._loop.add_callback_threadsafe(self._connect)
                self._thread.start()

    # What is on it

    def add_channel(self, channel: Channel) -> None:
        """Open a channel now, and again after every loss. Blocks.

        :raises errors.BrokerError: where that did not succeed; a new channel is not opened later then, either
        """
        is_known = channel in self._channels
        try:
            self.ask(lambda: self._add_steps(channel))
        except BaseException:
            if not is_known:
                channel.is_wanted = False
                self.tell(lambda: self.detach(channel))
            raise

    def _add_steps(self, channel: Channel) -> Steps:
        if channel.is_wanted and channel not in self._channels:
            self._channels.append(channel)
        yield from channel.ensure_open_steps()

    def attach(self, channel: Channel) -> None:
        """Open a channel as soon as there is a connection, and again after every loss. On the I/O thread."""
        self._channels.append(channel)
        if self.link is not None:
            when_done(channel.ensure_open_steps(), channel.on_reopened)

    def detach(self, channel: Channel) -> None:
        """Close a channel for good. On the I/O thread."""
        if channel in self._channels:
            self._channels.remove(channel)
        when_done(channel.close_steps(), self._log_failure)

    def remove_channel(self, channel: Channel) -> None:
        """Send what waits on a channel and close it for good. Blocks."""
        channel.is_wanted = False
        if channel in self._channels:
            self._channels.remove(channel)
        if self._thread is None or self.is_closed:
            return
        try:
            self.ask(channel.close_steps, CLOSE_TIMEOUT, when_open=False)
        except errors.BrokerError as error:
            logger.debug('closing a channel: %s', error)

    def watch(self, channel: ConsumingChannel) -> None:
        """Have a channel look after its inbox at each tick, until it has seen enough. Any thread."""
        self._watched.add(channel)
        self._tick.stir()

    def _look_after_inboxes(self, _: bool) -> bool:
        for channel in list(self._watched):
            self._watched.discard(channel)  # before the look, for another thread may add it again meanwhile
            if channel.look():
                self._watched.add(channel)
        return bool(self._watched)

    def remember(self, topology: Topology) -> None:
        """Declare this again after every reconnect, for as long as its owner lives."""
        self._topologies.add(topology)

    def forget(self, topology: Topology) -> None:
        """Stop declaring this again."""
        self._topologies.discard(topology)

    @property
    def topologies(self) -> list[Topology]:
        """What is declared again after every reconnect."""
        return list(self._topologies)

    def check_exclusive(self, queue: Queue, topology: Topology) -> None:
        """See that no other consumer of this process owns an exclusive queue of that name.

        To the broker the consumers of a process are one connection, which may declare it twice; two owners would
        take each other's messages all the same.

        :raises errors.ResourceLocked: where one does
        """
        for other in self.topologies:
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

    def restore_exchanges(self, error: errors.BrokerError) -> Steps:
        """Declare all exchanges again, after the broker has closed a channel with that error. On the I/O thread."""
        for topology in self.topologies:
            yield from replay_exchanges(self.control, topology)

    @property
    def heartbeat(self) -> float:
        """Seconds between heartbeats, as agreed with the broker; 0 where there are none."""
        return self.link.heartbeat if self.link is not None else 0.0

    @property
    def frame_max(self) -> int:
        """Bytes that a frame may have on the present connection."""
        return self.link.frame_max if self.link is not None else FRAME_MIN

    # The I/O thread

    def _run(self) -> None:
        """The I/O thread. An exception in a callback must not end it, and with it everything that waits."""
        loop = self._loop
        this_thread.is_reading = True
        self.outbox.io_thread = threading.get_ident()
        while True:
            try:
                loop.start()
                break
            except Exception:
                logger.exception('an unexpected error on the connection thread of %s', self.settings)
        self.state = State.CLOSED
        for asked in list(self._asked):
            asked.fail(self._closed())
        loop.close()
        for link in (self.link, self._attempt):
            if link is not None:
                link.abandon()  # where the broker has not answered the farewell

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        """Call back on the I/O thread. From the I/O thread only. Returns a handle for :meth:`cancel_call`."""
        return self._loop.call_later(seconds, callback)

    def cancel_call(self, handle: Any) -> None:
        """Undo :meth:`call_later`."""
        self._loop.remove_timeout(handle)

    def pause(self, seconds: float) -> Future[None]:
        """A future that is done after that long. On the I/O thread."""
        over: Future[None] = Future()
        over.set_running_or_notify_cancel()
        self._loop.call_later(seconds, lambda: over.set_result(None))
        return over

    def when_open(self) -> Future[Any]:
        """A future that is done once there is a connection with everything on it restored. On the I/O thread."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        if self.error is not None:
            future.set_exception(self.error)
        elif self.is_closed:
            future.set_exception(self._closed())
        elif self.state is State.OPEN:
            future.set_result(None)
        else:
            self._waiting_for_open.append(future)
        return future

    def _closed(self) -> errors.Closed:
        return errors.Closed(f'the connection to {self.settings} is closed')

    def _enter(self, state: State) -> None:
        """Be in another state, and tell those who wait for it."""
        self.state = state
        error = self._closed() if state is State.CLOSING else self.error
        if state is State.OPEN or error is not None:
            waiting, self._waiting_for_open = self._waiting_for_open, []
            for future in waiting:
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(None)

    # Connecting, on the I/O thread

    def _connect(self) -> None:
        if self.is_closed:
            return
        self._enter(State.CONNECTING)
        parameters = self.settings.parameters()
        chosen = parameters[self._endpoint % len(parameters)]
        chosen.client_properties = {'connection_name': f'postage {self.role}, pid {os.getpid()}'}
        self._attempt = Link(
            chosen,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_open_error,
            on_close_callback=self._on_lost,
            services=Services(self._loop),
            is_direct=self._is_direct,
        )

    def _on_open(self, link: Link) -> None:
        self._attempt = None
        if self.is_closed:
            link.close()
            return
        self.link = self.outbox.link = self.readership.link = link
        link.add_on_connection_blocked_callback(self._on_blocked)
        link.add_on_connection_unblocked_callback(self._on_unblocked)
        self._watch_for_silence(link, link.bytes_received, time.monotonic())
        self._enter(State.RESTORING)
        when_done(self._restore_steps(), self._on_restored)

    def _watch_for_silence(self, link: Link, received: int, since: float) -> None:
        """Give up a connection on which nothing has come for two heartbeats; pika would wait for five seconds more."""
        self._next_look = None
        if not link.heartbeat or not link.is_open:
            return
        now = time.monotonic()
        if link.bytes_received != received:
            received, since = link.bytes_received, now
        patience = 2 * link.heartbeat * WATCH_SHARE - (now - since)
        if patience <= 0:
            link.fail(pika.exceptions.AMQPHeartbeatTimeout(f'nothing was received for {now - since:.3g} s'))
        else:
            pause = min(patience, link.heartbeat / 4)
            self._next_look = self._loop.call_later(pause, lambda: self._watch_for_silence(link, received, since))

    def _restore_steps(self) -> Steps:
        """Declare everything again and open every channel again, in this order."""
        for topology in self.topologies:
            yield from replay(self.control, topology)
        for channel in list(self._channels):
            try:
                yield from channel.ensure_open_steps()
            except errors.ConnectionLost:
                raise
            except errors.BrokerError as error:
                channel.on_refused(error)

    def _on_restored(self, error: BaseException | None) -> None:
        if isinstance(error, errors.ConnectionLost) or self.state is not State.RESTORING:
            return  # _on_lost has taken it from here
        if error is not None:
            logger.error('could not restore what was on the connection to %s', self.settings, exc_info=error)
        self._round = 0
        self._failures.clear()
        self._enter(State.OPEN)
        if not self._was_open:
            self._was_open = True
            logger.debug('connected to %s (%s)', self.settings, self.role)
        else:
            logger.warning(
                'connected to %s again (%s) after %.1f s: %d channels, %d queues restored',
                self.settings,
                self.role,
                time.monotonic() - self._lost_at,
                len(self._channels),
                sum(len(topology.queues) for topology in self.topologies),
            )

    def _on_open_error(self, _link: object, error: BaseException) -> None:
        self._attempt = None
        if self.is_closed:
            self._loop.stop()
            return
        permanent = permanent_error(error, self.settings)
        if permanent is not None:
            self._refuse(permanent)
            return
        self._failures.append(root_cause(error))
        hosts = len(self.settings.endpoints)
        if len(self._failures) == hosts and not self._was_open:
            logger.warning(
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
        self._enter(State.LOST)
        self._loop.call_later(pause, self._connect)

    def _refuse(self, error: errors.BrokerError) -> None:
        """An error that no retry cures: told once, to all that wait."""
        self.error = error
        if self._was_open:
            logger.error('%s', error)
        self._enter(State.REFUSED)
        for channel in list(self._channels):
            channel.on_refused(error)

    def _on_lost(self, link: Link, error: BaseException) -> None:
        """pika's connection has gone. pika has told every channel before."""
        self.link = self.readership.link = self._attempt = None
        self.outbox.lost()
        if self._next_look is not None:
            # It would keep the link, and all that it has received, for as long as it pauses.
            self._loop.remove_timeout(self._next_look)
            self._next_look = None
        if self.is_closed:
            self._loop.stop()
            return
        self._lost_at = time.monotonic()
        logger.warning(
            'the connection to %s (%s) was lost: %s', self.settings, self.role, describe(link.reason or error)
        )
        self._round = 0
        self._enter(State.LOST)
        self._loop.call_later(PAUSES[0] * random.uniform(0.1, 1.0), self._connect)

    def _on_blocked(self, _link: object, frame: Any) -> None:
        logger.warning('the broker at %s takes no messages at present: %s', self.settings, frame.method.reason)

    def _on_unblocked(self, _link: object, _frame: Any) -> None:
        logger.warning('the broker at %s takes messages again', self.settings)

    # Closing, on the I/O thread

    def _begin_close(self, timeout: float) -> None:
        if not self._is_to_close:
            self._is_to_close = True
            self._loop.call_later(timeout, self._loop.stop)
            when_done(self._close_steps(time.monotonic() + timeout), self._log_failure)

    def _close_steps(self, deadline: float) -> Steps:
        for channel in list(self._channels):
            yield self._settled_by(channel.when_settled(), deadline - 1.0)
        self._enter(State.CLOSING)
        self.readership.is_over = True
        for channel in self._channels:
            channel.give_up(errors.Closed(f'the connection to {self.settings} was closed before it was confirmed'))
        link = self.link or self._attempt
        if link is None or link.is_closed:
            self._loop.stop()
        elif not link.is_closing:
            self.outbox.flush()
            for channel in self._channels:
                channel.end_consumers()
            link.close()
            if link is not self.link:
                self._loop.call_later(ABORT_SECONDS, self._loop.stop)  # a peer that never spoke says no farewell

    def _settled_by(self, settled: Future[Any], deadline: float) -> Future[Any]:
        """A future that is done, on this thread, when that one is, which another thread may do; or at the deadline."""
        over: Future[Any] = Future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        if settled.done():
            end()
        else:
            self._loop.call_later(max(0.0, deadline - time.monotonic()), end)
            settled.add_done_callback(lambda _: self._loop.add_callback_threadsafe(end))
        return over

    def _after_fork(self) -> None:
        if self.link is not None:
            self.link.abandon()
        self._channels[:] = [channel for channel in self._channels if channel.after_fork()]
        self._start_over()


class _Asked:
    """Steps that a thread waits for."""

    def __init__(self, steps: Steps) -> None:
        self.answer: Future[Any] = Future()
        self._steps = steps
        self._drive: Drive | None = None

    def begin(self, loop: Loop, timeout: float, late: errors.BrokerError) -> None:
        """Take them, for so many seconds at most. On the I/O thread."""
        if self.answer.done():
            return
        self._drive = drive(self._steps)
        timer = loop.call_later(timeout, lambda: self.fail(late))
        self._drive.outcome.add_done_callback(lambda _: loop.remove_timeout(timer))
        self._drive.outcome.add_done_callback(self._end)

    def fail(self, error: BaseException) -> None:
        """Take no further step. On the I/O thread, or at its end."""
        if self._drive is not None:
            self._drive.abandon(error)
        elif not self.answer.done():
            self.answer.set_exception(error)

    def _end(self, outcome: Future[Any]) -> None:
        error = outcome.exception()
        with contextlib.suppress(InvalidStateError):  # the connection ended in that very moment
            if error is not None:
                self.answer.set_exception(error)
            else:
                self.answer.set_result(outcome.result())


def _nothing() -> Steps:
    """No step: to wait for the connection is all."""
    yield from ()


_lock = threading.RLock()
_all: weakref.WeakSet[Connection] = weakref.WeakSet()


def _lock_anew() -> None:
    global _lock
    _lock = threading.RLock()


def _after_fork_in_child() -> None:
    """A forked child shares nothing with its parent: each connection starts over, and connects when it is used."""
    for connection in list(_all):
        connection._after_fork()


call_in_child(Stage.LOCKS, _lock_anew)
call_in_child(Stage.CONNECTIONS, _after_fork_in_child)
