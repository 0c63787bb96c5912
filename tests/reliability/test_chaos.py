"""Programs on both brokers while everything around them fails, one fault after the other by a seed.

Five runs of 25 faults are part of every test run, more and longer ones of ``make soak``. The seed of each run is in the
last lines of the output. ``SEED=… RUNS=1`` repeats its faults, on the same broker.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.brokers import Broker, RabbitMQ
from support.chaos import BROKER_KILLED, KINDS, PRODUCERS, STAGES, Chain, Fault, disturb, plan
from support.evidence import Evidence
from support.soak import IS_SOAK, SEED, runs

FAULTS = 100 if IS_SOAK else 25
KILLS = 25
KILLS_OF_THE_BROKER = 6

pytestmark = pytest.mark.timeout(600)  # the waits within have their own limits, and say what is missing

soak_only = pytest.mark.skipif(not IS_SOAK, reason='takes long; make soak runs it')

Check = Callable[..., None]


@pytest.fixture
def check(tmp_path: Path, record_note: Callable[[str], None]) -> Check:
    """A function that runs the programs on a broker, disturbs them, has them end, and judges.

    Its arguments are the broker, the faults, how these can be had again, how many seconds to wait for progress from
    one fault to the next, and whether everybody is to have recovered before the next one.
    """

    def check(broker: Broker, faults: list[Fault], title: str, patience: float, one_by_one: bool = False) -> None:
        print(title)
        outcome = 'failed'
        try:
            is_killed = any(fault.kind == BROKER_KILLED for fault in faults)
            with Chain(broker, tmp_path, has_retries=not is_killed) as chain:
                for some in [[fault] for fault in faults] if one_by_one else [faults]:
                    disturb(chain, some, patience)
                    chain.await_everybody()
                chain.finish()
            print(chain.logs())
            evidence = Evidence(chain)
            assert not evidence.faults, '\n'.join(evidence.faults)
            outcome = str(evidence)
        finally:
            record_note(f'{title}: {len(faults)} faults, {outcome}')

    return check


@pytest.mark.parametrize('run', range(runs(short=3, long=40)))
def test_nothing_is_lost_and_every_duplicate_has_its_reason(
    run: int, request: pytest.FixtureRequest, check: Check
) -> None:
    seed = SEED + run
    broker = request.getfixturevalue(('embedded', 'rabbitmq')[seed % 2])
    check(broker, plan(seed, FAULTS), f'SEED={seed} RUNS=1 ({broker.name})', patience=0.7 if IS_SOAK else 0.25)


@soak_only
@pytest.mark.parametrize('victims', [PRODUCERS, STAGES], ids=['producers', 'stages'])
def test_nothing_is_lost_when_programs_are_killed(broker: Broker, victims: list[str], check: Check) -> None:
    faults = plan(SEED, KILLS, ['kill'], victims)
    check(broker, faults, f'SEED={SEED} ({broker.name}, {" and ".join(victims)} killed)', patience=2.0)


@soak_only
def test_nothing_is_lost_when_the_broker_is_killed_under_load(private_rabbitmq: RabbitMQ, check: Check) -> None:
    faults = plan(SEED, KILLS_OF_THE_BROKER, [BROKER_KILLED])
    check(private_rabbitmq, faults, f'SEED={SEED} (rabbitmq, killed)', patience=20.0, one_by_one=True)


@soak_only
def test_nothing_is_lost_when_everything_happens_at_once(private_rabbitmq: RabbitMQ, check: Check) -> None:
    faults = plan(SEED, 5 * len(KINDS), list(KINDS))
    check(private_rabbitmq, faults, f'SEED={SEED} (rabbitmq, killed and disturbed)', patience=1.0)
