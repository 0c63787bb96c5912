"""The README is one screen to the first message, which its programs send, and no index of packages breaks its links."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import docutils.nodes
import pytest

import postage
from support.brokers import Broker
from support.pages import ROOT, blocks, parse, promised
from support.programs import Program

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

README = ROOT / 'README.rst'
SCREEN = 70  # lines


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """The texts of the two programs, which are in the present directory."""
    named = [block for block in parse(README).findall(docutils.nodes.literal_block) if block['names']]
    texts = {block['names'][0]: block.astext() for block in named}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return texts


def test_the_version_is_that_of_the_package() -> None:
    assert f'This is Postage version {postage.__version__},' in README.read_text()


def test_the_first_message_is_answered(
    programs: dict[str, str], tmp_path: Path, broker: Broker, run_program: Callable[..., Program]
) -> None:
    environment = {'POSTAGE_URL': broker.url, 'PYTHONWARNINGS': 'error'}
    greeter = run_program(tmp_path / 'greeter.py', environment=environment)
    greeter.expect('Waiting for messages')
    asking = run_program(tmp_path / 'ask.py', environment=environment)
    assert asking.wait() == 0, asking.output
    assert asking.lines == promised(programs['ask.py'])


def test_the_lines_for_the_shell_start_the_broker_and_both_programs(programs: dict[str, str]) -> None:
    _, run, _ = blocks(README, 'sh')
    assert run.split('\n') == ['python -m postage.broker', *(f'python {name}' for name in programs)]


def test_the_first_message_fits_on_a_screen() -> None:
    to_the_message, _, _ = README.read_text().partition('    python ask.py\n')
    assert len(to_the_message.splitlines()) <= SCREEN


def test_its_links_are_absolute_and_the_files_that_it_names_are_there() -> None:
    text = README.read_text()
    references = parse(README).findall(docutils.nodes.reference)
    assert all(reference['refuri'].startswith('https://') for reference in references)
    files = re.findall(r'``((?:docs/(?:\w+/)?)?\w+\.rst|demos|docs)``', text)
    assert len(files) > 5
    assert 'docs/explanation/delivery.rst' in files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_extras_that_it_names_are_those_of_the_package() -> None:
    with (ROOT / 'pyproject.toml').open('rb') as file:
        extras = tomllib.load(file)['project']['optional-dependencies']
    named = re.findall(r"pip install 'postage\[([a-z,]+)\]'", README.read_text())
    assert {'cli', 'run'} <= {name for names in named for name in names.split(',')} <= set(extras)
