"""A connection is shared, waits for its broker, fails clearly, heals itself and ends when nobody needs it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pika.exceptions
import pytest
from pika.adapters.utils import io_services_utils

from postage import messaging
from postage.amqp.steps import Steps
from postage.broker.server import BrokerServer
from support.brokers import Broker, Embedded, connect, with_port
from support.canary import canary
from support.fixtures import bench_on
from support.leftovers import postage_threads
from support.limits import limited
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoProducer, eventually
from support.ports import free_ports
from support.programs import Program
from support.proxy import Proxy

PASSWORD = canary('-sesame')


def threads() -> list[str]:
    return sorted(thread.name for thread in postage_threads() if thread.name != 'postage-broker')


class InThread:
    """A call made in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.outcome: Future[Any] = Future()
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome.set_result(self._call())
        except BaseException as error:
            self.outcome.set_exception(error)

    def result(self) -> Any:
        result = self.outcome.result(TIMEOUT)
        self._thread.join(TIMEOUT)
        return result


# Sharing


def test_producers_of_a_process_share_a_connection_and_consumers_another(bench: Bench) -> None:
    first, second = bench.producer(), bench.producer()
    consumer, other = bench.consumer(), bench.consumer()
    assert first.conn_broker is second.conn_broker
    assert consumer.conn_broker is other.conn_broker
    assert first.conn_broker is not consumer.conn_broker
    assert threads() == ['postage-consuming', 'postage-publishing']


def test_replies_go_out_on_the_connection_that_publishes(bench: Bench) -> None:
    bench.run(Echo())
    producer = bench.producer()
    assert producer.rpc_echo('text').body['content']['value'] == 'text'
    assert threads() == ['postage-consuming', 'postage-publishing']


def test_another_virtual_host_has_connections_of_its_own(bench: Bench) -> None:
    name = f'{bench.broker.vhost}-other'
    bench.broker.add_vhost(name)
    try:
        first, second = bench.producer(), bench.producer(EchoProducer, None, bench.broker.url_of(name))
        assert first.conn_broker is not second.conn_broker
        second.close()
    finally:
        bench.broker.delete_vhost(name)


def test_the_last_close_closes_the_connection_and_ends_its_thread(bench: Bench) -> None:
    first, second = bench.producer(), bench.producer()
    first.close()
    assert second.conn_broker.is_open
    second.message_echo('still open').wait(TIMEOUT)
    second.close()
    assert not second.conn_broker.is_open
    assert threads() == []


def test_close_may_be_called_twice_and_counts_once(bench: Bench) -> None:
    first, second = bench.producer(), bench.producer()
    first.close()
    first.close()
    second.message_echo('still open').wait(TIMEOUT)


