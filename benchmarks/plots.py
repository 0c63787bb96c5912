"""A picture of each scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')  # there may be no screen

import matplotlib.pyplot as plt
from report import SINGLE_FIGURES, Results
from scenarios import CONTENDERS, POSTAGE, Scenario

POSTAGE_COLOUR, OTHER_COLOUR, BROKER_COLOUR = '#1f5fa8', '#9aa5b1', '#d9b779'


def save_all(results: Results, folder: Path) -> None:
    """Write a PNG for each scenario that has figures."""
    for scenario in results.scenarios:
        if scenario.values:
            figure = growth(scenario, results)
        elif scenario.moves_messages:
            figure = contenders(scenario, results)
        else:
            figure = single(scenario, results)
        if figure is not None:
            figure.suptitle(scenario.title, fontsize=11)
            figure.tight_layout()
            figure.savefig(folder / f'{scenario.name}.png', dpi=120)
            plt.close(figure)


def contenders(scenario: Scenario, results: Results) -> Any:
    """Rates with the rounds as dots, and beside them the CPU of client and broker."""
    found = [(name, summary) for name in scenario.contenders if (summary := results.figures(scenario.name, name))]
    if not found:
        return None
    found.sort(key=lambda pair: pair[1].rate)
    figure, (rates, cpu) = plt.subplots(1, 2, figsize=(11, 0.6 + 0.5 * max(len(found), 3)), sharey=True)
    names = [CONTENDERS[name] for name, _ in found]
    colours = [POSTAGE_COLOUR if name == POSTAGE else OTHER_COLOUR for name, _ in found]
    rates.barh(names, [summary.rate for _, summary in found], color=colours)
    for row, (_, summary) in enumerate(found):
        rates.plot(summary.rates, [row] * len(summary.rates), 'k.', markersize=4)
    rates.set_xlabel('calls a second' if scenario.role == 'call' else 'messages a second')
    client = [summary.cpu for _, summary in found]
    cpu.barh(names, client, color=colours, label='client')
    cpu.barh(names, [summary.broker_cpu for _, summary in found], left=client, color=BROKER_COLOUR, label='broker')
    cpu.set_xlabel('µs of CPU a message')
    cpu.legend(fontsize=8)
    return figure


def growth(scenario: Scenario, results: Results) -> Any:
    """Rate, and CPU for a message, over the values."""
    found = [
        (value, summary) for value in scenario.values if (summary := results.figures(scenario.name, POSTAGE, value))
    ]
    if not found:
        return None
    figure, (rates, cpu) = plt.subplots(1, 2, figsize=(11, 3.6))
    values = [value for value, _ in found]
    rates.plot(values, [summary.rate for _, summary in found], color=POSTAGE_COLOUR)
    for value, summary in found:
        rates.plot([value] * len(summary.rates), summary.rates, 'k.', markersize=4)
    rates.set_ylabel('messages a second')
    cpu.plot(values, [summary.cpu for _, summary in found], color=POSTAGE_COLOUR, label='client')
    cpu.plot(values, [summary.broker_cpu for _, summary in found], color=BROKER_COLOUR, label='broker')
    cpu.set_ylabel('µs of CPU a message')
    cpu.legend(fontsize=8)
    for axes in (rates, cpu):
        axes.set_xscale('log')
        axes.set_xticks(values, [f'{value:,}' for value in values])
        axes.minorticks_off()
        axes.set_xlabel(scenario.varies)
        if scenario.varies == 'size':
            axes.set_yscale('log')
        else:
            axes.set_ylim(bottom=0)
    return figure


def single(scenario: Scenario, results: Results) -> Any:
    """The rounds of a figure that is not a rate."""
    summary = results.figures(scenario.name, POSTAGE)
    if summary is None:
        return None
    unit, value_of = SINGLE_FIGURES[scenario.role]
    figure, axes = plt.subplots(figsize=(6, 2.4))
    values = [value_of(run) for run in summary.runs]
    axes.bar([str(number + 1) for number in range(len(values))], values, color=POSTAGE_COLOUR)
    axes.set_xlabel('round')
    axes.set_ylabel(unit)
    return figure
