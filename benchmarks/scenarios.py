"""What is measured, with whom, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contenders import common

POSTAGE = 'postage'
BLOCKING = 'blocking'
RABBITMQ_C = 'rabbitmq-c'
PEERS = {
    POSTAGE: 'Postage',
    RABBITMQ_C: 'rabbitmq-c',
    'select': 'pika SelectConnection',
    BLOCKING: 'pika BlockingConnection',
    'kombu': 'kombu',
    'aio-pika': 'aio-pika',
}
TLS = 'postage-tls'
LANES = {'postage-thread': 'thread'}
"""Postage by another fast lane than the default, by what ``POSTAGE_FAST_LANE`` is then."""
SIGNED = 'postage-signed'
WAYS = {TLS: 'Postage, TLS', **{name: f'Postage, fast lane {lane!r}' for name, lane in LANES.items()}}
TRACED = {
    'postage-api': "Postage, OpenTelemetry's API alone",
    'postage-left-out': 'Postage, spans left out by a sampler',
    'postage-recorded': 'Postage, spans recorded',
}
"""Postage in programs that use OpenTelemetry, from the least on that it can do there."""
CONTENDERS = PEERS | WAYS | {SIGNED: 'Postage, signed'} | TRACED
ENVIRONMENTS = {
    **{name: {'POSTAGE_FAST_LANE': lane} for name, lane in LANES.items()},
    SIGNED: {'POSTAGE_SIGNING_KEYS': 'benchmark:0123456789abcdef0123456789abcdef'},
    **{name: {'BENCHMARK_TRACES': name.removeprefix('postage-')} for name in TRACED},
}
"""What their environment has besides."""

QUEUE = 'benchmark'
FEWEST = 20
"""Messages of a run, however small a size is asked for."""
MOST_BYTES = 64 * 1024 * 1024
"""Of text in all messages of a run, where bodies grow."""


@dataclass(frozen=True)
class Scenario:
    """One table of the report.

    :ivar role: what the contenders are asked to do
    :ivar messages: how many, at size 1
    :ivar parameters: further options of the role
    :ivar varies: the option that takes each of `values` in turn, where cost is to be seen growing
    :ivar fewer: by what the number of messages is divided for contenders that are slower by an order of magnitude
    """

    name: str
    title: str
    role: str
    messages: int = 20_000
    parameters: Mapping[str, Any] = field(default_factory=dict)
    contenders: tuple[str, ...] = (POSTAGE,)
    varies: str = ''
    values: tuple[int, ...] = ()
    fewer: Mapping[str, int] = field(default_factory=dict)

    @property
    def moves_messages(self) -> bool:
        """Whether its figure is messages a second."""
        return self.role in ('publish', 'consume', 'consume-many', 'consume-own', 'call')


@dataclass(frozen=True)
class Task:
    """One run of one contender."""

    scenario: Scenario
    contender: str
    value: int | None
    options: Mapping[str, Any]

    @property
    def role(self) -> str:
        return self.scenario.role

    @property
    def messages(self) -> int:
        return int(self.options['messages'])

    @property
    def queues(self) -> list[str]:
        """The queues that the harness declares, in which messages may be."""
        if self.role == 'consume-many':
            return [f'{QUEUE}-{number}' for number in range(self.options['count'])]
        return [QUEUE]

    @property
    def further_queues(self) -> list[str]:
        """Those that the contender declares itself, which have to be removed after it."""
        if self.role in ('idle', 'memory'):
            return [f'{QUEUE}-{number}' for number in range(self.options['count'])]
        return []

    @property
    def environment(self) -> dict[str, str]:
        """What the contender's environment has besides."""
        return ENVIRONMENTS.get(self.contender, {})

    @property
    def loaded(self) -> int:
        """Messages that lie in each queue when the contender begins."""
        return self.messages // len(self.queues) if self.role in ('consume', 'consume-many') else 0

    @property
    def left(self) -> int:
        """Messages that must be in the queues when the contender has ended."""
        return self.messages if self.role == 'publish' else 0

    def __str__(self) -> str:
        return f'{self.scenario.name} {"" if self.value is None else f"{self.value:,} "}{CONTENDERS[self.contender]}'


def tasks_of(scenario: Scenario, contender: str, size: float) -> list[Task]:
    """The runs of one contender in one round.

    :param size: factor for the numbers of messages
    """
    return [
        Task(scenario, contender, value, options_of(scenario, contender, value, size))
        for value in scenario.values or (None,)
    ]


def options_of(scenario: Scenario, contender: str, value: int | None, size: float) -> dict[str, Any]:
    """What the contender's command line says."""
    options = {'role': scenario.role, 'queue': QUEUE, **scenario.parameters}
    if value is not None:
        options[scenario.varies] = value
    options['messages'] = messages_of(scenario, contender, options, size)
    if 'seconds' in options:
        options['seconds'] = max(0.2, options['seconds'] * size)
    return options


def messages_of(scenario: Scenario, contender: str, options: Mapping[str, Any], size: float) -> int:
    """How many messages a run is about."""
    if not scenario.moves_messages:
        return scenario.messages
    messages = scenario.messages / scenario.fewer.get(contender, 1) * size
    if 'size' in options:
        messages = min(messages, MOST_BYTES * size / options['size'])
    if scenario.varies == 'in_flight' and options['in_flight'] == 1:
        messages /= 5
    # Threads and processors have equal shares, of more than one message each.
    count: int = options.get('count', 1)
    return max(FEWEST, 4 * count, int(messages)) // count * count


ALL = tuple(PEERS)
ALL_WAYS = (POSTAGE, *WAYS)
BOTH = (POSTAGE, SIGNED)
WITH_TRACES = (POSTAGE, *TRACED)

