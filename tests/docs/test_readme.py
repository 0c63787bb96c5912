"""Every Python snippet of the README runs, and prints what its comments say."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Callable
from pathlib import Path

import docutils.core
import docutils.nodes
import pytest

import postage
from support.brokers import Broker
from support.programs import Program

ROOT = Path(__file__).parents[2]
MARK = '--- the next block ---'
SEPARATOR = f'\nprint({MARK!r})\n'
DOCUMENTS = sorted([*ROOT.glob('*.rst'), *ROOT.glob('demos/*/*.rst')])


def parse(path: Path) -> docutils.nodes.document:
    """Parse reStructuredText as the package index does; whatever deserves a warning is an error."""
    settings = {'halt_level': 2, 'report_level': 2, 'file_insertion_enabled': False, 'raw_enabled': False}
    return docutils.core.publish_doctree(path.read_text(), settings_overrides=settings)


def python_blocks(title: str) -> list[docutils.nodes.literal_block]:
    """Return the Python blocks of one of the README's sections, in their order."""
    (section,) = (node for node in parse(ROOT / 'README.rst').findall(is_section) if node[0].astext() == title)
    return [block for block in section.findall(docutils.nodes.literal_block) if 'python' in block['classes']]


def is_section(node: docutils.nodes.Node) -> bool:
    return isinstance(node, docutils.nodes.section)


def promised(program: str) -> list[str]:
    """Return the comments on the lines that print: what the reader is told will appear."""
    tokens = tokenize.generate_tokens(io.StringIO(program).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return [token.string.removeprefix('# ') for token in comments if 'print(' in token.line]


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_documents_are_valid(path: Path) -> None:
    parse(path)


def test_the_version_is_that_of_the_package() -> None:
    assert f'This is Postage version {postage.__version__}.' in (ROOT / 'README.rst').read_text()


def test_the_microthreads_count_as_the_text_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = python_blocks('About microthreads')
    exec(compile(block.astext(), 'README.rst', 'exec'), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert '::\n\n    ' + '\n    '.join(printed) + '\n\n' in (ROOT / 'README.rst').read_text()


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
    # Logged errors are part of the lesson, not of the output.
    program = f'import logging\nlogging.basicConfig(filename="log.txt")\n{SEPARATOR.join(blocks)}'
    running = run_program(program, environment={'POSTAGE_URL': broker.url, 'PYTHONWARNINGS': 'error'})
    assert running.wait() == 0, running.output
    assert [part.split('\n')[:-1] for part in f'{running.output}\n'.split(f'{MARK}\n')] == list(map(promised, blocks))
