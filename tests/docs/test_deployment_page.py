"""The page on deployment: systemd takes its unit, and the command lines of all examples run."""

from __future__ import annotations

import configparser
import http.client
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from postage.cli.main import postage as group
from support.booted import booted, why_not
from support.brokers import Embedded
from support.messaging import eventually
from support.pages import DOCS, blocks
from support.ports import free_ports
from support.programs import Module
from support.running import SHOP

PAGE = DOCS / 'deployment.rst'
(UNIT,) = blocks(PAGE, 'ini')
COMPOSE, KUBERNETES = blocks(PAGE, 'yaml')
CANNOT_BOOT = why_not()
LOCAL = 'POSTAGE_HOST=127.0.0.1 POSTAGE_PORT={} POSTAGE_USER=guest NOTES=/dev/null'
ENOUGH = 30 + 15  # seconds: the grace, and what closing may take


@pytest.fixture
def run(embedded: Embedded, run_module: Callable[..., Module], tmp_path: Path) -> Callable[[list[str]], int]:
    """A function that runs a command line of the page until it is ready, and returns where its status is told."""
    (tmp_path / 'shop.py').write_text(SHOP)
    (tmp_path / 'password').write_text('guest\n')

    def start(command: list[str], environment: dict[str, str]) -> int:
        assert Path(command[0]).name == 'postage'
        (port,) = free_ports(1)
        arguments = [re.sub(r':9100$', f':{port}', word) for word in command[1:]]
        assert set(environment) == {'POSTAGE_HOST', 'POSTAGE_USER', 'POSTAGE_PASSWORD_FILE'}
        ours = {'POSTAGE_HOST': embedded.host, 'POSTAGE_PORT': str(embedded.port), 'POSTAGE_USER': 'guest'}
        ours |= {'POSTAGE_PASSWORD_FILE': str(tmp_path / 'password'), 'NOTES': str(tmp_path / 'notes')}
        program = run_module('postage', arguments, ours)
        workers = int(command[command.index('--workers') + 1]) if '--workers' in command else 1
        program.expect('is ready', 30, times=workers)
        start.program = program
        return port

    return start


def end(run: Any) -> None:
    run.program.send_signal(signal.SIGTERM)
    assert run.program.wait() == 0


@pytest.mark.skipif(shutil.which('systemd-analyze') is None, reason='systemd-analyze is not installed')
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    (command,) = re.findall(r'^ExecStart=(\S+)', UNIT, re.MULTILINE)
    stand_in = tmp_path / 'postage'
    stand_in.write_text('#!/bin/sh\n')
    stand_in.chmod(0o755)
    unit = tmp_path / 'shop.service'
    unit.write_text(UNIT.replace(command, str(stand_in)))
    verified = subprocess.run(
        ['systemd-analyze', 'verify', '--man=no', '--recursive-errors=no', str(unit)], capture_output=True, text=True
    )
    said = [line for line in verified.stderr.splitlines() if 'shop.service' in line]
    assert said == []
    assert verified.returncode == 0, verified.stderr


def test_the_unit_starts_and_stops_what_it_says(run: Any) -> None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT)
    service = parser['Service']
    run(shlex.split(service['ExecStart']), dict(word.split('=', 1) for word in service['Environment'].split()))
    assert service['ExecReload'] == '/bin/kill -HUP $MAINPID'
    run.program.send_signal(signal.SIGHUP)
    run.program.expect('in place of pid', 60, times=4)
    assert int(service['TimeoutStopSec']) > ENOUGH
    end(run)


