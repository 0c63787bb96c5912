"""``postage replay``"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TextIO

import click

from postage import errors
from postage.amqp.frames import encode_all
from postage.cli.numbers import Number
from postage.cli.operate import options
from postage.cli.operate.asking import LEAST_CONNECT_SECONDS
from postage.cli.operate.recording import message_of
from postage.cli.output import print_json, quiet
from postage.messaging.forwarding import Forwarder, why_not_sent
from postage.messaging.signing import Signatures
from postage.printable import printable
from postage.settings import broker_settings

UNDER_WAY = 200  # messages that wait for their confirm


@click.command('replay')
@click.argument('file', type=click.File(encoding='utf-8', errors='surrogateescape'))
@click.option('--rate', type=Number(0, min_open=True), help='Messages a second, at most.')
@click.option('--exchange', metavar='NAME', help='Send them to this exchange, and not to their own.')
@click.option('--key', metavar='KEY', help='Send them with this routing key.')
@click.option(
    '--timeout',
    type=Number(0.1),
    default=10.0,
    show_default=True,
    help='Seconds for the broker to take each.',
)
@options.as_data
def command(
    file: TextIO, rate: float | None, exchange: str | None, key: str | None, timeout: float, as_data: bool
) -> None:
    """Send messages again that tail --record has written; - is the standard input.

    With POSTAGE_SIGNING_KEYS those that are rightly signed get signatures of their own; else the one that a message was
    recorded with has consumers take it for a copy.

    Where the broker confirms a message not in time, no more are sent.

    Exit status: 0 if the broker has confirmed all of them, 1 if not.
    """
    os.environ['POSTAGE_CONNECT_TIMEOUT'] = f'{LEAST_CONNECT_SECONDS:g}'
    read = functools.partial(_message_of, exchange, key, Signatures('the keys'))
    forwarder = Forwarder(broker_settings())
    sent, failures, cut = 0, {}, ''
    with quiet(), contextlib.closing(forwarder):  # what fails is told by its line
        try:
            for number, error in _outcomes(forwarder, file, rate, read, timeout):
                if error is None:
                    sent += 1
                else:
                    failures[number] = str(error) or type(error).__name__
                    if isinstance(error, errors.PublishTimeout):
                        cut = 'given up: the broker confirms nothing; the lines that follow were not sent'
        except KeyboardInterrupt:
            cut = f'interrupted: up to {UNDER_WAY} messages more may have been sent'
    if as_data:
        print_json({'sent': sent, 'failures': failures})
    else:
        click.echo(f'{sent} sent, {len(failures)} failed' if failures else f'{sent} sent')
    for number, text in failures.items():
        click.echo(printable(f'line {number}: {text}'), err=True)
    if cut:
        click.echo(cut, err=True)
    sys.exit(1 if failures or cut else 0)


def _outcomes(
    forwarder: Forwarder, file: TextIO, rate: float | None, read: Callable[[str], Any], timeout: float
) -> Iterator[tuple[int, BaseException | None]]:
    """The number of each line, and why its message was not sent, if it was not. Ends where the broker confirms nothing.

    :param read: makes of a line what to send
    """
    under_way: deque[UnderWay] = deque()
    begin, begun = time.monotonic(), 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            message = read(line)
        except errors.PostageError as error:
            yield number, error
            continue
        if rate is not None:
            time.sleep(max(0.0, begin + begun / rate - time.monotonic()))
        begun += 1
        under_way.append(UnderWay(number, forwarder.send(*message), time.monotonic() + timeout))
        while len(under_way) >= UNDER_WAY or (under_way and under_way[0].is_due):
            yield (outcome := under_way.popleft().outcome(timeout))
            if isinstance(outcome[1], errors.PublishTimeout):
                yield from (each.outcome(timeout) for each in under_way)
                return
    yield from (each.outcome(timeout) for each in under_way)


class UnderWay(NamedTuple):
    """A message that waits for its confirm, until a deadline."""

    number: int
    future: Future[None]
    deadline: float

    @property
    def is_due(self) -> bool:
        """Whether it is known, or need not be waited for any more, what came of it."""
        return self.future.done() or time.monotonic() >= self.deadline

    def outcome(self, timeout: float) -> tuple[int, BaseException | None]:
        """Wait for it, and return the number of its line, and why the message was not sent, if it was not."""
        return self.number, why_not_sent(self.future, self.deadline - time.monotonic(), timeout)


def _message_of(
    exchange: str | None, key: str | None, signatures: Signatures, line: str
) -> tuple[str, str, bytes, bytes, str]:
    """What to send for a line: exchange, routing key, encoded properties, body and message id.

    :raises errors.PostageError: it is no message, or cannot be sent
    """
    own_exchange, own_key, properties, body = message_of(line)
    where = own_exchange if exchange is None else exchange, own_key if key is None else key
    if signatures:
        # Nobody vouches for what is not signed, or not rightly: it stays as it is.
        with contextlib.suppress(errors.SignatureRefused):
            signatures.verify(properties, body)
            properties = signatures.again(properties, *where, body)
    return *where, encode_all(properties), body, str(properties.message_id or '')
