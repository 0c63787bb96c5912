"""The pytest plugin, tried in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import os
import sys

import pytest

ports = []


def test_nothing_of_postage_is_loaded_before_a_fixture_is_used():
    loaded = {name for name in sys.modules if name.startswith('postage.')}
    assert loaded <= {'postage.testing', 'postage.testing.plugin'}
    assert not {'pika', 'msgspec'} & set(sys.modules)


@pytest.mark.parametrize('number', range(2))
def test_a_broker_of_its_own(postage_broker, number):
    import pika

    assert postage_broker.queues() == {}
    connection = pika.BlockingConnection(pika.URLParameters(postage_broker.url))
    connection.channel().queue_declare('q')
    connection.close()
    assert list(postage_broker.queues()) == ['q']


def test_the_environment_leads_to_it(postage_url, postage_broker):
    from postage import messaging

    assert os.environ['POSTAGE_URL'] == postage_url == postage_broker.url
    with messaging.GenericProducer(messaging.Fingerprint('a', 'b')):
        assert postage_broker.drop_connections() == 1


def test_the_environment_is_as_before():
    assert 'POSTAGE_URL' not in os.environ


@pytest.mark.postage_broker(deny=['transient_nonexcl_queues'])
def test_a_marker_has_parameters_for_the_broker(postage_url):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(postage_url))
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match='541'):
        connection.channel().queue_declare('q')


def test_nothing_is_left():
    import threading

    assert not [thread for thread in threading.enumerate() if thread.name.startswith('postage')]
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / 'test_program.py'
    path.write_text(TESTS)
    return path


def test_the_fixtures_work_in_somebody_else_s_tests(program: Path) -> None:
    # As installed: the entry point is what pytest finds.
    command = [sys.executable, '-m', 'pytest', '-q', '-W', 'error', '--strict-markers', '-p', 'no:cacheprovider', '.']
    environment = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST_')}
    done = subprocess.run(
        command, cwd=program.parent, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '7 passed' in done.stdout


def test_starting_and_stopping_costs_a_test_little(request: pytest.FixtureRequest) -> None:
    import time

    from postage.testing import Broker

    times = []
    for _ in range(20):
        started = time.perf_counter()
        with Broker():
            pass
        times.append(time.perf_counter() - started)
    assert sorted(times)[len(times) // 2] < 0.02
