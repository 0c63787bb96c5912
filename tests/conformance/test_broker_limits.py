"""When the broker holds somebody back: alarms, and acknowledgements that do not come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from support.brokers import Broker, Embedded, RabbitMQ, connect
from support.channels import message_count, publish, refusal_of, wait_until


@contextlib.contextmanager
def alarm(broker: Broker) -> Iterator[None]:
    """Let the broker believe, for the length of a ``with``, that its memory runs low."""
    if isinstance(broker, Embedded):
        broker.server.block()
        yield
        broker.server.unblock()
        return
    assert isinstance(broker, RabbitMQ)
    what = '{resource_limit, memory, node()}'
    broker.node.evaluate(f'rabbit_alarm:set_alarm({{{what}, []}}), ""')
    try:
        yield
    finally:
        broker.node.evaluate(f'rabbit_alarm:clear_alarm({what}), ""')


@contextlib.contextmanager
def acknowledgements_within(broker: Broker, milliseconds: int) -> Iterator[None]:
    """Let channels that are opened and closed in a ``with`` be closed where they acknowledge too late."""
    if isinstance(broker, Embedded):
        broker.server.set_consumer_timeout(milliseconds / 1000)
        yield
        return
    assert isinstance(broker, RabbitMQ)
    names = ('consumer_timeout', 'channel_tick_interval')
    before = [broker.node.evaluate(f'integer_to_list(application:get_env(rabbit, {name}, 60000))') for name in names]
    for name, value in zip(names, (milliseconds, 100), strict=True):
        broker.node.evaluate(f'application:set_env(rabbit, {name}, {value}), ""')
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            broker.node.evaluate(f'application:set_env(rabbit, {name}, {value}), ""')


def test_who_publishes_under_an_alarm_hears_of_it_and_of_its_end(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    with connect(broker) as publisher:
        events: list[str] = []
        publisher.add_on_connection_blocked_callback(lambda _, frame: events.append(frame.method.reason))
        publisher.add_on_connection_unblocked_callback(lambda *_: events.append('over'))
        writer, sent = publisher.channel(), 0

        def is_told() -> bool:
            # RabbitMQ's connections hear of an alarm in their own time, and stop at the first publish after that.
            nonlocal sent
            publish(writer, 'q', b'x')
            sent += 1
            return bool(events)

        with alarm(broker):
            wait_until(publisher, is_told)
            # Others are served as ever.
            assert message_count(channel, 'q') < sent
            assert events == ['low on memory']
        wait_until(publisher, lambda: events == ['low on memory', 'over'])
        wait_until(publisher, lambda: message_count(channel, 'q') == sent)


@pytest.mark.parametrize('by_get', [True, False], ids=['get', 'consumer'])
def test_a_channel_that_does_not_acknowledge_in_time_is_closed(
    broker: Broker, connection: pika.BlockingConnection, channel: BlockingChannel, by_get: bool
) -> None:
    channel.queue_declare('q', durable=True)
    publish(channel, 'q', b'x')
    reasons: list[Any] = []
    with acknowledgements_within(broker, 300):
        late = connection.channel()
        late._impl.add_on_close_callback(lambda _, reason: reasons.append(reason))
        if by_get:
            late.basic_get('q')
        else:
            late.basic_consume('q', lambda *_: None)
        wait_until(connection, lambda: bool(reasons))
    text = 'delivery acknowledgement on channel 2 timed out. Timeout value used: 300 ms.'
    assert reasons[0].reply_code == 406
    assert reasons[0].reply_text == (
        f'PRECONDITION_FAILED - {text} This timeout value can be configured, see consumers doc guide to learn more'
    )
    wait_until(connection, lambda: message_count(channel, 'q') == 1)


def test_a_quorum_queue_and_a_shared_prefetch_limit_do_not_go_together(
    broker: Broker, connection: pika.BlockingConnection, channel: BlockingChannel
) -> None:
    channel.queue_declare('quorum', durable=True, arguments={'x-queue-type': 'quorum'})
    other = connection.channel()
    other.basic_qos(prefetch_count=1, global_qos=True)
    code, text = refusal_of(other.basic_consume, 'quorum', print)
    assert (code, text) == (
        540,
        f"NOT_IMPLEMENTED - queue 'quorum' in vhost '{broker.vhost}' does not support global qos",
    )
