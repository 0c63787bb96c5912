"""The page on operations: its Python snippets are one program, and it names every question and outcome."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from postage import messaging
from postage.cli.main import postage
from postage.messaging import control
from postage.messaging.outcomes import Fate
from support.brokers import Broker
from support.messaging import TIMEOUT, Bench
from support.pages import DOCS, assert_prints_what_it_says, blocks
from support.programs import Program

PAGE = DOCS / 'operations.rst'


def test_the_page_is_one_program_that_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    assert_prints_what_it_says(blocks(PAGE, 'python'), broker, run_program)


def test_the_page_has_every_question_and_command() -> None:
    named = re.findall(r'^``(\w+)``  ', str(control.__doc__), re.MULTILINE)
    assert len(named) == 9
    assert all(f'``{name}``' in PAGE.read_text() for name in named)


def test_the_page_has_every_outcome() -> None:
    assert all(f"``'{fate}'``" in PAGE.read_text() for fate in get_args(Fate))


class OrderExchange(messaging.Exchange):
    name = 'order-exchange'
    exchange_type = 'direct'


class Orders(messaging.MessageProcessor):
    """The component of the page, with something that can be called."""

    control = True
    eqk = [(OrderExchange, [('orders', 'order')])]

    def __init__(self) -> None:
        self.ready = threading.Event()
        super().__init__(messaging.Fingerprint('orders', host='ada'), self.eqk)

    def start_consuming(self) -> None:
        super().start_consuming()
        self.ready.set()

    @messaging.RpcHandler('command', 'price')
    def rpc_price(self, content: dict[str, Any], reply_func: Any) -> None:
        reply_func(messaging.MessageResult(content['parameters']))


def test_the_lines_for_a_terminal_run(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '60')
    orders = Orders()
    running = bench.run(orders)
    assert orders.ready.wait(TIMEOUT)
    (lines,) = blocks(PAGE, 'sh')
    printed = []
    for line in lines.splitlines():
        words = shlex.split(line)
        # A loaded machine takes longer than the second of the page.
        more = [] if '--timeout' in words or words[1] in ('send', 'tail', 'replay', 'top') else ['--timeout', '3']
        if words[1] not in ('call', 'send', 'tail', 'replay', 'top') and '--expect' not in words:
            more += ['--expect', '1']
        result = CliRunner().invoke(postage, [*words[1:], *more])
        assert result.exit_code == 0, f'{line}: {result.output}'
        printed.append(result.output)
    assert any('a cake' in text for text in printed)
    running.wait()
