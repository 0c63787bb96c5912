"""``postage ps`` and its kin: components are asked, and commanded, over the broker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from postage import messaging
from postage.cli.main import postage as group
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, eventually
from support.programs import Module

LONG = '10'


class Shop(Echo):
    control = True
    version = '3.1'

    def __init__(self, name: str = 'shop', pid: int = 7, eqk: Any = EQK) -> None:
        self.go = threading.Event()
        self.ready = threading.Event()
        super().__init__(eqk, messaging.Fingerprint(name, host='here', pid=pid))

    def start_consuming(self) -> None:
        super().start_consuming()
        self.ready.set()

    @messaging.MessageHandler('command', 'busy')
    def msg_busy(self, content: dict[str, Any]) -> None:
        """Compute until told otherwise."""
        self.seen.put('busy')
        while not self.go.is_set():
            pass

    @messaging.MessageHandler('command', 'fail')
    @messaging.Retry(OSError, delays=[2, 60])
    def msg_fail(self, content: dict[str, Any]) -> None:
        raise LookupError('no such\x1b[31m thing')


@pytest.fixture
def postage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, in this process."""
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '60')
    return lambda *arguments: CliRunner().invoke(group, arguments)


@pytest.fixture
def start(bench: Bench) -> Callable[..., Any]:
    def run(*shops: Any) -> Any:
        running = bench.run(*shops)
        assert all(shop.ready.wait(TIMEOUT) for shop in shops)
        return running

    return run


def finished(result: Result, status: int = 0) -> str:
    assert result.exit_code == status, result.output
    return str(result.output).rstrip('\n')


# ps


def test_ps_shows_who_runs_and_how_they_are(bench: Bench, start: Any, postage: Any) -> None:
    start(Shop())
    producer = bench.producer()
    producer.message_fail()
    assert producer.rpc_echo('hello')
    head, line = finished(postage('ps', '--expect', 'shop', '--timeout', LONG)).splitlines()
    assert head.split() == [
        'name', 'host', 'pid', 'version', 'state', 'uptime', 'in', 'hand', 'rate/s', 'p99', 'last', 'error'
    ]  # fmt: skip
    assert line.split()[:5] == ['shop', 'here', '7', '3.1', 'running']
    assert line.endswith(r'LookupError: no such\x1b[31m thing')


def test_ps_prints_json(start: Any, postage: Any) -> None:
    start(Shop('b', 8), Shop('a', 9, [(EchoExchange, [('other', 'other')])]))
    found = json.loads(finished(postage('ps', '--json', '--expect', '2', '--timeout', LONG)))
    assert [stats['fingerprint']['name'] for stats in found] == ['a', 'b']
    assert found[0]['messages']['handled'] == 0


def test_ps_names_those_that_are_silent(start: Any, postage: Any) -> None:
    start(Shop())
    output = finished(postage('ps', '--expect', 'shop,till,9@there'), 1)
    assert 'no answer from till, 9@there' in output
    assert 'shop  here' in output


def test_ps_of_an_address_shows_those_there(start: Any, postage: Any) -> None:
    start(Shop('b', 8), Shop('a', 9, [(EchoExchange, [('other', 'other')])]))
    output = finished(postage('ps', '9@here', '--timeout', '3'))
    assert output.splitlines()[1].startswith('a ')
    assert len(output.splitlines()) == 2


def test_nobody_there_is_told_at_once(bench: Bench, postage: Any) -> None:
    assert 'no component answers at shop' in finished(postage('ps', 'shop', '--timeout', '60'), 1)


@pytest.mark.parametrize('command', ['ps', 'top', 'describe', 'stacks', 'pause'])
@pytest.mark.parametrize('address', ['a@b#c', '@', '#', 'a@', 'a#', '#a'])
def test_what_is_no_address_is_a_mistake_of_the_caller(bench: Bench, postage: Any, command: str, address: str) -> None:
    output = finished(postage(command, address), 2)
    assert 'an address is name' in output
    assert 'Usage: ' in output


