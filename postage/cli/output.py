"""How commands print."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import click
from rich.console import Console

from postage.errors import DecodingError

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, DecodingError)
"""What comes of reading something that has another shape than it should: any program may send, or write, that."""

WIDE = 200  # columns where the output is no terminal, for there it is read by programs


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough to be read by a program."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE, highlight=False)


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
