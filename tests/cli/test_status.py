"""``postage run --status`` and ``postage probe``."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postage.cli.run import openmetrics
from postage.cli.run.openmetrics import added
from postage.cli.run.status import address_of
from postage.errors import ConfigurationError
from support.brokers import Broker, Embedded
from support.messaging import eventually
from support.programs import Module, Program
from support.running import SHOP, Notes, ShopProducer


def has_ipv6() -> bool:
    try:
        with socket.create_server(('::1', 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, embedded: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'shop.py').write_text(SHOP)
    monkeypatch.setenv('POSTAGE_URL', embedded.url)
    monkeypatch.setenv('NOTES', str(tmp_path / 'notes'))


@pytest.fixture
def running(run_module: Callable[..., Module]) -> Module:
    """Two workers, and the status of both."""
    program = run_module('postage', ['run', 'shop:Prices', '--workers', '2', '--status', '127.0.0.1:0'])
    program.expect('is ready', 30, times=2)
    return program


def where(program: Program) -> str:
    return program.expect('status at').partition('http://')[2].partition('/')[0]


def get(program: Program, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(where(program), timeout=10)
    try:
        connection.request('GET', path)
        response = connection.getresponse()
        return response.status, response.getheader('Content-Type', ''), response.read().decode()
    finally:
        connection.close()


def number_of(program: Module, name: str, label: str = '') -> float:
    """The sum of what the lines of one name have."""
    lines = re.findall(rf'^{name}{{(.*)}} ([0-9.e+-]+)$', get(program, '/metrics')[2], re.MULTILINE)
    return sum(float(number) for labels, number in lines if label in labels)


def test_the_figures_of_all_workers_are_summed_and_those_of_workers_that_have_gone_still_count(
    running: Module, tmp_path: Path
) -> None:
    with ShopProducer() as producer:
        for number in range(20):
            producer.message_price([number, 0])
        producer.message_nonsense()
    Notes(tmp_path / 'notes').wait(20, 10)
    running.send_signal(signal.SIGHUP)
    running.expect('in place of pid', 30, times=2)
    running.expect('ended with status 0', times=2)
    assert get(running, '/metrics')[1].startswith('application/openmetrics-text')
    assert number_of(running, 'messaging_client_consumed_messages_total') == 21
    assert number_of(running, 'messaging_process_duration_seconds_count') == 20
    assert number_of(running, 'messaging_process_duration_seconds_bucket', 'le="+Inf"') == 20
    assert number_of(running, 'postage_messages_unhandled_total') == 1
    assert number_of(running, 'postage_messages_in_hand') == 0


def is_stopped(pid: int) -> bool:
    """Whether all threads of a process have been stopped by a signal. Linux only."""
    stats = Path(f'/proc/{pid}/task').glob('*/stat')
    return all(stat.read_text().rpartition(')')[2].split()[0] == 'T' for stat in stats)


@pytest.mark.skipif(sys.platform != 'linux', reason='whether a process has stopped is read from /proc')
def test_a_worker_that_does_not_answer_is_named(running: Module) -> None:
    pid = int(running.expect('is ready').split('pid ')[1].split(')')[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: is_stopped(pid))  # one of its threads may go on for a moment
        status, _, body = get(running, '/ready')
    finally:
        os.kill(pid, signal.SIGCONT)
    assert status == 503
    assert f'(pid {pid}) does not answer' in body


IMPATIENT = """
from postage.cli.run import status
status.ANSWER_SECONDS = 0.002
from postage.cli.main import postage
postage()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='whether a process has stopped is read from /proc')
def test_a_worker_that_does_not_answer_for_long_holds_nothing_up(run_program: Callable[..., Program]) -> None:
    program = run_program(IMPATIENT, ['run', 'shop:Prices', '--status', '127.0.0.1:0'])
    pid = int(program.expect('is ready', 30).split('pid ')[1].split(')')[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: is_stopped(pid))
        for _ in range(400):  # questions; a socket holds some 280
            get(program, '/ready')
        eventually(lambda: f'(pid {pid}) does not answer' in get(program, '/ready')[2])
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: get(program, '/ready')[0] == 200)


def test_live_and_what_is_not_there(running: Module) -> None:
    assert get(running, '/live')[0] == 200
    assert get(running, '/nonsense')[0] == 404


def test_heads_are_answered_and_a_client_that_goes_is_no_news(running: Module) -> None:
    for _ in range(3):
        with socket.create_connection(address_of(where(running))) as client:
            client.sendall(b'HEAD /ready HTTP/1.0\r\n\r\n')
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # and it resets
    connection = http.client.HTTPConnection(*address_of(where(running)), timeout=10)
    connection.request('HEAD', '/ready')
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b'')
    connection.close()
    assert 'Traceback' not in running.output


@pytest.mark.skipif(not has_ipv6(), reason='this machine has no IPv6')
def test_it_listens_on_an_address_of_version_6(run_module: Callable[..., Module]) -> None:
    program = run_module('postage', ['run', 'shop:Prices', '--status', '[::1]:0'])
    url = program.expect('status at http').split('http://')[1].split('/')[0]
    program.expect('is ready')
    assert run_module('postage', ['probe', '--status', url]).wait() == 0
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0


def test_the_probe_says_whether_it_is_ready(
    running: Module, run_module: Callable[..., Module], embedded: Embedded
) -> None:
    arguments = ['probe', '--status', where(running)]
    assert run_module('postage', arguments).wait() == 0
    assert run_module('postage', ['probe'], {'POSTAGE_RUN_STATUS': where(running)}).wait() == 0
    embedded.server.stop()
    probe = run_module('postage', arguments)
    assert probe.wait() == 1
    assert probe.count('no consumer is attached to queue') == 2
    told = run_module('postage', [*arguments, '--json'])
    assert (told.wait(), json.loads(told.output)['ready']) == (1, False)
    assert run_module('postage', [*arguments, '--live']).wait() == 0


def test_a_probe_that_nobody_answers_says_so(run_module: Callable[..., Module]) -> None:
    probe = run_module('postage', ['probe', '--status', '127.0.0.1:1'])
    assert probe.wait() == 3
    assert probe.output.startswith('no answer from 127.0.0.1:1')
    assert run_module('postage', ['probe']).wait() == 2
    assert run_module('postage', ['probe', '--status', 'nonsense']).wait() == 2


@pytest.mark.parametrize('address', ['203.0.113.1:1', '[2001:db8::1]:1'])
def test_where_it_cannot_listen_is_said(run_module: Callable[..., Module], address: str) -> None:
    program = run_module('postage', ['run', 'shop:Prices', '--status', address])
    assert program.wait() == 1
    assert program.output.startswith('Error: ')
    assert address in program.output


def test_without_its_extra_metrics_are_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'prometheus_client', None)
    with pytest.raises(ConfigurationError, match=r"pip install 'postage\[metrics\]'"):
        openmetrics.text_of({})


def test_samples_are_added_by_name_and_attributes() -> None:
    sums = added({}, [('a', {'x': '1'}, 2), ('h', {}, {'counts': [1, 0], 'sum': 0.5})])
    added(sums, [('a', {'x': '1'}, 3), ('a', {'x': '2'}, 4), ('h', {}, {'counts': [1, 2], 'sum': 1.0})])
    assert sums == {
        ('a', (('x', '1'),)): 5,
        ('a', (('x', '2'),)): 4,
        ('h', ()): {'counts': [2, 2], 'sum': 1.5},
    }
