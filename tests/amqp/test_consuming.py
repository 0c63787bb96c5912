"""Deliveries come again after a loss, late acknowledgements are dropped, and what went away is declared again."""

from __future__ import annotations

import random
import threading
import types
from typing import Any

import pika.exceptions
import pika.frame
import pika.spec
import pytest

from conformance.version_table import says
from postage import messaging
from postage.amqp import deliveries
from postage.amqp.deliveries import Delivery, Settled
from postage.amqp.link import Link
from support.brokers import connect
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, EchoProducer, Seen, eventually
from support.proxy import Proxy

QUEUE = 'echo-queue'


class Consuming:
    """A consumer whose callback does nothing but note what it gets."""

    def __init__(self, bench: Bench, eqk: Any = EQK, cls: type[messaging.GenericConsumer] = messaging.GenericConsumer):
        self.consumer = bench.consumer(eqk, cls)
        self.seen = Seen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        bench.closing(self)

    def _run(self) -> None:
        self.consumer.start_consuming(lambda *delivery: self.seen.put(delivery))

    def next(self) -> tuple[Any, Any]:
        """Wait for the next delivery; return its method and its parameters."""
        _, method, _, body = self.seen.next()
        return method, self.consumer.decode(body)['content']['parameters']

    def close(self) -> None:
        self.consumer.stop_consuming()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()


def is_consumed(bench: Bench) -> bool:
    """Whether the queue is there and has a consumer."""
    try:
        return bench.consumers(QUEUE) == 1
    except pika.exceptions.ChannelClosedByBroker:
        return False


class OneAtATime(messaging.GenericConsumer):
    prefetch_count = 1


# Losses


def test_what_was_delivered_before_a_loss_is_delivered_again(bench: Bench) -> None:
    consuming = Consuming(bench)
    producer = bench.producer()
    producer.message_echo('text').wait(TIMEOUT)
    first, parameters = consuming.next()
    assert (parameters, first.redelivered) == ('text', False)
    bench.close_all_connections()
    again, parameters = consuming.next()
    assert (parameters, again.redelivered) == ('text', True)
    consuming.consumer.ack(again)
    consuming.close()
    assert bench.count(QUEUE) == 0


def test_an_acknowledgement_of_an_old_delivery_is_dropped_and_harms_no_new_one(bench: Bench) -> None:
    """On the new channel the same delivery tag is another message."""
    consuming = Consuming(bench, cls=OneAtATime)
    producer = bench.producer()
    producer.message_echo('first').wait(TIMEOUT)
    producer.message_echo('second').wait(TIMEOUT)
    old, _ = consuming.next()
    bench.close_all_connections()
    new, _ = consuming.next()
    assert new.delivery_tag == old.delivery_tag
    consuming.consumer.ack(old)
    bench.log.expect('WARNING', 'dropped 1 acknowledgement')
    consuming.consumer.reject(new, requeue=True)
    consuming.next()
    consuming.close()
    assert bench.count(QUEUE) == 2


def test_an_acknowledgement_made_while_there_is_no_connection_is_dropped(bench: Bench, proxied: Proxy) -> None:
    consuming = Consuming(bench)
    bench.producer().message_echo('text').wait(TIMEOUT)
    old, _ = consuming.next()
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost', 'consuming')
    consuming.consumer.ack(old)
    proxied.accept()
    again, _ = consuming.next()
    bench.log.expect('dropped 1 acknowledgement')
    assert again.redelivered
    consuming.consumer.ack(again)
    consuming.close()
    assert bench.count(QUEUE) == 0


def test_what_waits_in_the_inbox_at_a_loss_is_not_handled_twice(bench: Bench) -> None:
    handling, go_on = threading.Event(), threading.Event()
    seen = Seen()

    def callback(_channel: Any, method: Any, _header: Any, body: bytes) -> None:
        seen.put(consumer.decode(body)['content']['parameters'])
        handling.set()
        assert go_on.wait(TIMEOUT)
        consumer.ack(method)

    consumer = bench.consumer()
    producer = bench.producer()
    for number in range(20):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    thread = threading.Thread(target=consumer.start_consuming, args=(callback,), daemon=True)
    thread.start()
    assert handling.wait(TIMEOUT)
    bench.close_all_connections()
    bench.log.expect('again (consuming)')
    go_on.set()
    first, *rest = seen.take(21)
    assert first == 0
    assert sorted(rest) == list(range(20))
    eventually(lambda: is_consumed(bench))
    consumer.stop_consuming()
    thread.join(TIMEOUT)
    assert seen.empty()
    assert bench.count(QUEUE) == 0


