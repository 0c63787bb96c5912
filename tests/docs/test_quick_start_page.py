"""The quick start shows the demos, which tests/demos runs."""

from __future__ import annotations

import ast

import docutils.nodes

from support.pages import DOCS, ROOT, parse


def test_the_page_shows_the_demos_to_the_letter() -> None:
    literal = parse(DOCS / 'quick_start.rst').findall(docutils.nodes.literal_block)
    shown = {block['names'][0]: block.astext() for block in literal if 'python' in block['classes']}
    assert len(shown) == 7
    for name, text in shown.items():
        source = (ROOT / 'demos' / name).read_text()
        docstring = ast.get_docstring(ast.parse(source), clean=False)
        assert source == f'"""{docstring}"""\n\n{text}\n'


def test_the_demos_share_the_definition_of_their_exchange() -> None:
    definitions = {path.read_text() for path in ROOT.glob('demos/*_echo/echo_shared.py')}
    assert len(definitions) == 1
