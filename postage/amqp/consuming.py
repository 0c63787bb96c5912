"""Deliveries in, acknowledgements out: the channel of one consumer.

Every delivery carries the generation of its channel. On a new channel the same delivery tag is another message, so
an acknowledgement of an old one is dropped: the broker has put that message back in its queue and delivers it again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Container
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import pika.spec

from postage import errors
from postage.amqp.channel import Channel, Steps
from postage.amqp.topology import Topology
from postage.amqp.wire import (
    Answerable,
    Content,
    ack_frame,
    decode_answerable,
    decode_properties,
    reject_frame,
    return_frame,
)

if TYPE_CHECKING:
    from postage.amqp.connection import Connection
    from postage.amqp.publishing import Receipt

logger = logging.getLogger('postage')

ORIGINAL_EXCHANGE = 'x-postage-exchange'
ORIGINAL_ROUTING_KEY = 'x-postage-routing-key'
SETTLED_BEYOND = 65536  # deliveries settled before an older one: more than any prefetch count
ACKNOWLEDGEMENTS_HELD = 32  # at most, until the end of a batch

current: ContextVar[Delivery | None] = ContextVar('postage_delivery', default=None)
"""The delivery whose handlers are running, so that what they publish can be tied to its acknowledgement."""


class Delivery:
    """One message as it was delivered.

    :ivar queue: name of the queue it came from
    :ivar body: the bytes of its body
    :ivar redelivered: whether it may have been delivered before
    :ivar delivery_tag: its number on its channel
    :ivar consumer_tag: the consumer it was delivered to
    :ivar receipts: of what its handlers have published so far
    """

    __slots__ = (
        '_content',
        '_properties',
        'body',
        'channel',
        'consumer_tag',
        'delivery_tag',
        'generation',
        'is_handled',
        'queue',
        'receipts',
        'redelivered',
    )

    def __init__(self, channel: ConsumingChannel, queue: str, content: Content) -> None:
        self.channel = channel
        self.generation = channel.generation
        self.queue = queue
        self.body = content.body
        self.delivery_tag = content.delivery_tag
        self.redelivered = content.redelivered
        self.consumer_tag = content.tag_or_text.decode()
        self.receipts: list[Receipt] | None = None
        self.is_handled = False
        self._content = content
        self._properties: pika.spec.BasicProperties | None = None

    @property
    def exchange(self) -> str:
        """Name of the exchange it was first published to; empty for the default exchange."""
        return self._origin(ORIGINAL_EXCHANGE, self._content.exchange)

    @property
    def routing_key(self) -> str:
        """The routing key it was first published with."""
        return self._origin(ORIGINAL_ROUTING_KEY, self._content.routing_key)

    def _origin(self, header: str, arrived_by: bytes) -> str:
        """A message that was sent back to its queue, to be tried again, says in its headers where it came from."""
        if not self._content.exchange:
            try:
                return str(self.headers[header])
            except (KeyError, errors.DecodingError):
                pass
        return arrived_by.decode('utf-8', 'replace')

    @property
    def properties(self) -> pika.spec.BasicProperties:
        """Its AMQP properties, as pika's ``BasicProperties``.

        :raises errors.DecodingError: where the publisher sent what cannot be decoded
        """
        if self._properties is None:
            self._properties = decode_properties(self._content.properties)
        return self._properties

    @property
    def answerable(self) -> Answerable:
        """Of its properties, those that an answer depends on.

        :raises errors.DecodingError: where these cannot be decoded
        """
        return decode_answerable(self._content.properties)

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers; empty where it has none.

        :raises errors.DecodingError: as :attr:`properties`
        """
        return self.properties.headers or {}

    def published(self, receipt: Receipt) -> None:
        """Hold back this delivery's acknowledgement until that message is confirmed."""
        if self.is_handled:
            return  # by what a handler left running behind it
        if self.receipts is None:
            self.receipts = []
        self.receipts.append(receipt)

    def __repr__(self) -> str:
        return (
            f'<Delivery {self.delivery_tag} from queue {self.queue!r}, exchange {self.exchange!r}, '
            f'key {self.routing_key!r}>'
        )


