"""A consumer with keys handles what is signed by one of them, in time, at its place, and once; and nothing else."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from postage import errors, messaging, microthreads, missive
from postage.amqp.cancelled import cancelled
from postage.messaging import cancelling, rpc
from postage.messaging import gate as gates
from postage.messaging.signing import Signatures
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from postage.sparingly import Sparingly
from support.canaries import sightings
from support.messaging import (
    DEAD_LETTERING,
    EQK,
    GUARDED_EQK,
    TIMEOUT,
    BareResponder,
    Bench,
    Echo,
    EchoExchange,
    EchoProducer,
    OtherExchange,
    Processor,
    Seen,
    command,
    eventually,
    result,
)
from support.signed import (
    NEW,
    OLD,
    SIGNATURE,
    VOUCHER,
    SignedEcho,
    SignedProducer,
    Stranger,
    capture,
    send_again,
    signing,
)


def value_of(reply: Any) -> Any:
    return reply.body['content']['value']


@pytest.fixture(autouse=True)
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the lines of a test is left out because of the tests before it."""
    monkeypatch.setattr(rpc, '_sparingly', Sparingly())


def guarded(bench: Bench, cls: Any = SignedEcho, **attributes: Any) -> Any:
    """A processor that runs; what it rejects is in the queue ``dead``."""
    bench.dead()
    processor = signing(cls, cls.signing_keys or OLD, **attributes)(GUARDED_EQK)
    bench.run(processor)
    return processor


# Who understands whom


@pytest.mark.parametrize('sender', [False, OLD, NEW, [NEW, OLD], [OLD, NEW]], ids=str)
@pytest.mark.parametrize('receiver', [False, OLD, NEW, [NEW, OLD]], ids=str)
def test_signed_and_unsigned_programs_in_every_combination(bench: Bench, sender: Any, receiver: Any) -> None:
    def keys(given: Any) -> list[str]:
        return [given] if isinstance(given, str) else given or []

    processor = signing(Echo, receiver)(EQK)
    bench.run(processor)
    producer = bench.producer(signing(EchoProducer, sender, rpc_timeout=0.5 if sender else TIMEOUT))
    takes = not receiver or (bool(sender) and keys(sender)[0] in keys(receiver))
    understands = not sender or (bool(receiver) and keys(receiver)[0] in keys(sender))
    producer.message_echo('a message')
    if takes:
        assert processor.seen.next() == 'a message'
    else:
        bench.log.expect('WARNING', 'is refused: it is ', 'signed')
    reply = producer.rpc_echo('a request')
    if takes and understands:
        assert value_of(reply) == 'a request'
    elif not takes and not sender:
        assert isinstance(reply, messaging.MessageResultError)
        assert reply.body['content']['message'] == 'the request is refused: it is not signed'
    else:
        assert value_of(reply) == 'TimeoutError'
        assert 'a reply was dropped: it is' in reply.body['content']['message']
    assert takes or processor.seen.empty()


def test_what_is_refused_is_a_dead_letter_with_its_reason(bench: Bench) -> None:
    class Store:
        letters = Seen()

        def put(self, letter: messaging.DeadLetter) -> None:
            self.letters.put(letter)

    store = Store()
    bench.run(signing(Echo, dead_letters=store)(EQK))
    bench.producer(Stranger).message_echo('unsigned')
    letter = store.letters.next()
    assert (letter.reason, letter.attempts, letter.message) == ('refused', 0, 'it is not signed')
    assert letter.exception == 'postage.errors.SignatureRefused'
    bench.log.expect('WARNING', "from queue 'echo-queue'", 'is refused: it is not signed')


def test_what_is_refused_is_rejected_where_there_is_no_store(bench: Bench) -> None:
    guarded(bench)
    bench.producer(Stranger).message_echo('unsigned')
    assert bench.await_message('dead').parameters == 'unsigned'


