"""Every Python snippet of the page on failure runs, and prints what its comments say."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Callable
from pathlib import Path

import docutils.core
import docutils.nodes

from support.brokers import Broker
from support.programs import Program

PAGE = Path(__file__).parents[2] / 'docs' / 'failure.rst'
MARK = '--- the next block ---'


def blocks(language: str) -> list[str]:
    """The blocks of the page in a language, in their order. What deserves a warning in it is an error."""
    settings = {'halt_level': 2, 'report_level': 2, 'file_insertion_enabled': False, 'raw_enabled': False}
    page = docutils.core.publish_doctree(PAGE.read_text(), settings_overrides=settings)
    return [block.astext() for block in page.findall(docutils.nodes.literal_block) if language in block['classes']]


def promised(program: str) -> list[str]:
    """The comments on the lines that print: what the reader is told will appear."""
    comments = [
        token
        for token in tokenize.generate_tokens(io.StringIO(program).readline)
        if token.type == tokenize.COMMENT and 'print(' in token.line
    ]
    return [token.string.removeprefix('# ') for token in comments]


def test_the_page_is_one_program_that_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    parts = blocks('python')
    separator = f'\nprint({MARK!r})\n'
    # Logged errors are part of the lesson, not of the output.
    program = f'import logging\nlogging.basicConfig(filename="log.txt")\n{separator.join(parts)}'
    running = run_program(program, environment={'POSTAGE_URL': broker.url, 'PYTHONWARNINGS': 'error'})
    assert running.wait() == 0, running.output
    assert [part.split('\n')[:-1] for part in f'{running.output}\n'.split(f'{MARK}\n')] == list(map(promised, parts))


def test_the_commands_of_the_page_exist() -> None:
    from postage.cli.dead_letters import COMMANDS

    (shell,) = blocks('sh')
    assert {line.split()[2] for line in shell.splitlines()} == set(COMMANDS)
