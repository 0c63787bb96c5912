"""Environment and HUP become settings, each field from the first source that names it."""

from __future__ import annotations

import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pytest

from postage import messaging
from postage.errors import ConfigurationError
from postage.settings import (
    BrokerSettings,
    Endpoint,
    FastLane,
    apply_debug_mode,
    broker_settings,
    debug_mode,
    default_vhost,
    fast_lane,
)
from support.canary import canary

SECRET = canary('-hunter2')


def settings(hup=None, vhost=None, environ=None, **kwds) -> BrokerSettings:
    return broker_settings(hup, vhost, environ=environ or {}, **kwds)


def hosts(found: BrokerSettings) -> list[tuple[str, int]]:
    return [(endpoint.host, endpoint.port) for endpoint in found.endpoints]


# Defaults and the environment


def test_the_defaults_are_those_of_a_bare_rabbitmq():
    assert settings() == BrokerSettings((Endpoint('localhost', 5672),), '/', 'guest', 'guest', 60)
    assert settings().connect_timeout == 60


def test_the_variables_name_every_field():
    environ = {
        'POSTAGE_HOST': 'rabbit',
        'POSTAGE_PORT': '5673',
        'POSTAGE_VHOST': 'development',
        'POSTAGE_USER': 'me',
        'POSTAGE_PASSWORD': SECRET,
        'POSTAGE_CONNECT_TIMEOUT': '2.5',
    }
    found = settings(environ=environ)
    assert found == BrokerSettings((Endpoint('rabbit', 5673),), 'development', 'me', SECRET)
    assert found.connect_timeout == 2.5


def test_the_environment_is_read_at_each_call(monkeypatch):
    monkeypatch.delenv('POSTAGE_URL', raising=False)
    monkeypatch.setenv('POSTAGE_VHOST', 'one')
    assert broker_settings().vhost == 'one'
    monkeypatch.setenv('POSTAGE_VHOST', 'two')
    assert broker_settings().vhost == 'two'


def test_a_malformed_environment_does_not_disturb_the_import():
    environ = {**os.environ, 'POSTAGE_PORT': 'no number', 'POSTAGE_URL': 'no URL'}
    subprocess.run([sys.executable, '-c', 'import postage.settings'], env=environ, check=True, timeout=30)


def test_a_variable_that_is_empty_counts_as_absent():
    names = ('URL', 'HOST', 'PORT', 'VHOST', 'USER', 'PASSWORD', 'CONNECT_TIMEOUT')
    assert settings(environ={f'POSTAGE_{name}': '' for name in names}) == settings()


def test_the_older_variables_count_where_the_newer_are_absent():
    with pytest.warns(DeprecationWarning, match='is deprecated') as caught:
        found = settings(environ={'POSTAGE_RMQ_USER': 'old', 'POSTAGE_RMQ_PASSWORD': SECRET})
    assert (found.user, found.password.reveal()) == ('old', SECRET)
    assert {str(warning.message) for warning in caught} == {
        'POSTAGE_RMQ_USER is deprecated, set POSTAGE_USER instead',
        'POSTAGE_RMQ_PASSWORD is deprecated, set POSTAGE_PASSWORD instead',
    }


def test_the_newer_variables_beat_the_older_without_a_warning():
    found = settings(
        environ={
            'POSTAGE_RMQ_USER': 'old',
            'POSTAGE_RMQ_PASSWORD': 'old',
            'POSTAGE_USER': 'new',
            'POSTAGE_PASSWORD': SECRET,
        }
    )
    assert (found.user, found.password.reveal()) == ('new', SECRET)


def test_an_older_variable_that_is_not_needed_is_not_warned_about():
    hup = {'user': 'me', 'password': SECRET}
    assert settings(hup, environ={'POSTAGE_RMQ_USER': 'old'}).user == 'me'


def test_the_host_variable_may_list_several_with_ports_of_their_own():
    environ = {'POSTAGE_HOST': 'a, b:5679,[::1],[fe80::1]:5680,::2', 'POSTAGE_PORT': '5673'}
    assert hosts(settings(environ=environ)) == [
        ('a', 5673),
        ('b', 5679),
        ('::1', 5673),
        ('fe80::1', 5680),
        ('::2', 5673),
    ]


