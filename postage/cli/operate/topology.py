"""``postage topology``"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from postage import errors
from postage.cli.components import check_targets
from postage.cli.doctor.broker import Broker, connected
from postage.cli.doctor.program import Program, programs_of
from postage.cli.numbers import Number
from postage.cli.operate import options
from postage.cli.operate.bindings import UNCHECKED, ManagementUrl, bindings_of
from postage.cli.output import print_json, print_table, quiet
from postage.printable import printable


@dataclass(frozen=True)
class Edge:
    """A way that messages take: by a key from an exchange to a queue, or from a queue to where its dead letters go.

    :ivar is_dead: whether it is the latter
    """

    source: str
    target: str
    label: str
    is_dead: bool = False


@click.command('topology')
@click.argument('targets', nargs=-1, required=True, metavar='MODULE:NAME...')
@click.option('--check', is_flag=True, help='Look whether the broker has all of it, and as it is declared.')
@click.option(
    '--management',
    type=ManagementUrl(),
    envvar='POSTAGE_MANAGEMENT',
    metavar='URL',
    help="Where --check asks for the bindings: RabbitMQ's management API.",
)
@click.option('--dot', 'form', flag_value='dot', help='Print a graph for Graphviz.')
@click.option('--mermaid', 'form', flag_value='mermaid', help='Print a graph for Mermaid.')
@click.option('--timeout', type=Number(0.1), default=10.0, show_default=True, help='Seconds for the broker.')
@options.as_data
def command(
    targets: tuple[str, ...], check: bool, management: str | None, form: str | None, timeout: float, as_data: bool
) -> None:
    """Show the exchanges, queues and bindings that components declare. Nothing is declared.

    MODULE:NAME is a processor, a consumer or a producer: its class, an object, or a function that returns one or a
    list of them. They are made without a broker.

    --check takes exchanges and queues as they are over AMQP, which cannot list bindings; with --management these are
    checked, too, as the same user.

    Exit status: 0, or with --check 1 if something is missing, or is not as it is declared.
    """
    try:
        check_targets(targets)
    except errors.ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    if as_data and form is not None:
        raise click.UsageError(f'--json or --{form}, not both')
    with quiet():
        programs = programs_of(targets, None)
        faults = [list(_faults(program, timeout, management)) if check else [] for program in programs]
    places = [f' on {program.settings}' if len(programs) > 1 else '' for program in programs]
    if as_data:
        checked = [{'faults': each, 'bindings_checked': management is not None} if check else {} for each in faults]
        print_json([{**_as_data(program), **more} for program, more in zip(programs, checked, strict=True)])
    elif form is not None:
        edges = [edge for program, place in zip(programs, places, strict=True) for edge in edges_of(program, place)]
        click.echo(as_dot(edges) if form == 'dot' else as_mermaid(edges))
    else:
        for program in programs:
            _print(program)
    for place, each in zip(places, faults, strict=True):
        for fault in each:
            click.echo(printable(f'{fault}{place}'), err=True)
    if check and management is None and any(program.bindings for program in programs):
        click.echo(UNCHECKED, err=True)
    sys.exit(1 if any(faults) else 0)


def edges_of(program: Program, place: str = '') -> list[Edge]:
    """The ways that messages take in a program.

    :param place: what each name is followed by, where there are several brokers
    """
    edges = [Edge(each.exchange + place, each.queue + place, each.routing_key) for each in program.bindings]
    for queue in program.queues.values():
        exchange, key = (queue.arguments.get(f'x-dead-letter-{part}') for part in ('exchange', 'routing-key'))
        if exchange is not None:
            target = exchange or (key if key is not None else '(default exchange)')
            edges.append(Edge(queue.name + place, f'{target}{place}', 'dead letters', is_dead=True))
    return list(dict.fromkeys(edges))


def as_dot(edges: list[Edge]) -> str:
    """A graph in Graphviz' language."""
    quoted = json.dumps
    lines = ['digraph topology {', '  rankdir=LR;', '  node [shape=box];']
    lines += [f'  {quoted(name)} [shape=ellipse];' for name in dict.fromkeys(each.source for each in _alive(edges))]
    for edge in edges:
        style = ', style=dashed' if edge.is_dead else ''
        lines.append(f'  {quoted(edge.source)} -> {quoted(edge.target)} [label={quoted(edge.label)}{style}];')
    return '\n'.join([*lines, '}'])