class ConsumingChannel(Channel):
    """A channel that consumes from several queues into one inbox.

    :param topology: what its consumer declared; what is missing when the broker cancels is declared again
    :param prefetch: messages that the broker sends ahead of their acknowledgement; 0 for no limit
    :ivar inbox: deliveries nobody has taken yet, oldest first
    :ivar notify: called on the thread that reads, must not block: there are deliveries, or ``error`` has been set
    :ivar error: what ended it, once something has that no retry cures
    """

    def __init__(self, connection: Connection, topology: Topology, prefetch: int) -> None:
        super().__init__(connection)
        self.topology = topology
        self.prefetch = prefetch
        self.inbox: deque[Delivery] = deque()
        self.notify: Callable[[], None] = _nothing
        self.error: errors.PostageError | None = None
        self.consumers: dict[str, str] = {}  # queue → consumer tag
        self._queues: dict[bytes, str] = {}  # consumer tag → queue
        self._outbox: deque[tuple[int, int, bool | None]] = deque()  # generation, tag, None to ack or requeue
        self._settled = Settled()
        self._is_stuck: Callable[[float], bool] | None = None
        self._slow_down: Callable[[], None] = _nothing
        self._watched_since: float | None = None
        self._wanted_prefetch = prefetch
        self._is_resizing = False

    # From any thread

    def settle(self, delivery: Delivery, requeue: bool | None = None) -> None:
        """Acknowledge a delivery, or reject it where ``requeue`` is given. Never blocks."""
        self._outbox.append((delivery.generation, delivery.delivery_tag, requeue))
        self.connection.request_flush(self)
        if len(self._outbox) >= ACKNOWLEDGEMENTS_HELD:
            self.connection.send()

    # On the I/O thread

    def consume_steps(self, queue: str) -> Steps:
        """Start to consume from a queue, now and after every reconnect. Does nothing where it does already."""
        if queue not in self.consumers:
            self.consumers[queue] = tag = self._new_tag(queue)
            if self.is_open:
                yield from self._consume(queue, tag)

    def cancel_steps(self, queue: str) -> Steps:
        """Stop consuming from a queue. What it has delivered is still to be settled."""
        tag = self.consumers.pop(queue, None)
        if tag is not None and self.is_open:
            yield self.operate('basic_cancel', f'stop consuming from queue {queue!r}', consumer_tag=tag)

    def resize_steps(self, prefetch: int) -> Steps:
        """Change how many messages are sent ahead.

        A consumer keeps the prefetch count that it began with (https://www.rabbitmq.com/docs/consumer-prefetch), so
        each ends and a new one begins. The order of the messages holds.
        """
        self._wanted_prefetch = prefetch
        if self._is_resizing:
            return  # whoever is at it sees the new number
        self._is_resizing = True
        try:
            while self.prefetch != self._wanted_prefetch:
                shrinks = 0 < self._wanted_prefetch < self.prefetch or not self.prefetch
                self.prefetch = self._wanted_prefetch
                wire = self.connection.wire
                if self.is_open and wire is not None:
                    # What comes late for an old consumer must not go back once a new one has begun: for the order.
                    yield from (self._shrink() if shrinks or wire.returns_after_cancel else self._grow())
        finally:
            self._is_resizing = False

    def _grow(self) -> Steps:
        """Begin new consumers before the old ones end, so that no queue which deletes itself is left without one."""
        yield self.operate('basic_qos', 'set the prefetch count', prefetch_count=self.prefetch)
        for queue, tag in list(self.consumers.items()):
            if self.consumers.get(queue) == tag:  # else somebody has ended it meanwhile
                yield from self._consume_anew(queue)
                yield self.operate('basic_cancel', f'stop consuming from queue {queue!r}', consumer_tag=tag)

    def _shrink(self) -> Steps:
        """End consumers, hand back what nobody has begun to handle, to the place it came from, and begin new ones.

        What is fetched from a queue that nobody else may read, or that would delete itself, stays.
        """
        ended = {queue: tag for queue, tag in self.consumers.items() if self._is_shared(queue)}
        for queue, tag in ended.items():
            yield self.operate('basic_cancel', f'stop consuming from queue {queue!r}', consumer_tag=tag)
        # What was on its way may come after the answer to the cancel, but not after this one.
        yield self.operate('basic_qos', 'set the prefetch count', prefetch_count=self.prefetch)
        self._return_inbox(ended)
        for queue, tag in ended.items():
            if self.consumers.get(queue) == tag:
                yield from self._consume_anew(queue)

    def _is_shared(self, queue: str) -> bool:
        declared = self.topology.queues.get(queue)
        return declared is not None and not (declared.flags.get('exclusive') or declared.flags.get('auto_delete'))

    def _consume_anew(self, queue: str) -> Steps:
        self.consumers[queue] = self._new_tag(queue)
        yield from self._consume(queue, self.consumers[queue])

    def _return_inbox(self, queues: Container[str]) -> None:
        """Hand back what nobody has begun to handle. Newest first, for the consuming thread takes the oldest."""
        kept: list[Delivery] = []
        while self.inbox:
            try:
                delivery = self.inbox.pop()
            except IndexError:
                break  # the consuming thread was quicker
            if delivery.queue in queues:
                self.settle(delivery, requeue=True)
            else:
                kept.append(delivery)
        self.inbox.extendleft(kept)
        self.connection.flush_now()

    def _new_tag(self, queue: str) -> str:
        tag = f'postage-{next(_tags)}'
        self._queues[tag.encode()] = queue
        return tag

    def _set_up(self) -> Steps:
        self._settled = Settled()
        if self.prefetch:
            yield self.operate('basic_qos', 'set the prefetch count', prefetch_count=self.prefetch)
        # No delivery of an older generation is still to come.
        self._queues = {tag.encode(): queue for queue, tag in self.consumers.items()}
        assert self._pika is not None
        self._pika.add_on_cancel_callback(self._on_cancelled)
        begun: set[str] = set()
        while missing := [queue for queue in self.consumers if queue not in begun]:  # more may come meanwhile
            yield from self._consume(missing[0], self.consumers[missing[0]])
            begun.add(missing[0])

    def _consume(self, queue: str, tag: str) -> Steps:
        yield self.operate(
            'basic_consume',
            f'consume from queue {queue!r}',
            queue=queue,
            on_message_callback=self.on_message(),
            consumer_tag=tag,
        )

    def _on_cancelled(self, frame: Any) -> None:
        """The broker ended one of our consumers, because its queue went: declare it again, consume again."""
        tag: str = frame.method.consumer_tag
        queue = self._queues.get(tag.encode())
        if queue is None or self.consumers.get(queue) != tag:
            return
        logger.warning('queue %r went away; it is declared and consumed again', queue)
        self.connection.drive(self._recover_steps(queue, tag)).add_done_callback(self._on_reopened)

    def _recover_steps(self, queue: str, tag: str) -> Steps:
        declared = self.topology.queues.get(queue)
        if declared is not None:
            yield from self.topology.replay_exchanges(self.connection.control)
            yield from self.topology.replay_queue(self.connection.control, declared)
        if self.is_open and self.consumers.get(queue) == tag and not self._is_resizing:
            yield from self._consume(queue, tag)

    def _reopen(self) -> None:
        # A queue that went in that very moment is the likeliest reason: see that all are there before going on.
        self.connection.drive(self._declare_and_open_steps()).add_done_callback(self._on_reopened)

    def _declare_and_open_steps(self) -> Steps:
        yield from self.topology.replay(self.connection.control)
        yield from self.ensure_open_steps()

    def _on_lost(self, error: errors.BrokerError) -> None:
        if self.is_wanted and isinstance(error, errors.OperationRefused):
            logger.warning('the channel of the consumer of %s was closed: %s', ', '.join(self.consumers), error)
        # What was delivered on it comes again.
        self.inbox.clear()

    def _on_refused(self, error: errors.PostageError) -> None:
        self.error = error
        self.notify()

    def delivered(self, content: Content) -> None:
        queue = self._queues.get(content.tag_or_text)
        if queue is not None and self.is_wanted:
            self.inbox.append(Delivery(self, queue, content))

    def end_of_read(self) -> None:
        if self.inbox:
            self.notify()
            if self._is_stuck is not None and self.prefetch != 1 and self._watched_since is None:
                self._watched_since = time.monotonic()
                self.connection.watch(self)

    def watch_with(self, is_stuck: Callable[[float], bool], slow_down: Callable[[], None]) -> None:
        """Look after the inbox while there is something in it.

        :param is_stuck: whether nobody has taken anything out of it for long; gets the moment since when there has been
            something in it
        :param slow_down: what to do then; on the I/O thread
        """
        self._is_stuck, self._slow_down = is_stuck, slow_down

    def look(self) -> bool:
        if not (self.inbox and self.is_open):
            self._watched_since = None
            if not (self.inbox and self.is_open):
                return False
            self._watched_since = time.monotonic()  # something has come in that very moment
        elif self._is_stuck is not None and self._watched_since is not None and self._is_stuck(self._watched_since):
            self._slow_down()
        return True

    def drain(self, frames: list[bytes]) -> None:
        number, generation, outbox = self.number, self.generation, self._outbox
        stale, acknowledged = 0, []
        while outbox:
            made_on, tag, requeue = outbox.popleft()
            if made_on != generation:
                stale += 1
            elif requeue is None:
                acknowledged.append(tag)
            else:
                self._settled.add(tag)
                frames.append(return_frame(number, tag) if requeue else reject_frame(number, tag))
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


