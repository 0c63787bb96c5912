"""Queues with the flags that RabbitMQ wants for a purpose."""

from __future__ import annotations

import threading

import pytest

from postage import messaging
from postage.messaging import quorum, with_dead_letter
from support.messaging import TIMEOUT, EchoExchange, OtherExchange, Processor, Seen


class Rejecting(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        self.seen.put(content['parameters'])
        raise messaging.RejectMessage


def test_a_quorum_queue_is_durable():
    assert quorum('jobs') == {
        'name': 'jobs',
        'flags': {'durable': True, 'arguments': {'x-queue-type': 'quorum'}},
    }


def test_a_quorum_queue_may_have_a_delivery_limit_and_a_group_size():
    arguments = quorum('jobs', delivery_limit=5, group_size=3)['flags']['arguments']
    assert arguments == {'x-queue-type': 'quorum', 'x-delivery-limit': 5, 'x-quorum-initial-group-size': 3}


def test_a_dead_letter_goes_to_an_exchange_or_to_a_queue():
    assert with_dead_letter('jobs', OtherExchange)['flags']['arguments'] == {'x-dead-letter-exchange': 'other-exchange'}
    assert with_dead_letter('jobs', 'other', 'key')['flags']['arguments'] == {
        'x-dead-letter-exchange': 'other',
        'x-dead-letter-routing-key': 'key',
    }
    assert with_dead_letter('jobs', queue='dead')['flags']['arguments'] == {
        'x-dead-letter-exchange': '',
        'x-dead-letter-routing-key': 'dead',
    }


@pytest.mark.parametrize(
    'queue', [with_dead_letter(quorum('jobs'), queue='dead'), quorum(with_dead_letter('jobs', queue='dead'))]
)
def test_a_quorum_queue_moves_dead_letters_at_least_once(queue):
    assert queue == {
        'name': 'jobs',
        'flags': {
            'durable': True,
            'arguments': {
                'x-queue-type': 'quorum',
                'x-dead-letter-exchange': '',
                'x-dead-letter-routing-key': 'dead',
                'x-dead-letter-strategy': 'at-least-once',
                'x-overflow': 'reject-publish',
            },
        },
    }


def test_a_description_is_added_to_and_left_as_it_was():
    description = {'name': 'jobs', 'flags': {'auto_delete': True, 'arguments': {'x-max-length': 7}}}
    more = with_dead_letter(description, queue='dead')
    assert more['flags']['auto_delete'] is True
    assert more['flags']['arguments']['x-max-length'] == 7
    assert description == {'name': 'jobs', 'flags': {'auto_delete': True, 'arguments': {'x-max-length': 7}}}


@pytest.mark.parametrize(
    'queue',
    [
        with_dead_letter('jobs', queue='dead'),
        with_dead_letter(quorum('jobs', delivery_limit=5), queue='dead'),
        with_dead_letter('jobs', EchoExchange, 'dead-rk'),
    ],
    ids=['classic', 'quorum', 'exchange'],
)
def test_the_broker_takes_them_and_moves_what_is_rejected(bench, queue):
    bench.dead()
    processor = Rejecting([(EchoExchange, [(queue, 'echo-rk'), ('dead', 'dead-rk')])])
    processor.consumer.queue_leave('dead')
    bench.run(processor)
    bench.producer().message_echo('bad')
    assert processor.seen.next() == 'bad'
    assert bench.await_message('dead').parameters == 'bad'
    assert not bench.log.find('is lost')


def test_a_message_that_is_refused_again_and_again_ends_at_the_delivery_limit(bench):
    """RabbitMQ counts a reject, and from 4.3 on no nack: what was tried in vain has to be rejected."""
    bench.dead()
    queue = with_dead_letter(quorum('jobs', delivery_limit=3), queue='dead')
    consumer = bench.consumer([(EchoExchange, [(queue, 'echo-rk')])])
    bench.producer().message_echo('bad').wait(TIMEOUT)
    seen = Seen()

    def refuse(_channel, method, _header, _body):
        seen.put(method)
        consumer.reject(method, requeue=True)

    consuming = threading.Thread(target=consumer.start_consuming, args=(refuse,))
    consuming.start()
    try:
        assert bench.await_message('dead').parameters == 'bad'
        assert len(seen.take(4)) == 4
        assert seen.empty()
    finally:
        consumer.stop_consuming()
        consuming.join(TIMEOUT)


@pytest.mark.parametrize(
    ('make', 'fault'),
    [
        (lambda: quorum(''), 'a queue is a name or'),
        (lambda: quorum(7), 'a queue is a name or'),
        (lambda: quorum('jobs', delivery_limit=-1), 'delivery_limit must be a number, 0 or more'),
        (lambda: quorum('jobs', delivery_limit=True), 'delivery_limit must be a number'),
        (lambda: quorum('jobs', group_size=0), 'group_size must be a number, 1 or more'),
        (lambda: quorum({'name': 'jobs', 'flags': {'exclusive': True}}), "'jobs' is exclusive"),
        (lambda: quorum({'name': 'jobs', 'flags': {'auto_delete': True}}), "'jobs' is auto_delete"),
        (lambda: quorum({'name': 'jobs', 'flags': {'durable': False}}), 'is not durable'),
        (lambda: with_dead_letter('jobs'), 'needs an exchange'),
        (lambda: with_dead_letter('jobs', 'exchange', queue='dead'), 'needs an exchange'),
        (lambda: with_dead_letter('jobs', queue='dead', routing_key='key'), 'needs an exchange'),
        (lambda: with_dead_letter('jobs', queue=''), 'queue must be text and not empty'),
        (lambda: with_dead_letter('jobs', messaging.Exchange), 'has no name'),
    ],
)
def test_a_mistake_is_an_error(make, fault):
    with pytest.raises(messaging.ConfigurationError, match=fault):
        make()
