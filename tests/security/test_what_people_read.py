"""What others wrote reaches no log and no terminal with what these obey; what is secret is in neither."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import json
import logging
import os
import pickle
import pkgutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import postage
from postage import messaging
from postage.cli.main import postage as command_line
from postage.dead_letters import SQLiteDeadLetters
from postage.printable import printable, printable_lines, shown
from postage.settings import broker_settings
from support.canary import canary
from support.letters import letter
from support.messaging import EQK, TIMEOUT, Bench, Processor, command, eventually

ESCAPES = '\x1b[31mred\x07\x9b2J\u202ebidi\u2066\u200f\r\x00\x7f\u2028'
OBEYED = set('\x00\x07\x08\x0b\x0c\r\x1b\x7f\x9b\u202e\u2066\u200f\u2028')


def test_printable_text_is_one_line_without_anything_that_a_terminal_obeys() -> None:
    every = ''.join(map(chr, range(0x110000)))
    for text in (printable(every), printable_lines(every).replace('\n', '').replace('\t', '')):
        assert not [c for c in text if c < ' ' or '\x7f' <= c <= '\x9f' or '\u202a' <= c <= '\u202e']
        assert not [c for c in text if '\u2066' <= c <= '\u2069' or '\ud800' <= c <= '\udfff']
        text.encode()
    assert printable('a\nb\x1b') == 'a\\nb\\x1b'
    assert printable_lines('a\nb\x1b') == 'a\nb\\x1b'
    assert printable('täxt 漢字 🎈') == 'täxt 漢字 🎈'
    assert printable('x' * 100, 10) == 'xxxxxxxxx…'


class Unsayable:
    def __repr__(self) -> str:
        raise RuntimeError('never')


@pytest.mark.parametrize('value', [10**5000, Unsayable(), [Unsayable()], 'x' * 10_000, ESCAPES], ids=lambda _: '')
def test_any_value_can_be_shown(value: Any) -> None:
    assert len(shown(value)) <= 200
    assert shown(value).isprintable()


def test_no_log_line_has_what_a_terminal_obeys(bench: Bench) -> None:
    class Failing(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            raise ValueError(content['parameters'])

        @messaging.MessageHandler('command', 'drop')
        def msg_drop(self, content: dict[str, Any]) -> None:
            raise messaging.FilterError(content['parameters'])

    bench.run(Failing(EQK))
    bench.publish(command(parameters=ESCAPES), headers={'x-postage-exchange': ESCAPES})
    bench.publish(command('drop', parameters=ESCAPES))
    bench.publish(command(ESCAPES, category='rpc'))
    bench.publish(ESCAPES.encode())
    bench.publish(command(type=5, name=ESCAPES))
    eventually(lambda: not sum(bench.broker.messages().values()))
    bench.log.expect('dropped by')
    bench.log.expect('Traceback')
    assert not OBEYED & set(bench.log.text)


def loggers() -> Iterator[logging.Logger]:
    """Every logger that a module of the package has."""
    for module in pkgutil.walk_packages(postage.__path__, 'postage.'):
        if not module.name.endswith('__main__'):
            loaded = importlib.import_module(module.name)
            yield from (value for value in vars(loaded).values() if isinstance(value, logging.Logger))


def test_every_logger_of_the_package_has_its_text_made_printable() -> None:
    assert {logger.name for logger in loggers() if not logger.filters} == set()


def test_a_record_is_bounded_whatever_it_quotes(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError('x' * 10_000_000)
    except ValueError:
        logging.getLogger('postage').exception('%s', 'y' * 10_000_000)
    (record,) = caplog.records
    assert len(record.getMessage()) + len(record.exc_text or '') < 200_000
    assert 'ValueError' in str(record.exc_text)


HOSTILE = letter(
    0,
    queue=ESCAPES,
    exchange=ESCAPES,
    routing_key=ESCAPES,
    exception=ESCAPES,
    message=ESCAPES,
    traceback=ESCAPES,
    body=ESCAPES.encode(),
    properties={'message_id': ESCAPES, 'headers': {ESCAPES: ESCAPES}},
    first_attempt_at=9e15,
)


@pytest.mark.parametrize('broken', [HOSTILE, letter(body=b'[' * 100_000)], ids=['escapes', 'a deep body'])
@pytest.mark.parametrize(
    'line', ['list', 'list --group queue', 'list --json', 'show 1', 'show 1 --json', 'export', 'replay --to x']
)
def test_the_command_prints_nothing_that_a_terminal_obeys(line: str, broken: Any, tmp_path: Path, bench: Bench) -> None:
    with SQLiteDeadLetters(tmp_path / 'letters.db') as store:
        store.put(broken)
    name, *arguments = line.split()
    ran = CliRunner().invoke(command_line, ['dead-letters', name, '--store', str(tmp_path / 'letters.db'), *arguments])
    assert ran.exit_code in (0, 1), ran.output
    assert not isinstance(ran.exception, (ValueError, TypeError, RecursionError)), ran.exception
    assert not OBEYED & set(ran.output)
    if line == 'show 1 --json' and broken is HOSTILE:
        assert json.loads(ran.output)['message'] == ESCAPES


@pytest.mark.parametrize('id', ['9' * 30, '9' * 5000, '٣', '-1', '\x1b[31m', 'x', '18446744073709551617'])
@pytest.mark.parametrize('name', ['show', 'edit', 'purge', 'replay', 'export'])
def test_an_id_that_no_letter_has_is_a_clear_error(id: str, name: str, tmp_path: Path) -> None:
    with SQLiteDeadLetters(tmp_path / 'letters.db') as store:
        store.put(letter())
    arguments = ['--yes'] if name == 'purge' else ['--to', 'q'] if name == 'edit' else []
    ran = CliRunner().invoke(
        command_line, ['dead-letters', name, '--store', str(tmp_path / 'letters.db'), *arguments, '--', id]
    )
    assert ran.exit_code == 1
    assert 'has no letter' in ran.output
    assert not OBEYED & set(ran.output)
    assert len(ran.output) < 300


def test_the_files_of_a_store_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with SQLiteDeadLetters(tmp_path / 'letters.db') as store:
            store.put(letter())
            with store.hand_out() as handout:
                next(handout.batches(1))
                files = sorted(tmp_path.iterdir())
                modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
    finally:
        os.umask(before)
    assert set(modes) >= {'letters.db', 'letters.db-wal', 'letters.db-shm', 'letters.db.replay'}
    assert set(modes.values()) == {0o600}


def classes() -> Iterator[type]:
    """Every class of the package that says itself how it is shown."""
    for module in pkgutil.walk_packages(postage.__path__, 'postage.'):
        if not module.name.endswith('__main__'):
            for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                own = found.__module__ == module.name and '__repr__' in vars(found)
                if own and not dataclasses.is_dataclass(found):
                    yield found


@pytest.mark.parametrize('cls', list(classes()), ids=lambda cls: cls.__qualname__)
def test_an_object_that_was_not_made_to_its_end_can_be_shown(cls: Any) -> None:
    try:
        half_built = cls.__new__(cls)
    except TypeError:  # an enumeration, or what is made by its own __new__
        return
    assert type(half_built).__name__ in repr(half_built)


SECRET = canary(' horse battery staple')


@pytest.mark.parametrize(
    'hup',
    [
        {'host': 'host', 'user': 'me', 'password': SECRET},
        f'amqp://me:{SECRET.replace(" ", "%20")}@host/',
        {'host': 'a/b', 'user': 'me', 'password': SECRET},
        {'host': 'host', 'port': 'x', 'user': 'me', 'password': SECRET},
        f'amqp://me:{SECRET.replace(" ", "%20")}@host:99999/',
        f'amqp://me:{SECRET}@host/a/b',
    ],
    ids=lambda _: '',
)
def test_a_password_is_in_no_repr_and_no_error(hup: Any) -> None:
    try:
        settings = broker_settings(hup, environ={})
    except messaging.ConfigurationError as error:
        said = f'{error} {error!r} {error.__cause__!r}'
    else:
        said = f'{settings} {settings!r} {settings.endpoints!r}'
    assert SECRET not in said
    assert SECRET.replace(' ', '%20') not in said


def test_what_has_a_password_is_copied_but_not_pickled() -> None:
    settings = broker_settings(f'amqp://me:{canary()}@host/', environ={})
    for copied in (copy.copy(settings), copy.deepcopy(settings)):
        assert copied.password == settings.password
    with pytest.raises(TypeError, match='a secret is not pickled'):
        pickle.dumps(settings)


def test_a_refused_password_is_in_no_log_and_no_error(bench: Bench) -> None:
    hup = {'host': bench.broker.host, 'port': bench.broker.port, 'user': 'guest', 'password': SECRET}
    with pytest.raises(messaging.AuthenticationFailed) as caught:
        messaging.GenericConsumer(EQK, hup=hup, vhost=bench.broker.vhost)
    assert SECRET not in f'{caught.value} {caught.getrepr(showlocals=False)} {bench.log.text}'


def test_a_password_can_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / 'password'
    path.write_text(f'{SECRET}\n')
    assert broker_settings(environ={'POSTAGE_PASSWORD_FILE': str(path)}).password.reveal() == SECRET
    assert (
        broker_settings(environ={'POSTAGE_PASSWORD_FILE': str(path), 'POSTAGE_PASSWORD': 'x'}).password.reveal() == 'x'
    )
    with pytest.raises(messaging.ConfigurationError, match='POSTAGE_PASSWORD_FILE cannot be read'):
        broker_settings(environ={'POSTAGE_PASSWORD_FILE': str(tmp_path / 'none')})


@pytest.mark.parametrize('way', ['variable', 'file'])
def test_the_embedded_broker_takes_its_password_from_elsewhere_than_its_arguments(
    way: str, tmp_path: Path, run_module: Callable[..., Any]
) -> None:
    path = tmp_path / 'password'
    path.write_text(f'{SECRET}\n')
    arguments = ['--password-file', str(path)] if way == 'file' else []
    environment = {**os.environ, 'POSTAGE_BROKER_PASSWORD': SECRET} if way == 'variable' else dict(os.environ)
    process = subprocess.Popen(
        [sys.executable, '-m', 'postage.broker', '--port', '0', *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert SECRET not in line
        port = int(line.rstrip().rstrip('/').rpartition(':')[2])
        hup = {'host': '127.0.0.1', 'port': port, 'user': 'guest', 'password': SECRET}
        messaging.GenericConsumer(EQK, hup=hup).close()
        with pytest.raises(messaging.AuthenticationFailed):
            messaging.GenericConsumer(EQK, hup={**hup, 'password': 'guest'})
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT)


def test_the_logger_of_a_program_is_left_as_it_is() -> None:
    assert not logging.getLogger().filters
