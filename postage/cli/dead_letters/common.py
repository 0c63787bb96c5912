"""What the subcommands share: which store, which letters, and how they print."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from postage.dead_letters.replay import Target
from postage.dead_letters.store import DeadLetters, Selection

Function = TypeVar('Function', bound=Callable[..., Any])

WIDE = 200  # columns where the output is no terminal, for there it is read by programs


def with_store(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--store`` and ``--queue``; the function gets the store that they name."""

    @click.option('--store', 'path', metavar='PATH', help='The store is this SQLite file.')
    @click.option('--queue', 'name', metavar='NAME', help='The store is this queue on the broker.')
    @functools.wraps(function)
    def wrapped(path: str | None, name: str | None, **kwds: Any) -> Any:
        with _opened(path, name) as store:
            return function(store, **kwds)

    return wrapped


def _opened(path: str | None, name: str | None) -> DeadLetters:
    if (path is None) == (name is None):
        raise click.UsageError('say which store: --store PATH, or --queue NAME')
    if path is not None:
        from postage.dead_letters.sqlite import SQLiteDeadLetters

        return SQLiteDeadLetters(path, create=False)
    from postage.dead_letters.queue import QueueDeadLetters

    return QueueDeadLetters(str(name), create=False)


def with_selection(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose letters; the function gets a :class:`Selection`."""

    @click.option('--exception', metavar='NAME', help='Only those of this exception.')
    @click.option('--from', 'queue', metavar='QUEUE', help='Only those that came from this queue.')
    @click.option('--reason', metavar='REASON', help='Only those given up for this reason, such as "exception".')
    @functools.wraps(function)
    def wrapped(
        store: DeadLetters,
        exception: str | None,
        queue: str | None,
        reason: str | None,
        ids: tuple[str, ...] = (),
        **kwds: Any,
    ) -> Any:
        return function(store, selection=Selection(ids, exception, queue, reason), **kwds)

    return wrapped


def target_of(text: str | None) -> Target | None:
    """Where ``--to`` leads: ``EXCHANGE:KEY``, or the name of a queue."""
    if text is None:
        return None
    exchange, colon, key = text.partition(':')
    return Target(exchange, key) if colon else Target('', text)


def check_ids(store: DeadLetters, ids: tuple[str, ...]) -> None:
    """Make sure that the store has all of these.

    :raises errors.NoSuchLetter: it has not
    """
    if ids:
        known = {stored.id for stored in store.letters(Selection(ids=ids))}
        for id in ids:
            if id not in known:
                raise store.no_such_letter(id)


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough to be read by a program."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE, highlight=False)


def print_json(value: Any) -> None:
    """Print something for other programs."""
    click.echo(as_line(value, indent=2))


def as_line(value: Any, indent: int | None = None) -> str:
    """A value as JSON, in which whatever a terminal would obey is an escape of JSON's own."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _TERMINAL.sub(lambda found: f'\\u{ord(found.group()):04x}', text)


# JSON escapes the other controls by itself.
_TERMINAL = re.compile('[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]')


@contextlib.contextmanager
def progress_of(what: str, total: int) -> Generator[Callable[[int], None], None, None]:
    """A bar on standard error, where that is a terminal; the function moves it on."""
    error = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error, disable=not error.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def letters(count: int) -> str:
    """So many letters, in words."""
    return '1 letter' if count == 1 else f'{count:,} letters'
