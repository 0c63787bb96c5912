"""A channel that is opened again whenever it is lost, and the operations on it.

An AMQP channel lives as long as its connection, or until the broker closes it because of an error. Ours outlives
both: it is opened anew, set up anew, and counts its openings, its *generation*. What belongs to an old generation,
an acknowledgement above all, must never reach the new one, where the same delivery tag means another message.

All of it runs on the connection's I/O thread.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pika.channel
import pika.exceptions
import pika.spec

from postage import errors
from postage.amqp.arguments import fit
from postage.amqp.cutter import Lane
from postage.amqp.frames import FRAME_MIN
from postage.amqp.io_thread import IOThread
from postage.amqp.link import Link
from postage.amqp.outbox import Outbox, Sender
from postage.amqp.server import Server
from postage.amqp.states import Standing
from postage.amqp.steps import Drive, Operation, Steps, done, when_done
from postage.amqp.tick import Tick
from postage.amqp.topology import Topologies
from postage.printable import printable
from postage.sparingly import GrowingPauses, Sparingly

logger = logging.getLogger('postage')

FREE_REOPENINGS = 20  # of a channel that the broker closes again and again, before there are pauses between them
FORCED = 320  # CONNECTION_FORCED: the broker, or its operator, ends the connection; nothing was wrong with what we sent
INTERNAL = 541  # INTERNAL_ERROR: a fault of the broker's, such as a node that has lost the others
DENIED = 'Feature `'  # or something that the broker's configuration denies, in a 541 as well


def refusal(reply_code: int, reply_text: str, doing: str) -> errors.OperationRefused:
    """The exception for a broker's reply code (AMQP 0-9-1, section 1.1 of the domain constants).

    :param doing: what was being done, as in "declare queue 'jobs'"
    """
    message = f'the broker refused to {doing}: {printable(reply_text)} ({reply_code})'
    if reply_code == 403:
        return errors.AccessRefused(message, reply_code, reply_text)
    if reply_code == 404:
        return errors.NotFound(message, reply_code, reply_text)
    if reply_code == 405:
        return errors.ResourceLocked(message, reply_code, reply_text)
    differs = _inequivalent.search(reply_text) if reply_code == 406 else None
    if differs:
        return errors.DeclarationMismatch(message, reply_code, reply_text, **differs.groupdict())
    return errors.OperationRefused(message, reply_code, reply_text)


_inequivalent = re.compile(
    r"inequivalent arg '(?P<field>[^']+)' for .*: received (?P<wanted>.+?) but current is (?P<found>.+)$", re.DOTALL
)


def loss(error: BaseException | None, doing: str) -> errors.BrokerError:
    """The exception for an operation that a lost channel or connection left unfinished."""
    if isinstance(error, pika.exceptions.ChannelClosedByBroker):
        return refusal(error.reply_code, error.reply_text, doing)
    if isinstance(error, pika.exceptions.ConnectionClosedByBroker) and not (
        error.reply_code == FORCED or (error.reply_code == INTERNAL and DENIED not in error.reply_text)
    ):
        return refusal(error.reply_code, error.reply_text, doing)
    return errors.ConnectionLost(f'the connection went while trying to {doing}: {describe(error)}')


def describe(error: BaseException | None) -> str:
    """The cause of a loss in a few words, for the log."""
    if isinstance(error, (pika.exceptions.ConnectionClosed, pika.exceptions.ChannelClosed)):
        return f'{printable(str(error.reply_text))} ({error.reply_code})'
    if isinstance(error, pika.exceptions.AuthenticationError) and error.args:
        return f'the broker offers no authentication mechanism {printable(str(error.args[0]))}'
    if isinstance(error, pika.exceptions.StreamLostError) and error.args:
        return printable(str(error.args[0]))
    return printable(str(error) or repr(error))


class Host(Protocol):
    """What a channel, and the control channel's users, need of their connection.

    :ivar io: its I/O thread
    :ivar link: the socket to the broker, while there is a connection; for the I/O thread
    :ivar outbox: where a channel says that it has something to send; any thread
    :ivar tick: at which it looks after its inbox
    :ivar heartbeat: seconds between heartbeats; 0 where there are none
    :ivar server: which broker it is
    :ivar standing: its state, and why it cannot be made again, if so
    :ivar topologies: what is declared on it
    """

    io: IOThread
    link: Link | None
    outbox: Outbox
    tick: Tick
    heartbeat: float
    server: Server
    standing: Standing
    topologies: Topologies

    @property
    def control(self) -> Channel:
        """The channel on which things are declared."""

    def ask(self, steps: Callable[[], Steps]) -> Any:
        """Take steps on the I/O thread, and wait for their end. Any thread; blocks."""

    def tell(self, work: Callable[[], Steps | None]) -> None:
        """Have something done on the I/O thread. Any thread."""

    def awaited(self) -> AbstractContextManager[None]:
        """Round everything in which a thread blocks until the connection has brought something."""

    def restore_exchanges(self, error: errors.BrokerError) -> Steps:
        """Declare the exchanges again, after the broker has closed a channel with that error. On the I/O thread."""


class Channel(Lane, Sender):
    """One AMQP channel, opened again after each loss for as long as it is wanted.

    :ivar generation: how often it has been opened
    :ivar number: its number on the present connection
    :ivar frame_max: bytes that a frame may have there
    :ivar is_open: whether frames may be sent on it; becomes false before pika answers the broker's close
    :ivar is_wanted: whether it is to be opened again after a loss
    :ivar is_awaited: whether what comes for it is wanted at once, and not a moment later; any thread
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.generation = 0
        self.number = 0
        self.frame_max = FRAME_MIN
        self.is_wanted = True
        self.is_awaited = True
        self._cancelled_tags: set[str] = set()
        self._pauses = GrowingPauses(FREE_REOPENINGS, 2.0)
        self._sparingly = Sparingly()
        self._start_over()

    def _start_over(self) -> None:
        """The state of a channel that was never opened: at first, and in a forked child."""
        self.is_open = self._is_set_up = self.needs_flush = False
        self._pika: pika.channel.Channel | None = None
        self._opening: Future[Any] | None = None  # the answer to channel.open
        self._being_opened: Drive | None = None  # open and set up
        self._until_gone: list[Future[Any]] = []  # see ensure_open_steps
        self._operations: deque[Operation] = deque()
        self._operation: Operation | None = None  # the one whose answer is awaited

    # What subclasses add

    def _set_up(self) -> Steps:
        """What has to be done on a channel that was just opened."""
        yield from ()

    def _on_lost(self, error: errors.BrokerError) -> None:
        """Called when an open channel has gone, before it is opened again."""

    def on_not_restored(self, error: errors.BrokerError) -> None:
        """Called when it could not be opened on a connection that was made again."""
        self.on_refused(error)

    def on_refused(self, error: errors.PostageError) -> None:
        """Called when it cannot be set up again, for a reason that no retry cures."""
        logger.error('%s', error)

    def when_settled(self) -> Future[Any]:
        """A future that is done once nothing sent on this channel is unsettled."""
        return done()

    def give_back_steps(self) -> Steps:
        """The connection is about to be closed: what was fetched and not begun goes back. Never raises."""
        yield from ()

    def give_up(self, error: errors.PostageError) -> None:
        """The connection is being closed: what is unsettled now will stay so."""

    def after_fork(self) -> bool:
        """Forget what belongs to the parent process; ``False`` where the child has no use for the channel."""
        self.generation += 1
        self._start_over()
        return True

    # Opening and losing

    def open_steps(self) -> Steps:
        """Open the channel and set it up.

        :raises errors.BrokerError: where that did not succeed
        """
        link = self.host.link
        if link is None or not link.is_open:
            raise errors.ConnectionLost('there is no connection to open a channel on')
        self._opening = Future()
        try:
            self._pika = link.channel(on_open_callback=self._opening.set_result)
        except pika.exceptions.NoFreeChannels:
            self._opening = None
            raise errors.BrokerError(f'all {link.params.channel_max} channels are in use: see channel_max') from None
        self._pika.add_on_close_callback(self._on_closed)
        self._pika.add_callback(self._on_get_empty, [pika.spec.Basic.GetEmpty], one_shot=False)
        self.content = None
        self._cancelled_tags.clear()
        self.number, self.frame_max = self._pika.channel_number, link.frame_max
        yield self._opening
        self._opening = None
        link.lanes[self.number] = self
        self.generation += 1
        yield from self._set_up()
        # Without the link's lock: a thread that sends and still finds it closed leaves all to the submit that follows,
        # and one that finds it open finds the number and the generation that go with that.
        self.is_open = self._is_set_up = True
        self.host.outbox.submit(self)

    def ensure_open_steps(self) -> Steps:
        """Open the channel, or wait for the opening that is under way."""
        while self._pika is not None and not self.is_open and self._being_opened is None:
            # The broker is closing it, and pika has not been told: what it is told then is about the old one.
            gone: Future[Any] = Future()
            gone.set_running_or_notify_cancel()
            self._until_gone.append(gone)
            yield gone
        if self._being_opened is None and not self.is_open:
            opening = self._being_opened = Drive(self.open_steps())
            if opening.outcome.done():
                self._being_opened = None
            else:
                opening.outcome.add_done_callback(self._on_opening_done)
            yield opening.outcome
        elif self._being_opened is not None:
            yield self._being_opened.outcome

    def open_again_steps(self) -> Steps:
        """Open the channel after a loss, once what it needs has been declared again."""
        yield from self.ensure_open_steps()

    def _on_opening_done(self, _: Future[Any]) -> None:
        self._being_opened = None

    def _on_closed(self, _channel: pika.channel.Channel, reason: BaseException) -> None:
        """pika says that the channel has gone: closed by the broker, by us, or with its connection."""
        self.closing()
        if self.host.link is not None:
            self.host.link.lanes.pop(self.number, None)
        self._pika = None
        opening, self._opening = self._opening, None
        doing = self._operation.doing if self._operation else 'use the channel'
        was_set_up, self._is_set_up = self._is_set_up, False
        self._fail_operations(reason)
        if opening is not None and not opening.done():
            opening.set_exception(loss(reason, 'open a channel'))
        if was_set_up:  # else what opens it has been told, and decides
            self._on_lost(loss(reason, doing))
            if self.is_wanted and isinstance(reason, pika.exceptions.ChannelClosedByBroker):
                self._reopen_after(self._pauses.next())
        waiting, self._until_gone = self._until_gone, []
        for gone in waiting:
            gone.set_result(None)

    def _reopen_after(self, pause: float) -> None:
        if pause:
            self.host.io.pause(pause).add_done_callback(lambda _: self._reopen_after(0.0))
        elif self.is_wanted and not self.is_open and self.host.link is not None:
            self._reopen()

    def _reopen(self) -> None:
        when_done(self._reopen_steps(), self.on_reopened)

    def _reopen_steps(self) -> Steps:
        """Open the channel after the broker has closed it."""
        yield from self.ensure_open_steps()

    def on_reopened(self, error: BaseException | None) -> None:
        """An attempt to open it again has ended. Where the connection was lost, its return is the next attempt."""
        if isinstance(error, errors.PostageError) and not isinstance(error, errors.ConnectionLost):
            self.on_refused(error)
        elif error is not None and not isinstance(error, errors.ConnectionLost):
            logger.error('a channel could not be opened again', exc_info=error)

    def close_steps(self) -> Steps:
        """Send what waits, then close the channel for good. Never raises."""
        self.is_wanted = False
        if self._being_opened is not None:
            try:
                yield self._being_opened.outcome
            except Exception as error:
                logger.debug('a channel that was to be closed did not open: %s', error)
        if self._pika is None or not self._pika.is_open:
            return
        self.host.outbox.flush()
        closed: Future[Any] = Future()
        closed.set_running_or_notify_cancel()  # it ends even where it is waited for no more
        self._pika.add_on_close_callback(lambda *_: closed.set_result(None))
        self.closing()
        self.end_consumers()
        self._pika.close()
        yield closed

    def end_consumers(self) -> None:
        """Cancel its consumers, as pika does when the channel or the connection is closed; pika 1.4.0 fails at that."""
        if self._pika is not None and self._pika.is_open:
            for tag in self._pika.consumer_tags:
                self._pika.basic_cancel(tag)

    def closing(self) -> None:
        """The channel is about to be closed: nothing may be sent on it from now on."""
        link = self.host.link
        if link is None:
            self.is_open = False
            return
        with link.writing:  # once pika has answered the broker's close, one more frame would cost the connection
            self.is_open = False

    # Operations

    def operate(self, method: str, doing: str = '', generation: int | None = None, **arguments: Any) -> Future[Any]:
        """Call one of pika's channel methods once those before it have been answered.

        One is under way at a time, so that a refusal, which closes the channel, is known to be about that one.

        :param doing: what this is for, as in "declare queue 'jobs'"; part of the error's text
        :param generation: of the channel, where it is about what that had; it is not done on a later one
        :return: the future of the broker's answer. It can be cancelled as long as the operation has not begun. Its
            exception is the refusal; :class:`errors.ChannelLost` where the channel was closed before this one began,
            by the refusal of another one or by us; :class:`errors.ConnectionLost`
        """
        operation = Operation(method, arguments, doing or method, generation)
        self._operations.append(operation)
        self._go_on()
        return operation

    def _go_on(self) -> None:
        """Have the next operation begun, if none is under way."""
        self._next_operation()

    def _next_operation(self) -> None:
        while self._operation is None and self._operations:
            operation = self._operations.popleft()
            if not operation.set_running_or_notify_cancel():
                continue
            if operation.generation not in (None, self.generation):
                what = f'cannot {operation.doing}: the channel has been opened anew, and what it was about went'
                operation.set_exception(errors.ChannelLost(what))
                continue
            if self._pika is None:
                operation.set_exception(errors.ConnectionLost(f'there is no channel to {operation.doing}'))
                continue
            self._operation = operation
            try:
                if not self._begin(self._pika, operation):
                    self._finish_operation(None)
            except pika.exceptions.ChannelWrongStateError:
                self._operation = None
                what = f'the channel was being closed before it could {operation.doing}'
                operation.set_exception(errors.ChannelLost(what))
            except pika.exceptions.MethodNotImplemented as error:
                self._operation = None
                operation.set_exception(errors.OperationRefused(f'cannot {operation.doing}: {error}'))
            except Exception as error:
                self._operation = None
                operation.set_exception(error)

    def _begin(self, channel: pika.channel.Channel, operation: Operation) -> bool:
        """Call pika; ``False`` where the broker gives no answer to wait for."""
        call = getattr(channel, operation.method)
        arguments = fit(operation.arguments, operation.doing, self.frame_max)
        if operation.method in WITHOUT_ANSWER:
            call(**arguments)
            return False
        if operation.method == 'basic_cancel':
            tag = arguments.get('consumer_tag')
            if tag in self._cancelled_tags or tag not in channel.consumer_tags:
                return False  # it has ended, by us or by the broker, and pika would never call back
            self._cancelled_tags.add(tag)
        callback = self._on_get_ok if operation.method == 'basic_get' else self._finish_operation
        call(callback=callback, **arguments)
        return True

    def _on_get_ok(self, _channel: object, method: object, properties: object, body: bytes) -> None:
        self._finish_operation((method, properties, body))

    def _on_get_empty(self, _frame: object) -> None:
        self._finish_operation((None, None, None))

    def _finish_operation(self, result: Any) -> None:
        if self._operation is not None:
            operation, self._operation = self._operation, None
            operation.set_result(result)
            self._next_operation()

    def _fail_operations(self, reason: BaseException) -> None:
        """The channel has gone: the operation under way met the reason, those behind it only its consequence."""
        current, self._operation = self._operation, None
        waiting, self._operations = self._operations, deque()
        if current is not None:
            current.set_exception(loss(reason, current.doing))
        is_other = isinstance(reason, pika.exceptions.ChannelClosedByBroker)
        lost = errors.ChannelLost if is_other else errors.ConnectionLost
        for operation in waiting:
            if operation.set_running_or_notify_cancel():
                operation.set_exception(lost(f'the channel closed before it could {operation.doing}'))


def never_called(*_: object) -> None:
    """For pika, which wants a callback for deliveries and confirms: the cutter brings both."""


WITHOUT_ANSWER = frozenset({'basic_publish', 'basic_ack', 'basic_nack', 'basic_reject'})
