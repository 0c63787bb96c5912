"""Messages are plain dictionaries that travel, and what comes in is checked before it is used."""

from __future__ import annotations

import collections
import copy
import pickle

import pytest

from postage.errors import EnvelopeError
from postage.messaging.fingerprint import Fingerprint
from postage.messaging.messages import (
    Message,
    MessageCommand,
    MessageResult,
    MessageResultError,
    MessageResultException,
    MessageStatus,
    RpcCommand,
    check_envelope,
    result_from_body,
)

EXAMPLES = [
    Message(1, k=2),
    MessageCommand('echo', 'text'),
    RpcCommand('echo', 'text'),
    MessageStatus('online'),
    MessageResult(1),
    MessageResultError('no'),
    MessageResultException('KeyError', 'x'),
]


def envelope(**fields):
    body = MessageCommand('echo', 'text').body
    body.update(fields)
    return {name: value for name, value in body.items() if value is not ...}


# What travels


@pytest.mark.parametrize('message', EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_body_has_the_fields_of_the_envelope_in_order(message):
    assert list(message.body) == ['type', 'name', 'category', 'version', 'fingerprint', 'content', '_reserved']
    assert message.body['version'] == '2'
    assert type(message.body) is dict


@pytest.mark.parametrize(
    ('message', 'content'),
    [
        (Message(1, 2, k=3), {'args': (1, 2), 'kwds': {'k': 3}}),
        (Message(1), {'args': (1,)}),
        (Message(k=3), {'kwds': {'k': 3}}),
        (Message(), {}),
        (Message(self=1, type=2), {'kwds': {'self': 1, 'type': 2}}),
    ],
)
def test_a_generic_message_carries_what_it_was_made_with(message, content):
    assert message.body == envelope(type='none', name='none', category='message', content=content)


def test_a_command_carries_its_parameters():
    assert MessageCommand('sum', {'a': 5}).body == envelope(
        type='command', name='sum', category='message', content={'parameters': {'a': 5}}
    )


def test_an_rpc_command_differs_in_its_category_alone():
    assert RpcCommand('sum', {'a': 5}).body == {**MessageCommand('sum', {'a': 5}).body, 'category': 'rpc'}


def test_an_rpc_command_is_a_command():
    assert isinstance(RpcCommand('sum'), MessageCommand)


def test_the_name_of_a_command_is_text():
    assert MessageCommand(5).body['name'] == '5'


def test_a_subclass_says_by_class_attributes_what_its_messages_are():
    class DoorEvent(Message):
        type = 'event'
        name = 'door'
        category = 'rpc'
        boolean_value = False

    event = DoorEvent(1)
    assert event.body == envelope(type='event', name='door', category='rpc', content={'args': (1,)})
    assert (event.type, event.name, event.category, event.boolean_value) == ('event', 'door', 'rpc', False)
    assert not event


@pytest.mark.parametrize('message', EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_kind_of_message_has_its_class_attributes(message):
    kind = type('Own', (type(message),), {'type': 'own', 'category': 'rpc', 'boolean_value': not message})
    own = kind.__new__(kind)
    own.body = message.body
    assert (own.type, own.category, bool(own)) == ('own', 'rpc', not message)
    assert (message.type, message.category) == (message.body['type'], message.body['category'])


def test_a_subclass_of_a_result_has_a_type_of_its_own_in_the_content():
    class Partial(MessageResult):
        name = 'part'
        result_type = 'partial'

    assert Partial(1).body['name'] == 'part'
    assert Partial(1).body['content'] == {'type': 'partial', 'value': 1, 'message': ''}


def test_a_result_has_the_name_none():
    assert MessageResult(5).body['name'] == MessageResultError('no').body['name'] == 'none'


def test_any_attribute_may_be_set_on_a_message():
    message = MessageCommand('echo')
    message.tag = 'urgent'
    assert message.tag == 'urgent'


@pytest.mark.parametrize('command', [MessageCommand, RpcCommand])
def test_a_command_without_parameters_carries_an_empty_dictionary(command):
    assert command('quit').body['content'] == {'parameters': {}}


@pytest.mark.parametrize('value', [None, 0, '', [], False])
def test_parameters_that_are_false_are_carried_all_the_same(value):
    assert MessageCommand('set', value).body['content'] == {'parameters': value}
    assert MessageCommand('set', parameters=value).body['content'] == {'parameters': value}


def test_a_status_is_the_name_of_its_message():
    assert MessageStatus('online').body == envelope(type='status', name='online', content={})


def test_a_status_that_is_not_text_travels_in_the_content_too():
    assert MessageStatus(5).body == envelope(type='status', name='5', content={'status': 5})


def test_a_status_says_more_in_its_content():
    assert MessageStatus('stored', {'order': 5}).body == envelope(type='status', name='stored', content={'order': 5})
    assert MessageStatus(5, {'of': 9}).body == envelope(type='status', name='5', content={'status': 5, 'of': 9})


def test_the_content_of_a_status_is_its_own():
    content = {'order': 5}
    message = MessageStatus('stored', content)
    content['order'] = 6
    assert message.body['content'] == {'order': 5}


@pytest.mark.parametrize('content', ['text', 5, [1]])
def test_the_content_of_a_status_is_a_dictionary(content):
    with pytest.raises(TypeError, match='the content of a status must be a dictionary, not '):
        MessageStatus('stored', content)


@pytest.mark.parametrize(
    ('message', 'content'),
    [
        (MessageResult(5), {'type': 'success', 'value': 5, 'message': ''}),
        (MessageResult(5, 'done'), {'type': 'success', 'value': 5, 'message': 'done'}),
        (MessageResultError('no'), {'type': 'error', 'value': None, 'message': 'no'}),
        (MessageResultException('KeyError', 'x'), {'type': 'exception', 'value': 'KeyError', 'message': 'x'}),
    ],
)
def test_a_result_tells_success_error_and_exception_apart(message, content):
    assert message.body['type'] == 'result'
    assert message.body['category'] == 'message'
    assert message.body['content'] == content


@pytest.mark.parametrize('message', EXAMPLES, ids=lambda message: type(message).__name__)
def test_errors_and_exceptions_are_false_and_all_else_is_true(message):
    assert bool(message) is not isinstance(message, (MessageResultError, MessageResultException))


def test_an_error_is_a_result_too():
    assert isinstance(MessageResultError('no'), MessageResult)
    assert isinstance(MessageResultException('KeyError', 'x'), MessageResult)


def test_a_result_is_true_whatever_its_value():
    assert MessageResult(None)
    assert MessageResult(False)


# Fingerprints


def test_a_fingerprint_is_updated_by_keywords():
    message = MessageCommand('echo')
    message.fingerprint(name='a', pid='1')
    message.fingerprint(pid='2')
    assert message.body['fingerprint'] == {'name': 'a', 'pid': '2'}


def test_a_fingerprint_is_updated_by_a_dictionary_or_a_fingerprint():
    fingerprint = Fingerprint('a')
    by_dictionary, by_itself = MessageCommand('echo'), MessageCommand('echo')
    by_dictionary.fingerprint(fingerprint.as_dict())
    by_itself.fingerprint(fingerprint)
    assert by_dictionary.body['fingerprint'] == by_itself.body['fingerprint'] == fingerprint.as_dict()


def test_keywords_beat_the_dictionary_beside_them():
    message = Message()
    message.fingerprint({'name': 'a', 'type': 't'}, name='b')
    assert message.body['fingerprint'] == {'name': 'b', 'type': 't'}


def test_something_else_as_a_fingerprint_is_a_type_error():
    with pytest.raises(TypeError, match='must be a dictionary or a Fingerprint, not str'):
        Message().fingerprint('a')


def test_no_two_messages_share_a_mutable_default():
    one, other = MessageCommand('echo'), MessageCommand('echo')
    one.fingerprint(name='a')
    one.body['content']['parameters']['a'] = 1
    one.body['_reserved']['a'] = 1
    assert other == MessageCommand('echo')


# As objects


def test_messages_with_equal_bodies_are_equal():
    assert MessageCommand('echo', 1) == MessageCommand('echo', 1)
    assert MessageCommand('echo', 1) != MessageCommand('echo', 2)
    assert MessageCommand('echo', 1) != RpcCommand('echo', 1)


def test_a_message_does_not_equal_its_body():
    assert MessageCommand('echo') != MessageCommand('echo').body


@pytest.mark.parametrize('message', EXAMPLES, ids=lambda message: type(message).__name__)
def test_the_text_of_a_message_is_its_bodys(message):
    assert str(message) == str(message.body)


@pytest.mark.parametrize('message', EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_can_be_copied_and_pickled(message):
    assert copy.deepcopy(message) == message
    assert pickle.loads(pickle.dumps(message)) == message


def test_a_derived_message_may_have_attributes():
    class Own(MessageCommand):
        def __init__(self):
            super().__init__('own', 1)
            self.note = 'kept'

    assert (Own().note, Own().body['name']) == ('kept', 'own')


# Results that come in


@pytest.mark.parametrize('message', EXAMPLES[4:], ids=lambda message: type(message).__name__)
def test_a_result_is_restored_from_its_body(message):
    restored = result_from_body(message.body)
    assert type(restored) is type(message)
    assert restored.body is message.body


@pytest.mark.parametrize(
    ('body', 'named'),
    [
        (None, 'must be a dictionary, but is null'),
        (MessageCommand('echo').body, "must be 'result', but is 'command'"),
        (envelope(type='result', content={'value': 1}), 'type in a result.s content .* but is missing'),
        (envelope(type='result', content={'type': 'victory', 'value': 1}), "but is 'victory'"),
        (envelope(type='result', content={'type': [], 'value': 1}), r'but is \[\]'),
        (envelope(type='result', content={'type': 'success'}), 'value in a result.s content is missing'),
        (envelope(type='result', content=None), "'content' must be a dictionary, but is null"),
    ],
)
def test_a_malformed_result_is_an_error_that_names_the_fault(body, named):
    with pytest.raises(EnvelopeError, match=named):
        result_from_body(body)


def test_a_result_without_a_message_is_understood():
    body = envelope(type='result', content={'type': 'success', 'value': 1})
    assert result_from_body(body).body['content']['value'] == 1


# Envelopes that come in


@pytest.mark.parametrize('message', EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_sound_body_is_returned_itself(message):
    assert check_envelope(message.body) is message.body


@pytest.mark.parametrize('name', ['version', 'fingerprint', '_reserved'])
def test_what_a_message_can_do_without_may_be_missing(name):
    body = envelope(**{name: ...})
    assert check_envelope(body) is body


def test_further_fields_do_not_matter():
    assert check_envelope(envelope(colour='red'))['colour'] == 'red'


def test_a_dictionary_of_ones_own_kind_is_a_body():
    body = collections.OrderedDict(envelope())
    assert check_envelope(body) is body


@pytest.mark.parametrize('body', [None, 5, 'text', [], b''])
def test_a_body_that_is_no_dictionary_is_an_error(body):
    with pytest.raises(EnvelopeError, match=r'a message must be a dictionary, but is (null|int|str|list|bytes)'):
        check_envelope(body)


@pytest.mark.parametrize('name', ['type', 'name', 'category', 'content'])
def test_a_missing_field_is_named(name):
    with pytest.raises(EnvelopeError, match=f"the field '{name}' is missing; it must be (text|a dictionary)"):
        check_envelope(envelope(**{name: ...}))


@pytest.mark.parametrize('name', ['type', 'name', 'category', 'version'])
@pytest.mark.parametrize(('value', 'found'), [(None, 'null'), (5, 'int'), ([], 'list'), ({}, 'dict')])
def test_a_field_that_is_not_text_is_named(name, value, found):
    with pytest.raises(EnvelopeError, match=f"the field '{name}' must be text, but is {found}"):
        check_envelope(envelope(**{name: value}))


@pytest.mark.parametrize('name', ['content', 'fingerprint', '_reserved'])
@pytest.mark.parametrize(('value', 'found'), [(None, 'null'), ('text', 'str'), ([], 'list')])
def test_a_field_that_is_no_dictionary_is_named(name, value, found):
    with pytest.raises(EnvelopeError, match=f"the field '{name}' must be a dictionary, but is {found}"):
        check_envelope(envelope(**{name: value}))


def test_a_category_of_ones_own_is_an_error_that_quotes_it():
    with pytest.raises(EnvelopeError, match="'category' must be 'message' or 'rpc', but is 'letter'"):
        check_envelope(envelope(category='letter'))


def test_a_long_value_is_cut_in_the_error():
    with pytest.raises(EnvelopeError) as caught:
        check_envelope(envelope(category='x' * 10_000))
    assert len(str(caught.value)) < 200
