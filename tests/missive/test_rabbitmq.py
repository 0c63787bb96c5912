"""Messages from queues, on both brokers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pika
import pytest

from missive.conftest import AnyProcessor, Run, slow_program, wait_until
from postage import errors, messaging, missive
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from support.brokers import RabbitMQ
from support.messaging import EQK, HOSTILE, TIMEOUT, Bench, EchoProducer, LogBook, Seen
from support.programs import Program


def send(bench: Bench, body: bytes, queue: str = 'jobs', **properties: Any) -> None:
    bench.bare.basic_publish('', queue, body, pika.BasicProperties(**properties))


def ready(bench: Bench, adapter: Any, run: Callable[..., Run], *queues: str) -> Run:
    """Run an adapter, and wait until it consumes."""
    running = run(adapter)
    for queue in queues or ('jobs',):
        bench_consumes(bench, queue)
    return running


def bench_consumes(bench: Bench, queue: str) -> None:
    def consumes() -> bool:
        try:
            return bench.consumers(queue) > 0
        except pika.exceptions.AMQPError:
            return False

    wait_until(consumes, f'nobody consumes from {queue}')


def empty(bench: Bench, queue: str = 'jobs') -> None:
    """Wait until nothing of a queue is left, not even unacknowledged: a consumer has to be gone for that to be seen."""
    assert bench.count(queue) == 0


def test_the_messages_of_several_queues_are_handled(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], seen: Seen
) -> None:
    running = ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs', 'more']), run, 'jobs', 'more')
    send(bench, b'one', message_id='id', headers={'a': 1})
    one = seen.next()
    send(bench, b'two', 'more')
    two = seen.next()
    assert (one.raw_data, one.message_id, one.headers) == (b'one', b'id', {'a': 1})
    assert (two.raw_data, two.delivery.queue, two.delivery.redelivered) == (b'two', 'more', False)
    running.stop()
    empty(bench)


def test_a_queue_that_exists_is_used_as_found(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], seen: Seen
) -> None:
    bench.bare.queue_declare('jobs', durable=False, exclusive=False, auto_delete=False, arguments={'x-max-length': 9})
    ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs']), run)
    send(bench, b'one')
    assert seen.next().raw_data == b'one'


def test_flags_that_are_spelled_out_count(bench: Bench, processor: AnyProcessor, seen: Seen) -> None:
    bench.bare.queue_declare('jobs', durable=True)
    queue = {'name': 'jobs', 'flags': {'durable': False}}
    with pytest.raises(errors.DeclarationMismatch, match='durable'):
        RabbitMQAdapter(missive.RawMessage, processor, [queue]).run()


def test_a_queue_of_the_wrong_shape_is_refused(processor: AnyProcessor) -> None:
    with pytest.raises(errors.ConfigurationError, match='a queue is a name'):
        RabbitMQAdapter(missive.RawMessage, processor, [{'flags': {}}])


def noting_echoes(processor: missive.Processor[missive.PostageMessage]) -> Seen:
    """Have a processor note the parameters of each ``echo``, and acknowledge it."""
    seen = Seen()

    @processor.handle_for(lambda message: message.name == 'echo')
    def echo(message: missive.PostageMessage, ctx: Any) -> None:
        seen.put(message.content['parameters'])
        ctx.ack()

    return seen


def test_a_processor_consumes_from_a_postage_exchange(
    bench: Bench, processor: missive.Processor[missive.PostageMessage], run: Callable[..., Run]
) -> None:
    seen = noting_echoes(processor)
    ready(bench, RabbitMQAdapter(missive.PostageMessage, processor, eqk=EQK), run, 'echo-queue')
    bench.producer().message_echo('hello')
    assert seen.next() == 'hello'


@pytest.mark.parametrize('form', ['url', 'hup', 'connection', 'environment'])
def test_the_broker_may_be_named_in_every_form(
    bench: Bench,
    processor: AnyProcessor,
    run: Callable[..., Run],
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    producer = bench.producer()
    broker = bench.broker
    named: Any = {
        'url': broker.url,
        'hup': {'host': broker.host, 'port': broker.port, 'user': 'guest', 'password': 'guest'},
        'connection': producer.conn_broker,
        'environment': None,
    }[form]
    if form == 'hup':
        monkeypatch.setenv('POSTAGE_VHOST', broker.vhost)
    if form != 'environment':
        monkeypatch.delenv('POSTAGE_URL')
    ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs'], named), run)
    send(bench, b'one')
    assert seen.next().raw_data == b'one'


def test_a_connection_of_postage_leads_to_a_shared_one(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], seen: Seen
) -> None:
    consumer = bench.consumer()
    adapter = RabbitMQAdapter(missive.RawMessage, processor, ['jobs'], consumer.conn_broker)
    ready(bench, adapter, run)
    wait_until(lambda: adapter._consumer, 'it does not start')
    assert adapter._consumer is not None
    assert adapter._consumer.conn_broker is consumer.conn_broker


def test_a_nacked_message_goes_back_to_its_queue(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run]
) -> None:
    seen = Seen()

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        seen.put(message.delivery.redelivered)
        (ctx.ack if message.delivery.redelivered else ctx.nack)()

    running = ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs']), run)
    send(bench, b'one')
    assert seen.take(2) == [False, True]
    running.stop()
    empty(bench)


def test_a_rejected_message_goes_to_the_dead_letter_exchange(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run]
) -> None:
    bench.dead()
    processor.handle_for(lambda message: True)(lambda message, ctx: ctx.reject())
    arguments = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}
    queue = {'name': 'jobs', 'flags': {'arguments': arguments}}
    ready(bench, RabbitMQAdapter(missive.RawMessage, processor, [queue]), run)
    send(bench, b'one')
    assert bench.await_message('dead').data == b'one'


def test_a_failed_message_without_a_dead_letter_queue_stays_in_its_queue(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run]
) -> None:
    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        raise ValueError('no good')

    running = ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs']), run)
    send(bench, b'one')
    with pytest.raises(ValueError, match='no good'):
        running.wait()
    wait_until(lambda: bench.count('jobs') == 1, 'it is not back')


def test_an_answer_goes_where_the_message_says(bench: Bench, processor: AnyProcessor, run: Callable[..., Run]) -> None:
    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        ctx.reply(message.raw_data.upper(), 'text/plain')
        ctx.ack()

    ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs'], accept_reply_to='answer?'), run)
    bench.bare.queue_declare('answers', durable=True)
    send(bench, b'one', reply_to='answers', correlation_id='7')
    got = bench.await_message('answers')
    assert (got.data, got.properties.correlation_id, got.properties.content_type) == (b'ONE', '7', 'text/plain')


def test_what_a_handler_publishes_is_confirmed_before_its_message_is_acknowledged(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], log: LogBook
) -> None:
    producer, seen = bench.producer(), Seen()

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        producer.message_echo('on')
        ctx.ack()
        seen.put(None)

    collected = bench.collect()
    bench.bare.queue_declare('jobs', durable=True)
    send(bench, b'one')
    wait_until(lambda: bench.count('jobs') == 1, 'it is not there')
    with bench.memory_alarm():  # nothing is confirmed
        running = run(RabbitMQAdapter(missive.RawMessage, processor, ['jobs'], drain_timeout=0))
        seen.next()
        running.stop()
        wait_until(lambda: bench.count('jobs') == 1, 'it was acknowledged')
        assert log.find('stops with messages that wait for a confirm')
    assert bench.await_message(collected)


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_headers_make_a_dead_letter_and_the_next_message_is_handled(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], seen: Seen, name: str
) -> None:
    dlq: dict[bytes, Any] = {}
    processor.set_dlq(dlq)
    ready(bench, RabbitMQAdapter(missive.RawMessage, processor, eqk=EQK), run, 'echo-queue')
    bench.publish_hostile(HOSTILE[name])
    bench.publish(b'good')
    assert seen.next().raw_data == b'good'
    assert ['cannot be decoded' in reason for _, reason in dlq.values()] == [True]


def test_hostile_headers_do_not_end_a_processor_without_a_dead_letter_queue(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], seen: Seen, log: LogBook
) -> None:
    ready(bench, RabbitMQAdapter(missive.RawMessage, processor, eqk=EQK), run, 'echo-queue')
    bench.publish_hostile(next(iter(HOSTILE.values())))
    bench.publish(b'good')
    assert seen.next().raw_data == b'good'
    assert log.find('is rejected', 'cannot be decoded')


def test_lost_connections_under_load_lose_nothing(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], seen: Seen
) -> None:
    running = ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs']), run)
    wanted = {f'{number}'.encode() for number in range(2000)}
    for number in range(2000):
        if number % 500 == 250:
            bench.close_all_connections()
        send(bench, f'{number}'.encode())
    handled: set[bytes] = set()
    while handled != wanted:
        handled.add(seen.next().raw_data)
    running.stop()
    empty(bench)


def test_a_broker_that_goes_away_and_comes_back_under_load_loses_nothing(
    private_rabbitmq: RabbitMQ, processor: missive.Processor[missive.PostageMessage], run: Callable[..., Run]
) -> None:
    seen = noting_echoes(processor)
    running = run(RabbitMQAdapter(missive.PostageMessage, processor, (), private_rabbitmq.url, eqk=EQK))
    wait_until(lambda: 'echo-queue' in private_rabbitmq.queues(), 'it does not start')
    with EchoProducer(hup=private_rabbitmq.url) as producer:
        for number in range(600):
            if number == 300:
                private_rabbitmq.node.restart()
            producer.message_echo(number)
        producer.flush(30)
    handled: set[int] = set()
    while len(handled) < 600:
        handled.add(seen.next())
    running.stop()
    assert private_rabbitmq.queues()['echo-queue'] == 0


def test_an_acknowledgement_after_the_connection_died_is_dropped_and_the_message_comes_again(
    bench: Bench, processor: AnyProcessor, run: Callable[..., Run], log: LogBook
) -> None:
    seen, cut, sent = Seen(), [], threading.Event()

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        seen.put(message.delivery.redelivered)
        if not cut:
            cut.append(True)
            sent.wait(TIMEOUT)  # for the bench closes the connection that it sends by
            bench.close_all_connections()
            log.expect('consuming', 'was lost')
            log.expect('again (consuming)')
        ctx.ack()

    running = ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs']), run)
    send(bench, b'one')
    sent.set()
    assert seen.next() is False
    assert seen.next() is True
    running.stop()
    empty(bench)
    assert log.find('dropped 1 acknowledgements')


def test_the_prefetch_count_is_what_is_said(bench: Bench, processor: AnyProcessor, run: Callable[..., Run]) -> None:

    go, begun = threading.Event(), Seen()

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        begun.put(None)
        go.wait(10)
        ctx.ack()

    bench.bare.queue_declare('jobs', durable=True)
    for _ in range(10):
        send(bench, b'')
    ready(bench, RabbitMQAdapter(missive.RawMessage, processor, ['jobs'], prefetch_count=3), run)
    begun.next()
    wait_until(lambda: bench.count('jobs') == 7, 'not 3 are sent ahead')
    go.set()
    begun.take(9)


PROGRAM = slow_program('rabbitmq', 'RabbitMQAdapter', "['jobs']")


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_message_lets_it_end_and_hands_the_rest_back(
    bench: Bench, run_program: Callable[..., Program], number: signal.Signals
) -> None:
    bench.bare.queue_declare('jobs', durable=True)
    for _ in range(3):
        send(bench, b'0.5')
    program = run_program(PROGRAM)
    program.expect('begin')
    program.send_signal(number)
    assert program.wait() == 0
    assert program.lines == ['begin', 'end', 'shutdown']
    wait_until(lambda: bench.count('jobs') == 2, 'the rest is not back')


def test_a_signal_while_it_waits_for_a_message_ends_it(bench: Bench, run_program: Callable[..., Program]) -> None:
    program = run_program(PROGRAM)
    bench_consumes(bench, 'jobs')
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.lines == ['shutdown']


# RPC, answered by a processor of matchers


def test_a_processor_of_matchers_answers_rpcs(
    bench: Bench, processor: missive.Processor[missive.PostageMessage], run: Callable[..., Run]
) -> None:
    @processor.handle_for(lambda message: message.category == 'rpc')
    def echo(message: missive.PostageMessage, ctx: Any) -> None:
        result = messaging.MessageResult(message.content['parameters'])
        ctx.reply(messaging.JsonEncoder().encode(result.body), 'application/json')
        ctx.ack()

    ready(bench, RabbitMQAdapter(missive.PostageMessage, processor, eqk=EQK), run, 'echo-queue')
    reply = bench.producer(EchoProducer).rpc_echo(5)
    assert reply.body['content']['value'] == 5
