"""How commands print."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from postage.errors import DecodingError
from postage.printable import printable
from postage.settings import debug_mode

CUT = 16  # columns that what is cut off at its end has at least
GAP = 2  # columns between those of a table
WIDE = 200  # columns where the output is no terminal, for there it is read by programs


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough to be read by a program."""
    out = sys.stdout
    if out is None:  # the shell has closed it
        out = open(os.devnull, 'w')  # noqa: SIM115 - as long as the process
    return Console(file=out, width=None if out.isatty() else WIDE, highlight=False)


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """Log nothing, for the length of a ``with``: what fails is said in one line."""
    logger = logging.getLogger('postage')
    before = logger.level
    if not debug_mode():
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = (), spare: Sequence[str] = ()
) -> None:
    """A table of text, each cell printable; nothing where there are no rows.

    :param right: columns of figures
    :param spare: columns that a terminal goes without where it is too narrow for all of them, in this order
    """
    rows = list(rows)
    if rows:
        out = console()
        out.print(table_of(titles, rows, right, spare if out.is_terminal else (), out.width))


def table_of(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
    width: int = WIDE,
) -> Table:
    """The same, not printed, for so many columns of a terminal. Where some are spare, each row stays on one line."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = {title: max(map(cell_len, (title, *column))) for title, *column in zip(titles, *cells, strict=True)}
    for title in spare:
        if sum(min(each, CUT) + GAP for each in widths.values()) - GAP <= width:
            break
        del widths[title]
    most = _narrowed(widths, width) if spare else {}
    table = Table(box=None, header_style='bold', pad_edge=False)
    for title in widths:
        table.add_column(
            title,
            justify='right' if title in right else 'left',
            overflow='ellipsis' if spare else 'fold',
            no_wrap=bool(spare) or title in right,  # figures stay in one piece, however narrow the terminal is
            max_width=most.get(title),
        )
    for row in cells:
        table.add_row(*(Text(cell) for title, cell in zip(titles, row, strict=True) if title in widths))
    return table


def _narrowed(widths: dict[str, int], width: int) -> dict[str, int]:
    """The widths of columns that fit into so many of a terminal, as far as to cut off the widest helps."""
    excess = sum(each + GAP for each in widths.values()) - GAP - width
    narrowed = dict(widths)
    for title in sorted(widths, key=lambda title: -widths[title]):
        cut = max(0, min(excess, widths[title] - CUT))
        narrowed[title] -= cut
        excess -= cut
    return narrowed


def print_json(value: Any) -> None:
    """Print something for other programs."""
    click.echo(as_line(value, indent=2))


def as_line(value: Any, indent: int | None = None) -> str:
    """A value as JSON, in which whatever a terminal would obey is an escape of JSON's own.

    :raises DecodingError: it is nested too deep
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False)
    except RecursionError:
        raise DecodingError('what has come is nested too deep to be shown') from None
    return _TERMINAL.sub(lambda found: f'\\u{ord(found.group()):04x}', text)


# JSON escapes the other controls by itself.
_TERMINAL = re.compile('[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
