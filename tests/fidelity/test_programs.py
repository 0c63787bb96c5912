"""Every program of ``programs`` runs on Postage 1.2.1 and on this one, and does what its docstring says.

1.2.1 is downloaded and carried to Python 3 by the test: see ``tests/support/old_release.py``. Where the package index
cannot be reached these tests skip; with ``POSTAGE_REQUIRE_OLD_RELEASES=1`` they fail instead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support import fidelity, old_release
from support.fidelity import Row
from support.rabbitmq_node import RabbitMQNode

# Programs that do not yet do what their docstrings say. One that does is in error.
KNOWN_FAILURES = set((Path(__file__).parent / 'known_failures.txt').read_text().split())

pytestmark = pytest.mark.timeout(300)  # the first one waits until 1.2.1 is prepared

every_program = pytest.mark.parametrize(
    'row',
    [
        pytest.param(row, id=row.name, marks=pytest.mark.xfail(strict=True) if row.name in KNOWN_FAILURES else ())
        for row in fidelity.rows()
    ],
)


@pytest.fixture(scope='module')
def old_python() -> Path:
    """The interpreter that has Postage 1.2.1."""
    try:
        return old_release.prepare()
    except old_release.NotAvailable as reason:
        pytest.skip(str(reason))


@every_program
def test_the_program_does_what_it_did_or_what_its_row_says(
    row: Row, rabbitmq_node: RabbitMQNode, old_python: Path
) -> None:
    old, new = fidelity.run_twice(row, rabbitmq_node, old_python)
    if row.verdict == 'same':
        assert old.notes, f'1.2.1 noted nothing:\n{old.errors}'
        assert new.outcome == old.outcome, f'here:\n{new.errors}\nthere:\n{old.errors}'
        assert new.status == 0, new.errors
    else:
        assert new.outcome != old.outcome, 'both do the same'
        assert row.notes, 'the comments on its notes must say what this Postage notes'
        assert new.notes == row.notes, new.errors
        assert new.status == 0, new.errors


def test_every_known_failure_is_a_program() -> None:
    assert {row.name for row in fidelity.rows()} >= KNOWN_FAILURES
