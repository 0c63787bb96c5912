"""``postage describe``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from postage.cli.malformed import MALFORMED
from postage.cli.operate import options
from postage.cli.operate.asking import Answer, in_order
from postage.cli.output import print_json, print_table
from postage.printable import printable


@click.command('describe')
@options.address(is_needed=True)
@click.option('--all', 'built_in', is_flag=True, help='Show the handlers that Postage itself defines, too.')
@options.asks('info')
def command(answers: list[Answer], built_in: bool, as_data: bool) -> None:
    """Show what components are: queues and keys, handlers, what becomes of messages that fail.

    Exit status: 0 if there are some, and all of --expect; 1 if not.
    """
    told = [answer.value for answer in in_order(answers)]
    if as_data:
        print_json(told)
    else:
        for number, (info, others) in enumerate(_alike(told)):
            if number:
                click.echo()
            try:
                _print(info, others, built_in)
            except MALFORMED:
                raise click.ClickException('an answer is malformed') from None


def _alike(told: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each that differs from the others in more than its process, and the others."""
    kinds: list[tuple[Any, list[dict[str, Any]]]] = []
    for info in told:
        kind = tuple(info.get(part) for part in ('class', 'version', 'handlers', 'groups'))
        group = next((group for known, group in kinds if known == kind), None)
        if group is None:
            kinds.append((kind, [info]))
        else:
            group.append(info)
    for _, (first, *others) in kinds:
        yield first, others


def _print(info: dict[str, Any], others: list[dict[str, Any]], built_in: bool) -> None:
    who = [f'{each["fingerprint"].get("pid")}@{each["fingerprint"].get("host")}' for each in (info, *others)]
    version = f' {info["version"]}' if info['version'] else ''
    name = info['fingerprint'].get('name') or '(no name)'
    click.echo(printable(f'{name}{version}: {info["class"]}, {", ".join(who)}'))
    click.echo(printable(f'Postage {info["postage"]}, Python {info["python"]}; {_policy(info)}'))
    if info['groups']:
        click.echo(printable(f'groups: {", ".join(info["groups"])}'))
    click.echo()
    rows = [(queue['name'], *_of_queue(queue)) for queue in info['queues']]
    print_table(('queue', 'keys', 'kind', 'dead letters'), rows)
    handlers = [handler for handler in info['handlers'] if built_in or not handler['is_built_in']]
    if handlers:
        click.echo()
    print_table(('handler', 'takes', 'runs as', 'retries', ''), [_of_handler(handler) for handler in handlers])


def _policy(info: dict[str, Any]) -> str:
    parts = [f'{info["concurrency"]} at the same time']
    if info['timeout'] is not None:
        parts.append(f'time-out {info["timeout"]:g} s')
    if info['max_deliveries'] is not None:
        parts.append(f'{info["max_deliveries"]} deliveries at most')
    parts.append(f'dead letters in {info["dead_letters"]}' if info['dead_letters'] else 'no store for dead letters')
    return ', '.join(parts)


def _of_queue(queue: dict[str, Any]) -> tuple[str, str, str]:
    arguments = queue['arguments']
    exchange, key = (arguments.get(f'x-dead-letter-{part}') for part in ('exchange', 'routing-key'))
    kind = [str(arguments.get('x-queue-type', 'classic'))]
    kind += [flag for flag in ('exclusive', 'auto_delete') if queue['flags'].get(flag)]
    dead = '' if exchange is None else f'{exchange or "(default)"}:{key if key is not None else "same key"}'
    return ', '.join(f'{bound["exchange"]}:{bound["key"]}' for bound in queue['keys']), ', '.join(kind), dead


def _of_handler(handler: dict[str, Any]) -> tuple[str, ...]:
    kind = 'rpc ' if handler['category'] == 'rpc' else ''
    retries = '; '.join(
        f'{", ".join(retry["exceptions"])} after {", ".join(f"{delay:g} s" for delay in retry["delays"])}'
        for retry in handler['retries']
    )
    name = '(every name)' if handler['name'] is None else handler['name']
    return handler['handler'], f'{kind}{handler["type"]} {name}', handler['runs_as'], retries, handler['doc']
