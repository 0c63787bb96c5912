"""A channel: methods and content in, deliveries and confirms out (AMQP 0-9-1 chapters 1.5 to 1.9).

A channel is open until it is closed by either side. An error closes it with a ``Channel.Close``; what arrives after
that and before the client's ``CloseOk`` is passed over.

    OPEN ── Channel.Close from the client ──> gone
    OPEN ── Refusal ──> CLOSING ── CloseOk ──> gone

Each ``_on_…`` method below answers one AMQP method; the table at the end of the file tells which.
"""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import enum
import logging
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final

from pika import amqp_object, spec

from postage.broker import arguments as args
from postage.broker import wire
from postage.broker.deliveries import ChannelConsumer, Unacknowledged, Unsettled, requeue
from postage.broker.messages import ContentHeader, Message, QueuedMessage, short_string
from postage.broker.publishing import Confirms, Content, PublishReader
from postage.broker.queues import Queue
from postage.broker.replies import (
    ACCESS_REFUSED,
    COMMAND_INVALID,
    NO_ROUTE,
    NOT_ALLOWED,
    NOT_FOUND,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    UNEXPECTED_FRAME,
    Refusal,
)
from postage.broker.virtual_host import REPLY_TO, carbon_copies, generated_name

if TYPE_CHECKING:
    from postage.broker.clock import Timer
    from postage.broker.connection import Connection
    from postage.broker.exchanges import Exchange

logger = logging.getLogger(__name__)

_PUBLISH: Final = struct.pack('>I', spec.Basic.Publish.INDEX)
_ACK: Final = struct.pack('>I', spec.Basic.Ack.INDEX)
_unpack_ack = struct.Struct('>QB').unpack_from


class State(enum.Enum):
    """What a channel may still do."""

    OPEN = enum.auto()
    CLOSING = enum.auto()


class Transaction:
    """What a transactional channel holds back until ``Tx.Commit`` (AMQP 0-9-1 section 1.9)."""

    def __init__(self) -> None:
        self.publishes: list[Callable[[], None]] = []
        self.settlements: list[Callable[[], None]] = []
        self.settled: dict[int, Unacknowledged] = {}

    def commit(self) -> None:
        """Do it, messages before acknowledgements."""
        for work in (*self.publishes, *self.settlements):
            work()


