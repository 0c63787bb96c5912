"""Queues and their bindings as users write them: ``eqk``, the two forms of a queue in it, and presets of flags.

The presets hold for RabbitMQ 3.10 to 4.3.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from postage import errors
from postage.amqp.streams import OFFSET, check_offset
from postage.amqp.topology import DELAYED_RETRY, QUEUE_FLAGS, Queue
from postage.messaging.exchanges import Exchange, check_exchange
from postage.messaging.handlers import Retry
from postage.printable import shown

logger = logging.getLogger('postage')

_SHAPE = 'a list of (Exchange, [(queue, key), …])'


def check_eqk(eqk: Any, where: str) -> Iterator[tuple[type[Exchange] | Exchange, Any, str]]:
    """Exchange, queue and key of each binding; the flat form of the reference is understood as well."""
    if isinstance(eqk, (str, bytes, Mapping)) or not isinstance(eqk, Sequence):
        raise errors.ConfigurationError(f'{where} must be {_SHAPE}, not {shown(eqk)}')
    pairs: Sequence[Any] = eqk
    if eqk and not _is_pair(eqk[0]):
        pairs = [eqk[i : i + 2] for i in range(0, len(eqk), 2)]
    for number, pair in enumerate(pairs):
        if not _is_pair(pair):
            raise errors.ConfigurationError(f'{where} must be {_SHAPE}; element {number} is {shown(pair)}')
        exchange = check_exchange(pair[0], f'{where}[{number}]')
        bindings = pair[1]
        if isinstance(bindings, (str, bytes, Mapping)) or not isinstance(bindings, Sequence):
            raise errors.ConfigurationError(
                f'{where}[{number}] must list its queues as [(queue, key), …], not {shown(bindings)}'
            )
        for binding in bindings:
            if not _is_pair(binding) or not isinstance(binding[1], str):
                raise errors.ConfigurationError(
                    f'{where}[{number}] must list its queues as [(queue, key), …]; one is {shown(binding)}'
                )
            yield exchange, binding[0], binding[1]


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) == 2


def check_queue(queue: Any, more: Mapping[str, Any], where: str) -> Queue:
    """A queue as given by the user, a name or a dictionary, with its flags checked."""
    flags: dict[str, Any] = {}
    name, retry = queue, None
    consume: dict[str, Any] = {}
    if isinstance(queue, Mapping):
        unknown = [key for key in queue if key not in ('name', 'flags', 'retry', 'consume')]
        if unknown or 'name' not in queue:
            raise errors.ConfigurationError(
                f"{where}: a queue is a name or {{'name': …, 'flags': {{…}}}}, not {shown(dict(queue))}"
            )
        name, retry, consume = queue['name'], queue.get('retry'), _check_consume(queue.get('consume'), where)
        flags.update(_check_flags(queue.get('flags') or {}, where))
    if not isinstance(name, str) or not name:
        raise errors.ConfigurationError(f'{where}: the name of a queue must be text and not empty, not {shown(name)}')
    flags.update(_check_flags(more, where))
    unknown = [flag for flag in flags if flag not in QUEUE_FLAGS]
    if unknown:
        raise errors.ConfigurationError(
            f'{where}: queue {name!r} has unknown flags {", ".join(map(repr, unknown))}; '
            f'there are {", ".join(QUEUE_FLAGS)}'
        )
    spelled = frozenset(flags) | frozenset(flags.get('arguments') or ())
    if retry is None:
        return Queue(name, flags, spelled, consume=consume)
    # Where the queue exists without, another way to wait is found.
    return Queue(name, flags, spelled.difference(DELAYED_RETRY), as_retry(retry, where), consume)


# Presets

QueueDescription = dict[str, Any]
"""A queue as ``eqk`` takes it: ``{'name': …, 'flags': {…}}``."""


def quorum(
    name: str | Mapping[str, Any],
    delivery_limit: int | None = None,
    group_size: int | None = None,
    retry: Retry | Sequence[float] | None = None,
) -> QueueDescription:
    """A quorum queue: durable, replicated where the broker is a cluster, and it counts deliveries.

    :param name: its name, or a description to be added to
    :param delivery_limit: after how many deliveries in vain the broker itself drops a message, or dead-letters it; by
        default the broker's own, which is 20 from RabbitMQ 4.0 on and none before
    :param group_size: on how many nodes of a cluster it is kept
    :param retry: when a message whose handler raises is handled again, where the handler itself has no ``Retry``: one,
        or its delays in seconds. Where the delays are a first one and its multiples, up to a highest one, RabbitMQ 4.3
        and later keep the message in its own queue until then; else it waits in another one.
    :raises errors.ConfigurationError: an argument has the wrong type or value
    :source: https://www.rabbitmq.com/docs/quorum-queues
    """
    arguments: dict[str, Any] = {'x-queue-type': 'quorum'}
    if delivery_limit is not None:
        arguments['x-delivery-limit'] = _count('delivery_limit', delivery_limit, 0)
    if group_size is not None:
        arguments['x-quorum-initial-group-size'] = _count('group_size', group_size, 1)
    if retry is not None:
        retry = as_retry(retry, 'quorum')
        arguments |= _delayed_retry(retry)
    queue = _described(name, arguments, 'quorum')
    if retry is not None:
        queue['retry'] = retry
    return _careful(_durable(queue, 'quorum queue'))


def stream(
    name: str | Mapping[str, Any],
    offset: Literal['first', 'last', 'next'] | int | datetime = 'next',
    max_age: str | None = None,
    max_bytes: int | None = None,
) -> QueueDescription:
    """A stream: durable, replicated where the broker is a cluster, and it keeps its messages, handled or not.

    Each consumer reads all of it, from an offset on. A program that starts again has to say which: it can note
    ``current_delivery().offset``.

    :param name: its name, or a description to be added to
    :param offset: where to begin: with the ``'first'`` message that it has, with the ``'last'`` of its blocks, with the
        ``'next'`` one that is published; with the message of that number; with what was published from a time on, whose
        time zone has to be known, as exactly as its blocks allow
    :param max_age: how long messages are kept at least, as in ``'7D'`` or ``'12h'``; by default for ever
    :param max_bytes: how many bytes of messages are kept at least; by default all
    :raises errors.ConfigurationError: an argument has the wrong type or value
    :source: https://www.rabbitmq.com/docs/streams
    """
    arguments: dict[str, Any] = {'x-queue-type': 'stream'}
    if max_age is not None:
        if not isinstance(max_age, str) or re.fullmatch(r'[1-9][0-9]*[YMDhms]', max_age) is None:
            raise errors.ConfigurationError(f"stream: max_age must be a time as in '7D' or '12h', not {shown(max_age)}")
        arguments['x-max-age'] = max_age
    if max_bytes is not None:
        arguments['x-max-length-bytes'] = _count('max_bytes', max_bytes, 1, 'stream')
    queue = _durable(_described(name, arguments, 'stream'), 'stream')
    queue['consume'] = _check_consume({**_check_consume(queue.get('consume'), 'stream'), OFFSET: offset}, 'stream')
    return queue


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
            raise errors.ConfigurationError(f'with_dead_letter: {what} must be text and not empty, not {shown(value)}')
    if bool(exchange) == (queue is not None) or (queue is not None and routing_key is not None):
        raise errors.ConfigurationError('with_dead_letter needs an exchange, perhaps with a routing_key, or a queue')
    arguments = {'x-dead-letter-exchange': exchange}
    key = queue if queue is not None else routing_key
    if key is not None:
        arguments['x-dead-letter-routing-key'] = key
    return _careful(_described(name, arguments, 'with_dead_letter'))


def as_retry(retry: Any, where: str) -> Retry:
    """A ``Retry``, given as such or by its delays."""
    if isinstance(retry, Retry):
        return retry
    if isinstance(retry, (str, bytes)) or not isinstance(retry, Sequence):
        raise errors.ConfigurationError(f'{where}: retry must be a Retry or a list of seconds, not {shown(retry)}')
    return Retry(delays=retry, jitter=0)


def _delayed_retry(retry: Retry) -> dict[str, Any]:
    """The arguments by which the broker delays retries so; none where it has no such form."""
    delays = [round(1000 * delay) for delay in retry.delays]
    first, highest = delays[0], max(delays)
    if not first or delays != [min(first * number, highest) for number in range(1, len(delays) + 1)]:
        return {}
    # Those that fail: what goes back untried is delivered again at once.
    return dict(zip(DELAYED_RETRY, ('failed', first, highest), strict=True))


def _described(queue: str | Mapping[str, Any], arguments: Mapping[str, Any], where: str) -> QueueDescription:
    """A queue, given by its name or its description, with more arguments. A copy."""
    description: QueueDescription = {'name': queue} if isinstance(queue, str) else {}
    if isinstance(queue, Mapping):
        description.update(queue)
    if not isinstance(description.get('name'), str) or not description['name']:
        raise errors.ConfigurationError(
            f"{where}: a queue is a name or {{'name': …, 'flags': {{…}}}}, not {shown(queue)}"
        )
    flags = dict(_check_flags(description.get('flags') or {}, where))
    flags['arguments'] = {**(flags.get('arguments') or {}), **arguments}
    return {**description, 'flags': flags}


def _durable(queue: QueueDescription, kind: str) -> QueueDescription:
    """Have a queue of a kind that is always durable be so, and neither exclusive nor deleted with its consumer."""
    where = kind.partition(' ')[0]
    for flag in ('exclusive', 'auto_delete'):
        if queue['flags'].get(flag):
            raise errors.ConfigurationError(f'{where}: queue {queue["name"]!r} is {flag}, which no {kind} can be')
    if queue['flags'].get('durable') is False:
        raise errors.ConfigurationError(f'{where}: queue {queue["name"]!r} is not durable, which a {kind} must be')
    queue['flags']['durable'] = True
    return queue


def _check_flags(flags: Any, where: str) -> Mapping[str, Any]:
    """Flags of a queue as given by the user."""
    if not isinstance(flags, Mapping):
        raise errors.ConfigurationError(f"{where}: 'flags' must be a dictionary, not {shown(flags)}")
    for flag, value in flags.items():
        if flag == 'arguments' and value is not None and not isinstance(value, Mapping):
            raise errors.ConfigurationError(f"{where}: 'arguments' must be a dictionary or None, not {shown(value)}")
        if flag in QUEUE_FLAGS and flag != 'arguments' and not _is_flag(value):
            raise errors.ConfigurationError(f'{where}: {flag} must be True or False, not {shown(value)}')
    return flags


def _is_flag(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value in (0, 1))


def _check_consume(arguments: Any, where: str) -> dict[str, Any]:
    """Arguments of ``basic_consume`` as given by the user."""
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise errors.ConfigurationError(f"{where}: 'consume' must be arguments by their names, not {shown(arguments)}")
    if OFFSET in arguments:
        try:
            check_offset(arguments[OFFSET])
        except ValueError as error:
            raise errors.ConfigurationError(f'{where}: {error}') from None
    return dict(arguments)


def _careful(queue: QueueDescription) -> QueueDescription:
    """Have a quorum queue with a dead-letter exchange lose nothing on the way there.

    https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering
    """
    arguments = queue['flags']['arguments']
    if arguments.get('x-queue-type') == 'quorum' and 'x-dead-letter-exchange' in arguments:
        arguments.setdefault('x-dead-letter-strategy', 'at-least-once')
        arguments.setdefault('x-overflow', 'reject-publish')
    return queue


def _count(name: str, value: Any, lowest: int, where: str = 'quorum') -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise errors.ConfigurationError(f'{where}: {name} must be a number, {lowest} or more, not {shown(value)}')
    return value


def warn_of_leftover(queue: Queue) -> None:
    """Warn of a queue that is named after this process, and that nothing removes when the process has ended.

    A process id of one or two digits, usual in containers, may stand in a name for anything: there the host must be in
    the name, too.
    """
    pid, host = str(os.getpid()), socket.gethostname()
    if not re.search(rf'(?<!\d){pid}(?!\d)', queue.name) or (len(pid) < 3 and host not in queue.name):
        return
    flags = queue.flags
    if not (flags.get('exclusive') or flags.get('auto_delete') or 'x-expires' in queue.arguments):
        logger.warning(
            'queue %r is named after this process, and stays, and fills, when that has ended: declare it with the flag '
            "exclusive or auto_delete, or with {'arguments': {'x-expires': milliseconds}}",
            queue.name,
        )
