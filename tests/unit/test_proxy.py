"""The proxy does to connections what the tests that use it ask for."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from support.proxy import Proxy

PATIENCE = 5.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where the proxy leads to."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[Proxy]:
    with Proxy('127.0.0.1', listener.getsockname()[1]) as proxy:
        yield proxy


@contextlib.contextmanager
def pair(proxy: Proxy, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection through the proxy."""
    with socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE) as client:
        broker, _ = listener.accept()
        with broker:
            broker.settimeout(PATIENCE)
            yield client, broker


def receive(sock: socket.socket, size: int) -> bytes:
    data = b''
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, 'the connection has ended'
        data += more
    return data


def silent(sock: socket.socket) -> bool:
    """Whether nothing comes, not even an end, for a moment."""
    sock.settimeout(0.1)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE)
    return False


def test_it_passes_bytes_on_in_both_directions(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        client.sendall(b'ping')
        assert receive(broker, 4) == b'ping'
        broker.sendall(b'pong')
        assert receive(client, 4) == b'pong'
        assert proxy.connections == 1


def test_it_passes_much_on_to_a_slow_reader(proxy: Proxy, listener: socket.socket) -> None:
    data = bytes(range(256)) * 40_000
    with pair(proxy, listener) as (client, broker):
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        assert receive(broker, len(data)) == data
        sender.join(PATIENCE)


def test_it_passes_an_end_on(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        client.sendall(b'last')
        client.close()
        assert receive(broker, 4) == b'last'
        assert broker.recv(1) == b''


def test_swallowed_bytes_and_ends_never_arrive(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        proxy.swallow()
        client.sendall(b'lost')
        broker.sendall(b'lost')
        assert silent(client)
        client.close()
        assert silent(broker)


def test_a_connection_that_has_lost_bytes_stays_half_open(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        proxy.swallow()
        client.sendall(b'lost')
        assert silent(broker)
        proxy.resume()
        client.sendall(b'behind the gap')
        assert silent(broker)


def test_a_new_connection_works_while_an_old_one_is_half_open(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (old, _):
        proxy.swallow()
        with pair(proxy, listener) as (client, broker):
            client.sendall(b'ping')
            assert receive(broker, 4) == b'ping'
        assert silent(old)


def test_swallow_may_hold_for_new_connections_as_well(proxy: Proxy, listener: socket.socket) -> None:
    proxy.swallow(new_ones=True)
    with pair(proxy, listener) as (client, broker):
        client.sendall(b'lost')
        assert silent(broker)


def test_what_was_held_arrives_later(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        proxy.hold()
        client.sendall(b'held')
        assert silent(broker)
        proxy.resume()
        assert receive(broker, 4) == b'held'


def test_delayed_bytes_arrive_later_in_their_order(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        proxy.delay(0.1)
        begin = time.monotonic()
        for number in range(10):
            client.sendall(b'%d' % number)
        assert receive(broker, 10) == b'0123456789'
        assert 0.1 <= time.monotonic() - begin < 2.0


def test_limited_bytes_arrive_at_that_rate_and_in_their_order(proxy: Proxy, listener: socket.socket) -> None:
    data = bytes(range(256)) * 8
    with pair(proxy, listener) as (client, broker):
        proxy.bandwidth(10_000)
        begin = time.monotonic()
        client.sendall(data)
        assert receive(broker, len(data)) == data
        assert 0.15 <= time.monotonic() - begin < 2.0


def test_one_direction_can_be_limited_alone(proxy: Proxy, listener: socket.socket) -> None:
    data = bytes(10_000)
    proxy.bandwidth(100, towards='broker')
    with pair(proxy, listener) as (client, broker):
        broker.sendall(data)
        assert receive(client, len(data)) == data
        client.sendall(data)
        receive(broker, 1)
        proxy.resume()
        receive(broker, len(data) - 1)


def test_the_sender_of_what_does_not_get_through_has_to_wait(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        proxy.bandwidth(1_000)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(50_000_000))
        receive(broker, 1)


@pytest.mark.parametrize('reset', [True, False])
def test_cut_ends_a_connection_in_good_order_or_not(proxy: Proxy, listener: socket.socket, reset: bool) -> None:
    with pair(proxy, listener) as (client, broker):
        assert proxy.cut(reset=reset) == 1
        for sock in (client, broker):
            if reset:
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
            else:
                assert sock.recv(1) == b''
        assert proxy.connections == 0


def test_one_side_can_be_cut_alone(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        proxy.cut(reset=False, side='client')
        assert client.recv(1) == b''
        assert silent(broker)
        proxy.cut(reset=False)
        assert broker.recv(1) == b''


def test_a_connection_can_be_cut_after_so_many_bytes(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        proxy.cut_after(3, towards='client')
        broker.sendall(b'12345')
        with pytest.raises(ConnectionResetError):
            receive(client, 4)


def test_refuse_refuses_new_connections_alone_and_accept_takes_them(proxy: Proxy, listener: socket.socket) -> None:
    with pair(proxy, listener) as (client, broker):
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE)
        client.sendall(b'ping')
        assert receive(broker, 4) == b'ping'
        proxy.accept()
        with pair(proxy, listener):
            assert proxy.accepted == 2


def test_where_nobody_listens_the_connection_is_reset(proxy: Proxy, listener: socket.socket) -> None:
    def connect_and_read() -> None:
        with socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE) as client:
            client.recv(1)

    listener.close()
    with pytest.raises(ConnectionResetError):
        connect_and_read()


def test_a_url_is_led_through_the_proxy(proxy: Proxy) -> None:
    url = proxy.url('amqp://guest:guest@127.0.0.1:5672/test', heartbeat=4)
    assert url == f'amqp://guest:guest@127.0.0.1:{proxy.port}/test?heartbeat=4'
