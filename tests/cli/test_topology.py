"""``postage topology`` shows what components declare, as tables and graphs, and against the broker."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import pytest
from click.testing import CliRunner, Result

from postage.broker.users import Permissions
from postage.cli.main import postage as group
from support.brokers import RabbitMQ, with_login
from support.canary import canary
from support.messaging import Bench
from support.users import add_user, delete_user

ELSEWHERE = 'amqp://guest@elsewhere.example:5672/%2F'

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

class Elsewhere(messaging.GenericConsumer):
    eqk = [(OrderExchange, [('audit', '#')])]
    hup = {'host': 'elsewhere.example', 'user': 'guest', 'password': 'guest'}
    vhost = '/'

class Another(Elsewhere):
    hup = None
    vhost = 'another'
"""


@pytest.fixture
def topology(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Result]]:
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
    (found,) = json.loads(output(topology('--json')))
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


def test_what_is_declared_on_two_brokers_is_one_document(topology: Callable[..., Result]) -> None:
    own, other = json.loads(output(topology('topology_shop:Elsewhere', '--json')))
    assert [queue['name'] for queue in own['queues']] == ['orders', 'audit']
    assert [queue['name'] for queue in other['queues']] == ['audit']
    assert other['broker'] == ELSEWHERE
    mermaid = output(topology('topology_shop:Elsewhere', '--mermaid')).splitlines()
    assert mermaid.count('flowchart LR') == 1
    assert len([line for line in mermaid if 'audit' in line]) == 2
    assert f'"order-exchange on {ELSEWHERE}" -> "audit on {ELSEWHERE}"' in output(
        topology('topology_shop:Elsewhere', '--dot')
    )


def test_each_broker_has_its_own_faults(topology: Callable[..., Result], bench: Bench) -> None:
    bench.bare.exchange_declare('order-exchange', 'topic', durable=True)
    bench.bare.queue_declare('audit', durable=True)
    bench.broker.add_vhost('another')
    try:
        result = topology('topology_shop:Another', '--json', '--check')
    finally:
        bench.broker.delete_vhost('another')
    assert result.exit_code == 1
    own, other = json.loads(result.stdout)
    assert own['faults'] == ["queue 'orders' is missing"]
    assert other['faults'] == ["exchange 'order-exchange' is missing", "queue 'audit' is missing"]


def test_what_the_broker_lacks_or_has_otherwise_is_told(bench: Bench, topology: Callable[..., Result]) -> None:
    bench.bare.exchange_declare('order-exchange', 'direct', durable=True)
    bench.bare.queue_declare('audit', durable=True)
    said = output(topology('--check'), 1)
    assert "queue 'orders' is missing" in said
    assert "exchange 'order-exchange': " in said
    assert "queue 'audit'" not in said
    assert bench.broker.queues() == {'audit': 0}


def test_a_broker_that_has_all_of_it_is_as_it_should_be(bench: Bench, topology: Callable[..., Result]) -> None:
    declare(bench.bare)
    output(topology('--check'))


def test_what_is_no_component_is_told(bench: Bench) -> None:
    result = CliRunner().invoke(group, ['topology', 'nonsense'])
    assert result.exit_code == 2
    assert 'is no MODULE:NAME' in result.output


# Bindings


class Management:
    """What RabbitMQ's management API says about bindings."""

    def __init__(self) -> None:
        self.status, self.bindings = 200, [binding('orders', 'order.#'), binding('audit', '#')]
        self.asked: list[tuple[str, str]] = []
        management = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                management.asked.append((self.path, self.headers['Authorization']))
                self.send_response(management.status)
                self.end_headers()
                self.wfile.write(json.dumps(management.bindings).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}'
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def binding(queue: str, key: str) -> dict[str, Any]:
    return {
        'source': 'order-exchange',
        'vhost': '/',
        'destination': queue,
        'destination_type': 'queue',
        'routing_key': key,
        'arguments': {},
        'properties_key': key,
    }


