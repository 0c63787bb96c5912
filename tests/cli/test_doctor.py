"""``postage doctor``: what it says of each program on each version of RabbitMQ, and that it declares nothing."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from pika.adapters.blocking_connection import BlockingChannel

from postage import errors
from postage.broker import connection as broker_connection
from postage.broker.server import BrokerServer
from postage.broker.users import Permissions
from postage.broker.virtual_host import VirtualHost
from postage.cli.main import postage
from postage.messaging.properties import DELAY_PREFIX
from support.brokers import Broker, Embedded, RabbitMQ, connect, with_login
from support.canaries import sightings
from support.canary import canary
from support.ports import free_ports
from support.programs import Module
from support.rabbitmq_node import binary
from support.rabbitmq_versions import WANTED
from support.users import add_user, delete_user

Lines = tuple[str, ...]

DROPPED = (
    "wrong queue 'jobs': a message is dropped after {} deliveries in vain, for the queue has no x-dead-letter-exchange"
)
MAY_BE_DROPPED = DROPPED.replace('wrong', 'warning')
TRANSIENT = (
    "warning queue 'jobs': it is neither durable nor exclusive, which is deprecated; it is refused (541) where "
    'deprecated_features.permit.transient_nonexcl_queues is false'
)
DURABLE = "wrong queue 'jobs': it exists with durable true, which is false here"
LATE = "wrong handler Slow.long: it may take 3600 s, and queue 'jobs' takes back what is not acknowledged after 1800 s"
WAITS = (
    'wrong handler Trying.work: its messages may wait 3600 s for another attempt, unacknowledged, and queue '
    "'jobs' takes back what is not acknowledged after 1800 s"
)
MISSING = "wrong exchange 'missing-exchange': it is passive, and does not exist"
LOST = "wrong queue 'jobs': its dead letters go to queue 'nowhere', which does not exist: what is dead-lettered is lost"
NO_ALTERNATE = (
    "wrong exchange 'alternate-exchange': its alternate exchange 'nowhere' does not exist: what it cannot route is lost"
)
NO_TYPE = (
    "wrong exchange 'delaying-exchange': this broker has no exchanges of type 'x-delayed-message'; is it of a plugin?"
)


def jobs(**arguments: Any) -> Callable[[BlockingChannel], object]:
    """Have a queue ``jobs`` on the broker, with flags of ``queue_declare``."""
    return lambda channel: channel.queue_declare('jobs', **arguments)


def exchange(**arguments: Any) -> Callable[[BlockingChannel], object]:
    """Have an exchange ``job-exchange`` on the broker, with arguments of ``exchange_declare``."""
    return lambda channel: channel.exchange_declare('job-exchange', **arguments)


def nothing(channel: BlockingChannel) -> None:
    """Have nothing on the broker."""


def quorum(**arguments: Any) -> dict[str, Any]:
    return {'durable': True, 'arguments': {'x-queue-type': 'quorum', **arguments}}


class Row(NamedTuple):
    """What is said of a program on each version; ``existing`` is what the broker has already."""

    name: str
    on_3_10: Lines = ()
    on_4_0: Lines = ()
    on_4_3: Lines = ()
    existing: Callable[[BlockingChannel], object] = nothing
    options: Sequence[str] = ()
    query: str = ''


def everywhere(name: str, *lines: str, **more: Any) -> Row:
    return Row(name, lines, lines, lines, **more)


WRONG_LATER = "warning queue 'jobs': {} is deprecated, and RabbitMQ 4.3 refuses it"

ROWS = [
    everywhere('plain'),
    everywhere('plain', existing=jobs(durable=True)),
    everywhere('exclusive'),
    everywhere('single'),
    everywhere('single', existing=jobs(durable=True, arguments={'x-single-active-consumer': True})),
    everywhere('application'),
    everywhere('trying'),
    everywhere('Greeter'),
    # What exists with other flags
    everywhere(
        'plain',
        "warning queue 'jobs': it exists with auto_delete true, which is false here; it is used as found",
        existing=jobs(durable=True, auto_delete=True),
    ),
    everywhere(
        'spelled',
        "wrong queue 'jobs': it exists without x-message-ttl, which is 60000 here",
        existing=jobs(durable=True),
    ),
    everywhere(
        'spelled',
        "wrong queue 'jobs': it exists with x-message-ttl 5, which is 60000 here",
        "warning queue 'jobs': it exists with auto_delete true, which is false here; it is used as found",
        "warning queue 'jobs': it exists with x-max-length 3, which is not set here; it is used as found",
        existing=jobs(durable=True, auto_delete=True, arguments={'x-message-ttl': 5, 'x-max-length': 3}),
    ),
    everywhere(
        'single',
        "wrong queue 'jobs': it exists without x-single-active-consumer, which is true here",
        existing=jobs(durable=True),
    ),
    everywhere(
        'plain',
        "warning queue 'jobs': it exists as a quorum queue, and not as a classic one; it is used as found",
        existing=jobs(**quorum()),
    ),
    everywhere(
        'quorum_without_limit',
        "wrong queue 'jobs': it exists as a classic queue, and not as a quorum one",
        existing=jobs(durable=True),
    ),
    everywhere(
        'plain',
        "wrong exchange 'job-exchange': it exists with type direct, which is topic here",
        "wrong exchange 'job-exchange': it exists with durable false, which is true here",
        existing=exchange(exchange_type='direct'),
    ),
    everywhere(
        'Greeter',
        "wrong exchange 'job-exchange': it exists with alternate-exchange amq.fanout, which is not set here",
        existing=exchange(exchange_type='topic', durable=True, arguments={'alternate-exchange': 'amq.fanout'}),
    ),
    # What has to exist
    everywhere('passive', "wrong queue 'jobs': it is passive, and does not exist"),
    everywhere('passive', existing=jobs(durable=True)),
    everywhere('on_missing', MISSING),
    everywhere(
        'on_alternate',
        NO_ALTERNATE,
    ),
    everywhere(
        'dead_letters_nowhere',
        "wrong queue 'jobs': its dead-letter exchange 'nowhere' does not exist: what is dead-lettered is lost",
    ),
    everywhere(
        'dead_letters_to_no_queue',
        LOST,
    ),
    # What cannot be
    everywhere('on_delaying', NO_TYPE),
    everywhere('odd_type', "wrong queue 'jobs': this broker has no queues of type 'odd'"),
    everywhere('negative_time', "wrong queue 'jobs': x-message-ttl -1 is refused: {value_negative,-1}"),
    everywhere('quorum_with_priorities', "wrong queue 'jobs': a quorum queue with x-max-priority is refused (406)"),
    everywhere('long_name', f"wrong queue '{40 * 'j'}'…: the name is longer than the 255 bytes of AMQP"),
    everywhere(
        'reserved_name',
        "wrong queue 'amq.jobs': it is refused (403): queue name 'amq.jobs' contains reserved prefix 'amq.*'",
    ),
    everywhere(
        'on_reserved',
        "wrong exchange 'amq.jobs': it is refused (403): exchange name 'amq.jobs' contains reserved prefix 'amq.*'",
    ),
    everywhere(
        'exclusive',
        "wrong queue 'jobs': it is exclusive here, and exists already: another connection has it",
        existing=jobs(durable=True),
    ),
    everywhere(
        'plain',
        "wrong queue 'jobs': another connection has it for itself: there it is exclusive",
        existing=jobs(exclusive=True),
    ),
    # What the versions make of it
    Row('transient', (), (TRANSIENT,), (TRANSIENT,)),
    Row(
        'transient',
        (DURABLE,),
        (DURABLE, TRANSIENT),
        (DURABLE, TRANSIENT),
        existing=jobs(durable=True),
    ),
    Row('quorum', (), (DROPPED.format(20),), (DROPPED.format(20),)),
    everywhere('quorum_with_limit', MAY_BE_DROPPED.format(5)),
    everywhere('quorum_without_limit'),
    everywhere('quorum_with_dead_letters'),
    everywhere('counting'),
    Row(
        'quorum_exclusive',
        ("wrong queue 'jobs': a quorum queue that is exclusive, not durable is refused (406)",),
        ("wrong queue 'jobs': a quorum queue that is exclusive, not durable is refused (406)", DROPPED.format(20)),
        ("wrong queue 'jobs': a quorum queue that is exclusive, not durable is refused (406)", DROPPED.format(20)),
    ),
    Row(
        'with_mode',
        (),
        ("warning queue 'jobs': x-queue-mode has no effect since RabbitMQ 3.12",),
        ("warning queue 'jobs': x-queue-mode has no effect since RabbitMQ 3.12; some releases of 4.3 refuse it",),
    ),
    Row(
        'with_version',
        (),
        (WRONG_LATER.format('x-queue-version 1'),),
        ("wrong queue 'jobs': x-queue-version 1 is refused (406)",),
    ),
    Row(
        'with_locator',
        (),
        (WRONG_LATER.format('x-queue-master-locator'),),
        ("wrong queue 'jobs': x-queue-master-locator is refused by default, with the connection (541)",),
    ),
    Row(
        'with_consumer_timeout',
        ("warning queue 'jobs': x-consumer-timeout has no effect before RabbitMQ 3.12",),
        (),
        ("wrong queue 'jobs': a classic queue with x-consumer-timeout is refused (406)",),
    ),
    Row(
        'with_delayed_retry',
        (
            "warning queue 'jobs': x-delayed-retry-type has no effect before RabbitMQ 4.3",
            "warning queue 'jobs': x-delayed-retry-min has no effect before RabbitMQ 4.3",
        ),
        (
            "warning queue 'jobs': x-delayed-retry-type has no effect before RabbitMQ 4.3",
            "warning queue 'jobs': x-delayed-retry-min has no effect before RabbitMQ 4.3",
        ),
        (),
    ),
    Row(
        'global_prefetch',
        (),
        ('warning basic_qos: a global prefetch count is deprecated, and RabbitMQ 4.3 has none',),
        ('wrong basic_qos: a global prefetch count is refused, or limits each consumer alone',),
    ),
    Row('slow', (LATE,), (LATE,), ()),
    everywhere('slow_on_quorum', LATE),
    Row(
        'slow_with_time', (LATE, "warning queue 'jobs': x-consumer-timeout has no effect before RabbitMQ 3.12"), (), ()
    ),
    Row('trying_exclusively', (WAITS,), (WAITS,), ()),
    everywhere('plain', options=['--body', '16MiB']),
    Row(
        'plain',
        (),
        ('wrong bodies: one of 16777217 bytes is refused (406); the limit is 16777216 by default',),
        ('wrong bodies: one of 16777217 bytes is refused (406); the limit is 16777216 by default',),
        options=['--body', '16777217'],
    ),
    Row(
        'plain',
        (),
        (),
        ('wrong the URL: frame_max=4096 is less than 8192: no connection is made',),
        query='?frame_max=4096',
    ),
]

DEPENDS = ('transient', 'with_mode', 'global_prefetch')
"""What a broker refuses or not by its settings."""
NO_REFUSAL = ('a message is dropped', 'is lost', 'takes back', 'bodies', 'the URL', 'basic_qos')
"""What is wrong, and not refused when it is declared."""


@pytest.fixture(params=['embedded-3.10', 'embedded-4.3', 'rabbitmq'])
def versioned(request: pytest.FixtureRequest) -> Iterator[tuple[Broker, str]]:
    """A broker, and the version whose rules it has."""
    kind, _, version = request.param.partition('-')
    if kind == 'rabbitmq':
        yield request.getfixturevalue('rabbitmq'), WANTED
        return
    with BrokerServer('127.0.0.1', 0, rules=version) as server:
        yield Embedded(server), version


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A function that runs ``postage doctor`` in this process."""
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '10')
    return lambda *arguments: CliRunner().invoke(postage, ['doctor', *map(str, arguments)], prog_name='postage')


