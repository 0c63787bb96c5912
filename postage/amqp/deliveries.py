"""One delivery, and which deliveries of a channel are settled.

Every delivery carries the generation of its channel. On a new channel the same delivery tag is another message, so
an acknowledgement of an old one is dropped: the broker has put that message back in its queue and delivers it again.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Protocol

import pika.spec

from postage import errors
from postage.amqp.cancelled import cancelled
from postage.amqp.cutter import Content
from postage.amqp.frames import (
    TRACEPARENT,
    Answerable,
    Traced,
    answerable_of,
    decode_answerable,
    decode_properties,
    decode_traced,
    salvage_answerable,
)
from postage.amqp.publishing import Receipt
from postage.amqp.retries import DelayedRetries
from postage.amqp.streams import OFFSET, Position
from postage.amqp.topology import Topology
from postage.printable import shown_half_built
from postage.settings import clock_tolerance

ORIGINAL_EXCHANGE = 'x-postage-exchange'
ORIGINAL_ROUTING_KEY = 'x-postage-routing-key'
LINKED = 'x-postage-traceparent'  # the header of a message that is sent again: the trace that it was sent in at first
SETTLED_BEYOND = 65536  # deliveries settled before an older one: more than any prefetch count

current: ContextVar[Delivery | None] = ContextVar('postage_delivery', default=None)
"""The delivery whose handlers are running, so that what they publish can be tied to its acknowledgement."""


def with_link(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers of a message that is sent again: what handles it is linked to its trace, and no part of that."""
    if not isinstance(headers.get(TRACEPARENT), str):
        return headers
    return {LINKED if name == TRACEPARENT else name: value for name, value in headers.items() if name != LINKED}


class Settler(Protocol):
    """The channel of a delivery, to its processor.

    :ivar generation: how often it was opened
    :ivar is_open: whether it is open now
    :ivar is_wanted: whether it is to be opened again after a loss; else what it delivered has gone back
    :ivar topology: what its consumer declared
    :ivar frame_max: bytes that a frame may have on its connection
    """

    frame_max: int
    generation: int
    is_open: bool
    is_wanted: bool
    topology: Topology

    @property
    def prefetch(self) -> int:
        """How many messages are sent ahead of their acknowledgement; 0 for no limit."""

    def settle(self, delivery: Any, requeue: bool | None = None) -> None:
        """Acknowledge a delivery, or reject it where ``requeue`` is given. Never blocks; any thread."""

    def hand_back(self, delivery: Any) -> None:
        """Have a delivery that was not tried delivered again. Never blocks; any thread."""


class Delivery:
    """One message as it was delivered.

    :ivar queue: name of the queue it came from
    :ivar content: the message as it came
    :ivar body: the bytes of its body
    :ivar redelivered: whether it may have been delivered before
    :ivar delivery_tag: its number on its channel
    :ivar receipts: of what its handlers have published so far
    :ivar position: how far its stream has been handled, where it comes from one
    :ivar span: in which it is handled, where that is traced
    :ivar cancel_id: what the request is called where it is cancelled, if that is not its correlation id
    :ivar retries: how the broker delays the retries of its queue, where it does
    """

    __slots__ = (
        '_properties',
        'body',
        'cancel_id',
        'channel',
        'content',
        'delivery_tag',
        'generation',
        'is_handled',
        'position',
        'queue',
        'receipts',
        'redelivered',
        'retries',
        'span',
    )

    def __init__(self, channel: Settler, queue: str, content: Content) -> None:
        self.channel = channel
        self.generation = channel.generation
        self.queue = queue
        self.body = content.body
        self.delivery_tag = content.delivery_tag
        self.redelivered = content.redelivered
        self.receipts: list[Receipt] | None = None
        self.retries: DelayedRetries | None = None
        self.span: Any = None
        self.position: Position | None = None
        self.is_handled = False
        self.cancel_id: str | None = None
        self.content = content
        self._properties: pika.spec.BasicProperties | None = None

    @property
    def consumer_tag(self) -> str:
        """The consumer it was delivered to."""
        return self.content.tag_or_text.decode()

    @property
    def exchange(self) -> str:
        """Name of the exchange it was first published to; empty for the default exchange."""
        return self._origin(ORIGINAL_EXCHANGE, self.content.exchange)

    @property
    def routing_key(self) -> str:
        """The routing key it was first published with."""
        return self._origin(ORIGINAL_ROUTING_KEY, self.content.routing_key)

    @property
    def arrived_by(self) -> tuple[str, str]:
        """The exchange and the routing key by which the broker says that it came, whatever its headers say."""
        content = self.content
        return content.exchange.decode('utf-8', 'replace'), content.routing_key.decode('utf-8', 'replace')

    def _origin(self, header: str, arrived_by: bytes) -> str:
        """A message that was sent back to its queue, to be tried again, says in its headers where it came from."""
        if not self.content.exchange:
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
            self._properties = decode_properties(self.content.properties)
            if self.retries is not None:
                self.retries.note(self._properties)
        return self._properties

    @property
    def answerable(self) -> Answerable:
        """Of its properties, those that an answer depends on.

        :raises errors.DecodingError: where these cannot be decoded
        """
        known = self._properties
        return decode_answerable(self.content.properties) if known is None else answerable_of(known)

    @property
    def salvaged(self) -> Answerable:
        """The same, as far as it can be had where they cannot be decoded. Never raises."""
        try:
            return self.answerable
        except errors.DecodingError:
            return salvage_answerable(self.content.properties)

    @property
    def traced(self) -> Traced | None:
        """Of its properties those that its span has; ``None`` where it takes all of them to know. Never raises."""
        return decode_traced(self.content.properties) if self._properties is None else None

    @property
    def cancelled(self) -> bool:
        """Whether its caller wants no answer any more, for a handler that can stop. Any thread.

        The caller has said so, or the deadline of its request has passed.
        """
        header = self.salvaged
        if (self.cancel_id or header.correlation_id) in cancelled.until:
            return True
        return header.deadline is not None and time.time() - header.deadline / 1000 > clock_tolerance()

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers; empty where it has none.

        :raises errors.DecodingError: as :attr:`properties`
        """
        return self.properties.headers or {}

    @property
    def offset(self) -> int | None:
        """Which message of a stream it is, counted from 0; ``None`` where it comes from another kind of queue.

        :raises errors.DecodingError: as :attr:`properties`
        """
        offset = self.headers.get(OFFSET)
        return int(offset) if self.position is not None and isinstance(offset, int) else None

    def published(self, receipt: Receipt) -> bool:
        """Hold back this delivery's acknowledgement until that message is confirmed.

        Returns ``False`` where it is too late for that: what publishes was left running behind the handler.
        """
        if self.is_handled:
            return False
        if self.receipts is None:
            self.receipts = [receipt]
        else:
            self.receipts.append(receipt)
        return True

    @shown_half_built
    def __repr__(self) -> str:
        return (
            f'<Delivery {self.delivery_tag} from queue {self.queue!r}, exchange {self.exchange!r}, '
            f'key {self.routing_key!r}>'
        )


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
        if not self._beyond and tags == list(range(before + 1, before + 1 + len(tags))):  # the usual case
            self._all_up_to = tags[-1]
            return tags[-1], []
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
            # One is missing that is settled elsewhere: the program got it by `consumer.channel`.
            self._is_known = False
            beyond.clear()
