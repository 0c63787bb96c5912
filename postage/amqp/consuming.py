"""Deliveries in, acknowledgements out: the channel of one consumer."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Container
from typing import Any, Literal

import pika.exceptions

from postage import errors
from postage.amqp.channel import Channel, Host
from postage.amqp.consumers import Consumers
from postage.amqp.control import Patience, replay, replay_exchanges, replay_queue
from postage.amqp.cutter import Content
from postage.amqp.deliveries import Delivery, Settled
from postage.amqp.frames import ack_frame, reject_frame, return_frame
from postage.amqp.origins import leave_behind
from postage.amqp.steps import Steps, when_done
from postage.amqp.topology import Topology

logger = logging.getLogger('postage')

INBOX_SPARE = 1000  # deliveries that may come beyond those asked for; each change of that number leaves some behind
ACKNOWLEDGEMENTS_HELD = 32  # at most, until the end of a batch
RECOVERY_SECONDS = 10.0  # for which a queue that goes away again and again is declared and consumed again

Fate = Literal['ack', 'reject', 'requeue', 'return']
"""Of a delivery: handled; failed, to be dropped or dead-lettered; failed, to be tried again; untried, to be delivered
again."""


class ConsumingChannel(Channel):
    """A channel that consumes from several queues into one inbox.

    :param topology: what its consumer declared; what is missing when the broker cancels is declared again
    :param prefetch: messages that the broker sends ahead of their acknowledgement; 0 for no limit
    :ivar inbox: deliveries that have not been taken yet, oldest first
    :ivar notify: called on the thread that reads, must not block: there are deliveries, or ``error`` has been set
    :ivar error: what ended it, once something has that no retry cures
    :ivar consumers: from which queues they come
    :ivar is_drained: whether it has stopped consuming for good, and nothing more can come into the inbox
    """

    def __init__(self, host: Host, topology: Topology, prefetch: int) -> None:
        super().__init__(host)
        self.topology = topology
        self.consumers = Consumers(self, topology, prefetch, self._return_inbox)
        # One thread reads and appends, one consumes and takes the oldest out, and the I/O thread hands some back: each
        # by one step of the interpreter, so that none waits for another. What was there at a look may be gone.
        self.inbox: deque[Delivery] = deque()
        self.notify: Callable[[], None] = _nothing
        self.error: errors.PostageError | None = None
        self.is_drained = False
        # Any thread appends; one at a time takes out, the one that sends, which holds the link's lock. An entry has its
        # generation with it, so it does no harm where the channel is lost in between.
        self._outbox: deque[tuple[int, int, Fate]] = deque()  # generation, tag
        self._settled = Settled()  # for the thread that sends; made anew where none does, before the channel is open
        self._is_stuck: Callable[[float], bool] | None = None
        self._slow_down: Callable[[], None] = _nothing
        self._watched_since: float | None = None

    # From any thread

    @property
    def prefetch(self) -> int:
        """How many messages the broker sends ahead of their acknowledgement, as it was told last; 0 for no limit."""
        return self.consumers.prefetch

    def settle(self, delivery: Delivery, requeue: bool | None = None) -> None:
        """Acknowledge a delivery that was handled, or reject one that was tried and failed. Never blocks.

        :param requeue: for one that failed: whether it goes back to its queue, or is dropped or dead-lettered
        """
        fate: Fate = 'ack' if requeue is None else 'requeue' if requeue else 'reject'
        if delivery.position is not None:
            leave_behind(delivery)
            fate = 'ack'  # to the broker it is all the same: the message stays in there
        self._outbox.append((delivery.generation, delivery.delivery_tag, fate))
        self.host.outbox.submit(self)
        if len(self._outbox) >= ACKNOWLEDGEMENTS_HELD:
            self.host.outbox.flush()

    def hand_back(self, delivery: Delivery) -> None:
        """Have a delivery that was not tried delivered again. Never blocks."""
        # A stream takes nothing back; what is not handled is where it goes on when it is consumed again.
        fate: Fate = 'return' if delivery.position is None else 'ack'
        self._outbox.append((delivery.generation, delivery.delivery_tag, fate))
        self.host.outbox.submit(self)

    # Opening, losing and recovering, on the I/O thread

    def _set_up(self) -> Steps:
        self._settled = Settled()
        assert self._pika is not None
        self._pika.add_on_cancel_callback(self._on_cancelled)
        yield from self.consumers.set_up_steps()
        self._watched_since = None
        self.host.tick.remove(self._look)
        self.host.tick.add(self._look)

    @property
    def unattached(self) -> list[str]:
        """The queues that it is to consume from and does not at present. Any thread; never blocks."""
        if not self.is_wanted:
            return []
        consumers = self.consumers
        return [queue for queue in list(consumers.tags) if not self.is_open or queue not in consumers.attached]

    def drain_steps(self) -> Steps:
        """Stop consuming from every queue, and leave in the inbox what has come. At their end no more can come."""
        try:
            yield from self.consumers.end_all_steps()
        except (errors.ConnectionLost, errors.ChannelLost):
            pass  # what was in the inbox went back with it
        self.is_drained = True
        self.notify()

    def _on_cancelled(self, frame: Any) -> None:
        """The broker ended one of our consumers: its queue went, or a time-out passed. Declare, and consume again."""
        tag: str = frame.method.consumer_tag
        queue = self.consumers.queues.get(tag.encode())
        if queue is None or self.consumers.tags.get(queue) != tag:
            return
        self.consumers.attached.discard(queue)
        text = 'queue %r went away, or the broker ended its consumer: it is declared and consumed again'
        self._sparingly.log(logging.WARNING, text, queue)
        when_done(self._recover_steps(queue, tag, self._pauses.next()), self._on_recovered)

    def _recover_steps(self, queue: str, tag: str, pause: float) -> Steps:
        """Declare and consume again; for a while also where that is refused, for more may go than this queue.

        Where a virtual host is deleted, its exchanges, queues and permissions go some time before the connection.
        """
        if pause:
            yield self.host.io.pause(pause)
        patience = Patience(self.host, RECOVERY_SECONDS)
        while True:
            declared = self.topology.queues.get(queue)
            try:
                if declared is not None:
                    yield from replay_exchanges(self.host.control, self.topology)
                    yield from replay_queue(self.host.control, self.topology, declared)
                if self.is_open and self.consumers.tags.get(queue) == tag:
                    yield from self.consumers.anew_steps(queue)
                return
            except errors.OperationRefused as error:
                if patience.is_over or not self.is_wanted:
                    raise
                logger.debug('queue %r is not back yet: %s', queue, error)
                yield patience.pause()

    def _on_recovered(self, error: BaseException | None) -> None:
        # Where the channel was lost meanwhile, it is opened again, and that consumes from all its queues.
        if self.is_open or not self.is_wanted:
            self.on_reopened(error)

    def on_not_restored(self, error: errors.BrokerError) -> None:
        if isinstance(error, errors.OperationRefused) and self.is_wanted:
            self._reopen()  # a queue may have gone between its declaration and its consumption
        else:
            self.on_refused(error)

    def _reopen_steps(self) -> Steps:
        # A queue that went in that very moment is the likeliest reason to be closed: see that all are there.
        yield from replay(self.host.control, self.topology)
        yield from self.open_again_steps()

    def open_again_steps(self) -> Steps:
        """As :meth:`Channel.open_again_steps`; a queue that goes away meanwhile is declared again."""
        patience = Patience(self.host, RECOVERY_SECONDS)
        while self.is_wanted:
            try:
                yield from self.ensure_open_steps()
                return
            except errors.OperationRefused:
                if patience.is_over:
                    raise
                yield patience.pause()
                yield from replay(self.host.control, self.topology)

    def _return_inbox(self, queues: Container[str]) -> None:
        """Hand back what came from some queues and is not begun; what came from others stays where it is.

        Other threads go on meanwhile: one takes the oldest out, and one that reads appends. To copy, and to remove, is
        one step of the interpreter each, so none of them sees a gap, or an order that was never there.
        """
        for delivery in reversed(list(self.inbox)):
            if delivery.queue in queues:
                try:
                    self.inbox.remove(delivery)
                except ValueError:
                    break  # the consuming thread was quicker, and has taken all that are older
                self.hand_back(delivery)
        self.host.outbox.flush()

    def give_back_steps(self) -> Steps:
        """End all consumers for good, and hand back what was not begun. Never raises.

        What a closed channel leaves unsettled goes back as well, but counts as tried: RabbitMQ 4.3 and later, quorum
        queues.
        """
        self.is_wanted = False
        try:
            yield from self.consumers.end_all_steps()
        except errors.BrokerError as error:
            logger.debug('ending a consumer: %s', error)
        if self.is_open:
            with contextlib.suppress(IndexError):  # the consuming thread may be quicker
                while self.inbox:
                    self.hand_back(self.inbox.pop())
            self.host.outbox.flush()
        self.inbox.clear()

    def close_steps(self) -> Steps:
        """As :meth:`Channel.close_steps`; what was not tried goes back first."""
        yield from self.give_back_steps()
        self.host.tick.remove(self._look)
        yield from super().close_steps()

    def _on_lost(self, error: errors.BrokerError) -> None:
        if self.is_wanted and isinstance(error, errors.OperationRefused):
            text = 'the channel of the consumer of %s was closed: %s'
            self._sparingly.log(logging.WARNING, text, ', '.join(self.consumers.tags), error)
        # What was delivered on it comes again.
        self.inbox.clear()

    def on_refused(self, error: errors.PostageError) -> None:
        self.error = error
        self.notify()

    # Deliveries: on the thread that reads

    def delivered(self, content: Content) -> None:
        queue = self.consumers.queues.get(content.tag_or_text)
        if queue is None:
            return
        delivery = Delivery(self, queue, content)
        if self.consumers.origins.has_marks:
            self.consumers.origins.mark(delivery)
        if self.is_wanted:
            self.inbox.append(delivery)
        else:
            self.hand_back(delivery)

    def too_large(self, content: Content) -> None:
        """Reject what must not be kept: it would come again and again."""
        queue = self.consumers.queues.get(content.tag_or_text)
        if queue is not None:
            content.body = b''
            delivery = Delivery(self, queue, content)
            text = '%r is rejected: its body is larger than POSTAGE_MAX_BODY allows'
            self._sparingly.log(logging.ERROR, text, delivery)
            self.settle(delivery, requeue=False)

    def end_of_read(self) -> None:
        if self.inbox:
            asked_for = self.consumers.prefetch
            most = INBOX_SPARE + 4 * self.consumers.most_prefetched * len(self.consumers.tags)
            if asked_for and len(self.inbox) > most:
                text = f'{len(self.inbox):,} deliveries, where {asked_for:,} were asked for'
                raise pika.exceptions.InvalidFrameError(text)
            self.notify()
            if self._is_stuck is not None and asked_for != 1 and self._watched_since is None:
                self._watched_since = time.monotonic()
                self.host.tick.stir()

    def watch_with(self, is_stuck: Callable[[float], bool], slow_down: Callable[[], None]) -> None:
        """Look after the inbox while there is something in it.

        :param is_stuck: whether nothing has been taken out of it for long; gets the moment since when there has been
            something in it
        :param slow_down: what to do then; on the I/O thread
        """
        self._is_stuck, self._slow_down = is_stuck, slow_down

    def _look(self, _: bool) -> bool:
        """Look after the inbox. Called at each tick, on the I/O thread. Returns whether to go on doing so."""
        if not (self.inbox and self.is_open):
            self._watched_since = None
            if not (self.inbox and self.is_open):
                return False
            self._watched_since = time.monotonic()  # something has come in that very moment
        elif self._is_stuck is not None and self._watched_since is not None and self._is_stuck(self._watched_since):
            self._slow_down()
        return self._is_stuck is not None

    # Acknowledgements: on the thread that sends

    def drain(self, frames: list[bytes]) -> None:
        number, generation, outbox = self.number, self.generation, self._outbox
        stale, acknowledged = 0, []
        while outbox:
            made_on, tag, fate = outbox.popleft()
            if made_on != generation:
                stale += 1
            elif fate == 'ack':
                acknowledged.append(tag)
            else:
                self._settled.add(tag)
                if fate == 'return':
                    frames.append(return_frame(number, tag))
                else:
                    frames.append(reject_frame(number, tag, requeue=fate == 'requeue'))
        if acknowledged:
            up_to, others = self._settled.acknowledge(acknowledged)
            if up_to:
                frames.append(ack_frame(number, up_to, multiple=True))
            frames.extend(ack_frame(number, tag) for tag in others)
        if stale:
            logger.warning(
                'dropped %d acknowledgements of messages delivered before the connection was lost; '
                'the broker delivers those again',
                stale,
            )

    def after_fork(self) -> bool:
        super().after_fork()
        self.inbox.clear()
        self._outbox.clear()
        self.is_wanted = False
        return False


def _nothing(*_: Any) -> None:
    """Until a consumer says what to call."""