def listing(broker: Broker) -> list[str]:
    """All that is declared in the virtual host of a test."""
    if isinstance(broker, Embedded):
        virtual_host = broker.server._shared.virtual_hosts[broker.vhost]
        found = broker.server._call(
            lambda: [
                *((exchange.name, exchange.bindings) for exchange in virtual_host.exchanges.values()),
                *((queue.name, queue.durable, queue.arguments) for queue in virtual_host.queues.values()),
            ]
        )
        return sorted(map(repr, found))
    assert isinstance(broker, RabbitMQ)
    vhost = binary(broker.vhost)
    lists = (
        f'[element(2, X) || X <- rabbit_exchange:list({vhost})]',
        f'[element(2, Q) || Q <- rabbit_amqqueue:list({vhost})]',
        f'rabbit_binding:list({vhost})',
    )
    return [broker.node.evaluate(f'io_lib:format("~0p", [lists:sort({each})])') for each in lists]


def said(result: Result) -> list[str]:
    """The findings, with single spaces."""
    return [' '.join(line.split()) for line in result.output.splitlines()[1:-1]]


def ids(row: Row) -> str:
    return row.name


@pytest.mark.parametrize('row', ROWS, ids=ids)
def test_each_program_has_the_lines_of_the_table_and_nothing_is_declared(
    row: Row, versioned: tuple[Broker, str], doctor: Callable[..., Result]
) -> None:
    broker, version = versioned
    expected = {'3.10': row.on_3_10, '4.0': row.on_4_0, '4.3': row.on_4_3}[version]
    with connect(broker) as connection:
        row.existing(connection.channel())
        before = listing(broker)
        result = doctor(broker.url + row.query, f'support.declared:{row.name}', *row.options)
        assert listing(broker) == before
    assert sorted(said(result)) == sorted(expected), result.output
    assert result.exit_code == any(line.startswith('wrong') for line in expected)


