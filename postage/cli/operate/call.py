"""``postage call`` and ``postage send``"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from postage import errors
from postage.cli.operate import options
from postage.cli.operate.asking import operator
from postage.cli.output import as_line, print_json, quiet
from postage.messaging import Exchange
from postage.printable import printable, printable_lines


def _takes_message(function: Callable[..., None]) -> Any:
    """Add what says which message is sent, where to, and how that is shown."""
    for add in (
        options.as_data,
        options.encoder,
        options.timeout,
        click.option(
            '--exchange', required=True, metavar='NAME', help='The exchange, which has to exist. "" is the default one.'
        ),
        click.argument('arguments', nargs=-1, metavar='[key=json]... | [json]'),
        click.argument('name'),
        click.argument('key'),
    ):
        function = add(function)
    return function


def parameters_of(arguments: tuple[str, ...]) -> Any:
    """The parameters that are written as ``key=value``, or as one value. What is no JSON is text."""
    if len(arguments) == 1 and not _is_pair(arguments[0]):
        return _value(arguments[0])
    parameters: dict[str, Any] = {}
    for argument in arguments:
        if not _is_pair(argument):
            raise click.UsageError(f'{printable(argument)} is no key=value')
        key, _, value = argument.partition('=')
        parameters[key] = _value(value)
    return parameters


def _is_pair(argument: str) -> bool:
    return argument.partition('=')[0].isidentifier() and '=' in argument


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def passive(exchange: str) -> type[Exchange]:
    """An exchange that is only looked for."""
    return type('Named', (Exchange,), {'name': exchange, 'exchange_type': 'direct', 'passive': bool(exchange)})


@click.command('call')
@_takes_message
def call(
    key: str,
    name: str,
    arguments: tuple[str, ...],
    exchange: str,
    timeout: float,
    attributes: dict[str, Any],
    as_data: bool,
) -> None:
    """Send the RPC request NAME with a routing key, and print its result.

    Exit status: 0 for a result; 1 for an error, or where there is no answer in time.
    """
    parameters = parameters_of(arguments)
    with operator(timeout, eks=[(passive(exchange), key)], **attributes) as producer:
        content = producer.rpc_call(name, parameters, _timeout=timeout, _expiration=timeout).body['content']
    if as_data:
        print_json(content)
    elif content['type'] == 'success':
        value = content['value']
        click.echo(printable_lines(value) if isinstance(value, str) else as_line(value, indent=2))
    if content['type'] != 'success':
        kind = f'{content["value"]}: ' if content['type'] == 'exception' else ''
        click.echo(printable(f'{kind}{content["message"]}'), err=True)
        sys.exit(1)


@click.command('send')
@_takes_message
def send(
    key: str,
    name: str,
    arguments: tuple[str, ...],
    exchange: str,
    timeout: float,
    attributes: dict[str, Any],
    as_data: bool,
) -> None:
    """Send the command NAME with a routing key, and wait until the broker has it.

    Exit status: 0 if a queue took it, 1 if not.
    """
    parameters = parameters_of(arguments)
    more = {'eks': [(passive(exchange), key)], 'persistent': True, **attributes}
    failure = None
    with operator(timeout, **more) as producer, quiet():
        receipt = producer.message_send(name, parameters)
        try:
            receipt.wait(timeout)
        except errors.PublishError as error:
            failure = str(error)
    if as_data:
        print_json({'message_id': receipt.message_id, 'confirmed': failure is None, 'error': failure})
    if failure is not None:
        raise click.ClickException(printable(failure))