@pytest.mark.parametrize('command', ['ps', 'top', 'describe', 'stacks', 'pause', 'quit'])
def test_an_empty_address_is_not_taken_for_all(start: Any, postage: Any, command: str) -> None:
    shop = Shop()
    start(shop)
    assert 'it is empty' in finished(postage(command, ''), 2)
    assert not shop.is_paused


@pytest.mark.parametrize('command', ['ps', 'describe', 'stacks', 'resume'])
def test_all_of_them_have_a_word(start: Any, postage: Any, command: str) -> None:
    start(Shop('b', 8), Shop('a', 9, [(EchoExchange, [('other', 'other')])]))
    told = json.loads(finished(postage(command, 'all', '--json', '--expect', 'a,b', '--timeout', LONG)))
    assert len(told) == 2


def test_a_broker_that_is_down_is_not_waited_for(run_module: Callable[..., Module]) -> None:
    began = time.monotonic()
    program = run_module('postage.cli', ['ps'], {'POSTAGE_URL': 'amqp://127.0.0.1:1/'})
    assert program.wait() == 1
    assert 'no broker at' in program.output
    assert time.monotonic() - began < 20  # of a loaded machine, where 60 would be the default


def test_ps_has_a_component_whose_handler_computes_for_ever(bench: Bench, start: Any, postage: Any) -> None:
    shop = Shop()
    start(shop)
    bench.producer().message_busy()
    assert shop.seen.next() == 'busy'
    try:
        (stats,) = json.loads(finished(postage('ps', '--json', '--expect', 'shop', '--timeout', LONG)))
        assert stats['messages']['in_hand'] == 1
        assert 'in msg_busy' in finished(postage('stacks', '7@here', '--expect', '1', '--timeout', LONG))
    finally:
        shop.go.set()


@pytest.mark.parametrize('value', [{}, {'messages': []}, 'nothing', None])
def test_an_answer_of_another_shape_is_told_and_the_others_are_shown(
    bench: Bench, start: Any, postage: Any, value: Any
) -> None:
    class Liar(messaging.MessageProcessor):
        eqk = [(messaging.ControlExchange, [('lies', 'all')])]

        @messaging.RpcHandler('command', 'stats')
        def rpc_stats(self, content: Any, reply_func: Any) -> None:
            reply_func(messaging.MessageResult(value))

    start(Shop())
    bench.run(Liar(messaging.Fingerprint('liar', host='here', pid=1), Liar.eqk))
    output = finished(postage('ps', '--expect', '2', '--timeout', LONG), 1)
    assert 'shop' in output
    assert 'liar 1@here: the answer is malformed' in output


# describe and stacks


def test_describe_shows_queues_and_handlers(start: Any, postage: Any) -> None:
    start(Shop())
    output = finished(postage('describe', 'shop', '--expect', '1', '--timeout', LONG))
    assert 'shop 3.1: ' in output
    assert 'echo-queue  echo-exchange:echo-rk' in output
    assert 'Compute until told otherwise.' in output
    assert 'OSError after 2 s, 60 s' in output
    assert 'msg_quit' not in output
    assert 'msg_quit' in finished(postage('describe', 'shop', '--all', '--expect', '1', '--timeout', LONG))


def test_describe_tells_of_those_that_are_alike_once(start: Any, postage: Any) -> None:
    start(Shop('shop', 1), Shop('shop', 2))
    output = finished(postage('describe', 'shop', '--expect', '2', '--timeout', LONG))
    assert output.count('shop 3.1') == 1
    assert '1@here, 2@here' in output


def test_stacks_show_what_microthreads_wait_for(start: Any, postage: Any) -> None:
    start(Shop())
    output = finished(postage('stacks', 'shop', '--expect', '1', '--timeout', LONG))
    assert 'thread scheduler-of-a-test' in output
    assert 'microthread Shop: waiting for a signal' in output


# Commands


