"""The messages that go out on one channel: to consumers and by ``basic.get``, until they are settled."""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf

from pika import amqp_object, spec

from postage.broker import arguments as args
from postage.broker import wire
from postage.broker.client import Client, Outlet
from postage.broker.clock import Timer
from postage.broker.declaring import Declaring
from postage.broker.deliveries import ChannelConsumer, Unacknowledged, Unsettled, requeue
from postage.broker.messages import Message, QueuedMessage
from postage.broker.publisher import Publisher
from postage.broker.queues import Queue
from postage.broker.replies import (
    ACCESS_REFUSED,
    NOT_ALLOWED,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    RESOURCE_LOCKED,
    Refusal,
)
from postage.broker.transactions import Transactions
from postage.broker.virtual_host import REPLY_TO, generated_name

logger = logging.getLogger(__name__)

Deliveries = Sequence[Unacknowledged]


class Delivering:
    """Consumers, gets and settlements of one channel.

    :param refuse: closes the channel, for what no method has to answer
    :ivar prefetch_count: the limit that all its consumers share, 0 for none
    :ivar in_flight: how many deliveries to consumers that limit counts
    """

    def __init__(
        self,
        client: Client,
        outlet: Outlet,
        declaring: Declaring,
        publisher: Publisher,
        transactions: Transactions,
        refuse: Callable[[Refusal], None],
        number: int,
    ) -> None:
        self.prefetch_count = 0
        self.in_flight = 0
        self._client = client
        self._outlet = outlet
        self._declaring = declaring
        self._publisher = publisher
        self._transactions = transactions
        self._refuse = refuse
        self._number = number
        self._host = client.virtual_host
        self._shared = client.shared
        self._rules = client.shared.rules
        self._is_open = True
        self._consumers: dict[str, ChannelConsumer] = {}
        self._unsettled = Unsettled()
        self._last_tag = 0
        self._consumer_prefetch = 0
        self._timeout: Timer | None = None
        self._reply_consumer: str | None = None

    def end(self) -> None:
        """Give back what the channel holds: its consumers, then its messages, at their old positions."""
        self._is_open = False
        if self._timeout is not None:
            self._timeout.cancel()
        self._end_replies()
        for consumer in self._consumers.values():
            consumer.queue.remove_consumer(consumer)
        self._consumers.clear()
        left = list(self._unsettled.take_all().values())
        self._count_down(left)
        requeue(left, by_client=False)

    # --- messages out ---

    @property
    def takes_deliveries(self) -> bool:
        """False at the end, and while the client has too much to read already."""
        return self._is_open and self._client.takes_deliveries

    @property
    def consumed_queues(self) -> set[str]:
        """The names of the queues that it consumes from."""
        return {consumer.queue.name for consumer in self._consumers.values()}

    def deliver(self, consumer: ChannelConsumer, entry: QueuedMessage) -> None:
        """Send a message to a consumer, and remember it unless no acknowledgement will come."""
        self._last_tag = tag = self._last_tag + 1
        queue, message = consumer.queue, entry.message
        payload = wire.deliver_payload(consumer.prefix, tag, entry.redelivered, message.address)
        header = _counted_header(queue, entry) if entry.redelivered else message.header.payload
        self._outlet.send_content(payload, message, header)
        if self._host.observers:
            self._tell(queue.name, message, entry.redelivered)
        if consumer.no_ack:
            queue.settle(1)
        else:
            self._unsettled.add(tag, Unacknowledged(entry, queue, consumer, self._due(queue), False))
            consumer.unacknowledged += 1
            self.in_flight += 1

    def _tell(self, queue: str, message: Message, redelivered: bool) -> None:
        for observer in self._host.observers:
            observer.delivered(self._host.name, queue, message, redelivered)

    def resume(self) -> None:
        """Ask for messages, as there is room for them again."""
        for consumer in list(self._consumers.values()):
            consumer.queue.dispatch()

    def on_get(self, method: spec.Basic.Get) -> amqp_object.Method | None:
        """Hand out one message."""
        queue = self._declaring.readable_queue(method.queue)
        if queue.is_quorum and queue.single_active:
            wrong = f'basic.get operations are not supported by {self._rules.quorum_in_get} queues with single active'
            where = f"queue '{queue.name}' in vhost '{self._host.name}'"
            raise Refusal(RESOURCE_LOCKED, f'cannot obtain access to locked {where}. {wrong} consumer')
        entry = queue.get()
        if entry is None:
            return spec.Basic.GetEmpty()
        self._last_tag = tag = self._last_tag + 1
        message = entry.message
        payload = wire.get_ok_payload(tag, entry.redelivered, message.address, len(queue.ready))
        self._outlet.send_content(payload, message, _counted_header(queue, entry, by_get=True))
        if method.no_ack:
            queue.settle(1)
        else:
            queue.unsettled_gets += 1
            self._unsettled.add(tag, Unacknowledged(entry, queue, None, self._due(queue), False))
        if self._host.observers:
            self._tell(queue.name, message, entry.redelivered)
        return None

    # --- consumers ---

    def on_qos(self, method: spec.Basic.Qos) -> amqp_object.Method:
        """Limit the deliveries that are not settled."""
        if method.prefetch_size:
            raise Refusal(NOT_IMPLEMENTED, f'prefetch_size!=0 ({method.prefetch_size})')
        if method.global_qos and self._rules.shares_global_prefetch:
            self.prefetch_count = method.prefetch_count
            self.resume()
        else:
            self._consumer_prefetch = method.prefetch_count
        return spec.Basic.QosOk()

    def on_consume(self, method: spec.Basic.Consume) -> amqp_object.Method | None:
        """Add a consumer."""
        if method.queue == REPLY_TO:
            return self._consume_replies(method)
        tag = self._new_consumer_tag(method.consumer_tag)
        queue = self._declaring.readable_queue(method.queue)
        arguments = method.arguments or {}
        args.check_consumer_arguments(queue.name, self._host.name, arguments)
        self._check_exclusive_use(queue, method.exclusive)
        if self._host.consumers.count >= self._host.limits.consumers:
            raise Refusal(NOT_ALLOWED, f'reached maximum ({self._host.limits.consumers}) of consumers')
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
            self._outlet.send(spec.Basic.ConsumeOk(tag))
        logger.debug('%s: consumer %r of queue %r', self._host.name, tag, queue.name)
        queue.add_consumer(consumer)
        queue.dispatch()
        return None

    def _check_exclusive_use(self, queue: Queue, exclusive: bool) -> None:
        if queue.is_quorum:
            return  # which are not particular about it
        in_use = any(consumer.exclusive for consumer in queue.consumers)
        if in_use or (exclusive and (queue.consumers or queue.single_active)):
            where = f"queue '{queue.name}' in vhost '{self._host.name}'"
            raise Refusal(ACCESS_REFUSED, f'{where} in exclusive use')

    def _new_consumer_tag(self, wanted: str) -> str:
        if wanted in self._consumers or (wanted and wanted == self._reply_consumer):
            raise Refusal(NOT_ALLOWED, f"attempt to reuse consumer tag '{wanted}'")
        return wanted or generated_name('amq.ctag-')

    def on_cancel(self, method: spec.Basic.Cancel) -> amqp_object.Method:
        """Remove a consumer."""
        consumer = self._consumers.pop(method.consumer_tag, None)
        if consumer is not None:
            consumer.queue.remove_consumer(consumer)
        elif method.consumer_tag == self._reply_consumer:
            self._end_replies()
        return spec.Basic.CancelOk(method.consumer_tag)

    def consumer_cancelled(self, consumer: ChannelConsumer) -> None:
        """Drop a consumer whose queue has gone (https://www.rabbitmq.com/docs/consumer-cancel)."""
        if self._consumers.pop(consumer.tag, None) is None:
            return
        consumer.queue.consumers.remove(consumer)
        self._tell_of_cancel(consumer)

    def _tell_of_cancel(self, consumer: ChannelConsumer) -> None:
        if self._client.wants_cancel_notifications:
            self._outlet.send(spec.Basic.Cancel(consumer.tag, nowait=True))

    # --- direct reply-to (https://www.rabbitmq.com/docs/direct-reply-to) ---

    def _consume_replies(self, method: spec.Basic.Consume) -> amqp_object.Method:
        if self._reply_consumer is not None:
            raise Refusal(PRECONDITION_FAILED, 'reply consumer already set')
        if not method.no_ack:
            raise Refusal(PRECONDITION_FAILED, 'reply consumer cannot acknowledge')
        tag = self._new_consumer_tag(method.consumer_tag)
        prefix = wire.deliver_prefix(tag)

        def deliver(message: Message) -> None:
            self._last_tag += 1
            payload = wire.deliver_payload(prefix, self._last_tag, False, message.address)
            self._outlet.send_content(payload, message, message.header.payload)
            self._tell(REPLY_TO, message, False)

        self._reply_consumer = tag
        address = self._publisher.reply_address = generated_name(f'{REPLY_TO}.g1h2')
        self._host.reply_addresses[address] = deliver
        return spec.Basic.ConsumeOk(tag)

    def _end_replies(self) -> None:
        if self._publisher.reply_address is not None:
            self._host.reply_addresses.pop(self._publisher.reply_address, None)
        self._reply_consumer = self._publisher.reply_address = None

    # --- settlements ---

    def acknowledge(self, tag: int, multiple: bool) -> None:
        """Do what a ``Basic.Ack`` asks for.

        :raises Refusal: 406, where there is no such delivery
        """
        self._settle(tag, multiple, self._acknowledge)

    def on_ack(self, method: spec.Basic.Ack) -> None:
        """Forget messages that are done."""
        self._settle(method.delivery_tag, method.multiple, self._acknowledge)

    def on_nack(self, method: spec.Basic.Nack) -> None:
        """Take messages back, or give them up."""
        fate = self._hand_back if method.requeue else self._give_up
        self._settle(method.delivery_tag, method.multiple, fate)

    def on_reject(self, method: spec.Basic.Reject) -> None:
        """Take a message back, or give it up."""
        self._settle(method.delivery_tag, False, self._requeue if method.requeue else self._reject)

    def on_recover(self, method: spec.Basic.Recover) -> amqp_object.Method:
        """Take everything back."""
        self.on_recover_async(method)
        return spec.Basic.RecoverOk()

    def on_recover_async(self, method: spec.Basic.Recover | spec.Basic.RecoverAsync) -> None:
        """Take everything back, without an answer."""
        if not method.requeue:
            raise Refusal(NOT_IMPLEMENTED, 'requeue=false')
        self._hand_back(list(self._unsettled.take_all().values()))

    def _settle(self, tag: int, multiple: bool, fate: Callable[[Deliveries], None]) -> None:
        """Decide about one delivery, or about all up to it.

        :raises Refusal: 406, where there is no such delivery
        """
        settled = self._unsettled.take(tag, multiple)
        if self._transactions.is_selected:
            self._transactions.settle_later(
                lambda: fate(list(settled.values())), lambda: self._unsettled.put_back(settled)
            )
        else:
            fate(list(settled.values()))

    def _acknowledge(self, settled: Deliveries) -> None:
        for delivery in settled:
            if not delivery.is_overdue:
                delivery.queue.settle(1)
        self._free(settled)

    def _requeue(self, settled: Deliveries, counts: bool = True) -> None:
        self._count_down(settled)
        requeue(settled, counts)
        self._dispatch(settled)

    def _hand_back(self, settled: Deliveries) -> None:
        self._requeue(settled, self._rules.nack_counts)

    def _reject(self, settled: Deliveries, counts: bool = True) -> None:
        for delivery in settled:
            if not delivery.is_overdue and not delivery.queue.deleted:
                delivery.queue.reject(delivery.entry, counts)
        self._free(settled)

    def _give_up(self, settled: Deliveries) -> None:
        self._reject(settled, self._rules.nack_counts)

    def _count_down(self, settled: Deliveries) -> None:
        for delivery in settled:
            if (consumer := delivery.consumer) is None:
                delivery.queue.unsettled_gets -= 1
            else:
                consumer.unacknowledged -= 1
                consumer.overdue -= delivery.is_overdue
                self.in_flight -= 1

    def _free(self, settled: Deliveries) -> None:
        self._count_down(settled)
        self._dispatch(settled)

    def _dispatch(self, settled: Deliveries) -> None:
        """Ask for more messages where settled ones have made room."""
        if self.prefetch_count:
            self.resume()
            return
        for queue in {delivery.queue for delivery in settled}:
            if queue.ready:
                queue.dispatch()

    # --- the time within which deliveries have to be settled ---

    def _due(self, queue: Queue) -> float:
        """Return the time by which a delivery of now has to be settled, and come back then."""
        seconds = queue.consumer_timeout(self._shared.consumer_timeout)
        if seconds is None:
            return inf
        due = self._shared.clock.now() + seconds
        if self._timeout is None or due < self._timeout.due:
            self._watch_time(due)
        return due

    def _watch_time(self, due: float) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        clock = self._shared.clock
        self._timeout = None if due == inf else clock.call_later(due - clock.now(), self._look_at_time)

    def _look_at_time(self) -> None:
        """Find the deliveries that were not settled in time: these are taken back, or cost the channel."""
        self._timeout = None
        while (due := self._unsettled.first_due()) <= self._shared.clock.now():
            late = self._unsettled.due_at(due)
            takes_back = self._rules.timeout_cancels and self._client.wants_cancel_notifications
            if late.consumer is None or not takes_back:
                self._refuse(self._too_late(late))
                return
            self._take_back(late, late.consumer)
        self._watch_time(due)

    def _take_back(self, late: Unacknowledged, consumer: ChannelConsumer) -> None:
        """Give a delivery back to its queue; the consumer rests until the client has settled it all the same."""
        late.due, late.is_overdue = inf, True
        consumer.overdue += 1
        self._tell_of_cancel(consumer)
        if not late.queue.deleted:
            late.queue.requeue([late.entry], counts=False)

    def _too_late(self, late: Unacknowledged) -> Refusal:
        seconds = late.queue.consumer_timeout(self._shared.consumer_timeout) or 0
        # RabbitMQ 4.3 does not say which limit it was.
        milliseconds = -1 if self._rules.timeout_cancels else round(1000 * seconds)
        text = f'delivery acknowledgement on channel {self._number} timed out. Timeout value used: {milliseconds} ms.'
        more = 'This timeout value can be configured, see consumers doc guide to learn more'
        return Refusal(PRECONDITION_FAILED, f'{text} {more}')


def _counted_header(queue: Queue, entry: QueuedMessage, by_get: bool = False) -> bytes:
    """Return the header, with the counts of a quorum queue."""
    counts = queue.delivery_headers(entry, by_get)
    header = entry.message.header
    return header.with_headers(**counts).payload if counts else header.payload
