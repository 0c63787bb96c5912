"""What a program declares, learnt without a broker: its components are made, and what they would declare is noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from postage.amqp.recording import Operation, RecordingConnection, recording
from postage.amqp.topology import Binding, Queue
from postage.cli.components import components_of, present_directory
from postage.dead_letters.queue import QueueDeadLetters
from postage.messaging import MessageProcessor
from postage.messaging.connected import Connected
from postage.messaging.delays import delay_queue
from postage.messaging.handlers import Entry, HandlerTable
from postage.messaging.outcomes import Pause
from postage.settings import BrokerSettings

COMPONENTS = (MessageProcessor, Connected)
WHAT = 'processor, consumer or producer'


@dataclass(frozen=True)
class Handling:
    """One handler, and a queue that its messages may come from."""

    handler: Entry
    queue: Queue


@dataclass
class Program:
    """What a program declares on one broker, and does there.

    :ivar exchanges: the arguments of ``exchange_declare``, by name
    :ivar queues: by name
    :ivar published: names of the exchanges that it publishes to
    :ivar consumed: names of the queues that it consumes from
    :ivar handlings: what handles their messages
    :ivar answers: whether it answers RPC requests
    :ivar uses_global_prefetch: whether it asks for a prefetch count that consumers share
    """

    settings: BrokerSettings
    exchanges: dict[str, dict[str, Any]] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    consumed: list[str] = field(default_factory=list)
    handlings: list[Handling] = field(default_factory=list)
    answers: bool = False
    uses_global_prefetch: bool = False

    def __str__(self) -> str:
        named = ((self.exchanges, 'exchange'), (self.queues, 'queue'), (self.bindings, 'binding'))
        return ', '.join(counted(len(known), name) for known, name in named)


def programs_of(targets: Sequence[str], settings: BrokerSettings | None) -> list[Program]:
    """What components declare, for each broker that their settings lead to.

    :param targets: ``MODULE:NAME`` of each
    :param settings: the broker to take for all of them, in place of their own
    :raises errors.ConfigurationError: a component cannot be imported or made
    """
    with present_directory(), recording() as connections:
        components = [component for target in targets for component in components_of(target, COMPONENTS, WHAT)]
        programs: dict[BrokerSettings, Program] = {}

        def program_of(own: BrokerSettings) -> Program:
            return programs.setdefault(settings or own, Program(settings or own))

        for component in components:
            if isinstance(component, MessageProcessor):
                _note_processor(program_of(component.consumer.conn_broker.settings), component)
        for connection in connections:
            _note_connection(program_of(connection.settings), connection)
    return list(programs.values())


def counted(number: int, name: str) -> str:
    """So many things, in words."""
    return f'{number} {name}' if number == 1 else f'{number} {name}s'


# What they declare


def _note_processor(program: Program, processor: MessageProcessor) -> None:
    table = HandlerTable(processor)
    queues = list(processor.consumer.topology.queues.values())
    program.answers |= table.answers
    program.handlings += [Handling(handler, queue) for handler in table.entries for queue in queues]
    for handling in program.handlings:
        for retry in handling.handler.retries if not handling.queue.flags.get('exclusive') else ():
            for delay in retry.delays:
                waiting = delay_queue(handling.queue, handling.queue.name, Pause(delay, 0))
                program.queues.setdefault(waiting.name, waiting)
    if isinstance(processor.dead_letters, QueueDeadLetters):
        processor.dead_letters.count()  # which declares it


def _note_connection(program: Program, connection: RecordingConnection) -> None:
    for topology in connection.recorded:
        for name, parameters in topology.exchanges.items():
            if program.exchanges.get(name, parameters).get('passive'):  # what is also declared need not be there before
                program.exchanges.pop(name, None)
            program.exchanges.setdefault(name, parameters)
        for name, queue in topology.queues.items():
            if program.queues.get(name, queue).flags.get('passive'):
                program.queues.pop(name, None)
            program.queues.setdefault(name, queue)
        program.bindings += [binding for binding in topology.bindings if binding not in program.bindings]
        names = program.published if connection.role == 'publishing' else program.consumed
        for name in topology.exchanges if connection.role == 'publishing' else topology.queues:
            if name not in names:
                names.append(name)
    for operation in connection.operations:
        _note_operation(program, operation)


def _note_operation(program: Program, operation: Operation) -> None:
    """What was declared by pika's methods, and so stands in no topology."""
    given = dict(operation.arguments)
    if operation.method == 'exchange_declare':
        program.exchanges.setdefault(given['exchange'], {'exchange_type': 'direct', **given})
    elif operation.method == 'queue_declare':
        name = given.pop('queue', '')
        spelled = frozenset(given) | frozenset(given.get('arguments') or ())
        if name:
            program.queues.setdefault(name, Queue(name, given, spelled))
    elif operation.method == 'queue_bind':
        binding = Binding(
            given['queue'], given['exchange'], given.get('routing_key') or '', given.get('arguments') or {}
        )
        if binding not in program.bindings:
            program.bindings.append(binding)
    elif operation.method == 'basic_qos' and given.get('global_qos'):
        program.uses_global_prefetch = True
