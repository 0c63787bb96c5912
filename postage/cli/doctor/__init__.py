"""``postage doctor``: what a broker will refuse, drop or time out of what a program declares.

``program.py``
    what the program declares, which it is made without a broker to learn
``broker.py``
    the broker: its version, and questions to it that declare nothing
``rules.py``
    what the versions of RabbitMQ make of it
``questions.py``
    what this one says to it
``findings.py``
    what was found
"""

from __future__ import annotations

from typing import Any

import click
from rich.markup import escape

from postage.broker.limits import size_of
from postage.cli.components import check_targets
from postage.cli.doctor.broker import Broker, connected
from postage.cli.doctor.findings import Finding, Level
from postage.cli.doctor.program import Program, counted, programs_of
from postage.cli.doctor.questions import ask_all
from postage.cli.doctor.rules import apply_all, limits_of
from postage.cli.numbers import Number
from postage.cli.output import console, print_json, quiet
from postage.errors import ConfigurationError
from postage.secret import Secret
from postage.settings import broker_settings

STYLES = {Level.WRONG: 'bold red', Level.WARNING: 'yellow'}


class Size(click.ParamType[int]):
    """A number of bytes, such as ``20MiB``."""

    name = 'size'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return size_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command('doctor')
@click.argument('arguments', nargs=-1, metavar='[URL] [MODULE:NAME]...')
@click.option('--body', type=Size(), metavar='SIZE', help='The largest body that the program sends, such as 20MiB.')
@click.option('--timeout', type=Number(0.1), default=10.0, show_default=True, help='Seconds to wait for the broker.')
@click.option('--strict', is_flag=True, help='Take a warning for wrong, too.')
@click.option('--json', 'as_data', is_flag=True, help='Print JSON.')
@click.pass_context
def command(
    ctx: click.Context, arguments: tuple[str, ...], body: int | None, timeout: float, strict: bool, as_data: bool
) -> None:
    """Say what a broker will refuse, drop or time out of what a program declares. Nothing is declared.

    MODULE:NAME is a processor, a consumer or a producer: its class, an object, or a function that returns one or a
    list of them. They are made without a broker. Without a URL the broker is that of the program's own settings,
    which POSTAGE_URL, or POSTAGE_HOST and its kin, lead to.

    Exit status: 0 if nothing is wrong, 1 if something is or the broker cannot be asked, 2 if it was called wrongly.
    """
    given = Secret(arguments)
    del arguments  # a URL has a password
    urls = [Secret(each) for each in given.reveal() if '://' in each]
    if len(urls) > 1:
        raise click.UsageError('there may be one URL; several hosts are one, too, separated by commas')
    url = urls[0] if urls else None
    targets = [each for each in given.reveal() if '://' not in each]
    try:
        check_targets(targets)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    with quiet():
        settings = broker_settings(url) if url is not None else None
        programs = programs_of(targets, settings) or [Program(settings or broker_settings())]
        examined = [_examine(program, body, timeout) for program in programs]
    if as_data:
        print_json([_as_data(broker, program, findings) for program, broker, findings in examined])
    else:
        for program, broker, findings in examined:
            _print(broker, program, findings)
    bad = set(Level) if strict else {Level.WRONG}
    ctx.exit(int(any(finding.level in bad for _, _, findings in examined for finding in findings)))


def _examine(program: Program, body: int | None, timeout: float) -> tuple[Program, Broker, list[Finding]]:
    with connected(program.settings, timeout) as broker:
        found = [*apply_all(program, broker, body), *ask_all(program, broker)]
    return program, broker, sorted(dict.fromkeys(found), key=lambda each: each.level is not Level.WRONG)


def _print(broker: Broker, program: Program, findings: list[Finding]) -> None:
    out = console()
    out.print(escape(f'{broker} at {program.settings}: {limits_of(broker)}'), soft_wrap=True)
    for finding in findings:
        level = f'[{STYLES[finding.level]}]{finding.level.value:8}[/]'
        out.print(f'{level}{escape(f"{finding.about}: {finding.text}")}', soft_wrap=True)
    wrong, warnings = (sum(finding.level is level for finding in findings) for level in Level)
    said = ', '.join(
        [f'{wrong} wrong' if wrong else 'nothing is wrong', *([counted(warnings, 'warning')] if warnings else [])]
    )
    out.print(escape(f'{program}: {said}'), soft_wrap=True)


def _as_data(broker: Broker, program: Program, findings: list[Finding]) -> dict[str, Any]:
    return {
        'broker': {'product': broker.product, 'version': broker.version, 'url': str(program.settings)},
        'exchanges': sorted(program.exchanges),
        'queues': sorted(program.queues),
        'findings': [finding.as_dict() for finding in findings],
    }
