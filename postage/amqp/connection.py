"""A connection that heals itself, on an I/O thread of its own.

Handlers, however slow, never run on the I/O thread, so heartbeats always go out. When the connection is lost it is
made again, to each host in turn and with growing pauses; then everything that was declared on it is declared
again, and every channel is opened again, in that order.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from postage import errors
from postage.amqp.attempts import Attempts, quieten_pika
from postage.amqp.channel import Channel, describe
from postage.amqp.control import ControlChannel, replay
from postage.amqp.forks import Stage, call_in_child
from postage.amqp.io_thread import IOThread
from postage.amqp.link import Link
from postage.amqp.outbox import Outbox
from postage.amqp.publishing import PublishingChannel
from postage.amqp.server import UNKNOWN, Server
from postage.amqp.states import Standing, State
from postage.amqp.steps import Drive, Steps, no_steps, when_done
from postage.amqp.tick import Tick
from postage.amqp.topology import Topologies
from postage.amqp.turns import Readership
from postage.amqp.upkeep import Upkeep
from postage.printable import shown_half_built
from postage.settings import BrokerSettings, FastLane, fast_lane

logger = logging.getLogger('postage')

Role = Literal['publishing', 'consuming']

OPERATION_TIMEOUT = 60.0  # seconds that a blocking operation waits for the broker, reconnects included
CLOSE_TIMEOUT = 10.0  # seconds that a close, or the end of the program, waits for what is pending
ABORT_SECONDS = 0.1  # for an attempt to connect to end when it is given up
QUIET = 1.5  # heartbeats: one passes where a broker that looks at each half has just sent something else
AGAIN_SECONDS = 0.01  # before steps that lost their connection are taken again


class Calls(Protocol):
    """The RPC calls of a connection, which :mod:`postage.messaging.rpc` makes at the first one.

    :ivar late_replies: how many replies came for which no call waited any more
    """

    late_replies: int

    def call(self, call: Any) -> None:
        """Send a request, and see to its attempts."""

    def abandon(self, correlation_id: str) -> None:
        """Forget a call, and tell its responder."""

    def end_calls(self, error: errors.PostageError, owner: object = None) -> None:
        """End the calls under way, of one producer or all, and tell their responders."""


class Connection:
    """The way to one broker for everything in this process that publishes, or that consumes.

    What is pending when it is closed is settled first, through losses if need be, for as long as the close allows.

    Its public methods may be called from any thread but its own; what is said to be for the I/O thread is for the
    modules of this package.

    :param siblings: gives the connections of this process to the same broker
    :ivar settings: where it leads, and with which credentials
    :ivar role: ``'publishing'`` or ``'consuming'``
    :ivar users: how many hold it, see :mod:`postage.amqp.registry`
    :ivar standing: what it is at
    :ivar channels: those that are open on it, and opened again after a loss; any thread may look
    :ivar publishers: the channels through which messages leave: with confirms, and without
    :ivar link: the socket to the broker while there is one; for the I/O thread only
    :ivar topologies: what is declared again after every loss
    :ivar upkeep: what looks after that meanwhile
    :ivar server: which broker it is, or was last; :data:`UNKNOWN` before that
    :ivar lock: guards what is made on it at the first use
    :ivar heartbeat: seconds between heartbeats, as agreed with the broker last; 0 for none
    :ivar outbox: where channels say that they have something to send
    :ivar readership: the threads that wait for what it brings
    :ivar io: its I/O thread
    :ivar tick: at which the I/O thread looks after what busy threads left undone
    """

    def __init__(
        self, settings: BrokerSettings, role: Role, siblings: Callable[[], Iterable[Connection]] = tuple
    ) -> None:
        self.settings = settings
        self.role = role
        self.users = 0
        self.publishers: dict[bool, PublishingChannel] = {}
        # Any thread takes channels out, the I/O thread puts them in, each in one step of the interpreter, and goes
        # through a copy. A thread that reads goes through the list itself: what it misses is read 2 ms later.
        self.channels: list[Channel] = []
        self.topologies = Topologies()
        self.upkeep = Upkeep(self, lambda: [sibling.upkeep for sibling in siblings()])
        self.readership = Readership(self.channels)
        self._start_over()
        _all.add(self)

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.role} on {self.settings}>'

    def _start_over(self) -> None:
        """The state of a connection that was never opened: at first, and in a forked child."""
        is_direct = fast_lane() is FastLane.DIRECT  # where the setting is wrong, nothing is open yet
        self.standing = Standing(self.settings)
        self.link: Link | None = None
        self.heartbeat = 0.0
        self.server: Server = UNKNOWN
        self.io = IOThread(f'postage-{self.role}', self.settings, self._on_start, self._on_end)
        self._loop = self.io.loop
        self.tick = Tick(self._loop, self.io.call_soon)
        self.outbox = Outbox(self._loop, self.tick, self.io.call_soon)
        self.readership.start_over(self._loop, self.tick, self.outbox)
        self._is_to_close = False
        self._attempts = Attempts(
            self.settings,
            self.role,
            is_direct,
            self._loop,
            self._on_open,
            self._on_lost,
            self._on_refused,
        )
        self._control: ControlChannel | None = None
        self.lock = threading.RLock()
        self.rpc_client: Calls | None = None  # of those that publish here
        self.cancels: Any = None  # the channel of those that consume here, which messaging.cancelling makes

    # Opening and closing, from any thread

    def open(self, timeout: float) -> None:
        """Connect, and wait until that has succeeded. Blocks.

        :param timeout: seconds to wait for a broker that is down
        :raises errors.AuthenticationFailed: at once
        :raises errors.VirtualHostRefused: at once
        :raises errors.BrokerUnavailable: after ``timeout``
        """
        try:
            self.ask(no_steps, timeout)  # to wait for the connection is all
        except errors.ConnectionLost:
            raise errors.BrokerUnavailable(
                f'no broker at {self.settings} within {timeout:g} s ({self._attempts.last_failure}); '
                'is it running, and are POSTAGE_HOST, POSTAGE_PORT or POSTAGE_URL right?'
            ) from None

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Send what is pending, close the connection and end its thread. Blocks until then, or for ``timeout``."""
        self.io.end(lambda: self._begin_close(timeout), timeout + 1.0, self.awaited())
        if self.standing.state is State.NEW:
            self.standing.enter(State.CLOSED)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed for good."""
        return self.standing.is_closed

    @property
    def is_open(self) -> bool:
        """Whether there is a connection at the moment, with everything on it restored."""
        return self.standing.is_open

    @property
    def trouble(self) -> str:
        """What keeps the broker from taking messages, in words; empty where nothing is known to. Any thread."""
        link, standing, now = self.link, self.standing, time.time()
        if link is None or not standing.is_open:
            return f'the broker has been away for {now - standing.lost_at:.1f} s'
        blocked_at = standing.blocked_at
        if blocked_at is not None:
            return f'the broker has taken no messages for {now - blocked_at:.1f} s, to save memory or disk space'
        silence = link.silence
        return f'the broker has been silent for {silence:.1f} s' if 0 < link.heartbeat * QUIET < silence else ''

    @property
    def unconfirmed(self) -> int:
        """How many messages the broker has not confirmed yet. Any thread; never blocks."""
        return sum(publisher.in_flight for publisher in list(self.publishers.values()))

    def awaited(self) -> contextlib.AbstractContextManager[None]:
        """Round everything in which a thread blocks until this connection has brought something."""
        return self.readership.awaited()

    # Work for the I/O thread, from any thread

    def ask(self, steps: Callable[[], Steps], timeout: float = OPERATION_TIMEOUT, when_open: bool = True) -> Any:
        """Take steps on the I/O thread and wait for their end. Blocks.

        Where the connection is lost in between they are taken again from the beginning once it is back, so they
        have to be repeatable. What has failed by its time-out is not done later.

        :param timeout: seconds for all of it
        :param when_open: wait for a connection first, where there is none at the moment
        :return: what the steps return
        :raises errors.BrokerError: what the broker said, or :class:`errors.ConnectionLost` after ``timeout``
        """
        if self.is_closed:
            raise self.standing.closed()
        return self.io.ask(self._asked_steps(steps, when_open), timeout, self.awaited())

    def _asked_steps(self, steps: Callable[[], Steps], when_open: bool) -> Steps:
        while True:
            if when_open:
                yield self.standing.when_open()
            try:
                return (yield from steps())
            except errors.ConnectionLost:
                if self.is_closed:
                    raise
                yield self.io.pause(AGAIN_SECONDS)

    def tell(self, work: Callable[[], Steps | None]) -> None:
        """Have a call, or the steps that it returns, done on the I/O thread. Never blocks; what fails is logged."""
        self.io.tell(work)

    # What is on it

    def add_channel(self, channel: Channel) -> None:
        """Open a channel now, and again after every loss. Blocks.

        :raises errors.BrokerError: where that did not succeed; a new channel is not opened later then, either
        """
        is_known = channel in self.channels
        try:
            self.ask(lambda: self._add_steps(channel))
        except BaseException:
            if not is_known:
                channel.is_wanted = False
                self.tell(lambda: self.detach(channel))
            raise

    def _add_steps(self, channel: Channel) -> Steps:
        if not channel.is_wanted:
            raise errors.ChannelLost('another thread has closed the channel for good')
        if channel not in self.channels:
            self.channels.append(channel)
        yield from channel.ensure_open_steps()

    def attach(self, channel: Channel) -> None:
        """Open a channel as soon as there is a connection, and again after every loss. On the I/O thread."""
        self.channels.append(channel)
        if self.link is not None:
            when_done(channel.ensure_open_steps(), channel.on_reopened)

    def detach(self, channel: Channel) -> None:
        """Close a channel for good. On the I/O thread."""
        self._forget(channel)
        self.tell(channel.close_steps)

    def remove_channel(self, channel: Channel) -> None:
        """Send what waits on a channel and close it for good. Blocks."""
        channel.is_wanted = False
        self._forget(channel)
        if self.standing.state is State.NEW or self.is_closed:
            return
        try:
            self.ask(channel.close_steps, CLOSE_TIMEOUT, when_open=False)
        except errors.BrokerError as error:
            logger.debug('closing a channel: %s', error)

    def _forget(self, channel: Channel) -> None:
        with contextlib.suppress(ValueError):  # it was never opened, or another thread was quicker
            self.channels.remove(channel)

    @property
    def control(self) -> ControlChannel:
        """The channel on which things are declared."""
        if self._control is None:
            self._control = ControlChannel(self)
        return self._control

    def publisher(self, confirms: bool) -> PublishingChannel:
        """The channel through which messages leave, with confirms or without. Blocks at its first use."""
        with self.lock:
            channel = self.publishers.get(confirms)
            if channel is None or not channel.is_wanted:
                channel = self.publishers[confirms] = PublishingChannel(self, confirms)
        if channel not in self.channels:
            self.add_channel(channel)
        return channel

    def restore_exchanges(self, error: errors.BrokerError) -> Steps:
        """Declare all exchanges again, after the broker has closed a channel with that error. On the I/O thread."""
        return self.upkeep.restore_exchanges(error)

    # The I/O thread

    def _on_start(self) -> None:
        self.outbox.io_thread = threading.get_ident()
        quieten_pika()
        self.standing.enter(State.CONNECTING)
        self._attempts.begin()
        if self.role == 'consuming':
            self.upkeep.begin()

    def _on_end(self) -> None:
        self.standing.enter(State.CLOSED)
        for link in (self.link, self._attempts.link):
            if link is not None:
                link.abandon()  # where the broker has not answered the farewell

    # Connecting, on the I/O thread

    def _on_open(self, link: Link) -> None:
        self.link = self.outbox.link = self.readership.link = link
        self.heartbeat, self.server = link.heartbeat, link.server
        link.add_on_connection_blocked_callback(lambda _, frame: self.standing.block(str(frame.method.reason)))
        link.add_on_connection_unblocked_callback(lambda *_: self.standing.unblock())
        self.standing.enter(State.RESTORING)
        when_done(self._restore_steps(), self._on_restored)

    def _restore_steps(self) -> Steps:
        """Declare everything again and open every channel again, in this order."""
        for topology in self.topologies:
            yield from replay(self.control, topology)
        for channel in list(self.channels):
            try:
                yield from channel.open_again_steps()
            except errors.ConnectionLost:
                raise
            except errors.BrokerError as error:
                channel.on_not_restored(error)

    def _on_restored(self, error: BaseException | None) -> None:
        if isinstance(error, errors.ConnectionLost) or self.standing.state is not State.RESTORING:
            return  # _on_lost has taken it from here
        if error is not None:
            logger.error('could not restore what was on the connection to %s', self.settings, exc_info=error)
        self.standing.enter(State.OPEN)
        if not self.standing.reconnects:
            logger.debug('connected to %s (%s)', self.settings, self.role)
        else:
            logger.info(
                'connected to %s again (%s) after %.1f s: %d channels, %d queues restored',
                self.settings,
                self.role,
                time.time() - self.standing.lost_at,
                len(self.channels),
                sum(len(topology.queues) for topology in self.topologies),
            )

    def _on_refused(self, error: errors.BrokerError) -> None:
        """An error that no attempt cures: told once, to all that wait."""
        self.standing.enter(State.REFUSED, error)
        for channel in list(self.channels):
            channel.on_refused(error)

    def _on_lost(self, link: Link, error: BaseException) -> None:
        """pika's connection has gone. pika has told every channel before."""
        self.link = self.readership.link = None
        self.outbox.lost()
        if self.is_closed:
            self._loop.stop()
            return
        logger.warning(
            'the connection to %s (%s) was lost: %s', self.settings, self.role, describe(link.reason or error)
        )
        self.standing.enter(State.CONNECTING)
        self._attempts.begin()

    # Closing, on the I/O thread

    def _begin_close(self, timeout: float) -> None:
        if not self._is_to_close:
            self._is_to_close = True
            self._loop.call_later(timeout, self._loop.stop)
            self.tell(lambda: self._close_steps(time.monotonic() + timeout))

    def _close_steps(self, deadline: float) -> Steps:
        for channel in list(self.channels):
            yield self.io.settled_by(channel.when_settled(), deadline - 1.0)
            yield self.io.settled_by(Drive(channel.give_back_steps()).outcome, deadline - 1.0)
        self.standing.enter(State.CLOSING)
        self._attempts.end()
        self.readership.is_over = True
        for channel in list(self.channels):
            channel.give_up(errors.Closed(f'the connection to {self.settings} was closed before it was confirmed'))
        link = self.link or self._attempts.link
        if link is None or link.is_closed:
            self._loop.stop()
        elif not link.is_closing:
            self.outbox.flush()
            for channel in list(self.channels):
                channel.end_consumers()
            link.end()
            if link is not self.link:
                self._loop.call_later(ABORT_SECONDS, self._loop.stop)  # a peer that never spoke says no farewell

    def _after_fork(self) -> None:
        if self.link is not None:
            self.link.abandon()
        self.channels[:] = [channel for channel in self.channels if channel.after_fork()]
        self._start_over()


_all: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A forked child shares nothing with its parent: each connection starts over, and connects when it is used."""
    for connection in list(_all):
        connection._after_fork()


call_in_child(Stage.CONNECTIONS, _after_fork_in_child)
