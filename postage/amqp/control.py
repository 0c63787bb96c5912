"""Declaring: the control channel of a connection, what is declared over it, and blocking access to channels.

A refusal closes the channel that it happens on (AMQP 0-9-1, section 4.7), and many threads share one control channel.
So an operation that was refused fails alone: those behind it wait, the channel is opened again, and they go on in
their order. Only the loss of the connection reaches them.
"""

from __future__ import annotations

import inspect
import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import pika.channel
import pika.exceptions

from postage import errors
from postage.amqp.channel import WITHOUT_ANSWER, Channel, Host
from postage.amqp.steps import Steps, when_done
from postage.amqp.topology import DELAYED_RETRY, Binding, Queue, Topology
from postage.printable import shown_half_built

logger = logging.getLogger('postage')


class ControlChannel(Channel):
    """The channel on which things are declared. It is opened when there is something to do.

    A refused operation never fails another one that waits behind it.
    """

    def _go_on(self) -> None:
        if self.is_open:
            self._next_operation()
        elif self._being_opened is None:
            when_done(self.ensure_open_steps(), self._on_opened)

    def _on_opened(self, error: BaseException | None) -> None:
        if error is None:
            self._next_operation()
            return
        waiting = list(self._operations)
        self._operations.clear()
        for operation in waiting:
            if operation.set_running_or_notify_cancel():
                operation.set_exception(error)

    def _fail_operations(self, reason: BaseException) -> None:
        if not isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            super()._fail_operations(reason)
            return
        waiting, self._operations = self._operations, type(self._operations)()
        super()._fail_operations(reason)  # the one that was refused; what its failure adds comes behind
        self._operations.extendleft(reversed(waiting))

    def _on_lost(self, error: errors.BrokerError) -> None:
        if self._operations and isinstance(error, errors.OperationRefused):
            self._go_on()

    def _reopen(self) -> None:
        """With the next operation: see :meth:`_go_on`."""


# Declaring, on the I/O thread


def declare_exchange(control: Channel, parameters: Mapping[str, Any]) -> Steps:
    """Declare an exchange, or with ``passive`` see that it exists.

    :raises errors.DeclarationMismatch: where it exists with another type or flag
    :raises errors.NotFound: where it is passive and does not exist
    """
    doing = f'declare exchange {parameters["exchange"]!r}'
    yield control.operate('exchange_declare', doing, **parameters)
    logger.debug('%s: %s', doing, dict(parameters))


def declare_queue(control: Channel, queue: Queue) -> Steps:
    """Declare a queue. One that exists with other flags is used as found where only our defaults differ.

    The broker names one differing flag at a time, so this asks again until it agrees.

    :raises errors.DeclarationMismatch: where a flag differs that the user wrote out
    """
    doing = f'declare queue {queue.name!r}'
    adopted: set[str] = set()
    while True:
        try:
            answer = yield control.operate('queue_declare', doing, queue=queue.name, **queue.flags)
            logger.debug('%s: %s', doing, queue.flags)
            return answer
        except errors.DeclarationMismatch as difference:
            flag = difference.field or ''
            if flag in queue.spelled or flag in adopted:
                raise
            if not _adopt(queue, flag, difference.found or ''):
                return (yield control.operate('queue_declare', doing, queue=queue.name, passive=True))
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
    if found == 'none':
        without = set(DELAYED_RETRY if flag in DELAYED_RETRY else (flag,))
        queue.flags['arguments'] = {name: value for name, value in queue.arguments.items() if name not in without}
        return True
    argument = _described_value.fullmatch(found)
    if argument is None:
        return False
    typed, kind, bare = argument.groups()
    if kind is None:
        kind = 'signedint' if bare.isdecimal() else 'longstr'
    value = _argument_value(bare if typed is None else typed, kind)
    queue.flags['arguments'] = {**queue.arguments, flag: value}
    return True


# RabbitMQ 4 names some values without their type.
_described_value = re.compile(r"(?:.*the value '(.*)' of type '(\w+)'.*|'([^']*)')", re.DOTALL)


def _argument_value(text: str, kind: str) -> Any:
    """A queue argument out of the broker's description of it."""
    if kind == 'bool':
        return text == 'true'
    return text if kind == 'longstr' else int(text)


def bind(control: Channel, binding: Binding) -> Steps:
    """Bind a queue to an exchange."""
    yield _about_binding(control, 'queue_bind', binding, 'bind queue {!r} to exchange {!r}')


def unbind(control: Channel, binding: Binding) -> Steps:
    """Undo :func:`bind`."""
    yield _about_binding(control, 'queue_unbind', binding, 'unbind queue {!r} from exchange {!r}')


def _about_binding(control: Channel, method: str, binding: Binding, doing: str) -> Future[Any]:
    doing = doing.format(binding.queue, binding.exchange)
    logger.debug('%s, key %r', doing, binding.routing_key)
    return control.operate(
        method,
        doing,
        queue=binding.queue,
        exchange=binding.exchange,
        routing_key=binding.routing_key,
        arguments=binding.arguments,
    )