def test_pause_and_resume(bench: Bench, start: Any, postage: Any) -> None:
    shop = Shop()
    start(shop)
    output = finished(postage('pause', 'shop', '--expect', 'shop', '--timeout', LONG))
    assert output.splitlines()[1].split() == ['shop', 'here', '7', 'paused', '0']
    assert shop.is_paused
    assert 'paused' in finished(postage('ps', '--expect', '1', '--timeout', LONG))
    (answer,) = json.loads(finished(postage('resume', 'all', '--expect', '1', '--timeout', LONG, '--json')))
    assert answer['answer'] == {'state': 'running', 'in_hand': 0}
    assert not shop.is_paused


@pytest.mark.parametrize('command', ['quit', 'drain'])
def test_a_component_is_ended(start: Any, postage: Any, command: str) -> None:
    running = start(Shop())
    finished(postage(command, 'shop', '--expect', 'shop', '--timeout', LONG))
    running.wait()


def test_a_command_that_is_not_obeyed_is_a_failure(start: Any, postage: Any) -> None:
    shop = type('Deaf', (Shop,), {'remote_commands': False})()
    start(shop)
    assert 'shop 7@here: ' in finished(postage('pause', 'shop', '--expect', 'shop', '--timeout', LONG), 1)
    assert not shop.is_paused


def test_a_command_needs_an_address(bench: Bench, postage: Any) -> None:
    assert 'Missing argument' in finished(postage('quit'), 2)


# call and send


def test_a_call_prints_the_result(start: Any, postage: Any) -> None:
    start(Shop())
    where = ('--exchange', 'echo-exchange', '--timeout', LONG)
    output = finished(postage('call', 'echo-rk', 'echo', 'id=3', 'what=a cake', 'sizes=[1, 2]', *where))
    assert json.loads(output) == {'id': 3, 'what': 'a cake', 'sizes': [1, 2]}
    assert finished(postage('call', 'echo-rk', 'echo', 'a\x1b[31m\ttext', *where)) == 'a\\x1b[31m\ttext'
    found = json.loads(finished(postage('call', 'echo-rk', 'echo', '{"id": 4}', '--json', *where)))
    assert (found['type'], found['value']) == ('success', {'id': 4})


def test_a_call_that_fails_says_why(start: Any, postage: Any) -> None:
    start(Shop())
    where = ('--exchange', 'echo-exchange', '--timeout', LONG)
    assert 'no handler' in finished(postage('call', 'echo-rk', 'nonsense', *where), 1)
    assert 'Unroutable' in finished(postage('call', 'no-key', 'echo', *where), 1)
    assert 'no-such-exchange' in finished(postage('call', 'k', 'echo', '--exchange', 'no-such-exchange'), 1)
    assert 'is no key=value' in finished(postage('call', 'k', 'echo', 'a=1', 'b', '--exchange', 'echo-exchange'), 2)


def test_a_command_is_sent(bench: Bench, start: Any, postage: Any) -> None:
    shop = Shop()
    start(shop)
    assert finished(postage('send', 'echo-rk', 'echo', 'id=5', '--exchange', 'echo-exchange')) == ''
    assert shop.seen.next() == {'id': 5}
    assert 'no-key' in finished(postage('send', 'no-key', 'echo', '--exchange', 'echo-exchange'), 1)


def test_whether_a_command_was_taken_is_printed_as_json(bench: Bench, start: Any, postage: Any) -> None:
    start(Shop())
    sent = json.loads(finished(postage('send', 'echo-rk', 'fail', '--exchange', EchoExchange.name, '--json')))
    assert (sent['confirmed'], sent['error']) == (True, None)
    result = postage('send', 'nobody', 'fail', '--exchange', EchoExchange.name)
    assert finished(result, 1).count('no queue took message') == 1


@pytest.mark.parametrize('names', [',', '0', ''])
def test_nobody_cannot_be_expected(bench: Bench, postage: Any, names: str) -> None:
    assert 'names no component' in finished(postage('ps', '--expect', names), 2)


def test_nothing_of_a_question_is_left_on_the_broker(bench: Bench, start: Any, postage: Any) -> None:
    start(Shop())
    finished(postage('ps', '--expect', '1', '--timeout', LONG))
    eventually(lambda: not [name for name in bench.broker.queues() if name.startswith('postage.rpc')])
