"""``postage ps``"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from postage.cli.operate import options
from postage.cli.operate.asking import Answer, Expected, ask, operator
from postage.cli.operate.options import number, span
from postage.cli.output import print_json

TITLES = ('name', 'host', 'pid', 'version', 'state', 'uptime', 'in hand', 'rate/s', 'p99', 'last error')
RIGHT = ('pid', 'uptime', 'in hand', 'rate/s', 'p99')


@click.command('ps')
@click.argument('address', default='', metavar='[name|@host|name@host|pid@host|name#group]')
@options.expect
@options.timeout
@options.encoder
@options.as_data
def command(address: str, expect: str | None, timeout: float, attributes: dict[str, Any], as_data: bool) -> None:
    """Show the components that run, or those at an address.

    Exit status: 0 if there are some, and all of --expect; 1 if not.
    """
    expected = Expected.of(expect)
    with operator(timeout, **attributes) as producer:
        answers = ask(producer, 'stats', address, timeout, expected)
    told = in_order(answers)
    if as_data:
        print_json([{'seconds': round(answer.seconds, 3), **answer.value} for answer in told])
    else:
        options.print_table(TITLES, options.rows_of(told, row_of), RIGHT)
    options.finish(answers, expected, address)


def in_order(answers: Iterable[Answer]) -> list[Answer]:
    """The answers that are no errors, by name, host and process; one that says nothing becomes an error."""
    told = [answer for answer in answers if answer.error is None]
    for answer in told:
        if not isinstance(answer.value, dict):
            answer.error = 'the answer is malformed'
    told = [answer for answer in told if answer.error is None]
    return sorted(told, key=lambda answer: (answer.name, str(answer.fingerprint.get('host')), _pid(answer)))


def _pid(answer: Answer) -> int:
    pid = str(answer.fingerprint.get('pid'))
    return int(pid) if pid.isdecimal() and len(pid) < 12 else 0


def row_of(answer: Answer) -> tuple[str, ...]:
    """A line of the table."""
    stats, who = answer.value, answer.fingerprint
    messages = stats['messages']
    error = messages['last_error']
    return (
        answer.name,
        str(who.get('host')),
        str(who.get('pid')),
        str(stats['version'] or f'postage {stats["postage"]}'),
        state_of(stats),
        span(stats['uptime']),
        str(messages['in_hand']),
        number(messages['rate']),
        span(messages['p99']),
        f'{error["exception"]}: {error["message"]}'[:80] if error else '',
    )


def state_of(stats: dict[str, Any]) -> str:
    """What it is at, in a word."""
    connections = stats['connections']
    if stats['paused']:
        return 'paused'
    if any(connection['blocked_since'] for connection in connections):
        return 'blocked'
    return 'running' if all(connection['is_open'] for connection in connections) else 'reconnecting'
