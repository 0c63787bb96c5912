"""Publishing: confirms, returns, transactions, copies, and replies on the direct way."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import NackError

from support.brokers import Broker, connect
from support.channels import message_count, refusal_of, wait_until

REPLY_TO = 'amq.rabbitmq.reply-to'


@pytest.fixture
def channel(connection: pika.BlockingConnection) -> BlockingChannel:
    return connection.channel()


@pytest.fixture
def confirming(connection: pika.BlockingConnection) -> BlockingChannel:
    """A channel on which a publish returns once the message is in its queues."""
    channel = connection.channel()
    channel.confirm_delivery()
    return channel


@pytest.fixture
def queue(confirming: BlockingChannel) -> str:
    return str(confirming.queue_declare('q', exclusive=True).method.queue)


# Confirms and returns


def test_every_message_is_confirmed_in_order(channel: BlockingChannel, queue: str) -> None:
    confirmed: list[tuple[int, bool]] = []
    channel._impl.confirm_delivery(lambda frame: confirmed.append((frame.method.delivery_tag, frame.method.multiple)))
    for _ in range(200):
        channel._impl.basic_publish('', queue, b'')
    wait_until(channel.connection, lambda: bool(confirmed) and confirmed[-1][0] == 200)
    assert confirmed == sorted(confirmed)


def test_a_message_without_a_queue_is_confirmed(confirming: BlockingChannel) -> None:
    confirming.basic_publish('', 'nowhere', b'')


def test_a_mandatory_message_is_returned_before_it_is_confirmed(channel: BlockingChannel) -> None:
    events: list[tuple[Any, ...]] = []
    channel._impl.add_on_return_callback(
        lambda _, method, properties, body: events.append(
            (method.reply_code, method.reply_text, method.exchange, method.routing_key, properties.type, body)
        )
    )
    channel._impl.confirm_delivery(lambda frame: events.append((frame.method.NAME,)))
    channel._impl.basic_publish('', 'nowhere', b'x', pika.BasicProperties(type='t'), mandatory=True)
    wait_until(channel.connection, lambda: len(events) == 2)
    assert events == [(312, 'NO_ROUTE', '', 'nowhere', 't', b'x'), ('Basic.Ack',)]


def test_a_full_queue_that_rejects_is_told_by_a_nack(confirming: BlockingChannel) -> None:
    arguments = {'x-max-length': 1, 'x-overflow': 'reject-publish'}
    confirming.queue_declare('full', exclusive=True, arguments=arguments)
    confirming.basic_publish('', 'full', b'1')
    with pytest.raises(NackError):
        confirming.basic_publish('', 'full', b'2')
    assert message_count(confirming, 'full') == 1


def test_immediate_delivery_is_not_implemented(channel: BlockingChannel) -> None:
    method = pika.spec.Basic.Publish(exchange='', routing_key='k', immediate=True)
    channel._impl._send_method(method, (pika.BasicProperties(), b''))
    refusal = refusal_of(channel.queue_declare, 'missing', passive=True)
    assert refusal == (540, 'NOT_IMPLEMENTED - immediate=true')


@pytest.mark.parametrize(
    ('expiration', 'why'),
    [
        ('abc', 'no_integer'),
        ('', 'no_integer'),
        (' 5', 'no_integer'),
        ('-1', '{value_negative,-1}'),
        ('1.5', '{leftover_string,".5"}'),
        ('99999999999999', '{value_too_large,99999999999999}'),
    ],
)
def test_an_expiration_that_is_no_number_of_milliseconds_is_refused(
    confirming: BlockingChannel, expiration: str, why: str
) -> None:
    properties = pika.BasicProperties(expiration=expiration)
    refusal = refusal_of(confirming.basic_publish, '', 'k', b'', properties)
    assert refusal == (406, f"PRECONDITION_FAILED - invalid expiration '{expiration}': {why}")


def test_a_message_in_the_name_of_another_user_is_refused(confirming: BlockingChannel) -> None:
    assert refusal_of(confirming.basic_publish, '', 'k', b'', pika.BasicProperties(user_id='bob')) == (
        406,
        "PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'guest'",
    )


# Copies


def test_a_message_is_copied_to_the_keys_in_its_headers_and_the_blind_ones_are_removed(
    confirming: BlockingChannel,
) -> None:
    for name in ('to', 'cc', 'bcc'):
        confirming.queue_declare(name, exclusive=True)
    properties = pika.BasicProperties(headers={'CC': ['cc'], 'BCC': ['bcc'], 'other': 1})
    confirming.basic_publish('', 'to', b'x', properties)
    for name in ('to', 'cc', 'bcc'):
        method, found, _ = confirming.basic_get(name, auto_ack=True)
        assert (method.routing_key, found.headers) == ('to', {'CC': ['cc'], 'other': 1})


def test_copies_that_are_no_list_are_refused(confirming: BlockingChannel) -> None:
    assert refusal_of(confirming.basic_publish, '', 'k', b'', pika.BasicProperties(headers={'CC': 'x'})) == (
        406,
        'PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,"CC",longstr}',
    )


# Transactions


def test_a_transaction_publishes_with_its_commit(
    connection: pika.BlockingConnection, confirming: BlockingChannel, queue: str
) -> None:
    channel = connection.channel()
    channel.tx_select()
    channel.basic_publish('', queue, b'1')
    assert message_count(confirming, queue) == 0
    channel.tx_commit()
    assert message_count(confirming, queue) == 1


def test_a_transaction_rolled_back_leaves_nothing(
    connection: pika.BlockingConnection, confirming: BlockingChannel, queue: str
) -> None:
    channel = connection.channel()
    channel.tx_select()
    channel.basic_publish('', queue, b'1')
    channel.tx_rollback()
    channel.tx_commit()
    assert message_count(confirming, queue) == 0


def test_an_acknowledgement_rolled_back_may_be_given_again(
    connection: pika.BlockingConnection, confirming: BlockingChannel, queue: str
) -> None:
    confirming.basic_publish('', queue, b'1')
    channel = connection.channel()
    channel.tx_select()
    tag = channel.basic_get(queue)[0].delivery_tag
    channel.basic_ack(tag)
    channel.tx_rollback()
    channel.basic_ack(tag)
    channel.close()
    assert message_count(confirming, queue) == 1


@pytest.mark.parametrize(
    ('first', 'second', 'text'),
    [
        ('tx_select', 'confirm_delivery', 'cannot switch from tx to confirm mode'),
        ('confirm_delivery', 'tx_select', 'cannot switch from confirm to tx mode'),
        ('queue_declare', 'tx_commit', 'channel is not transactional'),
        ('queue_declare', 'tx_rollback', 'channel is not transactional'),
    ],
)
def test_modes_of_a_channel_that_do_not_fit_are_refused(
    channel: BlockingChannel, first: str, second: str, text: str
) -> None:
    getattr(channel, first)(*(['q'] if first == 'queue_declare' else []))
    assert refusal_of(getattr(channel, second)) == (406, f'PRECONDITION_FAILED - {text}')


# Direct reply-to


def reply_address(channel: BlockingChannel, queue: str, replies: list[bytes]) -> str:
    """Consume replies on a channel, and return the address that a request from it carries."""
    channel.basic_consume(REPLY_TO, lambda *delivery: replies.append(delivery[3]), auto_ack=True)
    channel.basic_publish('', queue, b'', pika.BasicProperties(reply_to=REPLY_TO))
    request: list[Any] = []

    def received() -> bool:
        method, properties, _ = channel.basic_get(queue, auto_ack=True)
        if method is not None:
            request.append(properties.reply_to)
        return bool(request)

    wait_until(channel.connection, received)
    return str(request[0])


def test_a_reply_comes_back_on_the_channel_that_asked(broker: Broker, channel: BlockingChannel, queue: str) -> None:
    replies: list[bytes] = []
    address = reply_address(channel, queue, replies)
    assert address.startswith(f'{REPLY_TO}.')
    with connect(broker) as other:
        other.channel().basic_publish('', address, b'reply')
        wait_until(channel.connection, lambda: replies == [b'reply'])


def test_a_reply_to_nobody_is_dropped(
    broker: Broker, connection: pika.BlockingConnection, confirming: BlockingChannel, queue: str
) -> None:
    replies: list[bytes] = []
    channel = connection.channel()
    address = reply_address(channel, queue, replies)
    channel.basic_cancel(channel.consumer_tags[0])
    confirming.basic_publish('', address, b'')
    assert replies == []
    assert refusal_of(confirming.queue_declare, address, passive=True) == (
        404,
        f"NOT_FOUND - no queue '{address}' in vhost '{broker.vhost}'",
    )


def test_a_reply_address_can_be_asked_for_as_a_queue(
    connection: pika.BlockingConnection, channel: BlockingChannel, queue: str
) -> None:
    address = reply_address(channel, queue, [])
    found = connection.channel().queue_declare(address, passive=True).method
    assert (found.queue, found.message_count, found.consumer_count) == (address, 0, 1)


def test_a_request_needs_a_consumer_of_replies(confirming: BlockingChannel) -> None:
    refusal = refusal_of(confirming.basic_publish, '', 'k', b'', pika.BasicProperties(reply_to=REPLY_TO))
    assert refusal == (406, 'PRECONDITION_FAILED - fast reply consumer does not exist')


def test_a_consumer_of_replies_cannot_acknowledge(channel: BlockingChannel) -> None:
    refusal = refusal_of(channel.basic_consume, REPLY_TO, print)
    assert refusal == (406, 'PRECONDITION_FAILED - reply consumer cannot acknowledge')


def test_a_channel_has_one_consumer_of_replies(channel: BlockingChannel) -> None:
    channel.basic_consume(REPLY_TO, print, auto_ack=True)
    refusal = refusal_of(channel.basic_consume, REPLY_TO, print, auto_ack=True)
    assert refusal == (406, 'PRECONDITION_FAILED - reply consumer already set')


# Other methods of a channel


def test_a_client_cannot_stop_deliveries_by_flow(channel: BlockingChannel) -> None:
    assert channel.flow(True)
    assert refusal_of(channel.flow, False) == (540, 'NOT_IMPLEMENTED - active=false')
