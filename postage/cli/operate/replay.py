"""``postage replay``"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TextIO

import click

from postage import errors
from postage.cli.operate import options
from postage.cli.operate.asking import LEAST_CONNECT_SECONDS
from postage.cli.operate.recording import message_of
from postage.cli.output import print_json, quiet
from postage.messaging.forwarding import Forwarder
from postage.printable import printable
from postage.settings import broker_settings

UNDER_WAY = 200  # messages that wait for their confirm


@click.command('replay')
@click.argument('file', type=click.File(encoding='utf-8', errors='surrogateescape'))
@click.option('--rate', type=click.FloatRange(0, min_open=True), help='Messages a second, at most.')
@click.option('--exchange', metavar='NAME', help='Send them to this exchange, and not to their own.')
@click.option('--key', metavar='KEY', help='Send them with this routing key.')
@click.option(
    '--timeout',
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help='Seconds for the broker to take each.',
)
@options.as_data
def command(
    file: TextIO, rate: float | None, exchange: str | None, key: str | None, timeout: float, as_data: bool
) -> None:
    """Send messages again that tail --record has written; - is the standard input.

    Exit status: 0 if the broker has confirmed all of them, 1 if not.
    """
    os.environ['POSTAGE_CONNECT_TIMEOUT'] = f'{LEAST_CONNECT_SECONDS:g}'
    forwarder = Forwarder(broker_settings())
    sent, failures = 0, {}
    try:
        with quiet():  # what fails is told by its line
            for number, error in _outcomes(forwarder, file, rate, (exchange, key), timeout):
                if error is None:
                    sent += 1
                else:
                    failures[number] = str(error) or type(error).__name__
    finally:
        forwarder.close()
    if as_data:
        print_json({'sent': sent, 'failures': failures})
    else:
        click.echo(f'{sent} sent, {len(failures)} failed' if failures else f'{sent} sent')
    for number, text in failures.items():
        click.echo(printable(f'line {number}: {text}'), err=True)
    sys.exit(1 if failures else 0)


def _outcomes(
    forwarder: Forwarder, file: TextIO, rate: float | None, route: tuple[str | None, str | None], timeout: float
) -> Iterator[tuple[int, Exception | None]]:
    """The number of each line, and why its message was not sent, if it was not."""
    under_way: deque[tuple[int, Future[None]]] = deque()
    begin, begun = time.monotonic(), 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            own_exchange, own_key, properties, body, message_id = message_of(line)
        except errors.PostageError as error:
            yield number, error
            continue
        if rate is not None:
            time.sleep(max(0.0, begin + begun / rate - time.monotonic()))
        begun += 1
        where = [own if given is None else given for own, given in zip((own_exchange, own_key), route, strict=True)]
        under_way.append((number, forwarder.send(where[0], where[1], properties, body, message_id)))
        while len(under_way) >= UNDER_WAY or (under_way and under_way[0][1].done()):
            yield _outcome(*under_way.popleft(), timeout)
    while under_way:
        yield _outcome(*under_way.popleft(), timeout)


def _outcome(number: int, future: Future[None], timeout: float) -> tuple[int, Exception | None]:
    try:
        future.result(timeout)
    except Exception as error:
        return number, error
    return number, None
