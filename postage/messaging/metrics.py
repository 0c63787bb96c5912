"""What this process has counted, by the names of the OpenTelemetry conventions, for whatever shows it.

The conventions: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/. Nothing is counted here; it
is read where it is counted, when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from postage.amqp.connection import Connection
from postage.amqp.durations import Durations
from postage.amqp.publishing import PublishingChannel
from postage.amqp.registry import connections
from postage.messaging.health import counted

Kind = Literal['counter', 'gauge', 'histogram']
SYSTEM = 'rabbitmq'


class Metric(NamedTuple):
    """What a name stands for."""

    kind: Kind
    unit: str
    text: str


METRICS: dict[str, Metric] = {
    'messaging.client.operation.duration': Metric('histogram', 's', 'From a message to what became of it'),
    'messaging.process.duration': Metric('histogram', 's', 'What handlers took'),
    'messaging.client.sent.messages': Metric('counter', '{message}', 'Messages that the broker has taken or refused'),
    'messaging.client.consumed.messages': Metric('counter', '{message}', 'Messages that were begun to be handled'),
    'postage.messages.redelivered': Metric('counter', '{message}', 'Those of them that were delivered before'),
    'postage.messages.unhandled': Metric('counter', '{message}', 'Those of them that no handler takes'),
    'postage.messages.unwanted': Metric(
        'counter', '{message}', 'Requests dropped, for their callers had ceased to wait'
    ),
    'postage.messages.retried': Metric('counter', '{message}', 'Messages that are handled again after a pause'),
    'postage.messages.dead': Metric('counter', '{message}', 'Messages that were given up, by the reason'),
    'postage.messages.in_hand': Metric('gauge', '{message}', 'Messages that handlers have in hand'),
    'postage.messages.unconfirmed': Metric('gauge', '{message}', 'Messages that the broker has not confirmed yet'),
    'postage.replies.late': Metric('counter', '{message}', 'Replies dropped, for no call waited for them any more'),
    'postage.connection.reconnects': Metric('counter', '{connection}', 'How often a connection was made again'),
}
"""All that there is, by name."""


class Sample(NamedTuple):
    """One number, or one histogram.

    :ivar value: of a histogram the counts by :data:`postage.amqp.durations.CONVENTIONAL`, each for itself, and the sum
    """

    name: str
    attributes: dict[str, str]
    value: Any


def samples() -> list[Sample]:
    """What was counted by now. Any thread; never blocks."""
    return [*_of_processors(), *_of_connections()]


def _of_processors() -> Iterator[Sample]:
    for processor in list(counted):
        figures = processor.figures
        queues = list(processor.consumer.topology.queues)
        name = str(processor.fingerprint.get('name') or '')
        about = {
            'messaging.system': SYSTEM,
            'messaging.operation.name': 'process',
            'messaging.destination.name': queues[0] if len(queues) == 1 else '',
            'postage.component': name.encode(errors='backslashreplace').decode(),  # a lone surrogate has no UTF-8
        }
        yield Sample('messaging.client.consumed.messages', about, figures.received)
        yield Sample('postage.messages.redelivered', about, figures.redelivered)
        yield Sample('postage.messages.unhandled', about, figures.unhandled)
        yield Sample('postage.messages.unwanted', about, figures.unwanted)
        yield Sample('postage.messages.retried', about, figures.retried)
        yield Sample('postage.messages.in_hand', about, figures.in_hand)
        for reason, number in list(figures.dead.items()):
            yield Sample('postage.messages.dead', {**about, 'postage.reason': reason}, number)
        for handler in figures.handlers:
            if handler.total:
                labelled = {**about, 'postage.handler': handler.label}
                yield _histogram('messaging.process.duration', labelled, handler.durations)


def _of_connections() -> Iterator[Sample]:
    for connection in connections():
        about = {'messaging.system': SYSTEM, **_server(connection)}
        role = {**about, 'postage.role': connection.role}
        yield Sample('postage.connection.reconnects', role, connection.standing.reconnects)
        if connection.role == 'publishing':
            yield Sample('postage.messages.unconfirmed', about, connection.unconfirmed)
            if connection.rpc_client is not None:
                yield Sample('postage.replies.late', about, connection.rpc_client.late_replies)
            sent = {**about, 'messaging.operation.name': 'send'}
            for channel in list(connection.channels):
                if isinstance(channel, PublishingChannel):
                    yield _histogram('messaging.client.operation.duration', sent, channel.durations)
                    yield Sample('messaging.client.sent.messages', sent, channel.durations.count)


def _histogram(name: str, attributes: dict[str, str], durations: Durations) -> Sample:
    return Sample(name, attributes, {'counts': durations.by_convention(), 'sum': durations.seconds})


def _server(connection: Connection) -> dict[str, str]:
    endpoint = connection.settings.endpoints[0]
    return {'server.address': endpoint.host, 'server.port': str(endpoint.port)}
