"""Clients that do not use pika's codec: the same scenarios pass on both brokers, in Python and in C."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.brokers import Broker
from support.missing_servers import is_required
from support.other_clients import CLIENTS, Client

REQUIRED = is_required('rabbitmq-server')
PATIENCE = 20.0

HEADERS = {'text': 'ü', 'number': -500, 'large': 2**40, 'flag': True, 'list': [1, 'a'], 'table': {'deep': 'x'}}


def is_installed(kind: type[Client]) -> bool:
    """Whether a client is here; it has to be where RabbitMQ has to be, too."""
    is_here = importlib.util.find_spec(kind.name) is not None
    assert is_here or not REQUIRED or sys.version_info < kind.since, f'{kind.name} is not installed'
    return is_here


@pytest.fixture(params=CLIENTS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Client]:
    kind: type[Client] = request.param
    if not is_installed(kind):
        pytest.skip(f'{kind.name} is not installed')
    return kind


@pytest.fixture
def client(kind: type[Client], broker: Broker) -> Iterator[Client]:
    client = kind(broker)
    yield client
    client.close()


@pytest.mark.parametrize('size', [0, 1, 4088, 131_064, 131_065, 500_000])
def test_a_message_arrives_as_it_was_sent(client: Client, size: int) -> None:
    body = (bytes(range(1, 251)) * (size // 250 + 1))[:size]
    client.declare_queue('q')
    assert client.publish('', 'q', body, headers=HEADERS, correlation_id='c', reply_to='r') == 'ack'
    got = client.get('q')
    assert got is not None
    assert (got.body, got.headers, got.correlation_id, got.reply_to) == (body, HEADERS, 'c', 'r')
    assert not got.redelivered
    got.settle('ack')
    assert client.get('q') is None


def test_messages_are_consumed_and_acknowledged(client: Client) -> None:
    client.declare_queue('q')
    for number in range(20):
        client.publish('', 'q', b'%d' % number)
    assert [got.body for got in client.consume('q', 20)] == [b'%d' % number for number in range(20)]
    assert client.declare_queue('q', passive=True) == 0


def test_a_refused_message_comes_back_marked_or_is_a_dead_letter(client: Client) -> None:
    client.declare_queue('dead')
    client.declare_queue('q', {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'})
    client.publish('', 'q', b'x')
    first = client.get('q')
    assert first is not None
    first.settle('requeue')
    second = client.get('q')
    assert second is not None
    assert (second.body, second.redelivered) == (b'x', True)
    second.settle('drop')
    (dead,) = client.consume('dead', 1)
    death = dead.headers['x-death'][0]
    assert (death['reason'], death['queue'], death['count']) == ('rejected', 'q', 1)


def test_publishing_tells_what_became_of_the_message(client: Client) -> None:
    client.declare_queue('full', {'x-max-length': 1, 'x-overflow': 'reject-publish'})
    assert client.publish('', 'full', b'1') == 'ack'
    assert client.publish('', 'full', b'2') == 'nack'
    assert client.publish('', 'nowhere', b'3') == 'returned'
    assert client.publish('', 'full', b'4') == 'nack'


def test_a_topic_exchange_sends_on(client: Client) -> None:
    client.declare_exchange('x', 'topic')
    client.declare_queue('q')
    client.bind('q', 'x', 'a.#')
    assert client.publish('x', 'a.b.c', b'1') == 'ack'
    assert client.publish('x', 'b', b'2') == 'returned'
    assert [got.body for got in client.consume('q', 1)] == [b'1']


def test_errors_carry_their_codes(kind: type[Client], client: Client, broker: Broker) -> None:
    client.declare_queue('q')
    assert client.code_of(lambda: client.declare_queue('q', {'x-max-length': 1})) == 406
    other = kind(broker)
    assert other.code_of(lambda: other.declare_queue('missing', passive=True)) == 404
    other.close()
    assert client.code_of(lambda: kind(broker, password='wrong')) == 403


def test_a_reply_comes_the_direct_way(kind: type[Client], client: Client, broker: Broker) -> None:
    address = 'amq.rabbitmq.reply-to'
    responder = kind(broker)
    responder.declare_queue('q')

    def ask_and_answer() -> None:
        client.publish('', 'q', b'question', reply_to=address, correlation_id='1')
        (request,) = responder.consume('q', 1)
        assert request.reply_to.startswith(f'{address}.')
        # A reply address is no queue, so that a mandatory message to it is returned although it arrives.
        responder.publish('', request.reply_to, b'answer', correlation_id=request.correlation_id)

    (reply,) = client.consume(address, 1, no_ack=True, meanwhile=ask_and_answer)
    assert (reply.body, reply.correlation_id) == (b'answer', '1')
    responder.close()


def test_heartbeats_keep_idle_connections(broker: Broker) -> None:
    kinds = [kind for kind in CLIENTS if is_installed(kind)]
    assert kinds

    def idle(kind: type[Client]) -> int:
        client = kind(broker, heartbeat=1)
        client.idle(3.5)
        try:
            return client.declare_queue(f'q of {kind.name}')
        finally:
            client.close()

    # Each in a thread of its own, for they wait.
    with ThreadPoolExecutor(len(kinds)) as threads:
        assert list(threads.map(idle, kinds)) == [0] * len(kinds)


# C: rabbitmq-c, by Debian's amqp-tools


@pytest.fixture
def run(broker: Broker) -> Callable[..., Any]:
    """A function that runs one of the programs of amqp-tools, and returns what it prints."""
    if shutil.which('amqp-publish') is None:
        assert not REQUIRED, 'amqp-tools is not installed'
        pytest.skip('amqp-tools is not installed (Debian, Ubuntu: apt-get install amqp-tools)')

    def run(program: str, *arguments: str, given: bytes = b'') -> bytes:
        command = [f'amqp-{program}', f'--url={broker.url}', *arguments]
        done = subprocess.run(command, input=given, capture_output=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


def test_a_client_in_c_publishes_gets_and_consumes(run: Callable[..., bytes]) -> None:
    assert run('declare-queue', '--queue=q').strip() == b'q'
    large = bytes(range(256)) * 2000
    for body in (b'first', large, b'third'):
        run('publish', '--routing-key=q', given=body)
    assert run('get', '--queue=q') == b'first'
    assert run('consume', '--queue=q', '--count=2', 'cat') == large + b'third'
    assert b'0' in run('delete-queue', '--queue=q')


def test_a_client_in_c_binds_a_queue_of_its_own(run: Callable[..., bytes], broker: Broker, channel: Any) -> None:
    command = ['amqp-consume', f'--url={broker.url}', '--exchange=amq.topic', '--routing-key=a.#', '--count=1', 'cat']
    consumer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        while not broker.queues():
            channel.connection.sleep(0.02)
        # Its queue exists a moment before the binding does.
        while consumer.poll() is None:
            run('publish', '--exchange=amq.topic', '--routing-key=a.b', given=b'hello')
            channel.connection.sleep(0.05)
        assert consumer.communicate(timeout=PATIENCE)[0] == b'hello'
    finally:
        consumer.kill()
        consumer.communicate()


def test_a_client_in_c_hears_why_it_is_refused(run: Callable[..., bytes]) -> None:
    with pytest.raises(AssertionError, match=r'404.*NOT_FOUND - no queue .missing.'):
        run('get', '--queue=missing')
