"""What ``from postage import messaging`` gives. A name that goes away from here breaks programs."""

from __future__ import annotations

import pytest

import postage
from postage import errors, messaging, microthreads

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
    'DeadLetter',
    'DeadLetterStore',
    'Retry',
    'RpcFuture',
    'Threaded',
    'Timeout',
    'current_delivery',
    'quorum',
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
def test_a_setting_that_a_program_may_set_is_unset_at_first(name):
    assert not getattr(messaging, name)


def test_what_is_defined_here_has_a_docstring():
    for name in messaging.__all__:
        assert (getattr(messaging, name).__doc__ or '').strip(), name


def test_the_names_of_the_scheduler_are_there():
    for name in ('MicroThread', 'MicroScheduler', 'ExitScheduler'):
        assert hasattr(microthreads, name), name


def test_control_flow_stands_outside_the_tree_of_errors():
    flow = (messaging.RejectMessage, messaging.FilterError, messaging.AckAndRestart, microthreads.ExitScheduler)
    assert not any(issubclass(each, messaging.PostageError) for each in flow)
