"""``postage pause``, ``resume``, ``drain``, ``quit`` and ``restart``"""

from __future__ import annotations

from typing import Any

import click

from postage.cli.operate import options
from postage.cli.operate.asking import Answer
from postage.cli.output import print_json, print_table

WHAT = {
    'pause': 'Have components begin with no more messages; what is in hand goes on.',
    'resume': 'Have components that are paused go on.',
    'drain': 'Have components finish what is in hand, and end.',
    'quit': 'Have components end.',
    'restart': 'Have components run again.',
}
STATUS = 'Exit status: 0 if all that answered obey, and all of --expect; 1 if not.'


def _command(name: str) -> click.Command:
    @click.command(name, help=f'{WHAT[name]}\n\n{STATUS}')
    @options.address(is_needed=True)
    @options.asks(name)
    def command(answers: list[Answer], as_data: bool) -> None:
        if as_data:
            print_json([_as_data(answer) for answer in answers])
        else:
            rows = [_row_of(answer) for answer in answers if answer.error is None]
            print_table(('name', 'host', 'pid', 'state', 'in hand'), rows, ('pid', 'in hand'))

    return command


def _as_data(answer: Answer) -> dict[str, Any]:
    return {'fingerprint': answer.fingerprint, 'answer': answer.value, 'error': answer.error}


def _row_of(answer: Answer) -> tuple[str, ...]:
    known = answer.value if isinstance(answer.value, dict) else {'state': answer.value}
    who = (answer.name, *(str(answer.fingerprint.get(part)) for part in ('host', 'pid')))
    return *who, *(str(known.get(part, '')) for part in ('state', 'in_hand'))


pause, resume, drain, quit, restart = (_command(name) for name in WHAT)