# URLs


def test_a_url_names_every_field():
    found = settings(f'amqp://me:{SECRET}@rabbit:5673/v')
    assert found == BrokerSettings((Endpoint('rabbit', 5673),), 'v', 'me', SECRET)


def test_user_password_and_virtual_host_of_a_url_are_unquoted():
    found = settings('amqp://m%40e:p%3A%2F%23@h/%2F')
    assert (found.user, found.password.reveal(), found.vhost) == ('m@e', 'p:/#', '/')


@pytest.mark.parametrize('url', ['amqp://h', 'amqp://h/', 'AMQP://h'])
def test_what_a_url_leaves_out_falls_through(url):
    environ = {'POSTAGE_USER': 'me', 'POSTAGE_PASSWORD': SECRET, 'POSTAGE_VHOST': 'v'}
    assert settings(url, environ=environ) == BrokerSettings((Endpoint('h', 5672),), 'v', 'me', SECRET)


def test_a_url_without_a_port_means_the_port_of_its_scheme():
    assert hosts(settings('amqp://h', environ={'POSTAGE_PORT': '5673'})) == [('h', 5672)]
    assert hosts(settings('amqps://h', environ={'POSTAGE_PORT': '5673'})) == [('h', 5671)]


def test_a_url_without_a_host_means_this_one():
    assert hosts(settings('amqp://')) == [('localhost', 5672)]


def test_several_urls_are_tried_in_order():
    found = settings(f'amqp://me:{SECRET}@a/v, amqps://b:5680')
    assert hosts(found) == [('a', 5672), ('b', 5680)]
    assert (found.user, found.password.reveal(), found.vhost) == ('me', SECRET, 'v')


def test_an_ipv6_address_stands_in_brackets():
    found = settings('amqp://[::1]:5673/v')
    assert hosts(found) == [('::1', 5673)]
    assert str(found) == 'amqp://guest@[::1]:5673/v'


def test_the_query_parameters_reach_pika():
    (parameters,) = settings('amqp://h?heartbeat=4&blocked_connection_timeout=2.5').parameters()
    assert (parameters.heartbeat, parameters.blocked_connection_timeout) == (4, 2.5)


def test_commas_within_a_query_parameter_do_not_separate_urls():
    (parameters,) = settings("amqp://h?tcp_options={'TCP_KEEPIDLE':60,'TCP_KEEPCNT':3}").parameters()
    assert parameters.tcp_options == {'TCP_KEEPIDLE': 60, 'TCP_KEEPCNT': 3}


# HUPs


def test_a_hup_names_host_user_and_password():
    found = settings({'host': 'rabbit', 'user': 'me', 'password': SECRET})
    assert found == BrokerSettings((Endpoint('rabbit', 5672),), '/', 'me', SECRET)


def test_a_hup_may_name_port_and_several_hosts():
    assert hosts(settings({'host': 'a,b:5679', 'port': 5673})) == [('a', 5673), ('b', 5679)]
    assert hosts(settings({'host': 'a', 'port': '5673'})) == [('a', 5673)]


def test_what_a_hup_leaves_out_falls_through():
    environ = {'POSTAGE_PASSWORD': SECRET, 'POSTAGE_PORT': '5673', 'POSTAGE_USER': 'me'}
    assert settings({'host': 'rabbit', 'user': None}, environ=environ) == BrokerSettings(
        (Endpoint('rabbit', 5673),), '/', 'me', SECRET
    )


def test_the_port_of_a_url_is_not_given_to_the_host_of_a_hup():
    environ = {'POSTAGE_URL': f'amqps://me:{SECRET}@elsewhere:5999/v?heartbeat=4'}
    found = settings({'host': 'rabbit'}, environ=environ)
    assert found == BrokerSettings((Endpoint('rabbit', 5672),), 'v', 'me', SECRET)


def test_a_port_alone_changes_the_port_of_the_hosts_below():
    environ = {'POSTAGE_URL': 'amqp://a:1,amqp://b'}
    assert hosts(settings({'port': 5673}, environ=environ)) == [('a', 5673), ('b', 5673)]


