"""What the versions of RabbitMQ make of what a program declares, without asking one.

Measured on 3.10, 4.0 and 4.3. Where a rule follows a setting that no client can ask for, the default counts.
https://www.rabbitmq.com/release-information
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from postage.amqp.topology import Queue
from postage.cli.doctor.broker import Broker
from postage.cli.doctor.findings import Finding, warning, wrong
from postage.cli.doctor.program import Program

MIB = 1024 * 1024
DELIVERY_LIMIT = 20
CONSUMER_TIMEOUT = 30 * 60.0  # seconds
FRAME_MIN = 8192  # bytes
NAME_MAX = 255  # bytes of a short string (AMQP 0-9-1, section 4.2.5.3)

CLASSIC, QUORUM, STREAM = 'classic', 'quorum', 'stream'

ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    'x-expires': ((CLASSIC, QUORUM), (3, 0)),
    'x-message-ttl': ((CLASSIC, QUORUM), (3, 0)),
    'x-dead-letter-exchange': ((CLASSIC, QUORUM), (3, 0)),
    'x-max-length': ((CLASSIC, QUORUM), (3, 0)),
    'x-overflow': ((CLASSIC, QUORUM), (3, 0)),
    'x-single-active-consumer': ((CLASSIC, QUORUM), (3, 0)),
    'x-max-priority': ((CLASSIC,), (3, 0)),
    'x-queue-mode': ((CLASSIC,), (3, 0)),
    'x-queue-version': ((CLASSIC,), (3, 10)),
    'x-queue-master-locator': ((CLASSIC,), (3, 0)),
    'x-dead-letter-strategy': ((QUORUM,), (3, 10)),
    'x-max-in-memory-length': ((QUORUM,), (3, 0)),
    'x-max-in-memory-bytes': ((QUORUM,), (3, 0)),
    'x-delivery-limit': ((QUORUM,), (3, 0)),
    'x-quorum-initial-group-size': ((QUORUM,), (3, 0)),
    'x-consumer-disconnected-timeout': ((QUORUM,), (4, 3)),
    'x-delayed-retry-type': ((QUORUM,), (4, 3)),
    'x-delayed-retry-min': ((QUORUM,), (4, 3)),
    'x-delayed-retry-max': ((QUORUM,), (4, 3)),
    'x-max-age': ((STREAM,), (3, 9)),
    'x-stream-max-segment-size-bytes': ((STREAM,), (3, 9)),
    'x-initial-cluster-size': ((STREAM,), (3, 9)),
}
"""Of each argument the types of queue that take it, and the first version that knows it."""


def body_limit(broker: Broker) -> int:
    """Bytes that a body may have, by default."""
    return (16 if broker.release >= (4, 0) else 128) * MIB


def delivery_limit(queue: Queue, broker: Broker) -> int | None:
    """After how many deliveries in vain the broker gives a message up; ``None`` for never."""
    if kind(queue) != QUORUM:
        return None
    limit = arguments(queue).get('x-delivery-limit', DELIVERY_LIMIT if broker.release >= (4, 0) else None)
    return limit if isinstance(limit, int) and limit >= 0 else None


def consumer_timeout(queue: Queue, broker: Broker) -> float | None:
    """Seconds within which a delivery has to be acknowledged; ``None`` for no limit."""
    if broker.release >= (4, 3) and kind(queue) != QUORUM:
        return None
    own = arguments(queue).get('x-consumer-timeout') if broker.release >= (3, 12) else None
    return own / 1000 if isinstance(own, int) else CONSUMER_TIMEOUT


def limits_of(broker: Broker) -> str:
    """A broker's limits in words."""
    if not broker.release:
        return 'what RabbitMQ does by its version is not known of it'
    quorum = f', {DELIVERY_LIMIT} deliveries from a quorum queue' if broker.release >= (4, 0) else ''
    which = ' for quorum queues' if broker.release >= (4, 3) else ''
    size = f'bodies up to {body_limit(broker) // MIB} MiB'
    return f'by default, and where no policy says otherwise, {size}{quorum}, 30 min to acknowledge{which}'


