"""The benchmarks: what `make bench` runs. See README.rst."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import builds
import environments
from scenarios import CONTENDERS, SCENARIOS, Scenario, Task, tasks_of

if TYPE_CHECKING:
    from brokers import Administrator, Broker

HERE = Path(__file__).resolve().parent


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog='run.py', description='Measure Postage beside its peers, on RabbitMQ.')
    parser.add_argument('--bench', default='', metavar='NAMES', help='scenarios whose names begin so: publish,rpc')
    parser.add_argument('--contenders', default=','.join(CONTENDERS), metavar='NAMES', help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    parser.add_argument('--size', type=float, default=1.0, help='factor for all numbers of messages')
    parser.add_argument('--seed', type=int, help='of the order of the runs; by default a new one, which is printed')
    parser.add_argument('--results', type=Path, default=HERE / 'results', help='folder; default: %(default)s')
    parser.add_argument('--broker', choices=('rabbitmq', 'embedded'), default='rabbitmq')
    parser.add_argument('--here', action='store_true', help='use this interpreter for all, and make no environments')
    parser.add_argument('--no-plots', action='store_true')
    parser.add_argument('--list', action='store_true', help='list the scenarios')
    parser.add_argument(
        '--python',
        metavar='NAME',
        help=f'the interpreter to measure with; default: {builds.DISTRIBUTION} if that is optimised, else this one',
    )
    options = parser.parse_args(words)
    check(options, parser)
    return options


def check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with a line that says what is wrong with the command line, before anything is made or started."""
    known = [scenario.name for scenario in SCENARIOS]
    for contender in options.contenders.split(','):
        if contender not in CONTENDERS:
            parser.error(f'no contender {contender!r}; there are {", ".join(CONTENDERS)}')
    for word in options.bench.split(','):
        if not any(name.startswith(word) for name in known):
            parser.error(f'no scenario begins with {word!r}; there are {", ".join(known)}')
    if options.rounds < 1:
        parser.error('--rounds must be 1 or more')
    if not options.size > 0:
        parser.error('--size must be more than 0')
    if not any(shuffled_rounds(chosen_scenarios(options.bench), options.contenders.split(','), options, random)):
        parser.error('none of these contenders takes part in these scenarios; see --list')
    try:
        options.python = builds.choose(sys.executable if options.here else options.python)
    except builds.NotSuitable as reason:
        parser.error(str(reason))


def main() -> int:
    """Run what the command line asks for, and return the exit status."""
    options = arguments()
    if options.list:
        for scenario in SCENARIOS:
            sys.stdout.write(f'{scenario.name:<24}{scenario.title}\n')
        return 0
    if not options.here:
        enter_own_environment(options.python)
    scenarios = chosen_scenarios(options.bench)
    commands = prepare(options)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    rounds = shuffled_rounds(scenarios, list(commands), options, random.Random(seed))
    if not any(rounds):
        sys.stderr.write('nothing to run: none of these contenders can run here\n')
        return 2
    say(f'measured with {options.python}: {builds.build_of(options.python)}')
    say(f'seed {seed}; {len(rounds)} rounds of {len(rounds[0])} runs')
    runs: list[dict[str, Any]] = []
    # SIGTERM ends it as Ctrl-C does: with a report of what there is, and with no process left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running_broker(options.broker) as (broker, administrator):
        about = description(options, seed, broker, commands)
        with contextlib.suppress(KeyboardInterrupt):
            run_all(rounds, commands, broker, administrator, runs)
    publish_results(runs, about, options)
    return 0


def enter_own_environment(base: Path) -> None:
    """Go on in the harness's own environment, which has what plots and queues need.

    :param base: the interpreter that environments are made with
    """
    try:
        python = environments.prepare('harness', base)
    except environments.NotAvailable as reason:
        sys.exit(f'the environment of the benchmarks cannot be made: {reason}')
    if Path(sys.prefix) != python.parents[1]:
        os.execv(python, [str(python), *sys.argv, '--python', str(base)])


def chosen_scenarios(names: str) -> list[Scenario]:
    """The scenarios whose names begin with one of these words, or all."""
    words = tuple(word for word in names.split(',') if word)
    return [scenario for scenario in SCENARIOS if not words or scenario.name.startswith(words)]


