"""``postage dead-letters edit``"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import click

from postage.cli.dead_letters.common import target_of, with_store
from postage.dead_letters.signed import is_signed, signed_again
from postage.dead_letters.store import DeadLetters
from postage.errors import EnvelopeError, PostageError
from postage.messaging.letters import DeadLetter
from postage.messaging.messages import check_envelope
from postage.messaging.signing import Signatures
from postage.printable import printable


@click.command('edit')
@with_store
@click.argument('id')
@click.option('--body', type=click.File('rb'), help='Take the new body from this file; "-" is standard input.')
@click.option('--to', metavar='QUEUE', help='Have it replayed to this queue.')
@click.option('--force', is_flag=True, help='Take a body that is no message, or not JSON, also where the old one was.')
def command(store: DeadLetters, id: str, body: BinaryIO | None, to: str | None, force: bool) -> None:
    """Change the letter with this ID: its body, in $EDITOR or from a file, or where it goes."""
    letter = store.get(id).letter
    changes: dict[str, Any] = {}
    if to is not None:
        target = target_of(to)
        if target is None or target.exchange:
            raise click.UsageError('--to takes the name of a queue; to send to an exchange there is replay --to')
        changes['queue'] = target.routing_key
    if body is not None:
        changes['body'] = body.read()
    elif to is None:
        changes['body'] = _edited(letter.body)
    if changes.get('body') == letter.body:
        del changes['body']
    if 'body' in changes and not force:
        _check(letter, changes['body'])
    if not changes:
        click.echo(f'letter {id} is as it was')
        return
    if 'body' in changes and is_signed(letter):
        changes |= _signature(letter, changes['body'])
    store.edit(id, **changes)
    click.echo(f'letter {id} was changed')


def _signature(letter: DeadLetter, body: bytes) -> dict[str, Any]:
    """The properties of a signed letter with another body: consumers with keys refuse it without a new signature."""
    try:
        signatures = Signatures('the keys')
        if signatures:
            return {'properties': signed_again(signatures, letter, body).properties}
        why = 'POSTAGE_SIGNING_KEYS is not set'
    except PostageError as error:
        why = str(error)
    click.echo(f'its signature is not right any more, and it gets no new one: {printable(why)}', err=True)
    return {}


def _edited(body: bytes) -> bytes:
    """What the user makes of a body in an editor. JSON is laid out for reading, and as compact as it was after."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise click.ClickException('the body is not text; give a new one with --body FILE') from None
    readable, is_json = text, False
    try:
        readable, is_json = json.dumps(json.loads(text), indent=2, ensure_ascii=False), True
    except (ValueError, RecursionError):
        pass
    changed = click.edit(readable + '\n', extension='.json' if is_json else '.txt')
    if changed is None or changed.rstrip('\n') == readable:
        return body
    try:
        return json.dumps(json.loads(changed), ensure_ascii=False, separators=(',', ':')).encode()
    except (ValueError, RecursionError):
        return changed.rstrip('\n').encode()


def _check(letter: DeadLetter, new: bytes) -> None:
    """See that the new body is as good as the old one was: a message of Postage, or at least JSON."""
    try:
        old = json.loads(letter.body)
    except (ValueError, RecursionError):
        return
    try:
        body = json.loads(new)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(
            f'the new body is not JSON, as the old one is: {printable(str(error))}; see --force'
        ) from None
    if not _was_meant_as_message(letter, old):
        return
    try:
        check_envelope(body)
    except EnvelopeError as error:
        raise click.ClickException(
            f'the new body is no message, which its processor would reject: {printable(str(error))}; see --force'
        ) from None


def _was_meant_as_message(letter: DeadLetter, body: object) -> bool:
    """Whether it was one, or a processor of Postage gave it up because it was none."""
    if letter.reason == 'undecodable':
        return True
    try:
        check_envelope(body)
    except EnvelopeError:
        return False
    return True
