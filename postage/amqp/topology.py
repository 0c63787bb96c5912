"""What one producer or consumer has declared, so that it can be declared again.

The steps here run on a connection's I/O thread, over its control channel.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from postage import errors
from postage.amqp.channel import ControlChannel, Steps

if TYPE_CHECKING:
    from postage.amqp.connection import Connection

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
        """Declare all of it again. What the broker refuses is logged, and the rest goes on as it is found."""
        yield from self.replay_exchanges(control)
        for queue in list(self.queues.values()):
            yield from _logged(self.replay_queue(control, queue))

    def replay_exchanges(self, control: ControlChannel) -> Steps:
        """Declare the exchanges again, as :meth:`replay` does."""
        for parameters in list(self.exchanges.values()):
            yield from _logged(declare_exchange(control, parameters))

    def replay_queue(self, control: ControlChannel, queue: Queue) -> Steps:
        """Declare one queue again, and bind it.

        The name of an exclusive queue stays refused (405) until the broker has noticed that our old connection is
        gone, which takes up to three heartbeats where that was lost without a word: that is waited out. One that
        somebody else has declared with other flags meanwhile is used as found; an error in the log says so.
        """
        patience = Patience(control.connection, 3 * control.connection.heartbeat + 5)
        while True:
            try:
                yield from declare_queue(control, queue)
                break
            except errors.ResourceLocked:
                if not queue.flags.get('exclusive') or patience.is_over:
                    raise
                yield patience.pause()
            except errors.DeclarationMismatch as error:
                logger.error('%s; it is used as found', error)
                break
        for binding in [binding for binding in self.bindings if binding.queue == queue.name]:
            yield from bind(control, binding)

    def queues_reached(self, exchange: str, routing_key: str) -> list[str]:
        """Which of these queues a message reaches, as far as the bindings known here tell."""
        if not exchange:
            return [routing_key] if routing_key in self.queues else []
        kind = self.exchanges.get(exchange, {}).get('exchange_type')
        return list(
            dict.fromkeys(
                binding.queue
                for binding in self.bindings
                if binding.exchange == exchange and _matches(kind, binding.routing_key, routing_key)
            )
        )


def _matches(kind: str | None, binding_key: str, routing_key: str) -> bool:
    """Whether an exchange of that type passes a key on to a binding (AMQP 0-9-1, section 3.1.3)."""
    if kind == 'topic':
        words = (_topic_words.get(word, re.escape(word)) for word in binding_key.split('.'))
        # A '#' stands for any number of words, none included, so the dots beside it belong to it.
        pattern = r'\.'.join(words).replace(r'#\.', r'(?:[^.]*\.)*').replace(r'\.#', r'(?:\.[^.]*)*').replace('#', '.*')
        return re.fullmatch(pattern, routing_key, re.DOTALL) is not None
    return kind == 'fanout' or (kind == 'direct' and binding_key == routing_key)


_topic_words = {'*': '[^.]*', '#': '#'}


def _logged(steps: Steps) -> Steps:
    """Take steps; a refusal is logged, for on a reconnect there is nobody to raise it to."""
    try:
        yield from steps
    except errors.OperationRefused as error:
        logger.error('%s', error)


class Patience:
    """Pauses that grow, up to a limit in seconds."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._until = time.monotonic() + seconds
        self._pause = 0.05

    @property
    def is_over(self) -> bool:
        """Whether it has lasted that long."""
        return time.monotonic() >= self._until

    def pause(self) -> Future[None]:
        """A future that is done after the next pause."""
        self._pause = min(2 * self._pause, 1.0)
        return self._connection.pause(self._pause)


def declare_exchange(control: ControlChannel, parameters: Mapping[str, Any]) -> Steps:
    """Declare an exchange, or with ``passive`` see that it exists.

    :raises errors.DeclarationMismatch: where it exists with another type or flag
    :raises errors.NotFound: where it is passive and does not exist
    """
    doing = f'declare exchange {parameters["exchange"]!r}'
    logger.debug('%s: %s', doing, dict(parameters))
    yield from control.operate_steps('exchange_declare', doing, **parameters)


def declare_queue(control: ControlChannel, queue: Queue) -> Steps:
    """Declare a queue. One that exists with other flags is used as found where only our defaults differ.

    The broker names one differing flag at a time, so this asks again until it agrees.

    :raises errors.DeclarationMismatch: where a flag differs that the user wrote out
    """
    doing = f'declare queue {queue.name!r}'
    logger.debug('%s: %s', doing, queue.flags)
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
    logger.debug('bind queue %r to exchange %r, key %r', binding.queue, binding.exchange, binding.routing_key)
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
    logger.debug('unbind queue %r from exchange %r, key %r', binding.queue, binding.exchange, binding.routing_key)
    yield from control.operate_steps(
        'queue_unbind',
        f'unbind queue {binding.queue!r} from exchange {binding.exchange!r}',
        queue=binding.queue,
        exchange=binding.exchange,
        routing_key=binding.routing_key,
        arguments=binding.arguments,
    )