class Settled:
    """Which deliveries of a channel are settled, so that one frame can acknowledge many of them.

    A ``basic.ack`` with its bit ``multiple`` is about every delivery up to that one (AMQP 0-9-1, section 1.8.3.13), so
    it may be sent only where all those before it are settled, or become so by it.
    """

    def __init__(self) -> None:
        self._all_up_to = 0
        self._beyond: set[int] = set()
        self._is_known = True

    def add(self, tag: int) -> None:
        """It is rejected, or handed back."""
        if self._is_known:
            self._beyond.add(tag)
            self._advance()

    def acknowledge(self, tags: list[int]) -> tuple[int, list[int]]:
        """These are acknowledged.

        :return: the tag up to which all can be acknowledged at once, 0 for none, and those that are left
        """
        if not self._is_known:
            return 0, tags
        before = self._all_up_to
        self._beyond.update(tag for tag in tags if tag > before)
        self._advance()
        at_once = [tag for tag in tags if before < tag <= self._all_up_to]
        if not at_once:
            return 0, tags
        return max(at_once), [tag for tag in tags if not before < tag <= self._all_up_to]

    def _advance(self) -> None:
        """Forget what is settled without a gap before it: it is known by its last."""
        beyond = self._beyond
        while self._all_up_to + 1 in beyond:
            self._all_up_to += 1
            beyond.remove(self._all_up_to)
        if len(beyond) > SETTLED_BEYOND:
            # One is missing that is settled elsewhere: somebody got it by `consumer.channel`.
            self._is_known = False
            beyond.clear()


