"""Queues: declared, shared or exclusive, purged and deleted."""

from __future__ import annotations

from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from support.brokers import Broker, connect
from support.channels import check_refusal, inequivalent, message_count, refusal_of

LOCKED = (
    "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '{}'. It could be originally "
    'declared on another connection or the exclusive property value does not match that of the original declaration.'
)


# Declaration


def test_an_empty_name_asks_the_broker_for_one(channel: BlockingChannel) -> None:
    names = {channel.queue_declare('', exclusive=True).method.queue for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith('amq.gen-') for name in names)


def test_a_declaration_tells_how_many_messages_and_consumers_there_are(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    channel.basic_consume('q', lambda *_: None)
    channel.basic_qos(prefetch_count=1)
    channel.queue_declare('other', exclusive=True)
    channel.basic_publish('', 'other', b'')
    consumed, other = (channel.queue_declare(name, exclusive=True).method for name in ('q', 'other'))
    assert (consumed.message_count, consumed.consumer_count) == (0, 1)
    assert (other.message_count, other.consumer_count) == (1, 0)


@pytest.mark.parametrize(
    ('first', 'second', 'text'),
    [
        ({}, {'durable': True}, "'durable' for {}: received 'true' but current is 'false'"),
        ({'durable': True}, {}, "'durable' for {}: received 'false' but current is 'true'"),
        ({}, {'auto_delete': True}, "'auto_delete' for {}: received 'true' but current is 'false'"),
        (
            {},
            {'arguments': {'x-message-ttl': 1}},
            "'x-message-ttl' for {}: received the value '1' of type 'signedint' but current is none",
        ),
        (
            {'arguments': {'x-message-ttl': 1}},
            {},
            "'x-message-ttl' for {}: received none but current is the value '1' of type 'signedint'",
        ),
        (
            {'arguments': {'x-max-length': 5}},
            {'arguments': {'x-max-length': 6}},
            "'x-max-length' for {}: received '6' but current is '5'",
        ),
        (
            {'arguments': {'x-single-active-consumer': True}},
            {'arguments': {'x-single-active-consumer': False}},
            "'x-single-active-consumer' for {}: received 'false' but current is 'true'",
        ),
        (
            {},
            {'arguments': {'x-single-active-consumer': False}},
            "'x-single-active-consumer' for {}: received the value 'false' of type 'bool' but current is none",
        ),
        (
            {},
            {'arguments': {'x-message-ttl': -1}},
            "'x-message-ttl' for {}: received the value '-1' of type 'signedint' but current is none",
        ),
    ],
)
def test_a_queue_redeclared_otherwise_is_refused_with_the_field_that_differs(
    broker: Broker, channel: BlockingChannel, first: dict[str, Any], second: dict[str, Any], text: str
) -> None:
    channel.queue_declare('q', **first)
    refusal = refusal_of(channel.queue_declare, 'q', **second)
    assert refusal == inequivalent(broker, "queue 'q'", text)


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        ({'arguments': {'x-message-ttl': 1}}, {'arguments': {'x-message-ttl': 1}}),
        ({'arguments': {'x-unknown': 'a'}}, {'arguments': {'x-unknown': 'b'}}),
        ({}, {'arguments': {'x-queue-type': 'classic'}}),
        ({}, {'passive': True, 'durable': True}),
    ],
)
def test_a_queue_redeclared_alike_is_accepted(
    channel: BlockingChannel, first: dict[str, Any], second: dict[str, Any]
) -> None:
    channel.queue_declare('q', **first)
    channel.queue_declare('q', **second)


