"""No reply takes a caller down: whatever is sent to its reply address, good replies between are received."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from postage import messaging
from postage.amqp.publishing import Ledger, Outgoing, Receipt
from support.messaging import TIMEOUT, Bench, EchoProducer, Processor
from support.soak import IS_SOAK, SEED

from .corpus import BODIES, HEADERS, hostile, properties_of
from .test_hostile_messages import is_taken

REPLIES = 20_000 if IS_SOAK else 1_000
BATCH = 50  # of them, before each good one


class Stranger(Processor):
    """Answers, after hostile replies to the same address."""

    def __init__(self, sender: messaging.GenericProducer, taken: Iterator[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.sender = sender
        self.taken = taken

    def send(self, properties: bytes, body: bytes) -> None:
        channel = self.sender.conn_broker.publisher(True)
        receipt = Receipt('hostile', 1, True, Ledger(channel))
        address = messaging.delivery().properties.reply_to
        channel.publish(Outgoing('', address, False, properties, body, receipt), TIMEOUT)

    @messaging.RpcHandler('command', 'good')
    def rpc_good(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> Any:
        for properties, body in itertools.islice(self.taken, BATCH):
            self.send(properties, body)
        return content['parameters']

    @messaging.RpcHandler('command', 'forged')
    def rpc_forged(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        """Answer with what is hostile, in the name of this very request."""
        headers, body = HEADERS[content['headers']], BODIES[content['body']]
        correlation_id = messaging.delivery().properties.correlation_id.encode()
        self.send(properties_of(headers, None, correlation_id), body)

    @messaging.RpcHandler('command', 'silent')
    def rpc_silent(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        self.seen.put('silent')


class Caller(EchoProducer):
    rpc_timeout = TIMEOUT
    max_retry = 0


@pytest.mark.timeout(1800 if IS_SOAK else 60)
def test_good_replies_between_hostile_ones_are_all_received(bench: Bench, record_note: Callable[[str], None]) -> None:
    numbers = random.Random(SEED)
    drawn = iter(lambda: hostile(numbers), None)
    taken = (reply for reply in drawn if is_taken(bench.broker, reply[0]))
    # Another connection, by another name of the host: what the broker refuses is the sender's affair.
    sender = bench.producer(EchoProducer, hup=bench.broker.url.replace('127.0.0.1', 'localhost'))
    stranger = Stranger(sender, taken)
    bench.run(stranger)
    caller = bench.producer(Caller)
    # While two calls wait, a reply that does not say which it answers is for neither. It may come behind a good one.
    silent = [caller.rpc_future_silent(_timeout=3600) for _ in range(2)]
    assert stranger.seen.take(2) == ['silent', 'silent']
    link = caller.conn_broker.link
    for batch in range(REPLIES // BATCH):
        assert caller.rpc_good(batch).value == batch, f'seed {SEED}'
    assert caller.conn_broker.link is link, f'seed {SEED}'
    assert not any(future.done() for future in silent)
    for future in silent:
        future.cancel()
    record_note(f'{REPLIES} hostile replies, {bench.broker.name}, seed {SEED}')


def test_a_forged_reply_in_the_name_of_a_request_ends_that_call_alone(bench: Bench) -> None:
    sender = bench.producer(EchoProducer, hup=bench.broker.url.replace('127.0.0.1', 'localhost'))
    bench.run(Stranger(sender, iter(())))
    caller = bench.producer(Caller)
    link = caller.conn_broker.link
    pairs = {(index, 0) for index in range(len(HEADERS))} | {(0, index) for index in range(len(BODIES))}
    for headers, body in sorted(pairs):
        if not is_taken(bench.broker, properties_of(HEADERS[headers], None, b'x' * 36)):
            continue
        reply = caller.rpc_forged(headers=headers, body=body)
        assert 'TimeoutError' not in str(reply), (HEADERS[headers], BODIES[body][:100])
        assert caller.rpc_good('after it').value == 'after it'
    assert caller.conn_broker.link is link
