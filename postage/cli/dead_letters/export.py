"""``postage dead-letters export``"""

from __future__ import annotations

from typing import TextIO

import click

from postage.cli.dead_letters.common import check_ids, letters, progress_of, with_selection, with_store
from postage.cli.output import as_line
from postage.dead_letters.form import as_json
from postage.dead_letters.store import DeadLetters, Selection


@click.command('export')
@with_store
@with_selection
@click.argument('ids', nargs=-1)
@click.option('--output', type=click.File('w', encoding='utf-8', atomic=True), default='-', help='Write to this file.')
def command(store: DeadLetters, selection: Selection, output: TextIO) -> None:
    """Write letters as JSON, one a line: those with these IDS, or all. They stay in the store."""
    check_ids(store, selection.ids)
    count = 0
    with progress_of('exporting', store.count(selection)) as progress:
        for stored in store.letters(selection):
            output.write(as_line(as_json(stored)) + '\n')
            progress(1)
            count += 1
    click.echo(f'{letters(count)} written', err=True)
