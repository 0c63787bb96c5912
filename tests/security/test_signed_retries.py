"""What is signed stays so wherever it is sent on: retries, counts of deliveries, dead letters and their replays."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from postage import messaging
from postage.cli.main import postage as command_line
from postage.cli.operate.recording import as_record, line_of
from postage.dead_letters import QueueDeadLetters, SQLiteDeadLetters
from postage.messaging import gate
from postage.messaging import signing as signing_module
from support.messaging import (
    DEAD_LETTERING,
    EQK,
    GUARDED_EQK,
    TIMEOUT,
    Bench,
    Echo,
    EchoExchange,
    EchoProducer,
    OtherExchange,
    Processor,
    eventually,
)
from support.signed import OLD, VOUCHER, SignedProducer, Stranger, capture, signing

MAX_AGE = 60.0
"""Seconds that a signature may be old where what is older is to be taken nevertheless."""


class Clock:
    """The time by which messages are signed and verified.

    :ivar ahead: seconds
    """

    ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def time_ns(self) -> int:
        return time.time_ns() + int(self.ahead * 1e9)

    def grow_old(self) -> None:
        """Have all that has been signed so far be older than it may be."""
        self.ahead += 2 * MAX_AGE


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (gate, signing_module):
        monkeypatch.setattr(module, 'time', clock)
    return clock


class Twice(Processor):
    """Fails at each first attempt."""

    clock = Clock()
    ages_after = 0  # so many have failed

    def __init__(self, eqk: Any = EQK, **kwds: Any) -> None:
        self.failed: set[Any] = set()
        super().__init__(eqk, **kwds)

    def attempt(self, content: dict[str, Any]) -> None:
        parameters = content['parameters']
        if parameters not in self.failed:
            self.failed.add(parameters)
            if len(self.failed) == self.ages_after:
                self.clock.grow_old()
            raise ConnectionError('not yet')
        self.seen.put(parameters)

    @messaging.Retry(ConnectionError, delays=(0.3,), jitter=0)
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        self.attempt(content)

    @messaging.Retry(ConnectionError, delays=(0.3,), jitter=0)
    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        self.attempt(content)
        reply_func(content['parameters'])

    @messaging.MessageHandler('command', 'fail')
    def msg_fail(self, content: dict[str, Any]) -> None:
        self.attempt(content)


class Headers(messaging.Exchange):
    name = 'headers-exchange'
    exchange_type = 'fanout'


QUEUES = {
    'classic': [(EchoExchange, [('echo-queue', 'echo-rk')])],
    'quorum': [(EchoExchange, [(messaging.quorum('quorum-queue'), 'echo-rk')])],
    'exclusive': [(EchoExchange, [({'name': 'mine', 'flags': {'exclusive': True}}, 'echo-rk')])],
}


@pytest.mark.parametrize('max_age', [None, MAX_AGE])
@pytest.mark.parametrize('kind', QUEUES)
def test_a_retry_is_taken_whatever_its_age(bench: Bench, clock: Clock, kind: str, max_age: float | None) -> None:
    processor = signing(Twice, max_age=max_age, clock=clock, ages_after=3)(QUEUES[kind])
    bench.run(processor)
    producer = bench.producer(SignedProducer)
    producer.message_echo('plain')
    producer.message_echo('all', _headers={'colour': 'red', 'x-mine': [1, {'a': 2.5}]}, _expiration=60, _priority=1)
    reply = producer.rpc_echo('asked')
    assert reply.body['content']['value'] == 'asked'
    assert set(processor.seen.take(3)) == {'plain', 'all', 'asked'}
    assert not bench.log.find('is refused')


@pytest.mark.parametrize('max_age', [None, MAX_AGE])
def test_a_retry_that_the_broker_delays_is_taken(bench: Bench, clock: Clock, max_age: float | None) -> None:
    class Delayed(Twice):
        @messaging.MessageHandler('command', 'later')
        def msg_later(self, content: dict[str, Any]) -> None:
            self.attempt(content)

    retry = messaging.Retry(ConnectionError, delays=(0.3,) * 3, jitter=0)
    queue = messaging.quorum('quorum-queue', retry=retry)
    processor = signing(Delayed, max_age=max_age, clock=clock, ages_after=1)([(EchoExchange, [(queue, 'echo-rk')])])
    bench.run(processor)
    bench.producer(SignedProducer).message_later('plain', _headers={'colour': 'red'})
    assert processor.seen.next() == 'plain'
    assert not bench.log.find('is refused')


def test_a_retry_comes_back_to_a_queue_of_whose_binding_its_consumer_does_not_know(bench: Bench) -> None:
    bench.bare.queue_declare('echo-queue', durable=True)
    bench.bare.exchange_declare(**Headers.parameters)
    bench.bare.queue_bind('echo-queue', Headers.name, '')
    processor = signing(Twice)([(EchoExchange, [('echo-queue', 'another-rk')])])
    bench.run(processor)
    bench.producer(signing(EchoProducer, eks=[(Headers, 'some-rk')])).message_echo('plain')
    assert processor.seen.next() == 'plain'


def test_a_message_whose_deliveries_are_counted_is_taken(bench: Bench) -> None:
    class Counting(Twice):
        max_deliveries = 3

    processor = signing(Counting)(EQK)
    producer = bench.producer(SignedProducer)
    producer.message_fail('counted')
    producer.flush(TIMEOUT)
    # Delivered, and never settled.
    eventually(lambda: bench.bare.basic_get('echo-queue')[0])
    bench.close_all_connections()
    processor.failed.add('counted')
    bench.run(processor)
    assert processor.seen.next() == 'counted'
    assert not bench.log.find('is refused')


# Dead letters

KEYS = {'POSTAGE_SIGNING_KEYS': OLD}


def dead_letters(bench: Bench, *words: str, env: Any = None, input: bytes | None = None) -> str:
    variables = {'POSTAGE_URL': bench.broker.url, 'POSTAGE_SIGNING_KEYS': None, **(env or {})}
    ran = CliRunner().invoke(command_line, ['dead-letters', *words], env=variables, input=input)
    assert ran.exit_code == 0, ran.output
    return ran.output


STORES: dict[str, Any] = {
    'sqlite': lambda path: (SQLiteDeadLetters(path / 'letters.db'), ['--store', str(path / 'letters.db')]),
    'queue': lambda path: (QueueDeadLetters('letters'), ['--queue', 'letters']),
}


def failed(bench: Bench, store: Any, **attributes: Any) -> Any:
    """A processor that runs, and has put one letter into its store."""
    processor = signing(Twice, dead_letters=store, **attributes)(EQK)
    bench.run(processor)
    producer = bench.producer(SignedProducer)
    producer.message_fail('died', _headers={'colour': 'red'}, _expiration=60)
    eventually(lambda: store.count() == 1)
    return processor


@pytest.mark.parametrize('env', [{}, KEYS], ids=['without keys', 'with keys'])
@pytest.mark.parametrize('kind', STORES)
def test_a_letter_that_is_replayed_is_taken_whatever_its_age(
    bench: Bench, clock: Clock, tmp_path: Path, kind: str, env: dict[str, str]
) -> None:
    store, options = STORES[kind](tmp_path)
    bench.closing(store)
    processor = failed(bench, store, max_age=MAX_AGE)
    after = bench.producer(SignedProducer)
    clock.grow_old()
    assert '1 letter sent' in dead_letters(bench, 'replay', *options, env=env)
    assert processor.seen.next() == 'died'
    after.message_echo('ends')
    assert processor.seen.next() == 'ends'
    assert not bench.log.find('is refused')


def test_a_letter_that_was_traced_is_taken_when_it_is_replayed(bench: Bench, tmp_path: Path) -> None:
    store, options = STORES['sqlite'](tmp_path)
    bench.closing(store)
    processor = signing(Twice, dead_letters=store)(EQK)
    bench.run(processor)
    trace = {'traceparent': '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 'tracestate': 'a=b'}
    bench.producer(SignedProducer).message_fail('died', _headers=trace)
    eventually(lambda: store.count() == 1)
    dead_letters(bench, 'replay', *options)
    assert processor.seen.next() == 'died'


def test_a_letter_that_is_replayed_twice_is_handled_once(bench: Bench, tmp_path: Path) -> None:
    store, options = STORES['sqlite'](tmp_path)
    bench.closing(store)
    processor = failed(bench, store)
    letter = next(store.letters()).letter
    dead_letters(bench, 'replay', *options)
    assert processor.seen.next() == 'died'
    store.put(letter)
    dead_letters(bench, 'replay', *options, env=KEYS)
    bench.log.expect('WARNING', 'is a copy of a message that has been handled')
    assert processor.seen.empty()


@pytest.mark.parametrize(('max_age', 'env'), [(None, {}), (MAX_AGE, KEYS)], ids=['without keys', 'old, with keys'])
def test_what_the_broker_has_dead_lettered_is_taken_when_it_is_replayed(
    bench: Bench, clock: Clock, max_age: float | None, env: dict[str, str]
) -> None:
    bench.dead()
    processor = signing(Twice, max_age=max_age)(GUARDED_EQK)
    bench.run(processor)
    bench.producer(SignedProducer).message_fail('died', _headers={'colour': 'red'}, _expiration=60)
    eventually(lambda: bench.count('dead') == 1)
    clock.grow_old()
    assert '1 letter sent' in dead_letters(bench, 'replay', '--queue', 'dead', env=env)
    assert processor.seen.next() == 'died'


def test_a_letter_that_the_broker_dead_lettered_is_too_old_without_keys(bench: Bench, clock: Clock) -> None:
    bench.dead()
    processor = signing(Twice, max_age=MAX_AGE)(GUARDED_EQK)
    bench.run(processor)
    bench.producer(SignedProducer).message_fail('died')
    eventually(lambda: bench.count('dead') == 1)
    clock.grow_old()
    dead_letters(bench, 'replay', '--queue', 'dead')
    bench.log.expect('WARNING', 'is refused: it was signed', 'max_age is 60 s')
    assert processor.seen.empty()


def test_a_consumer_of_a_dead_letter_queue_says_what_it_takes(bench: Bench) -> None:
    class Dead(messaging.Exchange):
        name = 'dead-exchange'

    flags = {'arguments': {'x-dead-letter-exchange': Dead.name}}
    undertaker = signing(Twice, signed_for=[(EchoExchange, '#')])([(Dead, [('dead-queue', 'echo-rk')])])
    undertaker.failed.add('died')
    bench.run(undertaker)
    processor = signing(Twice)([(EchoExchange, [({'name': 'failing', 'flags': flags}, 'echo-rk')])])
    bench.run(processor)
    bench.producer(SignedProducer).message_fail('died', _expiration=60)
    assert undertaker.seen.next() == 'died'


@pytest.mark.parametrize('env', [{}, KEYS], ids=['without keys', 'with keys'])
def test_a_letter_that_is_sent_elsewhere_needs_keys(bench: Bench, tmp_path: Path, env: dict[str, str]) -> None:
    store, options = STORES['sqlite'](tmp_path)
    bench.closing(store)
    failed(bench, store)
    other = signing(Twice)([(OtherExchange, [({'name': 'other', 'flags': DEAD_LETTERING}, 'other-rk')])])
    other.failed.add('died')
    bench.run(other)
    dead_letters(bench, 'replay', *options, '--to', f'{OtherExchange.name}:other-rk', env=env)
    if env:
        assert other.seen.next() == 'died'
    else:
        bench.log.expect('WARNING', "which leads not to queue 'other'")


@pytest.mark.parametrize('kind', STORES)
def test_a_letter_with_another_body_is_signed_anew_by_who_has_keys(
    bench: Bench, clock: Clock, tmp_path: Path, kind: str
) -> None:
    store, options = STORES[kind](tmp_path)
    bench.closing(store)
    processor = failed(bench, store, max_age=MAX_AGE)
    processor.failed.add('edited')
    stored = next(iter(list(store.letters())))
    clock.grow_old()
    body = tmp_path / 'body'
    body.write_bytes(stored.letter.body.replace(b'died', b'edited'))
    dead_letters(bench, 'edit', *options, stored.id, '--body', str(body), env=KEYS)
    clock.grow_old()
    dead_letters(bench, 'replay', *options, env=KEYS)
    assert processor.seen.next() == 'edited'


def test_a_letter_with_another_body_is_refused_where_nobody_signed_it(bench: Bench, tmp_path: Path) -> None:
    store, options = STORES['sqlite'](tmp_path)
    bench.closing(store)
    failed(bench, store)
    body = tmp_path / 'body'
    body.write_bytes(next(store.letters()).letter.body.replace(b'died', b'edited'))
    said = dead_letters(bench, 'edit', *options, '1', '--body', str(body))
    assert 'its signature is not right any more, and it gets no new one: POSTAGE_SIGNING_KEYS is not set' in said
    dead_letters(bench, 'replay', *options, env=KEYS)
    bench.log.expect('WARNING', 'is refused: its signature is not right')


def test_what_was_refused_is_not_vouched_for(bench: Bench, tmp_path: Path) -> None:
    store, options = STORES['sqlite'](tmp_path)
    bench.closing(store)
    bench.run(signing(Twice, dead_letters=store)(EQK))
    bench.producer(Stranger).message_echo('unsigned')
    eventually(lambda: store.count() == 1)
    letter = next(store.letters()).letter
    assert letter.reason == 'refused'
    assert VOUCHER not in letter.properties.get('headers', {})
    dead_letters(bench, 'replay', *options, env=KEYS)
    eventually(lambda: len(bench.log.find('is refused: it is not signed')) == 2)


# Recordings


def test_a_recording_is_handled_again_where_one_with_the_key_sends_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = signing(Echo, max_age=MAX_AGE)(EQK)
    bench.run(processor)
    recorded = capture(bench, lambda producer: producer.message_echo('signed', _headers={'size': 3}))
    assert processor.seen.next() == 'signed'
    plain = [as_record('echo-exchange', 'echo-rk', recorded.properties, recorded.data, time.time())]
    plain.append({**plain[0], 'body': plain[0]['body'].replace('signed', 'forged')})
    file = tmp_path / 'recording'
    file.write_text('\n'.join(map(line_of, plain)))

    def replay() -> None:
        assert CliRunner().invoke(command_line, ['replay', str(file)]).output == '2 sent\n'
        eventually(lambda: not sum(bench.broker.messages().values()))  # handled or refused

    replay()
    assert processor.seen.empty()
    monkeypatch.setenv('POSTAGE_SIGNING_KEYS', OLD)
    replay()
    assert processor.seen.get_nowait() == 'signed'
    assert processor.seen.empty()
