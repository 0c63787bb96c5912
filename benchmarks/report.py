"""From the figures of all runs to tables: medians, spread, ratios, and what was to be reached."""

# ruff: noqa: RUF001  (the multiplication signs and dashes of the tables are meant)

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scenarios import (
    BLOCKING,
    BODY_SCENARIOS,
    BODY_TARGET,
    CONTENDERS,
    GROWTH_TARGETS,
    IDLE_TARGET,
    IMPORT_TARGET,
    POSTAGE,
    RABBITMQ_C,
    SCENARIOS,
    TARGETS,
    Scenario,
    Target,
)

NOTHING = '–'


@dataclass(frozen=True)
class Summary:
    """What the rounds of one contender in one scenario, at one value, came to.

    :ivar failure: why it has no figures, if so
    """

    runs: tuple[dict[str, Any], ...]
    failure: str = ''

    def median(self, figure: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(figure(run) for run in self.runs)

    @property
    def rates(self) -> list[float]:
        """Messages a second, of each round."""
        return [rate(run) for run in self.runs]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cpu(self) -> float:
        """Median microseconds of the client's CPU for a message."""
        return self.median(lambda run: 1e6 * run['cpu'] / run['messages'])

    @property
    def broker_cpu(self) -> float:
        """Median microseconds of the broker's CPU for a message."""
        return self.median(lambda run: 1e6 * run['broker_cpu'] / run['messages'])

    def text(self, name: str, scale: float = 1.0, form: str = '{:.1f}', per_message: bool = False) -> str:
        """The median of a figure that not all runs have."""
        if any(name not in run for run in self.runs):
            return NOTHING
        return form.format(self.median(lambda run: scale * run[name] / (run['messages'] if per_message else 1)))


def rate(run: dict[str, Any]) -> float:
    """Messages a second of one run."""
    return float(run['messages'] / run['seconds'])


class Results:
    """All runs, by scenario, contender and value."""

    def __init__(self, runs: Iterable[dict[str, Any]]) -> None:
        self._runs: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {}
        for run in runs:
            self._runs.setdefault((run['scenario'], run['contender'], run['value']), []).append(run)

    def of(self, scenario: str, contender: str, value: int | None = None) -> Summary | None:
        """The summary of one contender's rounds; ``None`` where it did not run."""
        runs = self._runs.get((scenario, contender, value))
        if not runs:
            return None
        failures = [run['failure'] for run in runs if 'failure' in run]
        return Summary((), failures[0]) if failures else Summary(tuple(runs))

    def figures(self, scenario: str, contender: str, value: int | None = None) -> Summary | None:
        """The same, where it has figures."""
        summary = self.of(scenario, contender, value)
        return summary if summary is not None and not summary.failure else None

    @property
    def scenarios(self) -> list[Scenario]:
        """Those in which something ran."""
        names = {scenario for scenario, _, _ in self._runs}
        return [scenario for scenario in SCENARIOS if scenario.name in names]


def report(results: Results) -> str:
    """All tables, and what was reached."""
    parts = [table_of(scenario, results) for scenario in results.scenarios]
    return '\n\n'.join([*parts, target_table(results)]) + '\n'


def table_of(scenario: Scenario, results: Results) -> str:
    """The table of one scenario, with its title and what failed."""
    if scenario.values:
        head, rows = growth_rows(scenario, results)
    elif scenario.moves_messages:
        head, rows = contender_rows(scenario, results)
    else:
        head, rows = single_rows(scenario, results)
    failures = [
        f'no figure for {CONTENDERS[contender]}{at(value)}: {last_line(summary.failure)}'
        for contender in scenario.contenders
        for value in scenario.values or (None,)
        if (summary := results.of(scenario.name, contender, value)) is not None and summary.failure
    ]
    return '\n'.join([f'{scenario.name}: {scenario.title}', table(head, rows), *failures])


def at(value: int | None) -> str:
    return '' if value is None else f' at {value:,}'


def last_line(text: str) -> str:
    """The line of an error message that says most; the JSON has all of it."""
    return text.strip().splitlines()[-1]


def contender_rows(scenario: Scenario, results: Results) -> tuple[list[str], list[list[str]]]:
    """A row for each contender, the fastest first."""
    is_rpc = scenario.role == 'call'
    bases = {BLOCKING: '× Blocking', RABBITMQ_C: '× rabbitmq-c'}
    if BLOCKING not in scenario.contenders:
        bases = {POSTAGE: '× Postage'}
    head = ['', 'median /s', 'lowest – highest', *bases.values(), 'client µs', 'broker µs']
    if is_rpc:
        head += ['responder µs', 'p50 ms']
    found = [(name, summary) for name in scenario.contenders if (summary := results.figures(scenario.name, name))]
    found.sort(key=lambda pair: -pair[1].rate)
    rows = []
    for name, summary in found:
        row = [
            CONTENDERS[name],
            f'{summary.rate:,.0f}',
            f'{min(summary.rates):,.0f} – {max(summary.rates):,.0f}',
            *(ratio(summary, results.figures(scenario.name, base)) for base in bases),
            f'{summary.cpu:.1f}',
            f'{summary.broker_cpu:.1f}',
        ]
        if is_rpc:
            row += [summary.text('responder_cpu', 1e6, per_message=True), summary.text('p50', 1e3, '{:.2f}')]
        rows.append(row)
    return head, rows


def ratio(summary: Summary, base: Summary | None) -> str:
    return NOTHING if base is None else f'{summary.rate / base.rate:.2f}'


def growth_rows(scenario: Scenario, results: Results) -> tuple[list[str], list[list[str]]]:
    """A row for each value; the rate is compared with that at the first."""
    head = [scenario.varies, 'median /s', 'lowest – highest', '× first', 'MB/s', 'client µs', 'broker µs']
    first = results.figures(scenario.name, POSTAGE, scenario.values[0])
    rows = []
    for value in scenario.values:
        summary = results.figures(scenario.name, POSTAGE, value)
        if summary is not None:
            rows.append(
                [
                    f'{value:,}',
                    f'{summary.rate:,.0f}',
                    f'{min(summary.rates):,.0f} – {max(summary.rates):,.0f}',
                    ratio(summary, first),
                    f'{summary.rate * value / 1e6:,.1f}' if scenario.varies == 'size' else NOTHING,
                    f'{summary.cpu:,.1f}',
                    f'{summary.broker_cpu:,.1f}',
                ]
            )
    return head, rows


def single_rows(scenario: Scenario, results: Results) -> tuple[list[str], list[list[str]]]:
    """The one row of a scenario whose figure is not a rate."""
    unit, figure = SINGLE_FIGURES[scenario.role]
    summary = results.figures(scenario.name, POSTAGE)
    if summary is None:
        return ['', unit], []
    figures = [figure(run) for run in summary.runs]
    return ['', unit, 'lowest – highest'], [
        ['Postage', f'{statistics.median(figures):,.2f}', f'{min(figures):,.2f} – {max(figures):,.2f}']
    ]


SINGLE_FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
    'idle': ('% of a core', lambda run: 100 * run['cpu'] / run['seconds']),
    'import': ('ms', lambda run: 1000 * run['seconds']),
    'memory': ('kB', lambda run: run['bytes'] / 1000),
}


