"""How commands print."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console

WIDE = 200  # columns where the output is no terminal, for there it is read by programs


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough to be read by a program."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE, highlight=False)


def print_json(value: Any) -> None:
    """Print something for other programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
