"""Lifetimes and limits of messages and queues, priorities, and where dead messages go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from conformance.version_table import says
from support.brokers import Broker, connect
from support.channels import await_message, publish, refusal_of, wait_until

DEAD_LETTERS = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}


@pytest.fixture
def channel(connection: pika.BlockingConnection) -> BlockingChannel:
    """A channel on which a publish returns once the message is in its queues; the queue ``dead`` exists."""
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare('dead', exclusive=True)
    return channel


def get(channel: BlockingChannel, queue: str) -> tuple[Any, Any, bytes]:
    """Wait for a message in a queue, and take it, unacknowledged."""
    return await_message(channel, queue, auto_ack=False)


def bodies(channel: BlockingChannel, queue: str, count: int) -> list[bytes]:
    """Wait for so many messages, and make sure that there are no more."""
    found = [get(channel, queue)[2] for _ in range(count)]
    assert channel.basic_get(queue)[0] is None
    return found


def deaths(properties: pika.BasicProperties) -> list[dict[str, Any]]:
    """Return what ``x-death`` records, without the time."""
    recorded = properties.headers['x-death']
    return [{key: value for key, value in death.items() if key != 'time'} for death in recorded]


# What is recorded of a death


def test_a_rejected_message_carries_the_record_of_its_death(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments=DEAD_LETTERS)
    publish(channel, 'q', b'x', headers={'mine': 1, 'CC': ['copy']}, priority=3, message_id='m')
    channel.basic_reject(get(channel, 'q')[0].delivery_tag, requeue=False)
    method, properties, body = get(channel, 'dead')
    assert (method.exchange, method.routing_key, body) == ('', 'dead', b'x')
    assert deaths(properties) == [
        {'count': 1, 'reason': 'rejected', 'queue': 'q', 'exchange': '', 'routing-keys': ['q', 'copy']}
    ]
    headers = {name: value for name, value in properties.headers.items() if name != 'x-death'}
    assert headers == says(broker, 'a dead letter has, beside x-death')
    assert (properties.priority, properties.message_id) == (3, 'm')


def test_without_a_dead_letter_key_the_message_keeps_its_own(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments={'x-dead-letter-exchange': 'amq.direct'})
    channel.queue_bind('dead', 'amq.direct', 'q')
    publish(channel, 'q', b'x')
    channel.basic_nack(get(channel, 'q')[0].delivery_tag, requeue=False)
    method, _, _ = get(channel, 'dead')
    assert (method.exchange, method.routing_key) == ('amq.direct', 'q')


def test_deaths_are_counted_by_queue_and_reason_the_latest_first(channel: BlockingChannel) -> None:
    back = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'work', 'x-message-ttl': 10}
    channel.queue_declare('delay', exclusive=True, arguments=back)
    there = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'delay'}
    channel.queue_declare('work', exclusive=True, arguments=there)
    publish(channel, 'work', b'x')
    for _ in range(3):
        channel.basic_reject(get(channel, 'work')[0].delivery_tag, requeue=False)
    _, properties, _ = get(channel, 'work')
    assert deaths(properties) == [
        {'count': 3, 'reason': 'expired', 'queue': 'delay', 'exchange': '', 'routing-keys': ['delay']},
        {'count': 3, 'reason': 'rejected', 'queue': 'work', 'exchange': '', 'routing-keys': ['work']},
    ]
    assert properties.headers['x-first-death-queue'] == 'work'


def test_a_missing_dead_letter_exchange_drops_the_message(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments={'x-dead-letter-exchange': 'missing'})
    publish(channel, 'q', b'x')
    channel.basic_reject(get(channel, 'q')[0].delivery_tag, requeue=False)
    assert bodies(channel, 'q', 0) == []


def test_messages_that_only_expire_in_a_circle_are_dropped(channel: BlockingChannel) -> None:
    for name, other in (('one', 'two'), ('two', 'one')):
        arguments = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': other, 'x-message-ttl': 10}
        channel.queue_declare(name, exclusive=True, arguments=arguments)
    # A witness dies on the same way later, and leaves it.
    publish(channel, 'one', b'x')
    channel.queue_declare('q', exclusive=True, arguments={**DEAD_LETTERS, 'x-message-ttl': 300})
    publish(channel, 'q', b'witness')
    get(channel, 'dead')
    assert channel.basic_get('one')[0] is None
    assert channel.basic_get('two')[0] is None


def test_a_purge_is_no_death(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments=DEAD_LETTERS)
    publish(channel, 'q', b'purged', b'rejected')
    channel.basic_reject(get(channel, 'q')[0].delivery_tag, requeue=True)
    assert channel.queue_purge('q').method.message_count == 2
    assert bodies(channel, 'dead', 0) == []


# Lifetimes


def test_a_message_expires_after_its_queues_time(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments={**DEAD_LETTERS, 'x-message-ttl': 30})
    publish(channel, 'q', b'x')
    _, properties, _ = get(channel, 'dead')
    assert deaths(properties)[0]['reason'] == 'expired'


def test_a_message_expires_after_its_own_time_which_is_recorded_and_removed(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments={**DEAD_LETTERS, 'x-message-ttl': 60_000})
    publish(channel, 'q', b'x', expiration='30')
    _, properties, _ = get(channel, 'dead')
    assert properties.expiration is None
    assert deaths(properties)[0]['original-expiration'] == '30'


def test_a_message_behind_a_living_one_expires_when_it_comes_to_the_head(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments=DEAD_LETTERS)
    publish(channel, 'q', b'living')
    publish(channel, 'q', b'dying', expiration='10')
    channel.connection.sleep(0.2)
    assert channel.queue_declare('q', passive=True).method.message_count == 2
    assert bodies(channel, 'q', 1) == [b'living']
    assert bodies(channel, 'dead', 1) == [b'dying']


def test_a_lifetime_of_zero_means_at_once_or_never(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments={**DEAD_LETTERS, 'x-message-ttl': 0})
    publish(channel, 'q', b'nobody waits')
    assert bodies(channel, 'dead', 1) == [b'nobody waits']
    taken: list[bytes] = []
    channel.basic_consume('q', lambda *delivery: taken.append(delivery[3]), auto_ack=True)
    publish(channel, 'q', b'somebody waits')
    wait_until(channel.connection, lambda: taken == [b'somebody waits'])


def test_an_expired_message_is_not_delivered_to_a_later_consumer(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    publish(channel, 'q', b'old', expiration='10')
    channel.connection.sleep(0.1)
    publish(channel, 'q', b'new')
    assert bodies(channel, 'q', 1) == [b'new']


def test_a_queue_expires_unused_and_is_used_by_get_declare_and_consumers(channel: BlockingChannel) -> None:
    channel.queue_declare('q', arguments={'x-expires': 800})
    tag = channel.basic_consume('q', lambda *_: None)
    channel.connection.sleep(1)
    channel.basic_cancel(tag)
    for use in (lambda: channel.basic_get('q'), lambda: channel.queue_declare('q', passive=True)):
        channel.connection.sleep(0.45)
        use()
    channel.connection.sleep(1.2)
    with pytest.raises(ChannelClosedByBroker, match='404'):
        channel.queue_declare('q', passive=True)


# Limits


@pytest.mark.parametrize(
    ('arguments', 'kept', 'dead'),
    [
        ({'x-max-length': 2}, [b'3', b'4'], [b'0', b'1', b'2']),
        ({'x-max-length-bytes': 2}, [b'3', b'4'], [b'0', b'1', b'2']),
        ({'x-max-length': 0}, [], [b'0', b'1', b'2', b'3', b'4']),
    ],
)
def test_a_full_queue_drops_its_oldest_messages(
    channel: BlockingChannel, arguments: dict[str, Any], kept: list[bytes], dead: list[bytes]
) -> None:
    channel.queue_declare('q', exclusive=True, arguments={**DEAD_LETTERS, **arguments})
    publish(channel, 'q', *(b'%d' % number for number in range(5)))
    assert bodies(channel, 'q', len(kept)) == kept
    assert bodies(channel, 'dead', len(dead)) == dead


def test_what_is_unacknowledged_does_not_count_for_the_limit(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments={'x-max-length': 1})
    publish(channel, 'q', b'1')
    get(channel, 'q')
    publish(channel, 'q', b'2')
    assert channel.queue_declare('q', passive=True).method.message_count == 1


@pytest.mark.parametrize(
    ('overflow', 'dead'),
    [('reject-publish', []), ('reject-publish-dlx', [b'2', b'3'])],
)
def test_a_full_queue_may_reject_new_messages(channel: BlockingChannel, overflow: str, dead: list[bytes]) -> None:
    arguments = {**DEAD_LETTERS, 'x-max-length': 2, 'x-overflow': overflow}
    channel.queue_declare('q', exclusive=True, arguments=arguments)
    publish(channel, 'q', b'0', b'1')
    for body in (b'2', b'3'):
        with pytest.raises(pika.exceptions.NackError):
            publish(channel, 'q', body)
    assert bodies(channel, 'q', 2) == [b'0', b'1']
    assert bodies(channel, 'dead', len(dead)) == dead


# Priorities


def test_messages_of_higher_priority_come_first(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments={'x-max-priority': 5})
    for priority in (0, 9, 3, None, 5, 1):
        publish(channel, 'q', b'%d' % (priority or 0), priority=priority)
    assert bodies(channel, 'q', 6) == [b'9', b'5', b'3', b'1', b'0', b'0']


def test_a_returned_message_takes_its_old_place_among_its_priority(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True, arguments={'x-max-priority': 5})
    for number in range(4):
        publish(channel, 'q', b'%d' % number, priority=number % 2)
    tags = [get(channel, 'q')[0].delivery_tag for _ in range(3)]
    channel.basic_nack(tags[2])
    channel.basic_nack(tags[0])
    assert bodies(channel, 'q', 3) == [b'1', b'0', b'2']


# Quorum queues, as far as one node has them


@pytest.fixture
def quorum(broker: Broker, channel: BlockingChannel) -> Iterator[Callable[..., str]]:
    """A function that declares a quorum queue, which the test's end deletes."""

    def declare(**arguments: Any) -> str:
        arguments = {name.replace('_', '-'): value for name, value in arguments.items()}
        channel.queue_declare('q', durable=True, arguments={'x-queue-type': 'quorum', **DEAD_LETTERS, **arguments})
        return 'q'

    yield declare
    with connect(broker) as connection:
        connection.channel().queue_delete('q')


