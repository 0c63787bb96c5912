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
from rich.console import Console
from rich.table import Table
from rich.text import Text

from postage.errors import DecodingError
from postage.printable import printable
from postage.settings import debug_mode

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


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table of text, each cell printable; nothing where there are no rows."""
    rows = list(rows)
    if rows:
        console().print(table_of(titles, rows, right))


def table_of(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """The same, not printed."""
    table = Table(box=None, header_style='bold', pad_edge=False)
    for title in titles:
        is_figure = title in right  # which stays in one piece, however narrow the terminal is
        table.add_column(title, justify='right' if is_figure else 'left', overflow='fold', no_wrap=is_figure)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


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
