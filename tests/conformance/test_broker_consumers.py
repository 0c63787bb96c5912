"""Deliveries: to consumers and by get, acknowledged, refused and returned."""

from __future__ import annotations

import time
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from support.brokers import Broker, connect
from support.channels import Reader, await_message, bodies, publish, refusal_of, refusal_on, wait_until

QUIET = 0.3  # seconds in which what must not happen would have happened


@pytest.fixture
def queue(channel: BlockingChannel) -> str:
    return str(channel.queue_declare('q', exclusive=True).method.queue)


def pass_time(connection: Any) -> None:
    """Handle whatever arrives for a while."""
    deadline = time.monotonic() + QUIET
    while (left := deadline - time.monotonic()) > 0:
        connection.process_data_events(left)


# Get


def test_get_returns_a_message_and_how_many_are_left(channel: BlockingChannel, queue: str) -> None:
    publish(channel, queue, b'1', b'2', b'3')
    method, _, body = channel.basic_get(queue, auto_ack=True)
    assert (body, method.message_count, method.exchange, method.routing_key) == (b'1', 2, '', queue)
    assert not method.redelivered


def test_get_returns_nothing_from_an_empty_queue(channel: BlockingChannel, queue: str) -> None:
    assert channel.basic_get(queue) == (None, None, None)


def test_a_message_keeps_its_properties(channel: BlockingChannel, queue: str) -> None:
    properties = pika.BasicProperties(
        content_type='text/plain',
        content_encoding='utf-8',
        headers={'text': 'ü', 'number': 2**40, 'none': None, 'list': [1, True, {'deep': b'\xff'}]},
        delivery_mode=2,
        priority=3,
        correlation_id='correlation',
        reply_to='somewhere',
        expiration='60000',
        message_id='message',
        timestamp=1_700_000_000,
        type='kind',
        user_id='guest',
        app_id='application',
        cluster_id='cluster',
    )
    channel.basic_publish('', queue, b'x', properties)
    assert channel.basic_get(queue)[1] == properties


