"""A tracked session: it ends when all that it set off has been handled, and tells what happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from postage import messaging
from postage.testing import Broker, track
from support.channels import publish
from support.loops import running

DEAD_LETTERS = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}


class Orders(messaging.Exchange):
    name = 'orders'


class Producer(messaging.GenericProducer):
    eks = [(Orders, 'order')]


class Shipper(messaging.MessageProcessor):
    """Each order becomes a parcel, slowly; the odd ones fail."""

    @messaging.MessageHandler('command', 'order')
    def order(self, content: dict[str, Any]) -> None:
        time.sleep(0.05)
        number = content['parameters']
        if number % 2:
            raise messaging.RejectMessage
        self.producer.message('parcel', number, _eks=[(Orders, 'parcel')])


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    with Broker() as broker:
        monkeypatch.setenv('POSTAGE_URL', broker.url)
        yield broker


@pytest.fixture
def channel(broker: Broker) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    connection.close()


def test_it_waits_for_handlers_and_for_what_they_publish(broker: Broker) -> None:
    fingerprint = messaging.Fingerprint('shipper', 'test')
    queues = [('orders', 'order'), ('parcels', 'parcel')]
    flags = {'durable': True, 'arguments': DEAD_LETTERS}
    eqk = [(Orders, [({'name': name, 'flags': flags}, key) for name, key in queues])]
    shipper = Shipper(fingerprint, eqk, None, None)
    with Producer(fingerprint) as producer:
        shipper.producer = producer
        with running(shipper):
            broker.wait_for_consumers('parcels')
            with track(broker) as session:
                for number in range(6):
                    producer.message_order(number)
            assert broker.queues() == {'orders': (0, 0, 1), 'parcels': (0, 0, 1)}
        shipper.close()
    orders = [message for message in session.published if message.routing_key == 'order']
    assert [message.body['content']['parameters'] for message in orders] == list(range(6))
    assert [message.queues for message in orders] == [['orders']] * 6
    # A consumer that changes its prefetch count hands messages back, so that some may be delivered twice.
    parcels = {message.body['content']['args'][1] for message in session.delivered if message.queue == 'parcels'}
    assert parcels == {0, 2, 4}
    assert [(message.queue, message.reason) for message in session.dead] == [('orders', 'rejected')] * 3
    assert [message.body['content']['parameters'] for message in session.dead] == [1, 3, 5]


def test_what_nobody_consumes_is_at_its_end(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q')
    with track(broker) as session:
        publish(channel, 'q', b'1')
        channel.basic_publish('', 'nowhere', b'2')
    assert [(message.body, message.queues) for message in session.published] == [(1, ['q']), (2, [])]
    assert (session.delivered, session.dead) == ([], [])


def test_a_message_in_hand_is_waited_for(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q')
    publish(channel, 'q', b'')
    channel.basic_get('q')
    with track(broker) as session:
        with pytest.raises(TimeoutError, match="queue 'q' has 1 unacknowledged messages"):
            session.wait(0.2)
        channel.basic_ack(1)


def test_a_message_that_will_expire_into_another_queue_is_waited_for(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('dead')
    channel.queue_declare('delay', arguments={**DEAD_LETTERS, 'x-message-ttl': 60_000})
    with track(broker) as session:
        publish(channel, 'delay', b'x')
        with pytest.raises(TimeoutError, match="'delay' has messages that will expire"):
            session.wait(timeout=0.2)
        broker.advance(60)
    assert [(message.queue, message.reason, message.body) for message in session.dead] == [('delay', 'expired', 'x')]


def test_deaths_without_a_dead_letter_exchange_are_told_too(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q', arguments={'x-max-length': 1})
    with track(broker) as session:
        publish(channel, 'q', b'1', b'2')
    assert [(message.body, message.reason) for message in session.dead] == [(1, 'maxlen')]


def test_redeliveries_and_gets_are_told(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q')
    with track(broker) as session:
        publish(channel, 'q', b'1')
        channel.basic_nack(channel.basic_get('q')[0].delivery_tag)
        channel.basic_get('q', auto_ack=True)
    assert [message.redelivered for message in session.delivered] == [False, True]


def test_messages_before_and_after_are_not_its_affair(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q')
    publish(channel, 'q', b'before')
    with track(broker) as session:
        publish(channel, 'q', b'meanwhile')
    publish(channel, 'q', b'after')
    assert [message.body for message in session.published] == ['meanwhile']


def test_sessions_may_overlap(broker: Broker, channel: BlockingChannel) -> None:
    with track(broker) as outer:
        channel.queue_declare('q')
        with track(broker) as inner:
            publish(channel, 'q', b'1')
        publish(channel, 'q', b'2')
    assert [message.body for message in inner.published] == [1]
    assert [message.body for message in outer.published] == [1, 2]


def test_an_error_in_the_block_is_not_kept_waiting(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q')
    publish(channel, 'q', b'')
    channel.basic_get('q')
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), track(broker, timeout=5):
        _ = 1 / 0
    assert time.monotonic() - started < 5


def test_a_client_in_another_thread_is_waited_for_while_it_has_something_in_hand(broker: Broker) -> None:
    def forward() -> None:
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.queue_declare('in')
            for method, _, body in channel.consume('in', inactivity_timeout=10):
                time.sleep(0.2)
                channel.basic_publish('', 'out', body)
                channel.basic_ack(method.delivery_tag)
                break

    thread = threading.Thread(target=forward, name='forwarder')
    thread.start()
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare('out')
        broker.wait_for_consumers('in')
        with track(broker):
            publish(channel, 'in', b'x')
    assert [message.body for message in broker.messages('out')] == ['x']
    thread.join(10)