def test_a_quorum_queue_counts_deliveries_up_to_its_limit(
    broker: Broker, channel: BlockingChannel, quorum: Callable[..., str]
) -> None:
    queue = quorum(x_delivery_limit=2)
    publish(channel, queue, b'x')
    seen = []
    for _ in range(3):
        method, properties, _ = get(channel, queue)
        seen.append((properties.headers or {}, method.redelivered))
        channel.basic_reject(method.delivery_tag)
    counts = says(broker, 'got, and returned by reject')
    assert seen == list(zip(counts, (False, True, True), strict=True))
    assert deaths(get(channel, 'dead')[1])[0]['reason'] == 'delivery_limit'


def test_what_returns_to_a_quorum_queue_with_a_limit_comes_before_all(
    channel: BlockingChannel, quorum: Callable[..., str]
) -> None:
    queue = quorum(x_delivery_limit=5)
    publish(channel, queue, *(b'%d' % number for number in range(6)))
    tags = [get(channel, queue)[0].delivery_tag for _ in range(4)]
    channel.basic_nack(tags[2])
    channel.basic_nack(tags[0])
    assert bodies(channel, queue, 4) == [b'2', b'0', b'4', b'5']


@pytest.mark.parametrize('condition', ['if_unused', 'if_empty'])
def test_a_quorum_queue_cannot_be_deleted_on_a_condition(
    broker: Broker, channel: BlockingChannel, quorum: Callable[..., str], condition: str
) -> None:
    text = f"NOT_IMPLEMENTED - cannot delete queue 'q' in vhost '{broker.vhost}'. queue.delete operations with "
    text += f'{condition.replace("_", "-")} flag set are not supported by quorum queues'
    quorum()
    assert refusal_of(channel.queue_delete, 'q', **{condition: True}) == (540, text)


@pytest.mark.parametrize(
    ('limit', 'taken'),
    [(0, ['yes', 'no', 'no', 'after a get']), (1, ['yes', 'yes', 'no', 'no']), (2, ['yes', 'yes', 'yes', 'no'])],
)
def test_a_full_quorum_queue_takes_one_too_many_and_then_none_until_it_is_well_below(
    channel: BlockingChannel, quorum: Callable[..., str], limit: int, taken: list[str]
) -> None:
    queue = quorum(x_max_length=limit, x_overflow='reject-publish')
    found = []
    for _ in range(4):
        try:
            publish(channel, queue, b'x')
            found.append('yes')
        except pika.exceptions.NackError:
            found.append('no')
    channel.basic_get(queue)
    try:
        publish(channel, queue, b'x')
        found[-1] = 'after a get'
    except pika.exceptions.NackError:
        pass
    assert found == taken
