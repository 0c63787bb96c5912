"""What ``from postage import messaging`` gives. A name that goes away from here breaks programs."""

from __future__ import annotations

import pytest

import postage
from postage import errors, messaging, microthreads
from postage.program import program_settings
from postage.secret import Secret
from postage.settings import broker_settings
from support.canary import canary

PASSWORD = canary('-exports')

OF_THE_REFERENCE = {
    'Encoder',
    'Exchange',
    'FilterError',
    'Fingerprint',
    'GenericConsumer',
    'GenericProducer',
    'Handler',
    'JsonEncoder',
    'Message',
    'MessageCommand',
    'MessageFilter',
    'MessageHandler',
    'MessageHandlerFullBody',
    'MessageProcessor',
    'MessageResult',
    'MessageResultError',
    'MessageResultException',
    'MessageStatus',
    'AckAndRestart',
    'RejectMessage',
    'RpcCommand',
    'RpcHandler',
    'TimeoutError',
}

NEW = {
    'ControlExchange',
    'DeadLetter',
    'DeadLetterStore',
    'Gathering',
    'Replies',
    'Retry',
    'RpcFuture',
    'Threaded',
    'Timeout',
    'control_key',
    'Health',
    'current_delivery',
    'deadline',
    'delivery',
    'health',
    'quorum',
    'remaining',
    'remote_exception',
    'stream',
    'with_dead_letter',
}

ELSEWHERE = {'DuplicateApplication'}
"""Errors that no class of this package raises."""

SETTINGS = {'global_vhost', 'global_user', 'global_password', 'global_hup', 'debug_mode'}


def all_errors():
    tree = {value for value in vars(errors).values() if isinstance(value, type)}
    return {each.__name__ for each in tree if issubclass(each, errors.PostageError)} - ELSEWHERE


def test_messaging_is_handed_on_by_the_package():
    assert postage.messaging is messaging


def test_the_names_of_the_reference_are_there():
    assert set(messaging.__all__) >= OF_THE_REFERENCE


def test_every_public_name_is_listed_here():
    assert set(messaging.__all__) - all_errors() - OF_THE_REFERENCE == NEW


def test_every_error_can_be_caught_by_the_public_door():
    for name in all_errors():
        assert getattr(messaging, name) is getattr(errors, name), name
    assert set(messaging.__all__) >= all_errors()


def test_the_list_of_names_is_sorted_without_repetition_and_true():
    assert messaging.__all__ == sorted(set(messaging.__all__))
    for name in messaging.__all__:
        assert hasattr(messaging, name), name


@pytest.mark.parametrize('name', sorted(SETTINGS))
def test_a_program_has_set_nothing_at_first(name):
    assert not program_settings()[name]


def test_the_settings_read_as_what_counts(monkeypatch):
    monkeypatch.setenv('POSTAGE_URL', f'amqp://me:{PASSWORD}@somewhere:5673/there')
    assert (messaging.global_vhost, messaging.global_user, messaging.global_password) == ('there', 'me', PASSWORD)
    assert dict(messaging.global_hup) == {'host': 'somewhere:5673', 'user': 'me', 'password': PASSWORD}
    assert PASSWORD not in repr(messaging.global_hup)
    settings = broker_settings(dict(messaging.global_hup), messaging.global_vhost)
    assert settings == broker_settings()


def test_an_encrypted_connection_stays_encrypted_where_the_hup_is_handed_on(monkeypatch):
    monkeypatch.setenv('POSTAGE_URL', 'amqps://somewhere')
    assert broker_settings(messaging.global_hup.copy()) == broker_settings()


def test_what_is_set_in_the_global_hup_counts_and_what_is_deleted_is_as_before():
    messaging.global_hup['host'] = 'elsewhere'
    try:
        assert messaging.GenericProducer.hup['host'] == 'elsewhere'
        assert program_settings()['global_hup'] == Secret({'host': 'elsewhere'})
    finally:
        del messaging.global_hup['host']
    assert messaging.global_hup['host'] == 'localhost'
    assert len(messaging.global_hup) == 3


def test_an_unknown_key_of_the_global_hup_is_refused():
    with pytest.raises(messaging.ConfigurationError, match="'hostname'"):
        messaging.global_hup['hostname'] = 'somewhere'


@pytest.mark.parametrize('name', ['MessageHandlerType', 'ExchangeType'])
def test_a_name_that_is_gone_says_what_instead(name):
    with pytest.raises(AttributeError, match='need no metaclass'):
        getattr(messaging, name)


def test_what_is_defined_here_has_a_docstring():
    for name in messaging.__all__:
        assert (getattr(messaging, name).__doc__ or '').strip(), name


def test_the_names_of_the_scheduler_are_there():
    for name in ('MicroThread', 'MicroScheduler', 'ExitScheduler'):
        assert hasattr(microthreads, name), name


def test_control_flow_stands_outside_the_tree_of_errors():
    flow = (messaging.RejectMessage, messaging.FilterError, messaging.AckAndRestart, microthreads.ExitScheduler)
    assert not any(issubclass(each, messaging.PostageError) for each in flow)
