"""Every snippet of the page on failure runs, and the Python ones print what their comments say."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from postage import messaging
from postage.cli.dead_letters import COMMANDS
from postage.cli.main import postage
from postage.dead_letters import SQLiteDeadLetters
from support.brokers import Broker
from support.letters import letter
from support.messaging import Bench
from support.pages import DOCS, assert_prints_what_it_says, blocks
from support.programs import Program

PAGE = DOCS / 'failure.rst'
LINES = [line for block in blocks(PAGE, 'sh') for line in block.splitlines()]


class JobExchange(messaging.Exchange):
    name = 'job-exchange'


def test_the_page_is_one_program_that_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    assert_prints_what_it_says(blocks(PAGE, 'python'), broker, run_program)


@pytest.mark.parametrize('line', LINES)
def test_each_line_for_the_shell_does_its_work(
    line: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bench.consumer([(JobExchange, [('echo-queue', 'job')])])
    with SQLiteDeadLetters('letters.db') as store:
        store.put(letter())
    name, *arguments = shlex.split(line)
    assert name == 'postage'
    ran = CliRunner().invoke(postage, arguments, input='y\n', env={'EDITOR': 'true'}, prog_name=name)
    assert ran.exit_code == 0, ran.output


def test_every_command_is_on_the_page() -> None:
    assert {line.split()[2] for line in LINES} == set(COMMANDS)
