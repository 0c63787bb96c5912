"""Eight threads do everything at random on one pair of connections, which are lost now and then, against a model.

A few seconds are part of every test run, twenty minutes on each broker of ``make soak``. The seed is in the last lines
of the output; ``SEED=…`` has every thread do the same again.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.messaging import Bench
from support.proxy import Proxy
from support.soak import IS_SOAK, SEED
from support.stress import LIMIT, Stress

pytestmark = pytest.mark.usefixtures('proxy')  # set up first: what connects through it is closed before it ends

SECONDS = 1200.0 if IS_SOAK else 3.0


@pytest.mark.timeout(SECONDS + 4 * LIMIT)
def test_whatever_threads_do_at_once_each_gets_its_answers_and_nothing_is_lost_or_left(
    bench: Bench, proxied: Proxy, record_note: Callable[[str], None]
) -> None:
    title = f'SEED={SEED} ({bench.broker.name})'
    print(title)
    stress = Stress(bench, proxied, SEED)
    try:
        stress.run(SECONDS)
        stress.judge()
    finally:
        record_note(f'{title}: {stress}')
    assert not (found := bench.log.find('Traceback')), f'{title}\n{found[0]}'
