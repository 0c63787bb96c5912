"""``postage dead-letters list``"""

from __future__ import annotations

import click

from postage.cli.dead_letters.common import letters, with_selection, with_store
from postage.cli.output import print_json, print_table
from postage.dead_letters.form import as_json, moment
from postage.dead_letters.store import DeadLetters, GroupBy, Selection

RIGHT = ('letters', 'attempts')
GROUPS = ('exception', 'queue', 'reason', 'routing_key')


@click.command('list')
@with_store
@with_selection
@click.option('--group', 'by', type=click.Choice(GROUPS), help='Count them by what they have in common.')
@click.option('--limit', type=click.IntRange(1), help='List so many, the oldest ones.')
@click.option('--json', 'as_data', is_flag=True, help='Print JSON.')
def command(store: DeadLetters, selection: Selection, by: GroupBy | None, limit: int | None, as_data: bool) -> None:
    """List letters, oldest first, or count them by what they have in common."""
    if by is not None:
        _print_groups(store, selection, by, as_data)
    else:
        _print_letters(store, selection, limit, as_data)


def _print_groups(store: DeadLetters, selection: Selection, by: GroupBy, as_data: bool) -> None:
    groups = store.groups(by, selection)
    if as_data:
        print_json(
            [
                {
                    by: group.value,
                    'count': group.count,
                    'first_died_at': moment(group.first_died_at),
                    'last_died_at': moment(group.last_died_at),
                }
                for group in groups
            ]
        )
        return
    rows = [
        (group.value, f'{group.count:,}', _short(group.first_died_at), _short(group.last_died_at)) for group in groups
    ]
    print_table((by.replace('_', ' '), 'letters', 'first', 'last'), rows, RIGHT)
    click.echo(f'{letters(sum(group.count for group in groups))} in {len(groups)} groups', err=True)


def _print_letters(store: DeadLetters, selection: Selection, limit: int | None, as_data: bool) -> None:
    found = list(store.letters(selection, limit))
    if as_data:
        print_json([as_json(stored) for stored in found])
        return
    rows = [
        (
            stored.id,
            stored.letter.message_id or '',
            _short(stored.letter.died_at),
            stored.letter.queue,
            stored.letter.exception or stored.letter.reason,
            str(stored.letter.attempts),
            ' '.join(stored.letter.message.split())[:80],
        )
        for stored in found
    ]
    print_table(('id', 'message id', 'died', 'queue', 'exception', 'attempts', 'message'), rows, RIGHT)
    click.echo(letters(len(found)), err=True)


def _short(seconds: float) -> str:
    return moment(seconds)[:19].replace('T', ' ')
