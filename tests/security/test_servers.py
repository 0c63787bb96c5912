"""No server takes a component down: whatever one sends ends in a clear error, a slow reconnect, and no memory."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from postage import messaging
from support.messaging import EQK, EchoProducer, LogBook, eventually
from support.soak import IS_SOAK, SEED, runs

from .fake_server import AFTER_LOGIN, BEFORE_LOGIN, FakeServer, Peer, drawn

MEGABYTES = 20  # that a client may need more than before
WATCHED = 0.4  # seconds in which the attempts to connect are counted
ATTEMPTS = 7  # that growing pauses leave room for in that time, at each of two connections
LINES = 60  # that may be logged meanwhile
FLOOD = 0.6 if IS_SOAK else 0.2  # seconds

Misbehaviour = Callable[[Peer], None]


@pytest.fixture
def log() -> Iterator[LogBook]:
    book, logger = LogBook(), logging.getLogger('postage')
    logger.addHandler(book)
    yield book
    logger.removeHandler(book)


def memory(field: str) -> float:
    """A field of this process's status, in megabytes."""
    found = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    assert found is not None
    return int(found.group(1)) / 1024


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """What is in the ``with`` needs no more memory than is allowed, the server's own included."""
    Path('/proc/self/clear_refs').write_text('5')  # the peak is that of now
    before = memory('VmRSS')
    yield
    assert memory('VmHWM') - before < MEGABYTES


def test_there_are_enough_of_them() -> None:
    assert len(BEFORE_LOGIN) + len(AFTER_LOGIN) >= 25


@pytest.mark.parametrize(('misbehave', 'said'), BEFORE_LOGIN.items(), ids=lambda each: getattr(each, '__name__', ''))
def test_a_server_that_misbehaves_before_the_login_is_told_of_and_approached_slowly(
    misbehave: Misbehaviour, said: str, log: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', str(WATCHED))
    with FakeServer(misbehave, FLOOD) as server, bounded_memory():
        monkeypatch.setenv('POSTAGE_URL', server.url)
        with pytest.raises(messaging.BrokerError) as caught:
            messaging.GenericConsumer(EQK)
        assert server.connections <= ATTEMPTS
    assert re.search(said, str(caught.value)), caught.value
    assert_fit_to_be_read(log)


@pytest.mark.parametrize('lane', ['direct', 'thread'])
@pytest.mark.parametrize(('misbehave', 'said'), AFTER_LOGIN.items(), ids=lambda each: getattr(each, '__name__', ''))
def test_a_server_that_misbehaves_later_is_told_of_and_approached_slowly(
    misbehave: Misbehaviour, said: str, lane: str, log: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_FAST_LANE', lane)
    with FakeServer(misbehave, FLOOD) as server, bounded_memory():
        monkeypatch.setenv('POSTAGE_URL', server.url)
        with client():
            eventually(lambda: server.connections and re.search(said, log.text or 'nothing'))
            before = server.connections
            time.sleep(WATCHED)
            assert server.connections - before <= 2 * ATTEMPTS
    assert_fit_to_be_read(log)


@pytest.fixture(params=['plain', 'TLS'])
def tls(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext | None:
    """How the fake server shows who it is, if it does; the environment has its clients trust that."""
    if request.param == 'plain':
        return None
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert('localhost').configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / 'authority.pem'))
    monkeypatch.setenv('SSL_CERT_FILE', str(tmp_path / 'authority.pem'))
    return context


@pytest.mark.timeout(1800 if IS_SOAK else 60)
def test_whatever_servers_send_and_whenever_a_client_can_be_closed_and_needs_no_memory(
    tls: ssl.SSLContext | None, log: LogBook, monkeypatch: pytest.MonkeyPatch, record_note: Callable[[str], None]
) -> None:
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.2')
    monkeypatch.setattr(logging.getLogger('postage'), 'propagate', False)  # pytest keeps all that it is told
    number = runs(short=20, long=1000)
    with bounded_memory():
        for seed in range(SEED, SEED + number):
            with FakeServer(drawn(random.Random(seed)), FLOOD, tls) as server:
                monkeypatch.setenv('POSTAGE_URL', server.url)
                with client(0.05):
                    eventually(lambda server=server: server.connections)
                    time.sleep(0.05)
                assert server.connections <= 2 * ATTEMPTS, f'seed {seed}'
            assert_fit_to_be_read(log)
            log.lines.clear()
    record_note(f'{number} drawn servers, {"plain" if tls is None else "TLS"}, seeds from {SEED}')


@contextlib.contextmanager
def client(seconds: float = 0.2) -> Iterator[None]:
    """A consumer and a producer that try to work, in a thread of their own.

    :param seconds: for which closing their connections may take
    """
    open_things: list[Any] = []

    def work() -> None:
        with contextlib.suppress(messaging.PostageError):
            open_things.append(messaging.GenericConsumer(EQK))
            open_things[-1].delivery_source.begin(lambda: None)
            open_things.append(EchoProducer())
            open_things[-1].message_echo('x')

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        from postage.amqp.registry import close_all

        close_all(seconds)
        thread.join(10)
        assert not thread.is_alive()
        for thing in open_things:
            thing.publish_timeout = 0.1
            thing.close()


def assert_fit_to_be_read(log: LogBook) -> None:
    """There are not too many lines, and none of them has what a terminal would obey."""
    assert len(log.lines) <= LINES, log.text[:3000]
    assert not [line for line in log.lines if not line.replace('\n', '').isprintable()]


def test_a_handler_that_reads_deep_headers_writes_few_lines(log: LogBook) -> None:
    from postage.amqp.frames import decode_properties
    from support.messaging import HOSTILE

    for headers in HOSTILE.values():
        with pytest.raises(messaging.DecodingError) as caught:
            decode_properties(b'\x20\0' + headers.raw)
        import traceback

        assert len(''.join(traceback.format_exception(caught.value)).splitlines()) < 10
