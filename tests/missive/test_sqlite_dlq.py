"""The dead letter queue in a SQLite file: a mapping in every respect."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from missive.conftest import Run, wait_until
from postage import errors, missive
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from postage.missive.adapters.stdin import StdinAdapter
from postage.missive.dlq.sqlite import SQLiteDLQ
from support.messaging import Bench
from support.programs import Program


@pytest.fixture
def dlq(tmp_path: Path) -> Iterator[SQLiteDLQ]:
    with SQLiteDLQ(tmp_path / 'dlq.db') as dlq:
        yield dlq


def message(name: bytes, data: bytes = b'data', **headers: Any) -> missive.RawMessage:
    return missive.RawMessage(data, name, headers)


def fill(dlq: SQLiteDLQ, *names: bytes) -> None:
    for name in names:
        dlq[name] = (message(name), f'reason of {name.decode()}')


def test_what_is_stored_is_read_again(dlq: SQLiteDLQ) -> None:
    stored = message(b'\x00\xff', b'\x00data', a=1, b=['c'])
    dlq[b'\x00\xff'] = (stored, 'why')
    read, reason = dlq[b'\x00\xff']
    assert (read, read.raw_data, read.headers, reason) == (stored, b'\x00data', {'a': 1, 'b': ['c']}, 'why')


@pytest.mark.parametrize('name', [b'plain', b'hex:00', b'\x80', 'schön'.encode(), b'line\nbreak', b' '])
def test_every_message_id_is_its_own(dlq: SQLiteDLQ, name: bytes) -> None:
    fill(dlq, b'another')
    dlq[name] = (message(name), 'why')
    assert list(dlq) == [b'another', name]
    assert dlq[name][0].message_id == name


def test_the_oldest_says_since_when(dlq: SQLiteDLQ) -> None:
    before = datetime.now(timezone.utc)
    fill(dlq, b'a', b'b')
    stored, reason, since = dlq.oldest()
    assert (stored, reason) == (message(b'a'), 'reason of a')
    assert before <= since <= datetime.now(timezone.utc)


def test_its_file_may_be_given_by_the_other_name(tmp_path: Path) -> None:
    with SQLiteDLQ(connection_str=tmp_path / 'dlq.db') as dlq:
        fill(dlq, b'a')
    assert (tmp_path / 'dlq.db').exists()


@pytest.mark.parametrize('given', [{}, {'path': 'a.db', 'connection_str': 'b.db'}])
def test_its_file_is_given_once(given: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match='once'):
        SQLiteDLQ(**given)


def test_every_operation_of_a_mapping_works(dlq: SQLiteDLQ) -> None:
    assert not dlq
    assert (len(dlq), list(dlq)) == (0, [])
    fill(dlq, b'a', b'b', b'c')
    assert (len(dlq), list(dlq), b'b' in dlq, b'z' in dlq, 'b' in dlq) == (3, [b'a', b'b', b'c'], True, False, False)
    assert list(dlq.items()) == [(name, (message(name), f'reason of {name.decode()}')) for name in (b'a', b'b', b'c')]
    assert list(dlq.keys()) == [b'a', b'b', b'c']
    assert [reason for _, reason in dlq.values()] == ['reason of a', 'reason of b', 'reason of c']
    assert dlq.get(b'z') is None
    with pytest.raises(KeyError):
        dlq[b'z']
    with pytest.raises(KeyError):
        del dlq[b'z']
    del dlq[b'b']
    assert dlq.pop(b'c') == (message(b'c'), 'reason of c')
    assert dlq.popitem() == (b'a', (message(b'a'), 'reason of a'))
    dlq.update({b'd': (message(b'd'), 'reason of d')})
    assert dlq.setdefault(b'd', (message(b'd'), 'other'))[1] == 'reason of d'
    assert dlq == {b'd': (message(b'd'), 'reason of d')}
    dlq.clear()
    assert len(dlq) == 0


def test_the_same_id_again_takes_the_old_one_s_place(dlq: SQLiteDLQ) -> None:
    dlq[b'a'] = (message(b'a', b'one'), 'first')
    dlq[b'a'] = (message(b'a', b'two'), 'second')
    assert len(dlq) == 1
    read, reason = dlq[b'a']
    assert (read.raw_data, reason) == (b'two', 'second')


def test_the_oldest_is_the_oldest(dlq: SQLiteDLQ) -> None:
    with pytest.raises(KeyError):
        dlq.oldest()
    fill(dlq, b'c', b'a', b'b')
    assert dlq.oldest()[:2] == (message(b'c'), 'reason of c')
    fill(dlq, b'c')
    assert dlq.oldest()[:2] == (message(b'a'), 'reason of a')


def test_messages_are_rebuilt_with_the_class_that_is_given(tmp_path: Path) -> None:
    with SQLiteDLQ(tmp_path / 'dlq.db', message_cls=missive.JSONMessage) as dlq:
        dlq[b'a'] = (missive.JSONMessage(b'{"x": 1}', b'a'), 'why')
        read, _ = dlq[b'a']
        assert isinstance(read, missive.JSONMessage)
        assert read.get_json() == {'x': 1}


def test_it_outlives_the_program(tmp_path: Path) -> None:
    with SQLiteDLQ(tmp_path / 'dlq.db') as dlq:
        fill(dlq, b'a')
    with SQLiteDLQ(tmp_path / 'dlq.db') as dlq:
        assert list(dlq) == [b'a']


def test_headers_that_are_no_json_become_text(dlq: SQLiteDLQ) -> None:
    dlq[b'a'] = (message(b'a', path=Path('x')), 'why')
    assert dlq[b'a'][0].headers == {'path': 'x'}


WRITER = """
import sys
from postage import missive
from postage.missive.dlq.sqlite import SQLiteDLQ