def declare(channel: Any) -> None:
    """Declare all that the component does, but for the bindings."""
    channel.exchange_declare('order-exchange', 'topic', durable=True)
    channel.queue_declare('audit', durable=True)
    arguments = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}
    channel.queue_declare('orders', durable=True, arguments=arguments)


@pytest.fixture
def management(bench: Bench) -> Iterator[Management]:
    declare(bench.bare)
    management = Management()
    yield management
    management.close()


def test_bindings_are_looked_for_where_they_can_be_listed(
    bench: Bench, topology: Callable[..., Result], management: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 'bindings are not checked' in output(topology('--check'))
    (found,) = json.loads(output(topology('--check', '--json', '--management', management.url)))
    assert (found['faults'], found['bindings_checked']) == ([], True)
    ((path, authorization),) = management.asked
    assert path == f'/api/bindings/{quote(bench.broker.vhost, safe="")}'
    assert base64.b64decode(authorization.removeprefix('Basic ')).startswith(b'guest:')
    management.bindings[0] = binding('orders', 'order.*')
    monkeypatch.setenv('POSTAGE_MANAGEMENT', management.url)
    said = output(topology('--check'), 1)
    assert "the binding of queue 'orders' to exchange 'order-exchange' by key 'order.#' is missing" in said
    assert "'audit'" not in said
    assert 'not checked' not in said


@pytest.mark.parametrize(
    ('status', 'bindings', 'words'),
    [
        (401, None, 'it refused the password, or the user has no tag "monitoring"'),
        (404, None, 'there is no such virtual host, or no API (404)'),
        (200, {'nonsense': 1}, 'is no management API of RabbitMQ'),
    ],
)
def test_an_api_that_does_not_tell_is_said(
    topology: Callable[..., Result], management: Management, status: int, bindings: Any, words: str
) -> None:
    management.status, management.bindings = status, bindings
    assert words in output(topology('--check', '--management', management.url), 1)


def test_rabbitmq_itself_lists_them(
    rabbitmq: RabbitMQ, topology: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = 'a shop/über'  # in a URL each of it has to be escaped
    rabbitmq.add_vhost(name)
    monkeypatch.setenv('POSTAGE_URL', rabbitmq.url_of(name))
    try:
        with (
            rabbitmq.node.management() as url,
            pika.BlockingConnection(pika.URLParameters(rabbitmq.url_of(name))) as bare,
        ):
            channel = bare.channel()
            declare(channel)
            for queue, key in (('orders', 'order.#'), ('audit', '#')):
                channel.queue_bind(queue, 'order-exchange', key)
            output(topology('--check', '--management', url))
            channel.queue_unbind('orders', 'order-exchange', 'order.#')
            channel.queue_bind('orders', 'order-exchange', 'order.#', {'any': 'argument'})
            said = output(topology('--check', '--management', url), 1)
            assert "the binding of queue 'orders' to exchange 'order-exchange' by key 'order.#' is missing" in said
            assert "'audit'" not in said
            add_user(rabbitmq, 'shop', Permissions('.*', '.*', '.*'))
            monkeypatch.setenv('POSTAGE_URL', with_login(rabbitmq.url, f'shop:{canary("shop")}'))
            assert 'tells user ' in (said := output(topology('--check', '--management', url), 1))
            assert 'the user has no tag "monitoring" or "management" (401)' in said
    finally:
        delete_user(rabbitmq, 'shop')
        rabbitmq.delete_vhost(name)


def test_where_no_api_is_that_is_said(topology: Callable[..., Result], management: Management) -> None:
    assert 'does not answer' in output(topology('--check', '--management', 'http://127.0.0.1:1'), 1)
    for url in ('nonsense', 'ftp://there', 'http://user:word@there', 'http://there:port'):
        said = output(topology('--check', '--management', url), 2)
        assert 'word' not in said.replace('password', '')


def test_one_form_is_printed(topology: Callable[..., Result]) -> None:
    assert '--json or --dot, not both' in output(topology('--json', '--dot'), 2)