def as_mermaid(edges: list[Edge]) -> str:
    """A graph in Mermaid's language."""
    numbers = {name: f'n{number}' for number, name in enumerate(_names(edges))}
    exchanges = {each.source for each in _alive(edges)}
    lines = ['flowchart LR']
    for name, number in numbers.items():
        opening, closing = ('([', '])') if name in exchanges else ('[', ']')
        lines.append(f'  {number}{opening}"{_escaped(name)}"{closing}')
    for edge in edges:
        arrow = '-.->' if edge.is_dead else '-->'
        label = f'|"{_escaped(edge.label)}"|' if edge.label else ''
        lines.append(f'  {numbers[edge.source]} {arrow}{label} {numbers[edge.target]}')
    return '\n'.join(lines)


def _alive(edges: list[Edge]) -> Iterator[Edge]:
    return (edge for edge in edges if not edge.is_dead)


def _names(edges: list[Edge]) -> list[str]:
    return list(dict.fromkeys(name for edge in edges for name in (edge.source, edge.target)))


def _escaped(text: str) -> str:
    return re.sub(r'[^\w .:@/$+=*-]', lambda found: f'#{ord(found.group())};', printable(text))


def _print(program: Program) -> None:
    click.echo(printable(f'{program} on {program.settings}'))
    kinds = {name: str(parameters.get('exchange_type', '')) for name, parameters in program.exchanges.items()}
    rows = [
        (binding.exchange, kinds.get(binding.exchange, ''), binding.routing_key, binding.queue)
        for binding in program.bindings
    ]
    bound = {binding.exchange for binding in program.bindings}
    rows += [(name, kind, '', '') for name, kind in kinds.items() if name not in bound]
    print_table(('exchange', 'type', 'key', 'queue'), rows)
    dead = [(edge.source, edge.target) for edge in edges_of(program) if edge.is_dead]
    if dead:
        click.echo()
    print_table(('queue', 'dead letters to'), dead)


def _as_data(program: Program) -> dict[str, Any]:
    return {
        'broker': str(program.settings),
        'exchanges': list(program.exchanges.values()),
        'queues': [{'name': queue.name, **queue.flags} for queue in program.queues.values()],
        'bindings': [
            {'exchange': each.exchange, 'routing_key': each.routing_key, 'queue': each.queue}
            for each in program.bindings
        ],
        'published': program.published,
        'consumed': program.consumed,
    }


# Against the broker


def _faults(program: Program, timeout: float, management: str | None) -> Iterator[str]:
    """What the broker has not, or has otherwise. It declares nothing: what is missing is not asked about further."""
    with connected(program.settings, timeout) as broker:
        for name, parameters in program.exchanges.items():
            declared = {'exchange': name, **{key: value for key, value in parameters.items() if key != 'exchange'}}
            yield from _fault(broker, f'exchange {name!r}', 'exchange_declare', declared, {'exchange': name})
        for queue in program.queues.values():
            if not queue.flags.get('exclusive'):  # which is there only while the component runs
                declared = {'queue': queue.name, **queue.flags}
                yield from _fault(broker, f'queue {queue.name!r}', 'queue_declare', declared, {'queue': queue.name})

    if management is not None:
        existing = bindings_of(management, program.settings, timeout)
        temporary = {queue.name for queue in program.queues.values() if queue.flags.get('exclusive')}
        for binding in program.bindings:
            if binding not in existing and binding.queue not in temporary:
                with_arguments = f' and arguments {binding.arguments}' if binding.arguments else ''
                what = f'queue {binding.queue!r} to exchange {binding.exchange!r} by key {binding.routing_key!r}'
                yield f'the binding of {what}{with_arguments} is missing'


def _fault(broker: Broker, about: str, method: str, declared: dict[str, Any], name: dict[str, str]) -> Iterator[str]:
    refusal = broker.refusal(method, passive=True, **name)
    if isinstance(refusal, errors.NotFound):
        yield f'{about} is missing'
    elif refusal is None and not declared.get('passive') and broker.answers_safely:
        refusal = broker.refusal(method, **declared)  # it is there, so this declares nothing new
    if refusal is not None and not isinstance(refusal, errors.NotFound):
        yield f'{about}: {refusal}'