def test_a_broker_that_is_late_by_a_heartbeat_is_no_trouble_yet(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_URL', f'{bench.broker.url}?heartbeat=60')
    producer = bench.producer()
    producer.message_echo('text').wait(TIMEOUT)
    connection = producer.conn_broker
    assert connection.link is not None
    connection.link.read_at = (
        time.monotonic() - 61
    )  # as when it has just sent something, half a heartbeat before it looks
    assert connection.trouble == ''
    connection.link.read_at -= 31
    assert connection.trouble == 'the broker has been silent for 92.0 s'


def test_after_the_last_close_a_new_one_connects_again(bench: Bench) -> None:
    bench.producer().close()
    bench.producer().message_echo('again').wait(TIMEOUT)


def test_what_is_used_after_its_close_says_so(bench: Bench) -> None:
    producer, consumer = bench.producer(), bench.consumer()
    producer.close()
    consumer.close()
    with pytest.raises(messaging.Closed):
        producer.message_echo('too late')
    with pytest.raises(messaging.Closed):
        consumer.start_consuming(lambda *_: None)


def test_a_constructor_that_fails_leaves_no_connection_behind(bench: Bench) -> None:
    class Missing(messaging.Exchange):
        name = 'missing-exchange'
        passive = True

    class Producer(messaging.GenericProducer):
        eks = [(Missing, 'key')]

    with pytest.raises(messaging.NotFound, match='missing-exchange'):
        Producer()
    with pytest.raises(messaging.NotFound, match='missing-exchange'):
        messaging.GenericConsumer([(Missing, [('queue', 'key')])])
    assert threads() == []


# Forking

FORK = """
import warnings
# From Python 3.12 on a fork beside threads is warned of.
warnings.simplefilter('ignore', DeprecationWarning)
import os, sys
from postage import messaging

class Exchange(messaging.Exchange):
    name = 'echo-exchange'

class Producer(messaging.GenericProducer):
    eks = [(Exchange, 'echo-rk')]
    rpc_timeout = 10

producer = Producer()
producer.message_echo('parent, before').wait(10)
child = os.fork()
if not child:
    producer.message_echo('child').wait(10)
    print('child asks', producer.rpc_echo('child asks').body['content']['value'])
    producer.message_echo('child, at its exit')
    sys.exit(0)
print('child ended with', os.waitpid(child, 0)[1])
producer.message_echo('parent, after').wait(10)
print('parent asks', producer.rpc_echo('parent asks').body['content']['value'])
producer.message_echo('parent, at its exit')
"""


def test_a_forked_child_opens_connections_of_its_own(bench: Bench, run_program: Callable[..., Program]) -> None:
    echo = Echo()
    bench.run(echo)
    program = run_program(FORK)
    assert program.wait() == 0, program.output
    assert sorted(program.lines) == ['child asks child asks', 'child ended with 0', 'parent asks parent asks']
    sent = ['child', 'child, at its exit', 'parent, after', 'parent, at its exit', 'parent, before']
    assert sorted(echo.seen.take(5)) == sent
    assert echo.seen.empty()


FORK_UNDER_WAY = """
import warnings
# From Python 3.12 on a fork beside threads is warned of.
warnings.simplefilter('ignore', DeprecationWarning)
import os, sys
from postage import messaging

class Exchange(messaging.Exchange):
    name = 'echo-exchange'

class Producer(messaging.GenericProducer):
    eks = [(Exchange, 'echo-rk')]

producer = Producer()
for number in range(500):
    producer.message_echo(['parent', number])
child = os.fork()
for number in range(500, 1000):
    producer.message_echo(['parent' if child else 'child', number])
producer.flush(10)
if child:
    print('child ended with', os.waitpid(child, 0)[1])
"""


def test_what_was_under_way_at_a_fork_is_the_parent_s_alone(bench: Bench, run_program: Callable[..., Program]) -> None:
    echo = Echo()
    bench.run(echo)
    program = run_program(FORK_UNDER_WAY)
    assert program.wait() == 0, program.output
    assert program.lines == ['child ended with 0']
    expected = [['parent', number] for number in range(1000)] + [['child', number] for number in range(500, 1000)]
    assert sorted(echo.seen.take(1500)) == sorted(expected)
    assert echo.seen.empty()


FORK_CONSUMER = """
import os, sys
from postage import messaging, microthreads

class Exchange(messaging.Exchange):
    name = 'echo-exchange'

class Processor(messaging.MessageProcessor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        who = 'parent' if os.getpid() == parent else 'child'
        os.write(1, f'{who} got {content["parameters"]}\\n'.encode())

parent = os.getpid()
processor = Processor({}, [(Exchange, [('echo-queue', 'echo-rk')])])
if not os.fork():
    processor = Processor({}, [(Exchange, [('child-queue', 'child-rk')])])
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(processor)
os.write(1, b'running\\n')
for _ in scheduler.main():
    pass
if os.getpid() == parent:
    os.wait()
"""


def test_parent_and_child_may_both_consume(bench: Bench, run_program: Callable[..., Program]) -> None:
    program = run_program(FORK_CONSUMER)
    program.expect('running', times=2)
    producer = bench.producer()
    producer.message_echo('to the parent')
    producer.message_echo('to the child', _key='child-rk')
    program.expect('parent got to the parent')
    program.expect('child got to the child')
    producer.message_quit()
    producer.message_quit(_key='child-rk')
    assert program.wait() == 0, program.output


# A broker that is down, or not there


def test_a_broker_that_is_down_is_waited_for_and_the_log_says_so(bench: Bench, proxied: Proxy) -> None:
    proxied.refuse()
    constructing = InThread(lambda: bench.producer())
    line = bench.log.expect('WARNING', 'cannot be reached', 'waiting for it', f'127.0.0.1:{proxied.port}')
    assert 'refused' in line.lower()
    assert not constructing.outcome.done()
    proxied.accept()
    constructing.result().message_echo('at last').wait(TIMEOUT)
    assert len(bench.log.find('cannot be reached')) == 1


def test_a_broker_that_is_started_later_is_found(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv('POSTAGE_HOST', '127.0.0.1')
    monkeypatch.setenv('POSTAGE_PORT', str(port))
    constructing = InThread(EchoProducer)
    eventually(lambda: 'cannot be reached' in caplog.text)
    with BrokerServer('127.0.0.1', port):
        producer = constructing.result()
        producer.message_echo('at last').wait(TIMEOUT)
        producer.close()


def test_a_consumer_waits_for_a_broker_that_is_down_as_well(bench: Bench, proxied: Proxy) -> None:
    proxied.refuse()
    constructing = InThread(lambda: bench.closing(Echo()))
    bench.log.expect('cannot be reached')
    proxied.accept()
    constructing.result()


def test_a_broker_that_takes_connections_and_says_nothing_is_waited_for(
    bench: Bench, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.5')
    proxied.swallow(new_ones=True)
    begin = time.monotonic()
    with pytest.raises(messaging.BrokerUnavailable, match=f'127.0.0.1:{proxied.port}/.* within 0.5 s'):
        EchoProducer()
    assert time.monotonic() - begin < 3.0


def test_a_broker_that_stays_down_is_an_error_after_the_connect_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv('POSTAGE_URL', f'amqp://alice:{PASSWORD}@127.0.0.1:{port}/somewhere')
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.3')
    begin = time.monotonic()
    with pytest.raises(messaging.BrokerUnavailable) as caught:
        EchoProducer()
    assert 0.3 <= time.monotonic() - begin < 2.0
    assert f'127.0.0.1:{port}' in str(caught.value)
    assert '0.3 s' in str(caught.value)
    assert 'refused' in str(caught.value).lower()
    assert isinstance(caught.value, pika.exceptions.AMQPConnectionError)
    assert PASSWORD not in f'{caught.value!r} {caught.value} {caplog.text}'
    assert threads() == []


def test_a_host_that_does_not_exist_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_HOST', 'no-such-host.invalid')
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.3')
    with pytest.raises(messaging.BrokerUnavailable, match=r'no-such-host\.invalid'):
        EchoProducer()


def test_several_producers_may_wait_for_one_broker(bench: Bench, proxied: Proxy) -> None:
    proxied.refuse()
    waiting = [InThread(lambda: bench.producer()) for _ in range(4)]
    bench.log.expect('cannot be reached')
    proxied.accept()
    producers = [each.result() for each in waiting]
    assert len({producer.conn_broker for producer in producers}) == 1
    assert threads() == ['postage-publishing']


# Several hosts


def test_several_hosts_are_tried_in_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (dead,) = free_ports(1)
    monkeypatch.setenv('POSTAGE_URL', f'{with_port(bench.broker.url, dead)},{bench.broker.url}')
    bench.producer().message_echo('found').wait(TIMEOUT)


def test_a_list_of_hosts_is_tried_in_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (dead,) = free_ports(1)
    monkeypatch.delenv('POSTAGE_URL')
    monkeypatch.setenv('POSTAGE_HOST', f'127.0.0.1:{dead},127.0.0.1:{bench.broker.port}')
    monkeypatch.setenv('POSTAGE_VHOST', bench.broker.vhost)
    bench.producer().message_echo('found').wait(TIMEOUT)


def test_a_lost_connection_is_made_again_to_the_next_host(
    bench: Bench, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_URL', f'{proxied.url(bench.broker.url)},{bench.broker.url}')
    producer = bench.producer()
    producer.message_echo('by the first').wait(TIMEOUT)
    proxied.refuse()
    proxied.cut()
    producer.message_echo('by the second').wait(TIMEOUT)
    assert proxied.connections == 0


def test_where_none_of_several_hosts_answers_the_error_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = free_ports(2)
    monkeypatch.setenv('POSTAGE_HOST', ','.join(f'127.0.0.1:{port}' for port in ports))
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.3')
    with pytest.raises(messaging.BrokerUnavailable) as caught:
        EchoProducer()
    for port in ports:
        assert f'127.0.0.1:{port}' in str(caught.value)


# What no waiting cures


@pytest.fixture
def at_once() -> Iterator[None]:
    """The body of the test takes much less time than a constructor would wait for a broker that is down."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 8.0  # RabbitMQ itself lets a wrong password wait a second


@pytest.mark.usefixtures('at_once')
@pytest.mark.parametrize('make', [EchoProducer, Echo])
def test_wrong_credentials_are_an_error_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.delenv('POSTAGE_URL')
    monkeypatch.setenv('POSTAGE_HOST', f'{bench.broker.host}:{bench.broker.port}')
    monkeypatch.setenv('POSTAGE_USER', 'alice')
    monkeypatch.setenv('POSTAGE_PASSWORD', PASSWORD)
    with pytest.raises(messaging.AuthenticationFailed, match="'alice'") as caught:
        make()
    assert isinstance(caught.value, pika.exceptions.ProbableAuthenticationError)
    assert isinstance(caught.value, messaging.PostageError)
    assert PASSWORD not in f'{caught.value!r} {caught.value} {caught.value.args} {bench.log.text}'
    assert threads() == []


@pytest.mark.usefixtures('at_once')
@pytest.mark.parametrize('make', [EchoProducer, Echo])
def test_a_missing_virtual_host_is_an_error_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setenv('POSTAGE_URL', bench.broker.url_of('nowhere'))
    with pytest.raises(messaging.VirtualHostRefused, match="'nowhere'") as caught:
        make()
    assert isinstance(caught.value, pika.exceptions.ProbableAccessDeniedError)
    assert isinstance(caught.value, messaging.PostageError)
    assert threads() == []


def test_a_broker_that_has_too_many_connections_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.3')
    with connect(bench.broker), limited(bench.broker, connections=1):
        with pytest.raises(messaging.BrokerUnavailable, match=r'connection limit \(1\) is reached'):
            EchoProducer()
        monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '30')
        waiting = InThread(EchoProducer)
        bench.log.expect('WARNING', 'connection limit')
    waiting.result().close()


def test_after_a_refusal_the_right_credentials_connect(bench: Bench) -> None:
    with pytest.raises(messaging.AuthenticationFailed):
        EchoProducer(None, {'host': '127.0.0.1', 'port': bench.broker.port, 'user': 'guest', 'password': PASSWORD})
    bench.producer().message_echo('welcome').wait(TIMEOUT)


def test_a_virtual_host_that_goes_fails_what_waits_and_says_why(bench: Bench) -> None:
    name = f'{bench.broker.vhost}-short-lived'
    bench.broker.add_vhost(name)
    producer = bench.producer(EchoProducer, None, bench.broker.url_of(name))
    bench.broker.delete_vhost(name)
    bench.broker.close_all_connections()
    if bench.broker.name == 'embedded':
        bench.log.expect('was lost')
    bench.log.expect('ERROR', repr(name))
    with pytest.raises(messaging.VirtualHostRefused):
        producer.message_echo('nowhere')


def test_a_password_is_in_no_log_and_no_repr(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv('POSTAGE_DEBUG_MODE', 'true')
    with BrokerServer(users={'alice': PASSWORD}) as server:
        monkeypatch.setenv('POSTAGE_URL', server.url)
        with (
            EchoProducer() as producer,
            messaging.GenericConsumer(EQK) as consumer,
        ):
            producer.message_echo('text').wait(TIMEOUT)
            shown = [producer, consumer, producer.conn_broker, consumer.conn_broker, producer.channel, consumer.channel]
            server.drop_connections()
            eventually(lambda: 'again' in caplog.text)
            assert PASSWORD not in ' '.join(f'{each!r} {each}' for each in shown)
            assert 'alice@127.0.0.1' in repr(producer)
    assert caplog.text
    assert PASSWORD not in caplog.text
    logging.getLogger('postage').setLevel(logging.NOTSET)


# Blocking calls


def test_a_blocking_call_on_the_connection_s_own_thread_is_refused(bench: Bench) -> None:
    producer = bench.producer()
    outcome: Future[Any] = Future()

    def on_the_connection_s_thread() -> None:
        try:
            producer.channel.queue_declare('queue')
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    producer.conn_broker.tell(on_the_connection_s_thread)
    with pytest.raises(RuntimeError, match='blocking call'):
        outcome.result(TIMEOUT)
    producer.message_echo('and it goes on').wait(TIMEOUT)


def test_a_blocking_call_waits_for_a_connection_that_is_being_made_again(bench: Bench, proxied: Proxy) -> None:
    producer = bench.producer()
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost')
    declaring = InThread(lambda: producer.channel.queue_declare('queue', durable=True))
    assert not declaring.outcome.done()
    proxied.accept()
    assert declaring.result().method.queue == 'queue'


def test_a_blocking_call_that_the_loss_interrupts_is_made_again(bench: Bench, proxied: Proxy) -> None:
    producer = bench.producer()
    proxied.hold()
    declaring = InThread(lambda: producer.channel.queue_declare('queue', durable=True))
    with contextlib.suppress(concurrent.futures.TimeoutError):  # another one than Python's own before 3.11
        declaring.outcome.result(0.1)
    proxied.resume()
    proxied.cut()
    assert declaring.result().method.queue == 'queue'


@pytest.mark.parametrize(
    'text', ['INTERNAL_ERROR', "INTERNAL_ERROR - failed consuming from quorum queue 'q': nodedown"]
)
def test_a_blocking_call_is_made_again_that_met_an_error_inside_the_broker(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with bench_on(embedded, monkeypatch) as bench, Proxy.before(embedded) as proxy:
        monkeypatch.setenv('POSTAGE_URL', proxy.url(embedded.url))
        producer = bench.producer()
        proxy.hold()
        declaring = InThread(lambda: producer.channel.queue_declare('queue', durable=True))
        eventually(lambda: producer.conn_broker.io._asked)
        # As RabbitMQ does where a node of its cluster has lost the others. Where something is denied it says what.
        embedded.server.close_connections(541, text)
        proxy.resume()
        assert declaring.result().method.queue == 'queue'
        bench.log.expect(f'{text} (541)')


def test_a_close_fails_those_who_ask(bench: Bench, proxied: Proxy) -> None:
    producer = bench.producer()
    connection = producer.conn_broker
    proxied.hold()
    under_way = InThread(lambda: connection.ask(lambda: declared(connection)))
    eventually(lambda: connection.io._asked)
    connection.close(0.5)
    with pytest.raises(messaging.BrokerError) as caught:
        under_way.result()
    assert isinstance(caught.value, (messaging.Closed, messaging.ConnectionLost))
    with pytest.raises(messaging.Closed):
        connection.ask(lambda: declared(connection))


def test_a_close_fails_those_who_wait_for_a_connection(bench: Bench, proxied: Proxy) -> None:
    connection = bench.producer().conn_broker
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost')
    waiting = [InThread(lambda: connection.ask(lambda: declared(connection))) for _ in range(3)]
    eventually(lambda: len(connection.io._asked) == 3)
    connection.close(0.5)
    for each in waiting:
        with pytest.raises(messaging.Closed):
            each.result()


def declared(connection: Any) -> Steps:
    return (yield connection.control.operate('queue_declare', queue='declared', durable=True))


# Losses


@pytest.mark.parametrize('reset', [True, False])
def test_a_connection_that_was_cut_is_made_again_and_the_log_says_so(bench: Bench, proxied: Proxy, reset: bool) -> None:
    producer = bench.producer()
    proxied.cut(reset)
    bench.log.expect('WARNING', 'was lost', f'127.0.0.1:{proxied.port}', 'publishing')
    bench.log.expect('INFO', 'connected', 'again', 'publishing')
    producer.message_echo('again').wait(TIMEOUT)


def test_a_lost_connection_keeps_nothing_of_what_it_was(bench: Bench) -> None:
    """Not even for the seconds after which it would have been looked at again."""
    producer, consumer = bench.producer(), bench.consumer()
    links = [weakref.ref(connection.link) for connection in (producer.conn_broker, consumer.conn_broker)]
    bench.close_all_connections()
    for role in ('publishing', 'consuming'):
        bench.log.expect('INFO', 'connected', 'again', role)

    def is_gone() -> bool:
        gc.collect()
        return not any(link() for link in links)

    eventually(is_gone)


def test_an_end_that_postage_decides_on_takes_effect_at_once_and_the_log_has_the_reason(bench: Bench) -> None:
    producer = bench.producer()
    connection: Any = producer.conn_broker
    reason = pika.exceptions.AMQPHeartbeatTimeout('nothing was heard')
    connection.tell(lambda: connection.link.fail(reason))
    bench.log.expect('was lost', 'nothing was heard')
    producer.message_echo().wait(TIMEOUT)


def test_a_connection_that_is_cut_while_it_is_made_is_made_again(bench: Bench, proxied: Proxy) -> None:
    producer = bench.producer()
    cuts = threading.Thread(target=lambda: [proxied.cut() and time.sleep(0.02) for _ in range(20)])
    proxied.delay(0.005)
    cuts.start()
    receipt = producer.message_echo('through it all')
    cuts.join(TIMEOUT)
    proxied.resume()
    receipt.wait(TIMEOUT)


def test_a_connection_that_is_reset_as_soon_as_it_is_made_is_made_again(
    bench: Bench, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pika expects the peer to be still there when it asks for its name, and tells nobody when it is not."""
    connector = io_services_utils._AsyncStreamConnector
    begin, resets = connector.__init__, iter([True, True])

    def begin_too_late(self: Any, nbio: Any, protocol_factory: Any, sock: Any, **options: Any) -> None:
        if next(resets, False):
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        begin(self, nbio=nbio, protocol_factory=protocol_factory, sock=sock, **options)

    producer = bench.producer()
    monkeypatch.setattr(connector, '__init__', begin_too_late)
    proxied.cut()
    producer.message_echo('again').wait(TIMEOUT)
    assert next(resets, None) is None
    assert not bench.log.find('ERROR')


def size_of_connection_start(broker: Broker) -> int:
    """Bytes that a broker sends before it has heard who wants to connect."""
    with socket.create_connection((broker.host, broker.port), timeout=TIMEOUT) as sock:
        sock.sendall(b'AMQP\0\0\x09\x01')
        header = sock.recv(7, socket.MSG_WAITALL)
        return int.from_bytes(header[3:], 'big') + 8


SIZE_OF_TUNE = 20


def test_a_handshake_that_the_broker_breaks_off_is_begun_again(bench: Bench, proxied: Proxy) -> None:
    """At these stages pika takes it for wrong credentials or a missing virtual host; it is neither."""
    producer = bench.producer()
    start = size_of_connection_start(bench.broker)
    for size in (1, start, start + SIZE_OF_TUNE):
        accepted = proxied.accepted
        proxied.hold()
        proxied.cut()
        eventually(lambda accepted=accepted: proxied.accepted > accepted)
        proxied.cut_after(size, towards='client')
        proxied.resume()
    producer.message_echo('in the end').wait(TIMEOUT)


IDLE = """
import threading, time
from postage import messaging

class Exchange(messaging.Exchange):
    name = 'echo-exchange'

class Producer(messaging.GenericProducer):
    eks = [(Exchange, 'echo-rk')]
    rpc_timeout = 10

producer = Producer()
assert producer.rpc_echo('warm')
before = time.process_time()
threading.Event().wait(0.5)
print(time.process_time() - before)
"""


def test_an_idle_connection_uses_no_processor_time(bench: Bench, run_program: Callable[..., Program]) -> None:
    bench.run(Echo())
    program = run_program(IDLE)
    assert program.wait() == 0, program.output
    assert float(program.lines[-1]) < 0.05


IDLE_PROCESSOR = """
import threading
from postage import messaging, microthreads
from postage.amqp.tick import Tick

class Exchange(messaging.Exchange):
    name = 'echo-exchange'

class Idle(messaging.MessageProcessor):
    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content, reply):
        return content['parameters']

looks = []
look = Tick._look
Tick._look = lambda tick: (looks.append(tick), look(tick))

class Producer(messaging.GenericProducer):
    eks = [(Exchange, 'idle')]
    rpc_timeout = 10

def watch():
    producer = Producer()
    while producer.rpc_echo(1).value != 1:
        pass
    threading.Event().wait(0.3)
    before = len(looks)
    threading.Event().wait(1.5)
    print('looks', len(looks) - before, flush=True)
    print('answer', producer.rpc_echo(2).value, flush=True)
    producer.close()
    scheduler.stop()

scheduler = microthreads.MicroScheduler()
processor = Idle({}, [(Exchange, [('idle', 'idle')])])
scheduler.add_microthread(processor)
threading.Thread(target=watch).start()
scheduler.run()
processor.close()
"""


def test_an_idle_processor_is_hardly_looked_at(bench: Bench, run_program: Callable[..., Program]) -> None:
    program = run_program(IDLE_PROCESSOR)
    looks = int(program.expect('looks').split()[-1])
    program.expect('answer 2')
    assert program.wait() == 0, program.output
    assert looks < 10, looks


# The end of a program

ONE_SHOT = """
from postage import messaging

class Exchange(messaging.Exchange):
    name = 'echo-exchange'

class Producer(messaging.GenericProducer):
    eks = [(Exchange, 'echo-rk')]

producer = Producer()
for number in range(200):
    producer.message_echo(number)
"""


@pytest.mark.parametrize('last_line', ['', 'producer.close()', 'raise SystemExit(0)'])
def test_a_program_that_ends_right_after_its_calls_loses_nothing(
    bench: Bench, run_program: Callable[..., Program], last_line: str
) -> None:
    echo = Echo()
    bench.run(echo)
    program = run_program(ONE_SHOT + last_line)
    assert program.wait() == 0
    assert program.output == ''
    assert echo.seen.take(200) == list(range(200))


def test_a_program_that_raises_after_its_calls_loses_nothing(bench: Bench, run_program: Callable[..., Program]) -> None:
    echo = Echo()
    bench.run(echo)
    program = run_program(ONE_SHOT + 'raise ValueError')
    assert program.wait() == 1
    assert echo.seen.take(200) == list(range(200))


END_WITHOUT_BROKER = (
    ONE_SHOT
    + """
import atexit, time
from postage.amqp import registry

producer.flush(10)
print('ready')
while producer.conn_broker.is_open:
    time.sleep(0.01)
producer.message_echo('in vain')
# Ten seconds is what it has; two are enough to see that there is an end.
atexit.unregister(registry.close_all)
atexit.register(registry.close_all, 2.0)
"""
)


def test_a_program_that_ends_without_a_broker_ends_in_bounded_time_and_logs_what_failed(
    proxied: Proxy, run_program: Callable[..., Program]
) -> None:
    program = run_program(END_WITHOUT_BROKER)
    program.expect('ready')
    begin = time.monotonic()
    proxied.refuse()
    proxied.cut()
    assert program.wait() == 0
    assert time.monotonic() - begin < 6.0
    program.expect("to exchange 'echo-exchange' with key 'echo-rk' was not confirmed")
