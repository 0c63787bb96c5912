"""What raised is over: an operation out of time is not carried out later, and a start that failed consumes nothing.

Whoever is told that something failed does it again, or something else; what then happens on its own, after the broker
has come back, empties queues, declares what was given up and takes messages that nobody will ever handle.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from postage import errors, messaging
from postage.microthreads import MicroScheduler
from support.loops import Loop
from support.messaging import (
    TIMEOUT,
    Bench,
    Echo,
    EchoExchange,
    EchoProducer,
    GreedyConsumer,
    Seen,
    consuming,
    eventually,
)
from support.operations import limit_operations
from support.proxy import Proxy
from support.recovery import await_reconnect, let_go

pytestmark = pytest.mark.usefixtures('proxy')  # set up first: what connects through it is closed before it ends

PATIENCE = 0.5
"""Seconds that operations wait for the broker here."""

ROUTES = [(EchoExchange, [('kept', 'kept-rk')])]

KEPT = 5
"""Messages in the queue ``kept``."""


@pytest.fixture
def kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A queue with a few messages; and what waits for the broker is impatient."""
    bench.bare.exchange_declare(**EchoExchange.parameters)
    bench.bare.exchange_declare('unused')
    bench.bare.queue_declare('kept', durable=True)
    bench.bare.queue_bind('kept', EchoExchange.name, 'kept-rk')
    for number in range(KEPT):
        bench.publish({'content': {'parameters': number}}, 'kept-rk')
    eventually(lambda: bench.count('kept') == KEPT)
    limit_operations(monkeypatch, PATIENCE)
    return bench


@contextlib.contextmanager
def away(proxied: Proxy, bench: Bench, *roles: str) -> Iterator[None]:
    """The broker cannot be reached for the length of a ``with``; then all connections are made again.

    :param roles: which there are
    """
    times = {role: len(bench.log.find('connected to', 'again', f'({role})')) for role in roles}
    proxied.refuse()
    proxied.cut()
    for role in roles:
        bench.log.expect(f'({role}) was lost')
    yield
    proxied.accept()
    for role in roles:
        eventually(lambda role=role: len(bench.log.find('connected to', 'again', f'({role})')) > times[role])


# The connection that publishes


def declared(bench: Bench) -> bool:
    return 'never' in bench.broker.queues()


def gone(bench: Bench) -> bool:
    return 'kept' not in bench.broker.queues()


def less(bench: Bench) -> bool:
    return bench.broker.messages()['kept'] < KEPT


def more(bench: Bench) -> bool:
    return bench.broker.messages()['kept'] > KEPT


def has_exchange(bench: Bench, name: str) -> bool:
    try:
        bench.bare.exchange_declare(name, passive=True)
    except Exception:
        return False
    return True


def reached_by(key: str) -> Callable[[Bench], bool]:
    """Whether a key leads to the queue ``kept``."""

    def is_reached(bench: Bench) -> bool:
        before = bench.broker.messages()['kept']
        bench.publish('whether it comes', key)
        bench.bare.queue_declare('kept', passive=True)  # which the broker answers after it
        return bench.broker.messages()['kept'] > before

    return is_reached


OPERATIONS: dict[str, tuple[Callable[[Any], object], Callable[[Bench], bool]]] = {
    'queue_declare': (lambda channel: channel.queue_declare('never', durable=True), declared),
    'queue_delete': (lambda channel: channel.queue_delete('kept'), gone),
    'queue_purge': (lambda channel: channel.queue_purge('kept'), less),
    'queue_bind': (lambda channel: channel.queue_bind('kept', EchoExchange.name, 'new'), reached_by('new')),
    'queue_unbind': (
        lambda channel: channel.queue_unbind('kept', EchoExchange.name, 'kept-rk'),
        lambda bench: not reached_by('kept-rk')(bench),
    ),
    'exchange_declare': (
        lambda channel: channel.exchange_declare('never'),
        lambda bench: has_exchange(bench, 'never'),
    ),
    'exchange_delete': (
        lambda channel: channel.exchange_delete('unused'),
        lambda bench: not has_exchange(bench, 'unused'),
    ),
    'basic_publish': (lambda channel: channel.basic_publish(EchoExchange.name, 'kept-rk', b'late'), more),
    'basic_get': (lambda channel: channel.basic_get('kept', auto_ack=True), less),
}
"""What is done on a channel, and how to see that it was done."""

