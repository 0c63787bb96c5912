"""Over TLS everything works in every lane, and one thread alone touches the connection."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from postage.broker.server import BrokerServer
from support.brokers import Broker, RabbitMQ
from support.lanes import LANES
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoProducer, eventually

SIZES = [0, 1, 200_000, 3] * 3


@pytest.fixture(scope='module')
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope='module')
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the key and the certificate of 127.0.0.1."""
    path = tmp_path_factory.mktemp('tls') / 'server.pem'
    authority.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture
def port(broker: Broker, certificate: Path) -> Iterator[int]:
    """Where the broker of this test speaks TLS."""
    if isinstance(broker, RabbitMQ):
        yield broker.node.listen_with_tls(certificate)
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with BrokerServer(tls=context) as server:
        yield server.port


@pytest.fixture
def hup(port: int, authority: trustme.CA) -> dict[str, Any]:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return {'host': '127.0.0.1', 'port': port, 'user': 'guest', 'password': 'guest', 'ssl': trusting}


@pytest.mark.parametrize('lane', LANES)
def test_messages_and_answers_of_all_sizes_arrive(
    bench: Bench, hup: dict[str, Any], monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', lane)
    vhost = bench.broker.vhost
    echo = Echo(EQK, hup=hup, vhost=vhost)
    bench.run(echo)
    producer: Any = bench.producer(EchoProducer, hup=hup, vhost=vhost)
    texts = [str(number) * size for number, size in enumerate(SIZES)]
    for text in texts:
        producer.message_echo(text)
    producer.flush(TIMEOUT)
    assert echo.seen.take(len(texts)) == texts
    for text in texts:
        assert producer.rpc_echo(text).body['content']['value'] == text
    for connection in (producer.conn_broker, echo.consumer.conn_broker):
        assert not connection.link.is_direct
        assert connection.link.turn is None


@pytest.mark.parametrize('lane', LANES)
def test_a_connection_that_is_given_up_is_made_again(
    bench: Bench, hup: dict[str, Any], monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', lane)
    producer: Any = bench.producer(EchoProducer, hup=hup, vhost=bench.broker.vhost)
    producer.message_echo('before').wait(TIMEOUT)
    connection = producer.conn_broker
    first = connection.link
    connection.tell(first.close)
    eventually(lambda: connection.link is not None and connection.link is not first)
    producer.message_echo('after').wait(TIMEOUT)
