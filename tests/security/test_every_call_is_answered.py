"""An RPC is answered while its connection stands, whatever its handler raises, returns or is sent."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from postage import messaging, microthreads
from support.brokers import Broker, RabbitMQ
from support.messaging import EQK, HOSTILE, TIMEOUT, Bench, EchoProducer, Hostile, Processor, command

LIMIT = 200_000  # bytes that the broker allows a message to have in these tests


@pytest.fixture
def small_messages(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The broker takes no message of more than :data:`LIMIT` bytes, as RabbitMQ 4 takes none of more than 16 MiB."""
    with contextlib.ExitStack() as stack:
        if isinstance(broker, RabbitMQ):
            evaluate = broker.node.evaluate
            limit = evaluate('integer_to_list(application:get_env(rabbit, max_message_size, 134217728))')
            evaluate(f'application:set_env(rabbit, max_message_size, {LIMIT}), ""')
            stack.callback(evaluate, f'application:set_env(rabbit, max_message_size, {limit}), ""')
            persistent = '(catch persistent_term:put(max_message_size, {})), ""'
            evaluate(persistent.format(LIMIT))
            stack.callback(evaluate, persistent.format(limit))
        else:
            monkeypatch.setattr(broker.server._shared, 'largest_message', LIMIT)
        yield


class Unsayable(Exception):
    def __str__(self) -> str:
        raise RuntimeError('never')


ERRORS: dict[str, Exception] = {
    'a lone surrogate': ValueError('a\ud800b'),
    'a text that raises': Unsayable(),
    'a filter with a lone surrogate': messaging.FilterError('a\ud800b'),
    'a rejection whose argument has no text': messaging.RejectMessage(Unsayable()),
    'an exit with arguments': KeyError(object()),
}


def answering(handler: Any) -> Processor:
    class Answering(Processor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: dict[str, Any], reply_func: Any) -> Any:
            return handler(content, reply_func)

    return Answering(EQK)


@pytest.mark.parametrize('error', ERRORS.values(), ids=ERRORS)
def test_whatever_its_handler_raises_a_call_is_answered(bench: Bench, error: Exception) -> None:
    def handler(content: Any, reply_func: Any) -> None:
        raise error

    bench.run(answering(handler))
    reply = bench.producer().rpc_echo()
    assert isinstance(reply, (messaging.MessageResultError, messaging.MessageResultException))
    assert 'TimeoutError' not in str(reply)


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError('never')


class OfNoName(Exception, metaclass=Nameless):
    pass


class OfNoAttributes(Exception):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError('never')


class OfNoRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError('never')


HOSTILE_ERRORS: dict[str, Callable[[], BaseException]] = {
    'a class of no name': OfNoName,
    'no attribute can be had': OfNoAttributes,
    'no repr': lambda: OfNoRepr(OfNoRepr()),
    'a group of these': lambda: ValueError(Unsayable(), OfNoAttributes()),
    'a name of 100,000 letters': lambda: type('N' * 100_000, (Exception,), {})('x' * 1_000_000),
    'a task of its own was cancelled': asyncio.CancelledError,
}


def of_colour(colour: str) -> Processor:
    """A processor whose ``echo``, a handler of that colour, raises what it is asked for."""

    def plain(self: Any, content: Any, reply_func: Any) -> Any:
        if content['parameters'] == 'good':
            return 'good'
        raise HOSTILE_ERRORS[content['parameters']]()

    def generator(self: Any, content: Any, reply_func: Any) -> Any:
        yield
        return plain(self, content, reply_func)

    async def coroutine(self: Any, content: Any, reply_func: Any) -> Any:
        return plain(self, content, reply_func)

    made: Any = {'generator': generator, 'coroutine': coroutine}.get(colour, plain)
    handler = messaging.RpcHandler('command', 'echo')(made)
    if colour == 'threaded':
        handler = messaging.Threaded(handler)
    return type('OfColour', (Processor,), {'rpc_echo': handler})(EQK)  # type: ignore[no-any-return]


@pytest.mark.parametrize('colour', ['plain', 'generator', 'coroutine', 'threaded'])
def test_whatever_is_raised_in_whatever_handler_its_caller_is_told_and_the_next_one_answered(
    bench: Bench, colour: str
) -> None:
    bench.run(of_colour(colour))
    producer = bench.producer()
    for name in HOSTILE_ERRORS:
        told = producer.rpc_echo(name)
        assert isinstance(told, messaging.MessageResultException), name
        assert 'TimeoutError' not in str(told), name
        assert producer.rpc_echo('good').body['content']['value'] == 'good', name
    assert all(len(line) < 200_000 for line in bench.log.lines)


def test_a_coroutine_that_exits_ends_the_loop_as_any_handler_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HOSTILE_ERRORS, 'exit', lambda: SystemExit(3))
    processor = of_colour('coroutine')
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(processor)
    bench.producer().rpc_future_echo('exit')
    try:
        with pytest.raises(SystemExit):
            for _ in scheduler.main():
                pass
    finally:
        processor.close()


VALUES: dict[str, Any] = {
    'an object': object(),
    'not a number': float('nan'),
    'a lone surrogate': 'a\ud800b',
    'a result of a lone surrogate': messaging.MessageResult('\ud800'),
}


@pytest.mark.parametrize('way', ['returned', 'replied'])
@pytest.mark.parametrize('value', VALUES.values(), ids=VALUES)
def test_a_reply_that_cannot_be_encoded_is_told_as_an_exception(bench: Bench, value: Any, way: str) -> None:
    bench.run(answering(lambda content, reply_func: reply_func(value) if way == 'replied' else value))
    reply = bench.producer().rpc_echo()
    assert isinstance(reply, messaging.MessageResultException)
    assert reply.body['content']['value'] == 'EncodingError'


@pytest.mark.usefixtures('small_messages')
@pytest.mark.parametrize('way', ['in the handler', 'in a thread', 'as an exception'])
def test_a_reply_over_the_brokers_limit_is_told_as_an_error(bench: Bench, way: str) -> None:
    text = 'x' * (LIMIT + 1)
    threads = []

    def handler(content: Any, reply_func: Any) -> None:
        if content['parameters'] == 'small':
            reply_func('small')
        elif way == 'as an exception':
            raise ValueError(text)
        elif way == 'in the handler':
            reply_func(text)
        else:
            threads.append(threading.Thread(target=lambda: (returned.wait(TIMEOUT), reply_func(text))))
            threads[0].start()

    returned = threading.Event()
    bench.run(answering(handler))
    producer = bench.producer()
    future = producer.rpc_future_echo('large')
    assert producer.rpc_echo('small').body['content']['value'] == 'small'
    returned.set()
    reply = future.result(TIMEOUT)
    assert isinstance(reply, messaging.MessageResultError)
    assert 'the reply could not be sent: the broker refused' in reply.body['content']['message']
    assert producer.rpc_echo('small').body['content']['value'] == 'small'
    for thread in threads:
        thread.join()


@pytest.mark.parametrize('headers', HOSTILE.values(), ids=HOSTILE)
def test_a_request_whose_headers_cannot_be_decoded_is_answered(bench: Bench, headers: Hostile) -> None:
    bench.run(answering(lambda content, reply_func: reply_func(1)))
    answers = bench.bare.queue_declare('', exclusive=True).method.queue
    bench.publish_hostile(headers, body=command(category='rpc'), reply_to=answers, correlation_id='mine')
    got = bench.await_message(answers)
    assert 'the request cannot be understood' in got.body['content']['message']
    assert got.properties.correlation_id == 'mine'
    assert bench.producer(EchoProducer).rpc_echo().body['content']['value'] == 1