def test_several_losses_in_a_row_are_survived(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    for number in range(5):
        producer.message_echo(number)
        eventually(lambda number=number: echo.seen.next() == number)  # earlier ones may come again
        bench.close_all_connections()
    producer.message_echo('last')
    eventually(lambda: echo.seen.next() == 'last')


def test_two_consumers_of_a_process_have_channels_of_their_own(bench: Bench) -> None:
    """An error on the channel of one closes that alone."""
    first = Consuming(bench)
    second = Consuming(bench, [(EchoExchange, [('other-queue', 'other-rk')])])
    producer = bench.producer()
    producer.message_echo('kept', _key='other-rk').wait(TIMEOUT)
    kept, _ = second.next()
    producer.message_echo('text').wait(TIMEOUT)
    first.next()
    first.consumer.channel.basic_ack(99)
    again, _ = first.next()
    assert again.redelivered
    first.consumer.ack(again)
    second.consumer.ack(kept)
    second.close()
    assert second.seen.empty()
    assert bench.count('other-queue') == 0


# Channel errors


def test_a_channel_that_the_broker_closes_is_opened_again_and_goes_on(bench: Bench) -> None:
    consuming = Consuming(bench)
    producer = bench.producer()
    producer.message_echo('text').wait(TIMEOUT)
    method, _ = consuming.next()
    consuming.consumer.channel.basic_ack(method.delivery_tag)
    consuming.consumer.channel.basic_ack(method.delivery_tag)
    bench.log.expect('WARNING', QUEUE, 'PRECONDITION_FAILED')
    producer.message_echo('after').wait(TIMEOUT)
    after, parameters = consuming.next()
    assert parameters == 'after'
    consuming.consumer.ack(after)
    consuming.close()
    assert bench.count(QUEUE) == 0


def test_a_refused_operation_on_the_consumer_s_channel_raises_and_the_consumer_goes_on(bench: Bench) -> None:
    consuming = Consuming(bench)
    with pytest.raises(messaging.NotFound) as caught:
        consuming.consumer.channel.queue_declare('missing', passive=True)
    assert (caught.value.reply_code, 'missing' in caught.value.reply_text) == (404, True)
    assert isinstance(caught.value, pika.exceptions.AMQPChannelError)
    bench.producer().message_echo('text').wait(TIMEOUT)
    method, parameters = consuming.next()
    assert parameters == 'text'
    consuming.consumer.ack(method)


def test_the_consumer_s_channel_is_the_one_that_delivers(bench: Bench) -> None:
    consuming = Consuming(bench)
    bench.producer().message_echo('text').wait(TIMEOUT)
    method, _ = consuming.next()
    consuming.consumer.channel.basic_reject(method.delivery_tag, requeue=True)
    again, _ = consuming.next()
    assert again.redelivered
    assert again.delivery_tag == method.delivery_tag + 1
    consuming.consumer.ack(again)


def test_cancelling_a_consumer_that_does_not_exist_returns(bench: Bench) -> None:
    """RabbitMQ says nothing against it, and pika does not even ask."""
    consuming = Consuming(bench)
    cancelling = threading.Thread(target=consuming.consumer.channel.basic_cancel, args=('nonsense',), daemon=True)
    cancelling.start()
    cancelling.join(2.0)
    assert not cancelling.is_alive()
    assert consuming.consumer.channel.queue_declare('queue', durable=True).method.queue == 'queue'


def test_a_channel_has_pika_s_methods_and_names_them(bench: Bench) -> None:
    channel = bench.producer().channel
    assert channel.queue_declare('queue', durable=True).method.message_count == 0
    with pytest.raises(AttributeError, match=r"'nonsense'.*queue_declare"):
        _ = channel.nonsense


# What goes away under a consumer


def test_a_queue_deleted_under_its_consumer_is_declared_and_consumed_again(bench: Bench) -> None:
    consuming = Consuming(bench)
    producer = bench.producer()
    eventually(lambda: is_consumed(bench))
    bench.bare.queue_delete(QUEUE)
    bench.log.expect('WARNING', repr(QUEUE), 'declared and consumed again')
    eventually(lambda: is_consumed(bench))
    producer.message_echo('after').wait(TIMEOUT)
    method, parameters = consuming.next()
    assert parameters == 'after'
    consuming.consumer.ack(method)


def test_one_of_several_queues_deleted_under_a_consumer_leaves_the_others_alone(bench: Bench) -> None:
    consuming = Consuming(bench, [(EchoExchange, [(QUEUE, 'echo-rk'), ('other-queue', 'other-rk')])])
    producer = bench.producer()
    eventually(lambda: is_consumed(bench))
    bench.bare.queue_delete(QUEUE)
    producer.message_echo('other', _key='other-rk').wait(TIMEOUT)
    assert consuming.next()[1] == 'other'
    eventually(lambda: is_consumed(bench))
    producer.message_echo('first').wait(TIMEOUT)
    assert consuming.next()[1] == 'first'


def test_a_queue_deleted_with_its_exchange_is_bound_again(bench: Bench) -> None:
    consuming = Consuming(bench)
    producer = bench.producer()
    eventually(lambda: is_consumed(bench))
    bench.bare.exchange_delete(EchoExchange.name)
    bench.bare.queue_delete(QUEUE)
    eventually(lambda: is_consumed(bench))
    producer.message_echo('after').wait(TIMEOUT)
    assert consuming.next()[1] == 'after'


def test_queues_and_bindings_that_were_deleted_come_back_with_the_connection(bench: Bench) -> None:
    consuming = Consuming(bench)
    eventually(lambda: is_consumed(bench))
    bench.close_all_connections()
    with connect(bench.broker) as other:
        channel = other.channel()
        channel.queue_delete(QUEUE)
        channel.exchange_delete(EchoExchange.name)
    bench.close_all_connections()
    bench.producer().message_echo('after').wait(TIMEOUT)
    eventually(lambda: is_consumed(bench))
    bench.producer().message_echo('after').wait(TIMEOUT)
    assert consuming.next()[1] == 'after'


def test_a_processor_whose_queue_is_deleted_goes_on(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    producer.message_echo('before').wait(TIMEOUT)
    assert echo.seen.next() == 'before'
    bench.bare.queue_delete(QUEUE)
    eventually(lambda: is_consumed(bench))
    producer.message_echo('after').wait(TIMEOUT)
    assert echo.seen.next() == 'after'


# Exclusive queues


EXCLUSIVE = [(EchoExchange, [({'name': 'mine', 'flags': {'exclusive': True}}, 'echo-rk')])]


def test_an_exclusive_queue_is_refused_to_others(bench: Bench) -> None:
    bench.consumer(EXCLUSIVE)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        bench.bare.queue_declare('mine', exclusive=True)
    assert caught.value.reply_code == 405


def test_an_exclusive_queue_of_another_connection_is_an_error_that_names_it(bench: Bench) -> None:
    bench.bare.queue_declare('mine', exclusive=True, durable=True)
    with pytest.raises(messaging.ResourceLocked, match='mine') as caught:
        messaging.GenericConsumer(EXCLUSIVE)
    assert caught.value.reply_code == 405


def test_an_exclusive_queue_is_declared_again_after_a_loss(bench: Bench) -> None:
    consuming = Consuming(bench, EXCLUSIVE)
    producer = bench.producer()
    bench.close_all_connections()
    bench.log.expect('again (consuming)')
    producer.message_echo('text').wait(TIMEOUT)
    assert consuming.next()[1] == 'text'


def test_an_exclusive_queue_that_the_broker_still_takes_for_the_lost_connection_s_is_waited_for(
    bench: Bench, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half open: we know that our connection is gone, and the broker does not yet."""
    monkeypatch.setenv('POSTAGE_URL', proxied.url(bench.broker.url, heartbeat=1))
    consuming = Consuming(bench, EXCLUSIVE)
    producer = EchoProducer(None, bench.broker.url)
    producer.message_echo('before').wait(TIMEOUT)
    consuming.consumer.ack(consuming.next()[0])
    accepted = proxied.accepted
    proxied.swallow()
    proxied.cut(side='client')
    eventually(lambda: proxied.accepted > accepted)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        bench.bare.queue_declare('mine', passive=True)  # the broker holds on to the old connection
    bench.log.expect('again (consuming)')
    producer.message_echo('after').wait(TIMEOUT)
    assert consuming.next()[1] == 'after'
    producer.close()


def test_a_consumer_that_begins_while_the_connection_is_lost_finds_its_queue_declared_again(
    bench: Bench, proxied: Proxy
) -> None:
    """What waits for the connection comes after what was declared on it, not before."""
    consumer = bench.consumer()
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost')
    bench.bare.queue_delete(QUEUE)
    outcome = Seen()

    def consume() -> None:
        try:
            consumer.start_consuming(lambda _channel, method, *_: outcome.put(method))
        except BaseException as error:
            outcome.put(error)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    threading.Event().wait(0.05)  # until it waits for the connection
    proxied.accept()
    bench.log.expect('again (consuming)')
    bench.producer().message_echo('text').wait(TIMEOUT)
    method = outcome.next()
    assert isinstance(method, Delivery), method
    consumer.ack(method)
    consumer.stop_consuming()
    thread.join(TIMEOUT)


def test_stop_consuming_hands_back_what_was_prefetched(bench: Bench) -> None:
    consuming = Consuming(bench)
    producer = bench.producer()
    for number in range(30):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    method, _ = consuming.next()
    consuming.consumer.ack(method)
    consuming.close()
    eventually(lambda: bench.count(QUEUE) == 29)


def test_consumers_come_and_go_without_a_trace(bench: Bench) -> None:
    keep = bench.consumer().conn_broker
    for _ in range(20):
        consuming = Consuming(bench)
        consuming.close()
        consuming.consumer.close()
    assert keep is bench.consumer().conn_broker
    assert bench.consumers(QUEUE) == 0


# How what is not acknowledged goes back: RabbitMQ 4.3 and later count a reject against a delivery limit, and no nack


@pytest.fixture
def settlements(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The methods by which deliveries are rejected or returned, as they are sent."""
    seen = Seen()
    write = Link.write

    def noting(link: Link, data: bytes) -> None:
        rest = data
        while rest:
            length, frame = pika.frame.decode_frame(rest)
            method = getattr(frame, 'method', None)
            if isinstance(method, (pika.spec.Basic.Reject, pika.spec.Basic.Nack)):
                seen.put((method.NAME, method.requeue))
            rest = rest[length:] if length else b''
        write(link, data)

    monkeypatch.setattr(Link, 'write', noting)
    return seen


@pytest.mark.parametrize('requeue', [True, False])
def test_what_was_tried_and_failed_is_rejected(bench: Bench, settlements: Seen, requeue: bool) -> None:
    consuming = Consuming(bench, cls=OneAtATime)
    bench.producer().message_echo('text').wait(TIMEOUT)
    method, _ = consuming.next()
    consuming.consumer.reject(method, requeue=requeue)
    assert settlements.next() == ('Basic.Reject', requeue)
    if requeue:
        again, _ = consuming.next()
        consuming.consumer.ack(again)
    consuming.close()
    assert settlements.empty()
    assert bench.count(QUEUE) == 0


def test_what_was_not_tried_goes_back_by_a_nack_when_its_consumer_stops(bench: Bench, settlements: Seen) -> None:
    producer = bench.producer()
    handling, released = threading.Event(), threading.Event()

    def callback(_channel: Any, method: Any, *_: Any) -> None:
        handling.set()
        released.wait(TIMEOUT)
        consumer.ack(method)

    consumer = bench.consumer()
    for number in range(4):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    consuming = threading.Thread(target=consumer.start_consuming, args=(callback,))
    consuming.start()
    assert handling.wait(TIMEOUT)
    eventually(lambda: len(consumer.delivery_source.channel.inbox) == 3)
    consumer.stop_consuming()
    released.set()
    consuming.join(TIMEOUT)
    assert settlements.take(3) == [('Basic.Nack', True)] * 3
    eventually(lambda: bench.count(QUEUE) == 3)
    consumer.close()
    assert settlements.empty()


def test_what_was_not_tried_goes_back_by_a_nack_when_its_channel_is_closed(bench: Bench, settlements: Seen) -> None:
    producer, consumer = bench.producer(), bench.consumer()
    for number in range(3):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    consumer.delivery_source.begin(lambda: None)
    eventually(lambda: len(consumer.delivery_source.channel.inbox) == 3)
    consumer.delivery_source.end()
    assert settlements.take(3) == [('Basic.Nack', True)] * 3
    eventually(lambda: bench.count(QUEUE) == 3)


def test_what_was_not_tried_goes_back_by_a_nack_when_its_connection_is_closed(bench: Bench, settlements: Seen) -> None:
    jobs = messaging.quorum('jobs')
    producer, consumer = bench.producer(), bench.consumer([(EchoExchange, [(jobs, 'echo-rk')])])
    for number in range(3):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    consumer.delivery_source.begin(lambda: None)
    eventually(lambda: len(consumer.delivery_source.channel.inbox) == 3)
    assert consumer.delivery_source.next_delivery() is not None
    consumer.conn_broker.close()
    assert settlements.take(2) == [('Basic.Nack', True)] * 2
    eventually(lambda: bench.count('jobs') == 3)
    left = [bench.get('jobs') for _ in range(3)]
    tried = says(bench.broker, 'got, and returned by the end of the channel')[1]
    untried = says(bench.broker, 'got, and returned by nack')[1]
    expected = {0: tried, 1: untried, 2: untried}
    assert {got.parameters: got.properties.headers for got in left} == expected


# What waits in an inbox that no thread touches


def test_an_inbox_is_looked_after_again_when_its_channel_is_open_again(bench: Bench) -> None:
    channel = bench.consumer().delivery_source.channel
    stirred: list[str] = []
    channel.host = types.SimpleNamespace(tick=types.SimpleNamespace(stir=lambda: stirred.append('stirred')))
    channel.watch_with(lambda since: False, lambda: None)
    channel.inbox.append(object())
    channel.is_open = True
    channel.end_of_read()
    assert channel._look(False)
    channel.is_open = False
    assert not channel._look(False)
    channel.is_open = True
    channel.end_of_read()
    assert stirred == ['stirred', 'stirred']
    channel.inbox.clear()
    channel.is_open = False
    channel.host = channel.topology = None


# Many acknowledgements in one frame


def test_deliveries_acknowledged_in_order_need_one_frame() -> None:
    settled = Settled()
    assert settled.acknowledge([1, 2, 3]) == (3, [])
    assert settled.acknowledge([4]) == (4, [])


def test_what_overtakes_an_older_delivery_is_acknowledged_alone_and_never_again() -> None:
    settled = Settled()
    assert settled.acknowledge([2, 3]) == (0, [2, 3])
    assert settled.acknowledge([1, 5]) == (1, [5])
    assert settled.acknowledge([4]) == (4, [])
    assert settled.acknowledge([6]) == (6, [])


def test_what_was_rejected_or_handed_back_is_no_gap() -> None:
    settled = Settled()
    settled.add(1)
    settled.add(3)
    assert settled.acknowledge([4, 2]) == (4, [])


def test_nothing_is_kept_of_deliveries_that_are_all_rejected() -> None:
    settled = Settled()
    for tag in range(1, 1001):
        settled.add(tag)
    assert not settled._beyond
    assert settled.acknowledge([1001]) == (1001, [])


def test_a_delivery_acknowledged_twice_is_left_for_the_broker_to_complain_of() -> None:
    settled = Settled()
    assert settled.acknowledge([1, 2]) == (2, [])
    assert settled.acknowledge([1, 3]) == (3, [1])


def test_where_one_is_settled_elsewhere_the_others_are_acknowledged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, 'SETTLED_BEYOND', 10)
    settled = Settled()
    assert settled.acknowledge(list(range(2, 13))) == (0, list(range(2, 13)))
    assert settled.acknowledge([1, 13]) == (0, [1, 13])


def test_acknowledgements_in_any_order_settle_each_delivery_once_and_nothing_else() -> None:
    """Against a model of the broker: its unsettled deliveries, of which `multiple` takes all up to a tag."""
    seed = random.randrange(2**32)
    print(f'seed {seed}')
    chance = random.Random(seed)
    settled, delivered = Settled(), 0
    in_hand: list[int] = []
    at_the_broker: set[int] = set()
    for _ in range(3000):
        for _ in range(chance.randrange(4)):
            delivered += 1
            in_hand.append(delivered)
            at_the_broker.add(delivered)
        done = [in_hand.pop(chance.randrange(len(in_hand))) for _ in range(chance.randrange(4)) if in_hand]
        rejected = {tag for tag in done if chance.random() < 0.2}
        for tag in rejected:
            settled.add(tag)
            at_the_broker.remove(tag)
        acknowledged = [tag for tag in done if tag not in rejected]
        if acknowledged:
            up_to, others = settled.acknowledge(acknowledged)
            at_the_broker -= {tag for tag in at_the_broker if tag <= up_to}
            at_the_broker -= set(others)
        assert at_the_broker == set(in_hand)
