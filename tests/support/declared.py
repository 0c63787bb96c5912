"""Programs for ``postage doctor``, each by a name of this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from postage import messaging
from postage.dead_letters import QueueDeadLetters
from postage.generic_application import GenericApplication


class JobExchange(messaging.Exchange):
    name = 'job-exchange'
    exchange_type = 'topic'


class MissingExchange(messaging.Exchange):
    name = 'missing-exchange'
    passive = True


class DelayingExchange(messaging.Exchange):
    name = 'delaying-exchange'
    exchange_type = 'x-delayed-message'


class AlternateExchange(messaging.Exchange):
    name = 'alternate-exchange'
    arguments = {'alternate-exchange': 'nowhere'}


class ReservedExchange(messaging.Exchange):
    name = 'amq.jobs'


def consuming(
    flags: dict[str, Any] | None = None, exchange: type[messaging.Exchange] = JobExchange, name: str = 'jobs'
) -> Callable[[], messaging.GenericConsumer]:
    """A function that makes a consumer of a queue with these flags."""
    queue = {'name': name, 'flags': flags} if flags is not None else name
    return lambda: messaging.GenericConsumer([(exchange, [(queue, 'job')])])


def with_arguments(**arguments: Any) -> Callable[[], messaging.GenericConsumer]:
    """The same for a queue with these arguments, whose names have ``_`` for ``-``."""
    return consuming({'arguments': {name.replace('_', '-'): value for name, value in arguments.items()}})


plain = consuming()
transient = consuming({'durable': False})
exclusive = consuming({'exclusive': True, 'durable': False})
passive = consuming({'passive': True})
spelled = consuming({'durable': True, 'arguments': {'x-message-ttl': 60_000}})
single = with_arguments(x_single_active_consumer=True)
long_name = consuming(name='j' * 256)
reserved_name = consuming(name='amq.jobs')
on_missing = consuming(exchange=MissingExchange)
on_delaying = consuming(exchange=DelayingExchange)
on_alternate = consuming(exchange=AlternateExchange)
on_reserved = consuming(exchange=ReservedExchange)

quorum = with_arguments(x_queue_type='quorum')
quorum_with_limit = with_arguments(x_queue_type='quorum', x_delivery_limit=5)
quorum_without_limit = with_arguments(x_queue_type='quorum', x_delivery_limit=-1)
quorum_exclusive = consuming({'exclusive': True, 'durable': False, 'arguments': {'x-queue-type': 'quorum'}})
quorum_with_dead_letters = consuming(
    messaging.with_dead_letter(messaging.quorum('jobs'), 'amq.fanout')['flags'], name='jobs'
)
quorum_with_priorities = with_arguments(x_queue_type='quorum', x_max_priority=5, x_delivery_limit=-1)
stream = with_arguments(x_queue_type='stream')
odd_type = with_arguments(x_queue_type='odd')
negative_time = with_arguments(x_message_ttl=-1)
with_mode = with_arguments(x_queue_mode='lazy')
with_version = with_arguments(x_queue_version=1)
with_locator = with_arguments(x_queue_master_locator='min-masters')
with_consumer_timeout = with_arguments(x_consumer_timeout=60_000)
with_delayed_retry = with_arguments(
    x_queue_type='quorum', x_delivery_limit=-1, x_delayed_retry_type='all', x_delayed_retry_min=500
)
dead_letters_nowhere = with_arguments(x_dead_letter_exchange='nowhere')
dead_letters_to_no_queue = with_arguments(x_dead_letter_exchange='', x_dead_letter_routing_key='nowhere')


def global_prefetch() -> messaging.GenericConsumer:
    consumer = plain()
    consumer.channel.basic_qos(prefetch_count=3, global_qos=True)
    return consumer


class Slow(messaging.MessageProcessor):
    """Its handlers have an hour, and one of them a minute."""

    timeout = 3600

    @messaging.MessageHandler('command', 'long')
    def long(self, content: Any) -> Any:
        yield

    @messaging.Timeout(60)
    @messaging.MessageHandler('command', 'short')
    def short(self, content: Any) -> Any:
        yield


class Counting(messaging.MessageProcessor):
    """Gives up a message before the broker does."""

    max_deliveries = 10


class Trying(messaging.MessageProcessor):
    """Its messages wait up to an hour for another attempt; what is dead goes into a queue."""

    dead_letters = QueueDeadLetters('letters')

    @messaging.Retry(ValueError, delays=(1, 3600), jitter=0)
    @messaging.RpcHandler('command', 'work')
    def work(self, content: Any, reply: Any) -> None:
        raise ValueError


class Answering(messaging.MessageProcessor):
    """Answers."""

    @messaging.RpcHandler('command', 'work')
    def work(self, content: Any, reply: Any) -> None:
        reply(1)


class Greeter(messaging.GenericProducer):
    eks = [(JobExchange, 'job')]


def of(processor: type[messaging.MessageProcessor], flags: dict[str, Any]) -> Callable[[], messaging.MessageProcessor]:
    """A function that makes a processor of a queue with these flags."""
    return lambda: processor(None, [(JobExchange, [({'name': 'jobs', 'flags': flags}, 'job')])])


slow = of(Slow, {})
slow_on_quorum = of(Slow, {'arguments': {'x-queue-type': 'quorum', 'x-delivery-limit': -1}})
slow_with_time = of(
    Slow, {'arguments': {'x-queue-type': 'quorum', 'x-delivery-limit': -1, 'x-consumer-timeout': 7_200_000}}
)
counting = of(Counting, {'arguments': {'x-queue-type': 'quorum'}})
answering = of(Answering, {})
trying = of(Trying, {})
trying_exclusively = of(Trying, {'exclusive': True, 'durable': False})


def application() -> list[Any]:
    producer = Greeter()
    producer.message_hello().wait(1)
    producer.flush()
    return [GenericApplication({'name': 'shop', 'pid': '1', 'host': 'here'}), producer]


def calling() -> Any:
    return Greeter().rpc_hello()


def failing() -> Any:
    raise OSError('no such disk')


number = 7
