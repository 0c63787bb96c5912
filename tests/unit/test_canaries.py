"""A password or a key of a test that is written anywhere makes the run fail."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.canaries import sightings
from support.canary import CANARY, canary

TESTS = Path(__file__).parents[1]

IMPORTS = """
import logging, sys
import pytest
from support.canaries import note
from support.canary import canary
from support.programs import Program
"""
TEST = """
def test_{name}(capfd):
    {statement}
"""
CONFTEST = """
from support import canaries

def pytest_configure(config):
    config.pluginmanager.register(canaries.Watch())
    canaries.watch_commands()
"""
WAYS = {
    'printed': 'print(canary())',
    'to_standard_error': 'print(canary(), file=sys.stderr)',
    'logged': "logging.getLogger('postage').warning('%s', [canary()])",
    'raised': 'raise ValueError(canary())',
    'by_a_program': "p = Program('\\nfrom support.canary import canary; print(canary())'); p.wait(); p.stop()",
    'by_a_command': (
        'import click; from click.testing import CliRunner; '
        "CliRunner().invoke(click.Command('c', callback=lambda: click.echo(canary())))"
    ),
    'quoted': "print(canary().encode().hex()); print(','.join(map(str, canary().encode())))",
}


def run(directory: Path, *options: str, **statements: str) -> subprocess.CompletedProcess[str]:
    """Run a test for each statement, by its name, in a pytest of their own."""
    (directory / 'conftest.py').write_text(CONFTEST)
    tests = [TEST.format(name=name, statement=statement) for name, statement in statements.items()]
    (directory / 'test_it.py').write_text(IMPORTS + ''.join(tests))
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *options, str(directory)]
    path = ':'.join([str(TESTS), *filter(None, sys.path)])
    return subprocess.run(
        command, cwd=directory, env={'PYTHONPATH': path}, capture_output=True, text=True, timeout=60, check=False
    )


def said_of(ran: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the tests that the last lines of a run's output name."""
    assert ran.returncode == 1, ran.stdout
    _, heading, told = ran.stdout.rpartition('passwords or keys that were written')
    assert heading, ran.stdout
    return set(re.findall(r'test_it\.py::test_(\w+)', told))


def test_a_run_in_which_a_password_is_written_fails_and_says_where(tmp_path: Path) -> None:
    ran = run(tmp_path, **WAYS, not_at_all="print('nothing')")
    assert said_of(ran) == set(WAYS)


def test_several_processes_tell_the_one_that_reports(tmp_path: Path) -> None:
    pytest.importorskip('xdist')
    ran = run(tmp_path, '--numprocesses', '1', by_a_program=WAYS['by_a_program'])
    assert said_of(ran) == {'by_a_program'}


def test_a_run_in_which_none_is_written_passes(tmp_path: Path) -> None:
    ran = run(tmp_path, nothing="print('nothing')")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize('before', range(4))
def test_a_password_is_found_in_base64_wherever_it_begins(before: int) -> None:
    text = base64.b64encode(b'x' * before + canary('-more').encode()).decode()
    assert sightings(f'Basic {text}')
    assert not sightings(base64.b64encode(b'x' * before + b'something else that is long').decode())


PUBLIC = ('guest', 'x', 'y', 'other', 'wrong', 'url', 'p%40', 'p%3A%2F%23')
"""RabbitMQ's own, and those of tests that compare settings and connect to nothing."""


def passwords() -> Iterator[tuple[str, str]]:
    """Each password that is spelled in a test, with the file."""
    spelled = (r"""['"]password['"]: ['"]([^'"]+)""", r"""amqps?://[^/'" {:@]+:([^@/'"{} ,]+)@""")
    for path in sorted(TESTS.rglob('*.py')):
        for pattern in spelled:
            for found in re.findall(pattern, path.read_text()):
                yield str(path.relative_to(TESTS)), found


def test_every_password_of_a_test_is_a_canary() -> None:
    wrong = [each for each in passwords() if each[1] not in PUBLIC and CANARY not in each[1]]
    assert not wrong, 'use support.canary.canary'
