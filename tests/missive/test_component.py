"""A ``MessageProcessor`` on transports that are no broker of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from missive.conftest import RedisServer, Run
from postage import errors, messaging, microthreads, missive
from postage.generic_application import GenericApplication
from postage.messaging.local_client import LocalClient
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from postage.missive.adapters.redis import RedisPubSubAdapter
from postage.missive.adapters.stdin import StdinAdapter
from postage.missive.adapters.wsgi import WSGIAdapter
from support.messaging import Bench, EchoExchange, Seen
from support.programs import Program

FINGERPRINT = messaging.Fingerprint('echo', 'test').as_dict()
EQK = [(EchoExchange, [('echo-queue', 'echo-rk')])]


class Echo(messaging.MessageProcessor):
    """Does what it is told, in every colour."""

    def __init__(self, fingerprint: Any = None, seen: Seen | None = None) -> None:
        self.seen = Seen() if seen is None else seen
        super().__init__(fingerprint, EQK)

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        self.seen.put(content['parameters'])

    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        reply_func(messaging.MessageResult(content['parameters']))

    @messaging.RpcHandler('command', 'generator')
    def rpc_generator(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> Any:
        yield microthreads.sleep(0.01)
        reply_func('from a generator')

    @messaging.RpcHandler('command', 'coroutine')
    async def rpc_coroutine(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> str:
        await asyncio.sleep(0.01)
        return 'from a coroutine'

    @messaging.RpcHandler('command', 'threaded')
    @messaging.Threaded
    def rpc_threaded(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> str:
        return 'from a thread'

    @messaging.RpcHandler('command', 'later')
    def rpc_later(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        self.add_timeout(0.05, lambda: reply_func('later'))

    @messaging.MessageHandler('command', 'fail')
    def msg_fail(self, content: dict[str, Any]) -> None:
        raise ValueError('no good')

    @messaging.MessageHandler('command', 'reject')
    def msg_reject(self, content: dict[str, Any]) -> None:
        raise messaging.RejectMessage

    @messaging.RpcHandler('command', 'fail')
    def rpc_fail(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        raise ValueError('no good')

    @messaging.MessageHandler('command', 'where')
    def msg_where(self, content: dict[str, Any]) -> None:
        delivery = messaging.current_delivery()
        assert delivery is not None
        self.seen.put((delivery.queue, delivery.exchange, delivery.routing_key, delivery.headers))


def data_of(message: messaging.Message) -> bytes:
    return missive.PostageMessage.of(message).raw_data


def value_of(data: bytes) -> Any:
    return json.loads(data)['content']['value']


# Without a transport


@pytest.fixture
def client() -> Any:
    with LocalClient(Echo, (FINGERPRINT,)) as client:
        yield client


def test_a_message_is_handled_and_acknowledged_at_once(client: LocalClient) -> None:
    message = messaging.MessageCommand('echo', 'hello')
    assert client.send(message) is None
    assert client.processor.seen.get_nowait() == 'hello'  # type: ignore[attr-defined]
    assert client.acked == [message]


@pytest.mark.parametrize('colour', ['generator', 'coroutine', 'later', 'threaded'])
def test_an_rpc_is_answered_whatever_the_colour_of_its_handler(client: LocalClient, colour: str) -> None:
    reply = client.send(messaging.RpcCommand(colour))
    assert reply is not None
    assert colour.removeprefix('thread') in reply.body['content']['value'] or colour == 'threaded'
    assert client.replies == [reply]


def test_a_reply_says_whose_it_is(client: LocalClient) -> None:
    reply = client.send(messaging.RpcCommand('echo', 5))
    assert reply is not None
    assert reply.body['fingerprint'] == FINGERPRINT


@pytest.mark.parametrize('name', ['fail', 'reject'])
def test_a_handler_that_raises_has_its_message_rejected(client: LocalClient, name: str) -> None:
    message = messaging.MessageCommand(name)
    client.send(message)
    assert (client.acked, client.rejected) == ([], [message])


def test_an_rpc_whose_handler_raises_is_answered_with_the_exception(client: LocalClient) -> None:
    reply = client.send(messaging.RpcCommand('fail'))
    expected = messaging_exception('ValueError', 'no good').body
    assert {**reply.body, '_reserved': {}} == expected
    assert reply.responder == FINGERPRINT


def messaging_exception(name: str, text: str) -> messaging.MessageResultException:
    result = messaging.MessageResultException(name, text)
    result.fingerprint(FINGERPRINT)
    return result


def test_an_rpc_that_nobody_handles_is_answered_with_an_error(client: LocalClient) -> None:
    reply = client.send(messaging.RpcCommand('nobody'))
    assert reply is not None
    assert 'nobody' in reply.body['content']['message']


def test_headers_reach_the_handler(client: LocalClient) -> None:
    client.send(messaging.MessageCommand('where'), headers={'a': 1})
    assert client.processor.seen.get_nowait() == ('local', '', '', {'a': 1})  # type: ignore[attr-defined]


@pytest.mark.parametrize('command', ['quit', 'restart'])
def test_a_command_ends_the_processor_and_not_the_test(client: LocalClient, command: Any) -> None:
    message = messaging.MessageCommand(command)
    client.send(message)
    assert (client.acked, client.ended) == ([message], command)
    with pytest.raises(errors.Closed):
        client.send(message)


def test_a_handler_that_takes_too_long_is_given_up(client: LocalClient) -> None:
    class Slow(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'wait')
        def msg_wait(self, content: dict[str, Any]) -> Any:
            yield microthreads.sleep(60)

    with LocalClient(Slow) as slow, pytest.raises(errors.HandlerTimeout):
        slow.send(messaging.MessageCommand('wait'), timeout=0.05)


def test_what_was_not_begun_in_time_is_never_handled() -> None:
    begun, may_end = Seen(), Future[None]()

    class Slow(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'wait')
        def msg_wait(self, content: dict[str, Any]) -> Any:
            begun.put(content['parameters'])
            yield may_end

    with LocalClient(Slow) as slow:
        for parameters in ('slow', 'not begun'):
            with pytest.raises(errors.HandlerTimeout):
                slow.send(messaging.MessageCommand('wait', parameters), timeout=0.05)
        may_end.set_result(None)
        last = messaging.MessageCommand('wait', 'last')
        slow.send(last)
        assert begun.take(begun.qsize()) == ['slow', 'last']
        assert slow.acked == [last]


def test_an_encoder_of_ones_own_is_used() -> None:
    class Backwards(messaging.JsonEncoder):
        def encode(self, data: Any) -> bytes:
            return super().encode(data)[::-1]

        def decode(self, data: bytes) -> Any:
            return super().decode(data[::-1])

    class Consumer(messaging.GenericConsumer):
        encoder_class = Backwards

    class Odd(Echo):
        consumer_class = Consumer

    with LocalClient(Odd) as client:
        reply = client.send(messaging.RpcCommand('echo', 5))
        assert reply is not None
        assert reply.body['content']['value'] == 5


def test_an_application_can_be_tested_and_joins_groups() -> None:
    with LocalClient(GenericApplication, (messaging.Fingerprint('monitor', 'test'),)) as client:
        reply = client.send(messaging.RpcCommand('ping'))
        assert reply is not None
        assert reply.body['content']['value']['name'] == 'monitor'
        client.send(messaging.MessageCommand('join_group', {'group_name': 'odd'}))
        assert client.processor.groups == ['odd']  # type: ignore[attr-defined]
        client.send(messaging.MessageCommand('leave_group', {'group_name': 'odd'}))
        assert client.processor.groups == []  # type: ignore[attr-defined]


class Stubborn(messaging.MessageProcessor):
    """Succeeds at the third attempt."""

    attempts = 0

    @messaging.MessageHandler('command', 'try')
    @messaging.Retry(ValueError, delays=(0.01, 0.01, 0.01))
    def msg_try(self, content: dict[str, Any]) -> None:
        self.attempts += 1
        if self.attempts < 3:
            raise ValueError('not yet')


def test_a_retry_needs_no_broker() -> None:
    with LocalClient(Stubborn) as client:
        message = messaging.MessageCommand('try')
        client.send(message)
        assert (client.acked, client.processor.attempts) == ([message], 3)  # type: ignore[attr-defined]


def test_a_retry_works_under_an_adapter() -> None:
    adapter = WSGIAdapter(missive.PostageMessage, missive.Component(Stubborn))
    response = adapter.app.test_client().post('/', data=data_of(messaging.MessageCommand('try')))
    adapter.close()
    assert response.get_json() == {'result': 'ack'}


# As a processor of Missive


def test_a_component_has_the_test_client_of_a_processor() -> None:
    component = missive.Component(Echo, FINGERPRINT)
    with component.test_client() as client:
        good = missive.PostageMessage.of(messaging.RpcCommand('echo', 5))
        bad = missive.PostageMessage.of(messaging.MessageCommand('fail'))
        client.send(good)
        client.send(bad)
        assert (client.acked, client.nacked, client.rejected) == ([good], [bad], [bad])
        assert [value_of(reply) for reply in client.replies] == [5]
        assert isinstance(client.ctx.state.component, Echo)


def test_what_it_rejects_is_a_dead_letter() -> None:
    component, dlq = missive.Component(Echo), dict[bytes, Any]()
    component.set_dlq(dlq)
    bad = missive.PostageMessage.of(messaging.MessageCommand('fail'))
    unreadable = missive.PostageMessage(b'{')
    with component.test_client() as client:
        client.send(bad)
        client.send(unreadable)
        assert client.acked == [bad, unreadable]
    assert dlq[bad.message_id] == (bad, 'no good')
    assert unreadable.message_id in dlq


def test_hooks_run_around_its_messages() -> None:
    component, told = missive.Component(Echo), list[Any]()
    component.after_handling(lambda ctx, handling: told.append(handling.decision))
    with component.test_client() as client:
        client.send(missive.PostageMessage.of(messaging.MessageCommand('echo')))
    assert told == ['ack']


# Under the adapters


def test_it_runs_over_stdin_and_answers_on_stdout(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: Any) -> None:
    seen = Seen()
    with os.fdopen(os.dup(1), 'w') as stdout:
        monkeypatch.setattr(sys, 'stdout', stdout)
        lines = [data_of(messaging.MessageCommand('echo', 1)), data_of(messaging.RpcCommand('generator'))]
        component = missive.Component(Echo, FINGERPRINT, seen)
        StdinAdapter(missive.PostageMessage, component, io.BytesIO(b'\n'.join(lines))).run()
        monkeypatch.undo()
    assert seen.get_nowait() == 1
    assert value_of(capfdbinary.readouterr().out) == 'from a generator'


def test_a_quit_ends_the_run_of_its_adapter() -> None:
    seen = Seen()
    commands = [
        messaging.MessageCommand('echo', 1),
        messaging.MessageCommand('quit'),
        messaging.MessageCommand('echo', 2),
    ]
    lines = io.BytesIO(b'\n'.join(map(data_of, commands)))
    StdinAdapter(missive.PostageMessage, missive.Component(Echo, None, seen), lines).run()
    assert seen.get_nowait() == 1
    assert seen.empty()
    assert lines.read() == data_of(commands[2])


def test_it_runs_over_redis(redis_server: RedisServer, run: Callable[..., Run]) -> None:
    seen = Seen()
    component = missive.Component(Echo, None, seen)
    run(RedisPubSubAdapter(missive.PostageMessage, component, url_or_conn=redis_server.url))
    redis_server.await_subscriber()
    with redis_server.client() as client:
        client.publish('a', data_of(messaging.MessageCommand('echo', 1)))
    assert seen.next() == 1


@pytest.mark.parametrize('colour', ['echo', 'generator', 'coroutine', 'threaded', 'later'])
def test_an_rpc_over_http_is_answered_in_the_response(colour: str) -> None:
    adapter = WSGIAdapter(missive.PostageMessage, missive.Component(Echo, FINGERPRINT))
    response = adapter.app.test_client().post('/', data=data_of(messaging.RpcCommand(colour)))
    adapter.close()
    assert (response.status_code, response.mimetype) == (200, 'application/json')
    assert response.get_json()['content']['type'] == 'success'


def test_an_rpc_over_http_that_fails_is_answered_with_the_exception() -> None:
    adapter = WSGIAdapter(missive.PostageMessage, missive.Component(Echo, FINGERPRINT))
    response = adapter.app.test_client().post('/', data=data_of(messaging.RpcCommand('fail')))
    adapter.close()
    assert (response.status_code, response.get_json()['content']['value']) == (500, 'ValueError')


def test_an_rpc_over_http_that_is_never_answered_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(messaging.MessageProcessor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: Any, reply_func: Any) -> None: ...

    monkeypatch.setattr(missive.Component, 'rpc_timeout', 0.05)
    adapter = WSGIAdapter(missive.PostageMessage, missive.Component(Silent))
    response = adapter.app.test_client().post('/', data=data_of(messaging.RpcCommand('echo')))
    adapter.close()
    assert response.get_json()['content']['value'] == 'TimeoutError'


def test_messages_over_http_say_what_became_of_them() -> None:
    adapter = WSGIAdapter(missive.PostageMessage, missive.Component(Echo))
    client = adapter.app.test_client()
    assert client.post('/', data=data_of(messaging.MessageCommand('echo'))).get_json() == {'result': 'ack'}
    assert client.post('/', data=data_of(messaging.MessageCommand('fail'))).get_json() == {'result': 'nack'}
    adapter.close()


@pytest.mark.parametrize('colour', ['echo', 'generator', 'coroutine', 'threaded', 'later'])
def test_it_runs_over_rabbitmq_and_answers_rpcs(bench: Bench, run: Callable[..., Run], colour: str) -> None:
    run(RabbitMQAdapter(missive.PostageMessage, missive.Component(Echo, FINGERPRINT), eqk=EQK))
    bench.await_consumed('echo-queue')
    assert getattr(bench.producer(), f'rpc_{colour}')(5)


def test_handlers_see_the_delivery_of_the_broker(bench: Bench, run: Callable[..., Run]) -> None:
    seen = Seen()
    run(RabbitMQAdapter(missive.PostageMessage, missive.Component(Echo, None, seen), eqk=EQK))
    bench.await_consumed('echo-queue')
    bench.producer().message_where(_headers={'a': 1})
    queue, exchange, routing_key, headers = seen.next()
    assert (queue, exchange, routing_key) == ('echo-queue', 'echo-exchange', 'echo-rk')
    assert headers['a'] == 1


def test_what_it_rejects_on_rabbitmq_goes_to_the_dead_letter_exchange(bench: Bench, run: Callable[..., Run]) -> None:
    bench.dead()
    arguments = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}
    eqk = [(EchoExchange, [({'name': 'echo-queue', 'flags': {'arguments': arguments}}, 'echo-rk')])]
    run(RabbitMQAdapter(missive.PostageMessage, missive.Component(Echo), eqk=eqk))
    bench.await_consumed('echo-queue')
    bench.producer().message_fail()
    assert bench.await_message('dead')


def test_a_restart_runs_the_program_again_after_the_acknowledgement(
    bench: Bench, run_program: Callable[..., Program]
) -> None:
    program = run_program(
        """
from postage import messaging, missive
from postage.missive.adapters.rabbitmq import RabbitMQAdapter

class Exchange(messaging.Exchange):
    name = 'echo-exchange'

class Echo(messaging.MessageProcessor):
    pass

component = missive.Component(Echo)
component.before_processing(lambda ctx: print('startup', flush=True))
eqk = [(Exchange, [('echo-queue', 'echo-rk')])]
RabbitMQAdapter(missive.PostageMessage, component, eqk=eqk).run()
print('the end', flush=True)
"""
    )
    program.expect('startup')
    bench.await_consumed('echo-queue')
    producer = bench.producer()
    producer.message_restart()
    program.expect('startup', times=2)
    producer.message_quit()
    assert program.wait() == 0
    assert program.lines == ['startup', 'startup', 'the end']
    assert bench.count('echo-queue') == 0
