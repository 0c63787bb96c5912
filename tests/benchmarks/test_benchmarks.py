"""The benchmarks still run: as small as it gets, on the embedded broker. Nothing timed is asserted."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postage import messaging
from support.programs import Program
from support.soak import IS_SOAK

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def run_benchmarks(run_program: Callable[..., Program], tmp_path: Path) -> Callable[..., tuple[Program, Any]]:
    """A function that runs the benchmarks with this interpreter; it returns the program and its ``results.json``."""

    def run(*arguments: str) -> tuple[Program, Any]:
        quick = ['--here', '--broker', 'embedded', '--no-plots', '--rounds', '1', '--size', '0.001', '--seed', '1']
        program = run_program(BENCHMARKS / 'run.py', [*quick, '--results', str(tmp_path), *arguments])
        assert program.wait(50) == 0, program.output
        [results] = tmp_path.glob('*/results.json')
        return program, json.loads(results.read_text())

    return run


def failures_of(results: Any) -> list[str]:
    return [f'{run["scenario"]}: {run["failure"]}' for run in results['runs'] if 'failure' in run]


def test_the_comparisons_yield_figures(run_benchmarks: Callable[..., Any]) -> None:
    scenarios = {'publish-20k', 'publish-confirmed', 'consume-prefetch-100', 'rpc-in-turn', 'rpc-100-in-flight'}
    program, results = run_benchmarks('--contenders', 'postage,blocking', '--bench', ','.join(scenarios))
    assert failures_of(results) == []
    assert {run['scenario'] for run in results['runs']} == scenarios
    assert program.count('Targets') == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
def test_the_scenarios_about_postage_alone_yield_figures(run_benchmarks: Callable[..., Any]) -> None:
    scenarios = {'grow-handlers', 'grow-processors', 'grow-threads', 'idle', 'import', 'memory'}
    _, results = run_benchmarks('--contenders', 'postage', '--bench', ','.join(scenarios))
    assert failures_of(results) == []
    assert {run['scenario'] for run in results['runs']} == scenarios


def test_the_other_ways_than_the_fast_lane_yield_figures(run_benchmarks: Callable[..., Any]) -> None:
    program, results = run_benchmarks(
        '--bench', 'ways-publish,ways-rpc', '--contenders', 'postage,postage-thread,postage-tls'
    )
    assert {failure.partition(': ')[2] for failure in failures_of(results)} == {
        'the embedded broker has no port for TLS here'
    }
    assert len(results['runs']) == 6
    assert program.count('× Postage') == 2  # noqa: RUF001  (as in the table)


def test_what_traces_cost_is_measured(run_benchmarks: Callable[..., Any]) -> None:
    pytest.importorskip('opentelemetry.sdk')
    scenarios = {'traces-publish', 'traces-consume', 'traces-rpc'} if IS_SOAK else {'traces-rpc'}
    _, results = run_benchmarks('--bench', ','.join(scenarios))
    assert failures_of(results) == []
    contenders = {'postage', 'postage-api', 'postage-left-out', 'postage-recorded'}
    measured = {(run['scenario'], run['contender']) for run in results['runs']}
    assert measured == {(scenario, contender) for scenario in scenarios for contender in contenders}


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['--contenders', 'postage,blokcing'], "no contender 'blokcing'; there are postage, rabbitmq-c, "),
        (['--bench', 'publish,rcp'], "no scenario begins with 'rcp'; there are publish-20k, "),
        (['--bench', 'idle', '--contenders', 'kombu'], 'none of these contenders takes part in these scenarios'),
        (['--rounds', '0'], '--rounds must be 1 or more'),
        (['--size', '-1'], '--size must be more than 0'),
        (['--python', 'python-of-nowhere'], 'there is no python-of-nowhere'),
    ],
)
def test_what_cannot_be_run_is_told_before_any_environment_is_made(
    words: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run

    made: list[str] = []
    monkeypatch.setattr(run.environments, 'prepare', lambda name, *_: made.append(name))
    monkeypatch.setattr(sys, 'argv', ['run.py', *words])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert text in capsys.readouterr().err
    assert made == []


def test_the_report_names_the_build_of_python(run_benchmarks: Callable[..., Any]) -> None:
    program, results = run_benchmarks('--contenders', 'postage', '--bench', 'publish-20k')
    program.expect(f'the embedded broker; {results["about"]["python"]}; ')
    assert results['about']['python'].startswith(f'Python {platform.python_version()}, ')
    assert platform.python_compiler() in results['about']['python']


def test_a_contender_that_loses_messages_has_no_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import report

    run = {'scenario': 'publish-20k', 'contender': 'postage', 'value': None, 'messages': 10, 'seconds': 1.0, 'cpu': 1.0}
    whole = {**run, 'broker_cpu': 1.0}
    lossy = {**run, 'failure': '9 messages in the queue afterwards, and 10 should be'}
    text = report.report(report.Results([whole, lossy]))
    assert 'no figure for Postage: 9 messages in the queue afterwards, and 10 should be' in text
    assert 'NOT REACHED' not in text


def test_the_other_contenders_send_what_postage_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from contenders import common

    message = messaging.MessageCommand('echo', common.text(0))
    message.fingerprint(messaging.Fingerprint(**common.FINGERPRINT))
    encoded = messaging.JsonEncoder().encode(message.body)
    assert encoded == common.encode(common.envelope(common.text(0)))
    assert len(encoded) == common.BODY_SIZE == 270


WITHOUT_PYTEST = """
import sys
sys.modules['pytest'] = None
sys.path.insert(0, sys.argv[1])
import brokers
print('loaded')
"""


def test_the_environment_that_starts_brokers_needs_no_pytest(run_program: Callable[..., Program]) -> None:
    program = run_program(WITHOUT_PYTEST, [str(BENCHMARKS)])
    assert program.wait(20) == 0, program.output
    assert program.output == 'loaded'