def arguments(queue: Queue) -> dict[str, Any]:
    """A queue's arguments."""
    return dict(queue.flags.get('arguments') or {})


def kind(queue: Queue) -> str:
    """A queue's type."""
    return str(arguments(queue).get('x-queue-type', CLASSIC))


def declared(program: Program) -> Iterator[tuple[str, Queue]]:
    """The queues that are really declared, each with its name for the report."""
    for queue in program.queues.values():
        if not queue.flags.get('passive'):
            yield f'queue {queue.name!r}', queue


# The rules


def names(program: Program, broker: Broker) -> Iterator[Finding]:
    """No name may be longer than a short string."""
    for what, known in (('exchange', program.exchanges), ('queue', program.queues)):
        for name in known:
            if len(name.encode()) > NAME_MAX:
                yield wrong('name', f'{what} {name[:40]!r}…', f'the name is longer than the {NAME_MAX} bytes of AMQP')


def replicated_queues(program: Program, broker: Broker) -> Iterator[Finding]:
    """Quorum queues and streams outlive connections and restarts."""
    for about, queue in declared(program):
        if kind(queue) not in (QUORUM, STREAM):
            continue
        flags = [flag for flag in ('exclusive', 'auto_delete') if queue.flags.get(flag)]
        flags += [] if queue.flags.get('durable') else ['not durable']
        if flags:
            yield wrong('queue-type', about, f'a {kind(queue)} queue that is {", ".join(flags)} is refused (406)')


def inapplicable_arguments(program: Program, broker: Broker) -> Iterator[Finding]:
    """An argument of another type of queue is refused, and an unknown one has no effect."""
    for about, queue in declared(program):
        for name in arguments(queue):
            types, since = ARGUMENTS.get(name, ((kind(queue),), (0, 0)))
            if name == 'x-consumer-timeout':
                types, since = ((QUORUM,) if broker.release >= (4, 3) else (CLASSIC, QUORUM)), (3, 12)
            if broker.release < since:
                first = '.'.join(map(str, since))
                yield warning('argument', about, f'{name} has no effect before RabbitMQ {first}')
            elif kind(queue) not in types and kind(queue) in (CLASSIC, QUORUM, STREAM):
                yield wrong('argument', about, f'a {kind(queue)} queue with {name} is refused (406)')


def transient_queues(program: Program, broker: Broker) -> Iterator[Finding]:
    """Queues that are neither durable nor exclusive are on their way out."""
    for about, queue in declared(program):
        is_transient = not queue.flags.get('durable') and not queue.flags.get('exclusive')
        if is_transient and kind(queue) == CLASSIC and broker.release >= (4, 0):
            yield warning(
                'transient-queue',
                about,
                'it is neither durable nor exclusive, which is deprecated; it is refused (541) where '
                'deprecated_features.permit.transient_nonexcl_queues is false',
            )


def classic_arguments(program: Program, broker: Broker) -> Iterator[Finding]:
    """``x-queue-mode``, ``x-queue-version`` and ``x-queue-master-locator`` belong to the past."""
    for about, queue in declared(program):
        given = arguments(queue) if kind(queue) == CLASSIC else {}
        if 'x-queue-mode' in given and broker.release >= (3, 12):
            refused = '; some releases of 4.3 refuse it' if broker.release >= (4, 3) else ''
            yield warning('queue-mode', about, f'x-queue-mode has no effect since RabbitMQ 3.12{refused}')
        if given.get('x-queue-version') == 1 and broker.release >= (4, 0):
            if broker.release >= (4, 3):
                yield wrong('queue-version', about, 'x-queue-version 1 is refused (406)')
            else:
                yield warning('queue-version', about, 'x-queue-version 1 is deprecated, and RabbitMQ 4.3 refuses it')
        if 'x-queue-master-locator' in given and broker.release >= (4, 0):
            if broker.release >= (4, 3):
                text = 'x-queue-master-locator is refused by default, with the connection (541)'
                yield wrong('queue-master-locator', about, text)
            else:
                text = 'x-queue-master-locator is deprecated, and RabbitMQ 4.3 refuses it'
                yield warning('queue-master-locator', about, text)


