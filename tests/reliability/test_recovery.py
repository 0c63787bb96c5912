"""What becomes of components when the broker, their queue or the way to the broker goes, and comes again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.version_table import says
from postage import errors, messaging, microthreads
from postage.amqp import attempts
from postage.broker.server import BrokerServer
from support.brokers import Embedded, RabbitMQ, connect, with_port
from support.loops import Loop
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, EchoProducer, Processor, eventually
from support.ports import free_ports
from support.proxy import Proxy
from support.rabbitmq_node import RabbitMQNode
from support.recovery import Control, Load, Resident, Town, await_reconnect, let_go, story

HEARTBEAT = 1
"""Seconds, where a test waits for heartbeats to stay away."""

starts_a_node = pytest.mark.timeout(150)  # on a busy machine a node takes its time


# The broker goes, and comes again


@starts_a_node
@pytest.mark.parametrize('way', ['stop', 'kill'])
def test_everybody_carries_on_when_the_broker_is_started_again(private_bench: Bench, way: str) -> None:
    node = node_of(private_bench)
    echo = Echo()
    private_bench.run(echo)
    load = Load(private_bench, echo)
    load.await_progress()
    sent_before = len(load.sent)

    getattr(node, way)()
    eventually(lambda: len(load.sent) > sent_before + 50)  # nobody waits for the broker
    node.start()

    load.await_progress()
    load.end()
    assert private_bench.count('echo-queue') == 0
    await_reconnect(private_bench.log)
    told = story(private_bench.log)
    assert len(told) <= 8, f'a story too long:\n{private_bench.log.text}'
    assert all('Traceback' not in line for line in told)


@starts_a_node
def test_all_bindings_and_all_addresses_are_back_after_a_restart_of_the_broker(private_bench: Bench) -> None:
    class Fanout(messaging.Exchange):
        name = 'passing-fanout'
        exchange_type = 'fanout'
        durable = False

    flags: dict[str, dict[str, Any]] = {
        'durable': {},
        'exclusive': {'exclusive': True, 'durable': False},
        'auto-delete': {'auto_delete': True, 'durable': False},
        'passing': {'durable': False, 'arguments': {'x-max-length': 10}},
    }
    queues = [{'name': name, 'flags': each} for name, each in flags.items()]
    echo = Echo(
        [
            (EchoExchange, [(queue, key) for queue in queues for key in (f'{queue["name"]}-1', f'{queue["name"]}-2')]),
            (Fanout, [(queue, '') for queue in queues]),
        ]
    )
    private_bench.run(echo)
    producer = private_bench.producer()
    private_bench.await_consumed('durable')

    town = Town(private_bench)
    town.order('2@a', 'join_group', group_name='new')
    town.order('1@a', 'leave_group', group_name='odd')

    node_of(private_bench).restart()
    await_reconnect(private_bench.log)

    for name in flags:
        for key in (f'{name}-1', f'{name}-2'):
            producer.message_echo(key, _key=key)
            assert echo.seen.next() == key
    producer.message_echo('to all', _eks=[(Fanout, '')])
    assert echo.seen.take(4) == 4 * ['to all']
    assert echo.seen.empty()

    town.await_all()
    consumers = {'monitor': 3, 'monitor@a': 2, 'monitor@b': 1, 'monitor#odd': 1, 'monitor#new': 1}
    eventually(lambda: {queue: private_bench.consumers(queue) for queue in consumers} == consumers)
    assert town.reached('monitor') == ['1@a', '2@a', '3@b']
    assert town.reached_in_turn('monitor/rr') == ['1@a', '2@a', '3@b']
    assert town.reached('@a') == ['1@a', '2@a', '4@a']
    assert town.reached('monitor@a') == ['1@a', '2@a']
    assert town.reached_in_turn('monitor@a/rr') == ['1@a', '2@a']
    assert town.reached('3@b') == ['3@b']
    assert town.reached('monitor#odd') == ['3@b'], 'who left stays outside'
    assert town.reached_in_turn('monitor#odd/rr') == ['3@b']
    assert town.reached('monitor#new') == ['2@a'], 'who joined is still in it'
    assert town.reached_in_turn('monitor#new/rr') == ['2@a']
    assert town.seen.empty()


def node_of(bench: Bench) -> RabbitMQNode:
    """The node under a bench, about to be stopped: the bench's own connection to it is closed."""
    assert isinstance(bench.broker, RabbitMQ)
    let_go(bench)
    return bench.broker.node


