"""The number of Python calls that a message takes stays within its limits; ``benchmarks/calls.py`` has them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support.brokers import Broker
from support.programs import Program
from support.soak import IS_SOAK

ATTEMPTS = (['--stretches', '4'], [], [], [])
"""What the command is told each time. A machine that is busy with other things adds calls: what waits longer is looked
after more often. So a row that takes too many in a few stretches is counted again in as many as it has for users.
"""
PATIENCE = 120.0  # seconds
BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module with the limits."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import calls

    return calls


@pytest.mark.timeout(len(ATTEMPTS) * PATIENCE)
@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere no waiting thread reads, which takes other calls')
@pytest.mark.parametrize('broker', ['embedded', 'rabbitmq'] if IS_SOAK else ['embedded'], indirect=True)
def test_no_message_takes_more_calls_than_its_row_allows(
    calls: ModuleType, broker: Broker, run_program: Callable[..., Program], tmp_path: Path
) -> None:
    exceeded = {row.name: row.limit for row in calls.ROWS}
    for options in ATTEMPTS:
        found = tmp_path / 'calls.json'
        words = ['--url', broker.url, '--rows', ','.join(exceeded), '--json', str(found), *options]
        program = run_program(BENCHMARKS / 'calls.py', words)
        assert program.wait(PATIENCE) in (0, 1), program.output
        rows = json.loads(found.read_text())['rows']
        counts = {name: calls.Counts(**row).figure for name, row in rows.items()}
        assert counts.keys() == exceeded.keys()
        assert min(counts.values()) > 1
        exceeded = {name: limit for name, limit in exceeded.items() if counts[name] > limit}
        if not exceeded:
            return
    pytest.fail(program.output)


@pytest.mark.timeout(PATIENCE + 10)
def test_the_functions_of_a_row_add_up_to_its_calls(
    calls: ModuleType, embedded: Broker, run_program: Callable[..., Program]
) -> None:
    program = run_program(
        BENCHMARKS / 'calls.py', ['--url', embedded.url, '--stretches', '2', '--by-function', 'rpc-caller']
    )
    assert program.wait(PATIENCE) == 0, program.output
    *lines, together = [line.split() for line in program.lines[2:]]
    assert any(line[-1] == 'PublishingChannel.publish' for line in lines)
    assert sum(float(line[0]) for line in lines) == pytest.approx(float(together[0]), abs=0.5)


def test_a_row_that_is_not_there_is_told_before_anything_is_started(run_program: Callable[..., Program]) -> None:
    program = run_program(BENCHMARKS / 'calls.py', ['--rows', 'publish,rcp'])
    assert program.wait() == 2
    assert "no row 'rcp'; there are publish, consume," in program.output


def test_every_call_of_every_thread_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS / 'contenders')
    from counting import CallCounter

    def called() -> None:
        pass

    def resumed() -> Iterator[None]:
        yield
        yield

    def some() -> None:
        for _ in range(3):
            called()
        for _ in resumed():
            pass

    before = sys.getprofile()
    counter = CallCounter()
    try:
        some()
        counter.mark()
        some()
        thread = threading.Thread(target=some, name='another')
        thread.start()
        thread.join()
        counter.mark()
    finally:
        counter.stop()
        sys.setprofile(before)
    [stretch] = counter.stretches()
    for thread in ('MainThread', 'another'):
        ours = {name.rpartition('.')[2]: times for name, times in stretch[thread].items() if __name__ in name}
        assert ours == {'some': 1, 'called': 3, 'resumed': 3}