def delivery_limits(program: Program, broker: Broker) -> Iterator[Finding]:
    """A quorum queue drops a message at its limit where no dead-letter exchange takes it."""
    for about, queue in declared(program):
        limit = delivery_limit(queue, broker)
        if limit is None or 'x-dead-letter-exchange' in arguments(queue):
            continue
        most = [handling.handler.processor for handling in program.handlings if handling.queue.name == queue.name]
        if most and all(each.max_deliveries is not None and each.max_deliveries <= limit for each in most):
            continue  # the processors give it up before
        text = f'a message is dropped after {limit} deliveries in vain, for the queue has no x-dead-letter-exchange'
        is_chosen = 'x-delivery-limit' in arguments(queue)
        yield (warning if is_chosen else wrong)('delivery-limit', about, text)


def handler_timeouts(program: Program, broker: Broker) -> Iterator[Finding]:
    """What is not acknowledged in time is taken away from the consumer."""
    late: dict[tuple[str, str, float], list[str]] = {}
    for handling in program.handlings:
        limit, handler, queue = consumer_timeout(handling.queue, broker), handling.handler, handling.queue
        if limit is None or handler.is_built_in:
            continue
        if handler.timeout is not None and handler.timeout >= limit:
            late.setdefault((handler.label, f'it may take {handler.timeout:g} s', limit), []).append(queue.name)
        waits = [delay * (1 + retry.jitter) for retry in handler.retries for delay in retry.delays]
        if queue.flags.get('exclusive') and max(waits, default=0.0) >= limit:
            text = f'its messages may wait {max(waits):g} s for another attempt, unacknowledged'
            late.setdefault((handler.label, text, limit), []).append(queue.name)
    for (label, text, limit), queues in late.items():
        more = f' (and {len(queues) - 1} more)' if len(queues) > 1 else ''
        until = f'and queue {queues[0]!r}{more} takes back what is not acknowledged after {limit:g} s'
        yield wrong('consumer-timeout', f'handler {label}', f'{text}, {until}')


def global_prefetch(program: Program, broker: Broker) -> Iterator[Finding]:
    """A prefetch count that consumers share is deprecated."""
    if not program.uses_global_prefetch or broker.release < (4, 0):
        return
    if broker.release >= (4, 3):
        yield wrong('global-prefetch', 'basic_qos', 'a global prefetch count is refused, or limits each consumer alone')
    else:
        yield warning(
            'global-prefetch', 'basic_qos', 'a global prefetch count is deprecated, and RabbitMQ 4.3 has none'
        )


def frame_sizes(program: Program, broker: Broker) -> Iterator[Finding]:
    """A broker from 4.1 on refuses small frames, and does not say why."""
    for endpoint in program.settings.endpoints:
        for name, text in endpoint.options:
            if name == 'frame_max' and int(text) < FRAME_MIN and broker.release >= (4, 1):
                yield wrong('frame-max', 'the URL', f'frame_max={text} is less than {FRAME_MIN}: no connection is made')


RULES: tuple[Callable[[Program, Broker], Iterator[Finding]], ...] = (
    names,
    replicated_queues,
    inapplicable_arguments,
    transient_queues,
    classic_arguments,
    delivery_limits,
    handler_timeouts,
    global_prefetch,
    frame_sizes,
)


def apply_all(program: Program, broker: Broker, body: int | None) -> Iterator[Finding]:
    """What breaks a rule of the broker's version.

    :param body: bytes of the largest body that the program sends
    """
    if not broker.release:
        return
    for rule in RULES:
        yield from rule(program, broker)
    limit = body_limit(broker)
    if body is not None and body > limit:
        yield wrong('body-size', 'bodies', f'one of {body} bytes is refused (406); the limit is {limit} by default')
