"""A certificate that cannot be right is told at once, on either side; and one may say who a program is."""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from postage import messaging
from postage.broker.server import BrokerServer
from support.brokers import Broker, RabbitMQ
from support.messaging import EQK, TIMEOUT, Bench, EchoProducer
from support.rabbitmq_node import binary

NOW = datetime.datetime.now(datetime.timezone.utc)


class Files:
    """An authority, and files with certificates."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.stranger = trustme.CA()
        self._folder = folder
        self.authority_file = folder / 'authority.pem'
        self.authority.cert_pem.write_to_path(self.authority_file)

    def write_client(self, name: str, issuer: trustme.CA) -> Path:
        """A certificate as a program has it: its common name says who it is, and it is good for clients alone."""
        signer = serialization.load_pem_private_key(issuer.private_key_pem.bytes(), None)
        issued_by = x509.load_pem_x509_certificate(issuer.cert_pem.bytes()).subject
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'component')]))
            .issuer_name(issued_by)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=1))
            .not_valid_after(NOW + datetime.timedelta(days=1))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
        )
        pem = serialization.Encoding.PEM
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path = self._folder / f'{name}.pem'
        path.write_bytes(key.private_bytes(pem, *plain) + certificate.public_bytes(pem))
        return path

    def write(self, name: str, certificate: trustme.LeafCert) -> Path:
        path = self._folder / f'{name}.pem'
        certificate.private_key_and_cert_chain_pem.write_to_path(path)
        return path


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp('tls'))


SERVERS = {
    'right': lambda files: files.authority.issue_cert('127.0.0.1'),
    'of an unknown authority': lambda files: files.stranger.issue_cert('127.0.0.1'),
    'expired': lambda files: files.authority.issue_cert(
        '127.0.0.1', not_before=NOW - datetime.timedelta(days=9), not_after=NOW - datetime.timedelta(days=1)
    ),
    'of another name': lambda files: files.authority.issue_cert('example.org'),
}
CLIENTS = {
    'none': None,
    'right': lambda files: files.authority,
    'of an unknown authority': lambda files: files.stranger,
}
"""By whom the certificate of a program is issued."""


class Listener:
    """Where the broker of a test speaks TLS; each call listens on one more port."""

    def __init__(self, broker: Broker, files: Files) -> None:
        self._broker = broker
        self._files = files
        self._servers: list[BrokerServer] = []

    def listen(self, server: str, demands_certificate: bool) -> int:
        certificate = self._files.write(f'server {server}', SERVERS[server](self._files))
        authority = self._files.authority_file if demands_certificate else None
        if isinstance(self._broker, RabbitMQ):
            return self._broker.node.listen_with_tls(certificate, authority)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
        context.load_cert_chain(certificate)
        if demands_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
        self._servers.append(BrokerServer(tls=context))
        self._servers[-1].start()
        return self._servers[-1].port

    def close(self) -> None:
        for server in self._servers:
            server.stop()


@pytest.fixture
def listener(broker: Broker, files: Files) -> Iterator[Listener]:
    listener = Listener(broker, files)
    yield listener
    listener.close()


def hup_of(files: Files, port: int, client: str = 'none', **more: Any) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=files.authority_file)
    make: Any = CLIENTS[client]
    if make is not None:
        context.load_cert_chain(files.write_client(f'client {client}', make(files)))
    return {'host': '127.0.0.1', 'port': port, 'user': 'guest', 'password': 'guest', 'ssl': context, **more}


@pytest.mark.parametrize('server', SERVERS)
@pytest.mark.parametrize('role', [messaging.GenericConsumer, EchoProducer])
def test_a_certificate_of_the_broker_that_cannot_be_right_is_told_at_once(
    bench: Bench, listener: Listener, files: Files, server: str, role: Any
) -> None:
    hup = hup_of(files, listener.listen(server, demands_certificate=False))
    if server == 'right':
        made = bench.closing(role(hup=hup, vhost=bench.broker.vhost))
        assert made.conn_broker.link is not None
        return
    began = time.monotonic()
    with pytest.raises(messaging.CertificateRefused, match=r'cannot be right: .*CERTIFICATE_VERIFY_FAILED'):
        role(hup=hup, vhost=bench.broker.vhost)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize('client', CLIENTS)
def test_where_the_broker_demands_a_certificate_one_it_refuses_is_told_at_once(
    bench: Bench, listener: Listener, files: Files, client: str
) -> None:
    hup = hup_of(files, listener.listen('right', demands_certificate=True), client)
    if client == 'right':
        producer = bench.closing(EchoProducer(hup=hup, vhost=bench.broker.vhost))
        bench.collect()
        producer.message_echo(1).wait(TIMEOUT)
        return
    began = time.monotonic()
    with pytest.raises(messaging.CertificateRefused, match='refused the certificate of this program'):
        EchoProducer(hup=hup, vhost=bench.broker.vhost)
    assert time.monotonic() - began < 5


def test_one_of_several_hosts_may_have_a_wrong_certificate(bench: Bench, listener: Listener, files: Files) -> None:
    wrong = listener.listen('of another name', demands_certificate=False)
    right = listener.listen('right', demands_certificate=False)
    hup = hup_of(files, right)
    hup['host'] = f'127.0.0.1:{wrong},127.0.0.1:{right}'
    bench.closing(EchoProducer(hup=hup, vhost=bench.broker.vhost))
    bench.log.expect('ERROR', 'cannot be right')
    hup['host'] = f'127.0.0.1:{wrong},127.0.0.1:{wrong}'
    with pytest.raises(messaging.CertificateRefused):
        EchoProducer(hup=hup, vhost=bench.broker.vhost)


def test_a_broker_without_tls_gets_no_credentials_of_a_program_that_wants_it(
    bench: Bench, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.5')
    with pytest.raises(messaging.BrokerUnavailable, match='SSL'):
        messaging.GenericConsumer(EQK, hup=hup_of(files, bench.broker.port), vhost=bench.broker.vhost)


def test_a_certificate_says_who_a_program_is(rabbitmq: RabbitMQ, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '10')
    node = rabbitmq.node
    with node.knowing_by_certificate('component', rabbitmq.vhost):
        port = node.listen_with_tls(files.write('server', SERVERS['right'](files)), files.authority_file)
        hup = hup_of(files, port, 'right', mechanism='EXTERNAL')
        del hup['user'], hup['password']
        with EchoProducer(hup=hup, vhost=rabbitmq.vhost) as producer:
            producer.message_echo(1).wait(TIMEOUT)
            vhost = binary(rabbitmq.vhost)
            users = f'[U || [{{user, U}}, {{vhost, {vhost}}}] <- rabbit_networking:connection_info_all([user, vhost])]'
            assert node.evaluate(users) == 'component'
        node.evaluate('rabbit_auth_backend_internal:delete_user(<<"component">>, <<"tests">>), ""')
        with pytest.raises(messaging.AuthenticationFailed, match='no user for the certificate'):
            EchoProducer(hup=hup, vhost=rabbitmq.vhost)


def test_the_url_can_name_the_mechanism_and_it_needs_tls() -> None:
    from postage.settings import broker_settings

    assert broker_settings('amqps://host/?auth_mechanism=EXTERNAL', environ={}).mechanism == 'EXTERNAL'
    assert broker_settings('amqps://host/?auth_mechanism=external', environ={}).mechanism == 'EXTERNAL'
    assert broker_settings('amqps://host/', environ={}).mechanism == 'PLAIN'
    settings = broker_settings({'host': 'host', 'ssl': True, 'mechanism': 'EXTERNAL'}, environ={})
    assert [type(each.credentials).__name__ for each in settings.parameters()] == ['ExternalCredentials']
    assert str(settings) == 'amqps://host:5671/%2F'
    for wrong in ('amqp://host/?auth_mechanism=EXTERNAL', 'amqps://host/?auth_mechanism=MAGIC'):
        with pytest.raises(messaging.ConfigurationError, match='EXTERNAL'):
            broker_settings(wrong, environ={})
