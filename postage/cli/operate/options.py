"""What the commands that ask components have in common."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from postage.cli.components import present_directory
from postage.cli.malformed import MALFORMED
from postage.cli.numbers import Number
from postage.cli.operate.asking import Answer, Expected, ask, operator
from postage.errors import ConfigurationError
from postage.messaging import control_key
from postage.printable import printable

Function = TypeVar('Function', bound=Callable[..., Any])

timeout = click.option(
    '--timeout', type=Number(0.05), default=1.0, show_default=True, help='Seconds to wait for answers.'
)
as_data = click.option('--json', 'as_data', is_flag=True, help='Print JSON.')
expect = click.option(
    '--expect',
    metavar='NAMES',
    help='Who has to answer: names with commas, pid@host, or how many; it ends then.',
)


class Address(click.ParamType[str]):
    """Which components a command is about: all at the word ``all``, and never at an empty variable of a shell."""

    name = 'address'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == 'all':
            return ''
        if not value:
            self.fail('it is empty; all components are addressed as "all"', param, ctx)
        try:
            control_key(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def address(is_needed: bool) -> Callable[[Function], Function]:
    """Add the argument for it.

    :param is_needed: or it is all where there is none
    """
    forms = 'name|@host|name@host|pid@host|name#group|all'
    if is_needed:
        return click.argument('address', type=Address(), metavar=forms)
    return click.argument('address', type=Address(), metavar=f'[{forms}]', default='all')


def encoder(function: Function) -> Any:
    """Add ``--encoder``; the function gets the class attributes of a producer that follow from it."""

    @click.option('--encoder', 'path', metavar='MODULE:CLASS', help='The encoder of the components, if it is no JSON.')
    @functools.wraps(function)
    def wrapped(path: str | None, **kwds: Any) -> Any:
        return function(attributes={} if path is None else {'encoder_class': _imported(path)}, **kwds)

    return wrapped


def _imported(path: str) -> Any:
    module, _, name = path.partition(':')
    try:
        with present_directory():
            return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # a name that begins with a dot, say
        raise click.UsageError(f'--encoder {printable(path, 200)}: {printable(str(error), 200)}') from error


def asks(question: str) -> Callable[[Callable[..., None]], Any]:
    """Have a command ask the components at its address. Its function gets their answers, and shows those in place.

    What is missing, or was refused, is told after that, and is the exit status. Adds ``--expect`` and its kin.
    """

    def decorate(show: Callable[..., None]) -> Any:
        @expect
        @timeout
        @encoder
        @as_data
        @functools.wraps(show)
        def command(address: str, expect: str | None, timeout: float, attributes: dict[str, Any], **kwds: Any) -> None:
            expected = Expected.of(expect)
            with operator(timeout, **attributes) as producer:
                answers = ask(producer, question, address, timeout, expected)
            show(answers, **kwds)
            _finish(answers, expected, address)

        return command

    return decorate


def rows_of(answers: Iterable[Answer], row_of: Callable[[Answer], tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A line for each answer; one that is not as it should be becomes an error."""
    rows = []
    for answer in answers:
        try:
            rows.append(row_of(answer))
        except MALFORMED:
            answer.error = 'the answer is malformed'
    return rows


def _finish(answers: Sequence[Answer], expected: Expected, address: str) -> None:
    failed = [answer for answer in answers if answer.error is not None]
    for answer in failed:
        click.echo(printable(f'{answer.who}: {answer.error}'), err=True)
    silent = expected.silent(list(answers))
    if silent:
        click.echo(printable(f'no answer from {", ".join(silent)}'), err=True)
    elif not answers:
        click.echo(printable(f'no component answers{f" at {address}" if address else ""}'), err=True)
    if failed or silent or not answers:
        sys.exit(1)


def span(seconds: float | None) -> str:
    """A time in one unit, or two: ``3.2 ms``, ``4 s``, ``2 h 5 min``."""
    if seconds is None:
        return ''
    if seconds < 0.001:
        return f'{seconds * 1e6:.0f} µs'
    if seconds < 1:
        return f'{seconds * 1e3:.3g} ms'
    if seconds < 120:
        return f'{seconds:.3g} s'
    minutes, hours, days = (int(seconds // unit) for unit in (60, 3600, 86400))
    if hours < 2:
        return f'{minutes} min'
    return f'{hours} h {minutes % 60} min' if hours < 48 else f'{days} d {hours % 24} h'


def number(value: float) -> str:
    """A number without digits that say nothing."""
    return f'{value:,.0f}' if value >= 100 or value == int(value) else f'{value:.2g}'
