"""No message, no answer and no file takes a command of ``postage`` down, or reaches the terminal as it is."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from postage import errors, messaging
from postage.cli.main import postage as group
from postage.messaging import ControlExchange
from support.messaging import TIMEOUT, Bench, EchoExchange, EchoProducer, eventually

from .corpus import BODIES

ESCAPES = '\x1b[31mred\x07\x9b2J\u202e\r\n\ud800'
OBEYED = set('\x00\x07\x08\x0b\x0c\r\x1b\x7f\x9b\u202e\u2066\u200f\u2028')


def postage(*arguments: Any) -> Result:
    """The command, in this process. It ends with a status, whatever comes, and prints what is fit for a terminal."""
    ran = CliRunner().invoke(group, list(map(str, arguments)))
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exc_info
    assert not OBEYED & set(ran.output)
    return ran


# Messages


class Insisting(EchoProducer):
    mandatory = True


@pytest.mark.parametrize('option', ['--json', '--for=60'])
def test_tail_shows_whatever_passes(bench: Bench, option: str, tmp_path: Path) -> None:
    bench.bare.exchange_declare(**EchoExchange.parameters)
    deep = b'{"type":"t","name":"n","category":"message","fingerprint":{},"content":' + b'[' * 900 + b']' * 900 + b'}'
    bodies = [*BODIES, deep, json.dumps({'type': ESCAPES, 'name': ESCAPES, 'content': ESCAPES}).encode()]
    ran: list[Result] = []
    line = ['tail', EchoExchange.name, 'echo-rk', option, '--count', len(bodies) + 1, '--record', tmp_path / 'file']
    thread = threading.Thread(target=lambda: ran.append(postage(*line)))
    thread.start()
    producer = bench.producer(Insisting)

    def is_taken() -> bool:
        try:
            producer.message_echo('first').wait(TIMEOUT)
        except errors.Unroutable:
            return False
        return True

    eventually(is_taken)
    for body in bodies:
        bench.publish(body, headers={'x': '\x1b\u202e'}, app_id='\x1b', message_id='\x9b')
    thread.join(TIMEOUT)
    assert ran
    assert ran[0].exit_code == 0
    assert len(ran[0].output.splitlines()) == len((tmp_path / 'file').read_text().splitlines()) == len(bodies) + 1
    bench.collect()
    assert postage('replay', tmp_path / 'file').output == f'{len(bodies) + 1} sent\n'


# Files


def line_with(header: Any, **changes: Any) -> str:
    record = {'properties': {'headers': {'h': header}}, 'body': '', 'exchange': '', 'routing_key': 'q', **changes}
    return json.dumps(record)


BROKEN_LINES = {
    'deep': '[' * 100_000,
    'no object': '[5]',
    'escapes': ESCAPES.replace('\r\n\ud800', ''),
    'a decimal': line_with({'$decimal': 'x'}),
    'bytes': line_with({'$bytes': 'ü'}),
    'a time': line_with({'$time': 'x'}),
    'an early time': line_with({'$time': '0001-01-01T00:00:00+00:00'}),
    'a number': line_with({'$float': 'x'}),
    'infinity': line_with(float('inf')),
    'a large number': line_with(10**400),
    'headers as text': line_with(0, properties={'headers': 'x'}),
    'a priority': line_with(0, properties={'priority': 'x'}),
    'an unknown property': line_with(0, properties={ESCAPES: 'x'}),
    'a surrogate': line_with(0, body='\ud800'),
    'an exchange': line_with(0, exchange=ESCAPES),
}


def test_replay_says_which_lines_are_no_messages(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / 'file'
    file.write_bytes('\n'.join(BROKEN_LINES.values()).encode() + b'\n\xff\xfe\n')
    ran = postage('replay', file)
    assert ran.exit_code == 1
    assert [line for line in ran.output.splitlines() if len(line) > 500] == []
    assert ran.output.count('\nline ') == len(BROKEN_LINES) + 1


def test_a_letter_with_a_deep_body_is_edited_as_text(tmp_path: Path) -> None:
    from postage.dead_letters import SQLiteDeadLetters
    from support.letters import letter

    new = tmp_path / 'body'
    new.write_text('{"new": 1}')
    with SQLiteDeadLetters(tmp_path / 'letters.db') as store:
        store.put(letter(body=b'[' * 100_000))
    assert postage('dead-letters', 'edit', '--store', tmp_path / 'letters.db', '1', '--body', new).exit_code == 0


# Answers

NAMED = {'name': ESCAPES, 'pid': ESCAPES, 'host': ESCAPES}
LAST = {'exception': ESCAPES, 'message': ESCAPES, 'at': 1}
ANSWER: dict[str, Any] = {
    **dict.fromkeys(('version', 'postage', 'python', 'class', 'dead_letters'), ESCAPES),
    **dict.fromkeys(('timeout', 'max_deliveries')),
    'fingerprint': NAMED,
    'uptime': 2.0,
    'paused': False,
    'messages': {'last_error': LAST, 'in_hand': 1, 'rate': 1.0, 'p99': 0.1, 'handled': 1, 'failed': 1},
    'connections': [],
    'groups': [ESCAPES],
    'handlers': [],
    'concurrency': 1,
    'queues': [{'name': ESCAPES, 'keys': [{'exchange': ESCAPES, 'key': ESCAPES}], 'flags': {}, 'arguments': {}}],
    'threads': [{'thread': ESCAPES, 'stack': [ESCAPES]}],
    'microthreads': [{'microthread': ESCAPES, 'state': ESCAPES, 'waits_for': ESCAPES, 'stack': [ESCAPES]}],
}


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


STRANGE: list[Any] = [None, ESCAPES, 10**400, 1e308, [], {'a': ESCAPES}, deep(300), deep(900)]


def answers() -> Iterator[Any]:
    """As they should be, and with one thing otherwise."""
    yield ANSWER
    yield from STRANGE
    for place, value in enumerate(STRANGE):
        for name in list(ANSWER)[place % 4 :: 4]:
            yield {**ANSWER, name: value}
        for name in list(ANSWER['messages'])[place % 2 :: 2]:
            yield {**ANSWER, 'messages': {**ANSWER['messages'], name: value}}


class Careless:
    """Sends what :class:`messaging.JsonEncoder` refuses."""

    content_type = 'application/json'
    encode = staticmethod(json.dumps)
    decode = staticmethod(json.loads)


class Liar(messaging.GenericConsumer):
    """Answers every question with the same.

    :ivar value: what it answers
    """

    encoder_class = Careless

    def __init__(self) -> None:
        queue = {'name': 'liar', 'flags': {'exclusive': True}}
        super().__init__([(ControlExchange, [(queue, 'all')])])
        self.value: Any = None

    def answer(self, channel: Any, method: Any, header: Any, body: bytes) -> None:
        result = messaging.MessageResult(self.value)
        result.fingerprint(**NAMED)
        result.body['_reserved']['fingerprint'] = NAMED
        self.rpc_reply(header, result)
        self.ack(method)


@pytest.mark.parametrize('line', ['ps', 'ps --json', 'describe all', 'stacks all', 'top --count 1 --interval 0.1'])
def test_whatever_a_component_answers_a_command_ends_with_a_status(bench: Bench, line: str) -> None:
    liar = bench.closing(Liar())
    thread = threading.Thread(target=liar.start_consuming, args=(liar.answer,))
    thread.start()
    name, *arguments = line.split()
    step = 1 if line in ('ps', 'describe all') else 8  # the others show less of them, or are slow
    if name != 'top':
        arguments += ['--expect', '1', '--timeout', '5']
    try:
        for number, value in enumerate(answers()):
            liar.value = value
            if number % step == 0:
                assert postage(name, *arguments).exit_code in (0, 1)
    finally:
        liar.stop_consuming()
        thread.join(TIMEOUT)


def test_a_strange_server_is_no_traceback_of_the_probe() -> None:
    bodies = (b'[]', b'[' * 90_000, b'{"faults": 5}', b'{"faults": ["\\u001b"]}')
    said = [b'HTTP/1.1 200 OK\r\n\r\n' + body for body in bodies]
    said += [b'\x1b[31m\x9b\r\n', b'HTTP/1.1 \x1b[31m OK\r\n\r\n']
    with socket.create_server(('127.0.0.1', 0)) as server:

        def serve() -> None:
            for answer in said:
                with server.accept()[0] as client:
                    client.recv(65536)
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        statuses = [postage('probe', '--status', f'127.0.0.1:{server.getsockname()[1]}').exit_code for _ in said]
        thread.join(TIMEOUT)
    assert statuses == [3, 3, 3, 0, 3, 3]


# Arguments


@pytest.mark.parametrize('line', ['ps --encoder', 'broker --password-file', 'dead-letters list --store'])
@pytest.mark.parametrize('argument', ['../../none', 'x' * 300, 'a\x1b[31m\u202e\nb', '.', ''], ids=ascii)
def test_an_argument_that_is_none_is_told_as_such(line: str, argument: str) -> None:
    ran = postage(*line.split(), argument)
    assert ran.exit_code in (1, 2)
    assert len(ran.output) < 2000
