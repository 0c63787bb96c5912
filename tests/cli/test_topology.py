"""``postage topology`` shows what components declare, as tables and graphs, and against the broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from postage.cli.main import postage as group
from support.messaging import Bench

SHOP = """
from postage import messaging

class OrderExchange(messaging.Exchange):
    name = 'order-exchange'
    exchange_type = 'topic'

DEAD = {'arguments': {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}}

class Orders(messaging.MessageProcessor):
    eqk = [(OrderExchange, [({'name': 'orders', 'flags': DEAD}, 'order.#'), ('audit', '#')])]

    def __init__(self):
        super().__init__({}, self.eqk)
"""


@pytest.fixture
def topology(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """The command, in this process, where there is a component to be found."""
    (tmp_path / 'topology_shop.py').write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(group, ['topology', 'topology_shop:Orders', *words])


def output(result: Result, status: int = 0) -> str:
    assert result.exit_code == status, result.output
    return str(result.output)


def test_it_shows_exchanges_keys_and_queues(bench: Bench, topology: Callable[..., Result]) -> None:
    lines = [line.split() for line in output(topology()).splitlines()]
    assert ['order-exchange', 'topic', 'order.#', 'orders'] in lines
    assert ['order-exchange', 'topic', '#', 'audit'] in lines
    assert ['orders', 'dead'] in lines
    assert bench.broker.queues() == {}


def test_it_prints_json(topology: Callable[..., Result]) -> None:
    found = json.loads(output(topology('--json')))
    assert [queue['name'] for queue in found['queues']] == ['orders', 'audit']
    assert found['bindings'][0] == {'exchange': 'order-exchange', 'routing_key': 'order.#', 'queue': 'orders'}


def test_it_draws_graphs(topology: Callable[..., Result]) -> None:
    dot = output(topology('--dot'))
    assert '"order-exchange" -> "orders" [label="order.#"];' in dot
    assert '"orders" -> "dead" [label="dead letters", style=dashed];' in dot
    mermaid = output(topology('--mermaid')).splitlines()
    assert mermaid[0] == 'flowchart LR'
    assert '  n0(["order-exchange"])' in mermaid
    assert '  n0 -->|"order.#35;"| n1' in mermaid
    assert '  n1 -.->|"dead letters"| n3' in mermaid


def test_what_the_broker_lacks_or_has_otherwise_is_told(bench: Bench, topology: Callable[..., Result]) -> None:
    bench.bare.exchange_declare('order-exchange', 'direct', durable=True)
    bench.bare.queue_declare('audit', durable=True)
    said = output(topology('--check'), 1)
    assert "queue 'orders' is missing" in said
    assert "exchange 'order-exchange': " in said
    assert "queue 'audit'" not in said
    assert bench.broker.queues() == {'audit': 0}


def test_a_broker_that_has_all_of_it_is_as_it_should_be(bench: Bench, topology: Callable[..., Result]) -> None:
    bench.bare.exchange_declare('order-exchange', 'topic', durable=True)
    bench.bare.queue_declare('audit', durable=True)
    arguments = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}
    bench.bare.queue_declare('orders', durable=True, arguments=arguments)
    output(topology('--check'))


def test_what_is_no_component_is_told(bench: Bench) -> None:
    result = CliRunner().invoke(group, ['topology', 'nonsense'])
    assert result.exit_code == 2
    assert 'is no MODULE:NAME' in result.output
