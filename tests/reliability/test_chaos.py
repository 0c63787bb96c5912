"""Programs on both brokers while everything around them fails, one fault after the other by a seed.

Five runs of 25 faults are part of every test run, more and longer ones of ``make soak``. The seed of each run is in the
last lines of the output. ``SEED=… RUNS=1`` repeats its faults, on the same broker.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.brokers import Broker
from support.chaos import Chain, Fault, disturb, plan
from support.evidence import Evidence
from support.soak import IS_SOAK, SEED, runs

FAULTS = 60 if IS_SOAK else 25
PATIENCE = 1.0 if IS_SOAK else 0.4
"""Seconds from one fault to the next, where there is no progress at all."""


def check(broker: Broker, directory: Path, faults: list[Fault], note: Callable[[str], None], title: str) -> None:
    """Run the programs, disturb them, let them end, and judge."""
    print(title, *faults, sep='\n')
    try:
        with Chain(broker, directory) as chain:
            disturb(chain, faults, PATIENCE)
            chain.await_everybody()
            chain.finish()
        evidence = Evidence(chain)
        assert not evidence.faults, '\n'.join(evidence.faults)
    except BaseException:
        note(f'{title}: failed')
        raise
    note(f'{title}: {evidence}')


@pytest.mark.parametrize('run', range(runs(5, 40)))
def test_nothing_is_lost_and_every_duplicate_has_its_reason(
    run: int, request: pytest.FixtureRequest, tmp_path: Path, note: Callable[[str], None]
) -> None:
    seed = SEED + run
    broker = request.getfixturevalue(('embedded', 'rabbitmq')[seed % 2])
    faults = plan(seed, FAULTS)
    check(broker, tmp_path, faults, note, f'SEED={seed} RUNS=1 ({broker.name}, {FAULTS} faults)')