@pytest.mark.skipif(bool(CANNOT_BOOT), reason=CANNOT_BOOT)
def test_systemd_starts_reloads_restarts_and_stops_the_unit(embedded: Embedded, tmp_path: Path) -> None:
    shop, log = tmp_path / 'srv' / 'shop', tmp_path / 'log'
    command = shop / '.venv' / 'bin' / 'postage'
    command.parent.mkdir(parents=True)
    # A user of systemd's sees no /tmp and nobody's home, where this Python may be: it is bound to where one can look.
    binds = {f'/srv/path/{number}': Path(each) for number, each in enumerate(sys.path) if Path(each or 'none').is_dir()}
    python = Path('/srv/python', Path(sys._base_executable).relative_to(sys.base_prefix))
    command.write_text(
        f'#!/bin/sh\nPYTHONHOME=/srv/python PYTHONPATH={":".join(binds)} exec {python} -m postage "$@"\n'
    )
    binds['/srv/python'] = Path(sys.base_prefix)
    command.chmod(0o755)
    (shop / 'shop.py').write_text(SHOP)
    (tmp_path / 'password').write_text('guest\n')
    (port,) = free_ports(1)
    unit = UNIT.replace(':9100', f':{port}').replace('/etc/shop/password', str(tmp_path / 'password'))
    unit = unit.replace('POSTAGE_HOST=rabbitmq.example POSTAGE_USER=shop', LOCAL.format(embedded.port))
    unit = unit.replace('RestartSec=5', 'RestartSec=0')
    unit = unit.replace('[Service]', f'DefaultDependencies=no\n[Service]\nStandardError=append:{log}')
    probe = ['probe', '--status', f'127.0.0.1:{port}']
    with booted(tmp_path, {'shop.service': unit}, binds) as systemd:

        def is_ready() -> bool:
            return CliRunner().invoke(group, probe).exit_code == 0

        eventually(is_ready)
        first = systemd.shows('shop', 'MainPID')
        systemd.run('systemctl', 'reload', 'shop')
        eventually(lambda: log.read_text().count('in place of pid') == 4)
        assert systemd.shows('shop', 'MainPID') == first
        systemd.run('kill', '-KILL', first)
        eventually(lambda: systemd.shows('shop', 'NRestarts') == '1')
        eventually(is_ready)
        systemd.run('systemctl', 'stop', 'shop')
        assert [systemd.shows('shop', name) for name in ('Result', 'ExecMainStatus')] == ['success', '0']
    assert embedded.channels() == 0


def test_compose_starts_what_it_says_and_its_health_check_passes(run: Any, run_module: Callable[..., Module]) -> None:
    yaml = pytest.importorskip('yaml')
    shop = yaml.safe_load(COMPOSE)['services']['shop']
    port = run(shop['command'], shop['environment'])
    kind, *check = shop['healthcheck']['test']
    assert kind == 'CMD'
    probe = run_module('postage', [word.replace(':9100', f':{port}') for word in check[1:]])
    assert probe.wait() == 0, probe.output
    assert int(shop['stop_grace_period'].rstrip('s')) > ENOUGH
    end(run)


def test_the_broker_of_compose_starts_and_keeps_its_messages() -> None:
    composed = pytest.importorskip('yaml').safe_load(COMPOSE)
    shop, rabbitmq = composed['services']['shop'], composed['services']['rabbitmq']
    # The image's own script ends at once where RABBITMQ_DEFAULT_PASS_FILE, say, is set (docker-library/rabbitmq, 467).
    assert set(rabbitmq['environment']) == {'RABBITMQ_DEFAULT_USER', 'RABBITMQ_DEFAULT_PASS'}
    assert rabbitmq['environment']['RABBITMQ_DEFAULT_USER'] == shop['environment']['POSTAGE_USER']
    (secret,) = shop['secrets']
    assert shop['environment']['POSTAGE_PASSWORD_FILE'] == f'/run/secrets/{secret}'
    variable = composed['secrets'][secret]['environment']
    assert rabbitmq['environment']['RABBITMQ_DEFAULT_PASS'] == f'${{{variable}:?}}'
    # Its files are those of a node that is named after the host, which is another one for each container by default.
    assert rabbitmq['hostname'] == shop['environment']['POSTAGE_HOST']
    (volume,) = rabbitmq['volumes']
    assert volume.partition(':')[2] == '/var/lib/rabbitmq'
    assert volume.partition(':')[0] in composed['volumes']


def test_kubernetes_starts_what_it_says_and_its_probes_pass(run: Any) -> None:
    yaml = pytest.importorskip('yaml')
    pod = yaml.safe_load(KUBERNETES)['spec']['template']['spec']
    (container,) = pod['containers']
    port = run(container['args'], {variable['name']: variable['value'] for variable in container['env']})
    for kind in ('startupProbe', 'readinessProbe', 'livenessProbe'):
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
        connection.request('GET', container[kind]['httpGet']['path'])
        assert connection.getresponse().status == 200
        connection.close()
    assert pod['terminationGracePeriodSeconds'] > ENOUGH
    end(run)
