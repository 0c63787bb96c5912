"""The examples in the docstrings: each is a program that is run here, amid what it takes for granted, or a drawing."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import signal
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import docutils.core
import docutils.nodes
import pika
import pytest

from postage import messaging, missive
from postage.amqp.steps import Drive
from postage.missive.adapters.for_tests import TestAdapter
from postage.missive.adapters.stdin import StdinAdapter
from postage.missive.shutdown_handler import ShutdownHandler
from postage.testing import Broker, running
from support.messaging import TIMEOUT
from support.pages import ROOT

DRAWINGS = {
    'amqp/link.py Turn',
    'amqp/states.py Standing',
    'broker/connection.py',
    'cli/run/supervisor.py Supervisor',
    'errors.py',
    'messaging/messages.py',
    'messaging/signing.py',
    'microthreads/parking.py',
    'missive/errors.py',
}
"""Trees, states and layouts: what is no program."""

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def docstrings() -> dict[str, str]:
    """Those that may have an example, by file and name."""
    found = {}
    for path in sorted((ROOT / 'postage').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            if text and ('::\n' in f'{text}\n' or '>>>' in text):
                found[f'{path.relative_to(ROOT / "postage")} {getattr(node, "name", "")}'.strip()] = text
    return found


def examples_in(text: str) -> list[str]:
    """The literal blocks of a docstring."""
    tree = docutils.core.publish_doctree(text, settings_overrides={'report_level': 2, 'halt_level': 2})
    return [block.astext() for block in tree.findall(docutils.nodes.literal_block)]


def example(name: str, **surroundings: Any) -> dict[str, Any]:
    """Run the example of a docstring, and return its names."""
    (program,) = examples_in(docstrings()[name])
    exec(compile(program, name, 'exec'), surroundings)
    return surroundings


class EchoProcessor(messaging.MessageProcessor):
    @messaging.RpcHandler('command', 'echo')
    def echo(self, content: dict[str, Any], reply: Callable[..., None]) -> Any:
        return content['parameters']


def test_steps_wait_for_each_other() -> None:
    asked: list[tuple[str, Future[None]]] = []

    class Channel:
        def operate(self, operation: str, **arguments: str) -> Future[None]:
            asked.append((operation, Future()))
            return asked[-1][1]

    names = example('amqp/steps.py')
    outcome = Drive(names['declare_and_bind'](Channel())).outcome
    assert [operation for operation, _ in asked] == ['queue_declare']
    asked[0][1].set_result(None)
    asked[1][1].set_result(None)
    assert [operation for operation, _ in asked] == ['queue_declare', 'queue_bind']
    assert outcome.result(0) is None


def test_what_a_broker_delivered_is_remembered() -> None:
    name = 'testing/__init__.py'
    used: list[str] = []

    def publish_and_get(url: str) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.queue_declare('greetings')
        channel.basic_publish('', 'greetings', b'hello')
        channel.basic_get('greetings', auto_ack=True)
        connection.close()
        used.append(url)

    (program,) = examples_in(docstrings()[name])
    assert '...  # clients connect to broker.url' in program
    program = program.replace('...  # clients connect to broker.url', 'publish_and_get(broker.url)')
    exec(compile(program, name, 'exec'), {'publish_and_get': publish_and_get})
    assert len(used) == 1


def test_a_matcher_finds_its_handler(capsys: pytest.CaptureFixture[str]) -> None:
    names = example('missive/__init__.py', missive=missive)
    with names['processor'].test_client() as client:
        client.send(missive.RawMessage(b'Hello'))
        assert len(client.acked) == 1
    assert capsys.readouterr().out == 'Hello whoever you are\n'


def test_a_processor_answers_its_test_client() -> None:
    names = example(
        'messaging/processor.py test_client',
        messaging=messaging,
        EchoProcessor=EchoProcessor,
        fingerprint=messaging.Fingerprint('echo'),
    )
    assert 'client' in names


def test_a_component_runs_for_the_length_of_a_with(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = []

    class Shop(messaging.Exchange):
        name = 'shop'

    class OrderProducer(messaging.GenericProducer):
        eks = [(Shop, 'order')]

    class Shipper(messaging.MessageProcessor):
        def __init__(self) -> None:
            super().__init__(messaging.Fingerprint('shipper'), [(Shop, [('orders', 'order')])])

        @messaging.MessageHandler('command', 'order')
        def order(self, content: dict[str, Any]) -> None:
            shipped.append(content['parameters'])
            done.set_result(None)

    done: Future[None] = Future()
    with Broker() as broker:
        monkeypatch.setenv('POSTAGE_URL', broker.url)
        with OrderProducer() as producer:

            @contextlib.contextmanager
            def running_until_shipped(*components: Any) -> Iterator[Any]:
                with running(*components) as made:
                    yield made
                    done.result(TIMEOUT)

            shop = types.SimpleNamespace(Shipper=Shipper)
            example('testing/beside.py running', running=running_until_shipped, shop=shop, producer=producer)
    assert shipped == ['a book']


def test_a_component_reads_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    request = messaging.RpcCommand('echo', 'Hello').body
    lines = io.TextIOWrapper(io.BytesIO(json.dumps(request).encode() + b'\n'))
    output = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, 'stdin', lines)
    monkeypatch.setattr(sys, 'stdout', output)
    example(
        'missive/component.py Component',
        StdinAdapter=StdinAdapter,
        missive=missive,
        EchoProcessor=EchoProcessor,
        fingerprint=messaging.Fingerprint('echo').as_dict(),
    )
    answer = json.loads(output.buffer.getvalue())
    assert answer['content']['value'] == 'Hello'


def test_a_shutdown_ends_the_loop() -> None:
    class Transport:
        taken = 0

        def read(self) -> bytes:
            self.taken += 1
            if self.taken == 2:
                signal.raise_signal(signal.SIGTERM)
            return b'Hello'

    transport = Transport()
    names = example('missive/shutdown_handler.py ShutdownHandler', ShutdownHandler=ShutdownHandler, transport=transport)
    assert transport.taken == 2
    assert names['data'] is None


def test_an_adapter_hands_on_what_it_receives() -> None:
    received: list[bytes] = []
    processor: missive.Processor[missive.RawMessage] = missive.Processor()

    @processor.handle_for(lambda message: True)
    def handle(message: missive.RawMessage, ctx: Any) -> None:
        received.append(message.raw_data)
        ctx.ack()

    adapter = TestAdapter(processor)
    example(
        'missive/adapters/base.py Adapter',
        processor=processor,
        message_cls=missive.RawMessage,
        self=adapter,
        received=[b'one', b'two'],
    )
    adapter.close()
    assert received == [b'one', b'two']
    assert [message.raw_data for message in adapter.acked] == received


def test_every_example_is_run_here_or_is_a_drawing() -> None:
    here = ast.parse(Path(__file__).read_text(encoding='utf-8'))
    told = {node.value for node in ast.walk(here) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {name for name, text in docstrings().items() if examples_in(text)} - told == set()
    assert set(docstrings()) >= DRAWINGS


def test_examples_are_blocks_which_this_module_finds() -> None:
    assert [name for name, text in docstrings().items() if '>>>' in text] == []