def test_the_environment_gives_keys_to_all_of_a_program(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_SIGNING_KEYS', OLD)
    processor = Echo(EQK)
    bench.run(processor)
    assert value_of(bench.producer().rpc_echo(1)) == 1
    monkeypatch.delenv('POSTAGE_SIGNING_KEYS')
    assert 'not signed' in bench.producer(Stranger).rpc_echo(1).body['content']['message']


def test_keys_of_a_consumer_class_count_where_its_processor_has_none(bench: Bench) -> None:
    processor = type('Plain', (Echo,), {'consumer_class': signing(messaging.GenericConsumer)})(EQK)
    bench.run(processor)
    assert value_of(bench.producer(SignedProducer).rpc_echo(1)) == 1
    assert 'not signed' in bench.producer(Stranger).rpc_echo(1).body['content']['message']


# What was signed is as it was


def flipped(text: str) -> str:
    """Text with a bit of its last character flipped."""
    return text[:-1] + chr(ord(text[-1]) ^ 1)


def changed_signature(position: int, change: Any) -> Any:
    def changes(got: Any) -> dict[str, Any]:
        fields = json.loads(got.properties.headers[SIGNATURE])
        fields[position] = change(fields[position])
        return {'headers': {SIGNATURE: json.dumps(fields)}}

    return changes


FORGERIES = {
    'the body': lambda got: {'data': got.data[:-1] + bytes((got.data[-1] ^ 1,))},
    'a value in the body': lambda got: {'data': got.data.replace(b'original', b'origin\xc3\xa5l')},
    'the content type': lambda got: {'content_type': flipped(got.properties.content_type)},
    'no content type': lambda got: {'content_type': None},
    'a content encoding': lambda got: {'content_encoding': 'gzip'},
    'the message id': lambda got: {'message_id': flipped(got.properties.message_id)},
    'no message id': lambda got: {'message_id': None},
    'a correlation id': lambda got: {'correlation_id': 'x'},
    'a reply address': lambda got: {'reply_to': 'amq.gen-mine'},
    'direct reply-to': lambda got: {'reply_to': 'amq.rabbitmq.reply-to.mine'},
    'the expiration': lambda got: {'expiration': '60001'},
    'no expiration': lambda got: {'expiration': None},
    'a type': lambda got: {'type': 'command'},
    'an app id': lambda got: {'app_id': 'mine'},
    'a header': lambda got: {'headers': {'colour': 'ree'}},
    'the type of a header': lambda got: {'headers': {'number': '7'}},
    'a header in a header': lambda got: {'headers': {'deep': {'a': [1, {'b': 3}]}}},
    'a header less': lambda got: {'headers': {'colour': None}},
    'a header more': lambda got: {'headers': {'admin': True}},
    'a header that was signed with x-': lambda got: {'headers': {'x-mine': 'flippee'}},
    'the exchange': lambda got: {'exchange': OtherExchange.name},
    'the routing key': lambda got: {'key': 'echo-rl'},
    'the exchange and the key that are noted': lambda got: {
        'exchange': OtherExchange.name,
        'headers': {'x-postage-exchange': EchoExchange.name, 'x-postage-routing-key': 'echo-rk'},
    },
    'the version of the signature': changed_signature(0, lambda version: 2),
    'the id of its key': changed_signature(1, flipped),
    'its time': changed_signature(2, lambda milliseconds: milliseconds ^ 1),
    'its MAC': changed_signature(3, lambda mac: flipped(mac[:-2]) + mac[-2:]),
    'a shorter MAC': changed_signature(3, lambda mac: mac[:-4]),
    'an empty MAC': changed_signature(3, lambda mac: ''),
    'its exchange': changed_signature(4, lambda exchange: OtherExchange.name),
    'its routing key': changed_signature(5, lambda key: 'echo-rl'),
    'its headers': changed_signature(6, lambda names: names[1:]),
    'more of its headers': changed_signature(6, lambda names: [*names, 'x-death']),
    'a deadline': lambda got: {'headers': {'x-postage-deadline': 17}},
    'its deadline': changed_signature(7, lambda deadline: 17),
    'no signature': lambda got: {'headers': {SIGNATURE: None}},
    'a signature that is none': lambda got: {'headers': {SIGNATURE: 'signed, truly'}},
    'a signature of another type': lambda got: {'headers': {SIGNATURE: 17}},
    'a signature of bytes': lambda got: {'headers': {SIGNATURE: b'\xff\xfe'}},
    'a signature of a table': lambda got: {'headers': {SIGNATURE: {'a': 1}}},
}

EQK_OF_BOTH = [
    (EchoExchange, [({'name': 'echo-queue', 'flags': DEAD_LETTERING}, key) for key in ('echo-rk', 'echo-rl')]),
    (OtherExchange, [('echo-queue', 'echo-rk')]),
]


def test_a_bit_flipped_in_each_signed_field_is_refused(bench: Bench) -> None:
    headers = {'colour': 'red', 'number': 7, 'deep': {'a': [1, {'b': 2}]}, 'x-mine': 'flipped'}
    got = capture(bench, lambda producer: producer.message_echo('original', _headers=headers, _expiration=60))
    bench.dead()
    processor = SignedEcho(EQK_OF_BOTH)
    bench.run(processor)
    for name, forge in FORGERIES.items():
        forged = {'headers': {}, **forge(got)}
        send_again(bench, got, **{**forged, 'headers': {**forged['headers'], 'x-which': name}})
    refused = {bench.await_message('dead').properties.headers['x-which'] for _ in FORGERIES}
    assert refused == set(FORGERIES)
    send_again(bench, got)
    assert processor.seen.next() == 'original'
    assert processor.seen.empty()


def test_a_request_keeps_its_ids_and_its_way_back(bench: Bench) -> None:
    got = capture(bench, lambda producer: producer.rpc_future_echo('asked', _timeout=60))
    assert got.properties.reply_to.startswith('amq.rabbitmq.reply-to.')
    assert {'correlation_id', 'reply_to', 'message_id', 'expiration'} <= set(vars(got.properties))
    processor = guarded(bench)
    for name, value in (('correlation_id', 'mine'), ('reply_to', 'amq.gen-mine'), ('reply_to', None)):
        send_again(bench, got, **{name: value})
        bench.await_message('dead')
    for deadline in (got.properties.headers['x-postage-deadline'] + 1, 'soon', None):
        send_again(bench, got, headers={'x-postage-deadline': deadline})
        bench.await_message('dead')
    assert processor.seen.empty()


def test_a_message_sent_to_another_queue_by_the_default_exchange_is_refused(bench: Bench) -> None:
    got = capture(bench, lambda producer: producer.message_echo('for others'), key='echo-rk')
    bench.dead()
    processor = SignedEcho([(OtherExchange, [({'name': 'mine', 'flags': DEAD_LETTERING}, 'other-rk')])])
    bench.run(processor)
    send_again(bench, got, '', 'mine')
    assert bench.await_message('dead').parameters == 'for others'
    bench.log.expect('WARNING', "signed for exchange 'echo-exchange', key 'echo-rk', which leads not to queue 'mine'")
    assert processor.seen.empty()


@pytest.mark.parametrize(
    ('signed_for', 'is_taken'),
    [
        (True, True),
        ([(OtherExchange, '#'), (EchoExchange, '#')], True),
        ([(EchoExchange, 'echo-rk')], True),
        ([(EchoExchange, 'echo.*')], False),
        ([(OtherExchange, '#')], False),
        ([], False),
    ],
)
def test_a_consumer_may_take_what_was_signed_for_elsewhere(bench: Bench, signed_for: Any, is_taken: bool) -> None:
    got = capture(bench, lambda producer: producer.message_echo('for others'))
    processor = signing(Echo, signed_for=signed_for)([(OtherExchange, [('mine', 'other-rk')])])
    bench.run(processor)
    send_again(bench, got, OtherExchange.name, 'other-rk')
    if is_taken:
        assert processor.seen.next() == 'for others'
    else:
        bench.log.expect('WARNING', 'see signed_for')


# Keys change


def test_keys_are_rotated_under_load_with_nothing_refused(bench: Bench) -> None:
    """Each program in its turn: first all know the new key, then all sign with it, then all forget the old one."""
    received, stop, sent = Seen(), threading.Event(), [0]

    def processor_with(keys: Any) -> Any:
        processor = signing(Echo, keys, max_age=60)(EQK)
        processor.seen = received
        return processor

    def publish() -> None:
        producers = [bench.producer(signing(EchoProducer, keys)) for keys in (OLD, [OLD, NEW], [NEW, OLD], NEW)]
        phases = iter(producers)
        producer = next(phases)
        while not stop.is_set():
            if turn.is_set():
                turn.clear()
                producer = next(phases, producer)
                turned.set()
            producer.message_echo(sent[0])
            sent[0] += 1
            stop.wait(0.0005)
        producer.flush(TIMEOUT)

    turn, turned = threading.Event(), threading.Event()
    running = bench.run(processor_with(OLD))
    thread = threading.Thread(target=publish)
    thread.start()
    try:
        for keys in ([OLD, NEW], [NEW, OLD], NEW):
            received.take(50)
            following = bench.run(processor_with(keys))  # beside the one before it, as in a rolling update
            running.stop()
            running = following
            turn.set()
            assert turned.wait(TIMEOUT)
            turned.clear()
            if keys is not NEW:
                eventually(lambda: bench.count('echo-queue') == 0)
    finally:
        stop.set()
        thread.join(TIMEOUT)
    eventually(lambda: received.qsize() + 150 >= sent[0] and bench.count('echo-queue') == 0)
    assert not bench.log.find('refused')


# The same message twice


def test_a_captured_message_sent_again_is_not_handled_twice(bench: Bench) -> None:
    got = capture(bench, lambda producer: producer.message_echo('once'))
    processor = guarded(bench)
    for _ in range(3):
        send_again(bench, got)
    send_again(bench, got, priority=1, headers={'x-more': 1, VOUCHER: 'mine'})
    send_again(bench, got, '', 'echo-queue')
    bench.producer(SignedProducer).message_echo('after')
    assert processor.seen.take(2) == ['once', 'after']
    eventually(lambda: not sum(bench.broker.messages().values()))
    assert bench.count('dead') == 0
    bench.log.expect('WARNING', 'is a copy of a message that has been handled; acknowledged')


def test_a_captured_request_sent_again_is_neither_handled_nor_answered(bench: Bench) -> None:
    class Asked(Processor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: dict[str, Any], reply_func: Any) -> None:
            self.seen.put(content['parameters'])
            reply_func(1)

    queue = bench.collect()
    processor = guarded(bench, Asked)
    producer = bench.producer(SignedProducer)
    assert value_of(producer.rpc_echo('once')) == 1
    got = bench.await_message(queue)
    send_again(bench, got)
    assert value_of(producer.rpc_echo('after')) == 1
    assert processor.seen.take(2) == ['once', 'after']
    assert processor.seen.empty()


def test_a_copy_of_a_message_in_hand_is_not_handled_beside_it(bench: Bench) -> None:
    go_on = threading.Event()

    class Slow(Processor):
        concurrency = 5

        @messaging.Threaded
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            self.seen.put(content['parameters'])
            assert go_on.wait(TIMEOUT)

    got = capture(bench, lambda producer: producer.message_echo('once'))
    processor = guarded(bench, Slow)
    send_again(bench, got)
    assert processor.seen.next() == 'once'
    send_again(bench, got)
    bench.log.expect('WARNING', 'is a copy of a message')
    go_on.set()
    eventually(lambda: not sum(bench.broker.messages().values()))
    assert processor.seen.empty()


def test_a_message_whose_connection_is_lost_while_it_is_handled_is_handled_once(bench: Bench) -> None:
    go_on = threading.Event()

    class Slow(Processor):
        concurrency = 5

        @messaging.Threaded
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            self.seen.put(content['parameters'])
            assert go_on.wait(TIMEOUT)

    processor = guarded(bench, Slow)
    producer = bench.producer(SignedProducer)
    producer.message_echo('once')
    assert processor.seen.next() == 'once'
    bench.close_all_connections()
    producer.message_echo('after')
    assert processor.seen.next() == 'after'
    go_on.set()
    eventually(lambda: not sum(bench.broker.messages().values()))
    assert processor.seen.empty()
    assert bench.log.find('is a copy of a message that has been handled')


def test_a_message_that_goes_to_two_queues_is_handled_in_both(bench: Bench) -> None:
    class Both(messaging.Exchange):
        name = 'both-exchange'
        exchange_type = 'fanout'

    processor = SignedEcho([(Both, [('one', ''), ('two', '')])])
    bench.run(processor)
    producer = bench.producer(signing(EchoProducer, eks=[(Both, '')]))
    producer.message_echo('to both')
    assert processor.seen.take(2) == ['to both', 'to both']


def test_what_is_remembered_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, 'REMEMBERED', 10)
    processor = guarded(bench)
    producer = bench.producer(SignedProducer)
    for number in range(30):
        producer.message_echo(number)
    processor.seen.take(30)
    gate = processor.consumer.delivery_source.gate
    eventually(lambda: not gate._in_hand)
    assert len(gate._known) == 10
    assert not gate._waiting


