"""The page on the doctor: its program has its findings, its lines run, and it has every rule and option."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import postage.cli.doctor
from postage.broker.server import BrokerServer
from support.pages import DOCS, blocks
from support.programs import Module

PAGE = DOCS / 'doctor.rst'
EXAMPLE, FACTORY = blocks(PAGE, 'python')
FIRST, SECOND = blocks(PAGE, 'sh')


def run(line: str, directory: Path, run_module: Callable[..., Module]) -> list[str]:
    """Run a line of the page on a broker with the rules of 4.3, and return what it prints."""
    (directory / 'shop.py').write_text(f'{EXAMPLE}\n{FACTORY}')
    with BrokerServer('127.0.0.1', 0, rules='4.3') as broker:
        command = line.replace('amqp://localhost/', broker.url)
        program = run_module('postage.cli', shlex.split(command)[1:], cwd=directory)
        assert program.wait() == 1
        assert list(broker.queues('/')) == []
    where = broker.url.replace('guest:guest', 'guest')
    return program.output.replace(
        f'Postage 4.3.6 at {where}', 'RabbitMQ 4.3.6 at amqp://guest@localhost:5672/%2F'
    ).split('\n')


def test_the_example_has_the_findings_of_the_page(tmp_path: Path, run_module: Callable[..., Module]) -> None:
    (output,) = blocks(PAGE, 'text')
    assert run(FIRST, tmp_path, run_module) == output.split('\n')


def test_the_function_makes_both_components(tmp_path: Path, run_module: Callable[..., Module]) -> None:
    assert run(SECOND, tmp_path, run_module)[-1] == '2 exchanges, 5 queues, 8 bindings: 2 wrong, 1 warning'


def test_the_page_has_every_rule_and_no_other() -> None:
    folder = Path(postage.cli.doctor.__file__).parent
    source = '\n'.join(path.read_text() for path in folder.glob('*.py'))
    quoted = set(re.findall(r"'([a-z]+(?:-[a-z]+)*)'", source))
    rules = re.findall(r'^``([a-z-]+)``  ', PAGE.read_text(), re.MULTILINE)
    assert set(rules) <= quoted
    found = re.findall(r"(?:wrong|warning|\))\(\s*'([a-z-]+)'", source) + re.findall(r"rule = '([a-z-]+)'", source)
    assert found
    assert set(found) <= set(rules)


def test_the_page_has_every_option() -> None:
    names = [name for option in postage.cli.doctor.command.params for name in option.opts if name.startswith('--')]
    assert all(f'``{name}' in PAGE.read_text() for name in names)
