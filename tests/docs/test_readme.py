"""Every Python snippet of the README runs, and prints what its comments say."""

from __future__ import annotations

import ast
from collections.abc import Callable

import docutils.nodes
import pytest

import postage
from support.brokers import Broker
from support.pages import ROOT, assert_prints_what_it_says, parse
from support.programs import Program

README = ROOT / 'README.rst'


def python_blocks(title: str) -> list[docutils.nodes.literal_block]:
    """Return the Python blocks of one of the README's sections, in their order."""
    (section,) = (node for node in parse(README).findall(is_section) if node[0].astext() == title)
    return [block for block in section.findall(docutils.nodes.literal_block) if 'python' in block['classes']]


def is_section(node: docutils.nodes.Node) -> bool:
    return isinstance(node, docutils.nodes.section)


def test_the_version_is_that_of_the_package() -> None:
    assert f'This is Postage version {postage.__version__}.' in README.read_text()


def test_the_microthreads_count_as_the_text_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = python_blocks('About microthreads')
    exec(compile(block.astext(), 'README.rst', 'exec'), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert '::\n\n    ' + '\n    '.join(printed) + '\n\n' in README.read_text()


def test_the_quick_start_shows_the_demos_to_the_letter() -> None:
    """The demos themselves are run by their own tests."""
    shown = {block['names'][0]: block.astext() for block in python_blocks('Quick start')}
    assert len(shown) == 7
    for name, text in shown.items():
        source = (ROOT / 'demos' / name).read_text()
        docstring = ast.get_docstring(ast.parse(source), clean=False)
        assert source == f'"""{docstring}"""\n\n{text}\n'


def test_the_demos_share_the_definition_of_their_exchange() -> None:
    definitions = {path.read_text() for path in ROOT.glob('demos/*_echo/echo_shared.py')}
    assert len(definitions) == 1


def test_the_api_documentation_is_one_program_that_prints_what_it_says(
    broker: Broker, run_program: Callable[..., Program]
) -> None:
    blocks = [block.astext() for block in python_blocks('API documentation')]
    assert_prints_what_it_says(blocks, broker, run_program)