# A queue goes


QUEUES: dict[str, dict[str, Any]] = {
    'durable': {},
    'auto-delete': {'auto_delete': True},
    'limited': {'arguments': {'x-max-length': 1000}},
}


@pytest.mark.parametrize('flags', QUEUES.values(), ids=QUEUES)
def test_a_queue_deleted_under_its_consumer_is_declared_and_consumed_again(bench: Bench, flags: dict[str, Any]) -> None:
    queue = {'name': 'echo-queue', 'flags': flags}
    echo = Echo([(EchoExchange, [(queue, 'echo-rk'), (queue, 'another-rk')])])
    bench.run(echo)
    producer = bench.producer()
    bench.await_consumed('echo-queue')

    for times in range(1, 4):
        bench.bare.queue_delete('echo-queue')
        eventually(lambda times=times: len(bench.log.find('WARNING', "queue 'echo-queue' went away")) == times)
        bench.await_consumed('echo-queue')
        producer.message_echo('by one key')
        producer.message_echo('by the other', _key='another-rk')
        assert echo.seen.take(2) == ['by one key', 'by the other']
    assert len(story(bench.log)) == 3, 'a line for each time'


def test_messages_in_hand_survive_the_deletion_of_another_queue(bench: Bench) -> None:
    echo = Echo([(EchoExchange, [('kept', 'kept-rk'), ('deleted', 'deleted-rk')])])
    bench.run(echo)
    producer = bench.producer()
    bench.await_consumed('deleted')
    bench.bare.queue_delete('deleted')
    for number in range(100):
        producer.message_echo(number, _key='kept-rk')
    assert echo.seen.take(100) == list(range(100))