# Precedence

CHAIN = ('argument', 'class', 'program', 'url', 'variable')


@pytest.mark.parametrize('first', range(len(CHAIN)))
@pytest.mark.parametrize('form', ['url', 'dictionary'])
def test_each_source_beats_those_below_it(first, form):
    def hup(name):
        if CHAIN.index(name) < first:
            return None
        return (
            f'amqp://{name}:{name}@{name}/{name}'
            if form == 'url'
            else dict.fromkeys(('host', 'user', 'password'), name)
        )

    def vhost(name):
        return name if CHAIN.index(name) >= first else None

    environ = {f'POSTAGE_{name}': 'variable' for name in ('HOST', 'USER', 'PASSWORD', 'VHOST')}
    if first <= CHAIN.index('url'):
        environ['POSTAGE_URL'] = 'amqp://url:url@url/url'
    found = broker_settings(
        hup('argument'),
        vhost('argument'),
        class_hup=hup('class'),
        class_vhost=vhost('class'),
        program={'global_hup': hup('program'), 'global_vhost': vhost('program')},
        environ=environ,
    )
    winner = CHAIN[first]
    assert found == BrokerSettings((Endpoint(winner, 5672),), winner, winner, winner)


def test_the_programs_user_and_password_beat_its_hup():
    program = {'global_user': 'me', 'global_password': SECRET, 'global_hup': {'host': 'h', 'user': 'other'}}
    assert settings(program=program) == BrokerSettings((Endpoint('h', 5672),), '/', 'me', SECRET)


def test_a_virtual_host_given_beside_a_url_beats_the_urls():
    assert settings('amqp://h/of-the-url', 'given').vhost == 'given'


def test_the_virtual_host_of_an_argument_url_beats_the_class_attribute():
    assert settings('amqp://h/of-the-url', class_vhost='of-the-class').vhost == 'of-the-url'


def test_the_default_virtual_host_follows_the_same_sources(monkeypatch):
    monkeypatch.setattr(os, 'environ', {})
    assert default_vhost() == '/'
    os.environ['POSTAGE_VHOST'] = 'variable'
    assert default_vhost() == 'variable'
    os.environ['POSTAGE_URL'] = 'amqp://h/url'
    assert default_vhost() == 'url'
    assert default_vhost({'global_vhost': 'program'}) == 'program'


# Encryption


def test_amqps_encrypts_with_a_context_that_checks_the_server():
    (endpoint,) = settings('amqps://h').endpoints
    assert endpoint.port == 5671
    assert endpoint.ssl_options.context.check_hostname
    assert endpoint.ssl_options.context.verify_mode is ssl.CERT_REQUIRED


def test_ssl_of_a_hup_changes_the_default_port():
    assert hosts(settings({'host': 'h', 'ssl': True})) == [('h', 5671)]
    assert hosts(settings({'host': 'h', 'ssl': True, 'port': 5673})) == [('h', 5673)]


def test_ssl_may_be_a_context_or_pikas_options():
    context = ssl.create_default_context()
    options = pika.SSLOptions(context, 'name')
    assert settings({'ssl': context}).endpoints[0].ssl_options.context is context
    assert settings({'ssl': options}).parameters()[0].ssl_options is options


def test_ssl_false_beats_the_encryption_of_a_source_below():
    (endpoint,) = settings({'host': 'h', 'ssl': False}, class_hup={'ssl': True}).endpoints
    assert (endpoint.ssl_options, endpoint.port) == (None, 5672)


def test_ssl_options_in_a_url_are_read_by_pika(tmp_path):
    url = f'amqps://h?ssl_options={{"capath":"{tmp_path}","server_hostname":"name"}}'
    (endpoint,) = settings(url).endpoints
    assert endpoint.ssl_options.server_hostname == 'name'
    assert settings(url) == settings(url)


def test_an_absent_file_in_ssl_options_is_an_error_that_says_so():
    with pytest.raises(ConfigurationError, match=r"'ssl_options' that cannot be used: .*No such file"):
        settings('amqps://h?ssl_options={"cafile":"/absent.pem"}')