operations = pytest.mark.parametrize(('operate', 'is_done'), OPERATIONS.values(), ids=OPERATIONS)


@operations
def test_an_operation_that_ran_out_of_time_while_the_broker_was_away_is_never_carried_out(
    kept: Bench, proxied: Proxy, operate: Any, is_done: Any
) -> None:
    producer = kept.producer()
    with away(proxied, kept, 'publishing'), pytest.raises(errors.ConnectionLost):
        operate(producer.channel)
    assert producer.channel.queue_declare('behind').method.queue == 'behind'  # what was before it has been carried out
    assert not is_done(kept)


@operations
def test_an_operation_that_ran_out_of_time_while_its_channel_was_opened_is_never_carried_out(
    kept: Bench, proxied: Proxy, operate: Any, is_done: Any
) -> None:
    producer = kept.producer()
    with pytest.raises(errors.NotFound):
        producer.channel.queue_declare('missing', passive=True)  # which closes the channel
    proxied.hold()
    with pytest.raises(errors.ConnectionLost):
        operate(producer.channel)
    proxied.resume()
    assert producer.channel.queue_declare('behind').method.queue == 'behind'
    assert not is_done(kept)


def test_of_operations_that_waited_for_one_another_only_the_first_may_be_carried_out_in_the_end(
    kept: Bench, proxied: Proxy
) -> None:
    producer = kept.producer()
    names = [f'waiting-{number}' for number in range(8)]
    outcomes = Seen()

    def declare(name: str) -> None:
        try:
            outcomes.put(producer.channel.queue_declare(name))
        except errors.PostageError as error:
            outcomes.put(error)

    proxied.hold()
    threads = [threading.Thread(target=declare, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    assert {type(outcome) for outcome in outcomes.take(len(names))} == {errors.ConnectionLost}
    proxied.resume()
    # The late answer to the first of them is taken for no other's.
    answer = producer.channel.queue_declare('kept', passive=True).method
    assert (answer.queue, answer.message_count) == ('kept', KEPT)
    assert len(set(names) & set(kept.broker.queues())) <= 1
    for thread in threads:
        thread.join(TIMEOUT)


def test_a_call_whose_time_was_over_while_the_broker_was_away_is_never_sent(kept: Bench, proxied: Proxy) -> None:
    producer = kept.producer(type('KeptProducer', (EchoProducer,), {'eks': [(EchoExchange, 'kept-rk')]}))
    channels = kept.broker.channels()
    with away(proxied, kept, 'publishing'):
        assert not producer.rpc_echo(_timeout=PATIENCE, _max_retry=1)
    producer.channel.queue_declare('behind')
    producer.message_echo('behind', _key='').wait(TIMEOUT)
    assert kept.broker.messages()['kept'] == KEPT
    eventually(lambda: kept.broker.channels() == channels)


# The connection that consumes


CONSUMER_OPERATIONS: dict[str, tuple[Callable[[Any], object], Callable[[Bench], bool]]] = {
    'queue_declare': (lambda consumer: consumer.queue_declare('never'), declared),
    'queue_bind': (lambda consumer: consumer.queue_bind(EchoExchange, 'kept', 'new'), reached_by('new')),
    'queue_bind a new queue': (lambda consumer: consumer.queue_bind(EchoExchange, 'never', 'new'), declared),
    'queue_unbind': (
        lambda consumer: consumer.queue_unbind(EchoExchange, 'kept', 'kept-rk'),
        lambda bench: not reached_by('kept-rk')(bench),
    ),
    'add_eqk': (lambda consumer: consumer.add_eqk([(EchoExchange, [('never', 'new')])]), declared),
    'queue_purge': (lambda consumer: consumer.channel.queue_purge('kept'), less),
    'basic_get': (lambda consumer: consumer.channel.basic_get('kept', auto_ack=True), less),
}


@pytest.mark.parametrize(('operate', 'is_done'), CONSUMER_OPERATIONS.values(), ids=CONSUMER_OPERATIONS)
def test_what_a_consumer_did_in_vain_while_the_broker_was_away_is_never_carried_out(
    kept: Bench, proxied: Proxy, operate: Any, is_done: Any
) -> None:
    consumer, other = kept.consumer(ROUTES), kept.consumer([])
    with away(proxied, kept, 'consuming'), pytest.raises(errors.ConnectionLost):
        operate(consumer)
    other.queue_declare('behind')
    assert not is_done(kept)
    let_go(kept)
    kept.broker.close_all_connections()
    await_again(kept, 'consuming', 2)
    other.queue_declare('behind that')
    assert not is_done(kept)


@pytest.mark.parametrize('times_out', [True, False], ids=['out of time', 'in time'])
def test_an_acknowledgement_on_a_channel_that_is_lost_acknowledges_nothing_on_the_next(
    kept: Bench, proxied: Proxy, times_out: bool
) -> None:
    """The same delivery tag is another message there, and here the broker delivers that of before again."""
    consumer = kept.consumer(ROUTES, GreedyConsumer)
    seen = Seen()
    thread = threading.Thread(target=consumer.start_consuming, args=(lambda *got: seen.put(got[1]),), daemon=True)
    thread.start()
    try:
        first = seen.take(KEPT)[0]
        channel = consumer.channel
        if times_out:
            with away(proxied, kept, 'consuming'), pytest.raises(errors.ConnectionLost):
                channel.basic_ack(first.delivery_tag)
        else:
            proxied.refuse()
            proxied.cut()
            kept.log.expect('(consuming) was lost')
            proxied.accept()
            with contextlib.suppress(errors.BrokerError):
                channel.basic_ack(first.delivery_tag)
        assert all(delivery.redelivered for delivery in seen.take(KEPT))
        channel.basic_qos(prefetch_count=100)  # what was before it has been carried out
        assert kept.broker.messages()['kept'] == KEPT
    finally:
        consumer.stop_consuming()
        thread.join(TIMEOUT)


# A start that failed


def await_again(bench: Bench, role: str, times: int) -> None:
    """Wait until a connection has come back so many times."""
    eventually(lambda: len(bench.log.find('connected to', 'again', f'({role})')) >= times)


def check_untouched(bench: Bench, channels: int) -> None:
    """Check that nothing consumes from ``kept``, and that nothing of it is on its way to anybody."""
    assert bench.consumers('kept') == 0
    assert bench.broker.queues()['kept'] == KEPT
    eventually(lambda: bench.broker.channels() <= channels)


@pytest.fixture
def two_queues() -> list[Any]:
    """Bindings of the queue ``kept`` and of another one."""
    return [(EchoExchange, [('kept', 'kept-rk'), ('gone', 'gone-rk')])]


def start_of_a_consumer(bench: Bench, eqk: Any) -> tuple[Any, Callable[[], object]]:
    consumer = bench.consumer(eqk)
    return consumer, lambda: consumer.start_consuming(lambda *_: None)


def start_of_a_processor(bench: Bench, eqk: Any) -> tuple[Any, Callable[[], object]]:
    processor = bench.closing(Echo(eqk))
    return processor.consumer, processor.start_consuming


def start_in_a_scheduler(bench: Bench, eqk: Any) -> tuple[Any, Callable[[], object]]:
    class Noting(Echo):
        """Notes what its start raises, which ends its microthread and no more."""

        def start_consuming(self) -> None:
            try:
                super().start_consuming()
            except errors.BrokerError as error:
                raised.append(error)
                raise

    def start() -> None:
        Loop(scheduler).wait()
        for error in raised:
            raise error

    raised: list[errors.BrokerError] = []
    processor = bench.closing(Noting(eqk))
    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(processor)
    return processor.consumer, start


starts = pytest.mark.parametrize('start_of', [start_of_a_consumer, start_of_a_processor, start_in_a_scheduler])


@starts
def test_a_start_that_a_missing_queue_made_fail_consumes_nothing_before_or_after_a_reconnect(
    kept: Bench, two_queues: Any, start_of: Any
) -> None:
    consumer, start = start_of(kept, two_queues)
    channels = kept.broker.channels()
    kept.bare.queue_delete('gone')
    with pytest.raises(errors.NotFound, match='gone'):
        start()
    check_untouched(kept, channels)
    assert not consumer.is_consuming

    let_go(kept)
    kept.broker.close_all_connections()
    await_again(kept, 'consuming', 1)
    # The reconnect has declared both queues again, each connection on one channel; the bench's own is another one.
    eventually(lambda: 'gone' in kept.broker.queues())
    check_untouched(kept, channels)
    assert not consumer.is_consuming


@starts
def test_a_start_that_ran_out_of_time_while_the_broker_was_away_consumes_nothing_when_it_is_back(
    kept: Bench, proxied: Proxy, start_of: Any
) -> None:
    consumer, start = start_of(kept, ROUTES)
    other = kept.consumer([])
    other.queue_declare('before')
    channels = kept.broker.channels()
    with away(proxied, kept, 'consuming'), pytest.raises(errors.ConnectionLost):
        start()
    other.queue_declare('behind')
    check_untouched(kept, channels)
    assert not consumer.is_consuming


@pytest.mark.parametrize('closed', ['at once', 'in the midst of the next start'])
def test_a_consumer_whose_start_failed_can_start_again(
    kept: Bench, two_queues: Any, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, start = start_of_a_consumer(kept, two_queues)
    kept.bare.queue_delete('gone')
    connection, held = consumer._connection, []
    with monkeypatch.context() as patched:
        if closed != 'at once':  # the I/O thread is busy, and closes the first channel late
            patched.setattr(connection, 'tell', held.append)
        with pytest.raises(errors.NotFound, match='gone'):
            start()
    kept.bare.queue_declare('gone', durable=True)
    ask = connection.ask

    def close_and_ask(*args: Any, **kwds: Any) -> Any:
        while held:
            connection.tell(held.pop(0))
        return ask(*args, **kwds)

    monkeypatch.setattr(connection, 'ask', close_and_ask)
    with consuming(consumer) as seen:
        seen.take(KEPT)
        eventually(lambda: kept.broker.messages()['kept'] == 0)


def test_results_collected_from_a_missing_queue_are_not_collected_once_it_is_there(kept: Bench) -> None:
    producer = kept.producer()
    channels = kept.broker.channels()
    with pytest.raises(errors.NotFound):
        producer.consume_rpc('later', timeout=TIMEOUT)
    kept.bare.queue_declare('later', durable=True)
    kept.bare.basic_publish('', 'later', b'a result')
    eventually(lambda: kept.broker.channels() == channels)
    let_go(kept)
    kept.broker.close_all_connections()
    await_again(kept, 'publishing', 1)
    producer.channel.queue_declare('behind')
    assert kept.broker.queues()['later'] == kept.broker.messages()['later'] == 1
    assert kept.consumers('later') == 0


def test_results_that_could_not_be_collected_while_the_broker_was_away_stay_where_they_are(
    kept: Bench, proxied: Proxy
) -> None:
    producer = kept.producer()
    producer.channel.queue_declare('before')
    channels = kept.broker.channels()
    with away(proxied, kept, 'publishing'), pytest.raises((errors.ConnectionLost, errors.TimeoutError)):
        producer.consume_rpc('kept', timeout=PATIENCE)
    producer.channel.queue_declare('behind')
    check_untouched(kept, channels)


def test_a_consumer_that_was_never_started_has_no_channel_after_it_was_asked_for_in_vain(
    kept: Bench, proxied: Proxy
) -> None:
    consumer: Any = kept.consumer(ROUTES, messaging.GenericConsumer)
    consumer.queue_declare('before')
    channels = kept.broker.channels()
    with away(proxied, kept, 'consuming'), pytest.raises(errors.ConnectionLost):
        consumer.channel.queue_purge('kept')
    consumer.queue_declare('behind')
    check_untouched(kept, channels)


def test_both_connections_are_as_they_were_after_all_that(kept: Bench, proxied: Proxy) -> None:
    """Operations that ran out of time leave nothing in the way of those that follow."""
    echo = Echo()
    kept.run(echo)
    kept.await_consumed('echo-queue')
    producer, consumer = kept.producer(), kept.consumer(ROUTES)
    with away(proxied, kept, 'publishing', 'consuming'):
        for operate in (lambda: producer.channel.queue_purge('kept'), lambda: consumer.queue_declare('never')):
            with pytest.raises(errors.ConnectionLost):
                operate()
    await_reconnect(kept.log)
    producer.message_echo('after').wait(TIMEOUT)
    assert echo.seen.next() == 'after'
    consumer.queue_declare('after')
    assert producer.channel.queue_purge('kept').method.message_count == KEPT
