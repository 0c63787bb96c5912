"""What every store of dead letters does, be it a file or a queue."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from postage import errors
from postage.dead_letters.store import Selection
from support.letters import letter, numbers


def test_a_new_store_is_empty(store):
    assert store.count() == 0
    assert list(store.letters()) == []
    assert store.groups() == []


def test_letters_come_out_as_they_went_in(store):
    properties = {
        'content_type': 'application/json',
        'content_encoding': 'utf-8',
        'headers': {
            'text': 'ä',
            'number': 7,
            'truth': True,
            'nothing': None,
            'list': [1, 'two'],
            'table': {'nested': 1},
            'bytes': {'$bytes': 'AP8='},
            'time': {'$time': '2026-11-21T10:00:00+00:00'},
            'CC': ['elsewhere'],
        },
        'delivery_mode': 1,
        'priority': 3,
        'correlation_id': 'correlated',
        'reply_to': 'somebody',
        'expiration': '100',
        'message_id': 'the-id',
        'timestamp': 1234567890,
        'type': 'a type',
        'user_id': 'another',
        'app_id': 'an app',
    }
    put = letter(properties=properties, body=b'\x00\xff no json', is_repeated=True, attempts=4)
    store.put(put)
    (stored,) = store.letters()
    assert stored.letter == put


def test_a_letter_without_anything_may_be_stored(store):
    put = letter(properties={}, body=b'', exchange='', routing_key='', exception='', message='', traceback='')
    store.put(put)
    (stored,) = store.letters()
    assert stored.letter == put


def test_letters_are_listed_oldest_first(store):
    for number in range(10):
        store.put(letter(number))
    assert numbers(store.letters()) == list(range(10))
    assert numbers(store.letters(limit=3)) == [0, 1, 2]
    assert store.count() == 10


def test_looking_at_letters_takes_none_away(store):
    for number in range(5):
        store.put(letter(number))
    for _ in range(3):
        (first,) = store.letters(limit=1)
        assert store.get(first.id) == first
        assert numbers(store.letters()) == [0, 1, 2, 3, 4]


def test_letters_are_grouped(store):
    for number, exception in enumerate(['KeyError', 'ValueError', 'KeyError', 'KeyError']):
        store.put(letter(number, exception=exception, queue=f'queue-{number % 2}', died_at=1000.0 + number))
    first, second = store.groups()
    assert (first.value, first.count, first.first_died_at, first.last_died_at) == ('KeyError', 3, 1000.0, 1003.0)
    assert (second.value, second.count) == ('ValueError', 1)
    assert [(group.value, group.count) for group in store.groups('queue')] == [('queue-0', 2), ('queue-1', 2)]


def test_letters_are_selected(store):
    store.put(letter(0, exception='package.module.OurError'))
    store.put(letter(1, exception='package.module.YourOurError', queue='other'))
    store.put(letter(2, reason='rejected'))
    ids = [stored.id for stored in store.letters()]

    def selected(**conditions):
        selection = Selection(**conditions)
        assert store.count(selection) == len(numbers(store.letters(selection)))
        return numbers(store.letters(selection))

    assert selected(exception='OurError') == [0]
    assert selected(exception='module.OurError') == [0]
    assert selected(exception='package.module.YourOurError') == [1]
    assert selected(exception='Error') == []
    assert selected(queue='other') == [1]
    assert selected(reason='rejected') == [2]
    assert selected(ids=(ids[2], ids[0])) == [0, 2]
    assert selected(ids=(ids[2],), queue='other') == []


def test_a_letter_is_found_by_its_number(store):
    for number in range(3):
        store.put(letter(number))
    for stored in list(store.letters()):
        assert store.get(stored.id) == stored


@pytest.mark.parametrize('id', ['99', 'nonsense', "1' OR 1=1"])
def test_a_number_that_there_is_not_is_an_error(store, id):
    store.put(letter())
    with pytest.raises(errors.NoSuchLetter, match='has no letter'):
        store.get(id)
    with pytest.raises(errors.NoSuchLetter):
        store.edit(id, body=b'')


def test_a_letter_is_edited(store):
    store.put(letter(0))
    store.put(letter(1))
    first, _ = store.letters()
    body = json.dumps({'content': {'parameters': 7}}).encode()
    changed = store.edit(first.id, body=body, queue='other')
    assert changed.letter == replace(first.letter, body=body, queue='other')
    assert store.get(first.id) == changed
    assert sorted(numbers(store.letters())) == [1, 7]


def test_what_happened_to_a_letter_cannot_be_edited(store):
    store.put(letter())
    (stored,) = store.letters()
    with pytest.raises(TypeError, match='one can change body, properties'):
        store.edit(stored.id, exception='nothing at all')
    assert list(store.letters()) == [stored]


def test_letters_are_deleted(store):
    for number in range(4):
        store.put(letter(number, queue=f'queue-{number % 2}'))
    assert store.delete(Selection(queue='queue-0')) == 2
    assert numbers(store.letters()) == [1, 3]
    assert store.delete() == 2
    assert store.count() == 0


def test_what_is_handed_out_and_not_settled_stays(store):
    for number in range(5):
        store.put(letter(number))
    with store.hand_out() as handout:
        batches = handout.batches(2)
        first, second = next(batches), next(batches)
        assert (numbers(first), numbers(second)) == ([0, 1], [2, 3])
        handout.settle([first[1]])
    assert numbers(store.letters()) == [0, 2, 3, 4]


def test_letters_that_come_while_others_are_handed_out_are_for_the_next_time(store):
    for number in range(3):
        store.put(letter(number))
    with store.hand_out() as handout:
        for batch in handout.batches(1):
            handout.settle(batch)
            store.put(letter(7))
    assert numbers(store.letters()) == [7, 7, 7]


def test_a_store_that_was_closed_opens_again(store):
    store.put(letter(0))
    store.close()
    store.put(letter(1))
    assert numbers(store.letters()) == [0, 1]
