"""What the other modules show of the fast lane that is the default, in short and for each of the lanes.

``make lanes`` runs all of them in the other one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from postage import messaging
from postage.amqp import publishing
from postage.broker.server import BrokerServer
from support.brokers import Embedded
from support.canary import GUEST
from support.fixtures import bench_on
from support.lanes import LANES
from support.messaging import TIMEOUT, Bench, Echo, EchoExchange, eventually
from support.ports import free_ports
from support.proxy import Proxy
from support.recovery import Load, await_reconnect, let_go


class Internal(messaging.Exchange):
    """Only other exchanges may publish to it."""

    name = 'internal-exchange'
    internal = True


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv('POSTAGE_FAST_LANE', request.param)
    return str(request.param)


@pytest.fixture
def load(lane: str, bench: Bench) -> Iterator[Load]:
    """Messages and RPCs that were under way and all have come to their end."""
    echo = Echo()
    bench.run(echo)
    load = Load(bench, echo)
    load.await_progress()
    yield load
    load.await_progress()
    load.end()
    assert bench.count('echo-queue') == 0


def test_nothing_is_lost_when_connections_are_cut(load: Load, bench: Bench) -> None:
    for times in range(1, 3):
        let_go(bench)
        bench.close_all_connections()
        await_reconnect(bench.log, times)
        load.await_progress()


def test_nothing_is_lost_when_the_network_resets_connections_in_the_middle_of_a_frame(
    lane: str, bench: Bench, proxied: Proxy
) -> None:
    echo = Echo()
    bench.run(echo)
    load = Load(bench, echo)
    load.await_progress()
    for times, size in enumerate([10, 1001], 1):
        proxied.cut_after(size, 'broker')
        proxied.cut_after(size + 5, 'client')
        await_reconnect(bench.log, times)
        load.await_progress()
    load.end()


def test_nothing_is_lost_when_the_broker_closes_the_channel(load: Load, bench: Bench) -> None:
    guilty = bench.producer()
    for _ in range(2):
        refused = guilty.message_echo('nobody may', _eks=[(Internal, 'key')])
        with pytest.raises(messaging.Nacked):
            refused.wait(TIMEOUT)
    bench.log.expect('unconfirmed messages will be sent again')
    assert not bench.log.find('was lost')


def test_a_half_open_connection_is_noticed_and_nothing_is_lost(
    lane: str, embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench_on(embedded, monkeypatch) as bench, Proxy.before(embedded) as proxy:
        monkeypatch.setenv('POSTAGE_URL', proxy.url(embedded.url, heartbeat=1))
        echo = Echo()
        bench.run(echo)
        producer = bench.producer()
        assert producer.rpc_echo('before').body['content']['value'] == 'before'
        begin = time.monotonic()
        proxy.swallow()
        receipt = producer.message_echo('into the void')
        receipt.wait(TIMEOUT)
        assert time.monotonic() - begin < 4.0
        eventually(lambda: echo.seen.next() == 'into the void')
        assert producer.rpc_echo('after').body['content']['value'] == 'after'
        proxy.cut()


def test_a_broker_that_is_started_again_is_found(lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    with BrokerServer('127.0.0.1', port) as first, bench_on(Embedded(first), monkeypatch) as bench:
        echo = Echo()
        bench.run(echo)
        producer = bench.producer()
        producer.message_echo('before').wait(TIMEOUT)
        first.stop()
        receipt = producer.message_echo('while it is down')
        with BrokerServer('127.0.0.1', port, users={'guest': GUEST}):
            receipt.wait(TIMEOUT)
            await_reconnect(bench.log)
            assert producer.rpc_echo('after', _max_retry=4).body['content']['value'] == 'after'
            producer.message_echo('after').wait(TIMEOUT)
            while echo.seen.next() != 'after':
                pass
            bench._end.close()


def test_a_full_window_and_a_broker_that_takes_nothing_make_publishers_wait(
    lane: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, 'WINDOW_MESSAGES', 20)
    echo = Echo()
    bench.run(echo)

    class Impatient(messaging.GenericProducer):
        eks = [(EchoExchange, 'echo-rk')]
        publish_timeout = 0.2

    producer = bench.producer(Impatient)
    producer.message_echo('before').wait(TIMEOUT)
    numbers = itertools.count()

    def publish_until_refused() -> None:
        while True:
            producer.message_echo(next(numbers))

    with bench.memory_alarm(), pytest.raises(messaging.PublishTimeout):
        publish_until_refused()
    producer.flush(TIMEOUT)
    assert echo.seen.take(next(numbers)) == ['before', *range(next(numbers) - 2)]
