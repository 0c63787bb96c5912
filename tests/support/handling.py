"""Handlers of every kind, and a stage on which one of them meets a message."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from postage import messaging, microthreads
from support.messaging import GUARDED_EQK, TIMEOUT, Bench, Processor

Act = Callable[..., Any]
"""What a handler does: ``act(processor, data, reply_func)``. ``reply_func`` is ``None`` for messages."""


@dataclass(frozen=True)
class Kind:
    """A kind of handler.

    :ivar colour: ``plain``, ``generator``, ``coroutine`` or ``threaded``
    :ivar is_class: a class derived from ``messaging.Handler``, not a function
    :ivar is_rpc: it takes RPC requests, not messages
    """

    colour: str
    is_class: bool
    is_rpc: bool

    def __str__(self) -> str:
        return f'{self.colour} {"class" if self.is_class else "function"} for {"rpc" if self.is_rpc else "messages"}'

    def handler(self, act: Act) -> Any:
        """A handler of this kind that does something; those that can give up control once before that."""
        return self._shape(_WORKING[self.colour], act)

    def waiting_handler(self) -> Any:
        """A handler that notes ``begun``, waits for ever, and notes ``closed`` when it is closed."""
        return self._shape(_WAITING[self.colour], _nothing)

    def decorator(self, name: str = 'work') -> Any:
        """What makes a handler of this kind one for commands of that name."""
        return (messaging.RpcHandler if self.is_rpc else messaging.MessageHandler)('command', name)

    def _shape(self, colour: Callable[..., Any], act: Act) -> Any:
        handler = colour(_from_class if self.is_class else _from_function, act)
        if self.is_class:
            handler = type('Work', (messaging.Handler,), {'call': handler})
        return messaging.Threaded(handler) if self.colour == 'threaded' else handler


def _nothing(*_: Any) -> None:
    """Do nothing."""


def _from_function(processor: Any, data: Any, reply_func: Any = None) -> tuple[Any, Any, Any]:
    return processor, data, reply_func


def _from_class(handler: messaging.Handler) -> tuple[Any, Any, Any]:
    return handler.processor, handler.data, handler.reply_func


def _plain(take: Callable[..., Any], act: Act) -> Any:
    def handler(*arguments: Any) -> Any:
        return act(*take(*arguments))

    return handler


def _generator(take: Callable[..., Any], act: Act) -> Any:
    def handler(*arguments: Any) -> Any:
        yield microthreads.sleep(0.001)
        return act(*take(*arguments))

    return handler


def _coroutine(take: Callable[..., Any], act: Act) -> Any:
    async def handler(*arguments: Any) -> Any:
        await asyncio.sleep(0.001)
        return act(*take(*arguments))

    return handler


def _waiting_generator(take: Callable[..., Any], _act: Act) -> Any:
    def handler(*arguments: Any) -> Any:
        processor = take(*arguments)[0]
        processor.seen.put('begun')
        try:
            yield Future()
        finally:
            processor.seen.put('closed')

    return handler


def _waiting_coroutine(take: Callable[..., Any], _act: Act) -> Any:
    async def handler(*arguments: Any) -> Any:
        processor = take(*arguments)[0]
        processor.seen.put('begun')
        try:
            await asyncio.Event().wait()
        finally:
            processor.seen.put('closed')

    return handler


_WORKING = {'plain': _plain, 'generator': _generator, 'coroutine': _coroutine, 'threaded': _plain}
_WAITING = {'generator': _waiting_generator, 'coroutine': _waiting_coroutine}

KINDS = [Kind(*kind) for kind in itertools.product(_WORKING, (False, True), (False, True))]
RPC_KINDS = [kind for kind in KINDS if kind.is_rpc]
STOPPABLE_KINDS = [kind for kind in KINDS if kind.colour in _WAITING]
UNSTOPPABLE_KINDS = [kind for kind in KINDS if kind not in STOPPABLE_KINDS]
COLOURS = [kind for kind in KINDS if not kind.is_class and not kind.is_rpc]

of_every_colour = pytest.mark.parametrize('kind', COLOURS, ids=lambda kind: kind.colour)


class Worker(Processor):
    """A processor whose queue dead-letters, with a call that is answered once all before it is settled."""

    def __init__(self, eqk: Any = GUARDED_EQK) -> None:
        super().__init__(eqk)

    @messaging.RpcHandler('command', 'marker')
    def rpc_marker(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        reply_func('reached')


class Stage:
    """One kind of handler in a processor that runs, and what becomes of the message sent to it.

    The processor handles one message after the other, from a queue that dead-letters what is rejected.

    :param handler: the handler for the command ``work``
    :param decorators: what decorates it, uppermost first, :meth:`Kind.decorator` aside
    :param attributes: class attributes of the processor
    """

    def __init__(self, bench: Bench, kind: Kind, handler: Any, *decorators: Any, **attributes: Any) -> None:
        for decorate in reversed(decorators):
            handler = decorate(handler)
        bench.dead()
        worker = type('TheWorker', (Worker,), {'work': kind.decorator()(handler), **attributes})
        self._bench = bench
        self._kind = kind
        self.processor = worker()
        self.seen = self.processor.seen
        self.running = bench.run(self.processor)
        self._producer = bench.producer()
        self._answer: Future[Any] | None = None

    def send(self, parameters: Any = 'parameters') -> None:
        """Send it a message, or an RPC request."""
        if self._kind.is_rpc:
            self._answer = self._producer.rpc_future_work(parameters)
        else:
            self._producer.message_work(parameters)

    def answer(self) -> Any:
        """Wait for the content of the answer to what was sent last."""
        assert self._answer is not None
        return self._answer.result(TIMEOUT).body['content']

    def is_answered(self) -> bool:
        """Whether what was sent last has its answer by now."""
        return self._answer is not None and self._answer.done()

    def goes_on(self) -> bool:
        """Whether the processor handles what comes next; all that was sent before is settled then."""
        return bool(self._producer.rpc_marker())

    def expect_acknowledged(self) -> None:
        """What was sent is gone: not in its queue, nor with the dead letters, once the processor has stopped."""
        self.running.stop()
        left = {queue: number for queue, number in self._bench.broker.queues().items() if number}
        assert not left.keys() & {'echo-queue', 'dead'}, left

    def expect_rejected(self) -> None:
        """What was sent is dead-lettered, once."""
        self._bench.await_message('dead')
        self.expect_acknowledged()

    def expect_handed_back(self) -> None:
        """What was sent is in its queue again."""
        assert self._bench.await_message('echo-queue').method.redelivered
        self.expect_acknowledged()
