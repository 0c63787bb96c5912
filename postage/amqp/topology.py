"""What one producer or consumer has declared, so that it can be declared again.

The steps here run on a connection's I/O thread, over its control channel.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from postage import errors
from postage.amqp.channel import ControlChannel, Steps

logger = logging.getLogger('postage')

QUEUE_FLAGS = ('durable', 'exclusive', 'auto_delete', 'arguments', 'passive')


@dataclass
class Queue:
    """A queue as it was asked for, and as it was found.

    :ivar flags: what ``queue_declare`` is told
    :ivar spelled: those of them that the user wrote out; only the others may differ from what is found
    """

    name: str
    flags: dict[str, Any]
    spelled: frozenset[str] = frozenset()


@dataclass
class Binding:
    """A queue bound to an exchange with a routing key."""

    queue: str
    exchange: str
    routing_key: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Topology:
    """The exchanges, queues and bindings of one producer or consumer, in the order of their declaration."""

    exchanges: dict[str, dict[str, Any]] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)

    def replay(self, control: ControlChannel) -> Steps:
        """Declare all of it again."""
        yield from self.replay_exchanges(control)
        for queue in list(self.queues.values()):
            yield from self.replay_queue(control, queue)

    def replay_exchanges(self, control: ControlChannel) -> Steps:
        """Declare the exchanges again."""
        for parameters in list(self.exchanges.values()):
            yield from declare_exchange(control, parameters)

    def replay_queue(self, control: ControlChannel, queue: Queue) -> Steps:
        """Declare one queue again, and bind it."""
        yield from declare_queue(control, queue)
        for binding in [binding for binding in self.bindings if binding.queue == queue.name]:
            yield from bind(control, binding)


def declare_exchange(control: ControlChannel, parameters: Mapping[str, Any]) -> Steps:
    """Declare an exchange, or with ``passive`` see that it exists.

    :raises errors.DeclarationMismatch: where it exists with another type or flag
    :raises errors.NotFound: where it is passive and does not exist
    """
    doing = f'declare exchange {parameters["exchange"]!r}'
    yield from control.operate_steps('exchange_declare', doing, **parameters)


def declare_queue(control: ControlChannel, queue: Queue) -> Steps:
    """Declare a queue. One that exists with other flags is used as found where only our defaults differ.

    The broker names one differing flag at a time, so this asks again until it agrees.

    :raises errors.DeclarationMismatch: where a flag differs that the user wrote out
    """
    doing = f'declare queue {queue.name!r}'
    adopted: set[str] = set()
    while True:
        try:
            return (yield from control.operate_steps('queue_declare', doing, queue=queue.name, **queue.flags))
        except errors.DeclarationMismatch as difference:
            flag = difference.field or ''
            if flag in queue.spelled or flag in adopted:
                raise
            if not _adopt(queue, flag, difference.found or ''):
                return (yield from control.operate_steps('queue_declare', doing, queue=queue.name, passive=True))
            adopted.add(flag)
            logger.warning(
                'queue %r exists with %s %s, where the default is %s; it is used as found',
                queue.name,
                flag,
                difference.found,
                difference.wanted,
            )


def _adopt(queue: Queue, flag: str, found: str) -> bool:
    """Take over the value that a queue exists with; ``False`` where the broker's words do not tell it."""
    if flag in ('durable', 'auto_delete', 'exclusive') and found.strip("'") in ('true', 'false'):
        queue.flags[flag] = found.strip("'") == 'true'
        return True
    argument = _typed_value.search(found)
    if argument is None:
        return False
    value, kind = argument.groups()
    queue.flags['arguments'] = {**(queue.flags.get('arguments') or {}), flag: _argument_value(value, kind)}
    return True


_typed_value = re.compile(r"the value '(.*)' of type '(\w+)'", re.DOTALL)


def _argument_value(text: str, kind: str) -> Any:
    """A queue argument out of the broker's description of it."""
    if kind == 'bool':
        return text == 'true'
    return text if kind == 'longstr' else int(text)


def bind(control: ControlChannel, binding: Binding) -> Steps:
    """Bind a queue to an exchange."""
    yield from control.operate_steps(
        'queue_bind',
        f'bind queue {binding.queue!r} to exchange {binding.exchange!r}',
        queue=binding.queue,
        exchange=binding.exchange,
        routing_key=binding.routing_key,
        arguments=binding.arguments,
    )


def unbind(control: ControlChannel, binding: Binding) -> Steps:
    """Undo :func:`bind`."""
    yield from control.operate_steps(
        'queue_unbind',
        f'unbind queue {binding.queue!r} from exchange {binding.exchange!r}',
        queue=binding.queue,
        exchange=binding.exchange,
        routing_key=binding.routing_key,
        arguments=binding.arguments,
    )