class Channel:
    """One channel of a connection.

    :ivar prefetch_count: the limit that all its consumers share, 0 for none
    :ivar in_flight: how many deliveries to consumers that limit counts
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.state = State.OPEN
        self.prefetch_count = 0
        self.in_flight = 0
        self._host = connection.virtual_host
        self._node = connection.node
        self._grant = connection.grant
        self._consumers: dict[str, ChannelConsumer] = {}
        self._unsettled = Unsettled()
        self._last_tag = 0
        self._consumer_prefetch = 0
        self._last_queue = ''
        self._content: Content | None = None
        self._method_index = 0
        self._confirms: Confirms | None = None
        self._late_confirms: deque[amqp_object.Method] = deque()
        self._timeout: Timer | None = None
        self._transaction: Transaction | None = None
        self._reply_consumer: str | None = None
        self._reply_address: str | None = None
        self._publishes = PublishReader()

    # --- frames in ---

    def receive(self, kind: int, payload: bytes) -> None:
        """Take a frame that is meant for this channel.

        :raises Refusal: where it asks for what it cannot have
        """
        if self.state is State.CLOSING:
            return
        if self._content is not None:
            if self._content.receive(kind, payload):
                content, self._content = self._content, None
                self._published(content)
        elif kind != wire.METHOD:
            raise Refusal(UNEXPECTED_FRAME, 'expected method frame, got non method frame instead')
        elif payload.startswith(_PUBLISH):
            self._method_index = spec.Basic.Publish.INDEX
            self._content = Content(self._publishes.read(payload))
            self.connection.publish_begins()
        elif payload.startswith(_ACK) and len(payload) == 13:
            self._method_index = spec.Basic.Ack.INDEX
            tag, multiple = _unpack_ack(payload, 4)
            self._settle(tag, bool(multiple & 1), self._acknowledge)
        else:
            self._method_index = wire.method_index(payload)
            self._receive_method(wire.decode_method(payload))

    def _receive_method(self, method: Any) -> None:
        handler = _HANDLERS.get(type(method))
        if handler is None:
            raise Refusal(COMMAND_INVALID, 'unimplemented method')
        reply = handler(self, method)
        if reply is not None and not getattr(method, 'nowait', False):
            self._send(reply)

    @property
    def takes_deliveries(self) -> bool:
        """False at the end, and while the client has too much to read already."""
        return self.state is State.OPEN and self.connection.takes_deliveries

    @property
    def consumed_queues(self) -> set[str]:
        """The names of the queues that it consumes from."""
        return {consumer.queue.name for consumer in self._consumers.values()}

    @property
    def method_index(self) -> int:
        """The class and method number of what was asked last."""
        return self._method_index

    # --- frames out ---

    def _send(self, method: amqp_object.Method) -> None:
        self.connection.send(wire.encode_method(self.number, method))

    def _send_content(self, payload: bytes, message: Message, header: bytes) -> None:
        self.connection.send(wire.content_frames(self.number, payload, header, message, self.connection.frame_max))

    def deliver(self, consumer: ChannelConsumer, entry: QueuedMessage) -> None:
        """Send a message to a consumer, and remember it unless no acknowledgement will come."""
        self._last_tag = tag = self._last_tag + 1
        queue, message = consumer.queue, entry.message
        payload = wire.deliver_payload(consumer.prefix, tag, entry.redelivered, message.address)
        header = _counted_header(queue, entry) if entry.returns else message.header.payload
        self._send_content(payload, message, header)
        if self._host.observers:
            self._tell_delivery(queue.name, message, entry.redelivered)
        if consumer.no_ack:
            queue.settle(1)
        else:
            self._unsettled.add(tag, Unacknowledged(entry, queue, consumer, self._due(queue)))
            consumer.unacknowledged += 1
            self.in_flight += 1

    def _tell_delivery(self, queue: str, message: Message, redelivered: bool) -> None:
        for observer in self._host.observers:
            observer.delivered(self._host.name, queue, message, redelivered)

    def flush_confirms(self) -> None:
        """Acknowledge what was published since the last time."""
        if self._confirms is not None and self.state is State.OPEN:
            acknowledgement = self._confirms.acknowledge()
            if acknowledgement is not None:
                self._send_confirm(acknowledgement)

    def _send_confirm(self, confirm: amqp_object.Method) -> None:
        """Send an acknowledgement or a refusal to a publisher: at once, unless a test wants it late."""
        delay = self._node.confirm_delay
        if delay:
            self._late_confirms.append(confirm)
            self._node.clock.call_later(delay, self._send_late_confirm)
            return
        while self._late_confirms:
            self._send_late_confirm()
        self._send(confirm)

    def _send_late_confirm(self) -> None:
        if self._late_confirms and self.state is State.OPEN:
            self._send(self._late_confirms.popleft())

    # --- the end ---

    def refuse(self, refusal: Refusal) -> None:
        """Close the channel because of an error, and wait for the client's CloseOk."""
        self.flush_confirms()
        self.end()
        index = self._method_index
        self._send(spec.Channel.Close(refusal.code, refusal.text, index >> 16, index & 0xFFFF))

    def end(self) -> None:
        """Give back what the channel holds: its consumers, then its messages, at their old positions."""
        if self.state is State.CLOSING:
            return
        self.state = State.CLOSING
        self._content = None
        if self._timeout is not None:
            self._timeout.cancel()
        if self._reply_address is not None:
            self._host.reply_addresses.pop(self._reply_address, None)
        if self._transaction is not None:
            self._unsettled.put_back(self._transaction.settled)
        for consumer in self._consumers.values():
            consumer.queue.remove_consumer(consumer)
        self._consumers.clear()
        requeue(self._unsettled.take_all().values())

    # --- the time within which deliveries have to be acknowledged ---

    def _due(self, queue: Queue) -> float:
        """Return the time by which a delivery of now has to be settled, and come back then."""
        seconds = queue.consumer_timeout(self._node.consumer_timeout)
        if seconds is None:
            return inf
        due = self._node.clock.now() + seconds
        if self._timeout is None or due < self._timeout.due:
            self._watch_time(due)
        return due

    def _watch_time(self, due: float) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        clock = self._node.clock
        self._timeout = None if due == inf else clock.call_later(due - clock.now(), self._look_at_time)

    def _look_at_time(self) -> None:
        """Close the channel where a delivery was not settled in time."""
        self._timeout = None
        due = self._unsettled.first_due()
        if due > self._node.clock.now():
            self._watch_time(due)
            return
        late = self._unsettled.due_at(due)
        milliseconds = round(1000 * (late.queue.consumer_timeout(self._node.consumer_timeout) or 0))
        text = f'delivery acknowledgement on channel {self.number} timed out. Timeout value used: {milliseconds} ms.'
        more = 'This timeout value can be configured, see consumers doc guide to learn more'
        self._method_index = 0
        self.refuse(Refusal(PRECONDITION_FAILED, f'{text} {more}'))

    def resume_deliveries(self) -> None:
        """Ask for messages, as there is room for them again."""
        for consumer in list(self._consumers.values()):
            consumer.queue.dispatch()

    # --- permissions ---

    def _require(self, right: str, kind: str, name: str) -> None:
        """Make sure that the user has a right.

        :raises Refusal: 403
        """
        if self._grant is not None:
            self._grant.check(right, kind, name)

    def _require_for_exchange(self, name: str, arguments: Mapping[str, Any]) -> None:
        if not name:
            return
        self._require('configure', 'exchange', name)
        if isinstance(alternate := arguments.get('alternate-exchange'), str):
            self._require('read', 'exchange', name)
            self._require('write', 'exchange', alternate)

    def _require_for_queue(self, name: str, arguments: Mapping[str, Any]) -> None:
        self._require('configure', 'queue', name)
        if isinstance(dead_letters := arguments.get('x-dead-letter-exchange'), str):
            self._require('read', 'queue', name)
            self._require('write', 'exchange', dead_letters)

    # --- channel, access ---

    def _on_flow(self, method: spec.Channel.Flow) -> amqp_object.Method:
        if not method.active:
            raise Refusal(NOT_IMPLEMENTED, 'active=false')
        return spec.Channel.FlowOk(active=True)

    def _on_access_request(self, method: spec.Access.Request) -> amqp_object.Method:
        return spec.Access.RequestOk(ticket=1)

    # --- exchange ---

    def _on_exchange_declare(self, method: spec.Exchange.Declare) -> amqp_object.Method:
        if method.passive:
            self._host.named_exchange(method.exchange)
        else:
            self._require_for_exchange(method.exchange, method.arguments or {})
            self._host.declare_exchange(
                method.exchange,
                method.type,
                method.durable,
                method.auto_delete,
                method.internal,
                method.arguments or {},
            )
        return spec.Exchange.DeclareOk()

    def _on_exchange_delete(self, method: spec.Exchange.Delete) -> amqp_object.Method:
        if method.exchange and not method.exchange.startswith('amq.'):
            self._require('configure', 'exchange', method.exchange)
        self._host.delete_exchange(method.exchange, method.if_unused)
        return spec.Exchange.DeleteOk()

    def _on_exchange_bind(self, method: spec.Exchange.Bind) -> amqp_object.Method:
        self._require('write', 'exchange', method.destination)
        self._require('read', 'exchange', method.source)
        self._host.named_exchange(method.source)
        destination = self._host.named_exchange(method.destination)
        self._host.bind(method.source, destination, method.routing_key, method.arguments or {})
        return spec.Exchange.BindOk()

    def _on_exchange_unbind(self, method: spec.Exchange.Unbind) -> amqp_object.Method:
        self._require('write', 'exchange', method.destination)
        self._require('read', 'exchange', method.source)
        if not method.destination:
            self._host.named_exchange('')
        destination = self._host.exchanges.get(method.destination)
        self._host.unbind(method.source, destination, method.routing_key, method.arguments or {})
        return spec.Exchange.UnbindOk()

    # --- queue ---

    def _queue_name(self, name: str) -> str:
        """Return the name, or that of the last queue declared here where it is empty."""
        if name:
            return name
        if not self._last_queue:
            raise Refusal(NOT_FOUND, 'no previously declared queue')
        return self._last_queue

    def _queue(self, name: str) -> Queue:
        return self._host.queue(self._queue_name(name), self.connection)

    def _readable_queue(self, name: str) -> Queue:
        self._require('read', 'queue', self._queue_name(name))
        return self._queue(name)

    def _on_queue_declare(self, method: spec.Queue.Declare) -> amqp_object.Method:
        if method.queue.startswith(REPLY_TO):
            return self._reply_queue_declared(method.queue)
        if method.passive:
            queue = self._host.queue(method.queue, self.connection)
            queue.touch()
        else:
            name = self._host.new_queue_name(method.queue)
            self._require_for_queue(name, method.arguments or {})
            queue = self._host.declare_queue(
                name,
                self.connection,
                method.durable,
                method.exclusive,
                method.auto_delete,
                method.arguments or {},
            )
        self._last_queue = queue.name
        return spec.Queue.DeclareOk(queue.name, len(queue.ready), len(queue.consumers))

    def _reply_queue_declared(self, name: str) -> amqp_object.Method:
        if name != REPLY_TO and name not in self._host.reply_addresses:
            raise Refusal(NOT_FOUND, f"no queue '{name}' in vhost '{self._host.name}'")
        return spec.Queue.DeclareOk(name, 0, 1)

    def _binding_of(self, method: spec.Queue.Bind | spec.Queue.Unbind) -> tuple[str, str]:
        """Name and key of the queue that is to be bound or unbound, where its user may do that."""
        name = self._queue_name(method.queue)
        self._require('write', 'queue', name)
        self._require('read', 'exchange', method.exchange)
        return name, method.routing_key if method.queue or method.routing_key else name

    def _on_queue_bind(self, method: spec.Queue.Bind) -> amqp_object.Method:
        name, key = self._binding_of(method)
        self._host.named_exchange(method.exchange)
        self._host.bind(method.exchange, self._host.queue(name, self.connection), key, method.arguments or {})
        return spec.Queue.BindOk()

    def _on_queue_unbind(self, method: spec.Queue.Unbind) -> amqp_object.Method:
        name, key = self._binding_of(method)
        # RabbitMQ lets anybody take a binding back, also from a queue that another connection owns.
        queue = self._host.queues.get(name)
        self._host.unbind(method.exchange, queue, key, method.arguments or {})
        return spec.Queue.UnbindOk()

    def _on_queue_purge(self, method: spec.Queue.Purge) -> amqp_object.Method:
        return spec.Queue.PurgeOk(self._readable_queue(method.queue).purge())

    def _on_queue_delete(self, method: spec.Queue.Delete) -> amqp_object.Method:
        name = self._queue_name(method.queue)
        self._require('configure', 'queue', name)
        if name not in self._host.queues:
            return spec.Queue.DeleteOk(0)
        count = self._host.delete_queue_when(self._queue(name), method.if_unused, method.if_empty)
        return spec.Queue.DeleteOk(count)

    # --- basic: consumers ---

    def _on_qos(self, method: spec.Basic.Qos) -> amqp_object.Method:
        if method.prefetch_size:
            raise Refusal(NOT_IMPLEMENTED, f'prefetch_size!=0 ({method.prefetch_size})')
        if method.global_qos:
            self._host.rules.check_global_prefetch()
            self.prefetch_count = method.prefetch_count
            self.resume_deliveries()
        else:
            self._consumer_prefetch = method.prefetch_count
        return spec.Basic.QosOk()

    def _on_consume(self, method: spec.Basic.Consume) -> amqp_object.Method | None:
        if method.queue == REPLY_TO:
            return self._consume_replies(method)
        tag = self._new_consumer_tag(method.consumer_tag)
        queue = self._readable_queue(method.queue)
        arguments = method.arguments or {}
        args.check_consumer_arguments(queue.name, self._host.name, arguments)
        self._check_exclusive_use(queue, method.exclusive)
        if queue.is_quorum and self.prefetch_count:
            where = f"queue '{queue.name}' in vhost '{self._host.name}'"
            raise Refusal(NOT_IMPLEMENTED, f'{where} does not support global qos')
        consumer = ChannelConsumer(
            self,
            queue,
            tag,
            method.no_ack,
            method.exclusive,
            arguments.get('x-priority', 0),
            self._consumer_prefetch,
        )
        self._consumers[tag] = consumer
        if not method.nowait:
            self._send(spec.Basic.ConsumeOk(tag))
        logger.debug('%s: consumer %r of queue %r', self._host.name, tag, queue.name)
        queue.add_consumer(consumer)
        queue.dispatch()
        return None

    def _check_exclusive_use(self, queue: Queue, exclusive: bool) -> None:
        in_use = any(consumer.exclusive for consumer in queue.consumers)
        if in_use or (exclusive and (queue.consumers or queue.single_active)):
            where = f"queue '{queue.name}' in vhost '{self._host.name}'"
            raise Refusal(ACCESS_REFUSED, f'{where} in exclusive use')

    def _new_consumer_tag(self, wanted: str) -> str:
        if wanted in self._consumers or (wanted and wanted == self._reply_consumer):
            raise Refusal(NOT_ALLOWED, f"attempt to reuse consumer tag '{wanted}'")
        return wanted or generated_name('amq.ctag-')

    def _on_cancel(self, method: spec.Basic.Cancel) -> amqp_object.Method:
        consumer = self._consumers.pop(method.consumer_tag, None)
        if consumer is not None:
            consumer.queue.remove_consumer(consumer)
        elif method.consumer_tag == self._reply_consumer and self._reply_address is not None:
            self._host.reply_addresses.pop(self._reply_address, None)
            self._reply_consumer = self._reply_address = None
        return spec.Basic.CancelOk(method.consumer_tag)

    def consumer_cancelled(self, consumer: ChannelConsumer) -> None:
        """Drop a consumer whose queue has gone (https://www.rabbitmq.com/docs/consumer-cancel)."""
        if self._consumers.pop(consumer.tag, None) is None:
            return
        consumer.queue.consumers.remove(consumer)
        if self.connection.wants_cancel_notifications:
            self._send(spec.Basic.Cancel(consumer.tag, nowait=True))

    # --- basic: direct reply-to (https://www.rabbitmq.com/docs/direct-reply-to) ---

    def _consume_replies(self, method: spec.Basic.Consume) -> amqp_object.Method:
        if self._reply_consumer is not None:
            raise Refusal(PRECONDITION_FAILED, 'reply consumer already set')
        if not method.no_ack:
            raise Refusal(PRECONDITION_FAILED, 'reply consumer cannot acknowledge')
        tag = self._new_consumer_tag(method.consumer_tag)
        prefix = wire.deliver_prefix(tag)

        def deliver(message: Message) -> None:
            self._last_tag += 1
            self._send_content(
                wire.deliver_payload(prefix, self._last_tag, False, message.address), message, message.header.payload
            )
            self._tell_delivery(REPLY_TO, message, False)

        self._reply_consumer = tag
        self._reply_address = generated_name(f'{REPLY_TO}.g1h2')
        self._host.reply_addresses[self._reply_address] = deliver
        return spec.Basic.ConsumeOk(tag)

    def _with_reply_address(self, header: ContentHeader) -> ContentHeader:
        if self._reply_address is None:
            raise Refusal(PRECONDITION_FAILED, 'fast reply consumer does not exist')
        return header.replace(reply_to=short_string(self._reply_address))

    # --- basic: messages in ---

    def _published(self, content: Content) -> None:
        """Do what a whole ``Basic.Publish`` asks for."""
        publish, header = content.publish, content.header
        assert header is not None
        self._require('write', 'exchange', publish.exchange)
        exchange = self._host.exchange(publish.exchange)
        if exchange.internal:
            where = f"exchange '{exchange.name}' in vhost '{self._host.name}'"
            raise Refusal(ACCESS_REFUSED, f'cannot publish to internal {where}')
        if publish.immediate:
            raise Refusal(NOT_IMPLEMENTED, 'immediate=true')
        self._check_user(header)
        expiration = header.text('expiration')
        lifetime = None if expiration is None else args.check_expiration(expiration)
        if header.text('reply_to') == REPLY_TO:
            header = self._with_reply_address(header)
        keys = (publish.routing_key, *carbon_copies(header, b'CC'))
        hidden = carbon_copies(header, b'BCC')
        if hidden:
            header = header.with_headers(BCC=None)
            keys += tuple(hidden)
        message = Message(exchange.name, publish.routing_key, header, content.body(), publish.address, keys)
        if self._transaction is not None:
            self._transaction.publishes.append(lambda: self._hand_over(exchange, message, lifetime, publish.mandatory))
        else:
            self._hand_over(exchange, message, lifetime, publish.mandatory)

    def _check_user(self, header: ContentHeader) -> None:
        claimed = header.text('user_id')
        if claimed is not None and claimed != self.connection.user:
            wrong = f"user_id property set to '{claimed}' but authenticated user was '{self.connection.user}'"
            raise Refusal(PRECONDITION_FAILED, wrong)

    def _hand_over(self, exchange: Exchange, message: Message, lifetime: int | None, mandatory: bool) -> None:
        """Route a message: to its queues, back to a publisher that insists, or nowhere."""
        confirms = self._confirms
        tag = confirms.publish() if confirms is not None else 0
        if confirms is not None and self._node.refusals_left:
            self._node.refusals_left -= 1
            self._refuse_publish(confirms, tag)
            return
        self.connection.published(self)
        if not exchange.name:
            self._host.reply(message)
        accepted = True
        queues = self._host.route(exchange, message)
        for queue in queues:
            accepted = queue.publish(message, lifetime) and accepted
        self._tell_publish(message, queues)
        if mandatory and not queues:
            self._send_content(
                wire.return_payload(NO_ROUTE, 'NO_ROUTE', message.address), message, message.header.payload
            )
        if confirms is not None and not accepted:
            self._refuse_publish(confirms, tag)

    def _refuse_publish(self, confirms: Confirms, tag: int) -> None:
        earlier = confirms.acknowledge(tag - 1)
        if earlier is not None:
            self._send_confirm(earlier)
        self._send_confirm(confirms.refuse(tag))

    def _tell_publish(self, message: Message, queues: Sequence[Queue]) -> None:
        if not (self._host.observers or logger.isEnabledFor(logging.DEBUG)):
            return
        names = [queue.name for queue in queues]
        for observer in self._host.observers:
            observer.published(self._host.name, message, names)
        text = '%s: publish to %r with key %r, %d bytes, for %s'
        reached = ', '.join(map(repr, names)) or 'no queue'
        logger.debug(text, self._host.name, message.exchange, message.routing_key, len(message.body), reached)

    # --- basic: messages out, by request ---

    def _on_get(self, method: spec.Basic.Get) -> amqp_object.Method | None:
        queue = self._readable_queue(method.queue)
        entry = queue.get()
        if entry is None:
            return spec.Basic.GetEmpty()
        self._last_tag = tag = self._last_tag + 1
        message = entry.message
        payload = wire.get_ok_payload(tag, entry.redelivered, message.address, len(queue.ready))
        self._send_content(payload, message, _counted_header(queue, entry))
        if method.no_ack:
            queue.settle(1)
        else:
            self._unsettled.add(tag, Unacknowledged(entry, queue, None, self._due(queue)))
        if self._host.observers:
            self._tell_delivery(queue.name, message, entry.redelivered)
        return None

    # --- basic: acknowledgements ---

    def _on_ack(self, method: spec.Basic.Ack) -> None:
        self._settle(method.delivery_tag, method.multiple, self._acknowledge)

    def _on_nack(self, method: spec.Basic.Nack) -> None:
        fate = self._hand_back if method.requeue else self._reject
        self._settle(method.delivery_tag, method.multiple, fate)

    def _on_reject(self, method: spec.Basic.Reject) -> None:
        self._settle(method.delivery_tag, False, self._requeue if method.requeue else self._reject)

    def _on_recover(self, method: spec.Basic.Recover) -> amqp_object.Method:
        self._on_recover_async(method)
        return spec.Basic.RecoverOk()

    def _on_recover_async(self, method: spec.Basic.Recover | spec.Basic.RecoverAsync) -> None:
        if not method.requeue:
            raise Refusal(NOT_IMPLEMENTED, 'requeue=false')
        self._requeue(list(self._unsettled.take_all().values()))

    def _settle(self, tag: int, multiple: bool, fate: Callable[[list[Unacknowledged]], None]) -> None:
        """Decide about one delivery, or about all up to it.

        :raises Refusal: 406, where there is no such delivery
        """
        settled = self._unsettled.take(tag, multiple)
        if self._transaction is None:
            fate(list(settled.values()))
        else:
            self._transaction.settled.update(settled)
            self._transaction.settlements.append(lambda: fate(list(settled.values())))

    def _acknowledge(self, settled: list[Unacknowledged]) -> None:
        for _, queue, *_ in settled:
            queue.settle(1)
        self._free(settled)

    def _requeue(self, settled: list[Unacknowledged], counts: bool = True) -> None:
        self._count_down(settled)
        requeue(settled, counts)
        self._free([])

    def _hand_back(self, settled: list[Unacknowledged]) -> None:
        self._requeue(settled, self._host.rules.nack_counts)

    def _reject(self, settled: list[Unacknowledged]) -> None:
        for entry, queue, *_ in settled:
            if not queue.deleted:
                queue.reject([entry])
        self._free(settled)

    def _count_down(self, settled: list[Unacknowledged]) -> None:
        for _, _, consumer, _ in settled:
            if consumer is not None:
                consumer.unacknowledged -= 1
                self.in_flight -= 1

    def _free(self, settled: list[Unacknowledged]) -> None:
        """Ask for more messages where settled ones have made room."""
        self._count_down(settled)
        if self.prefetch_count:
            self.resume_deliveries()
            return
        for queue in {queue for _, queue, *_ in settled}:
            if queue.ready:
                queue.dispatch()

    # --- confirm, tx ---

    def _on_confirm_select(self, method: spec.Confirm.Select) -> amqp_object.Method:
        if self._transaction is not None:
            raise Refusal(PRECONDITION_FAILED, 'cannot switch from tx to confirm mode')
        self._confirms = self._confirms or Confirms()
        return spec.Confirm.SelectOk()

    def _on_tx_select(self, method: spec.Tx.Select) -> amqp_object.Method:
        if self._confirms is not None:
            raise Refusal(PRECONDITION_FAILED, 'cannot switch from confirm to tx mode')
        self._transaction = self._transaction or Transaction()
        return spec.Tx.SelectOk()

    def _end_transaction(self) -> Transaction:
        """Return the transaction that ends here, and begin the next."""
        ended = self._transaction
        if ended is None:
            raise Refusal(PRECONDITION_FAILED, 'channel is not transactional')
        self._transaction = Transaction()
        return ended

    def _on_tx_commit(self, method: spec.Tx.Commit) -> amqp_object.Method:
        self._end_transaction().commit()
        return spec.Tx.CommitOk()

    def _on_tx_rollback(self, method: spec.Tx.Rollback) -> amqp_object.Method:
        """Forget the messages; the deliveries that were settled are unacknowledged again."""
        self._unsettled.put_back(self._end_transaction().settled)
        return spec.Tx.RollbackOk()


