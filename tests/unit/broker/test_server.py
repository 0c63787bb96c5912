"""The broker with sockets: its life, and the powers that tests have over it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker, ConnectionClosedByBroker

from postage.broker import BrokerServer
from postage.broker.users import Permissions
from support.canaries import sightings
from support.canary import canary

PASSWORD = canary('-server')

PATIENCE = 10.0


@pytest.fixture
def server() -> Iterator[BrokerServer]:
    with BrokerServer() as server:
        yield server


def connect(server: BrokerServer) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(server.url))


@pytest.fixture
def channel(server: BrokerServer) -> Iterator[BlockingChannel]:
    connection = connect(server)
    yield connection.channel()
    with contextlib.suppress(AMQPConnectionError):
        connection.close()


def wait_until(condition: Callable[[], bool], connection: pika.BlockingConnection | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        if connection is None:
            time.sleep(0.01)
        else:
            connection.process_data_events(0.01)


# Life


def test_it_serves_from_start_to_stop_and_leaves_no_thread() -> None:
    server = BrokerServer()
    server.start()
    assert any(thread.name == 'postage-broker' for thread in threading.enumerate())
    connect(server).close()
    server.stop()
    assert not any(thread.name == 'postage-broker' for thread in threading.enumerate())
    with pytest.raises(AMQPConnectionError):
        connect(server)


def test_it_stops_although_clients_are_connected() -> None:
    with BrokerServer() as server:
        connection = connect(server)
    with pytest.raises(ConnectionClosedByBroker) as caught:
        connection.process_data_events(PATIENCE)
    assert caught.value.reply_code == 320


def test_another_one_can_take_its_port_at_once() -> None:
    with BrokerServer() as first:
        connection = connect(first)
    with BrokerServer(port=first.port) as second:
        connect(second).close()
    with contextlib.suppress(AMQPConnectionError):
        connection.close()


def test_a_taken_port_is_an_error_of_start(server: BrokerServer) -> None:
    with pytest.raises(OSError, match='in use'):
        BrokerServer(port=server.port).start()


def test_it_may_be_stopped_twice_and_without_a_start() -> None:
    server = BrokerServer()
    server.stop()
    server.start()
    server.stop()
    server.stop()


def test_its_url_names_user_and_virtual_host() -> None:
    with BrokerServer(users={'me@home': f'{PASSWORD}/x'}, virtual_hosts=('my host',)) as server:
        assert server.url == f'amqp://me%40home:{PASSWORD}%2Fx@127.0.0.1:{server.port}/my%20host'
        connect(server).close()


def test_starting_and_stopping_takes_little_time() -> None:
    started = time.perf_counter()
    for _ in range(10):
        with BrokerServer():
            pass
    assert time.perf_counter() - started < 1


# Powers


def test_connections_can_be_dropped(server: BrokerServer, channel: BlockingChannel) -> None:
    assert server.drop_connections() == 1
    with pytest.raises(AMQPConnectionError):
        channel.queue_declare('q')
    assert server.drop_connections() == 0


def test_connections_can_be_closed_with_a_reason(server: BrokerServer, channel: BlockingChannel) -> None:
    assert server.close_connections(541, 'INTERNAL_ERROR - because') == 1
    with pytest.raises(ConnectionClosedByBroker) as caught:
        channel.queue_declare('q')
    assert (caught.value.reply_code, caught.value.reply_text) == (541, 'INTERNAL_ERROR - because')


def test_queues_can_be_looked_at(server: BrokerServer, channel: BlockingChannel) -> None:
    channel.confirm_delivery()
    channel.queue_declare('q')
    for _ in range(3):
        channel.basic_publish('', 'q', b'')
    assert server.queues() == {'q': (3, 0, 0)}
    channel.basic_get('q')
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume('q', lambda *_: None)
    assert server.queues() == {'q': (1, 2, 1)}


def test_publishers_can_be_blocked(server: BrokerServer, channel: BlockingChannel) -> None:
    events: list[str] = []
    connection = channel.connection
    connection.add_on_connection_blocked_callback(lambda _, frame: events.append(frame.method.reason))
    connection.add_on_connection_unblocked_callback(lambda *_: events.append('over'))
    channel.queue_declare('q')
    server.block('low on disk')
    channel.basic_publish('', 'q', b'')
    wait_until(lambda: events == ['low on disk'], connection)
    assert server.queues() == {'q': (0, 0, 0)}
    server.unblock()
    wait_until(lambda: events == ['low on disk', 'over'], connection)
    wait_until(lambda: server.queues() == {'q': (1, 0, 0)})


def test_time_can_be_moved_forward(server: BrokerServer, channel: BlockingChannel) -> None:
    channel.confirm_delivery()
    channel.queue_declare('q', arguments={'x-message-ttl': 60_000})
    channel.basic_publish('', 'q', b'')
    server.advance(59)
    assert server.queues() == {'q': (1, 0, 0)}
    server.advance(2)
    assert server.queues() == {'q': (0, 0, 0)}


def test_the_powers_need_a_running_broker() -> None:
    with pytest.raises(RuntimeError, match='not running'):
        BrokerServer().queues()


# Sockets


def test_a_client_that_does_not_read_holds_up_nobody(server: BrokerServer, channel: BlockingChannel) -> None:
    channel.queue_declare('flood')
    # Its reader subscribes and then never looks at its socket.
    sleeper = connect(server)
    sleeper.channel().basic_consume('flood', lambda *_: None, auto_ack=True)
    for _ in range(200):
        channel.basic_publish('', 'flood', bytes(100_000))
    channel.queue_declare('q', exclusive=True)
    channel.confirm_delivery()
    channel.basic_publish('', 'q', b'x')
    assert channel.basic_get('q')[2] == b'x'
    assert server.queues()['flood'][0] > 0
    sleeper.close()


def test_what_a_slow_client_left_over_arrives_when_it_reads_again(server: BrokerServer) -> None:
    connection = connect(server)
    channel = connection.channel()
    channel.queue_declare('q', exclusive=True)
    sizes: list[int] = []
    for _ in range(200):
        channel.basic_publish('', 'q', bytes(100_000))
    channel.basic_consume('q', lambda *delivery: sizes.append(len(delivery[3])))
    time.sleep(0.2)
    wait_until(lambda: len(sizes) == 200, connection)
    assert set(sizes) == {100_000}
    connection.close()


def test_it_listens_on_ipv6_where_it_is_asked_to() -> None:
    try:
        socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip('no IPv6 on this machine')
    with BrokerServer('::1') as server:
        assert server.url == f'amqp://guest:guest@[::1]:{server.port}/%2F'
        connect(server).close()


def test_it_listens_on_every_address_of_a_name() -> None:
    with BrokerServer('localhost') as server:
        families = {family for family, *_ in socket.getaddrinfo('localhost', server.port, type=socket.SOCK_STREAM)}
        reached = set()
        for family in families:
            address = '127.0.0.1' if family == socket.AF_INET else '::1'
            with contextlib.suppress(OSError), socket.create_connection((address, server.port), timeout=5):
                reached.add(family)
        assert socket.AF_INET in reached
        connect(server).close()


def test_a_user_can_be_added(server: BrokerServer) -> None:
    server.add_user('reader', PASSWORD, {'/': Permissions('', '', '.*')})
    url = server.url.replace('guest:guest', f'reader:{PASSWORD}')
    connection = pika.BlockingConnection(pika.URLParameters(url))
    with pytest.raises(ChannelClosedByBroker, match='403'):
        connection.channel().queue_declare('q')
    connection.close()


def test_many_clients_come_and_go(server: BrokerServer) -> None:
    for _ in range(3):
        clients = [socket.create_connection(('127.0.0.1', server.port)) for _ in range(100)]
        for client in clients:
            client.send(b'AMQP\x00\x00\x09\x01')
        for client in clients:
            client.close()
    connect(server).close()
    wait_until(lambda: server.drop_connections() == 0)


# The command


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, '-m', 'postage.broker', *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_listens_and_ends_on_a_signal(
    run: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = run('--port', '0')
    assert process.stdout is not None
    line = process.stdout.readline()
    assert 'for development and tests' in line
    assert line.split()[-1].startswith('amqp://guest@127.0.0.1:')
    address = line.split()[-1].replace('guest@', 'guest:guest@') + '%2F'
    connection = pika.BlockingConnection(pika.URLParameters(address))
    process.send_signal(number)
    assert process.wait(PATIENCE) == 0
    assert process.communicate() == ('', '')
    with contextlib.suppress(AMQPConnectionError):
        connection.close()


def test_the_command_takes_user_password_and_virtual_hosts(run: Callable[..., subprocess.Popen[str]]) -> None:
    process = run('--port', '0', '--user', 'me', '--password', PASSWORD, '--vhost', 'one', '--vhost', 'two')
    assert process.stdout is not None
    line = process.stdout.readline()
    assert not sightings(line)
    port = line.strip().rstrip('/').rpartition(':')[2]
    for host in ('one', 'two'):
        pika.BlockingConnection(pika.URLParameters(f'amqp://me:{PASSWORD}@127.0.0.1:{port}/{host}')).close()


def test_the_command_tells_in_one_line_that_its_port_is_taken_and_what_to_do(
    run: Callable[..., subprocess.Popen[str]], server: BrokerServer
) -> None:
    process = run('--port', str(server.port))
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert output == ''
    assert errors.startswith(f'postage broker: cannot listen on 127.0.0.1:{server.port}: Address already in use. ')
    assert '--port 5673' in errors
    assert 'POSTAGE_URL=amqp://' in errors
    assert errors.count('\n') == 1


def test_the_verbose_command_tells_what_happens(run: Callable[..., subprocess.Popen[str]]) -> None:
    process = run('--port', '0', '--verbose')
    assert process.stdout is not None
    port = process.stdout.readline().strip().rstrip('/').rpartition(':')[2]
    connection = pika.BlockingConnection(pika.URLParameters(f'amqp://guest:guest@127.0.0.1:{port}/%2F'))
    channel = connection.channel()
    channel.queue_declare('seen')
    channel.basic_publish('', 'seen', b'')
    connection.close()
    process.terminate()
    errors = process.communicate(timeout=PATIENCE)[1]
    lines = (
        "user 'guest' opened virtual host '/'",
        "classic queue 'seen' declared",
        "publish to '' with key 'seen', 0 bytes, for 'seen'",
    )
    for text in lines:
        assert text in errors
