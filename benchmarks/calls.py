"""How many Python functions Postage calls for a message, counted exactly; `make calls` runs it. See README.rst.

``python benchmarks/calls.py`` prints a table, a row for each way in which messages travel, with the number that must
not be exceeded. ``--by-function ROW`` prints what is called, and how often. Counts hardly depend on the machine, nor on
what else runs on it; they are what can be held by a test where times cannot.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from brokers import BROKERS, Administrator, Broker
from report import table
from running import Contender
from scenarios import QUEUE, body_of

PROGRAM = Path(__file__).resolve().parent / 'contenders' / 'counted_postage.py'


@dataclass(frozen=True)
class Row:
    """One way in which messages travel, and the calls that it may take.

    :ivar role: what the program that is counted is asked to do; that of the responder is ``respond``
    :ivar limit: calls a message, at most; a test holds it
    :ivar before: what was counted before the calls were made fewer (Python 3.11, embedded broker)
    :ivar messages: in each stretch
    :ivar stretches: how many of them are counted
    """

    name: str
    role: str
    limit: float
    before: float
    messages: int = 1000
    stretches: int = 12
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_rpc(self) -> bool:
        """Whether it takes a caller and a responder."""
        return self.role in ('call', 'respond')

    @property
    def run(self) -> tuple[Any, ...]:
        """What rows have in common that are counted in one run."""
        return (self.is_rpc or self.role, self.messages, self.stretches, tuple(self.options.items()))


HUNDRED = {'in_flight': 100}
ROWS = (
    Row('publish', 'publish', limit=14, before=28.3),
    Row('consume', 'consume', limit=16, before=26.2),
    Row('consume-callback', 'consume-by-callback', limit=28, before=29.7),
    Row('rpc-caller', 'call', limit=50, before=89.8, messages=50, stretches=36),
    Row('rpc-responder', 'respond', limit=85, before=139.5, messages=50, stretches=36),
    Row('rpc-100-caller', 'call', limit=40, before=72.7, options=HUNDRED),
    Row('rpc-100-responder', 'respond', limit=48, before=66.2, options=HUNDRED),
)
"""All limits in one place. A row that gets better lowers its own."""


@dataclass(frozen=True)
class Counts:
    """What the stretches of a row came to.

    :ivar messages: in each stretch
    :ivar stretches: of each, by thread, how often each function was called
    """

    messages: int
    stretches: Sequence[Mapping[str, Mapping[str, int]]]

    @property
    def each(self) -> list[float]:
        """Calls a message, of each stretch."""
        return [sum(sum(calls.values()) for calls in stretch.values()) / self.messages for stretch in self.stretches]

    @property
    def figure(self) -> float:
        """Calls a message: the lower quartile, for what disturbs a stretch adds to it, and hardly ever takes away."""
        return statistics.quantiles(self.each, n=4)[0]

    @property
    def median(self) -> float:
        """Calls a message, in half of the stretches at most."""
        return statistics.median(self.each)

    @property
    def in_main_thread(self) -> float:
        """Calls a message in the thread that publishes, calls or handles; the I/O threads do the others."""
        return statistics.median(sum(stretch['MainThread'].values()) / self.messages for stretch in self.stretches)

    def functions(self) -> list[tuple[float, str, str]]:
        """Calls a message of all stretches, the thread and the function, the most frequent first."""
        total: Counter[tuple[str, str]] = Counter()
        for stretch in self.stretches:
            for thread, calls in stretch.items():
                for function, times in calls.items():
                    total[thread, function] += times
        messages = self.messages * len(self.stretches)
        return [(times / messages, *where) for where, times in total.most_common()]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog='calls.py', description='Count the Python calls that a message takes.')
    names = ', '.join(row.name for row in ROWS)
    parser.add_argument('--rows', default='', metavar='NAMES', help=f'of {names}; default: all')
    parser.add_argument('--by-function', metavar='ROW', help='print which functions were called, and how often')
    parser.add_argument('--broker', choices=tuple(BROKERS), default='embedded', help='default: %(default)s')
    parser.add_argument('--url', help='use this broker instead, in an empty virtual host')
    parser.add_argument('--stretches', type=int, metavar='NUMBER', help="that are counted; default: the row's")
    parser.add_argument('--json', type=Path, metavar='FILE', help='write what was called in each stretch there too')
    options = parser.parse_args(words)
    wanted = [options.by_function] if options.by_function else [name for name in options.rows.split(',') if name]
    known = {row.name: row for row in ROWS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        parser.error(f'no row {unknown[0]!r}; there are {names}')
    if options.stretches is not None and options.stretches < 2:
        parser.error('--stretches must be 2 or more')
    options.rows = [known[name] for name in wanted] or list(ROWS)
    if options.stretches is not None:
        options.rows = [replace(row, stretches=options.stretches) for row in options.rows]
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Count what the command line asks for. Returns the exit status: 1 where a limit is exceeded."""
    options = arguments(words)
    with broker_of(options) as broker, contextlib.closing(Administrator(broker)) as administrator:
        counts = count_all(options.rows, broker, administrator)
        about = f'Python {platform.python_version()}, {broker.name}'
    if options.json:
        stretches = {name: {'messages': found.messages, 'stretches': found.stretches} for name, found in counts.items()}
        options.json.write_text(json.dumps({'about': about, 'rows': stretches}, indent=1) + '\n')
    if options.by_function:
        sys.stdout.write(f'{about}\n\n{function_table(counts[options.by_function])}\n')
        return 0
    sys.stdout.write(f'Python calls a message: {about}\n\n{call_table(options.rows, counts)}\n')
    return int(any(counts[row.name].figure > row.limit for row in options.rows))


