"""What was declared is declared again as it was, or as it was found; what differs is named."""

from __future__ import annotations

from typing import Any

import pika.exceptions
import pytest

from postage import messaging
from support.brokers import connect
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, eventually

QUEUE = 'echo-queue'


def eqk(**flags: Any) -> Any:
    return [(EchoExchange, [({'name': QUEUE, 'flags': flags}, 'echo-rk')])]


def lose_everything(bench: Bench, *queues: str) -> None:
    """Close all connections, and delete queues and the exchange before they are back."""
    bench.bare.exchange_delete(EchoExchange.name)
    for queue in queues:
        bench.bare.queue_delete(queue)
    bench.close_all_connections()


def exists(bench: Bench, queue: str) -> bool:
    """Whether a queue is there; asking for it does no harm where it comes or goes at that moment."""
    try:
        return bench.consumers(queue) >= 0
    except pika.exceptions.ChannelClosedByBroker:
        return False


def is_consumed(bench: Bench, queue: str) -> bool:
    """Whether a queue is there and has a consumer."""
    return exists(bench, queue) and bench.consumers(queue) == 1


# Adopted queues


def test_a_queue_that_exists_with_another_default_is_used_as_found_with_a_warning(bench: Bench) -> None:
    bench.bare.queue_declare(QUEUE, durable=False, auto_delete=True, arguments={'x-max-length': 10})
    bench.consumer()
    for flag, found in (('durable', 'false'), ('auto_delete', 'true'), ('x-max-length', '10')):
        assert found in bench.log.expect('WARNING', repr(QUEUE), f'exists with {flag}', 'used as found')


def test_an_adopted_queue_is_declared_again_as_it_was_found(bench: Bench) -> None:
    bench.bare.queue_declare(QUEUE, durable=False, arguments={'x-max-length': 10})
    bench.consumer()
    lose_everything(bench, QUEUE)
    bench.log.expect('again (consuming)')
    declared = bench.bare.queue_declare(QUEUE, durable=False, arguments={'x-max-length': 10})
    assert declared.method.queue == QUEUE


@pytest.mark.parametrize(
    ('existing', 'spelled', 'field'),
    [
        ({'durable': False}, {'durable': True}, 'durable'),
        ({'durable': True, 'auto_delete': True}, {'auto_delete': False}, 'auto_delete'),
        ({'durable': True}, {'arguments': {'x-max-length': 5}}, 'x-max-length'),
        (
            {'durable': True, 'arguments': {'x-max-length': 6}},
            {'arguments': {'x-max-length': 5}},
            'x-max-length',
        ),
    ],
)
def test_a_queue_that_exists_with_another_flag_than_the_one_spelled_is_an_error_that_names_it(
    bench: Bench, existing: dict[str, Any], spelled: dict[str, Any], field: str
) -> None:
    bench.bare.queue_declare(QUEUE, **existing)
    with pytest.raises(messaging.DeclarationMismatch, match=field) as caught:
        messaging.GenericConsumer(eqk(**spelled))
    assert caught.value.field == field
    assert repr(QUEUE) in str(caught.value)
    assert caught.value.reply_code == 406


def test_a_spelled_flag_that_agrees_does_not_keep_others_from_being_adopted(bench: Bench) -> None:
    bench.bare.queue_declare(QUEUE, durable=False, arguments={'x-max-length': 10})
    bench.consumer(eqk(arguments={'x-max-length': 10}))
    bench.log.expect('WARNING', 'exists with durable')


def test_an_exchange_that_exists_with_another_type_is_an_error_that_names_it(bench: Bench) -> None:
    bench.bare.exchange_declare(EchoExchange.name, 'fanout')
    with pytest.raises(messaging.DeclarationMismatch, match=EchoExchange.name) as caught:
        messaging.GenericConsumer(EQK)
    assert (caught.value.field, caught.value.wanted, caught.value.found) == ('type', "'direct'", "'fanout'")


# Replays


def test_exchanges_queues_and_bindings_come_back_after_a_loss(bench: Bench) -> None:
    bench.consumer(
        [
            (EchoExchange, [(QUEUE, 'one'), (QUEUE, 'two'), ('second-queue', 'two')]),
        ]
    )
    lose_everything(bench, QUEUE, 'second-queue')
    bench.log.expect('again (consuming)')
    producer = bench.producer()
    producer.message_echo('text', _key='one').wait(TIMEOUT)
    producer.message_echo('text', _key='two').wait(TIMEOUT)
    assert bench.broker.queues() == {QUEUE: 2, 'second-queue': 1}


def test_what_was_bound_later_comes_back_too_and_what_was_unbound_does_not(bench: Bench) -> None:
    consumer = bench.consumer()
    consumer.queue_bind(EchoExchange, QUEUE, 'later')
    consumer.queue_unbind(EchoExchange, QUEUE, 'echo-rk')
    lose_everything(bench, QUEUE)
    bench.log.expect('again (consuming)')
    producer = bench.producer()
    producer.message_echo('no').wait(TIMEOUT)
    producer.message_echo('yes', _key='later').wait(TIMEOUT)
    assert bench.get(QUEUE).parameters == 'yes'


def test_what_a_closed_consumer_declared_is_not_declared_again(bench: Bench) -> None:
    bench.consumer([(EchoExchange, [('kept', 'key')])])
    bench.consumer().close()
    lose_everything(bench, QUEUE, 'kept')
    bench.log.expect('again (consuming)')
    assert bench.broker.queues() == {'kept': 0}


def test_a_queue_that_came_back_with_other_flags_is_named_in_the_log_and_the_rest_is_restored(bench: Bench) -> None:
    bench.consumer([(EchoExchange, [({'name': QUEUE, 'flags': {'durable': True}}, 'key'), ('second-queue', 'key')])])
    lose_everything(bench, QUEUE, 'second-queue')
    with connect(bench.broker) as other:
        # Perhaps the consumer was quicker; then somebody takes its place before the next loss.
        other.channel().queue_delete(QUEUE)
        other.channel().queue_declare(QUEUE, durable=False, exclusive=False, auto_delete=False)
    bench.broker.close_all_connections()
    bench.log.expect('ERROR', repr(QUEUE), 'durable')
    eventually(lambda: exists(bench, 'second-queue'))


def test_an_auto_delete_queue_is_there_again_after_a_loss(bench: Bench) -> None:
    echo = Echo(eqk(auto_delete=True, durable=False))
    bench.run(echo)
    producer = bench.producer()
    producer.message_echo('before').wait(TIMEOUT)
    eventually(lambda: is_consumed(bench, QUEUE))
    bench.close_all_connections()
    bench.log.expect('again (consuming)')
    eventually(lambda: is_consumed(bench, QUEUE))
    producer.message_echo('after').wait(TIMEOUT)
    eventually(lambda: echo.seen.next() == 'after')


def test_the_log_says_how_much_was_restored(bench: Bench) -> None:
    bench.consumer([(EchoExchange, [(QUEUE, 'key'), ('second-queue', 'key')])])
    bench.close_all_connections()
    assert '2 queues restored' in bench.log.expect('again (consuming)')