@pytest.mark.parametrize('row', [row for row in ROWS if row.name not in DEPENDS], ids=ids)
def test_what_is_refused_is_what_the_doctor_says(
    row: Row, broker: Broker, doctor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_URL', broker.url)
    with connect(broker) as connection:
        row.existing(connection.channel())
        lines = said(doctor(broker.url, f'support.declared:{row.name}', *row.options))
        foretold = [line for line in lines if line.startswith('wrong') and not any(text in line for text in NO_REFUSAL)]
        was_refused = _is_refused(getattr(importlib.import_module('support.declared'), row.name))
    assert was_refused == bool(foretold), lines


def _is_refused(make: Callable[[], Any]) -> bool:
    """Really make a program, as it would be on that broker."""
    try:
        made = make()
    except (errors.OperationRefused, errors.EncodingError):
        return True
    for component in made if isinstance(made, list) else [made]:
        component.close()
    return False


# Permissions

ALL = '.*'
BOB = "user 'bob' may not {}: no {} permission for {}"


class Grant(NamedTuple):
    """What is said of a program to a user with these permissions."""

    name: str
    permissions: Permissions
    lines: Lines


GRANTS = [
    Grant('trying', Permissions(ALL, ALL, ALL), ()),
    Grant(
        'plain',
        Permissions('^job-', ALL, ALL),
        ("wrong queue 'jobs': " + BOB.format('declare it', 'configure', "queue 'jobs'"),),
    ),
    Grant(
        'plain',
        Permissions('^jobs$', ALL, ALL),
        ("wrong exchange 'job-exchange': " + BOB.format('declare it', 'configure', "exchange 'job-exchange'"),),
    ),
    Grant(
        'plain',
        Permissions(ALL, ALL, '^job-'),
        ("wrong queue 'jobs': " + BOB.format('consume from it', 'read', "queue 'jobs'"),),
    ),
    Grant(
        'plain',
        Permissions(ALL, '^none$', ALL),
        (
            "wrong binding of queue 'jobs' to exchange 'job-exchange': "
            + BOB.format('bind it', 'write', "queue 'jobs'"),
        ),
    ),
    Grant(
        'plain',
        Permissions(ALL, ALL, '^jobs$'),
        (
            "wrong binding of queue 'jobs' to exchange 'job-exchange': "
            + BOB.format('bind it', 'read', "exchange 'job-exchange'"),
        ),
    ),
    Grant(
        'Greeter',
        Permissions(ALL, '^none$', ALL),
        ("wrong exchange 'job-exchange': " + BOB.format('publish to it', 'write', "exchange 'job-exchange'"),),
    ),
    Grant('Greeter', Permissions(ALL, ALL, '^none$'), ()),
    Grant(
        'quorum_with_dead_letters',
        Permissions(ALL, '^job', ALL),
        ("wrong queue 'jobs': " + BOB.format('declare it', 'write', "exchange 'amq.fanout'"),),
    ),
    Grant(
        'answering',
        Permissions(ALL, '^job', ALL),
        ('wrong the default exchange: ' + BOB.format('answer RPC requests by it', 'write', "exchange 'amq.default'"),),
    ),
]


@pytest.mark.parametrize('grant', GRANTS, ids=ids)
def test_missing_permissions_are_told_and_nothing_is_declared(
    grant: Grant, broker: Broker, doctor: Callable[..., Result]
) -> None:
    add_user(broker, 'bob', grant.permissions)
    try:
        before = listing(broker)
        result = doctor(with_login(broker.url, f'bob:{canary("bob")}'), f'support.declared:{grant.name}')
        assert listing(broker) == before
    finally:
        delete_user(broker, 'bob')
    assert tuple(said(result)) == grant.lines, result.output
    assert result.exit_code == bool(grant.lines)


def test_messages_stay_where_they_are(broker: Broker, doctor: Callable[..., Result]) -> None:
    with connect(broker) as connection:
        channel = connection.channel()
        channel.queue_declare('jobs', durable=True)
        channel.confirm_delivery()
        channel.basic_publish('', 'jobs', b'x')
        assert doctor(broker.url, 'support.declared:plain').exit_code == 0
        method, _, body = channel.basic_get('jobs', auto_ack=True)
    assert (body, method.redelivered) == (b'x', False)


def test_a_broker_whose_ways_are_not_known_is_asked_passively(
    embedded: Embedded, doctor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(broker_connection.SERVER_PROPERTIES, 'product', 'Another')
    monkeypatch.delattr(VirtualHost, 'declare_queue')  # what is called for a queue that is not passive
    result = doctor(embedded.url, 'support.declared:on_missing', 'support.declared:transient')
    assert said(result) == [MISSING]
    assert result.output.startswith('Another 4.3.6 ')


# How it is called


def test_without_a_url_the_program_says_which_broker(
    embedded: Embedded, doctor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('POSTAGE_URL', embedded.url)
    result = doctor('support.declared:application')
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == '2 exchanges, 3 queues, 6 bindings: nothing is wrong'


def test_without_a_program_it_says_what_the_broker_does(embedded: Embedded, doctor: Callable[..., Result]) -> None:
    result = doctor(embedded.url)
    assert result.exit_code == 0
    where = with_login(embedded.url, 'guest')
    assert result.output.splitlines() == [
        f'Postage 4.3.6 at {where}: by default, and where no policy says otherwise, bodies up to 16 MiB, '
        '20 deliveries from a quorum queue, 30 min to acknowledge for quorum queues',
        '0 exchanges, 0 queues, 0 bindings: nothing is wrong',
    ]


def test_the_queues_of_retries_and_dead_letters_belong_to_the_program(
    embedded: Embedded, doctor: Callable[..., Result]
) -> None:
    (found,) = json.loads(doctor(embedded.url, 'support.declared:trying', '--json').output)
    delays = [f'{DELAY_PREFIX}jobs.{milliseconds}' for milliseconds in (1000, 3_600_000)]
    assert found['queues'] == sorted(['jobs', 'letters', *delays])
    assert found['findings'] == []


def test_findings_can_be_read_by_programs(embedded: Embedded, doctor: Callable[..., Result]) -> None:
    result = doctor(embedded.url, 'support.declared:passive', '--json')
    assert result.exit_code == 1
    (found,) = json.loads(result.output)
    text = 'it is passive, and does not exist'
    assert found['findings'] == [{'level': 'wrong', 'rule': 'missing', 'about': "queue 'jobs'", 'text': text}]
    assert found['broker']['version'] == '4.3.6'
    assert 'guest:' not in result.output


def test_a_warning_is_wrong_where_one_asks_for_that(embedded: Embedded, doctor: Callable[..., Result]) -> None:
    target = 'support.declared:with_mode'
    assert doctor(embedded.url, target).exit_code == 0
    assert doctor(embedded.url, target, '--strict').exit_code == 1


MISTAKES = {
    'nonsense:it': ": ModuleNotFoundError: No module named 'nonsense'",
    'support.declared:it': ": AttributeError: module 'support.declared' has no attribute 'it'",
    'support.declared:of': ' needs processor, flags; name a function without arguments that makes one',
    'support.declared:number': ' is no processor, consumer or producer, and makes none, but 7',
    'support.declared:failing': ': OSError: no such disk',
    'support.declared:calling': ": RPC 'rpc_hello' cannot be answered: there is no broker, and what is declared and "
    'sent is only recorded',
}


@pytest.mark.parametrize(('target', 'line'), MISTAKES.items(), ids=MISTAKES)
def test_a_program_that_cannot_be_made_is_one_clear_line(target: str, line: str, doctor: Callable[..., Result]) -> None:
    result = doctor('amqp://localhost:1/', target)
    assert (result.exit_code, result.output) == (1, f'Error: {target}{line}\n')


def test_a_broker_that_is_away_is_one_clear_line_in_time(doctor: Callable[..., Result]) -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    result = doctor(f'amqp://127.0.0.1:{port}/', '--timeout', '0.3')
    assert time.monotonic() - began < 5
    assert result.exit_code == 1
    assert result.output.startswith(f'Error: no broker at amqp://guest@127.0.0.1:{port}/%2F within 0.3 s')
    assert len(result.output.splitlines()) == 1


def test_wrong_credentials_are_one_clear_line_without_the_password(
    broker: Broker, doctor: Callable[..., Result]
) -> None:
    result = doctor(with_login(broker.url, f'guest:{canary("wrong")}'))
    assert result.exit_code == 1
    assert "refused user 'guest' or its password" in result.output
    assert not sightings(result.output)
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize('arguments', [['shop'], ['amqp://a/', 'amqp://b/'], ['--body', 'much']], ids=str)
def test_what_makes_no_sense_is_a_mistake_of_the_caller(arguments: list[str], doctor: Callable[..., Result]) -> None:
    assert doctor(*arguments).exit_code == 2


def test_modules_of_the_present_directory_are_found(
    embedded: Embedded, run_module: Callable[..., Module], tmp_path: Path
) -> None:
    (tmp_path / 'shop.py').write_text('from support.declared import Greeter as Seller\n')
    program = run_module(
        'postage.cli', ['doctor', embedded.url, 'shop:Seller'], {'PYTHONPATH': str(Path(__file__).parents[1])}
    )
    assert program.wait() == 0, program.output
    assert program.lines[-1] == '1 exchange, 0 queues, 0 bindings: nothing is wrong'
