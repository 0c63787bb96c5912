"""A connection that says nothing any more, though nobody has closed it, is noticed by its heartbeats and replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from support.messaging import TIMEOUT, Bench, Echo, eventually
from support.proxy import Proxy

HEARTBEAT = 1
NOTICED = 3 * HEARTBEAT + 1.0
"""Seconds: two heartbeats of silence, a look every half heartbeat, and some for a slow machine."""


@pytest.fixture
def restless(bench: Bench, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The environment leads through a proxy, with the shortest heartbeat that AMQP has."""
    monkeypatch.setenv('POSTAGE_URL', proxy.url(bench.broker.url, heartbeat=HEARTBEAT))
    yield proxy
    proxy.cut()


def test_a_half_open_connection_is_noticed_and_everything_goes_on(bench: Bench, restless: Proxy) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    producer.message_echo('before').wait(TIMEOUT)
    assert producer.rpc_echo('before').body['content']['value'] == 'before'
    begin = time.monotonic()
    restless.swallow()
    receipt = producer.message_echo('into the void')
    answer = producer.rpc_future_echo('asked in vain', _timeout=TIMEOUT, _max_retry=1)
    receipt.wait(TIMEOUT)
    assert time.monotonic() - begin < NOTICED
    for role in ('publishing', 'consuming'):
        bench.log.expect('was lost', role, 'nothing was received')
        bench.log.expect(f'again ({role})')
    assert answer.result(TIMEOUT).body['content']['value'] == 'asked in vain'
    seen = [echo.seen.next()]
    while seen[-1] != 'into the void':
        seen.append(echo.seen.next())
    producer.message_echo('after').wait(TIMEOUT)
    while seen[-1] != 'after':
        seen.append(echo.seen.next())


def test_an_idle_connection_over_a_slow_network_is_kept_by_its_heartbeats(bench: Bench, restless: Proxy) -> None:
    producer, consumer = bench.producer(), bench.consumer()
    restless.delay(0.4 * HEARTBEAT)
    threading.Event().wait(3.5 * HEARTBEAT)
    producer.message_echo('text').wait(TIMEOUT)
    assert not bench.log.find('was lost')
    assert producer.conn_broker.is_open
    assert consumer.conn_broker.is_open
    assert restless.accepted == 2


def test_a_broker_that_hangs_during_the_handshake_is_given_up_and_tried_again(
    bench: Bench, restless: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a time limit of its own ends that: heartbeats begin when the handshake is over."""
    monkeypatch.setenv('POSTAGE_URL', restless.url(bench.broker.url, stack_timeout=1))
    producer = bench.producer()
    restless.swallow(new_ones=True)
    restless.cut()
    swallowed = restless.swallowed
    receipt = producer.message_echo('text')
    eventually(lambda: restless.swallowed > swallowed)
    restless.resume()
    begin = time.monotonic()
    receipt.wait(TIMEOUT)
    assert 0.5 < time.monotonic() - begin < 5.0
