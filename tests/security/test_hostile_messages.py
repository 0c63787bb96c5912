"""No message takes a component down: whatever comes, the good ones between are handled, and no connection is lost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postage import errors, messaging
from postage.amqp.frames import decode_properties
from postage.amqp.publishing import Ledger, Outgoing, Receipt
from postage.dead_letters import SQLiteDeadLetters
from support.brokers import Broker
from support.messaging import EQK, TIMEOUT, Bench, EchoExchange, EchoProducer, Processor, eventually
from support.soak import IS_SOAK, SEED

from .corpus import BODIES, HEADERS, hostile, properties_of

MESSAGES = 100_000 if IS_SOAK else 2_000
BATCH = 100  # of them, with a good one behind each


UNBENT = frozenset(properties_of(headers) for headers in HEADERS)


class Component(Processor):
    """Reads all there is to be read, and fails in every way."""

    @messaging.Retry(delays=(0.01,), jitter=0)
    @messaging.MessageHandler('command', 'raise')
    def msg_raise(self, content: dict[str, Any]) -> None:
        raise ValueError(content['parameters'])

    @messaging.MessageHandler('command', 'drop')
    def msg_drop(self, content: dict[str, Any]) -> None:
        raise messaging.FilterError(content['parameters'])

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        delivery = messaging.current_delivery()
        assert delivery is not None
        if delivery.headers.get('good') is True:
            self.seen.put(content['parameters'])
        raise ValueError(f'{delivery.properties} {content}')

    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        reply_func(content)

    @messaging.RpcHandler('command', 'raise')
    def rpc_raise(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        raise KeyError(content)


def is_taken(broker: Broker, properties: bytes) -> bool:
    """Whether brokers take such properties: they decode them, and close the connection of one who sends others.

    What Postage does not decode they take: times beyond Python's years, and tables that are nested too deep.
    """
    if not is_whole(properties) or (broker.name == 'rabbitmq' and not is_taken_by_rabbitmq(properties)):
        return False
    try:
        decode_properties(properties)
    except errors.DecodingError as error:
        return properties in UNBENT and ('year' in str(error) or 'nested' in str(error))
    return True


def is_taken_by_rabbitmq(properties: bytes) -> bool:
    """Whether RabbitMQ does not stumble over them (541): the corpus as it is, without what it cannot decode."""
    if not properties[0] & 1 << 5:
        return True
    return any(headers in properties for headers in HEADERS[3:] if b'd\x7f\xf8' not in headers)


def is_whole(properties: bytes) -> bool:
    """Whether the last property ends where the properties do."""
    flags, position = int.from_bytes(properties[:2], 'big'), 2
    for flag in (1 << 13, 1 << 10, 1 << 9):
        if flags & flag and flag == 1 << 13:
            position += 4 + int.from_bytes(properties[position : position + 4], 'big')
        elif flags & flag and position < len(properties):
            position += 1 + properties[position]
    return position == len(properties)


def send(producer: Any, properties: bytes, body: bytes) -> None:
    channel = producer.conn_broker.publisher(True)
    receipt = Receipt('hostile', 1, True, Ledger(channel))
    channel.publish(Outgoing(EchoExchange.name, 'echo-rk', False, properties, body, receipt), TIMEOUT)


@pytest.mark.timeout(1800 if IS_SOAK else 60)
@pytest.mark.parametrize('has_store', [False, True], ids=['rejecting', 'storing'])
def test_good_messages_between_hostile_ones_are_all_handled(
    bench: Bench, tmp_path: Path, has_store: bool, record_note: Callable[[str], None]
) -> None:
    numbers = random.Random(SEED)
    store = SQLiteDeadLetters(tmp_path / 'letters.db') if has_store else None
    component = Component(EQK)
    component.dead_letters = store
    component.remote_commands = False
    bench.run(component)
    producer = bench.producer()
    # Another connection, by another name of the host: what the broker refuses is the sender's affair.
    sender = bench.producer(EchoProducer, hup=bench.broker.url.replace('127.0.0.1', 'localhost'))
    assert sender.conn_broker is not producer.conn_broker
    links = component.consumer.conn_broker.link, producer.conn_broker.link
    corpus = [(properties_of(headers), body) for headers in HEADERS for body in BODIES]
    drawn = itertools.chain(corpus, iter(lambda: hostile(numbers), None))
    taken = (message for message in drawn if is_taken(bench.broker, message[0]))
    for batch in range(MESSAGES // BATCH // 2):
        for properties, body in itertools.islice(taken, BATCH):
            send(sender, properties, body)
        sender.message_echo(batch, _headers={'good': True})
        assert component.seen.get(timeout=TIMEOUT) == batch, f'seed {SEED}'
    eventually(lambda: not sum(bench.broker.messages().values()))
    record_note(f'{MESSAGES // 2} hostile messages, {bench.broker.name}, seed {SEED}')
    assert (component.consumer.conn_broker.link, producer.conn_broker.link) == links, f'seed {SEED}'
    if store is not None:
        assert store.count() > 0
        store.close()