def test_an_exchange_deleted_with_the_queue_is_declared_again(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    bench.await_consumed('echo-queue')
    bench.bare.exchange_delete(EchoExchange.name)
    bench.bare.queue_delete('echo-queue')
    bench.log.expect('went away')
    bench.await_consumed('echo-queue')
    producer.message_echo('still understood')
    assert echo.seen.next() == 'still understood'


def test_the_own_queue_of_an_application_is_claimed_again(bench: Bench) -> None:
    resident = Resident('monitor', 1, 'a', ['odd'])
    bench.run(resident)
    control = bench.producer(Control)
    assert control.rpc_ping(_key='1@a')
    # An exclusive queue can be deleted by its own connection alone.
    resident.consumer.channel.queue_delete('1@a')
    bench.log.expect("queue '1@a' went away")
    # Until it is bound again nothing takes a question, which is an answer at once.
    eventually(lambda: control.rpc_ping(_key='1@a', _timeout=1))
    for key in ('1@a', 'monitor', '@a', 'monitor@a', 'monitor#odd'):
        control.message_say(key, _key=key)
        assert resident.seen.next() == ('1@a', key)


def test_a_group_whose_queue_was_deleted_can_be_left(bench: Bench) -> None:
    resident = Resident('monitor', 1, 'a', ['odd'])
    bench.run(resident)
    control = bench.producer(Control)
    bench.await_consumed('monitor#odd')
    bench.bare.queue_delete('monitor#odd')
    control.message_leave_group({'group_name': 'odd'}, _key='1@a').wait(TIMEOUT)
    assert control.rpc_ping(_key='1@a', _timeout=5)
    assert resident.groups == []


# A queue is another one


SPELLED_EQK = [(EchoExchange, [({'name': 'echo-queue', 'flags': {'durable': True}}, 'echo-rk')])]


def test_a_queue_found_with_other_flags_than_those_spelled_out_is_one_error_and_used_as_found(
    bench: Bench, moving: Moving
) -> None:
    bench.bare.queue_declare('echo-queue', auto_delete=True)
    echo = moving.run(Echo(SPELLED_EQK))
    producer = bench.producer()
    moving.move()

    error = bench.log.expect('ERROR')
    assert 'durable' in error
    assert "'echo-queue'" in error
    producer.message_echo('by the exchange')
    assert echo.seen.next() == 'by the exchange'
    assert len(bench.log.find('ERROR')) == 1


def test_a_queue_found_with_other_flags_than_our_defaults_is_used_as_found_with_a_warning(
    bench: Bench, moving: Moving
) -> None:
    bench.bare.queue_declare('echo-queue', durable=False)
    echo = moving.run(Echo())
    producer = bench.producer()
    moving.move()

    bench.log.expect('WARNING', "'echo-queue'", 'durable', 'used as found')
    producer.message_echo('by the exchange')
    assert echo.seen.next() == 'by the exchange'
    assert not bench.log.find('ERROR')


def test_a_queue_deleted_and_redeclared_otherwise_under_its_consumer_is_one_error_and_used_as_found(
    bench: Bench,
) -> None:
    echo = Echo(SPELLED_EQK)
    bench.run(echo)
    producer = bench.producer()
    bench.await_consumed('echo-queue')
    with connect(bench.broker) as connection:
        replace_queue(connection, 'echo-queue', durable=False, auto_delete=True)
        error = bench.log.expect('ERROR')
        assert "'echo-queue'" in error
        bench.await_consumed('echo-queue')
        producer.message_echo('by the exchange')
        assert echo.seen.next() == 'by the exchange'
    assert len(bench.log.find('ERROR')) == 1


def replace_queue(connection: Any, queue: str, **flags: Any) -> None:
    """Delete a queue and declare it again in one write, so that there is no time in between for anybody else."""
    channel, impl = connection.channel()._impl, connection._impl
    frames: list[bytes] = []
    declared: list[Any] = []
    emit, impl._adapter_emit_data = impl._adapter_emit_data, frames.append
    channel.queue_delete(queue)
    channel.queue_declare(queue, callback=declared.append, **flags)
    impl._adapter_emit_data = emit
    emit(b''.join(frames))
    eventually(lambda: connection.process_data_events(0) or declared)


class Moving:
    """Two brokers of which clients use the second, the one of the bench, when the first is gone."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._first = BrokerServer('127.0.0.1', 0)
        if bench.broker.vhost != '/':
            self._first = BrokerServer('127.0.0.1', 0, virtual_hosts=[bench.broker.vhost])
        self._first.start()
        self.url = f'{with_port(bench.broker.url, Embedded(self._first).port)},{bench.broker.url}'

    def run(self, echo: Echo) -> Echo:
        """Run a processor on the first broker, and wait until it consumes."""
        self._bench.run(echo)
        eventually(lambda: self._first.queues(self._bench.broker.vhost)['echo-queue'][2])
        return echo

    def move(self) -> None:
        """Have the first broker end, and wait until everybody is on the second."""
        self._first.stop()
        await_reconnect(self._bench.log)

    def close(self) -> None:
        self._first.stop()


@pytest.fixture
def moving(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moving]:
    moving = Moving(bench)
    monkeypatch.setenv('POSTAGE_URL', moving.url)
    yield moving
    moving.close()


# Several hosts


def test_hosts_are_tried_in_turn_until_one_answers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = [with_port(bench.broker.url, port) for port in free_ports(2)]
    monkeypatch.setenv('POSTAGE_URL', ','.join([*nobody, bench.broker.url]))
    monkeypatch.setenv('POSTAGE_VHOST', bench.broker.vhost)
    echo = Echo(vhost=bench.broker.vhost)
    bench.run(echo)
    bench.producer(vhost=bench.broker.vhost).message_echo('found')
    assert echo.seen.next() == 'found'


def test_another_host_takes_over_with_all_that_was_declared(bench: Bench, moving: Moving) -> None:
    echo = moving.run(Echo())
    producer = bench.producer()
    producer.message_echo('to the first')
    assert echo.seen.next() == 'to the first'
    moving.move()
    producer.message_echo('to the second')
    assert echo.seen.next() == 'to the second'
    assert producer.rpc_echo('asked', _timeout=TIMEOUT)


# Errors that no retry cures


def test_a_virtual_host_that_is_gone_is_told_once_and_ends_the_processor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, 'REFUSED_SECONDS', 0.2)
    bench.broker.add_vhost('doomed')
    monkeypatch.setenv('POSTAGE_URL', bench.broker.url_of('doomed'))
    echo = bench.closing(Echo())
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(echo)
    loop = Loop(scheduler)
    eventually(lambda: echo.consumer.delivery_source.channel.is_open and echo.consumer.conn_broker.is_open)

    bench.broker.delete_vhost('doomed')
    if isinstance(bench.broker, Embedded):
        bench.broker.close_all_connections()
    with pytest.raises(errors.VirtualHostRefused, match="'doomed'"):
        loop.wait()
    told = [line for line in bench.log.find('no virtual host') if line.startswith('ERROR postage:')]
    assert len(told) <= 2, 'one for each connection'


def test_a_virtual_host_that_is_gone_is_told_as_such_whatever_went_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ deletes exchanges, queues and connections one after the other; in which order depends on its version."""
    monkeypatch.setattr(attempts, 'REFUSED_SECONDS', 0.0)
    queues: Any = ['one', 'two', messaging.quorum('three')]
    for number in range(6):
        bench.broker.add_vhost(f'doomed-{number}')
        monkeypatch.setenv('POSTAGE_URL', bench.broker.url_of(f'doomed-{number}'))
        echo = bench.closing(Echo([(EchoExchange, [(queue, 'echo-rk') for queue in queues])]))
        producer = bench.producer()
        scheduler = microthreads.MicroScheduler()
        scheduler.add_microthread(echo)
        loop = Loop(scheduler)
        eventually(lambda echo=echo: echo.consumer.is_consuming and echo.consumer.conn_broker.is_open)
        producer.message_echo(number).wait(TIMEOUT)
        assert echo.seen.next() == number
        bench.broker.delete_vhost(f'doomed-{number}')
        if isinstance(bench.broker, Embedded):
            bench.broker.close_all_connections()
        with pytest.raises(errors.VirtualHostRefused, match=f"'doomed-{number}'"):
            loop.wait()


# Calls


def test_a_short_timeout_is_kept_after_a_call_with_a_longer_one(bench: Bench) -> None:
    bench.run(Echo())
    producer = bench.producer()
    assert producer.rpc_echo('answered at once', _timeout=TIMEOUT)
    begun = time.monotonic()
    assert not producer.rpc_echo(_key='nobody', _timeout=0.2)
    assert time.monotonic() - begun < TIMEOUT / 2


def test_a_request_goes_out_once_however_many_attempts_an_outage_has_spent(proxied: Proxy, bench: Bench) -> None:
    class Counting(Processor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: dict[str, Any], reply_func: Any) -> None:
            self.seen.put(content['parameters'])
            reply_func(True)

    # The responder is not behind the proxy: it is there all the time.
    counting = Counting(hup=bench.broker.url)
    bench.run(counting)
    producer = bench.producer()
    assert producer.rpc_echo(0, _timeout=0.2)
    proxied.refuse()
    proxied.cut()
    bench.log.expect('(publishing) was lost')
    answer = producer.rpc_future_echo(1, _timeout=0.5, _max_retry=100)
    bench.log.expect('attempt 3 failed')
    proxied.accept()
    assert answer.result(TIMEOUT)
    assert producer.rpc_echo(2, _timeout=TIMEOUT)
    assert counting.seen.take(2) == [0, 1]
    # Of the attempts that the outage has spent nothing is left. The one that ends it may run out of time on its way.
    again = counting.seen.next()
    assert again == 2 or (again, counting.seen.next()) == (1, 2)


# A half-open connection


def test_a_half_open_connection_is_noticed_within_two_heartbeats_and_made_again(
    proxy: Proxy, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_URL', proxy.url(bench.broker.url, heartbeat=HEARTBEAT))
    resident = Resident('monitor', 1, 'a', ['odd'])
    bench.run(resident)
    control = bench.producer(Control)
    assert control.rpc_ping(_key='1@a')

    begun = time.monotonic()
    proxy.swallow()
    control.message_say('into the void', _key='monitor/rr')
    for role in ('publishing', 'consuming'):
        bench.log.expect('WARNING', f'({role}) was lost')
    noticed = time.monotonic() - begun
    assert noticed <= 2 * HEARTBEAT + 0.5, f'noticed after {noticed:.1f} s'

    # The broker holds the queue for the old connection until it notices, too; everything is back after that.
    await_reconnect(bench.log)
    assert resident.seen.next() == ('1@a', 'into the void'), 'sent again'
    for key in ('1@a', 'monitor', 'monitor@a', '@a', 'monitor#odd', 'monitor/rr'):
        control.message_say(key, _key=key)
        assert resident.seen.next() == ('1@a', key)
    assert not bench.log.find('ERROR'), bench.log.text


# The broker's acknowledgement time-out


@starts_a_node
def test_a_handler_that_outlives_the_acknowledgement_timeout_has_its_message_delivered_again(
    private_bench: Bench,
) -> None:
    class Dozing(Processor):
        """Sleeps on a message when it sees it for the first time."""

        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            delivery = messaging.current_delivery()
            assert delivery is not None
            self.seen.put((content['parameters'], delivery.redelivered))
            if not delivery.redelivered and content['parameters'] == 'long':
                woken.wait(TIMEOUT)

    if says(private_bench.broker, 'late, consumed from a classic queue') == 'nothing':
        pytest.skip('a classic queue waits for ever; what becomes of a quorum queue is in test_consumer_timeout.py')
    # Channels read both when they are opened.
    node = node_of(private_bench)
    for name, milliseconds in (('consumer_timeout', 1000), ('channel_tick_interval', 200)):
        node.evaluate(f'application:set_env(rabbit, {name}, {milliseconds}), ""')
    woken = threading.Event()
    try:
        dozing = Dozing()
        private_bench.run(dozing)
        producer = private_bench.producer()
        producer.message_echo('long')
        producer.message_echo('behind')
        assert dozing.seen.next() == ('long', False)
        warning = private_bench.log.expect('WARNING', 'echo-queue', 'timed out')
        assert '406' in warning
    finally:
        woken.set()
        for name, milliseconds in (('consumer_timeout', 1800000), ('channel_tick_interval', 60000)):
            node.evaluate(f'application:set_env(rabbit, {name}, {milliseconds}), ""')
    again = dict(dozing.seen.take(2))  # in any order: both go back when the channel is closed
    assert again['long'] is True
    assert 'behind' in again
    private_bench.log.expect('WARNING', 'dropped 1 acknowledgement')
    producer.message_echo('later')
    assert dozing.seen.next() == ('later', False)
    assert len(story(private_bench.log)) == 2


# A broker that takes no messages


class Impatient(EchoProducer):
    publish_timeout = 0.5


def test_a_blocked_connection_is_told_and_publishing_is_bounded(bench: Bench) -> None:
    producer = bench.producer(Impatient)
    queue = bench.collect()
    with bench.memory_alarm():
        receipts = fill_the_window(producer)
        bench.log.expect('WARNING', 'takes no messages at present')
        assert not any(receipt.confirmed for receipt in receipts[-10:])
    bench.log.expect('INFO', 'takes messages again')
    producer.flush(TIMEOUT)
    assert all(receipt.confirmed for receipt in receipts)
    eventually(lambda: bench.count(queue) == len(receipts))


def fill_the_window(producer: Impatient) -> list[Any]:
    """Publish until there is no room for more, and return the receipts of what was accepted."""
    receipts: list[Any] = []

    def publish() -> None:
        for number in range(100_000):
            receipts.append(producer.message_echo(number))

    with pytest.raises(errors.PublishTimeout, match='not accepted'):
        publish()
    return receipts


def test_consumers_go_on_while_publishers_are_blocked(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    for number in range(200):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    with bench.memory_alarm():
        assert echo.seen.take(200) == list(range(200))
    eventually(lambda: bench.count('echo-queue') == 0)


def test_messages_published_while_blocked_are_delivered_later(bench: Bench) -> None:
    echo = Echo(EQK)
    bench.run(echo)
    producer = bench.producer()
    with bench.memory_alarm():
        # The broker tells only who publishes, and not before it has looked up from its work.
        eventually(lambda: producer.message_echo('knock') and bench.log.find('takes no messages at present'))
        receipt = producer.message_echo('patience')
        with pytest.raises(errors.PublishTimeout):
            receipt.wait(0.2)
    receipt.wait(TIMEOUT)
    assert 'patience' in iter(echo.seen.next, None)