# Equality, for connections are shared by it


@pytest.mark.parametrize(
    'hup',
    [
        {'host': 'h', 'ssl': True},
        {'host': 'h', 'ssl': ssl.create_default_context()},
        'amqps://h/v?heartbeat=4',
    ],
)
def test_equal_input_gives_equal_settings(hup):
    assert settings(hup) == settings(hup)
    assert hash(settings(hup)) == hash(settings(hup))


def test_the_form_of_a_hup_does_not_matter_for_equality():
    assert settings('amqp://me:x@h/v') == settings({'host': 'h', 'user': 'me', 'password': 'x'}, 'v')
    assert settings('amqps://h') == settings({'host': 'h', 'ssl': True})


@pytest.mark.parametrize(
    'other', ['amqp://me:y@h/v', 'amqp://you:x@h/v', 'amqp://me:x@g/v', 'amqp://me:x@h/w', 'amqps://me:x@h/v']
)
def test_another_broker_or_other_credentials_are_not_equal(other):
    assert settings('amqp://me:x@h/v') != settings(other)


def test_the_time_to_wait_does_not_keep_connections_apart():
    assert settings(environ={'POSTAGE_CONNECT_TIMEOUT': '1'}) == settings()


# What pika gets


def test_there_are_parameters_for_each_host_in_order():
    found = settings(f'amqp://me:{SECRET}@a:1/v%2Fw?connection_attempts=7,amqp://b:2').parameters()
    assert [(each.host, each.port, each.virtual_host) for each in found] == [('a', 1, 'v/w'), ('b', 2, 'v/w')]
    assert {each.connection_attempts for each in found} == {1}
    assert {(each.credentials.username, each.credentials.password) for each in found} == {('me', SECRET)}


# What is shown


def test_the_text_of_settings_is_a_url_without_the_password():
    found = settings({'host': 'a,b:5673', 'user': 'm@e', 'password': SECRET}, '/')
    assert str(found) == 'amqp://m%40e@a:5672,b:5673/%2F'
    assert str(settings('amqps://h/v')) == 'amqps://guest@h:5671/v'


def test_no_password_is_in_the_representation(tmp_path):
    url = f'amqps://me:{SECRET}@h?ssl_options={{"capath":"{tmp_path}","password":"{SECRET}"}}'
    assert SECRET not in repr(settings(url))


# Malformed values


