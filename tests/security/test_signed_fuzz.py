"""Of messages that were changed at random, a consumer with keys handles none; whatever they hold, it says why."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from postage import errors
from postage.amqp.cutter import Content
from postage.amqp.deliveries import Delivery
from postage.amqp.frames import decode_properties, encode_all, encode_properties
from postage.amqp.topology import Binding, Queue, Topology
from postage.messaging.gate import Gate
from postage.messaging.properties import EXPIRATION
from postage.messaging.signing import Signatures
from support.messaging import GUARDED_EQK, Bench, EchoExchange, command, eventually
from support.signed import OLD, SIGNATURE, VOUCHER, SignedEcho, SignedProducer, capture, send_again
from support.soak import IS_SOAK, SEED

from .corpus import BODIES, HEADERS

MESSAGES = 100_000 if IS_SOAK else 2_000
ON_A_BROKER = 5_000 if IS_SOAK else 200

SIGNED_PROPERTIES = ('content_type', 'content_encoding', 'message_id', 'correlation_id', 'type', 'app_id')
KEYS = Signatures('here', OLD)

Message = tuple[str, str, bytes, bytes]
"""Exchange, routing key, properties, body."""


class Settler:
    """A channel that notes what is acknowledged."""

    generation, is_open, is_wanted, prefetch, frame_max = 1, True, True, 0, 131_072

    def __init__(self) -> None:
        self.topology = Topology({'an-exchange': {'exchange_type': 'direct'}})
        self.topology.queues['a-queue'] = Queue('a-queue', {})
        self.topology.bindings.append(Binding('a-queue', 'an-exchange', 'a-key'))

    def settle(self, delivery: Any, requeue: bool | None = None) -> None:
        """A copy is acknowledged."""


def signed(number: int, random: random.Random) -> Message:
    """One of the messages that a program may sign."""
    body = b'{"number": %d}' % number
    given: dict[str, Any] = {'content_type': 'application/json', 'delivery_mode': 2, 'message_id': f'id-{number}'}
    if random.random() < 0.5:
        given['headers'] = {'colour': random.choice('ab'), 'deep': {'n': number, 'list': [1, 2.5, None, True, b'\xff']}}
    if random.random() < 0.5:
        given |= {'correlation_id': f'id-{number}', 'reply_to': 'amq.rabbitmq.reply-to', 'expiration': '60000'}
    return 'an-exchange', 'a-key', KEYS.properties('an-exchange', 'a-key', body, given), body


def seen_of(message: Message) -> Any:
    """What a handler could take for signed, and where it came by."""
    exchange, key, encoded, body = message
    properties = decode_properties(encoded)
    headers = properties.headers or {}
    reply_to = properties.reply_to or ''
    literal = 'amq.rabbitmq.reply-to' if reply_to.startswith('amq.rabbitmq.reply-to.') else reply_to
    own = {name: value for name, value in headers.items() if not name.startswith('x-')}
    values = tuple(getattr(properties, name) or '' for name in SIGNED_PROPERTIES)
    noted = headers.get(EXPIRATION)  # of what was sent on; in which another program may have put anything
    expiration = noted if isinstance(noted, str) and noted.isdecimal() else properties.expiration or ''
    return exchange, key, body, values, literal, expiration, own


# What is changed


def a_bit_of_the_body(message: Message, other: Message, random: random.Random) -> Message:
    exchange, key, properties, body = message
    return exchange, key, properties, with_a_bit_flipped(body, random)


def a_bit_of_the_properties(message: Message, other: Message, random: random.Random) -> Message:
    exchange, key, properties, body = message
    return exchange, key, with_a_bit_flipped(properties, random), body


def with_a_bit_flipped(data: bytes, random: random.Random) -> bytes:
    changed = bytearray(data)
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def a_part_of_another(message: Message, other: Message, random: random.Random) -> Message:
    exchange, key, encoded, body = message
    _, _, other_encoded, other_body = other
    properties, theirs = decode_properties(encoded), decode_properties(other_encoded)
    for name in random.sample((*SIGNED_PROPERTIES, 'reply_to', 'expiration', 'headers'), 3):
        setattr(properties, name, getattr(theirs, name))
    return exchange, key, encode_all(properties), random.choice((body, other_body))


NAMES = (VOUCHER, EXPIRATION, 'admin', 'x-death', 'x-postage-attempts', 'x-postage-exchange', 'x-postage-deadline')
VALUES: tuple[Any, ...] = (
    *(None, 1, 2.5, '', 'x', '7', b'\xff', [], [7], {}),
    *([{'queue': 'q'}], [{'original-expiration': '60000'}], '[1, "old"]', '["old", "AAAA"]'),
)


def a_header(message: Message, other: Message, random: random.Random) -> Message:
    exchange, key, encoded, body = message
    properties = decode_properties(encoded)
    headers = dict(properties.headers)
    name = random.choice(
        (*headers, VOUCHER, EXPIRATION, 'admin', 'x-death', 'x-postage-attempts', 'x-postage-exchange')
    )
    value = random.choice(
        (None, 1, '', 'x', '[1, "old"]', '["old", "AAAA"]', [], [{'queue': 'q'}], {}, 2.5, b'\xff', [7])
    )
    headers[name] = value
    if random.random() < 0.3:
        del headers[random.choice(tuple(headers))]
    return exchange, key, encode_all_with(properties, headers), body


def the_signature(message: Message, other: Message, random: random.Random) -> Message:
    exchange, key, encoded, body = message
    properties = decode_properties(encoded)
    text = properties.headers[SIGNATURE]
    at, length = random.randrange(len(text)), random.randrange(3)
    text = text[:at] + ''.join(random.choices('0aZ+/=,"[]{}\\ ', k=random.randrange(3))) + text[at + length :]
    return exchange, key, encode_all_with(properties, {**properties.headers, SIGNATURE: text}), body


def the_way(message: Message, other: Message, random: random.Random) -> Message:
    _, _, properties, body = message
    return (
        random.choice(('', 'an-exchange', 'other')),
        random.choice(('a-key', 'a-queue', 'other', '')),
        properties,
        body,
    )


def all_of_it(message: Message, other: Message, random: random.Random) -> Message:
    exchange, key, _, _ = message
    headers = random.choice(HEADERS)
    return exchange, key, (1 << 13).to_bytes(2, 'big') + headers, random.choice(BODIES)


def encode_all_with(properties: Any, headers: dict[str, Any]) -> bytes:
    return encode_properties(**{**vars(properties), 'headers': headers})


CHANGES: tuple[Callable[[Message, Message, random.Random], Message], ...] = (
    *(a_bit_of_the_body, a_bit_of_the_properties, a_bit_of_the_properties, a_part_of_another),
    *(a_header, a_header, the_signature, the_way, all_of_it),
)


def delivered(message: Message, settler: Settler, redelivered: bool) -> Delivery:
    content = Content()
    content.exchange, content.routing_key = message[0].encode(), message[1].encode()
    content.properties, content.body = message[2:]
    content.delivery_tag, content.redelivered, content.tag_or_text = 1, redelivered, b'tag'
    return Delivery(settler, 'a-queue', content)


def test_of_what_was_changed_nothing_is_admitted() -> None:
    chance = random.Random(SEED)
    settler = Settler()
    admitted = refused = 0
    for number in range(MESSAGES):
        original, other = signed(number, chance), signed(-number - 1, chance)
        message = original
        for _ in range(chance.randrange(1, 4)):
            try:
                message = chance.choice(CHANGES)(message, other, chance)
            except (errors.PostageError, AttributeError, LookupError, TypeError, ValueError):
                continue  # a change of what an earlier one has spoiled
        gate = Gate(
            KEYS, chance.choice((None, 60)), False, settler.topology, lambda delivery: None
        )  # it knows none yet
        delivery = delivered(message, settler, chance.random() < 0.2)
        try:
            assert gate.admits(delivery), f'seed {SEED}, message {number}'
        except errors.SignatureRefused:
            refused += 1
            continue
        admitted += 1
        way = ('', 'a-queue') if message[0] == '' else ('an-exchange', 'a-key')
        same = [seen_of((*way, *each[2:])) for each in (original, other)]
        assert seen_of(message) in same, f'seed {SEED}, message {number}: {message}'
    assert refused > MESSAGES / 2
    assert admitted > MESSAGES / 100  # what is not signed was changed: nothing keeps it out


def test_between_what_was_changed_the_signed_ones_are_handled(bench: Bench) -> None:
    chance = random.Random(SEED)
    headers = {'colour': 'red', 'deep': {'a': [1, 2]}}
    got = capture(bench, lambda producer: producer.message_echo('captured', _headers=headers, _expiration=600))
    bench.dead()
    processor = SignedEcho(GUARDED_EQK)
    bench.run(processor)
    producer = bench.producer(SignedProducer)
    changes: tuple[Callable[[], dict[str, Any]], ...] = (
        lambda: {'data': with_a_bit_flipped(got.data, chance)},
        lambda: {'data': chance.choice(BODIES)},
        lambda: {chance.choice(SIGNED_PROPERTIES): chance.choice(('x', 'é', '0' * 255))},
        lambda: {
            'headers': {chance.choice(('colour', 'deep', 'new')): chance.choice((1, 'x', [1], {'a': {}}, b'\xff'))}
        },
        lambda: {'headers': {SIGNATURE: chance.choice(('', 'x', '[]', '[1]', 1, None, b'\xff', {'a': 1}, [1]))}},
        lambda: {'expiration': str(chance.randrange(700_000, 800_000))},
    )
    for number in range(ON_A_BROKER):
        send_again(bench, got, **chance.choice(changes)())
        if number % 20 == 0:
            producer.message_echo(number)
    good = list(range(0, ON_A_BROKER, 20))
    assert processor.seen.take(len(good)) == good, f'seed {SEED}'
    eventually(lambda: bench.count('dead') == ON_A_BROKER)
    assert processor.seen.empty()
    assert not bench.log.find('connection', 'lost')
    bench.publish(command('quit'), exchange=EchoExchange.name)
    eventually(lambda: bench.count('dead') == ON_A_BROKER + 1)


def test_the_same_message_has_one_form_only() -> None:
    """What is signed is packed with lengths, so that nothing can move from one field into the next."""
    one = KEYS.properties('ab', 'c', b'', {'message_id': 'd'})
    text = decode_properties(one).headers[SIGNATURE]
    for exchange, key, id in (('a', 'bc', 'd'), ('ab', '', 'cd'), ('ab', 'cd', '')):
        moved = text.replace('"ab","c"', f'"{exchange}","{key}"')
        properties = decode_properties(encode_properties(message_id=id or None, headers={SIGNATURE: moved}))
        with pytest.raises(errors.SignatureRefused):
            KEYS.verify(properties, b'')
