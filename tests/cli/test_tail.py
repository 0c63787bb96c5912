"""``postage tail`` shows and records what passes, ``postage replay`` sends it again."""

from __future__ import annotations

import json
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from postage import errors, messaging
from postage.cli.main import postage as group
from postage.cli.operate import replay
from support.messaging import TIMEOUT, Bench, EchoExchange, EchoProducer, eventually
from support.programs import Module
from support.proxy import Proxy


@pytest.fixture
def postage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, in this process."""
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '60')
    return lambda *arguments: CliRunner().invoke(group, list(map(str, arguments)))


class Insisting(EchoProducer):
    mandatory = True


class Tail:
    """``postage tail`` in a thread."""

    def __init__(self, bench: Bench, postage: Callable[..., Result], *arguments: Any) -> None:
        self.results: list[Result] = []
        self._thread = threading.Thread(target=lambda: self.results.append(postage('tail', *arguments)))
        self._thread.start()
        self.producer = bench.producer(Insisting)

    def send(self, parameters: Any, key: str = 'echo-rk', **options: Any) -> None:
        """Send a command once it listens for that key; what it is bound to comes to be shown."""

        def is_taken() -> bool:
            try:
                self.producer.message_echo(parameters, _key=key, **options).wait(TIMEOUT)
            except errors.Unroutable:
                assert not self.results, self.results[0].output
                return False
            return True

        eventually(is_taken)

    def output(self, status: int = 0) -> str:
        self._thread.join(TIMEOUT)
        (result,) = self.results
        assert result.exit_code == status, result.output
        return str(result.output)


@pytest.fixture
def exchange(bench: Bench) -> str:
    bench.bare.exchange_declare(**EchoExchange.parameters)
    return EchoExchange.name


def test_what_passes_is_shown(bench: Bench, exchange: str, postage: Any) -> None:
    tail = Tail(bench, postage, exchange, 'echo-rk', 'other', '--count', '3')
    tail.send('first', 'other')  # the last one that it is bound by
    tail.send({'text': 'a\x1b[31m'})
    bench.publish(b'\xff\x00', 'other')
    _, second, third = tail.output().splitlines()
    assert 'echo-rk  command echo  (no name) ' in second
    assert second.endswith(r'{"parameters": {"text": "a\u001b[31m"}}')
    assert third.endswith('other  (bytes)')


def test_what_is_recorded_is_sent_again_as_it_was(bench: Bench, exchange: str, postage: Any, tmp_path: Path) -> None:
    file = tmp_path / 'messages'
    tail = Tail(bench, postage, exchange, 'echo-rk', '--count', '2', '--record', file, '--json')
    tail.send('hello', _headers={'x-number': 3})
    bench.publish(b'\xff\x00', message_id='its own', priority=3)
    lines = tail.output().splitlines()
    assert file.read_text().splitlines() == lines
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(lines[0])['properties']['headers'] == {'x-number': 3}
    queue = bench.collect()
    result = postage('replay', file)
    assert (result.exit_code, result.output) == (0, '2 sent\n')
    first, second = bench.await_message(queue), bench.await_message(queue)
    assert first.parameters == 'hello'
    assert first.properties.headers == {'x-number': 3}
    assert (second.data, second.properties.message_id, second.properties.priority) == (b'\xff\x00', 'its own', 3)


def test_a_message_that_is_sent_again_is_linked_to_its_trace_and_no_part_of_it(
    bench: Bench, exchange: str, postage: Any, tmp_path: Path
) -> None:
    trace, record = f'00-{"ab" * 16}-{"cd" * 8}-01', tmp_path / 'messages.jsonl'
    tail = Tail(bench, postage, exchange, 'echo-rk', '--count', '1', '--record', record)
    tail.send('hello', _headers={'traceparent': trace, 'x-number': 3})
    tail.output()
    queue = bench.collect()
    assert postage('replay', record).exit_code == 0
    assert bench.await_message(queue).properties.headers == {'x-postage-traceparent': trace, 'x-number': 3}


@pytest.mark.parametrize('seconds', [0, 0.2])
def test_it_ends_after_so_many_seconds_and_leaves_no_queue(
    bench: Bench, exchange: str, postage: Any, seconds: float
) -> None:
    assert postage('tail', exchange, 'echo-rk', '--for', seconds).exit_code == 0
    eventually(lambda: not [name for name in bench.broker.queues() if name.startswith('postage-tail')])


def test_an_exchange_that_is_not_there_is_told(bench: Bench, postage: Any) -> None:
    result = postage('tail', 'no-such-exchange')
    assert result.exit_code == 1
    assert 'no-such-exchange' in result.output
    result = postage('tail', '')
    assert result.exit_code == 2
    assert 'the default exchange' in result.output


def test_a_direct_exchange_has_no_key_for_all(bench: Bench, exchange: str, postage: Any) -> None:
    result = postage('tail', exchange)
    assert result.exit_code == 2
    assert "exchange 'echo-exchange' is direct" in result.output
    result = postage('tail', exchange, 'echo.*', 'name#group', '--for', '0.1')
    assert (result.exit_code, result.output.count("by 'echo.*' nothing may come")) == (0, 1)
    result = postage('tail', exchange, 'name#group', '--for', '0.1')
    assert (result.exit_code, result.output) == (0, '')


@pytest.mark.parametrize('kind', ['topic', 'fanout', 'headers'])
@pytest.mark.parametrize('durable', [True, False])
def test_all_messages_of_other_exchanges_are_shown(bench: Bench, postage: Any, kind: str, durable: bool) -> None:
    bench.bare.exchange_declare('every', exchange_type=kind, durable=durable, auto_delete=True)
    tail = Tail(bench, postage, 'every', '--count', '1')
    tail.send('hello', _eks=[(type('Every', (messaging.Exchange,), {'name': 'every', 'passive': True}), 'any.key')])
    assert 'any.key  command echo' in tail.output()


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no device that is always full')
def test_a_record_that_cannot_be_written_is_told(bench: Bench, exchange: str, postage: Any) -> None:
    tail = Tail(bench, postage, exchange, 'echo-rk', '--record', '/dev/full')
    tail.send('hello')
    assert 'No space left on device' in tail.output(1)


def test_what_cannot_be_sent_again_is_told_by_its_line(
    bench: Bench, exchange: str, postage: Any, tmp_path: Path
) -> None:
    file = tmp_path / 'messages'
    good = {'exchange': exchange, 'routing_key': 'echo-rk', 'properties': {}, 'body': '{}'}
    wrong = [
        'no JSON',
        '[]',
        json.dumps({**good, 'routing_key': 'nobody'}),
        json.dumps({**good, 'properties': {'a': 1}}),
    ]
    file.write_text('\n'.join([*wrong, '', json.dumps(good)]))
    queue = bench.collect()
    result = postage('replay', file)
    assert result.exit_code == 1
    assert '1 sent, 4 failed' in result.output
    assert all(f'line {number}: ' in result.output for number in (1, 2, 3, 4))
    assert bench.await_message(queue).data == b'{}'


def test_a_file_that_is_no_text_is_told(bench: Bench, postage: Any, tmp_path: Path) -> None:
    file = tmp_path / 'messages'
    file.write_bytes(b'\xff\xfe{}\n{"exchange": "", "routing_key": "a", "properties": {}, "body": "\xff"}')
    result = postage('replay', file)
    assert result.exit_code == 1
    assert result.output.count('it is no recorded message') == 2, result.output


def test_the_rate_is_that_of_the_messages_whatever_is_between_them(
    bench: Bench, exchange: str, postage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / 'messages'
    line = json.dumps({'exchange': exchange, 'routing_key': 'echo-rk', 'properties': {}, 'body': '{}'})
    file.write_text(f'\n\n\nno JSON\n{line}\n\n' * 3)
    queue = bench.collect()
    pauses: list[float] = []
    monkeypatch.setattr(replay, 'time', SimpleNamespace(monotonic=lambda: 100.0, sleep=pauses.append))
    assert '3 sent, 3 failed' in postage('replay', file, '--rate', '4').output
    assert pauses == [0.0, 0.25, 0.5]
    assert bench.await_message(queue).data == b'{}'


def test_a_broker_that_is_down_is_not_waited_for(run_module: Callable[..., Module], tmp_path: Path) -> None:
    (tmp_path / 'messages').write_text('')
    program = run_module('postage', ['replay', 'messages'], {'POSTAGE_URL': 'amqp://127.0.0.1:1'})
    assert program.wait(20) == 1
    assert 'within 2 s' in program.output


def test_a_broker_that_confirms_nothing_is_given_up(
    bench: Bench, exchange: str, postage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / 'messages'
    line = json.dumps({'exchange': exchange, 'routing_key': 'echo-rk', 'properties': {}, 'body': '{}'})
    file.write_text(f'{line}\n' * 300)
    with Proxy.before(bench.broker) as proxy:
        monkeypatch.setenv('POSTAGE_URL', proxy.url(bench.broker.url))
        bench.producer()  # whose connection it shares
        proxy.swallow()
        began = time.monotonic()
        result = postage('replay', file, '--timeout', '0.5')
        assert time.monotonic() - began < 10
        proxy.cut()
        proxy.resume()
    assert result.exit_code == 1
    assert '0 sent, 200 failed' in result.output
    assert 'line 200: the broker has not confirmed it within 0.5 s' in result.output
    assert result.output.endswith('given up: the broker confirms nothing; the lines that follow were not sent\n')


def test_a_replay_that_is_interrupted_says_what_it_has_sent(
    bench: Bench, exchange: str, tmp_path: Path, run_module: Callable[..., Module]
) -> None:
    queue = bench.collect()
    line = json.dumps({'exchange': exchange, 'routing_key': 'echo-rk', 'properties': {}, 'body': '{}'})
    (tmp_path / 'messages').write_text(f'{line}\n' * 1000)
    program = run_module('postage', ['replay', 'messages', '--rate', '20'])
    eventually(lambda: bench.count(queue) > 2)
    program.send_signal(signal.SIGINT)
    assert program.wait() == 1
    assert int(program.lines[0].removesuffix(' sent')) in range(1, 1000)
    assert program.lines[1:] == ['interrupted: up to 200 messages more may have been sent']


def test_messages_may_be_sent_elsewhere(bench: Bench, exchange: str, postage: Any, tmp_path: Path) -> None:
    file = tmp_path / 'messages'
    file.write_text(json.dumps({'exchange': 'gone', 'routing_key': 'gone', 'properties': {}, 'body': '{}'}))
    queue = bench.collect(key='elsewhere')
    result = postage('replay', file, '--exchange', exchange, '--key', 'elsewhere', '--rate', '1000', '--json')
    assert (result.exit_code, json.loads(result.output)) == (0, {'sent': 1, 'failures': {}})
    assert bench.await_message(queue).data == b'{}'
