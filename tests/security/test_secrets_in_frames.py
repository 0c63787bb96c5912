"""A traceback with local variables shows no password: whatever fails, no frame of ours holds one that can be read."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
import trustme
from click.testing import CliRunner

from postage import messaging
from postage.broker import BrokerServer
from postage.broker import __main__ as broker_command
from postage.broker.users import Permissions
from postage.cli.main import postage as command_line
from postage.dead_letters import QueueDeadLetters
from postage.generic_application import GenericApplication
from postage.missive import Processor as MissiveProcessor
from postage.missive import RawMessage
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from postage.secret import Secret
from postage.settings import broker_settings
from support.canaries import chain, leaks, shown, sightings
from support.canary import CANARY, canary
from support.messaging import EQK, EchoProducer, Processor
from support.ports import free_ports

PASSWORD = canary('-pass word')
QUOTED = PASSWORD.replace(' ', '%20')


def of_class(hup: Any) -> Any:
    return type('Named', (EchoProducer,), {'hup': hup})()


def of_program(hup: Any) -> Any:
    vars(messaging)['global_hup'] = hup
    return EchoProducer()


def of_environment(hup: Any) -> Any:
    if isinstance(hup, str):
        os.environ['POSTAGE_URL'] = hup
    else:
        os.environ.update({f'POSTAGE_{name.upper()}': str(value) for name, value in hup.items()})
    return EchoProducer()


def of_adapter(hup: Any) -> Any:
    return RabbitMQAdapter(RawMessage, MissiveProcessor(), ['q'], hup)._connect()


WAYS: dict[str, Callable[[Any], Any]] = {
    'consumer': lambda hup: messaging.GenericConsumer(EQK, hup=hup),
    'producer': lambda hup: EchoProducer(hup=hup),
    'processor': lambda hup: Processor(EQK, hup=hup),
    'application': lambda hup: GenericApplication(messaging.Fingerprint('a', 'b'), hup=hup),
    'dead letters': lambda hup: list(QueueDeadLetters('q', hup=hup).letters()),
    'class': of_class,
    'program': of_program,
    'environment': of_environment,
    'adapter': of_adapter,
}


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('URL', 'HOST', 'PORT', 'USER', 'PASSWORD', 'SSL'):
        monkeypatch.setenv(f'POSTAGE_{name}', '')
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.05')
    monkeypatch.setattr(messaging, 'global_hup', messaging.global_hup)


def hup_of(host: str, port: int, **more: Any) -> dict[str, Any]:
    return {'host': host, 'port': port, 'user': 'guest', 'password': PASSWORD, **more}


def url_of(host: str, port: Any, rest: str = '', scheme: str = 'amqp') -> str:
    return f'{scheme}://guest:{QUOTED}@{host}:{port}/{rest}'


@pytest.fixture(scope='module')
def broker() -> Iterator[BrokerServer]:
    with BrokerServer() as server:
        yield server


@pytest.fixture(scope='module')
def encrypted() -> Iterator[BrokerServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert('127.0.0.1').configure_cert(context)
    with BrokerServer(tls=context) as server:
        yield server


@pytest.fixture
def failures(broker: BrokerServer, encrypted: BrokerServer, restored: None) -> dict[str, Any]:
    (nobody,) = free_ports(1)
    return {
        'refused': hup_of('127.0.0.1', broker.port),
        'refused by URL': url_of('127.0.0.1', broker.port),
        'unreachable': hup_of('127.0.0.1', nobody),
        'unreachable by URL': url_of('127.0.0.1', nobody),
        'no name': url_of('no-such-host.invalid', 1),
        'certificate': hup_of('127.0.0.1', encrypted.port, ssl=True),
        'certificate by URL': url_of('127.0.0.1', encrypted.port, scheme='amqps'),
        'virtual host': f'amqp://guest:guest@127.0.0.1:{broker.port}/{CANARY}'.replace(CANARY, 'none'),
        'bad port': url_of('h', 'port'),
        'bad port in a HUP': hup_of('h', 99999),
        'bad host': hup_of('a b', 1),
        'URL for a host': {'host': url_of('h', 1), 'user': 'me'},
        'misspelt': {'host': 'h', 'pasword': PASSWORD},
        'no text': {'host': 'h', 'password': [PASSWORD]},
        'no HUP': [PASSWORD],
        'bytes': url_of('h', 1).encode(),
        'no scheme': f'guest:{QUOTED}@h',
        'other scheme': f'http://guest:{QUOTED}@h',
        'space': f'amqp://guest:{PASSWORD}@a b/',
        'not UTF-8': url_of('h', 1, '%ff'),
        'password not UTF-8': f'amqp://guest:{QUOTED}%ff@h/',
        'slash': f'amqp://guest:a/{QUOTED}@h/',
        'question': f'amqp://guest:a?{QUOTED}@h/',
        'hash': f'amqp://guest:a#{QUOTED}@h/',
        'bracket': f'amqp://guest:[{QUOTED}@h/',
        'path': url_of('h', 1, 'a/b'),
        'virtual host too long': url_of('h', 1, 'v' * 300),
        'unknown option': url_of('h', 1, f'?password={QUOTED}'),
        'bad option': url_of('h', 1, '?heartbeat=often'),
        'option of TLS': url_of('h', 1, f'?ssl_options={{"certfile":"none","password":"{QUOTED}"}}', 'amqps'),
        'broken option of TLS': url_of('h', 1, f'?ssl_options={{"password":"{QUOTED}"', 'amqps'),
        'mechanism': url_of('h', 1, '?auth_mechanism=MAGIC'),
        'EXTERNAL without TLS': url_of('h', 1, '?auth_mechanism=EXTERNAL'),
        'several that differ': f'{url_of("a", 1)},amqp://guest:x@b/',
        'one of several': f'{url_of("a", 1)},{url_of("b", "port")}',
    }


NAMES = re.findall(r"^        '([^']+)': ", Path(__file__).read_text(), re.MULTILINE)
FOR_PROGRAMS = ('no HUP', 'no text', 'bytes', 'misspelt', 'certificate')  # the environment has text alone


@pytest.mark.parametrize(
    ('failure', 'way'),
    [(name, way) for name in NAMES for way in WAYS if way != 'environment' or name not in FOR_PROGRAMS],
)
def test_whatever_fails_no_frame_shows_a_password(
    failures: dict[str, Any], failure: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one, other tests say
        WAYS[way](failures[failure])
    assert isinstance(caught.value, messaging.PostageError), caught.value
    assert not leaks(caught.value)
    for record in caplog.records:
        if record.exc_info and record.exc_info[1] is not None:
            assert not leaks(record.exc_info[1])
    assert not sightings(caplog.text)


def test_every_failure_has_its_test(failures: dict[str, Any]) -> None:
    assert set(NAMES) == set(failures)


def test_a_search_finds_a_password_in_a_frame() -> None:
    namespace: dict[str, Any] = {'__name__': 'postage.nowhere'}
    code = 'def fail(url):\n  try:\n    {}[url]\n  except KeyError:\n    raise ValueError("x") from None'
    exec(code, namespace)
    for value in (PASSWORD, {'password': PASSWORD}, [(PASSWORD,)], PASSWORD.encode()):
        with pytest.raises((ValueError, TypeError)) as caught:
            namespace['fail'](value)
        assert leaks(caught.value)
    with pytest.raises(KeyError) as quoted:
        {}[PASSWORD]
    assert leaks(quoted.value)


def test_a_secret_is_shown_by_nothing() -> None:
    secret = Secret(PASSWORD)
    for text in (
        f'{secret}',
        f'{secret!r}',
        str(secret),
        ' '.join(map(str, [secret])),
        shown([secret]),
        shown({'x': secret}),
    ):
        assert not sightings(text)
    assert secret.reveal() == PASSWORD
    assert secret == Secret(PASSWORD)
    assert secret != Secret('x')
    assert secret != PASSWORD
    assert len({secret, Secret(PASSWORD)}) == 1
    settings = broker_settings({'host': 'h', 'password': PASSWORD}, environ={})
    assert not sightings(shown(settings) + shown(vars(settings)))


@pytest.mark.parametrize('url', [f'redis://:{QUOTED}@h:port/', f'http://:{QUOTED}@h', f'redis://:[{QUOTED}@h'])
def test_a_url_of_redis_that_cannot_be_read_shows_no_password(url: str) -> None:
    redis = pytest.importorskip('postage.missive.adapters.redis')
    with pytest.raises(messaging.ConfigurationError, match='REDIS_URL') as caught:
        redis.RedisPubSubAdapter(RawMessage, MissiveProcessor(), url_or_conn=url).run()
    assert not leaks(caught.value)


# A file


@pytest.mark.parametrize('content', [b'\xff' + PASSWORD.encode(), b'', b'\n' + PASSWORD.encode()])
def test_a_file_that_fails_shows_nothing_of_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / 'password'
    path.write_bytes(content)
    with pytest.raises(messaging.ConfigurationError, match='POSTAGE_PASSWORD_FILE cannot be read') as caught:
        broker_settings(environ={'POSTAGE_PASSWORD_FILE': str(path)})
    assert not leaks(caught.value)


def test_a_file_as_programs_hold_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / 'password'
    path.write_text(f'{PASSWORD}\r\nmore')
    assert broker_settings(environ={'POSTAGE_PASSWORD_FILE': str(path)}).password == Secret(PASSWORD)


# What a program sets


def test_a_misspelt_name_in_the_global_hup_shows_no_password() -> None:
    with pytest.raises(messaging.ConfigurationError) as caught:
        messaging.global_hup['pasword'] = PASSWORD
    assert not leaks(caught.value)


# The embedded broker


def fail_to_serve(**arguments: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        BrokerServer(**arguments).start()
    return caught.value


def test_a_broker_that_cannot_begin_shows_no_password(broker: BrokerServer) -> None:
    users = {'guest': PASSWORD}
    wrong = {'guest': {'/': Permissions('(', '', '')}}
    for error in (
        fail_to_serve(users=users, permissions=wrong),
        fail_to_serve(users=users, port=broker.port),
        fail_to_serve(users=users, rules='1.0'),
        fail_to_serve(users={'guest': 5}),
        fail_to_serve(users=[('guest', PASSWORD)]),
    ):
        assert not leaks(error)


def test_a_user_that_cannot_be_added_shows_no_password(broker: BrokerServer) -> None:
    with pytest.raises(re.error) as caught:
        broker.add_user('other', PASSWORD, {'/': Permissions('(', '', '')})
    assert not leaks(caught.value)


@pytest.mark.parametrize('how', ['argument', 'file', 'variable'])
def test_a_broker_command_that_fails_shows_no_password(
    how: str, broker: BrokerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'password'
    path.write_text(PASSWORD)
    arguments = {'argument': ['--password', PASSWORD], 'file': ['--password-file', str(path)], 'variable': []}[how]
    monkeypatch.setenv('POSTAGE_BROKER_PASSWORD', PASSWORD)

    def fail(self: Any) -> None:
        raise RuntimeError('unexpected')

    monkeypatch.setattr(BrokerServer, 'listen', fail)
    with pytest.raises(RuntimeError) as caught:
        broker_command.main(['--port', '0', *arguments])
    assert not leaks(caught.value)
    ran = CliRunner().invoke(command_line, ['broker', '--port', '0', *arguments])
    assert isinstance(ran.exception, RuntimeError)
    ours = [
        frame for frame, _ in traceback.walk_tb(ran.exception.__traceback__) if 'postage' in frame.f_code.co_filename
    ]
    assert not [frame for frame in ours if sightings(shown(dict(frame.f_locals)))]


@contextlib.contextmanager
def noted_errors(name: str) -> Iterator[list[BaseException]]:
    """The exceptions that are logged meanwhile, with their frames, as a tool that sends them on gets them."""
    found: list[BaseException] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                found.append(record.exc_info[1])
            assert not sightings(record.getMessage())

    handler = Handler()
    logging.getLogger(name).addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger(name).removeHandler(handler)


def test_an_error_of_the_broker_itself_at_a_login_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError('unexpected')

    monkeypatch.setattr('postage.broker.connection.login_of', fail)
    with BrokerServer() as server, noted_errors('postage.broker') as found:
        parameters = pika.URLParameters(server.url.replace('guest:guest', f'guest:{QUOTED}'))
        with pytest.raises(pika.exceptions.AMQPError):
            pika.BlockingConnection(parameters)
    for error in found:
        assert not leaks(error)


@pytest.mark.parametrize('mechanism', ['PLAIN', 'MAGIC'])
def test_a_login_that_cannot_be_read_is_not_quoted(mechanism: str, caplog: pytest.LogCaptureFixture) -> None:
    from pika import spec

    from postage.broker.node import Node
    from support.channels import PROTOCOL_HEADER, method_frame, raw_frame

    login = spec.Connection.StartOk({}, mechanism, f'\0guest\0{PASSWORD}', 'en_US')
    whole = method_frame(0, login)
    for broken in (
        whole,
        whole[:-1] + b'\0',
        raw_frame(1, 0, whole[7:-4]),
        raw_frame(1, 0, whole[7:20] + whole[30:-1]),
    ):
        connection = Node({'guest': 'guest'}).connect('test')
        connection.receive_bytes(PROTOCOL_HEADER)
        connection.receive_bytes(broken)
        assert not sightings(caplog.text)
        assert not sightings(connection.data_to_send().decode('latin-1'))


# Threads of ours


def test_an_unexpected_error_on_the_connection_thread_shows_no_password(
    broker: BrokerServer, restored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from postage.amqp.attempts import Attempts

    def fail(*_: Any) -> None:
        raise RuntimeError('unexpected')

    monkeypatch.setattr(Attempts, '_on_failed', fail)
    monkeypatch.setattr(Attempts, '_on_link_open', fail)
    with noted_errors('postage') as found, pytest.raises(messaging.PostageError) as caught:
        EchoProducer(hup=hup_of('127.0.0.1', broker.port))
    assert not leaks(caught.value)
    assert found
    for error in found:
        assert not leaks(error)
        assert list(chain(error))


def test_no_command_shows_the_password_of_a_url(restored: None) -> None:
    ran = CliRunner().invoke(
        command_line, ['dead-letters', 'list', '--queue', 'none'], env={'POSTAGE_URL': url_of('127.0.0.1', 1, 'a/b')}
    )
    assert ran.exit_code
    assert not sightings(ran.output)
    good = url_of('127.0.0.1', free_ports(1)[0])
    for urls in ([url_of('h', 'port')], [good], [good, good], [good, 'module']):
        ran = CliRunner().invoke(command_line, ['doctor', '--timeout', '0.2', *urls])
        assert ran.exit_code
        assert not sightings(ran.output)