@pytest.mark.parametrize(
    ('hup', 'named'),
    [
        (5, 'the argument hup must be a dictionary'),
        (['h'], 'not list'),
        ({'hots': 'h'}, "unknown key 'hots'"),
        ({'host': ''}, "['host'] has an empty host"),
        ({'host': 'a,,b'}, 'empty host'),
        ({'host': 'a b'}, "'a b'"),
        ({'host': 5}, "['host'] must be text, not int"),
        ({'host': f'amqp://me:{SECRET}@h'}, 'a URL belongs in'),
        ({'port': 'five'}, "['port'] must be a number from 1 to 65535, not 'five'"),
        ({'port': 0}, 'not 0'),
        ({'port': 65536}, 'not 65536'),
        ({'port': True}, 'not True'),
        ({'port': 5672.5}, 'not 5672.5'),
        ({'host': 'h:five'}, "not 'five'"),
        ({'ssl': 'yes'}, "['ssl'] must be True, False"),
        ({'user': ''}, "['user'] is empty"),
        ({'user': 5}, "['user'] must be text"),
        ({'password': 12345}, "['password'] must be text, not int"),
        ('', 'begins with amqp://'),
        ('localhost', 'begins with amqp://'),
        ('http://h', 'begins with amqp://'),
        ('amqp://h:five', 'port'),
        ('amqp://h:0', 'port'),
        ('amqp://h:65536', 'port'),
        ('amqp://[::1', 'no valid port or host'),
        (f'amqp://me:{SECRET}@', 'empty host'),
        (f'amqp://me:{SECRET}@:5672', 'empty host'),
        ('amqp://a,b', 'each of several URLs'),
        ('amqp://h//', '%2F'),
        ('amqp://h/a/b', '%2F'),
        ('amqp://h/%ff', 'not UTF-8'),
        ('amqp://h/\ud800', 'not UTF-8'),
        (f'amqp://me:{SECRET}\ud800@h/', 'not UTF-8'),
        ({'user': '\ud800'}, "['user'] is not UTF-8"),
        ({'password': f'{SECRET}\udcff'}, "['password'] is not UTF-8"),
        ({'host': '\ud800'}, "['host'] is not UTF-8"),
        (f'amqp://h/{"v" * 256}', 'virtual host in the argument hup is longer than the 255 bytes'),
        ('amqp://h?colour=red', "'colour' that cannot be used"),
        ('amqp://h?heartbeat=often', "'heartbeat' that cannot be used"),
        ('amqp://h?heartbeat=-1', "'heartbeat' that cannot be used"),
        ('amqp://h?heartbeat=65536', "'heartbeat' that cannot be used: it must be 65535 or less"),
        ('amqp://h?frame_max=4095', "'frame_max' that cannot be used"),
        ('amqp://h?frame_max=-1', "'frame_max' that cannot be used"),
        ('amqp://h?channel_max=-1', "'channel_max' that cannot be used"),
        ('amqp://h?channel_max=3', "'channel_max' that cannot be used: a connection needs 4 channels"),
        ('amqp://h?socket_timeout=nan', "'socket_timeout' that cannot be used: it must be a number of seconds"),
        ('amqp://h?retry_delay=-1', "'retry_delay' that cannot be used: it must be a number of seconds"),
        ('amqp://h?blocked_connection_timeout=inf', "'blocked_connection_timeout' that cannot be used"),
        (f'amqp://h?locale={"x" * 256}', "'locale' that cannot be used: it must have 255 bytes or fewer"),
        ('amqp://h?heartbeat=', "'heartbeat' once, with a value"),
        ('amqp://h?heartbeat=1&heartbeat=2', "'heartbeat' once"),
        (f'amqp://me:{SECRET}@a,amqp://me:other@b', 'differ in their password'),
        (f'amqp://me:{SECRET}@a,amqp://you:{SECRET}@b', 'differ in their user'),
        ('amqp://a/v,amqp://b/w', 'differ in their virtual host'),
    ],
)
def test_a_malformed_hup_is_an_error_that_names_it(hup, named):
    with pytest.raises(ConfigurationError) as caught:
        settings(hup)
    assert 'the argument hup' in str(caught.value)
    assert named in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize('character', '/?#@:')
@pytest.mark.parametrize('before', ['hunt', '12'])
def test_a_password_that_was_not_quoted_never_shows_in_an_error(character, before):
    url = f'amqp://me:{before}{character}er34@h/v?heartbeat=never'
    with pytest.raises(ConfigurationError) as caught:
        settings(url)
    assert 'er34' not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_key_files_password_in_ssl_options_never_shows_in_an_error():
    with pytest.raises(ConfigurationError) as caught:
        settings(f'amqps://h?ssl_options={{"certfile":"absent","password":"{SECRET}"')
    assert 'ssl_options' in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('POSTAGE_URL', 'rabbit'),
        ('POSTAGE_HOST', ','),
        ('POSTAGE_PORT', 'five'),
        ('POSTAGE_PORT', '70000'),
        ('POSTAGE_VHOST', 'v' * 256),
        ('POSTAGE_CONNECT_TIMEOUT', 'soon'),
        ('POSTAGE_CONNECT_TIMEOUT', '-1'),
        ('POSTAGE_CONNECT_TIMEOUT', 'nan'),
        ('POSTAGE_CONNECT_TIMEOUT', 'inf'),
    ],
)
def test_a_malformed_variable_is_an_error_that_names_it(name, value):
    with pytest.raises(ConfigurationError, match=name):
        settings(environ={name: value})