def prepare(options: argparse.Namespace) -> dict[str, list[str]]:
    """The commands of the contenders that can run here; of the others it is said why they cannot."""
    commands = {}
    for contender in options.contenders.split(','):
        try:
            commands[contender] = environments.prepare_command(contender, None if options.here else options.python)
        except environments.NotAvailable as reason:
            say(f'{CONTENDERS[contender]} is left out: {reason}')
    return commands


def shuffled_rounds(
    scenarios: list[Scenario], contenders: list[str], options: argparse.Namespace, order: Any
) -> list[list[Task]]:
    """Every run once in each round, in a new order each time, so that no contender has the machine's better hours."""
    tasks = [
        task
        for scenario in scenarios
        for contender in scenario.contenders
        if contender in contenders
        for task in tasks_of(scenario, contender, options.size)
    ]
    return [order.sample(tasks, len(tasks)) for _ in range(options.rounds)]


@contextlib.contextmanager
def running_broker(kind: str) -> Iterator[tuple[Broker, Administrator]]:
    """A broker, and the harness's connection to it."""
    # Only now: this needs what is in the harness's environment.
    from brokers import BROKERS, Administrator

    say('starting the broker')
    with BROKERS[kind]() as broker, contextlib.closing(Administrator(broker)) as administrator:
        say(f'{broker.name} runs on port {broker.port}')
        yield broker, administrator


def run_all(
    rounds: list[list[Task]],
    commands: dict[str, list[str]],
    broker: Broker,
    administrator: Administrator,
    runs: list[dict[str, Any]],
) -> None:
    """Run all tasks, tell of each, and add its figures to `runs`."""
    from running import run

    for task in [task for task in rounds[0] if task.role == 'import']:
        # Once untimed, so that the bytecode is cached.
        run(task, commands[task.contender], broker, administrator)
    total, began = sum(map(len, rounds)), time.monotonic()
    for number, tasks in enumerate(rounds, 1):
        for task in tasks:
            figures = run(task, commands[task.contender], broker, administrator)
            runs.append(
                {
                    'scenario': task.scenario.name,
                    'contender': task.contender,
                    'value': task.value,
                    'round': number,
                    **figures,
                }
            )
            left = (time.monotonic() - began) / len(runs) * (total - len(runs))
            say(f'[{len(runs):>4}/{total}, {left / 60:3.0f} min left] round {number}  {task!s:<50} {told(figures)}')


def told(figures: dict[str, Any]) -> str:
    """A run's figures in a few words."""
    if 'failure' in figures:
        return f'FAILED: {figures["failure"]}'
    if figures['messages'] == 1:
        return f'{figures["seconds"]:>9.3f} s'
    return f'{figures["messages"] / figures["seconds"]:>9,.0f} /s'


def description(
    options: argparse.Namespace, seed: int, broker: Broker, commands: dict[str, list[str]]
) -> dict[str, Any]:
    """What one has to know to read the results."""
    return {
        'began': datetime.datetime.now().isoformat(timespec='seconds'),
        'seed': seed,
        'rounds': options.rounds,
        'size': options.size,
        'broker': broker.name,
        'python': str(builds.build_of(options.python)),
        'system': platform.platform(),
        'cores': os.cpu_count(),
        'versions': {name: environments.versions(name, command) for name, command in commands.items()},
    }


def publish_results(runs: list[dict[str, Any]], about: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the runs as JSON, plot them, and print the report."""
    from report import Results, report

    results = Results(runs)
    folder = options.results / about['began'].replace(':', '')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'results.json').write_text(json.dumps({'about': about, 'runs': runs}, indent=2) + '\n')
    text = f'{about["broker"]}; {about["python"]}; {about["cores"]} cores, seed {about["seed"]}, '
    text += f'rounds {about["rounds"]}, size {about["size"]:g}\n\n{report(results)}'
    (folder / 'report.txt').write_text(text)
    if not options.no_plots:
        import plots

        plots.save_all(results, folder)
    sys.stdout.write(f'\n{text}\nWritten to {folder}\n')


def say(line: str) -> None:
    """Tell what is going on, beside the report."""
    sys.stderr.write(line + '\n')
    sys.stderr.flush()


if __name__ == '__main__':
    sys.exit(main())
