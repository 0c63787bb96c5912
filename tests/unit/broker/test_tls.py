"""The broker speaks TLS where it is given a certificate."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
import trustme

from postage.broker import BrokerServer
from support.channels import Reader, bodies, publish
from support.programs import Module


@pytest.fixture(scope='module')
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope='module')
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert('localhost', '127.0.0.1')


@pytest.fixture
def server(certificate: trustme.LeafCert) -> Iterator[BrokerServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    with BrokerServer(tls=context) as server:
        yield server


def parameters(url: str, authority: trustme.CA) -> pika.URLParameters:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    parameters = pika.URLParameters(url)
    parameters.ssl_options = pika.SSLOptions(trusting, '127.0.0.1')
    return parameters


def test_clients_that_trust_the_certificate_are_served(server: BrokerServer, authority: trustme.CA) -> None:
    assert server.url.startswith('amqps://guest:guest@127.0.0.1:')
    connection = pika.BlockingConnection(parameters(server.url, authority))
    channel = connection.channel()
    channel.queue_declare('q')
    channel.confirm_delivery()
    large = bytes(range(256)) * 10_000
    publish(channel, 'q', b'x', large, b'')
    assert bodies(channel, 'q') == [b'x', large, b'']
    connection.close()


def test_what_is_sent_to_a_slow_reader_arrives_whole(server: BrokerServer, authority: trustme.CA) -> None:
    connection = pika.BlockingConnection(parameters(server.url, authority))
    channel = connection.channel()
    channel.queue_declare('q')
    publish(channel, 'q', *[bytes(100_000)] * 100)
    # More is on its way than the sockets hold, before the first byte of it is read.
    other = pika.BlockingConnection(parameters(server.url, authority))
    reader = Reader(other.channel(), 'q', auto_ack=True)
    publish(channel, 'q', *[bytes(100_000)] * 100)
    assert {len(body) for body in reader.wait_for(200)} == {100_000}
    other.close()
    connection.close()


def test_a_client_that_does_not_speak_tls_is_turned_away_and_the_next_one_served(
    server: BrokerServer, authority: trustme.CA
) -> None:
    plain = socket.create_connection(('127.0.0.1', server.port), timeout=10)
    with plain, contextlib.suppress(ConnectionError):
        plain.sendall(b'AMQP\x00\x00\x09\x01')
        while plain.recv(100):
            pass
    pika.BlockingConnection(parameters(server.url, authority)).close()


def test_a_client_that_is_slow_with_its_handshake_holds_up_nobody(server: BrokerServer, authority: trustme.CA) -> None:
    with socket.create_connection(('127.0.0.1', server.port)):
        pika.BlockingConnection(parameters(server.url, authority)).close()


def test_the_command_takes_a_certificate(
    run_module: Callable[..., Module], authority: trustme.CA, certificate: trustme.LeafCert, tmp_path: Path
) -> None:
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / 'both.pem'))
    program = run_module('postage.broker', ['--port', '0', '--tls-certificate', str(tmp_path / 'both.pem')])
    address = program.expect('amqps://').split()[-1]
    url = address.replace('guest@', 'guest:guest@') + '%2F'
    pika.BlockingConnection(parameters(url, authority)).close()


def test_the_command_names_a_certificate_that_it_cannot_read(run_module: Callable[..., Module]) -> None:
    program = run_module('postage.broker', ['--port', '0', '--tls-certificate', 'missing.pem'])
    assert program.wait() == 1
    assert program.lines == ['postage broker: cannot use the certificate missing.pem: No such file or directory']
