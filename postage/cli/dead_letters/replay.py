"""``postage dead-letters replay``"""

from __future__ import annotations

import sys

import click

from postage.cli.dead_letters.common import (
    check_ids,
    letters,
    progress_of,
    target_of,
    with_selection,
    with_store,
)
from postage.cli.numbers import Number
from postage.cli.output import print_json
from postage.dead_letters.replay import Replayed, replay
from postage.dead_letters.store import DeadLetters, Selection
from postage.messaging.forwarding import Forwarder
from postage.messaging.signing import Signatures
from postage.printable import printable
from postage.settings import broker_settings


@click.command('replay')
@with_store
@with_selection
@click.argument('ids', nargs=-1)
@click.option('--rate', type=Number(0, min_open=True), help='Letters a second, at most.')
@click.option('--to', metavar='EXCHANGE:KEY', help='Send them there, or to a queue, if there is no colon.')
@click.option('--json', 'as_data', is_flag=True, help='Print JSON.')
def command(store: DeadLetters, selection: Selection, rate: float | None, to: str | None, as_data: bool) -> None:
    """Send letters back to the queues that they came from: those with these IDS, or all.

    Letters that came from no queue, but from a file, Redis or HTTP, are sent only with --to.

    A letter leaves the store when the broker has confirmed it. If this is cut short, run it again: letters may be
    sent twice then, with the same message_id, but none is lost.

    With POSTAGE_SIGNING_KEYS, letters that are signed by one of them are vouched for, so that consumers take them
    whatever their age, and are signed anew where --to names an exchange.
    """
    check_ids(store, selection.ids)
    signatures = Signatures('the keys')
    forwarder = Forwarder(broker_settings())
    try:
        with progress_of('replaying', store.count(selection)) as progress:
            done = replay(store, forwarder, selection, target_of(to), rate, progress, signatures)
    finally:
        forwarder.close()
    _report(done, as_data)
    if done.failures:
        sys.exit(1)


def _report(done: Replayed, as_data: bool) -> None:
    if as_data:
        print_json({'sent': done.sent, 'repeated': done.repeated, 'failures': done.failures})
        return
    click.echo(f'{letters(done.sent)} sent')
    if done.repeated:
        click.echo(f'{letters(done.repeated)} of these may have been sent before, by a replay that was cut short')
    for id, why in list(done.failures.items())[:20]:
        click.echo(f'letter {printable(id)} was not sent: {printable(why)}', err=True)
    if done.failures:
        click.echo(f'{letters(len(done.failures))} not sent, and still in the store', err=True)
    if done.given_up:
        click.echo('given up: the broker confirms nothing; the letters that follow were not tried', err=True)