@pytest.mark.parametrize('size', [0, 1, 4088, 131_064, 131_065, 1_000_000])
def test_a_body_of_any_size_arrives_as_it_was_sent(channel: BlockingChannel, queue: str, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    channel.basic_publish('', queue, body)
    assert channel.basic_get(queue)[2] == body


# Consumers


def test_a_consumer_gets_what_waits_and_what_comes(channel: BlockingChannel, queue: str) -> None:
    publish(channel, queue, b'1')
    reader = Reader(channel, queue)
    publish(channel, queue, b'2')
    assert reader.wait_for(2) == [b'1', b'2']
    assert [method.delivery_tag for method in reader.deliveries] == [1, 2]


def test_generated_consumer_tags_begin_as_rabbitmqs(channel: BlockingChannel, queue: str) -> None:
    # pika makes tags of its own; the broker is asked by an empty one.
    answer: list[Any] = []
    channel._impl.add_callback(answer.append, [pika.spec.Basic.ConsumeOk])
    channel._impl._send_method(pika.spec.Basic.Consume(queue=queue, consumer_tag=''))
    wait_until(channel.connection, lambda: bool(answer))
    assert answer[0].method.consumer_tag.startswith('amq.ctag-')


def test_consumers_take_turns(channel: BlockingChannel, queue: str) -> None:
    readers = [Reader(channel, queue) for _ in range(3)]
    publish(channel, queue, *(b'%d' % number for number in range(6)))
    for reader in readers:
        reader.wait_for(2)
    assert sorted(reader.bodies for reader in readers) == [[b'0', b'3'], [b'1', b'4'], [b'2', b'5']]


def test_a_consumer_of_higher_priority_comes_first_as_long_as_it_has_room(channel: BlockingChannel, queue: str) -> None:
    channel.basic_qos(prefetch_count=2)
    low = Reader(channel, queue)
    high = Reader(channel, queue, arguments={'x-priority': 5})
    publish(channel, queue, b'1', b'2', b'3')
    assert high.wait_for(2) == [b'1', b'2']
    assert low.wait_for(1) == [b'3']


def test_a_priority_that_is_no_number_is_refused(broker: Broker, channel: BlockingChannel, queue: str) -> None:
    refusal = refusal_of(channel.basic_consume, queue, print, arguments={'x-priority': 'a'})
    text = f"invalid arg 'x-priority' for queue 'q' in vhost '{broker.vhost}': \"expected integer, got longstr\""
    assert refusal == (406, f'PRECONDITION_FAILED - {text}')


@pytest.mark.parametrize(('first', 'second'), [(True, False), (False, True)])
def test_an_exclusive_consumer_is_the_only_one(
    broker: Broker, connection: pika.BlockingConnection, channel: BlockingChannel, queue: str, first: bool, second: bool
) -> None:
    Reader(channel, queue, exclusive=first)
    refusal = refusal_of(connection.channel().basic_consume, queue, print, exclusive=second)
    assert refusal == (403, f"ACCESS_REFUSED - queue 'q' in vhost '{broker.vhost}' in exclusive use")


def test_a_consumer_tag_in_use_closes_the_connection(channel: BlockingChannel, queue: str) -> None:
    for _ in range(2):
        channel._impl._send_method(pika.spec.Basic.Consume(queue=queue, consumer_tag='t'))
    refusal = refusal_of(channel.queue_declare, 'missing', passive=True)
    assert refusal == (530, "NOT_ALLOWED - attempt to reuse consumer tag 't'")


def test_a_single_active_consumer_is_followed_by_the_next(channel: BlockingChannel) -> None:
    channel.queue_declare('single', exclusive=True, arguments={'x-single-active-consumer': True})
    first, second = (Reader(channel, 'single', auto_ack=True) for _ in range(2))
    publish(channel, 'single', b'1', b'2')
    assert first.wait_for(2) == [b'1', b'2']
    channel.basic_cancel(first.tag)
    publish(channel, 'single', b'3')
    assert second.wait_for(1) == [b'3']


def test_a_single_active_consumer_cannot_be_exclusive_too(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('single', exclusive=True, arguments={'x-single-active-consumer': True})
    refusal = refusal_of(channel.basic_consume, 'single', print, exclusive=True)
    assert refusal == (403, f"ACCESS_REFUSED - queue 'single' in vhost '{broker.vhost}' in exclusive use")


def test_a_cancelled_consumer_gets_no_more_and_keeps_what_it_has(channel: BlockingChannel, queue: str) -> None:
    reader = Reader(channel, queue)
    publish(channel, queue, b'1')
    reader.wait_for(1)
    channel.basic_cancel(reader.tag)
    publish(channel, queue, b'2')
    assert bodies(channel, queue) == [b'2']
    channel.basic_nack(reader.deliveries[0].delivery_tag)
    assert bodies(channel, queue) == [b'1']


def test_cancelling_an_unknown_consumer_is_no_error(channel: BlockingChannel) -> None:
    answer: list[Any] = []
    channel._impl.add_callback(answer.append, [pika.spec.Basic.CancelOk])
    channel._impl._send_method(pika.spec.Basic.Cancel(consumer_tag='nobody'))
    wait_until(channel.connection, lambda: bool(answer))
    assert answer[0].method.consumer_tag == 'nobody'


def test_a_consumer_hears_that_its_queue_has_gone(
    connection: pika.BlockingConnection, channel: BlockingChannel, queue: str
) -> None:
    cancelled: list[Any] = []
    channel.add_on_cancel_callback(cancelled.append)
    reader = Reader(channel, queue)
    connection.channel().queue_delete(queue)
    wait_until(connection, lambda: bool(cancelled))
    assert cancelled[0].method.consumer_tag == reader.tag


# Prefetch


def test_each_consumer_has_its_own_prefetch_limit(channel: BlockingChannel, queue: str) -> None:
    channel.basic_qos(prefetch_count=2)
    readers = [Reader(channel, queue) for _ in range(2)]
    publish(channel, queue, *(b'%d' % number for number in range(6)))
    for reader in readers:
        reader.wait_for(2)
    pass_time(channel.connection)
    assert [len(reader.bodies) for reader in readers] == [2, 2]
    channel.basic_ack(readers[0].deliveries[0].delivery_tag)
    readers[0].wait_for(3)


def test_prefetch_limits_do_not_hold_for_consumers_that_need_not_acknowledge(
    channel: BlockingChannel, queue: str
) -> None:
    channel.basic_qos(prefetch_count=1)
    reader = Reader(channel, queue, auto_ack=True)
    publish(channel, queue, b'1', b'2', b'3')
    reader.wait_for(3)


def test_a_prefetch_size_is_not_implemented(channel: BlockingChannel) -> None:
    assert refusal_of(channel.basic_qos, prefetch_size=5) == (540, 'NOT_IMPLEMENTED - prefetch_size!=0 (5)')


# Acknowledgements


@pytest.mark.parametrize('multiple', [False, True])
@pytest.mark.parametrize('action', ['basic_ack', 'basic_nack'])
def test_an_unknown_delivery_tag_closes_the_channel(
    channel: BlockingChannel, queue: str, action: str, multiple: bool
) -> None:
    publish(channel, queue, b'1', b'2')
    for _ in range(2):
        channel.basic_get(queue)
    refusal = refusal_on(channel, getattr(channel, action), 7, multiple=multiple)
    assert refusal == (406, 'PRECONDITION_FAILED - unknown delivery tag 7')


def test_a_second_acknowledgement_closes_the_channel(channel: BlockingChannel, queue: str) -> None:
    publish(channel, queue, b'1')
    tag = channel.basic_get(queue)[0].delivery_tag
    channel.basic_ack(tag)
    refusal = refusal_on(channel, channel.basic_reject, tag)
    assert refusal == (406, f'PRECONDITION_FAILED - unknown delivery tag {tag}')


def test_tag_zero_stands_for_all_and_for_none_where_it_is_not_multiple(channel: BlockingChannel, queue: str) -> None:
    publish(channel, queue, b'1', b'2')
    for _ in range(2):
        channel.basic_get(queue)
    channel.basic_nack(0, multiple=True)
    assert bodies(channel, queue) == [b'1', b'2']
    channel.basic_ack(0, multiple=True)
    assert refusal_on(channel, channel.basic_ack, 0) == (406, 'PRECONDITION_FAILED - unknown delivery tag 0')


def test_a_multiple_acknowledgement_settles_all_up_to_its_tag(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('shared')
    publish(channel, 'shared', b'1', b'2', b'3')
    with connect(broker) as other:
        reader = other.channel()
        tags = [reader.basic_get('shared')[0].delivery_tag for _ in range(3)]
        reader.basic_ack(tags[1], multiple=True)
    assert bodies(channel, 'shared') == [b'3']


def test_a_returned_message_takes_its_old_place_and_is_marked(channel: BlockingChannel, queue: str) -> None:
    publish(channel, queue, *(b'%d' % number for number in range(6)))
    tags = [channel.basic_get(queue)[0].delivery_tag for _ in range(4)]
    channel.basic_nack(tags[2])
    channel.basic_reject(tags[0])
    again = [channel.basic_get(queue) for _ in range(4)]
    assert [(body, method.redelivered) for method, _, body in again] == [
        (b'0', True),
        (b'2', True),
        (b'4', False),
        (b'5', False),
    ]
    channel.basic_nack(0, multiple=True)
    assert bodies(channel, queue) == [b'0', b'1', b'2', b'3', b'4', b'5']


def test_a_message_refused_without_requeue_is_gone(channel: BlockingChannel, queue: str) -> None:
    publish(channel, queue, b'1', b'2')
    for reject in (channel.basic_reject, channel.basic_nack):
        reject(channel.basic_get(queue)[0].delivery_tag, requeue=False)
    assert bodies(channel, queue) == []


@pytest.mark.parametrize('whole', [False, True], ids=['channel', 'connection'])
def test_what_was_not_acknowledged_returns_when_its_end_closes(
    broker: Broker, channel: BlockingChannel, whole: bool
) -> None:
    channel.queue_declare('shared')
    publish(channel, 'shared', b'1', b'2', b'3')
    with connect(broker) as other:
        reader = Reader(other.channel(), 'shared')
        reader.wait_for(3)
        reader.channel.basic_ack(reader.deliveries[1].delivery_tag)
        (other if whole else reader.channel).close()
        method, _, body = await_message(channel, 'shared')
        assert (body, method.redelivered) == (b'1', True)
        assert bodies(channel, 'shared') == [b'3']


def test_recover_delivers_again(channel: BlockingChannel, queue: str) -> None:
    reader = Reader(channel, queue)
    publish(channel, queue, b'1', b'2')
    reader.wait_for(2)
    channel.basic_recover(requeue=True)
    assert reader.wait_for(4) == [b'1', b'2', b'1', b'2']
    assert [method.redelivered for method in reader.deliveries] == [False, False, True, True]


def test_recover_without_requeue_is_not_implemented(channel: BlockingChannel) -> None:
    assert refusal_of(channel.basic_recover, False) == (540, 'NOT_IMPLEMENTED - requeue=false')


def test_an_error_gives_back_what_the_channel_held(
    connection: pika.BlockingConnection, channel: BlockingChannel, queue: str
) -> None:
    publish(channel, queue, b'1')
    other = connection.channel()
    other.basic_get(queue)
    refusal_on(other, other.basic_ack, 99)
    assert await_message(channel, queue)[2] == b'1'