@pytest.mark.parametrize(
    ('kwds', 'named'),
    [
        ({'vhost': 5}, 'the argument vhost'),
        ({'vhost': ''}, 'the argument vhost'),
        ({'class_hup': 5}, 'the class attribute hup'),
        ({'class_vhost': 5}, 'the class attribute vhost'),
        ({'program': {'global_hup': 5}}, 'messaging.global_hup'),
        ({'program': {'global_vhost': 5}}, 'messaging.global_vhost'),
        ({'program': {'global_user': 5}}, 'messaging.global_user'),
        ({'program': {'global_password': 5}}, 'messaging.global_password'),
    ],
)
def test_each_source_is_named_in_its_error(kwds, named):
    with pytest.raises(ConfigurationError, match=named):
        settings(**kwds)


# Debug mode


@pytest.mark.parametrize(
    ('value', 'program', 'enabled'),
    [
        ('true', {}, True),
        ('True', {}, True),
        ('false', {}, False),
        ('', {}, False),
        (None, {}, False),
        (None, {'debug_mode': True}, True),
        (None, {'debug_mode': None}, False),
        ('true', {'debug_mode': None}, True),
    ],
)
def test_debug_mode_is_asked_for_by_the_environment_or_the_program(monkeypatch, value, program, enabled):
    monkeypatch.setattr(os, 'environ', {} if value is None else {'POSTAGE_DEBUG_MODE': value})
    assert debug_mode(program) is enabled


@contextmanager
def no_logging() -> Iterator[logging.Logger]:
    """The logger ``postage``, as in a program that configured no logging. (pytest does so for each test.)"""
    root, logger = logging.getLogger(), logging.getLogger('postage')
    kept = root.handlers[:], logger.handlers[:], logger.level
    root.handlers[:], logger.handlers[:] = [], []
    try:
        yield logger
    finally:
        root.handlers[:], logger.handlers[:] = kept[:2]
        logger.setLevel(kept[2])


def test_debug_mode_writes_to_stderr_where_no_logging_is_configured(capsys):
    with no_logging() as logger:
        apply_debug_mode(True)
        apply_debug_mode(True)
        logger.getChild('amqp').debug('declared %s', 'a queue')
    assert capsys.readouterr().err.count('declared a queue') == 1


def test_debug_mode_leaves_output_to_a_program_that_configured_logging(capsys):
    with no_logging() as logger:
        logging.getLogger().addHandler(logging.NullHandler())
        apply_debug_mode(True)
        logger.debug('declared')
        assert logger.handlers == []
        assert logger.level == logging.DEBUG
    assert capsys.readouterr().err == ''


def test_debug_mode_gives_way_to_logging_that_is_configured_later(capsys):
    with no_logging() as logger:
        apply_debug_mode(True)
        logging.getLogger().addHandler(logging.NullHandler())
        logger.debug('declared')
    assert capsys.readouterr().err == ''


def test_without_debug_mode_the_logger_is_left_alone():
    with no_logging() as logger:
        logger.setLevel(logging.ERROR)
        apply_debug_mode(False)
        assert (logger.level, logger.handlers) == (logging.ERROR, [])


# The fast lane


def test_the_fast_lane_is_direct_by_default(monkeypatch):
    monkeypatch.delenv('POSTAGE_FAST_LANE', raising=False)
    assert fast_lane() is FastLane.DIRECT
    monkeypatch.setenv('POSTAGE_FAST_LANE', '')
    assert fast_lane() is FastLane.DIRECT


@pytest.mark.parametrize('lane', FastLane)
def test_a_variable_chooses_the_lane(monkeypatch, lane):
    monkeypatch.setenv('POSTAGE_FAST_LANE', lane.value)
    assert fast_lane() is lane


@pytest.mark.parametrize('make', [messaging.GenericProducer, messaging.GenericConsumer, messaging.MessageProcessor])
def test_a_lane_that_there_is_not_is_told_at_the_constructor_with_those_that_there_are(monkeypatch, make):
    monkeypatch.setenv('POSTAGE_FAST_LANE', 'nonsense')
    monkeypatch.setenv('POSTAGE_URL', 'amqp://127.0.0.1:1')
    with pytest.raises(ConfigurationError, match=r"POSTAGE_FAST_LANE is 'nonsense'.*direct, thread"):
        make()
