"""Every Python snippet of the page on microthreads runs, and prints what its comments say."""

from __future__ import annotations

import io
import tokenize
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import docutils.core
import docutils.nodes

from support.brokers import Broker
from support.programs import Program

DOCS = Path(__file__).parents[2] / 'docs'
PAGE = DOCS / 'microthreads.rst'


def parse() -> docutils.nodes.document:
    """Parse the page; whatever deserves a warning is an error."""
    settings = {'halt_level': 2, 'report_level': 2, 'file_insertion_enabled': False, 'raw_enabled': False}
    return docutils.core.publish_doctree(PAGE.read_text(), settings_overrides=settings)


def python_blocks() -> list[str]:
    blocks = parse().findall(docutils.nodes.literal_block)
    return [block.astext() for block in blocks if 'python' in block['classes']]


def promised(program: str) -> list[str]:
    """Return the comments on the lines that print: what the reader is told will appear."""
    tokens = tokenize.generate_tokens(io.StringIO(program).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return [token.string.removeprefix('# ') for token in comments if 'print(' in token.line]


def test_the_snippets_are_one_program_that_prints_what_it_says(
    broker: Broker, run_program: Callable[..., Program]
) -> None:
    blocks = python_blocks()
    # Logged errors are part of the lesson, not of the output.
    program = '\n'.join(['import logging', 'logging.basicConfig(filename="log.txt")', *blocks])
    running = run_program(program, environment={'POSTAGE_URL': broker.url, 'PYTHONWARNINGS': 'error'})
    assert running.wait() == 0, running.output
    assert running.lines == [line for block in blocks for line in promised(block)]


def test_the_pictures_are_there_and_are_drawings() -> None:
    pictures = [DOCS / image['uri'] for image in parse().findall(docutils.nodes.image)]
    assert pictures
    for picture in pictures:
        root = xml.etree.ElementTree.parse(picture).getroot()
        assert root.tag == '{http://www.w3.org/2000/svg}svg'
