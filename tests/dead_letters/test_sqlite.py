"""Dead letters in a file: on the disk, shared by processes, and clear about what goes wrong."""

from __future__ import annotations

import os
import sqlite3
import threading

import pytest

from postage import errors
from postage.dead_letters import SQLiteDeadLetters
from support.letters import letter, numbers

PUTTING = """
import sys
sys.path[:0] = sys.argv[4:]
from concurrent.futures import ThreadPoolExecutor
from postage.dead_letters import SQLiteDeadLetters
from support.letters import letter

with SQLiteDeadLetters(sys.argv[1], timeout=30) as store, ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda number: store.put(letter(number)), range(int(sys.argv[2]), int(sys.argv[3]))))
print('all put')
"""


@pytest.fixture
def store(path):
    with SQLiteDeadLetters(path) as store:
        yield store


def test_a_letter_is_synchronised_to_the_disk_when_put_returns(store, path):
    store.put(letter())
    assert store._query('PRAGMA journal_mode') == [('wal',)]
    assert store._query('PRAGMA synchronous') == [(2,)]  # FULL
    with SQLiteDeadLetters(path, create=False) as other:
        assert other.count() == 1


def test_a_letter_that_was_put_before_its_process_died_is_there(store, path, run_program):
    program = run_program(
        'import os, signal, sys\nsys.path[:0] = sys.argv[2:]\n'
        'from postage.dead_letters import SQLiteDeadLetters\nfrom support.letters import letter\n'
        'SQLiteDeadLetters(sys.argv[1]).put(letter(7))\nos.kill(os.getpid(), signal.SIGKILL)\n',
        [str(path), *support_path()],
    )
    assert program.wait() == -9, program.output
    assert numbers(store.letters()) == [7]


def support_path():
    import support

    return [os.path.dirname(os.path.dirname(support.__file__))]


def test_four_processes_lose_and_double_none(store, path, run_program):
    store.count()
    programs = [
        run_program(PUTTING, [str(path), str(start), str(start + 250), *support_path()])
        for start in range(0, 1000, 250)
    ]
    for program in programs:
        program.expect('all put')
    assert sorted(numbers(store.letters())) == list(range(1000))


def test_letters_of_several_threads_share_a_commit(store):
    commits = []
    store._database().set_trace_callback(lambda statement: commits.append(statement) if 'COMMIT' in statement else None)
    with store._lock:  # all of them have to wait
        threads = [threading.Thread(target=store.put, args=(letter(number),)) for number in range(20)]
        for thread in threads:
            thread.start()
        while len(store._waiting) < 20:
            threading.Event().wait(0.005)
    for thread in threads:
        thread.join()
    assert len(commits) == 1
    assert sorted(numbers(store.letters())) == list(range(20))


def test_a_letter_that_is_put_again_because_its_acknowledgement_was_lost_is_one(store):
    store.put(letter(7, attempts=1))
    store.put(letter(7, attempts=2, is_repeated=True, exception='KeyError'))
    (stored,) = store.letters()
    assert (stored.letter.attempts, stored.letter.exception) == (2, 'KeyError')


def test_letters_that_only_look_alike_are_two(store):
    store.put(letter(7))
    store.put(letter(7))  # an id that somebody uses for all of his messages
    store.put(letter(7, is_repeated=True, body=b'another'))
    store.put(letter(7, is_repeated=True, queue='another'))
    store.put(letter(7, is_repeated=True, properties={}))
    store.put(letter(7, is_repeated=True, properties={}))
    assert store.count() == 6


def test_a_full_disk_is_an_error_and_the_letters_that_are_there_stay(path):
    with SQLiteDeadLetters(path, max_bytes=100_000) as store:
        big = letter(body=b'x' * 10_000)
        with pytest.raises(errors.StoreError, match='full'):
            list(map(store.put, [big] * 100))
        assert 3 < store.count() < 100
        store.delete()
        store.put(letter(0))
        assert store.count() == 1


def test_a_locked_store_is_an_error_after_a_while(store, path):
    store.timeout = 0.1
    store.count()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute('BEGIN IMMEDIATE')
        with pytest.raises(errors.StoreError, match='locked'):
            store.put(letter())
        other.execute('ROLLBACK')
    other.close()
    store.put(letter())
    assert store.count() == 1


@pytest.fixture
def elsewhere(path):
    """A database of somebody else."""
    with sqlite3.connect(path) as database:
        database.execute('CREATE TABLE theirs (secret TEXT)')
    database.close()
    return path


def test_a_database_of_another_program_is_left_alone(elsewhere):
    before = elsewhere.read_bytes()
    with pytest.raises(errors.StoreError, match='is a database of another program'):
        SQLiteDeadLetters(elsewhere).put(letter())
    assert elsewhere.read_bytes() == before


def test_what_is_no_database_is_an_error(path):
    path.write_text('no database at all, and long enough to be taken for something')
    with pytest.raises(errors.StoreError, match='file is not a database'):
        SQLiteDeadLetters(path).count()


def test_a_store_of_a_newer_postage_is_an_error(store, path):
    store.put(letter())
    store._database().execute('PRAGMA user_version = 99')
    store.close()
    with pytest.raises(errors.StoreError, match=r'newer Postage \(version 99'):
        store.count()


def test_a_store_that_must_exist_is_not_made(path):
    with pytest.raises(errors.StoreError, match='does not exist'):
        SQLiteDeadLetters(path, create=False).count()
    assert not path.exists()


def test_a_store_that_cannot_be_made_is_an_error(path):
    path.write_text('')
    with pytest.raises(errors.StoreError, match='cannot be made'):
        SQLiteDeadLetters(path / 'letters.db').count()


def test_the_folders_of_a_store_are_made(path):
    with SQLiteDeadLetters(path.parent / 'new' / 'folder' / 'letters.db') as store:
        store.put(letter())
        assert store.count() == 1


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork')
def test_a_forked_child_has_a_connection_of_its_own(store):
    store.put(letter(0))
    child = os.fork()
    if not child:
        status = 1
        try:
            store.put(letter(1))
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.put(letter(2))
    assert numbers(store.letters()) == [0, 1, 2]


def test_two_do_not_hand_out_at_the_same_time(store, path):
    store.put(letter())
    with (
        store.hand_out(),
        SQLiteDeadLetters(path) as other,
        pytest.raises(errors.StoreError, match='is being replayed by another process'),
        other.hand_out(),
    ):
        pass
    with store.hand_out() as handout:
        assert len(next(handout.batches(10))) == 1


def test_letters_can_be_put_while_others_are_handed_out(store, path):
    store.put(letter(0))
    with store.hand_out() as handout, SQLiteDeadLetters(path) as other:
        next(handout.batches(10))
        other.put(letter(1))
    assert store.count() == 2


def test_a_letter_says_that_a_replay_of_it_was_cut_short(store):
    store.put(letter())
    with store.hand_out() as handout:
        next(handout.batches(10))
    (stored,) = store.letters()
    assert stored.replay_begun_at is not None
