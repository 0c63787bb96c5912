"""Exchanges are classes, and their parameters are what ``exchange_declare`` takes."""

from __future__ import annotations

import pytest

from postage.errors import ConfigurationError
from postage.messaging.exchanges import Exchange, check_exchange


class Echo(Exchange):
    name = 'echo-exchange'
    exchange_type = 'topic'
    passive = False
    durable = True
    auto_delete = False


PARAMETERS = {
    'exchange': 'echo-exchange',
    'exchange_type': 'topic',
    'passive': False,
    'durable': True,
    'auto_delete': False,
}


def test_parameters_are_read_on_the_class_and_on_an_instance():
    assert Echo.parameters == PARAMETERS
    assert Echo().parameters == PARAMETERS


def test_an_instance_may_have_attributes_of_its_own():
    exchange = Echo()
    exchange.durable = False
    assert exchange.parameters == {**PARAMETERS, 'durable': False}
    assert Echo.parameters == PARAMETERS


def test_parameters_may_be_changed_item_by_item_until_an_attribute_changes():
    class Own(Echo):
        pass

    Own.parameters['durable'] = False
    assert Own.parameters == Own().parameters == {**PARAMETERS, 'durable': False}
    assert Echo.parameters == PARAMETERS
    Own.auto_delete = True
    assert Own.parameters == {**PARAMETERS, 'auto_delete': True}


def test_attributes_are_inherited():
    class Other(Echo):
        name = 'other'

    assert Other.parameters == {**PARAMETERS, 'exchange': 'other'}


def test_an_exchange_is_direct_and_durable_unless_it_says_otherwise():
    class Plain(Exchange):
        name = 'plain'

    assert Plain.parameters == {
        'exchange': 'plain',
        'exchange_type': 'direct',
        'passive': False,
        'durable': True,
        'auto_delete': False,
    }


def test_internal_and_arguments_appear_where_they_are_set():
    class Inner(Echo):
        internal = True
        arguments = {'alternate-exchange': 'unrouted'}

    assert Inner.parameters == {**PARAMETERS, 'internal': True, 'arguments': {'alternate-exchange': 'unrouted'}}
    Inner.parameters['arguments'].clear()
    assert Inner.arguments == {'alternate-exchange': 'unrouted'}


def test_a_sound_exchange_is_returned_itself():
    instance = Echo()
    assert check_exchange(Echo, 'eks[0]') is Echo
    assert check_exchange(instance, 'eks[0]') is instance


@pytest.mark.parametrize(
    ('value', 'named'),
    [('echo-exchange', "'echo-exchange'"), (None, 'None'), (str, 'the class str'), ((Echo, 'key'), 'Echo')],
)
def test_what_is_no_exchange_is_an_error_that_says_what_it_is(value, named):
    with pytest.raises(ConfigurationError, match=r'eks\[0\] must be an Exchange') as caught:
        check_exchange(value, 'eks[0]')
    assert named in str(caught.value)


def test_an_exchange_without_a_name_is_an_error_that_names_its_class():
    class Nameless(Exchange):
        pass

    with pytest.raises(ConfigurationError, match=r'eks\[0\]: Nameless has no name'):
        check_exchange(Nameless, 'eks[0]')
    with pytest.raises(ConfigurationError, match='Nameless has no name'):
        check_exchange(Nameless(), 'eks[0]')


def test_the_default_exchange_cannot_be_declared():
    class Default(Exchange):
        name = ''

    with pytest.raises(ConfigurationError, match='default exchange'):
        check_exchange(Default, 'eks[0]')
    assert check_exchange(Default, 'eks[0]', default_allowed=True) is Default


@pytest.mark.parametrize(
    ('attribute', 'value', 'named'),
    [
        ('name', 5, '.name must be text, not int'),
        ('name', 'ü' * 128, '.name is longer than the 255 bytes'),
        ('exchange_type', None, '.exchange_type must be text'),
        ('exchange_type', '', '.exchange_type must be text'),
        ('passive', None, '.passive must be True or False, not None'),
        ('durable', 'yes', ".durable must be True or False, not 'yes'"),
        ('auto_delete', 2, '.auto_delete must be True or False, not 2'),
        ('internal', [], '.internal must be True or False'),
        ('arguments', 'x-match', ".arguments must be a dictionary or None, not 'x-match'"),
    ],
)
def test_an_attribute_of_the_wrong_type_is_named(attribute, value, named):
    with pytest.raises(ConfigurationError) as caught:
        check_exchange(type('Wrong', (Echo,), {attribute: value}), 'eks[0]')
    assert f'eks[0]: Wrong{named}' in str(caught.value)