@contextlib.contextmanager
def broker_of(options: argparse.Namespace) -> Iterator[Broker]:
    """The broker that the command line names, or one of our own."""
    if options.url is None:
        with BROKERS[options.broker]() as broker:
            yield broker
        return
    url = urlsplit(options.url)
    yield Broker('a broker given', url.port or 5672, 0, url.hostname or '127.0.0.1', unquote(url.path[1:]) or '/')


def count_all(rows: Sequence[Row], broker: Broker, administrator: Administrator) -> dict[str, Counts]:
    """The counts of these rows, by name; a caller and its responder are counted in one run."""
    counts: dict[str, Counts] = {}
    for row in rows:
        if row.name not in counts:
            found = count(row, broker, administrator)
            together = [other for other in rows if other.run == row.run]
            counts |= {other.name: found[other.role] for other in together}
    return counts


def count(row: Row, broker: Broker, administrator: Administrator) -> dict[str, Counts]:
    """Run what a row is about, and return the counts of the programs that took part, by role."""
    options = {
        'host': broker.host,
        'port': broker.port,
        'vhost': broker.vhost,
        'queue': QUEUE,
        'confirms': 1,
        'persistent': 1,
        'messages': row.messages,
        'stretches': row.stretches,
        **row.options,
    }
    administrator.declare([QUEUE])
    try:
        if row.role.startswith('consume'):
            # More than is counted, so that the last stretch meets what those before it have met.
            administrator.load(QUEUE, body_of({'role': row.role}), row.messages * (row.stretches + 2))
        with contextlib.ExitStack() as stack:
            programs: dict[str, Contender] = {}
            for role in ('respond', 'call') if row.is_rpc else (row.role,):
                command = [sys.executable, str(PROGRAM)]
                program = programs[role] = stack.enter_context(
                    contextlib.closing(Contender(command, {'role': role, **options}, {}))
                )
                program.await_ready()
                program.go()
            if row.is_rpc:
                programs['call'].end_if_it_fails(programs['respond'])
            figures = {role: program.figures() for role, program in programs.items()}
            for program in programs.values():
                program.await_end()
        return {role: Counts(**found) for role, found in figures.items()}  # type: ignore[arg-type]
    finally:
        administrator.remove([QUEUE])


def call_table(rows: Sequence[Row], counts: Mapping[str, Counts]) -> str:
    """A line for each row."""
    head = ['', 'calls', 'median', 'lowest – highest', 'main thread', 'at most', '', 'before']  # noqa: RUF001
    lines = []
    for row in rows:
        found = counts[row.name]
        lines.append(
            [
                row.name,
                f'{found.figure:.1f}',
                f'{found.median:.1f}',
                f'{min(found.each):.1f} – {max(found.each):.1f}',  # noqa: RUF001
                f'{found.in_main_thread:.1f}',
                f'{row.limit:g}',
                'held' if found.figure <= row.limit else 'EXCEEDED',
                f'{row.before:g}',
            ]
        )
    return table(head, lines)


def function_table(counts: Counts) -> str:
    """A line for each function and thread; what is called less than once in a hundred messages comes as one."""
    found = counts.functions()
    lines = [[f'{calls:.2f}', thread, function] for calls, thread, function in found if calls >= 0.01]
    rare = sum(calls for calls, _, _ in found if calls < 0.01)
    lines.append([f'{rare:.2f}', '', 'all others'])
    lines.append([f'{sum(calls for calls, _, _ in found):.2f}', '', 'together'])
    return '\n'.join(f'{calls:>8}  {thread:<20} {function}'.rstrip() for calls, thread, function in lines)


if __name__ == '__main__':
    sys.exit(main())
