"""Many letters: stored by four processes, listed, grouped, and replayed at a rate while messages flow.

Ten thousand with ``POSTAGE_SOAK=1``, fewer otherwise.
"""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from postage import messaging
from postage.cli.main import postage
from postage.dead_letters import SQLiteDeadLetters
from support.messaging import EchoExchange, EchoProducer, Processor, eventually
from support.programs import ECHO
from support.soak import IS_SOAK

LETTERS = 10_000 if IS_SOAK else 300

FAILING = (
    ECHO
    + """
import sys
from postage.dead_letters import SQLiteDeadLetters

class Failing(messaging.MessageProcessor):
    dead_letters = SQLiteDeadLetters(sys.argv[1], timeout=30)

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        raise (ValueError if content['parameters'] % 3 else KeyError)(content['parameters'])

import logging
logging.getLogger('postage').setLevel(logging.CRITICAL)
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(Failing({}, [(EchoExchange, [('echo-queue', 'echo-rk')])]))
print('ready', flush=True)
scheduler.run()
"""
)


class Counting(Processor):
    """Counts what it gets, by number."""

    def __init__(self):
        self.counts = {}
        super().__init__()

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        number = content['parameters']
        self.counts[number] = self.counts.get(number, 0) + 1


def call(*arguments):
    result = CliRunner().invoke(postage, ['dead-letters', *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.timeout(300 if IS_SOAK else 60)
def test_many_letters_are_stored_by_four_processes_and_replayed_and_none_is_lost_or_doubled(bench, path, run_program):
    producer = bench.producer()
    bench.consumer().close()
    programs = [run_program(FAILING, [str(path)]) for _ in range(4)]
    for program in programs:
        program.expect('ready')
    for number in range(LETTERS):
        producer.message_echo(number)
    with SQLiteDeadLetters(path) as store:
        eventually_many(lambda: store.count() == LETTERS)
        for program in programs:
            program.stop()
        assert store.count() == LETTERS
    groups = call('list', '--store', path, '--group', 'exception', '--json')
    assert {group['exception']: group['count'] for group in groups} == {
        'KeyError': (LETTERS + 2) // 3,
        'ValueError': LETTERS - (LETTERS + 2) // 3,
    }
    listed = call('list', '--store', path, '--json')
    assert {json.loads(each['body'])['content']['parameters'] for each in listed} == set(range(LETTERS))

    processor = Counting()
    bench.run(processor)
    for number in range(LETTERS, LETTERS + 500):  # others flow meanwhile
        producer.message_echo(number)
    replayed = call('replay', '--store', path, '--rate', LETTERS / 2, '--json')
    assert replayed == {'sent': LETTERS, 'repeated': 0, 'failures': {}}
    eventually_many(lambda: len(processor.counts) == LETTERS + 500)
    assert set(processor.counts.values()) == {1}
    with SQLiteDeadLetters(path) as store:
        assert store.count() == 0
    assert EchoProducer.eks == [(EchoExchange, 'echo-rk')]


def eventually_many(condition):
    """Wait for what takes its time with ten thousand letters."""
    for _ in range(12):
        try:
            return eventually(condition)
        except AssertionError:
            continue
    return eventually(condition)
