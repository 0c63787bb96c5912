"""Programs for Postage 1.2.1 that run on this one, too, and the table of what came of it.

A program's docstring is its row of the table: what it does; then, where the outcome is not the same on both,
``Better: why`` or ``Gone: what instead``. In such a program the comments on the lines that call ``note`` are what this
Postage notes there, as JSON.

``python tests/support/fidelity.py`` writes the table into ``docs/upgrading.rst``.
"""

from __future__ import annotations

import ast
import io
import json
import textwrap
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / 'fidelity'
PAGE = Path(__file__).parents[2] / 'docs' / 'upgrading.rst'

BEGIN, END = '.. The table begins. tests/support/fidelity.py writes it.', '.. The table ends.'
VERDICTS = ('same', 'better', 'gone')


# Programs and their rows


@dataclass(frozen=True)
class Row:
    """One program, as its docstring describes it.

    :ivar verdict: one of :data:`VERDICTS`
    :ivar why: why it is better, or what there is instead; empty where it is the same
    :ivar notes: what this Postage notes in it, where that is not the same
    """

    path: Path
    what: str
    verdict: str
    why: str
    notes: list[Any]

    @property
    def name(self) -> str:
        return self.path.stem


def read(path: Path) -> Row:
    """Read the row of a program."""
    source = path.read_text()
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring, f'{path.name} has no docstring'
    what, *rest = (' '.join(paragraph.split()) for paragraph in docstring.split('\n\n'))
    verdict, why = 'same', ''
    if rest:
        word, _, why = rest[0].partition(': ')
        verdict = word.lower()
        assert verdict in VERDICTS[1:], f'{path.name}: its second paragraph must begin with "Better: " or "Gone: "'
        why = why[0].upper() + why[1:]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT and 'note(' in token.line]
    return Row(path, what, verdict, why, [json.loads(comment.removeprefix('# ')) for comment in comments])


def rows() -> list[Row]:
    """All programs, in the order of their names."""
    return [read(path) for path in sorted((FOLDER / 'programs').glob('*.py'))]


# The table


def table() -> str:
    """The table for the page on upgrading, as reStructuredText."""
    counted = Counter(row.verdict for row in rows())
    lines = [f'{counted["same"]} programs do the same, {counted["better"]} do better, and {counted["gone"]} are gone.']
    lines += ['', '.. list-table::', '   :header-rows: 1', '   :widths: 45 10 45', '']
    lines += _row('A program of 1.2.1', 'Here', 'Why, or what instead')
    for verdict in reversed(VERDICTS):
        for row in rows():
            if row.verdict == verdict:
                lines += _row(row.what, verdict, row.why)
    return '\n'.join(lines)


def _row(*cells: str) -> list[str]:
    lines: list[str] = []
    for number, cell in enumerate(cells):
        wrapped = textwrap.wrap(cell, 105, break_long_words=False, break_on_hyphens=False) or ['']
        lines.append(f'   {"*" if number == 0 else " "} - {wrapped[0]}'.rstrip())
        lines += [f'       {line}' for line in wrapped[1:]]
    return lines


def table_of_the_page() -> str:
    """The table as the page has it."""
    return _parts(PAGE.read_text())[1].strip()


def _parts(text: str) -> tuple[str, str, str]:
    head, _, rest = text.partition(BEGIN)
    written, _, tail = rest.partition(END)
    return head, written, tail


def write() -> None:
    """Write the table into the page."""
    head, _, tail = _parts(PAGE.read_text())
    PAGE.write_text(f'{head}{BEGIN}\n\n{table()}\n\n{END}{tail}')


if __name__ == '__main__':
    write()