SCENARIOS = (
    Scenario('publish-20k', 'publish 20,000, transient, no confirms', 'publish', contenders=ALL),
    Scenario('publish-200k', 'publish 200,000, transient, no confirms', 'publish', 200_000, contenders=ALL),
    Scenario(
        'publish-confirmed',
        'publish, persistent, confirmed in the background (BlockingConnection: one by one)',
        'publish',
        parameters={'confirms': 1, 'persistent': 1},
        contenders=ALL,
        fewer={BLOCKING: 10},
    ),
    Scenario('consume', 'consume, acknowledge each, default settings', 'consume', contenders=ALL),
    Scenario(
        'consume-prefetch-100',
        'consume, acknowledge each, prefetch 100',
        'consume',
        parameters={'prefetch': 100},
        contenders=ALL,
    ),
    Scenario('rpc-in-turn', 'RPC, one after the other', 'call', 2_000, contenders=ALL),
    Scenario('rpc-100-in-flight', 'RPC, 100 in flight', 'call', 10_000, parameters={'in_flight': 100}, contenders=ALL),
    Scenario('grow-handlers', 'consume with more and more handlers', 'consume', varies='count', values=(1, 10, 100)),
    Scenario(
        'grow-processors',
        'consume with more and more processors in one scheduler',
        'consume-many',
        varies='count',
        values=(1, 10, 50),
    ),
    Scenario(
        'grow-bodies-publish',
        'publish larger and larger texts, in bytes',
        'publish',
        varies='size',
        values=(100, 1_000, 10_000, 100_000, 1_000_000),
    ),
    Scenario(
        'grow-bodies-consume',
        'consume larger and larger texts, in bytes',
        'consume',
        varies='size',
        values=(100, 1_000, 10_000, 100_000, 1_000_000),
    ),
    Scenario('grow-threads', 'publish from more and more threads', 'publish', varies='count', values=(1, 2, 4, 8)),
    Scenario(
        'grow-in-flight',
        'RPC with more and more in flight',
        'call',
        10_000,
        varies='in_flight',
        values=(1, 10, 100, 1_000),
    ),
    Scenario('ways-publish', 'publish, by other ways than the fast lane', 'publish', contenders=ALL_WAYS),
    Scenario(
        'ways-confirmed',
        'publish, persistent, confirmed in the background, by other ways than the fast lane',
        'publish',
        parameters={'confirms': 1, 'persistent': 1},
        contenders=ALL_WAYS,
    ),
    Scenario('ways-consume', 'consume, by other ways than the fast lane', 'consume', contenders=ALL_WAYS),
    Scenario('ways-rpc', 'RPC, one after the other, by other ways', 'call', 2_000, contenders=ALL_WAYS),
    Scenario('signed-publish', 'publish, with signatures and without', 'publish', contenders=BOTH),
    Scenario('signed-consume', 'consume what was so published', 'consume-own', contenders=BOTH),
    Scenario('signed-rpc', 'RPC, one after the other, with signatures both ways', 'call', 2_000, contenders=BOTH),
    Scenario('traces-publish', 'publish, with traces and without', 'publish', contenders=WITH_TRACES),
    Scenario('traces-consume', 'consume what was so published', 'consume-own', contenders=WITH_TRACES),
    Scenario(
        'traces-rpc',
        'RPC, 100 in flight, traced at both ends',
        'call',
        10_000,
        parameters={'in_flight': 100},
        contenders=WITH_TRACES,
    ),
    Scenario('idle', 'CPU of 50 idle processors', 'idle', 1, parameters={'count': 50, 'seconds': 10}),
    Scenario('import', 'import postage.messaging, over import pika', 'import', 1),
    Scenario('memory', 'memory of a processor', 'memory', 1, parameters={'count': 50}),
)


@dataclass(frozen=True)
class Target:
    """What a scenario should reach; ``None`` where there is no such demand.

    :ivar times_blocking: rate, as a multiple of BlockingConnection's
    :ivar times_c: rate, as a multiple of rabbitmq-c's
    :ivar cpu: microseconds of client CPU for a message
    """

    scenario: str
    times_blocking: float | None
    times_c: float | None
    cpu: float


TARGETS = (
    Target('publish-20k', 3, 0.9, 8),
    Target('publish-confirmed', None, 0.95, 10),
    Target('consume', 2.5, 1.1, 12),
    Target('rpc-in-turn', 1.6, 0.75, 70),
    Target('rpc-100-in-flight', 6, 0.8, 18),
)

GROWTH_TARGETS = {'grow-handlers': 0.9, 'grow-processors': 0.9, 'grow-threads': 0.8}
"""The rate at the largest value, as a multiple of that at the smallest, at least."""

BODY_SCENARIOS = ('grow-bodies-publish', 'grow-bodies-consume')
BODY_TARGET = 1.25
"""CPU for a byte at 1 MB, as a multiple of that at 100 kB, at most: copying is linear, a quadratic buffer is not."""

IDLE_TARGET = 0.5  # per cent of a core
IMPORT_TARGET = 20.0  # milliseconds


def body_of(options: Mapping[str, Any]) -> bytes:
    """The message that the harness loads a queue with, and that programs in C send as it is."""
    category = 'rpc' if options['role'] == 'call' else 'message'
    return common.encode(common.envelope(common.text(options.get('size', 0), category), category))


def reply_of(options: Mapping[str, Any]) -> bytes:
    """The reply that a responder in C sends as it is."""
    return common.encode(common.result(common.text(options.get('size', 0), 'rpc')))
