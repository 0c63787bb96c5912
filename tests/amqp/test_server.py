"""Which broker it is, and the parameters of a connection that it takes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pika.frame
import pika.spec
import pytest

from postage import errors, messaging
from postage.amqp.server import UNKNOWN, Server, server_of
from support.messaging import EQK, TIMEOUT, Bench, EchoProducer
from support.proxy import Proxy


def test_a_connection_knows_its_broker_and_its_version(bench: Bench) -> None:
    server = bench.producer().conn_broker.server
    assert server.product in ('RabbitMQ', 'Postage')
    assert len(server.version) >= 2
    assert str(server) == f'{server.product} {".".join(map(str, server.version))}'


def test_what_a_connection_knows_of_its_broker_outlives_a_loss(bench: Bench, proxied: Proxy) -> None:
    connection = bench.producer().conn_broker
    server = connection.server
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost')
    assert connection.server is server


@pytest.mark.parametrize(
    ('properties', 'server'),
    [
        ({'product': 'RabbitMQ', 'version': '3.10.8'}, Server('RabbitMQ', (3, 10, 8))),
        ({'product': 'RabbitMQ', 'version': '4.3.0-rc.1+g12'}, Server('RabbitMQ', (4, 3, 0))),
        ({'product': 'Another', 'version': 'seven'}, Server('Another')),
        ({'product': 7, 'version': 4.3}, UNKNOWN),
        ({}, UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_a_broker_is_what_it_says(properties: dict[str, object] | None, server: Server) -> None:
    assert server_of(properties) == server


def test_what_depends_on_the_version_depends_on_the_product_too() -> None:
    assert Server('RabbitMQ', (4, 3, 6)).delays_retries
    assert Server('RabbitMQ', (5,)).delays_retries
    assert not Server('RabbitMQ', (4, 2, 9)).delays_retries
    assert not Server('Another', (4, 3)).delays_retries
    assert [Server('RabbitMQ', version).frame_min for version in ((4, 0, 5), (4, 1))] == [4096, 8192]


@pytest.mark.parametrize('make', [EchoProducer, lambda: messaging.GenericConsumer(EQK)])
def test_a_frame_max_is_agreed_to_or_is_an_error_at_once_that_names_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, make: object
) -> None:
    assert callable(make)
    least = bench.producer().conn_broker.server.frame_min
    for frame_max in (4096, 8191, 8192):
        monkeypatch.setenv('POSTAGE_URL', f'{bench.broker.url}?frame_max={frame_max}')
        begun = time.monotonic()
        if frame_max >= least:
            bench.closing(make())
            continue
        with pytest.raises(errors.BrokerError, match=rf'takes no frame_max below {least}, as {frame_max} is'):
            make()
        assert time.monotonic() - begun < 2
    assert not bench.log.find('ERROR'), bench.log.text


@contextlib.contextmanager
def introducing_itself_only(version: str) -> Iterator[str]:
    """The URL of a broker that says who it is, and then nothing more."""
    properties = {'product': 'RabbitMQ', 'version': version, 'capabilities': {}}
    start = pika.frame.Method(0, pika.spec.Connection.Start(0, 9, properties, b'PLAIN', b'en_US')).marshal()
    with contextlib.ExitStack() as open_sockets, socket.create_server(('127.0.0.1', 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    open_sockets.callback(peer.close)
                    peer.sendall(start)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f'amqp://127.0.0.1:{server.getsockname()[1]}/'
        server.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT)


def test_a_broker_that_falls_silent_in_the_middle_of_the_handshake_is_waited_for_and_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """pika fails at an assertion of its own where an attempt is ended at that stage."""
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.5')
    with introducing_itself_only('4.3.6') as url:
        monkeypatch.setenv('POSTAGE_URL', url)
        with pytest.raises(messaging.BrokerUnavailable):
            EchoProducer()
    assert not [record for record in caplog.records if record.name == 'postage' and record.levelname == 'ERROR']


@pytest.mark.parametrize('lane', ['direct', 'thread'])
def test_a_frame_max_is_refused_before_anything_is_agreed(monkeypatch: pytest.MonkeyPatch, lane: str) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', lane)
    with introducing_itself_only('4.1.0') as url:
        monkeypatch.setenv('POSTAGE_URL', f'{url}?frame_max=4096')
        with pytest.raises(errors.BrokerError, match=r'RabbitMQ 4\.1\.0 takes no frame_max below 8192, as 4096 is'):
            EchoProducer()


def test_a_connection_without_a_channel_left_is_an_error_that_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_URL', f'{bench.broker.url}?channel_max=4')
    first, *others = [bench.consumer() for _ in range(4)]
    assert all(consumer.channel.is_open for consumer in others)
    with pytest.raises(errors.BrokerError, match='all 4 channels are in use: see channel_max'):
        _ = first.channel
    producer = bench.producer()
    producer.message_echo('goes on').wait(TIMEOUT)
