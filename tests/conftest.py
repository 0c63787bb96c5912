"""Fixtures that every test may use.

``broker`` runs a test twice, on the embedded broker and on a private RabbitMQ node, each time in an empty
virtual host of its own. ``POSTAGE_TEST_BROKER`` says which RabbitMQ that is. Where it is not installed the second run
skips, and the last lines of the output say so; with ``POSTAGE_REQUIRE_RABBITMQ=1`` it fails instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from postage.broker.server import BrokerServer
from support import canaries
from support.brokers import Broker, Embedded, RabbitMQ
from support.leftovers import child_processes, leftovers, postage_threads
from support.missing_servers import MissingServers
from support.notes import NOTE, Notes
from support.programs import Module, Program
from support.rabbitmq_node import RabbitMQNode
from support.rabbitmq_versions import find_server, not_installed

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in the background of a shell ignores Ctrl-C, and so do its children; the programs of the tests must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Brokers


@pytest.fixture(params=['embedded', 'rabbitmq'])
def broker(request: pytest.FixtureRequest) -> Broker:
    """A broker with an empty virtual host; a test that takes it runs on both."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def embedded() -> Iterator[Embedded]:
    """An embedded broker of the test's own, in a thread of this process."""
    with BrokerServer('127.0.0.1', 0) as server:
        yield Embedded(server)


@pytest.fixture
def rabbitmq(rabbitmq_node: RabbitMQNode) -> Iterator[RabbitMQ]:
    """An empty virtual host of the RabbitMQ node that the tests share."""
    with rabbitmq_node.new_vhost() as vhost:
        yield RabbitMQ(rabbitmq_node, vhost)


@pytest.fixture
def private_rabbitmq(rabbitmq: RabbitMQ) -> RabbitMQ:
    """The same, for a test that stops, kills or restarts the node (``.node``). It may leave it down."""
    return rabbitmq


@pytest.fixture
def rabbitmq_node(the_node: RabbitMQNode) -> RabbitMQNode:
    """The RabbitMQ node of this process's tests; it runs, whatever the test before has done to it."""
    the_node.start()
    return the_node


@pytest.fixture(scope='session')
def the_node() -> Iterator[RabbitMQNode]:
    """The node, not yet started. Processes that run tests have one each."""
    if find_server() is None:
        pytest.skip(not_installed())
    node = RabbitMQNode()
    yield node
    node.close()


# Programs


@pytest.fixture
def run_program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """A function that starts a Python program as :class:`Program` does; the test's end ends it."""
    yield from starter(Program, tmp_path)


@pytest.fixture
def run_module(tmp_path: Path) -> Iterator[Callable[..., Module]]:
    """A function that starts a module as ``python -m`` does; the test's end ends it."""
    yield from starter(Module, tmp_path)


def starter(kind: type[Program], directory: Path) -> Iterator[Callable[..., Any]]:
    started: list[Program] = []

    def start(*arguments: Any, **options: Any) -> Program:
        # Not in the checkout: Python would import its `postage` instead of the installed one.
        started.append(kind(*arguments, **{'cwd': directory, **options}))
        return started[-1]

    try:
        yield start
    finally:
        for program in reversed(started):
            program.stop()


# Hygiene


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no setting of Postage but their own, and the lane that a run of them is about."""
    for name in [name for name in os.environ if name.startswith('POSTAGE_') and name != 'POSTAGE_FAST_LANE']:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A test whose Postage threads or child processes outlive it is in error."""
    threads, children = postage_threads(), child_processes()
    yield
    left = leftovers(threads, children)
    assert not left, f'left behind: {", ".join(left)}'


# Order

TAKE_LONG = (
    'demos',
    'fidelity',
    'benchmarks',
    'messaging/test_handling.py',
    'reliability',
    'messaging/test_delayed_retries.py',
    'cli/test_operate.py',
    'conformance/test_broker_connections.py',
    'security/test_servers.py',
    'cli/test_run.py',
    'missive/test_rabbitmq.py',
    'messaging/test_retry.py',
    'amqp/test_turns.py',
    'cli/test_dead_letters.py',
    'conformance/test_broker_differences.py',
    'unit/test_rabbitmq_node.py',
)
"""Folders and files, the longest first."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run on RabbitMQ, and have what takes long begin first.

    With several processes, the one that is late decides how long all of it takes.
    """
    for item in items:
        parameters = getattr(item, 'callspec', None)
        values = parameters.params.values() if parameters else ()
        names = {*getattr(item, 'fixturenames', ()), *(value for value in values if isinstance(value, str))}
        if names & {'rabbitmq', 'rabbitmq_node'}:
            item.add_marker('on_rabbitmq')
    places = {path: place_of(path) for path in {item.path for item in items}}
    items.sort(key=lambda item: places[item.path])


def place_of(path: Path) -> int:
    """Return the place of a file of tests in their order."""
    tests = Path(__file__).parent
    return next((place for place, name in enumerate(TAKE_LONG) if path.is_relative_to(tests / name)), len(TAKE_LONG))


# The last lines of the output


@pytest.fixture
def record_note(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """A function that has something said below the results, whether the test passes or not."""
    return lambda text: record_property(NOTE, text)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(MissingServers())
    config.pluginmanager.register(Notes())
    config.pluginmanager.register(canaries.Watch())
    canaries.watch_commands()
    if config.pluginmanager.hasplugin('xdist'):
        from support.sharing_out import SharingOut

        config.pluginmanager.register(SharingOut())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Escape lone surrogates in what was logged: a process that runs tests cannot send them to the one that reports."""
    report = yield
    report.sections = [(name, text.encode('utf-8', 'backslashreplace').decode()) for name, text in report.sections]
    return report
