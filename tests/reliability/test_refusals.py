"""What the broker refuses to one thread harms no other.

On a connection one channel declares, binds and deletes for everybody, and the broker closes it with each refusal (AMQP
0-9-1, section 4.10.2). What other threads and the connection itself have under way on it at that moment goes on.

The first tests force the moment: the way through the proxy takes so long that the refused operation is under way when
the other one begins, which then waits behind it. The rest have every kind of refusal all the time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from postage import messaging
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, EchoProducer, Processor, Seen, eventually
from support.proxy import Proxy
from support.recovery import await_reconnect, let_go
from support.refusals import REFUSALS, Refused, all_refused, prepare, refused_to_consumer, refused_to_producer

pytestmark = pytest.mark.usefixtures('proxy')  # set up first: what connects through it is closed before it ends

DELAY = 0.15
"""Seconds that every byte takes in each direction, where the moment is forced."""

ROUNDS = 10

kinds = pytest.mark.parametrize('kind', REFUSALS)


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Call it in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name='in-thread', daemon=True).start()
    return future


class Consuming:
    """A consumer in a thread of its own, which acknowledges what it gets.

    :ivar seen: the parameters of the commands that it got
    """

    def __init__(self, bench: Bench, queue: str, key: str) -> None:
        self.seen = Seen()
        self.queue = queue
        self.consumer = bench.consumer([(EchoExchange, [(queue, key)])])
        self._thread = threading.Thread(target=self._run, name=f'consuming-{queue}', daemon=True)
        self._thread.start()
        eventually(lambda: bench.consumers(queue))

    def _run(self) -> None:
        self.consumer.start_consuming(self._on_message)

    def _on_message(self, _channel: Any, method: Any, _header: Any, body: bytes) -> None:
        self.seen.put(self.consumer.decode(body)['content']['parameters'])
        self.consumer.ack(method)

    def stop(self) -> None:
        """Stop it, and wait for that."""
        self.consumer.stop_consuming()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), 'it still consumes'


@pytest.fixture
def consuming(bench: Bench) -> Iterator[Callable[[str, str], Consuming]]:
    """A function that has a consumer consume from a queue that is bound with a key, until the end of the test."""
    started: list[Consuming] = []

    def start(queue: str, key: str) -> Consuming:
        started.append(Consuming(bench, queue, key))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def check_goes_on(consuming: Consuming, bench: Bench, key: str, number: int) -> None:
    """Check that a consumer gets what is published now, whatever became of its queue before."""
    bench.await_consumed(consuming.queue)
    bench.bare.exchange_declare(**EchoExchange.parameters)
    bench.publish({'content': {'parameters': number}}, key)
    while consuming.seen.next() != number:
        pass


# The moment is forced


@kinds
def test_a_publisher_declares_its_exchange_again_behind_a_refused_operation(
    bench: Bench, proxied: Proxy, kind: str
) -> None:
    prepare(bench)
    producer = bench.producer()
    producer.message_echo('before')
    producer.flush(TIMEOUT)
    refused = refused_to_producer(producer, kind)
    bench.bare.exchange_delete(EchoExchange.name)
    channels = bench.broker.channels()

    proxied.delay(DELAY)
    receipt = producer.message_echo('after')
    eventually(lambda: bench.broker.channels() < channels)  # and the news of that are under way
    with pytest.raises(REFUSALS[kind]):
        refused()
    proxied.delay(0)
    receipt.wait(TIMEOUT)
    assert receipt.confirmed


@kinds
def test_a_consumer_declares_its_deleted_queue_again_behind_a_refused_operation(
    bench: Bench, proxied: Proxy, consuming: Any, kind: str
) -> None:
    prepare(bench)
    healthy, other = consuming('echo-queue', 'echo-rk'), bench.consumer([(EchoExchange, [('other-queue', 'other-rk')])])
    refused = refused_to_consumer(other, kind)

    proxied.delay(DELAY)
    bench.bare.queue_delete('echo-queue')  # and the news of that are under way
    with pytest.raises(REFUSALS[kind]):
        refused()
    proxied.delay(0)
    check_goes_on(healthy, bench, 'echo-rk', 1)


@kinds
def test_a_consumer_whose_channel_was_closed_is_back_behind_a_refused_operation(
    bench: Bench, proxied: Proxy, consuming: Any, kind: str
) -> None:
    prepare(bench)
    healthy, other = consuming('echo-queue', 'echo-rk'), bench.consumer([(EchoExchange, [('other-queue', 'other-rk')])])
    refused = refused_to_consumer(other, kind)
    channels = bench.broker.channels()
    channel = healthy.consumer.channel

    proxied.delay(DELAY)
    own = in_thread(lambda: channel.queue_declare('missing', passive=True))
    eventually(lambda: bench.broker.channels() < channels)
    with pytest.raises(REFUSALS[kind]):
        refused()
    assert isinstance(own.exception(TIMEOUT), REFUSALS['missing'])
    proxied.delay(0)
    check_goes_on(healthy, bench, 'echo-rk', 1)


def test_of_two_consumers_whose_queues_were_deleted_at_once_one_may_find_its_exchange_changed(
    bench: Bench, proxied: Proxy, consuming: Any
) -> None:
    class Changed(messaging.Exchange):
        name = 'changed-exchange'

    changed = consuming('changed-queue', 'changed-rk')
    changed.consumer.queue_bind(Changed, 'changed-queue', 'key')
    healthy = consuming('echo-queue', 'echo-rk')
    bench.bare.exchange_delete(Changed.name)
    bench.bare.exchange_declare(Changed.name, 'fanout')

    proxied.delay(DELAY)
    bench.bare.queue_delete('changed-queue')
    bench.bare.queue_delete('echo-queue')
    bench.log.expect('ERROR', Changed.name)
    proxied.delay(0)
    check_goes_on(healthy, bench, 'echo-rk', 1)
    check_goes_on(changed, bench, 'changed-rk', 2)


def delete(bench: Bench, _proxied: Proxy, _echo: Echo) -> None:
    bench.bare.queue_delete('echo-queue')


def delete_and_close_the_channel(bench: Bench, _proxied: Proxy, echo: Echo) -> None:
    channel = echo.consumer.channel
    in_thread(lambda: channel.queue_declare('missing', passive=True))
    bench.bare.queue_delete('echo-queue')


def delete_and_cut(bench: Bench, proxied: Proxy, _echo: Echo) -> None:
    bench.bare.queue_delete('echo-queue')
    proxied.cut()


@pytest.mark.parametrize('lose', [delete, delete_and_close_the_channel, delete_and_cut])
def test_a_queue_deleted_again_between_its_declaration_and_its_consumption_is_declared_again(
    bench: Bench, proxied: Proxy, lose: Callable[[Bench, Proxy, Echo], None]
) -> None:
    echo = Echo()
    bench.run(echo)
    bench.await_consumed('echo-queue')

    proxied.delay(DELAY)
    lose(bench, proxied, echo)
    eventually(lambda: 'echo-queue' in bench.broker.queues())  # and the news of that are under way
    bench.bare.queue_delete('echo-queue')
    proxied.delay(0)
    bench.await_consumed('echo-queue')
    bench.producer().message_echo('still understood')
    assert echo.seen.next() == 'still understood'


# Every kind of refusal all the time, on the connection that publishes


@pytest.fixture
def refused_publishing(bench: Bench) -> Iterator[Refused]:
    """Threads that have something refused all the time, through another producer."""
    prepare(bench)
    other = bench.producer()
    with all_refused(lambda kind: refused_to_producer(other, kind)) as refused:
        yield refused


def test_messages_are_confirmed_whose_exchange_is_deleted_again_and_again(
    bench: Bench, refused_publishing: Refused
) -> None:
    producer = bench.producer()
    for number in range(ROUNDS):
        bench.bare.exchange_delete(EchoExchange.name)
        producer.message_echo(number).wait(TIMEOUT)
    refused_publishing.await_more(1)


def test_producers_are_made_and_declare_exchanges(bench: Bench, refused_publishing: Refused) -> None:
    for number in range(ROUNDS):
        at_once, later = (
            type('Named', (messaging.Exchange,), {'name': f'{when}-{number}'}) for when in ('now', 'later')
        )
        with type('Producer', (EchoProducer,), {'eks': [(at_once, 'key')]})() as producer:
            producer.message_echo(number).wait(TIMEOUT)
            producer.message_echo(number, _eks=[(later, 'key')]).wait(TIMEOUT)
    refused_publishing.await_more(1)


def test_calls_are_answered_in_each_of_their_ways(bench: Bench, refused_publishing: Refused) -> None:
    bench.run(Echo())
    for number in range(ROUNDS):
        with EchoProducer() as producer:
            assert producer.rpc_echo(number).body['content']['value'] == number
            queue = producer.rpc_queue_echo(number)
            assert [each.body['content']['value'] for each in producer.consume_rpc(queue)] == [number]
            assert producer.rpc_future_echo(number).result(TIMEOUT).body['content']['value'] == number
    refused_publishing.await_more(1)


def test_a_failed_message_is_tried_again_after_each_delay(bench: Bench, refused_publishing: Refused) -> None:
    class Failing(Processor):
        @messaging.Retry(delays=[0.01 * (number + 1) for number in range(ROUNDS)], jitter=0)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            self.seen.put(content['parameters'])
            raise ConnectionError('not yet')

    failing = Failing()
    bench.run(failing)
    bench.producer().message_echo('again')
    assert failing.seen.take(1 + ROUNDS) == (1 + ROUNDS) * ['again']
    eventually(lambda: bench.broker.messages()['echo-queue'] == 0)
    refused_publishing.await_more(1)


def test_publishing_goes_on_after_a_reconnect(bench: Bench, refused_publishing: Refused) -> None:
    producer = bench.producer()
    for times in range(1, 4):
        let_go(bench)
        bench.broker.close_all_connections()
        producer.message_echo(times).wait(TIMEOUT)
        eventually(lambda times=times: len(bench.log.find('connected to', 'again', '(publishing)')) >= times)
        refused_publishing.await_more(1)


# … and on the one that consumes


@pytest.fixture
def refused_consuming(bench: Bench) -> Iterator[Refused]:
    """Threads that have something refused all the time, through another consumer."""
    prepare(bench)
    other = bench.consumer([(EchoExchange, [('other-queue', 'other-rk')])])
    with all_refused(lambda kind: refused_to_consumer(other, kind)) as refused:
        yield refused


def test_a_consumer_whose_queue_is_deleted_again_and_again_goes_on(
    bench: Bench, refused_consuming: Refused, consuming: Any
) -> None:
    healthy = consuming('echo-queue', 'echo-rk')
    for number in range(ROUNDS):
        bench.bare.queue_delete('echo-queue')
        check_goes_on(healthy, bench, 'echo-rk', number)
    refused_consuming.await_more(1)


def test_a_consumer_whose_channel_is_closed_again_and_again_goes_on(
    bench: Bench, refused_consuming: Refused, consuming: Any
) -> None:
    healthy = consuming('echo-queue', 'echo-rk')
    for number in range(ROUNDS):
        with pytest.raises(REFUSALS['missing']):
            healthy.consumer.channel.queue_declare('missing', passive=True)
        check_goes_on(healthy, bench, 'echo-rk', number)
    refused_consuming.await_more(1)


def test_consumers_are_made_and_bound_to_more_queues(bench: Bench, refused_consuming: Refused, consuming: Any) -> None:
    healthy = consuming('echo-queue', 'echo-rk')
    for number in range(ROUNDS):
        with messaging.GenericConsumer([(EchoExchange, [(f'made-{number}', f'made-{number}')])]):
            assert f'made-{number}' in bench.broker.queues()
        healthy.consumer.add_eqk([(EchoExchange, [(f'added-{number}', f'added-{number}')])])
        healthy.consumer.queue_bind(EchoExchange, f'bound-{number}', f'bound-{number}')
        for what in ('added', 'bound'):
            bench.await_consumed(f'{what}-{number}')
            check_goes_on(healthy, bench, f'{what}-{number}', number)
    refused_consuming.await_more(1)


def test_consumers_and_processors_go_on_after_a_reconnect(
    bench: Bench, refused_consuming: Refused, consuming: Any
) -> None:
    healthy, echo = consuming('healthy-queue', 'healthy-rk'), Echo(EQK)
    bench.run(echo)
    for times in range(1, 4):
        let_go(bench)
        bench.broker.close_all_connections()
        await_reconnect(bench.log, times)
        check_goes_on(healthy, bench, 'healthy-rk', times)
        refused_consuming.await_more(1)
    assert bench.producer().rpc_echo('still there', _timeout=TIMEOUT)
