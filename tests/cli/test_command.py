"""The command ``postage`` itself."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner

import postage
from postage.cli.main import postage as group

WITHOUT = """
import sys
for name in ('click', 'rich'):
    sys.modules[name] = None
sys.argv = ['postage', {arguments}]
from postage.cli import main
sys.exit(main())
"""

INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == 'postage.cli.main':
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ['postage', '--help']
from postage.cli import main
sys.exit(main())
"""

LOADED = """
import sys
from postage.cli import main
sys.argv = ['postage', '--help']
try:
    main()
finally:
    for name in sorted(sys.modules):
        print('loaded', name)
"""


@pytest.fixture
def start(run_module):
    return lambda *arguments: run_module('postage.cli', list(arguments))


def test_help_lists_the_commands(start):
    program = start('--help')
    assert program.wait() == 0
    assert program.count('broker') == 1
    assert program.count('dead-letters') == 1
    assert program.count('doctor') == 1
    assert program.count('Usage: postage ') == 1


def test_help_of_a_command_lists_its_subcommands(start):
    program = start('dead-letters', '--help')
    assert program.wait() == 0
    for name in ('list', 'show', 'replay', 'edit', 'export', 'purge'):
        assert re.search(rf'^  {name} ', program.output, re.MULTILINE), program.output


@pytest.mark.parametrize('name', ['list', 'show', 'replay', 'edit', 'export', 'purge'])
def test_every_subcommand_has_help(name):
    shown = CliRunner().invoke(group, ['dead-letters', name, '--help'])
    assert shown.exit_code == 0
    assert shown.output.count('--store PATH') == 1


def test_the_version_is_that_of_the_package(start):
    program = start('--version')
    assert program.wait() == 0
    assert program.output == f'postage, version {postage.__version__}'


def test_an_unknown_command_is_a_mistake_of_the_caller(start):
    program = start('nonsense')
    assert program.wait() == 2
    assert 'No such command' in program.output


def test_ctrl_c_while_it_is_being_loaded_is_no_traceback(run_program):
    program = run_program(INTERRUPTED)
    assert program.wait() == 1
    assert program.lines == ['Aborted!']


@pytest.mark.parametrize(
    'words',
    [
        ('run', 'shop:Prices', '--grace'),
        ('run', 'shop:Prices', '--handler-time'),
        ('ps', '--timeout'),
        ('top', '--interval'),
        ('tail', 'shop', '--for'),
        ('probe', '--status', '127.0.0.1:9100', '--timeout'),
        ('dead-letters', 'replay', '--store', 'any.db', '--rate'),
    ],
)
@pytest.mark.parametrize('number', ['nan', 'inf', '1e300'])
def test_a_time_that_cannot_be_waited_for_is_a_mistake_of_the_caller(words, number):
    result = CliRunner().invoke(group, [*words, number])
    assert result.exit_code == 2, result.output
    assert f'{number} is no number up to 1e+09' in result.output


def test_help_does_not_load_what_it_does_not_need(run_program):
    program = run_program(LOADED)
    program.wait()
    loaded = {line.split()[1] for line in program.lines if line.startswith('loaded')}
    assert {name for name in loaded if name.startswith('postage')} == {
        'postage',
        'postage.cli',
        'postage.cli.group',
        'postage.cli.main',
        'postage.printable',
    }
    assert not loaded & {'pika', 'msgspec', 'asyncio', 'ssl', 'sqlite3', 'rich.console'}


def test_a_missing_extra_is_one_clear_line(run_program):
    program = run_program(WITHOUT.format(arguments="'--help'"))
    assert program.wait() == 1
    assert program.output == "postage: the command needs click, which comes with: pip install 'postage[cli]'"


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='there is no device that is always full')
def test_output_that_cannot_be_written_is_one_clear_line(embedded):
    command = [sys.executable, '-m', 'postage', 'topology', 'postage.messaging:GenericConsumer']
    for redirection, words in (('> /dev/full', 'No space left on device'), ('>&-', '')):
        ended = subprocess.run(
            f'{shlex.join(command)} {redirection}',
            shell=True,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'POSTAGE_URL': embedded.url},
        )
        assert words in ended.stderr
        assert ended.stderr.count('\n') <= 1, ended.stderr


def test_the_broker_can_be_started(start):
    program = start('broker', '--port', '0')
    program.expect('Postage broker, for development and tests')
    program.stop()


def test_the_broker_shows_its_own_help_under_the_name_that_it_was_called_by(start, run_module):
    for program, name in (
        (start('broker', '--help'), 'postage broker'),
        (run_module('postage.broker', ['--help']), 'python -m postage.broker'),
    ):
        assert program.wait() == 0
        assert program.lines[0].startswith(f'usage: {name} [-h] ')
        assert program.count('--vhost') >= 1


def test_the_broker_runs_without_the_extra(run_program):
    program = run_program(WITHOUT.format(arguments="'broker', '--port', '0'"))
    program.expect('Postage broker, for development and tests')
    program.stop()


def test_the_broker_names_itself_where_it_cannot_begin(start):
    program = start('broker', '--tls-certificate', 'nowhere.pem')
    assert program.wait() == 1
    assert program.lines == ['postage broker: cannot use the certificate nowhere.pem: No such file or directory']
