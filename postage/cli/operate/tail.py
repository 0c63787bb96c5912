"""``postage tail``"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import click

from postage.cli.doctor.broker import connected
from postage.cli.malformed import MALFORMED
from postage.cli.numbers import Number
from postage.cli.operate.asking import LEAST_CONNECT_SECONDS
from postage.cli.operate.call import passive
from postage.cli.operate.recording import as_record, line_of
from postage.cli.output import as_line, quiet
from postage.errors import DeclarationMismatch
from postage.messaging import GenericConsumer
from postage.printable import printable, shown
from postage.settings import broker_settings

SHOWN = 400  # characters of a message's content


class Listener(GenericConsumer):
    """Gets a copy of what passes."""

    prefetch_count = 200
    durable_queues = False


@click.command('tail')
@click.argument('exchange')
@click.argument('keys', nargs=-1, metavar='[KEY]...')
@click.option('--record', type=click.Path(dir_okay=False, path_type=Path), help='Append them to this file, too.')
@click.option('--count', type=click.IntRange(1), help='End after so many messages.')
@click.option('--for', 'seconds', type=Number(0), help='End after so many seconds.')
@click.option('--json', 'as_data', is_flag=True, help='Print JSON, a line for each message.')
def command(
    exchange: str, keys: tuple[str, ...], record: Path | None, count: int | None, seconds: float | None, as_data: bool
) -> None:
    """Show the messages that pass an exchange with a routing key, until Ctrl-C. By default the key is #.

    They come to a queue of its own, so that no consumer misses one. On a topic exchange a key may have * and #; on a
    direct one it is the very key of the messages, so one has to be named.

    Exit status: 0, or 1 if there is no such exchange.
    """
    if not exchange:
        raise click.UsageError('nothing can be bound to the default exchange; name another one')
    os.environ['POSTAGE_CONNECT_TIMEOUT'] = f'{LEAST_CONNECT_SECONDS:g}'
    _check_keys(exchange, keys)
    queue = {'name': f'postage-tail-{uuid.uuid4().hex}', 'flags': {'exclusive': True, 'auto_delete': True}}
    eqk = [(passive(exchange), [(queue, key) for key in dict.fromkeys(keys or ('#',))])]
    with contextlib.ExitStack() as stack:
        file = None if record is None else stack.enter_context(_private(record))
        consumer = stack.enter_context(Listener(eqk))
        if seconds is not None:
            stack.callback(_stop_after(seconds, consumer))
        seen = 0

        def take(_: Any, method: Any, header: Any, body: bytes) -> None:
            nonlocal seen
            seen += 1
            found = as_record(method.exchange, method.routing_key, header, body, time.time())
            if file is not None:
                file.write(f'{line_of(found)}\n')
                file.flush()
            click.echo(line_of(found) if as_data else _shown(found))
            consumer.ack(method)
            if count is not None and seen >= count:
                consumer.stop_consuming()

        with contextlib.suppress(KeyboardInterrupt):
            consumer.start_consuming(take)


def _stop_after(seconds: float, consumer: Listener) -> Callable[[], None]:
    """Have it stop after so many seconds, even before it has begun, and return what ends that."""
    over = threading.Event()

    def stop() -> None:
        over.wait(seconds)
        while not over.is_set():
            consumer.stop_consuming()
            over.wait(0.1)

    threading.Thread(target=stop, daemon=True).start()
    return over.set


def _check_keys(exchange: str, keys: tuple[str, ...]) -> None:
    """Say so where nothing would come, for no message has such a key."""
    patterns = [key for key in keys if {'*', '#'} & set(key.split('.'))]
    if (patterns or not keys) and _is_direct(exchange):
        direct = f'exchange {shown(exchange)} is direct, so # and * stand for nothing but themselves'
        if not keys:
            raise click.UsageError(f'{direct}: name the keys, which postage describe shows of each component')
        click.echo(f'{direct}: by {", ".join(map(shown, patterns))} nothing may come', err=True)


def _is_direct(exchange: str) -> bool:
    """Whether that is known: AMQP tells the type of an exchange only where it refuses another one."""
    with quiet(), connected(broker_settings(), LEAST_CONNECT_SECONDS) as broker:
        if not broker.answers_safely or broker.refusal('exchange_declare', exchange=exchange, passive=True):
            return False
        refusal = broker.refusal('exchange_declare', exchange=exchange, exchange_type='topic', durable=True)
    return isinstance(refusal, DeclarationMismatch) and refusal.field == 'type' and refusal.found == "'direct'"


def _private(path: Path) -> TextIO:
    """A file for its owner alone: there may be anything in a message."""
    try:
        return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 'a', encoding='utf-8')
    except OSError as error:
        raise click.ClickException(printable(str(error))) from error


def _shown(record: dict[str, Any]) -> str:
    """A message on one line: when, by which key, what, from where, and what it says."""
    when, key = record['at'][11:23], record['routing_key']
    try:
        body = json.loads(record['body'])
        who = body['fingerprint']
        kind = 'rpc ' if body['category'] == 'rpc' else ''
        source = f'{who.get("name") or "(no name)"} {who.get("pid")}@{who.get("host")}' if who else '(unknown)'
        text = f'{kind}{body["type"]} {body["name"]}  {source}  {as_line(body["content"])}'
    except MALFORMED:
        text = str(record.get('body', '(bytes)'))
    return printable(f'{when} {key}  {text}', SHOWN)
