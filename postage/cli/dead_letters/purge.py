"""``postage dead-letters purge``"""

from __future__ import annotations

import click

from postage.cli.dead_letters.common import check_ids, letters, with_selection, with_store
from postage.cli.output import print_json
from postage.dead_letters.store import DeadLetters, Selection


@click.command('purge')
@with_store
@with_selection
@click.argument('ids', nargs=-1)
@click.option('--yes', is_flag=True, help='Do not ask.')
@click.option('--json', 'as_data', is_flag=True, help='Print JSON.')
def command(store: DeadLetters, selection: Selection, yes: bool, as_data: bool) -> None:
    """Delete letters for good: those with these IDS, or all."""
    check_ids(store, selection.ids)
    if not yes:
        click.confirm(f'Delete {letters(store.count(selection))} from {store}?', abort=True, err=True)
    deleted = store.delete(selection)
    if as_data:
        print_json({'deleted': deleted})
    else:
        click.echo(f'{letters(deleted)} deleted')
