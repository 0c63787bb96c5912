"""Queues with the flags that RabbitMQ wants for a purpose, to be used where ``eqk`` has a queue.

They hold for RabbitMQ 3.10 to 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from postage import errors
from postage.messaging.exchanges import Exchange, check_exchange

QueueDescription = dict[str, Any]
"""A queue as ``eqk`` takes it: ``{'name': …, 'flags': {…}}``."""


def quorum(
    name: str | Mapping[str, Any], delivery_limit: int | None = None, group_size: int | None = None
) -> QueueDescription:
    """A quorum queue: durable, replicated where the broker is a cluster, and it counts deliveries.

    :param name: its name, or a description to be added to
    :param delivery_limit: after how many deliveries in vain the broker itself drops a message, or dead-letters it; by
        default the broker's own, which is 20 from RabbitMQ 4.0 on and none before
    :param group_size: on how many nodes of a cluster it is kept
    :raises errors.ConfigurationError: an argument has the wrong type or value
    :source: https://www.rabbitmq.com/docs/quorum-queues
    """
    arguments: dict[str, Any] = {'x-queue-type': 'quorum'}
    if delivery_limit is not None:
        arguments['x-delivery-limit'] = _count('delivery_limit', delivery_limit, 0)
    if group_size is not None:
        arguments['x-quorum-initial-group-size'] = _count('group_size', group_size, 1)
    queue = _described(name, arguments, 'quorum')
    for flag in ('exclusive', 'auto_delete'):
        if queue['flags'].get(flag):
            raise errors.ConfigurationError(f'quorum: queue {queue["name"]!r} is {flag}, which no quorum queue can be')
    if queue['flags'].get('durable') is False:
        raise errors.ConfigurationError(f'quorum: queue {queue["name"]!r} is not durable, which a quorum queue must be')
    queue['flags']['durable'] = True
    return _careful(queue)


def with_dead_letter(
    name: str | Mapping[str, Any],
    exchange: type[Exchange] | Exchange | str = '',
    routing_key: str | None = None,
    queue: str | None = None,
) -> QueueDescription:
    """A queue from which the broker moves what is rejected, or expires, to an exchange or another queue.

    Exchange and queue have to exist: what cannot be moved is lost. A quorum queue moves each message at least once,
    and refuses new messages, rather than dropping some, where it has a length limit.

    :param name: the queue's name, or a description to be added to, such as that of :func:`quorum`
    :param exchange: where to: an ``Exchange``, or the name of one
    :param routing_key: with which key; by default the one that the message was published with
    :param queue: where to, instead of an exchange: the name of a queue
    :raises errors.ConfigurationError: an argument has the wrong type, or there is not exactly one target
    :source: https://www.rabbitmq.com/docs/dlx
    """
    if not isinstance(exchange, str):
        exchange = check_exchange(exchange, 'with_dead_letter').name
    for what, value in (('routing_key', routing_key), ('queue', queue)):
        if value is not None and not (isinstance(value, str) and value):
            raise errors.ConfigurationError(f'with_dead_letter: {what} must be text and not empty, not {value!r:.80}')
    if bool(exchange) == (queue is not None) or (queue is not None and routing_key is not None):
        raise errors.ConfigurationError('with_dead_letter needs an exchange, perhaps with a routing_key, or a queue')
    arguments = {'x-dead-letter-exchange': exchange}
    key = queue if queue is not None else routing_key
    if key is not None:
        arguments['x-dead-letter-routing-key'] = key
    return _careful(_described(name, arguments, 'with_dead_letter'))


def _described(queue: str | Mapping[str, Any], arguments: Mapping[str, Any], where: str) -> QueueDescription:
    """A queue, given by its name or its description, with more arguments. A copy."""
    description: QueueDescription = {'name': queue} if isinstance(queue, str) else {}
    if isinstance(queue, Mapping):
        description.update(queue)
    if not isinstance(description.get('name'), str) or not description['name']:
        raise errors.ConfigurationError(
            f"{where}: a queue is a name or {{'name': …, 'flags': {{…}}}}, not {queue!r:.80}"
        )
    flags = dict(description.get('flags') or {})
    flags['arguments'] = {**(flags.get('arguments') or {}), **arguments}
    return {**description, 'flags': flags}


def _careful(queue: QueueDescription) -> QueueDescription:
    """Have a quorum queue with a dead-letter exchange lose nothing on the way there.

    https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering
    """
    arguments = queue['flags']['arguments']
    if arguments.get('x-queue-type') == 'quorum' and 'x-dead-letter-exchange' in arguments:
        arguments.setdefault('x-dead-letter-strategy', 'at-least-once')
        arguments.setdefault('x-overflow', 'reject-publish')
    return queue


def _count(name: str, value: Any, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise errors.ConfigurationError(f'quorum: {name} must be a number, {lowest} or more, not {value!r:.80}')
    return value
