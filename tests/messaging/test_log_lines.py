"""What an operator reads: at which level, how often, and what a line says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from postage import messaging
from postage.dead_letters import SQLiteDeadLetters
from support.messaging import Bench, Processor, eventually


class Failing(Processor):
    @messaging.MessageHandler('command', 'fail')
    @messaging.Retry(KeyError, delays=(0.05, 0.05))
    def msg_fail(self, content: dict[str, Any]) -> None:
        raise KeyError('a price')


def test_a_final_failure_says_after_how_many_attempts_and_where_the_letter_lies(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / 'dead.db'
    with SQLiteDeadLetters(path) as store:
        bench.run(type('Kept', (Failing,), {'dead_letters': store})())
        producer = bench.producer()
        for number in (1, 2):
            producer.message_fail()
            line = bench.log.expect(f'letter {number} in {path}')
            assert line.startswith('WARNING')
            assert 'is given up after 3 attempts' in line
        assert bench.log.find('ERROR', 'which is rejected after 3 attempts')
        assert [stored.id for stored in store.letters()] == ['1', '2']


def test_without_a_store_it_says_after_how_many_attempts_too(bench: Bench) -> None:
    bench.run(Failing())
    bench.producer().message_fail()
    bench.log.expect('ERROR', 'which is rejected after 3 attempts')


def test_a_message_that_no_handler_takes_is_said_once_for_each_name(bench: Bench) -> None:
    processor = Failing()
    bench.run(processor)
    producer = bench.producer()
    for _ in range(3):
        producer.message_nonsense()
        producer.message_other()
    eventually(lambda: processor.figures.unhandled == 6)
    assert len(bench.log.find('WARNING', 'has no handler for')) == 2
    assert len(bench.log.find('nonsense', 'said once')) == 1


def test_a_connection_that_is_there_again_is_no_warning(bench: Bench) -> None:
    bench.run(Failing())
    bench.broker.close_all_connections()
    assert bench.log.expect('connected to', 'again (consuming)').startswith('INFO')
