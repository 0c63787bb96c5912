"""``postage dead-letters show``"""

from __future__ import annotations

import json

import click

from postage.cli.dead_letters.common import with_store
from postage.cli.output import print_json
from postage.dead_letters.form import as_json
from postage.dead_letters.store import DeadLetters, StoredLetter
from postage.printable import printable, printable_lines

LONG = ('properties', 'body', 'body_base64', 'traceback')


@click.command('show')
@with_store
@click.argument('id')
@click.option('--json', 'as_data', is_flag=True, help='Print JSON.')
def command(store: DeadLetters, id: str, as_data: bool) -> None:
    """Show the letter with this ID, whole. Times are in UTC."""
    stored = store.get(id)
    if as_data:
        print_json(as_json(stored))
    else:
        _print(stored)


def _print(stored: StoredLetter) -> None:
    plain = as_json(stored)
    for name, value in plain.items():
        if name not in LONG and value not in (None, ''):
            click.echo(f'{name.replace("_", " "):17} {printable(str(value))}')
    properties = json.dumps(stored.letter.properties, indent=2, ensure_ascii=False)
    click.echo(f'\nproperties\n{printable_lines(properties)}')
    click.echo(f'\nbody\n{printable_lines(_readable(plain))}')
    if stored.letter.traceback:
        click.echo(f'\n{printable_lines(stored.letter.traceback.rstrip())}')


def _readable(plain: dict[str, str]) -> str:
    text = plain.get('body')
    if text is None:
        return f'(base64) {plain["body_base64"]}'
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