with SQLiteDLQ(sys.argv[1], timeout=60) as dlq:
    for number in range(50):
        name = f'{sys.argv[2]}/{number}'.encode()
        dlq[name] = (missive.RawMessage(b'', name), 'why')
"""


def test_several_processes_write_at_the_same_time(dlq: SQLiteDLQ, run_program: Callable[..., Program]) -> None:
    writers = [run_program(WRITER, [str(dlq.letters.path), str(number)]) for number in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4, [writer.output for writer in writers]
    assert set(dlq) == {f'{writer}/{number}'.encode() for writer in range(4) for number in range(50)}


def test_a_full_store_leaves_the_message_unacknowledged_and_says_why(tmp_path: Path) -> None:
    processor: missive.Processor[missive.RawMessage] = missive.Processor()
    with SQLiteDLQ(tmp_path / 'dlq.db', max_bytes=100_000) as dlq:
        processor.set_dlq(dlq)
        client = processor.test_client()
        with pytest.raises(missive.DeadLetterError, match=r'not acknowledged.*full'):
            send_many(client)
        assert len(client.acked) == len(dlq) > 0
        assert client.nacked == []


def send_many(client: missive.TestAdapter[missive.RawMessage]) -> None:
    for _ in range(100):
        client.send(missive.RawMessage(b'x' * 10_000))


def test_a_full_store_ends_run_and_the_broker_has_the_message_still(
    bench: Bench, tmp_path: Path, run: Callable[..., Run]
) -> None:
    processor: missive.Processor[missive.RawMessage] = missive.Processor()
    with SQLiteDLQ(tmp_path / 'dlq.db', max_bytes=50_000) as dlq:
        processor.set_dlq(dlq)
        running = run(RabbitMQAdapter(missive.RawMessage, processor, ['jobs']))
        wait_until(lambda: 'jobs' in bench.broker.queues(), 'it does not start')
        bench.bare.basic_publish('', 'jobs', b'x' * 100_000)
        with pytest.raises(missive.DeadLetterError):
            running.wait()
        wait_until(lambda: bench.count('jobs') == 1, 'it is not back')


def test_a_letter_says_where_it_came_from_and_what_went_wrong(
    bench: Bench, dlq: SQLiteDLQ, run: Callable[..., Run]
) -> None:
    processor: missive.Processor[missive.RawMessage] = missive.Processor()
    processor.set_dlq(dlq)

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        raise ValueError('no good')

    run(RabbitMQAdapter(missive.RawMessage, processor, ['jobs']))
    wait_until(lambda: 'jobs' in bench.broker.queues(), 'it does not start')
    bench.bare.basic_publish('', 'jobs', b'body')
    wait_until(lambda: len(dlq) == 1, 'it is not there')
    (stored,) = dlq.letters.letters()
    letter = stored.letter
    assert (letter.queue, letter.routing_key, letter.body) == ('jobs', 'jobs', b'body')
    assert (letter.exception, letter.message) == ('ValueError', 'no good')
    assert 'in handle' in letter.traceback


def test_what_is_no_store_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'dlq.db'
    path.write_bytes(b'this is no database' * 100)
    processor: missive.Processor[missive.RawMessage] = missive.Processor()
    with SQLiteDLQ(path) as dlq:
        processor.set_dlq(dlq)
        with pytest.raises(errors.StoreError):
            list(dlq)
        with pytest.raises(missive.DeadLetterError):
            StdinAdapter(missive.RawMessage, processor, io.BytesIO(b'1\n')).run()
