"""A message that no attempt could end has an end all the same: tried again, dead-lettered or rejected, and told why."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pika
import pytest

from postage import messaging
from postage.dead_letters import QueueDeadLetters, SQLiteDeadLetters
from support.messaging import EQK, TIMEOUT, Bench, EchoExchange, Processor, command, eventually

FRAME_MAX = 131_072


class Failing(Processor):
    @messaging.Retry(delays=(0.05, 0.05), jitter=0)
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        if content['parameters'] == 'innocent':
            self.seen.put('innocent')
            return
        self.seen.put('tried')
        raise ValueError('no good')

    @messaging.MessageHandler('command', 'later')
    def msg_later(self, content: dict[str, Any]) -> None:
        self.seen.put('later')


def headers_of(size: int) -> dict[str, str]:
    """Headers that fill so many bytes of properties, together with the content type."""
    return {'h': 'x' * (size - len('\0\0') - 17 - 4 - 2 - 1 - 4)}


def store_of(name: str, path: Path) -> Any:
    if name == 'sqlite':
        return SQLiteDeadLetters(path / 'letters.db')
    return QueueDeadLetters('dead-store') if name == 'queue' else None


def await_end(bench: Bench) -> None:
    """Wait until every message is settled, in the queues where they wait, too; the store is another matter."""

    def is_empty() -> bool:
        return not sum(n for queue, n in bench.broker.messages().items() if queue != 'dead-store')

    # The counts are of one queue after the other: a message that moves between two may be missed, but not thrice.
    eventually(lambda: is_empty() and is_empty() and is_empty())


@pytest.mark.parametrize('store_name', ['none', 'sqlite', 'queue'])
@pytest.mark.parametrize('size', [131_050, 130_900, 126_880, 120_100, 100_000])
def test_a_message_whose_headers_fill_a_frame_comes_to_an_end(
    bench: Bench, tmp_path: Path, size: int, store_name: str
) -> None:
    store = store_of(store_name, tmp_path)
    processor = Failing(EQK)
    processor.dead_letters = store
    bench.run(processor)
    producer = bench.producer()
    producer.message_echo('innocent').wait(TIMEOUT)
    assert processor.seen.next() == 'innocent'
    links = producer.conn_broker.link, processor.consumer.conn_broker.link
    bench.publish(command(parameters='hostile'), headers=headers_of(size))
    assert processor.seen.next() == 'tried'
    producer.message_later().wait(TIMEOUT)
    await_end(bench)
    assert (producer.conn_broker.link, processor.consumer.conn_broker.link) == links
    if size <= 126_880:
        eventually(lambda: processor.seen.qsize() == 3)  # both other attempts, and the later one
    else:
        assert bench.log.find('ERROR', 'cannot be put off', 'bytes')
    stored = list(store.letters()) if store is not None else []
    if store_name == 'sqlite' or (store_name == 'queue' and size == 100_000):
        assert [each.letter.exception for each in stored] == ['ValueError']
        assert stored[0].letter.properties['headers'] == headers_of(size)
    elif store_name == 'queue':
        assert stored == []
        assert bench.log.find('ERROR', 'is rejected', 'bytes of headers')
    if store is not None:
        store.close()


def test_a_message_too_large_to_be_counted_comes_to_an_end(bench: Bench) -> None:
    class Counting(Failing):
        max_deliveries = 3

    consumer = bench.consumer()
    bench.publish(command(parameters='hostile'), headers=headers_of(131_050))
    consumer.close()
    bare = bench.bare
    eventually(lambda: bare.basic_get('echo-queue')[0])
    bare.close()  # unacknowledged: it is delivered again
    eventually(lambda: bench.broker.queues()['echo-queue'] == 1)
    processor = Counting(EQK)
    bench.run(processor)
    producer = bench.producer()
    producer.message_later().wait(TIMEOUT)
    assert processor.seen.next() == 'later'
    await_end(bench)
    bench.log.expect('ERROR', 'is rejected', 'cannot be counted', 'bytes')


class Unsayable(Exception):
    def __str__(self) -> str:
        raise RuntimeError('never')


ODD: dict[str, Exception] = {
    'a lone surrogate in the text': ValueError('a\ud800b'),
    'a text that raises': Unsayable(),
    'a text of a megabyte': ValueError('x' * 1_000_000),
    'escapes for a terminal': ValueError('\x1b[31m\n\x9b0m\u202e'),
}


@pytest.mark.parametrize('store_name', ['none', 'sqlite', 'queue'])
@pytest.mark.parametrize('error', ODD.values(), ids=ODD)
def test_whatever_a_handler_raises_its_message_comes_to_an_end(
    bench: Bench, tmp_path: Path, error: Exception, store_name: str
) -> None:
    class Odd(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            raise error

    store = store_of(store_name, tmp_path)
    processor = Odd(EQK)
    processor.dead_letters = store
    bench.run(processor)
    bench.producer().message_echo().wait(TIMEOUT)
    await_end(bench)
    if store is not None:
        assert [each.letter.exception.rpartition('.')[2] for each in store.letters()] == [type(error).__name__]
        store.close()
    assert not bench.log.find('stays unacknowledged')


HEADERS: dict[str, dict[str, Any]] = {
    'attempts beyond 64 bits with one more': {'x-postage-attempts': 2**63 - 1},
    'a first attempt at the end of time': {'x-postage-first-attempt': 2**63 - 1},
    'a first attempt that is text': {'x-postage-first-attempt': 'x', 'x-postage-attempts': 'y'},
    'an origin that is no text': {'x-postage-exchange': 5, 'x-postage-routing-key': [1]},
    'an origin too long': {'x-postage-exchange': 'x' * 300, 'x-postage-routing-key': 'y' * 300},
    'an expiration that is none': {'x-postage-expiration': 7, 'x-postage-user-id': {'a': 1}, 'x-postage-cc': 7},
    'deaths of a strange kind': {'x-death': [5, {'queue': 7}], 'x-first-death-queue': 3},
    'deaths that are no list': {'x-death': 'text', 'x-first-death-reason': 3},
    'a negative count': {'x-postage-attempts': -1, 'x-postage-deliveries': -1, 'x-delivery-count': -1},
    'a letter that is none': {'x-postage-letter': '{"id": 1}'},
    'a letter that is a list': {'x-postage-letter': '[1]'},
}


@pytest.mark.parametrize('store_name', ['none', 'sqlite', 'queue'])
@pytest.mark.parametrize('headers', HEADERS.values(), ids=HEADERS)
def test_headers_of_ours_that_others_wrote_keep_no_message_from_its_end(
    bench: Bench, tmp_path: Path, headers: dict[str, Any], store_name: str
) -> None:
    store = store_of(store_name, tmp_path)
    processor = Failing(EQK)
    processor.dead_letters = store
    bench.run(processor)
    bench.publish(command(parameters='hostile'), headers=headers)
    assert processor.seen.next() == 'tried'
    bench.publish(command('later'))
    await_end(bench)
    if store is not None:
        eventually(lambda: store.count() == 1)
        (stored,) = store.letters()
        assert stored.letter.first_attempt_at <= time.time()
        store.close()


@pytest.mark.parametrize('notes', ['"x"', '[1]', '{"id": 1}', '{"id": {}, "queue": 3}', '{', '{"properties": 5}'])
def test_a_queue_of_letters_survives_what_others_put_into_it(bench: Bench, notes: str) -> None:
    with QueueDeadLetters('dead-store') as store:
        assert store.count() == 0
        deaths: Any = [{'count': 'x', 'time': 'never', 'routing-keys': 5, 'queue': []}]
        bench.bare.basic_publish('', 'dead-store', b'{}', pika.BasicProperties(headers={'x-postage-letter': notes}))
        bench.bare.basic_publish('', 'dead-store', b'{}', pika.BasicProperties(headers={'x-death': deaths}))
        eventually(lambda: store.count() == 2)
        assert [stored.letter.body for stored in store.letters()] == [b'{}', b'{}']


def test_a_reply_that_no_publisher_can_take_does_not_hold_up_the_request(bench: Bench) -> None:
    class Answering(Processor):
        accept_reply_to = True

        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: dict[str, Any], reply_func: Any) -> None:
            reply_func(1)

    bench.run(Answering([(EchoExchange, [('echo-queue', 'echo-rk')])]))
    bench.publish(command(category='rpc'), reply_to='r' * 255, correlation_id='c' * 255)
    await_end(bench)