def test_an_existing_queue_does_not_become_exclusive(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q')
    assert refusal_of(channel.queue_declare, 'q', exclusive=True) == (405, LOCKED.format(broker.vhost))


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        ({'x-message-ttl': -1}, "'x-message-ttl' for {}: {{value_negative,-1}}"),
        ({'x-message-ttl': 'a'}, '\'x-message-ttl\' for {}: "expected integer, got longstr"'),
        ({'x-message-ttl': True}, '\'x-message-ttl\' for {}: "expected integer, got bool"'),
        ({'x-expires': 0}, "'x-expires' for {}: {{value_zero,0}}"),
        ({'x-expires': None}, '\'x-expires\' for {}: "expected integer, got void"'),
        ({'x-max-length': -1}, "'x-max-length' for {}: {{value_negative,-1}}"),
        ({'x-overflow': 'odd'}, "'x-overflow' for {}: invalid_overflow"),
        ({'x-overflow': 3}, "'x-overflow' for {}: {{unacceptable_type,signedint}}"),
        ({'x-max-priority': 256}, "'x-max-priority' for {}: {{max_value_exceeded,256}}"),
        (
            {'x-dead-letter-routing-key': 'k'},
            "'x-dead-letter-routing-key' for {}: routing_key_but_no_dlx_defined",
        ),
        ({'x-single-active-consumer': 'yes'}, "'x-single-active-consumer' for {}: {{unacceptable_type,longstr}}"),
        ({'x-queue-type': 'odd'}, "'x-queue-type' for {}: \"unsupported queue type 'odd'\""),
        ({'x-delivery-limit': 3}, "'x-delivery-limit' for {} of queue type rabbit_classic_queue"),
    ],
)
def test_a_queue_with_invalid_arguments_is_refused(
    broker: Broker, channel: BlockingChannel, arguments: dict[str, Any], text: str
) -> None:
    expected = text.format(f"queue 'q' in vhost '{broker.vhost}'")
    refusal = refusal_of(channel.queue_declare, 'q', arguments=arguments)
    assert refusal == (406, f'PRECONDITION_FAILED - invalid arg {expected}')


def test_a_dead_letter_exchange_that_is_no_text_is_refused(broker: Broker, channel: BlockingChannel) -> None:
    assert refusal_of(channel.queue_declare, 'q', arguments={'x-dead-letter-exchange': 4}) == (
        406,
        "PRECONDITION_FAILED - invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 'q' in vhost "
        f"'{broker.vhost}'",
    )


@pytest.mark.parametrize(
    ('flags', 'what'),
    [
        ({}, 'non-durable'),
        ({'durable': True, 'exclusive': True}, 'exclusive-owner'),
        ({'durable': True, 'auto_delete': True}, 'auto-delete'),
    ],
)
def test_a_quorum_queue_has_to_be_durable_and_shared(
    broker: Broker, channel: BlockingChannel, flags: dict[str, bool], what: str
) -> None:
    assert refusal_of(channel.queue_declare, 'q', arguments={'x-queue-type': 'quorum'}, **flags) == (
        406,
        f"PRECONDITION_FAILED - invalid property '{what}' for queue 'q' in vhost '{broker.vhost}'",
    )


@pytest.mark.parametrize(
    ('action', 'arguments', 'code', 'text'),
    [
        ('queue_declare', {'queue': 'amq.mine'}, 403, "queue name 'amq.mine' contains reserved prefix 'amq.*'"),
        ('queue_declare', {'queue': 'nq', 'passive': True}, 404, "no queue 'nq' in vhost '{vhost}'"),
        ('queue_purge', {'queue': 'nq'}, 404, "no queue 'nq' in vhost '{vhost}'"),
        ('queue_purge', {'queue': ''}, 404, 'no previously declared queue'),
        ('basic_get', {'queue': 'nq'}, 404, "no queue 'nq' in vhost '{vhost}'"),
        (
            'basic_consume',
            {'queue': 'nq', 'on_message_callback': print},
            404,
            "no queue 'nq' in vhost '{vhost}'",
        ),
    ],
)
def test_what_cannot_be_done_with_a_queue_is_refused(
    broker: Broker, channel: BlockingChannel, action: str, arguments: dict[str, Any], code: int, text: str
) -> None:
    check_refusal(broker, channel, action, arguments, code, text)