# Declaring again, on the I/O thread


def replay(control: Channel, topology: Topology) -> Steps:
    """Declare all of it again. What the broker refuses is logged, and the rest goes on as it is found."""
    yield from replay_exchanges(control, topology)
    for queue in list(topology.queues.values()):
        yield from logged(replay_queue(control, topology, queue))


def replay_exchanges(control: Channel, topology: Topology) -> Steps:
    """Declare the exchanges again, as :func:`replay` does."""
    for parameters in list(topology.exchanges.values()):
        yield from logged(declare_exchange(control, parameters))


def replay_queue(control: Channel, topology: Topology, queue: Queue) -> Steps:
    """Declare one queue again, and bind it.

    The name of an exclusive queue stays refused (405) until the broker has noticed that our old connection is gone,
    which takes up to three heartbeats where that was lost without a word: that is waited out. One that was declared
    elsewhere with other flags meanwhile is used as found; an error in the log says so.
    """
    if queue.position is not None:
        try:
            yield control.operate('queue_declare', f'find stream {queue.name!r}', queue=queue.name, passive=True)
        except errors.NotFound:
            queue.position.start_over()
    patience = Patience(control.host, 3 * control.host.heartbeat + 5)
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
    for binding in [binding for binding in topology.bindings if binding.queue == queue.name]:
        yield from bind(control, binding)


def logged(steps: Steps) -> Steps:
    """Take steps; a refusal is logged, for on a reconnect there is no caller to raise it to."""
    try:
        yield from steps
    except errors.OperationRefused as error:
        logger.error('%s', error)


class Patience:
    """Pauses that grow, up to a limit in seconds."""

    def __init__(self, host: Host, seconds: float) -> None:
        self._host = host
        self._until = time.monotonic() + seconds
        self._pause = 0.05

    @property
    def is_over(self) -> bool:
        """Whether it has lasted that long."""
        return time.monotonic() >= self._until

    def pause(self) -> Future[None]:
        """A future that is done after the next pause."""
        self._pause = min(2 * self._pause, 1.0)
        return self._host.io.pause(self._pause)


# Blocking access, from any thread

WITH_ANSWER = frozenset(
    (
        *('basic_cancel', 'basic_get', 'basic_qos', 'basic_recover', 'flow'),
        *('exchange_bind', 'exchange_declare', 'exchange_delete', 'exchange_unbind'),
        *('queue_bind', 'queue_declare', 'queue_delete', 'queue_purge', 'queue_unbind'),
        *('tx_commit', 'tx_rollback', 'tx_select'),
    )
)
_OF_ONE_GENERATION = frozenset({'basic_ack', 'basic_nack', 'basic_reject', 'tx_commit', 'tx_rollback'})
"""What is about deliveries or publishes of the channel as it was when it was called for, and of no later one."""


class BlockingAccess:
    """pika's channel methods for what Postage does not wrap, as ``producer.channel`` and ``consumer.channel``.

    Method names, arguments and results are those of pika's ``BlockingChannel``; ``basic_get`` gives
    ``(method, properties, body)``. Each call blocks until the broker has answered, and may come from any thread. A
    refusal is an :class:`postage.errors.OperationRefused` with ``reply_code`` and ``reply_text``; the broker closes
    the channel then, and it is opened again. A call that raises because its time is over, 60 seconds, is not carried
    out later, unless it was sent already and the broker answers nothing: then the error says so.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def channel_number(self) -> int:
        """The number of the AMQP channel on its present connection."""
        return self._channel.number

    @property
    def is_open(self) -> bool:
        """Whether the channel is open at the moment. One that is not will be, with its connection."""
        return self._channel.is_open

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in WITH_ANSWER and name not in WITHOUT_ANSWER:
            available = ', '.join(sorted(WITH_ANSWER | WITHOUT_ANSWER))
            raise AttributeError(f'a channel of Postage has no {name!r}; it has {available}')

        def operation(*args: Any, **kwds: Any) -> Any:
            bound = dict(zip(_parameters_of(name), args, strict=False)) | kwds
            generation = self._channel.generation
            return self._channel.host.ask(lambda: self._steps(name, bound, generation))

        operation.__name__ = name
        return operation

    def _steps(self, name: str, arguments: dict[str, Any], generation: int) -> Steps:
        channel = self._channel
        about = generation if name in _OF_ONE_GENERATION else None
        if isinstance(channel, ControlChannel):
            return (yield channel.operate(name, generation=about, **arguments))
        while True:
            if not channel.is_wanted:
                raise errors.Closed(f'cannot {name}: this channel has been closed')
            yield from channel.ensure_open_steps()
            try:
                return (yield channel.operate(name, generation=about, **arguments))
            except errors.ChannelLost:
                if about is not None:
                    raise

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} to channel {self.channel_number} of {self._channel.host}>'


def _parameters_of(method: str) -> list[str]:
    """Names of a pika channel method's parameters, for arguments given by position."""
    parameters = list(inspect.signature(getattr(pika.channel.Channel, method)).parameters)
    return [name for name in parameters if name not in ('self', 'callback')]