class Request(Protocol):
    """What a :class:`ReplyChannel` sends."""

    def frames(self, channel: int, reply_to: str, frame_max: int) -> bytes:
        """The frames of the request. Asked for once for each time it is sent."""


class ReplyChannel(Channel):
    """A channel that sends requests and receives their replies.

    By default through direct reply-to, where the address belongs to the channel and needs no queue
    (https://www.rabbitmq.com/docs/direct-reply-to). When the channel goes, replies that were still to come are
    lost, and whoever waits for one has to ask again.

    :param own_queue: receive the replies through an exclusive queue instead
    :param on_reply: called on the thread that reads with the content of each reply
    :param on_lost: called on the I/O thread when the channel has gone
    """

    def __init__(
        self,
        connection: Connection,
        own_queue: bool,
        on_reply: Callable[[ReplyChannel, Content], None],
        on_lost: Callable[[ReplyChannel, errors.PostageError], None],
    ) -> None:
        super().__init__(connection)
        self.own_queue = own_queue
        self.address = f'postage.reply-{os.urandom(12).hex()}' if own_queue else 'amq.rabbitmq.reply-to'
        self._on_reply = on_reply
        self._on_channel_lost = on_lost
        self._outbox: deque[Request] = deque()

    def send(self, request: Request) -> None:
        """Send a request, as soon as the channel is open. From any thread; never blocks."""
        self._outbox.append(request)
        self.connection.request_flush(self)

    def withdraw(self, request: Request) -> None:
        """Do not send what has not been sent yet. From any thread; never blocks."""
        with contextlib.suppress(ValueError):  # the usual case: it has been sent
            self._outbox.remove(request)

    def _set_up(self) -> Steps:
        if self.own_queue:
            yield self.operate(
                'queue_declare', 'declare a queue for replies', queue=self.address, exclusive=True, auto_delete=True
            )
        yield self.operate(
            'basic_consume',
            'receive replies',
            queue=self.address,
            on_message_callback=self.on_message(),
            auto_ack=True,
        )

    def _on_lost(self, error: errors.BrokerError) -> None:
        self._on_channel_lost(self, error)

    def _on_refused(self, error: errors.PostageError) -> None:
        super()._on_refused(error)
        self.give_up(error)

    def give_up(self, error: errors.PostageError) -> None:
        self.is_wanted = False
        self._outbox.clear()
        self._on_channel_lost(self, error)

    def delivered(self, content: Content) -> None:
        self._on_reply(self, content)

    def drain(self, frames: list[bytes]) -> None:
        while self._outbox:
            request = self._outbox.popleft()
            frames.append(request.frames(self.number, self.address, self.connection.frame_max))

    def after_fork(self) -> bool:
        super().after_fork()
        self._outbox.clear()
        return False


_tags = itertools.count(1)


def _nothing(*_: Any) -> None:
    """A callback for what the lane does itself."""