# Exclusive queues


@pytest.mark.parametrize(
    ('action', 'arguments'),
    [
        ('queue_declare', {}),
        ('queue_declare', {'passive': True}),
        ('queue_declare', {'exclusive': True}),
        ('basic_get', {}),
        ('queue_purge', {}),
        ('queue_delete', {}),
        ('queue_bind', {'exchange': 'amq.direct', 'routing_key': 'k'}),
        ('basic_consume', {'on_message_callback': print}),
    ],
)
def test_an_exclusive_queue_is_locked_for_other_connections(
    broker: Broker, channel: BlockingChannel, action: str, arguments: dict[str, Any]
) -> None:
    channel.queue_declare('q', exclusive=True)
    with connect(broker) as other:
        refusal = refusal_of(getattr(other.channel(), action), queue='q', **arguments)
    assert refusal == (405, LOCKED.format(broker.vhost))


def test_anybody_may_publish_to_an_exclusive_queue(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    with connect(broker) as other:
        publisher = other.channel()
        publisher.confirm_delivery()
        publisher.basic_publish('', 'q', b'x', mandatory=True)
    assert channel.basic_get('q', auto_ack=True)[2] == b'x'


def test_an_exclusive_queue_goes_with_its_connection(broker: Broker, channel: BlockingChannel) -> None:
    with connect(broker) as other:
        other.channel().queue_declare('q', exclusive=True)
    assert refusal_of(channel.queue_declare, 'q', passive=True)[0] == 404


# Deletion


def test_deletion_tells_how_many_messages_went(channel: BlockingChannel) -> None:
    channel.queue_declare('q')
    for _ in range(3):
        channel.basic_publish('', 'q', b'')
    assert channel.queue_delete('q').method.message_count == 3
    assert refusal_of(channel.queue_declare, 'q', passive=True)[0] == 404


def test_deleting_a_missing_queue_is_no_error(channel: BlockingChannel) -> None:
    assert channel.queue_delete('nq').method.message_count == 0


def test_a_queue_with_consumers_is_not_deleted_if_unused_is_asked_for(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    channel.basic_consume('q', lambda *_: None)
    assert refusal_of(channel.queue_delete, 'q', if_unused=True) == (
        406,
        f"PRECONDITION_FAILED - queue 'q' in vhost '{broker.vhost}' in use",
    )


def test_a_queue_with_messages_is_not_deleted_if_empty_is_asked_for(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    channel.basic_publish('', 'q', b'')
    assert refusal_of(channel.queue_delete, 'q', if_empty=True) == (
        406,
        f"PRECONDITION_FAILED - queue 'q' in vhost '{broker.vhost}' not empty",
    )


def test_a_purge_drops_what_is_ready_and_leaves_what_is_unacknowledged(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    for _ in range(3):
        channel.basic_publish('', 'q', b'')
    tag = channel.basic_get('q')[0].delivery_tag
    assert channel.queue_purge('q').method.message_count == 2
    channel.basic_nack(tag)
    channel.basic_publish('', 'q', b'')
    assert message_count(channel, 'q') == 2


def test_an_auto_delete_queue_waits_for_a_first_consumer_and_goes_with_the_last(channel: BlockingChannel) -> None:
    channel.queue_declare('q', auto_delete=True)
    tags = [channel.basic_consume('q', lambda *_: None) for _ in range(2)]
    channel.basic_cancel(tags[0])
    channel.queue_declare('q', passive=True)
    channel.basic_cancel(tags[1])
    assert refusal_of(channel.queue_declare, 'q', passive=True)[0] == 404


def test_an_auto_delete_queue_goes_with_its_consumers_connection(broker: Broker, channel: BlockingChannel) -> None:
    with connect(broker) as other:
        consumer = other.channel()
        consumer.queue_declare('q', auto_delete=True)
        consumer.basic_consume('q', lambda *_: None)
    assert refusal_of(channel.queue_declare, 'q', passive=True)[0] == 404