def _counted_header(queue: Queue, entry: QueuedMessage) -> bytes:
    """Return the header with the ``x-delivery-count`` of a quorum queue."""
    if not queue.is_quorum:
        return entry.message.header.payload
    return entry.message.header.with_headers(x_delivery_count=entry.returns).payload


_HANDLERS: Final[dict[type, Callable[[Channel, Any], amqp_object.Method | None]]] = {
    spec.Channel.Flow: Channel._on_flow,
    spec.Access.Request: Channel._on_access_request,
    spec.Exchange.Declare: Channel._on_exchange_declare,
    spec.Exchange.Delete: Channel._on_exchange_delete,
    spec.Exchange.Bind: Channel._on_exchange_bind,
    spec.Exchange.Unbind: Channel._on_exchange_unbind,
    spec.Queue.Declare: Channel._on_queue_declare,
    spec.Queue.Bind: Channel._on_queue_bind,
    spec.Queue.Unbind: Channel._on_queue_unbind,
    spec.Queue.Purge: Channel._on_queue_purge,
    spec.Queue.Delete: Channel._on_queue_delete,
    spec.Basic.Qos: Channel._on_qos,
    spec.Basic.Consume: Channel._on_consume,
    spec.Basic.Cancel: Channel._on_cancel,
    spec.Basic.Get: Channel._on_get,
    spec.Basic.Ack: Channel._on_ack,
    spec.Basic.Nack: Channel._on_nack,
    spec.Basic.Reject: Channel._on_reject,
    spec.Basic.Recover: Channel._on_recover,
    spec.Basic.RecoverAsync: Channel._on_recover_async,
    spec.Confirm.Select: Channel._on_confirm_select,
    spec.Tx.Select: Channel._on_tx_select,
    spec.Tx.Commit: Channel._on_tx_commit,
    spec.Tx.Rollback: Channel._on_tx_rollback,
}
