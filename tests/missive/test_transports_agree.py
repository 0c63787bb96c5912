"""The same processor with the same 1,000 messages: the same acks, nacks and dead letters over every transport."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from missive.conftest import RedisServer, Run, wait_until
from postage import missive
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from postage.missive.adapters.redis import RedisPubSubAdapter
from postage.missive.adapters.stdin import StdinAdapter
from postage.missive.adapters.wsgi import WSGIAdapter
from support.messaging import Bench, Seen

NUMBER = 1000
KINDS = ('ack', 'nack', 'raise', 'forget', 'twice', 'nobody', 'several', 'broken', 'hook')

REASONS = {
    'raise': 'no good',
    'nobody': 'no matching handlers',
    'several': 'multiple matching handlers',
    'hook': 'the hook has had enough',
}


def message_of(number: int) -> bytes:
    kind = KINDS[number % len(KINDS)]
    return (
        f'{{"number": {number}'.encode() if kind == 'broken' else json.dumps({'number': number, 'kind': kind}).encode()
    )


MESSAGES = [message_of(number) for number in range(NUMBER)]


class Book:
    """What became of the messages.

    :ivar decisions: the decisions on each, in their order
    """

    def __init__(self) -> None:
        self.decisions: dict[bytes, list[str | None]] = {}
        self.dlq: dict[bytes, Any] = {}
        self.handled = Seen()

    @property
    def dead(self) -> dict[bytes, str]:
        return {message.raw_data: reason for message, reason in self.dlq.values()}

    def await_all(self) -> None:
        while len(self.decisions) < NUMBER:
            self.note(*self.handled.next())

    def note(self, data: bytes, decision: str | None) -> None:
        self.decisions.setdefault(data, []).append(decision)


def make_processor(book: Book) -> missive.Processor[missive.JSONMessage]:
    """A processor that fails in every way there is. What comes a second time, it acknowledges."""
    processor: missive.Processor[missive.JSONMessage] = missive.Processor()
    processor.set_dlq(book.dlq)
    seen: set[bytes] = set()

    def kind_of(message: missive.JSONMessage) -> str:
        return str(message.get_json()['kind'])

    @processor.before_handling
    def enough(ctx: Any, handling: missive.HandlingContext[missive.JSONMessage]) -> None:
        if b'"hook"' in handling.message.raw_data:
            raise ValueError('the hook has had enough')

    @processor.handle_for(lambda message: kind_of(message) not in ('nobody',))
    def handle(message: missive.JSONMessage, ctx: missive.HandlingContext[missive.JSONMessage]) -> None:
        if message.raw_data in seen:
            ctx.ack()
            return
        seen.add(message.raw_data)
        kind = kind_of(message)
        if kind == 'raise':
            raise ValueError('no good')
        if kind in ('ack', 'twice'):
            ctx.ack()
        if kind in ('nack', 'twice'):
            ctx.nack()

    @processor.handle_for(lambda message: kind_of(message) == 'several')
    def handle_too(message: missive.JSONMessage, ctx: missive.HandlingContext[missive.JSONMessage]) -> None:
        ctx.ack()

    return processor


class Recorded:
    """Notes what an adapter is told to do with its messages."""

    def __init__(self, adapter: missive.Adapter[missive.JSONMessage], book: Book) -> None:
        for name in ('ack', 'nack'):
            setattr(adapter, name, self._noting(getattr(adapter, name), name, book))

    @staticmethod
    def _noting(method: Callable[[Any], None], name: str, book: Book) -> Callable[[Any], None]:
        def noting(message: missive.JSONMessage) -> None:
            method(message)
            book.handled.put((message.raw_data, name))

        return noting


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def processor(book: Book) -> missive.Processor[missive.JSONMessage]:
    return make_processor(book)


@pytest.fixture(params=['test client', 'stdin', 'wsgi', 'redis'])
def transport(
    request: pytest.FixtureRequest, book: Book, processor: missive.Processor[missive.JSONMessage]
) -> Callable[[], None]:
    """A function that sends all messages over a transport, and waits until they are handled."""
    return getattr(Transports(request, book, processor), request.param.replace(' ', '_'))


class Transports:
    def __init__(
        self, request: pytest.FixtureRequest, book: Book, processor: missive.Processor[missive.JSONMessage]
    ) -> None:
        self.request = request
        self.book = book
        self.processor = processor

    def test_client(self) -> None:
        with self.processor.test_client() as client:
            Recorded(client, self.book)
            for data in MESSAGES:
                client.send(missive.JSONMessage(data))

    def stdin(self) -> None:
        adapter = StdinAdapter(missive.JSONMessage, self.processor, io.BytesIO(b'\n'.join(MESSAGES)))
        Recorded(adapter, self.book)
        adapter.run()

    def wsgi(self) -> None:
        adapter = WSGIAdapter(missive.JSONMessage, self.processor)
        Recorded(adapter, self.book)
        client = adapter.app.test_client()
        for data in MESSAGES:
            client.post('/', data=data)
        adapter.close()

    def redis(self) -> None:
        server: RedisServer = self.request.getfixturevalue('redis_server')
        run: Callable[..., Run] = self.request.getfixturevalue('run')
        adapter = RedisPubSubAdapter(missive.JSONMessage, self.processor, url_or_conn=server.url)
        Recorded(adapter, self.book)
        run(adapter)
        server.await_subscriber()
        with server.client() as client:
            for data in MESSAGES:
                client.publish('all', data)
        self.book.await_all()


def check(book: Book, nacked_come_again: bool) -> None:
    """See that what became of the messages is what should have."""
    while not book.handled.empty():
        book.note(*book.handled.get())
    assert set(book.decisions) == set(MESSAGES)
    wanted = Counter(KINDS[number % len(KINDS)] for number in range(NUMBER))
    first = Counter(decisions[0] for decisions in book.decisions.values())
    assert first == {'ack': NUMBER - wanted['nack'], 'nack': wanted['nack']}
    again = ['nack', 'ack'] if nacked_come_again else ['nack']
    assert {tuple(decisions) for decisions in book.decisions.values()} == {('ack',), tuple(again)}
    assert Counter(kind_of(data) for data in book.dead) == {
        kind: wanted[kind] for kind in ('raise', 'forget', 'nobody', 'several', 'broken', 'hook')
    }
    for data, reason in book.dead.items():
        assert reason == REASONS.get(kind_of(data), reason)


def kind_of(data: bytes) -> str:
    return KINDS[int(data.split(b':')[1].rstrip(b'}').split(b',')[0]) % len(KINDS)]


def test_transports_that_cannot_take_back_agree(transport: Callable[[], None], book: Book) -> None:
    transport()
    check(book, nacked_come_again=False)


def test_a_broker_agrees_and_delivers_again_what_is_nacked(
    bench: Bench, run: Callable[..., Run], book: Book, processor: missive.Processor[missive.JSONMessage]
) -> None:
    adapter = RabbitMQAdapter(missive.JSONMessage, processor, ['all'])
    Recorded(adapter, book)
    running = run(adapter)
    wait_until(lambda: 'all' in bench.broker.queues(), 'it does not start')
    for data in MESSAGES:
        bench.bare.basic_publish('', 'all', data)
    expected = NUMBER + sum(KINDS[number % len(KINDS)] == 'nack' for number in range(NUMBER))
    for _ in range(expected):
        book.note(*book.handled.next())
    running.stop()
    assert bench.count('all') == 0
    check(book, nacked_come_again=True)
