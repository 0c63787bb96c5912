"""Answers go to those who ask, and not into a stranger's queue, unless a component says so."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest

from postage import messaging
from postage.messaging import reply_addresses
from support.messaging import EQK, Bench, Echo, EchoProducer, Processor, command, consuming, eventually


def accepting(accepted: Any, cls: Any = Echo) -> Any:
    return type('Accepting', (cls,), {'accept_reply_to': accepted})


def ask(bench: Bench, address: str, parameters: Any = 'asked') -> None:
    bench.publish(command('echo', parameters, category='rpc'), reply_to=address, correlation_id='mine')


def assert_silent(bench: Bench, processor: Any, address: str) -> None:
    """The queue at that address has got nothing, though the request was handled."""
    ask(bench, address)
    assert 'accept_reply_to' in bench.log.expect('WARNING', 'an answer goes nowhere', f'the reply address {address!r}')
    eventually(lambda: bench.count('echo-queue') == 0 and not processor.is_busy)
    assert bench.count(address) == 0


GENERATED = {
    'of the broker': '',
    'of ours, for one call': f'postage.reply-{uuid.uuid4().hex[:24]}',
    'of ours, for results': 'postage.rpc-0123456789abcdef-1f',
    'of a UUID': str(uuid.uuid4()),
    'of a UUID and a word': f'rpc.reply-standalone-{uuid.uuid4()}',
    'of digits': f'answers_{uuid.uuid4().hex}',
}


@pytest.mark.parametrize('name', GENERATED.values(), ids=GENERATED)
def test_a_queue_whose_name_looks_generated_gets_its_answers(bench: Bench, name: str) -> None:
    bench.run(Echo(EQK))
    address = bench.bare.queue_declare(name, durable=bool(name), exclusive=not name).method.queue
    ask(bench, address)
    assert bench.await_message(address).body['content']['value'] == 'asked'


@pytest.mark.parametrize('address', ['orders', 'amq-gen-1', 'postage.rpc-mine', 'deadbeef', 'reply-to-2026-11-26'])
def test_a_strangers_queue_gets_none(bench: Bench, address: str) -> None:
    processor = Echo(EQK)
    bench.run(processor)
    bench.bare.queue_declare(address, durable=True)
    assert_silent(bench, processor, address)
    assert bench.producer().rpc_echo('after').body['content']['value'] == 'after'


def test_an_exclusive_queue_gets_its_answers_whatever_its_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ask_broker = [], reply_addresses.ReplyAddresses._ask

    def note(self: Any, address: str) -> bool:
        asked.append(address)
        return ask_broker(self, address)

    monkeypatch.setattr(reply_addresses.ReplyAddresses, '_ask', note)
    bench.run(Echo(EQK))
    bench.bare.queue_declare('my-answers', exclusive=True)
    for number in range(3):
        ask(bench, 'my-answers', number)
        assert bench.await_message('my-answers').body['content']['value'] == number
    assert asked == ['my-answers']  # and not once for each


def test_an_exclusive_queue_of_the_same_process_gets_its_answers(bench: Bench) -> None:
    processor = Echo(EQK)
    bench.run(processor)
    eqk = [(messaging.ControlExchange, [({'name': 'own-answers', 'flags': {'exclusive': True}}, 'nothing')])]
    consumer = bench.consumer(eqk)
    with consuming(consumer) as seen:
        ask(bench, 'own-answers')
        assert consumer.decode(seen.next()[3])['content']['value'] == 'asked'


def test_direct_reply_to_and_all_ways_of_our_own_are_answered_without_asking_the_broker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_addresses.ReplyAddresses, '_ask', lambda self, address: pytest.fail(address))
    bench.run(accepting(None)(EQK))
    for attributes in ({}, {'reply_queue_per_call': True}):
        producer = bench.producer(type('Asking', (EchoProducer,), attributes))
        assert producer.rpc_echo(1).body['content']['value'] == 1
        queue = producer.rpc_queue_echo(2)
        assert producer.consume_rpc(queue)[0].body['content']['value'] == 2


def named(accepted: Any) -> str:
    """The same in each process: a function is shown with its address otherwise."""
    return 'a method' if callable(accepted) else str(accepted)


@pytest.mark.parametrize(
    'accepted',
    [True, 'orders', 'ord*', ['replies', 'order?'], re.compile('or.ers'), [re.compile('x'), 'o*'], lambda *_: True],
    ids=named,
)
def test_a_component_says_where_else_answers_may_go(bench: Bench, accepted: Any) -> None:
    bench.run(accepting(accepted)(EQK))
    bench.bare.queue_declare('orders', durable=True)
    ask(bench, 'orders')
    assert bench.await_message('orders').body['content']['value'] == 'asked'


@pytest.mark.parametrize(
    'accepted',
    [False, 'order', 'Orders', ['replies'], re.compile('orde'), lambda *_: 'yes', lambda *_: 1 / 0, lambda *_: None],
    ids=named,
)
def test_what_it_does_not_name_gets_none(bench: Bench, accepted: Any) -> None:
    processor = accepting(accepted)(EQK)
    bench.run(processor)
    bench.bare.queue_declare('orders', durable=True)
    assert_silent(bench, processor, 'orders')
    assert bench.producer().rpc_echo('after').body['content']['value'] == 'after'


def test_a_component_that_accepts_no_others_does_not_ask_whether_they_are_exclusive(bench: Bench) -> None:
    processor = accepting(False)(EQK)
    bench.run(processor)
    bench.bare.queue_declare('my-answers', exclusive=True)
    assert_silent(bench, processor, 'my-answers')


def test_a_method_decides_from_the_delivery(bench: Bench) -> None:
    def accept(self: Any, delivery: Any) -> bool:
        return bool(delivery.properties.app_id == 'trusted' and delivery.properties.reply_to == 'orders')

    processor = accepting(accept)(EQK)
    bench.run(processor)
    bench.bare.queue_declare('orders', durable=True)
    assert_silent(bench, processor, 'orders')
    bench.publish(command('echo', 2, category='rpc'), reply_to='orders', app_id='trusted')
    assert bench.await_message('orders').body['content']['value'] == 2


def test_errors_and_refusals_go_no_other_way_than_answers(bench: Bench) -> None:
    class Failing(Processor):
        @messaging.RpcHandler('command', 'fail')
        def rpc_fail(self, content: dict[str, Any], reply_func: Any) -> None:
            raise ValueError('no')

    processor = Failing(EQK)
    bench.run(processor)
    bench.bare.queue_declare('orders', durable=True)
    for body in (
        command('fail', category='rpc'),
        command('unknown', category='rpc'),
        command(category='rpc', content=1),
    ):
        bench.publish(body, reply_to='orders')
    eventually(lambda: len(bench.log.find('an answer goes nowhere')) == 3)
    assert bench.count('orders') == 0


def test_a_bare_consumer_answers_no_strangers_either(bench: Bench) -> None:
    consumer = bench.consumer(EQK, accepting('replies', messaging.GenericConsumer))
    for name in ('orders', 'replies'):
        bench.bare.queue_declare(name, durable=True)
    with consuming(consumer) as seen:
        for name in ('orders', 'replies'):
            ask(bench, name)
            assert (consumer.rpc_reply(seen.next()[2], 1) is None) == (name == 'orders')
        assert bench.await_message('replies').body['content']['value'] == 1
    assert bench.count('orders') == 0


def test_the_lines_that_a_stranger_causes_are_bounded(bench: Bench) -> None:
    processor = Echo(EQK)
    bench.run(processor)
    bench.bare.queue_declare('orders', durable=True)
    for _ in range(100):
        ask(bench, 'orders')
    eventually(lambda: bench.count('echo-queue') == 0 and not processor.is_busy)
    assert bench.count('orders') == 0
    assert len(bench.log.find('an answer goes nowhere')) <= 20


@pytest.mark.parametrize('accepted', ['', 7, [], [''], [7], {'orders'}, b'orders'])
@pytest.mark.parametrize('base', [messaging.GenericConsumer, messaging.MessageProcessor])
def test_what_is_no_pattern_is_told_before_it_connects(base: Any, accepted: Any) -> None:
    with pytest.raises(messaging.ConfigurationError, match=r'^Accepting\.accept_reply_to must be None, True, False'):
        type('Accepting', (base,), {'accept_reply_to': accepted, 'hup': 'amqp://localhost:1'})()
