"""Every program of ``programs`` does on this Postage what it does on 1.2.1, or what its docstring says.

What it does on 1.2.1 is recorded (see ``tests/support/fidelity_runs.py``). A few programs, which ``SEED`` draws, run on
1.2.1 as well, to see that the record is true; in the long form all of them do. The tests download 1.2.1 and carry it to
Python 3: see ``tests/support/old_release.py``. Where the package index cannot be reached these skip; with
``POSTAGE_REQUIRE_OLD_RELEASES=1`` they fail instead.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import fidelity, fidelity_runs, old_release
from support.fidelity import Row
from support.fidelity_runs import Stage
from support.rabbitmq_node import RabbitMQNode
from support.soak import IS_SOAK, SEED

# Programs that do not yet do what their docstrings say. One that does is in error.
KNOWN_FAILURES = set((Path(__file__).parent / 'known_failures.txt').read_text().split())

ROWS = fidelity.rows()
DRAWN = random.Random(SEED).sample(ROWS, len(ROWS) if IS_SOAK else 5)

every_program = pytest.mark.parametrize(
    'row',
    [
        pytest.param(row, id=row.name, marks=pytest.mark.xfail(strict=True) if row.name in KNOWN_FAILURES else ())
        for row in ROWS
    ],
)


@pytest.fixture(scope='module')
def stage(the_node: RabbitMQNode) -> Iterator[Stage]:
    """Where the programs run, one after the other."""
    the_node.start()
    with fidelity_runs.stage(the_node) as stage:
        yield stage


@every_program
def test_the_program_does_what_it_did_or_what_its_row_says(row: Row, stage: Stage) -> None:
    there = fidelity_runs.recorded(row)
    here = stage.run(row, *fidelity_runs.OURS)
    if row.verdict == 'same':
        assert there['notes'], '1.2.1 noted nothing'
        assert here.outcome == there, here.errors
    else:
        assert here.outcome != there, 'both do the same'
        assert row.notes, 'the comments on its notes must say what this Postage notes'
        assert here.notes == row.notes, here.errors
    assert here.status == 0, here.errors


@pytest.mark.timeout(300)  # the first one waits until 1.2.1 is prepared
@pytest.mark.parametrize('number', range(len(DRAWN)))
def test_what_is_recorded_of_1_2_1_is_what_it_does(number: int, stage: Stage) -> None:
    row = DRAWN[number]
    try:
        run = fidelity_runs.run_old(row, stage)
    except old_release.NotAvailable as reason:
        pytest.skip(str(reason))
    assert run.outcome == fidelity_runs.recorded(row), f'{row.name} (SEED={SEED}): {run.errors}'


def test_every_known_failure_is_a_program() -> None:
    assert {row.name for row in ROWS} >= KNOWN_FAILURES


def test_every_record_is_that_of_a_program() -> None:
    assert fidelity_runs.recorded_names() == {row.name for row in ROWS}
