"""Objects that are known as long as they live can be looked through while other threads add to them."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from postage.amqp.topology import Topologies, Topology
from postage.living import Living
from postage.messaging.health import counted, watched

SECONDS = 0.5  # in which a WeakSet in their place fails ten times


class One:
    """An object that can be known."""


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """The interpreter switches between threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures('quick_switches')
@pytest.mark.parametrize(
    ('known', 'kind'),
    [(Living(), One), (Topologies(), Topology), (watched, One), (counted, One)],
    ids=['living', 'topologies', 'watched', 'counted'],
)
def test_they_can_be_looked_through_while_another_thread_adds_and_discards(known: Any, kind: Any) -> None:
    kept = [kind() for _ in range(20)]
    for each in kept:
        known.add(each)
    is_over = threading.Event()

    def change() -> None:
        while not is_over.is_set():
            one = kind()
            known.add(one)
            known.discard(one)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            assert set(map(id, kept)) <= set(map(id, known))
    finally:
        is_over.set()
        changing.join()
        for each in kept:
            known.discard(each)
    assert not set(map(id, kept)) & set(map(id, known))


def test_what_has_ended_is_known_no_more() -> None:
    known: Living[One] = Living()
    kept, given_up = One(), One()
    known.add(given_up)
    known.add(kept)
    del given_up
    gc.collect()
    assert list(known) == [kept]


def test_what_was_added_twice_is_known_once() -> None:
    known: Living[One] = Living()
    one = One()
    known.add(one)
    known.add(one)
    assert list(known) == [one]
    known.discard(one)
    known.discard(one)
    assert list(known) == []
