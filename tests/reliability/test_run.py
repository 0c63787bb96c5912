"""``postage run`` under load: workers that are replaced, and workers that are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.brokers import Broker
from support.programs import Module
from support.running import SHOP, Notes, ShopProducer, Stream, handled_more_than_once, longest_gap
from support.soak import IS_SOAK

TIMES, COUNT = (20, 20_000) if IS_SOAK else (3, 3_000)
RATE = 1000.0
LONGEST_GAP = 0.25 if IS_SOAK else 1.0
"""Seconds; other tests run beside the short form.

A replacement adds nothing to what is usual, 10 to 20 ms: the old worker goes on meanwhile. A longer gap is that of a
broker which gets no processor, for a Python is being started and others want it, too, or which waits for its disk: a
classic queue of RabbitMQ 3.10 handles nothing while it writes out its journal.
"""


class Shop:
    """``postage run`` of a component, and a producer for it."""

    def __init__(
        self,
        broker: Broker,
        producer: ShopProducer,
        run_module: Callable[..., Module],
        tmp_path: Path,
        *options: str,
    ) -> None:
        self.broker = broker
        self.producer = producer
        self.source = tmp_path / 'shop.py'
        self.source.write_text(SHOP)
        self.notes = Notes(tmp_path / 'notes')
        environment = {'NOTES': str(self.notes.path)}
        self.program = run_module('postage', ['run', 'shop:Prices', *options], environment)
        self.program.expect('is ready', 30)

    def replace(self, times: int) -> None:
        """Have it reload, and wait until that is done for the last time."""
        for number in range(1, times + 1):
            self.source.write_text(f'{SHOP}\n# {number}\n')
            self.program.expect('in place of pid', 30, times=number)

    def pid_of(self, number: int) -> int:
        """The process id of the worker that was ready as that one, counted from 0."""
        return int(self.program.expect('is ready', times=number + 1).split('pid ')[1].split(')')[0])

    def end(self) -> int:
        self.program.send_signal(signal.SIGTERM)
        return self.program.wait(30)


@pytest.fixture
def start(
    broker: Broker, run_module: Callable[..., Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Shop]]:
    """A function that starts a shop with options."""
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    with ShopProducer() as producer:
        yield lambda *options: Shop(broker, producer, run_module, tmp_path, *options)


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_redelivered_while_the_workers_are_replaced(
    start: Callable[..., Shop], record_note: Callable[[str], None]
) -> None:
    shop = start('--reload')
    with Stream(shop.producer, COUNT, RATE) as stream:
        shop.replace(TIMES)
    notes = shop.notes.wait(stream.sent, 60)
    gap = longest_gap(notes)
    redelivered = sum(note.redelivered for note in notes)
    workers = len({note.pid for note in notes})
    record_note(
        f'{TIMES} reloads on {shop.broker.name} {shop.broker.rules}: {len(notes)} handled by {workers} workers, '
        f'{redelivered} redelivered, longest gap {gap * 1000:.0f} ms'
    )
    assert shop.end() == 0, shop.program.output
    assert handled_more_than_once(notes) == 0
    assert redelivered == 0
    assert workers > 1
    assert gap < LONGEST_GAP


@pytest.mark.timeout(300)
def test_nothing_is_lost_where_workers_are_killed(
    start: Callable[..., Shop], record_note: Callable[[str], None]
) -> None:
    shop = start('--workers', '2')
    shop.program.expect('is ready', 30, times=2)
    with Stream(shop.producer, COUNT, RATE) as stream:
        for number in range(TIMES):
            os.kill(shop.pid_of(number), signal.SIGKILL)
            shop.program.expect('is ready', 60, times=3 + number)
    notes = shop.notes.wait(stream.sent, 60)
    again = handled_more_than_once(notes)
    record_note(
        f'{TIMES} workers killed on {shop.broker.name} {shop.broker.rules}: {stream.sent} handled, again: {again}'
    )
    assert shop.end() == 0, shop.program.output
    assert {note.number for note in notes} == set(range(stream.sent))
    assert shop.program.count('was killed by SIGKILL') == TIMES
