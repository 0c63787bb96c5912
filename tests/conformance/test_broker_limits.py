"""When the broker holds somebody back: alarms, and acknowledgements that do not come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from conformance.version_table import says
from support.brokers import Broker, Embedded, RabbitMQ, connect
from support.channels import check_refusal, message_count, publish, wait_until
from support.limits import limited
from support.powers import acknowledgements_within


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


def test_a_channel_that_does_not_acknowledge_what_it_got_in_time_is_closed(
    broker: Broker, connection: pika.BlockingConnection, channel: BlockingChannel
) -> None:
    channel.queue_declare('q', durable=True, arguments={'x-queue-type': 'quorum'})
    publish(channel, 'q', b'x')
    reasons: list[Any] = []
    with acknowledgements_within(broker, 300):
        late = connection.channel()
        late._impl.add_on_close_callback(lambda _, reason: reasons.append(reason))
        late.basic_get('q')
        wait_until(connection, lambda: bool(reasons))
    _, text = says(broker, 'late, got from a quorum queue')
    assert (reasons[0].reply_code, reasons[0].reply_text) == (406, text.replace('channel 1', 'channel 2'))
    wait_until(connection, lambda: message_count(channel, 'q') == 1)


def test_one_queue_too_many_is_refused_and_those_that_are_there_can_be_had(
    broker: Broker, connection: pika.BlockingConnection, channel: BlockingChannel
) -> None:
    channel.queue_declare('one', exclusive=True)
    with limited(broker, queues=1):
        text = "cannot declare queue 'two': queue limit in vhost '{vhost}' (1) is reached"
        check_refusal(broker, channel, 'queue_declare', {'queue': 'two', 'exclusive': True}, 406, text)
        again = connection.channel()
        assert again.queue_declare('one', exclusive=True).method.message_count == 0
    assert connection.channel().queue_declare('two', exclusive=True)


def test_one_connection_too_many_is_refused(broker: Broker, connection: pika.BlockingConnection) -> None:
    with limited(broker, connections=1):
        with pytest.raises(pika.exceptions.ProbableAccessDeniedError) as caught, connect(broker):
            pass
        assert 'NOT_ALLOWED' in str(caught.value)
        assert 'connection limit (1) is reached' in str(caught.value)
    with connect(broker):
        pass
