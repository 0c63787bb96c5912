"""The judge of the chaos tests sees what is wrong, and only that."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from support.chaos import CAST, KINDS, ON_ANY_BROKER, Entry, plan
from support.evidence import Evidence

LOST = 'log WARNING the connection to x (consuming) was lost: reset'
RESENT = 'log WARNING 1 unconfirmed messages will be sent again'

GOOD = {
    'p1': ['publishes i', 'published i id1', 'confirmed i id1'],
    'a1': ['handles i id1 fresh id1', 'published i id2', 'confirmed i id2'],
    'b': ['handles i id2 fresh id1', 'published i id3', 'confirmed i id3'],
    'c': ['handles i id3 fresh id1'],
}
"""What is told of one item on its way from end to end."""


class Life:
    def __init__(self, lines: list[str], was_killed: bool) -> None:
        self.was_killed = was_killed
        self.journal = []
        for time, line in enumerate(lines):
            what, rest = line.split(' ', 1)
            self.journal.append(Entry(float(time), what, (rest,) if what == 'log' else tuple(rest.split())))

    def entries(self, what: str) -> list[Entry]:
        return [entry for entry in self.journal if entry.what == what]


def judge(killed: str = '', **told: list[str]) -> Evidence:
    """Judge what programs have told; those that are not given told what is in :data:`GOOD`."""
    lives = {name: Life(told.get(name, GOOD.get(name, [])), name == killed) for name in CAST}
    players = {name: SimpleNamespace(life=life) for name, life in lives.items()}

    def all_lives() -> Iterator[tuple[str, Life]]:
        return iter(lives.items())

    chain: Any = SimpleNamespace(lives=all_lives, players=players, arrived={'i': 1.0})
    return Evidence(chain)


def test_a_good_run_has_no_faults_and_no_duplicates() -> None:
    evidence = judge()
    assert evidence.faults == []
    assert not any(evidence.duplicates.values())
    assert str(evidence).startswith('1 messages confirmed and handled from end to end, 0 unconfirmed')


def test_a_producer_may_publish_again_what_was_refused() -> None:
    refused = ['publishes i', 'published i id0', 'log ERROR the broker refused message id0', 'refused i id0']
    evidence = judge(p1=[*refused, *GOOD['p1']])
    assert evidence.faults == []
    assert '1 refused and published again' in str(evidence)
    assert judge(p1=[*GOOD['p1'], 'log ERROR the broker refused message id0']).faults


def test_a_stage_handles_a_message_again_when_what_it_published_was_refused() -> None:
    refused = [
        'handles i id1 fresh id1',
        'published i id8',
        'log ERROR the broker refused message id8',
        'refused i id8',
    ]
    told = [*refused, 'again i id1', *GOOD['a1']]
    assert judge(a1=told).faults == []
    assert judge(a1=[line for line in told if not line.startswith('again')]).faults


@pytest.mark.parametrize(
    ('told', 'fault'),
    [
        ({'a1': []}, 'i was confirmed for queue a and is lost'),
        ({'c': []}, 'i was confirmed for queue c and is lost'),
        ({'b': GOOD['b'][:1], 'c': []}, 'i was confirmed to its producer and has not come out at the end'),
        ({'p1': GOOD['p1'][:2]}, 'i was never confirmed, though p1 ended in good order'),
        ({'p1': [*GOOD['p1'][:2], 'refused i id1']}, 'never confirmed'),
        ({'c': GOOD['c'] * 2}, 'was new 2 times and published 1 times'),
        ({'c': [*GOOD['c'], 'handles i id3 again id1']}, 'was handled 2 times, without a reason'),
        ({'c': [*GOOD['c'], 'handles i id4 fresh id1']}, 'i is 2 messages in queue c, 1 were sent'),
        ({'c': ['handles i id3 fresh another']}, 'i cannot be recognised at the end'),
        ({'c': [*GOOD['c'], 'handles j id3 again id1']}, 'is two messages'),
        ({'c': [*GOOD['c'], 'log Traceback (most recent call last):']}, 'c said: Traceback'),
    ],
)
def test_what_is_wrong_is_found(told: dict[str, list[str]], fault: str) -> None:
    evidence = judge(**told)
    assert [each for each in evidence.faults if fault in each], evidence.faults


def test_a_message_may_come_again_after_a_loss() -> None:
    evidence = judge(c=[*GOOD['c'], LOST, 'handles i id3 again id1'])
    assert evidence.faults == []
    assert evidence.duplicates['redelivered'] == 1


def test_a_message_may_come_again_after_a_kill() -> None:
    assert judge(killed='c', c=[*GOOD['c'], 'handles i id3 again id1']).faults == []


def test_a_message_may_come_as_a_new_one_where_it_was_sent_again() -> None:
    evidence = judge(b=[*GOOD['b'][:2], RESENT, GOOD['b'][2]], c=GOOD['c'] * 2)
    assert evidence.faults == []
    assert evidence.duplicates['sent again'] == 1


def test_a_message_may_come_twice_where_it_was_twice_sent_back_to_be_tried_again() -> None:
    fails = 'fails i id3'
    assert judge(c=[fails, *GOOD['c']]).faults == []
    assert judge(c=[fails, LOST, fails, *GOOD['c'], *GOOD['c']]).faults == []
    assert judge(c=[fails, LOST, fails, *GOOD['c'], *GOOD['c'], *GOOD['c']]).faults != []


def test_what_was_confirmed_is_not_sent_again() -> None:
    assert judge(b=[*GOOD['b'], RESENT], c=GOOD['c'] * 2).faults != []


def test_an_item_may_be_two_messages_where_its_handler_ran_twice() -> None:
    twice = ['handles i id2 again id1', 'published i id4', 'confirmed i id4']
    evidence = judge(b=[*GOOD['b'], LOST, *twice], c=[*GOOD['c'], 'handles i id4 fresh id1'])
    assert evidence.faults == []
    assert evidence.duplicates['handed on again'] == 1


def test_a_seed_has_one_plan_and_a_longer_one_begins_with_it() -> None:
    assert plan(7, 25) == plan(7, 60)[:25]
    assert plan(7, 25) != plan(8, 25)
    assert {fault.kind for fault in plan(7, 25)} == set(ON_ANY_BROKER)
    assert {fault.kind for fault in plan(7, 25, list(KINDS))} == set(KINDS)