# What is to be reached


def target_table(results: Results) -> str:
    """Every target beside what was measured."""
    rows = [row for target in TARGETS for row in contender_targets(target, results)]
    rows += growth_targets(results) + body_targets(results)
    rows += single_target('idle', IDLE_TARGET, results) + single_target('import', IMPORT_TARGET, results)
    if not rows:
        return 'No target belongs to these scenarios.'
    return 'Targets\n' + table(['', 'measure', 'target', 'measured', ''], rows, left=2)


def contender_targets(target: Target, results: Results) -> list[list[str]]:
    """The three targets of a scenario."""
    summary = results.figures(target.scenario, POSTAGE)
    if results.of(target.scenario, POSTAGE) is None:
        return []
    rows = []
    for measure, factor, base in (
        ('× BlockingConnection', target.times_blocking, BLOCKING),
        ('× rabbitmq-c', target.times_c, RABBITMQ_C),
    ):
        if factor is not None:
            other = results.figures(target.scenario, base)
            measured = summary.rate / other.rate if summary is not None and other is not None else None
            rows.append(target_row(target.scenario, measure, factor, measured, at_least=True))
    cpu = None if summary is None else summary.cpu
    return [*rows, target_row(target.scenario, 'client µs a message', target.cpu, cpu)]


def growth_targets(results: Results) -> list[list[str]]:
    """The rate at the largest value beside that at the smallest."""
    rows = []
    for scenario in results.scenarios:
        if scenario.name in GROWTH_TARGETS:
            first, last = (results.figures(scenario.name, POSTAGE, scenario.values[end]) for end in (0, -1))
            measured = last.rate / first.rate if first is not None and last is not None else None
            measure = f'rate at {scenario.values[-1]} × rate at {scenario.values[0]}'
            rows.append(target_row(scenario.name, measure, GROWTH_TARGETS[scenario.name], measured, at_least=True))
    return rows


def body_targets(results: Results) -> list[list[str]]:
    """CPU for a byte of the largest bodies beside that of the second largest."""
    rows = []
    for scenario in results.scenarios:
        if scenario.name in BODY_SCENARIOS:
            smaller, larger = scenario.values[-2:]
            less, more = (results.figures(scenario.name, POSTAGE, value) for value in (smaller, larger))
            measured = more.cpu / larger / (less.cpu / smaller) if less is not None and more is not None else None
            measure = f'CPU a byte at {larger:,} × at {smaller:,}'
            rows.append(target_row(scenario.name, measure, BODY_TARGET, measured))
    return rows


def single_target(name: str, limit: float, results: Results) -> list[list[str]]:
    """A target for a figure that is not a rate."""
    if results.of(name, POSTAGE) is None:
        return []
    unit, figure = SINGLE_FIGURES[name]
    summary = results.figures(name, POSTAGE)
    return [target_row(name, unit, limit, None if summary is None else summary.median(figure))]


def target_row(scenario: str, measure: str, limit: float, measured: float | None, at_least: bool = False) -> list[str]:
    """One line of the table of targets."""
    demand = f'{"≥" if at_least else "≤"} {limit:g}'
    if measured is None:
        return [scenario, measure, demand, NOTHING, 'not measured']
    reached = measured >= limit if at_least else measured <= limit
    return [scenario, measure, demand, f'{measured:.2f}', 'reached' if reached else 'NOT REACHED']


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns of text, the first so many to the left and the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return '  ' + '  '.join(cells).rstrip()

    return '\n'.join([line(head), '  ' + '  '.join('-' * width for width in widths), *map(line, rows)])
