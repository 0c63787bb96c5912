"""``postage top``"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from postage import errors
from postage.cli.malformed import MALFORMED
from postage.cli.numbers import Number
from postage.cli.operate import options
from postage.cli.operate.asking import Answer, Expected, Operator, ask, in_order, operator
from postage.cli.operate.ps import RIGHT, SPARE, TITLES, row_of
from postage.cli.output import as_line, console, quiet, table_of
from postage.printable import printable

ORDERS = {'name': None, 'rate': 'rate', 'in hand': 'in_hand', 'p99': 'p99', 'handled': 'handled', 'failed': 'failed'}
"""What the lines can be sorted by, greatest first, and where that is in the answer; by name without."""

KEYS = 'j k: choose   p: pause   r: resume   s: sort   q: end'


class View:
    """What is shown, and which line of it is chosen.

    :ivar answers: what is shown, sorted
    :ivar order: what it is sorted by
    :ivar said: what came of the last key
    :ivar trouble: why there was no last look, if there was none
    """

    def __init__(self, order: str) -> None:
        self.order = order
        self.said = self.trouble = ''
        self.answers: list[Answer] = []
        self._chosen = 0

    def update(self, answers: list[Answer]) -> None:
        """Show these."""
        chosen = self.chosen
        told = in_order(answers)
        field = ORDERS[self.order]
        if field is not None:
            told.sort(key=lambda answer: _figure(answer, str(field)), reverse=True)
        self.answers = told
        whos = [answer.who for answer in told]
        if chosen is not None and chosen.who in whos:
            self._chosen = whos.index(chosen.who)  # it stays chosen wherever it has moved
        self.move(0)

    @property
    def chosen(self) -> Answer | None:
        """The component that keys act on, if there is one."""
        return self.answers[self._chosen] if self._chosen < len(self.answers) else None

    def move(self, lines: int) -> None:
        """Choose another line."""
        self._chosen = max(0, min(self._chosen + lines, len(self.answers) - 1))

    def sort(self) -> None:
        """Sort by the next of :data:`ORDERS`."""
        names = list(ORDERS)
        self.order = names[(names.index(self.order) + 1) % len(names)]
        self.update(self.answers)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = []
        for number, answer in enumerate(self.answers):
            with contextlib.suppress(*MALFORMED):
                rows.append(('>' if number == self._chosen else '', *row_of(answer)))
        head = Text(f'{len(self.answers)} components, by {self.order}   {KEYS}', 'bold')
        said = Text(printable(self.trouble or self.said))
        if console.is_terminal:  # below whose last line nothing is seen
            above = sum(len(text.wrap(console, options.max_width)) for text in (head, said)) + 1
            rows = rows[max(0, self._chosen + 1 - max(1, console.height - above)) :]
        yield head
        yield said
        yield table_of(('', *TITLES), rows, RIGHT, SPARE if console.is_terminal else (), options.max_width)


def _figure(answer: Answer, field: str) -> float:
    try:
        value = answer.value['messages'][field]
        return float(value) if value is not None else 0.0
    except MALFORMED:
        return 0.0


@click.command('top')
@options.address(is_needed=False)
@click.option('--interval', type=Number(0.1), default=1.0, show_default=True, help='Seconds between looks.')
@click.option('--sort', 'order', type=click.Choice(list(ORDERS)), default='name', show_default=True, help='By what.')
@click.option('--count', type=click.IntRange(1), help='End after so many looks.')
@options.encoder
@click.option('--json', 'as_data', is_flag=True, help='Print JSON, a line for each look.')
def command(
    address: str, interval: float, order: str, count: int | None, attributes: dict[str, Any], as_data: bool
) -> None:
    """Show the components that run, again and again. Keys pause the one that is chosen, resume it, and sort.

    Exit status: 0, or 1 if at the last look no component was there.
    """
    view = View(order)
    answers: list[Answer] = []
    looks = 0
    with (
        operator(interval, **attributes) as producer,
        quiet(),
        _keys() as keyboard,
        _shown(view, as_data) as show,
        contextlib.suppress(KeyboardInterrupt, _End),
    ):
        while count is None or looks < count:
            began = time.monotonic()
            answers = look(view, producer, address, interval)
            looks += 1
            show()
            if count is None or looks < count:
                _obey(keyboard, view, show, producer, interval, began + interval)
    sys.exit(0 if answers else 1)


def look(view: View, producer: Operator, address: str, timeout: float) -> list[Answer]:
    """Ask the components, and have the view show their answers, or why there are none. Blocks for the time-out."""
    answers: list[Answer] = []
    view.trouble = ''
    try:
        answers = ask(producer, 'stats', address, timeout)
    except errors.PostageError as error:  # such as a broker that is away, and will be back
        view.trouble = str(error)
    view.update(answers)
    return answers


@contextlib.contextmanager
def _shown(view: View, as_data: bool) -> Iterator[Callable[[], None]]:
    """What shows the view as it is now: over the last one on a terminal, below it elsewhere."""
    if as_data:

        def show() -> None:
            click.echo(as_line([answer.value for answer in view.answers]))
            if view.trouble:
                click.echo(printable(view.trouble), err=True)

        yield show
        return
    out = console()
    if not out.is_terminal:
        yield lambda: out.print(view)
        return
    with Live(view, console=out, auto_refresh=False, screen=True) as live:
        yield lambda: live.update(view, refresh=True)


class _End(Exception):
    """The key for it."""


def _obey(
    keyboard: Any, view: View, show: Callable[[], None], producer: Operator, timeout: float, until: float
) -> None:
    """Act on keys until it is time to look again."""
    while keyboard is not None:
        readable, _, _ = select.select([keyboard], [], [], max(0.0, until - time.monotonic()))
        if not readable:
            return
        typed = os.read(keyboard.fileno(), 1000).decode(errors='ignore')
        for key in keys_of(typed) or ['']:
            act(key, view, producer, timeout)
        show()
    time.sleep(max(0.0, until - time.monotonic()))


def keys_of(typed: str) -> list[str]:
    """The keys that were pressed, each in a character. Arrows are j and k; what else has a sequence is left out."""
    for arrow, key in (('A', 'k'), ('B', 'j')):
        typed = re.sub(rf'\x1b[\[O]{arrow}', key, typed)
    return list(re.sub(r'\x1b(?:[\[O][\d;]*.?)?', '', typed))


def act(key: str, view: View, producer: Operator, timeout: float) -> None:
    """Do what a key stands for.

    :raises _End: it is the one for that
    """
    if key in ('q', ''):
        raise _End
    if key in ('j', 'k'):
        view.move(1 if key == 'j' else -1)
    elif key == 's':
        view.sort()
    elif key in ('p', 'r') and view.chosen is not None:
        question, done = ('pause', 'paused') if key == 'p' else ('resume', 'resumed')
        whom = view.chosen
        try:
            told = [each.error or done for each in ask(producer, question, whom.address, timeout, Expected(1))]
        except errors.PostageError as error:
            told = [str(error)]
        view.said = f'{whom.who}: {", ".join(told) or "no answer"}'


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Standard input, by single keys; ``None`` where it is no terminal."""
    if not sys.stdin.isatty() or sys.platform == 'win32':
        yield None
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield sys.stdin
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