# Age


def aged(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have what is signed from now on be that old."""
    before = time.time_ns
    monkeypatch.setattr('postage.messaging.signing.time.time_ns', lambda: before() - int(seconds * 1e9))


@pytest.mark.parametrize(('seconds', 'words'), [(120, 'signed 120 s ago'), (-120, 's in the future')])
def test_what_is_older_than_it_may_be_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float, words: str
) -> None:
    processor = guarded(bench, max_age=60)
    with monkeypatch.context() as patched:
        aged(patched, seconds)
        bench.producer(SignedProducer).message_echo('stale')
        assert bench.await_message('dead').parameters == 'stale'
        bench.log.expect('WARNING', words, 'max_age is 60 s')
        aged(patched, -seconds / 2)
    bench.producer(SignedProducer).message_echo('fresh')
    assert processor.seen.next() == 'fresh'


def test_the_caller_of_a_stale_request_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = guarded(bench, max_age=60)
    assert processor.consumer.delivery_source.gate is not None
    before, calls = time.time_ns, []

    def once_late() -> int:
        calls.append(1)
        return before() - (0 if len(calls) > 1 else 120 * 10**9)

    monkeypatch.setattr('postage.messaging.signing.time.time_ns', once_late)
    reply = bench.producer(SignedProducer).rpc_echo(1)
    assert 'the request is refused: it was signed 120 s ago' in reply.body['content']['message']


# Replies


def test_a_reply_without_a_right_signature_is_dropped_and_the_right_one_still_counts(bench: Bench) -> None:
    replies = Seen()
    signatures = Signatures('here', OLD)

    def answer(body: Any, properties: Any) -> list[Any]:
        replies.put((body, properties))
        return []

    bench.collect(key='echo-rk')
    asked = BareResponder(bench.broker, f'collected-{EchoExchange.name}-echo-rk', answer)
    bench.closing(asked)
    future = bench.producer(SignedProducer).rpc_future_echo(1)
    _, request = replies.next()
    to, correlation_id = request.reply_to, request.correlation_id

    def publish(value: Any, signed_for: str | None, id: str, correlation_id: str | None = correlation_id) -> None:
        data = json.dumps(result(value)).encode()
        text = None
        if signed_for is not None:
            text = signatures._sign('', signed_for, data, 'application/json', id, correlation_id or '')
        headers = {SIGNATURE: text} if text else None
        bench.publish(data, to, '', correlation_id=correlation_id, message_id='id', headers=headers)

    publish('unsigned', None, 'id')
    bench.log.expect('WARNING', "a reply to RPC 'rpc_echo' was dropped: it is not signed")
    publish('for another', 'amq.gen-another', 'id')
    bench.log.expect('WARNING', 'was dropped: it was signed for', 'amq.gen-another')
    publish('changed', 'amq.rabbitmq.reply-to', 'another id')
    bench.log.expect('WARNING', 'was dropped: its signature is not right')
    publish('anonymous', 'amq.rabbitmq.reply-to', 'id', None)
    bench.log.expect('WARNING', 'was dropped: it does not say which request it answers')
    publish('right', 'amq.rabbitmq.reply-to', 'id')
    assert value_of(future.result(TIMEOUT)) == 'right'


@pytest.mark.parametrize('attributes', [{}, {'reply_queue_per_call': True}], ids=['direct', 'queue'])
def test_each_way_of_asking_is_signed_both_ways(bench: Bench, attributes: dict[str, Any]) -> None:
    processor = guarded(bench)
    producer = bench.producer(signing(EchoProducer, **attributes))
    assert value_of(producer.rpc_echo({'a': 1})) == {'a': 1}
    assert value_of(producer.rpc_echo(2, _headers={'colour': 'red'})) == 2
    futures = [producer.rpc_future_echo(number) for number in range(20)]
    assert [value_of(future.result(TIMEOUT)) for future in futures] == list(range(20))
    queue = producer.rpc_queue_echo(3)
    bench.publish(result('forged'), queue, '')
    assert [value_of(found) for found in producer.consume_rpc(queue, timeout=TIMEOUT)] == [3]
    assert not bench.log.find('is refused')
    assert processor.consumer.delivery_source.gate is not None


def test_a_reply_in_a_queue_that_is_not_signed_is_dropped(bench: Bench) -> None:
    bench.run(signing(Echo, False)(EQK))
    producer = bench.producer(SignedProducer)
    queue = producer.rpc_queue_echo(3)
    with pytest.raises(messaging.TimeoutError, match='0 of 1 results'):
        producer.consume_rpc(queue, timeout=0.5)
    assert bench.log.find('WARNING', f'a reply in queue {queue!r} was dropped: it is not signed')


def test_an_answer_to_what_is_refused_has_no_signature(bench: Bench) -> None:
    """Else anybody could have an error signed that ends the call of another."""
    guarded(bench)
    answers = bench.bare.queue_declare('', exclusive=True).method.queue
    bench.publish(command(category='rpc'), reply_to=answers, correlation_id='of another')
    got = bench.await_message(answers)
    assert 'it is not signed' in got.body['content']['message']
    assert SIGNATURE not in (got.properties.headers or {})


def test_later_attempts_of_an_rpc_are_handled_too(bench: Bench) -> None:
    class Late(Processor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: dict[str, Any], reply_func: Any) -> None:
            self.seen.put(reply_func)
            if self.seen.qsize() == 3:
                reply_func('third')

    guarded(bench, Late)
    assert value_of(bench.producer(SignedProducer).rpc_echo(1, _timeout=0.3, _max_retry=4)) == 'third'


def test_a_captured_reply_is_gathered_once(bench: Bench) -> None:
    class Asking(messaging.GenericProducer):
        eks = [(EchoExchange, 'echo-rk')]
        signing_keys = OLD

    forwarded = bench.collect(key='echo-rk')
    producer = bench.producer(Asking)
    gathering = producer.rpc_gather_echo(1, _timeout=TIMEOUT, _expect=2)
    request = bench.await_message(forwarded).properties
    signatures, data = Signatures('here', OLD), json.dumps(result(1)).encode()

    def publish(number: int) -> None:
        ids = f'reply-{number}', request.correlation_id
        text = signatures._sign('', 'amq.rabbitmq.reply-to', data, 'application/json', *ids)
        headers = {SIGNATURE: text}
        bench.publish(data, request.reply_to, '', message_id=ids[0], correlation_id=ids[1], headers=headers)
        bench.publish(data, request.reply_to, '', message_id=ids[0], correlation_id=ids[1], headers=headers)

    publish(1)
    bench.log.expect('WARNING', 'was dropped: it is a copy of one that has come')
    assert not gathering.done()
    publish(2)
    assert len(gathering.result(TIMEOUT)) == 2


def test_only_who_has_the_key_can_cancel_a_request(bench: Bench) -> None:
    closed, ids = Seen(), Seen()

    class Slow(Echo):
        concurrency = 2

        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: dict[str, Any], reply_func: Any) -> Any:
            delivery = messaging.current_delivery()
            assert delivery is not None
            ids.put(delivery.properties.correlation_id)
            try:
                yield microthreads.sleep(TIMEOUT)
            finally:
                closed.put(True)

    processor = guarded(bench, Slow)
    producer = bench.producer(SignedProducer)
    future = producer.rpc_future_echo(1)
    id = ids.next()
    connection = processor.consumer.conn_broker
    eventually(lambda: connection.cancels is not None and connection.cancels.is_open)
    forged = json.dumps({'cancel': [[id, int(1000 * (time.time() + 60))]]}).encode()
    bench.publish(forged, cancelling.key_of(EchoExchange.name, 'echo-rk'), cancelling.EXCHANGE)
    eventually(lambda: id in cancelled.until)
    producer.message_echo('after')
    assert processor.seen.next() == 'after'
    assert closed.empty()
    future.cancel()
    assert closed.next()


# Without a processor


def test_a_callback_sees_only_what_is_signed(bench: Bench) -> None:
    bench.dead()
    got = capture(bench, lambda producer: producer.message_echo('once'))
    consumer = bench.consumer(GUARDED_EQK, signing(messaging.GenericConsumer))
    seen = []

    def callback(channel: Any, method: Any, header: Any, body: bytes) -> None:
        seen.append(consumer.decode(body)['content']['parameters'])
        if seen == ['once', 'again']:
            consumer.reject(method, requeue=True)
            return
        consumer.ack(method)
        if seen[-1] == 'last':
            consumer.stop_consuming()

    bench.producer(Stranger).message_echo('unsigned')
    send_again(bench, got)
    send_again(bench, got)
    producer = bench.producer(SignedProducer)
    producer.message_echo('again')
    producer.flush(TIMEOUT)
    threading.Timer(0.3, lambda: producer.message_echo('last')).start()
    consumer.start_consuming(callback)
    assert seen == ['once', 'again', 'again', 'last']
    assert bench.await_message('dead').parameters == 'unsigned'


def test_an_adapter_of_missive_gets_only_what_is_signed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    got = capture(bench, lambda producer: producer.message_echo('once'))
    processor: missive.Processor[Any] = missive.Processor()

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        seen.put(json.loads(message.raw_data)['content']['parameters'])
        ctx.ack()

    bench.dead()
    monkeypatch.setenv('POSTAGE_SIGNING_KEYS', OLD)
    adapter = RabbitMQAdapter(missive.RawMessage, processor, eqk=GUARDED_EQK, disable_shutdown_handler=True)
    thread = threading.Thread(target=adapter.run)
    thread.start()
    try:
        bench.await_consumed('echo-queue')
        bench.producer(Stranger, {}).message_echo('before')
        monkeypatch.delenv('POSTAGE_SIGNING_KEYS')
        bench.producer(Stranger).message_echo('unsigned')
        for _ in range(2):
            send_again(bench, got)
        assert seen.next() == 'before'
        assert bench.await_message('dead').parameters == 'unsigned'
        assert seen.next() == 'once'
        bench.log.expect('WARNING', 'is a copy of a message')
        assert seen.empty()
    finally:
        adapter.stop()
        thread.join(TIMEOUT)


def test_questions_about_a_component_have_to_be_signed_too(bench: Bench) -> None:
    class Asking(messaging.GenericProducer):
        eks = [(messaging.ControlExchange, messaging.control_key(''))]
        rpc_timeout = 2.0
        max_retry = 0

    running = signing(Echo, control=True)(EQK, {'name': 'asked'})
    bench.run(running)
    asking = bench.producer(signing(Asking))
    assert eventually(lambda: asking.rpc_ping())
    answer = bench.producer(Asking).rpc_ping()
    assert answer.body['content']['message'] == 'the request is refused: it is not signed'


# Logs


def test_what_anybody_can_cause_is_logged_at_a_bounded_rate(bench: Bench) -> None:
    guarded(bench)
    stranger = bench.producer(Stranger)
    for number in range(300):
        stranger.message_echo(number)
    eventually(lambda: bench.count('dead') == 300)
    assert len(bench.log.find('is refused')) <= 30


def test_no_key_is_seen_anywhere(bench: Bench) -> None:
    processor = guarded(bench)
    producer = bench.producer(SignedProducer)
    producer.rpc_echo(1)
    bench.producer(Stranger).message_echo(1)
    bench.await_message('dead')
    things = (processor, processor.consumer, producer, processor.consumer.delivery_source.gate, producer._signatures)
    texts = [repr(thing) for thing in things] + [repr(vars(thing)) for thing in things]
    assert not sightings(f'{texts} {bench.log.text}')


@pytest.mark.parametrize('error', [errors.SignatureRefused('it is not signed', 'unsigned')])
def test_the_error_says_of_which_kind_it_is(error: errors.SignatureRefused) -> None:
    assert (error.reason, str(error)) == ('unsigned', 'it is not signed')
