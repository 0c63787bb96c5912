"""``postage ps``"""

from __future__ import annotations

from typing import Any

import click

from postage.cli.operate import options
from postage.cli.operate.asking import Answer, in_order
from postage.cli.operate.options import number, span
from postage.cli.output import print_json, print_table

TITLES = ('name', 'host', 'pid', 'version', 'state', 'uptime', 'in hand', 'rate/s', 'p99', 'last error')
RIGHT = ('pid', 'uptime', 'in hand', 'rate/s', 'p99')
SPARE = ('version', 'host', 'uptime', 'p99', 'last error', 'rate/s')
"""What a narrow terminal goes without, in this order."""


@click.command('ps')
@options.address(is_needed=False)
@options.asks('stats')
def command(answers: list[Answer], as_data: bool) -> None:
    """Show the components that run, or those at an address.

    Exit status: 0 if there are some, and all of --expect; 1 if not.
    """
    told = in_order(answers)
    if as_data:
        print_json([{'seconds': round(answer.seconds, 3), **answer.value} for answer in told])
    else:
        print_table(TITLES, options.rows_of(told, row_of), RIGHT, SPARE)


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
