"""Pages of documentation, and the snippets in them."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path

import docutils.core
import docutils.nodes
from docutils.parsers.rst import Directive, directives, roles

from support.brokers import Broker
from support.programs import Program

ROOT = Path(__file__).parents[2]
DOCS = ROOT / 'docs'
MARK = '--- the next block ---'


class MadeBySphinx(Directive):
    """A directive that only the site knows: what it makes is looked at by tests/docs/test_site.py."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec = None

    def run(self) -> list[docutils.nodes.Node]:
        return []


for name in (
    'toctree',
    'literalinclude',
    'variables',
    'commands',
    'faults',
    'automodule',
    'autoclass',
    'autofunction',
    'autoexception',
    'autodata',
):
    directives.register_directive(name, MadeBySphinx)
for name in ('doc', 'ref', 'mod', 'class', 'meth', 'func', 'exc', 'attr', 'data', 'envvar', 'option'):
    roles.register_generic_role(name, docutils.nodes.emphasis)


@functools.cache
def parse(path: Path) -> docutils.nodes.document:
    """Parse reStructuredText as the package index does; whatever deserves a warning is an error.

    What only the site knows, such as ``:doc:``, is passed over; it is right for the pages in docs alone. The tree is
    shared: look at it, and leave it as it is.
    """
    settings = {
        'halt_level': 2,
        'report_level': 2,
        'file_insertion_enabled': DOCS in path.parents,
        'raw_enabled': False,
    }
    return docutils.core.publish_doctree(path.read_text(), source_path=str(path), settings_overrides=settings)


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of a page in a language, in their order."""
    literal = parse(path).findall(docutils.nodes.literal_block)
    return [block.astext() for block in literal if language in block['classes']]


def promised(program: str) -> list[str]:
    """The comments on the lines that print: what the reader is told will appear."""
    tokens = tokenize.generate_tokens(io.StringIO(program).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return [token.string.removeprefix('# ') for token in comments if 'print(' in token.line]


def assert_prints_what_it_says(parts: Sequence[str], broker: Broker, run_program: Callable[..., Program]) -> None:
    """Run blocks as one program, each of which has to print what its comments promise."""
    separator = f'\nprint({MARK!r})\n'
    # Logged errors are part of the lesson, not of the output.
    program = f'import logging\nlogging.basicConfig(filename="log.txt")\n{separator.join(parts)}'
    running = run_program(program, environment={'POSTAGE_URL': broker.url, 'PYTHONWARNINGS': 'error'})
    assert running.wait() == 0, running.output
    printed = [part.split('\n')[:-1] for part in f'{running.output}\n'.split(f'{MARK}\n')]
    assert printed == list(map(promised, parts)), running.output


def make_site(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Make a site as ``make docs`` does."""
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
