"""The keys that messages are signed with: in which forms they are given, and what is said of those that are none."""

from __future__ import annotations

import os
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest

from postage import errors, messaging
from postage.messaging.keys import keys_of

SECRET = 'Tr0ub4dor-and-3-more'
OTHER = 'another-long-enough-key'
EXCHANGE = type('Some', (messaging.Exchange,), {'name': 'some'})


def ids(given: Any = None, **environ: str) -> list[str]:
    return [key.id for key in keys_of('Producer.signing_keys', given, environ)]


@pytest.mark.parametrize(
    'given',
    [
        f'one:{SECRET},two:{OTHER}',
        f'one:{SECRET}  two:{OTHER}\n',
        [f'one:{SECRET}', f'two:{OTHER}'],
        [('one', SECRET), ('two', OTHER.encode())],
        {'one': SECRET.encode(), 'two': OTHER},
    ],
)
def test_keys_are_given_in_many_forms_and_the_first_one_signs(given: Any) -> None:
    keys = keys_of('here', given, {})
    same = keys_of('here', [('one', SECRET), ('two', OTHER)], {})
    assert [key.id for key in keys] == ['one', 'two']
    assert [key.mac(b'data') for key in keys] == [key.mac(b'data') for key in same]


@pytest.mark.parametrize('given', [SECRET, SECRET.encode(), [SECRET], [SECRET.encode()]])
def test_a_key_without_an_id_has_the_same_one_everywhere(given: Any) -> None:
    (id,) = ids(given)
    assert len(id) == 8
    assert ids(given) == ids(SECRET)
    assert ids(OTHER) != ids(SECRET)


def test_the_environment_says_which_where_the_class_does_not(tmp_path: Path) -> None:
    file = tmp_path / 'keys'
    file.write_text(f'two:{OTHER}\none:{SECRET}\n')
    file.chmod(0o600)
    assert ids() == []
    assert ids(POSTAGE_SIGNING_KEYS=f'one:{SECRET}') == ['one']
    assert ids(POSTAGE_SIGNING_KEYS_FILE=str(file)) == ['two', 'one']
    assert ids(POSTAGE_SIGNING_KEYS_FILE='') == []
    assert ids(POSTAGE_SIGNING_KEYS=f'one:{SECRET}', POSTAGE_SIGNING_KEYS_FILE=str(file)) == ['one']
    assert ids(f'own:{SECRET}', POSTAGE_SIGNING_KEYS=f'one:{SECRET}') == ['own']
    assert ids(False, POSTAGE_SIGNING_KEYS=f'one:{SECRET}') == []


@pytest.mark.parametrize(
    ('given', 'why'),
    [
        ('', 'is empty'),
        ([], 'is empty'),
        ({}, 'is empty'),
        (b'', 'a key that is empty, number 1'),
        ([''], 'a key that is empty, number 1'),
        ('one:', 'a key that is empty, number 1'),
        ([SECRET, SECRET[:15]], 'a key that has 15 bytes, number 2; a key has 16 bytes or more'),
        (f'one:{SECRET},one:{OTHER}', "two keys with the id 'one'"),
        ([SECRET, SECRET], 'two keys with the id'),
        ({'': SECRET}, 'number 1, whose id is not'),
        ({'my key': SECRET}, 'number 1, whose id is not'),
        ({1: SECRET}, 'number 1, whose id is not'),
        (17, 'number 1 is none'),
        (True, 'number 1 is none'),
        ([SECRET, None], 'number 2 is none'),
        ([(SECRET, OTHER, SECRET)], 'number 1 is none'),
    ],
)
def test_what_are_no_keys_is_told_without_telling_the_others(given: Any, why: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        keys_of('Producer.signing_keys', given, {})
    assert str(caught.value).startswith('Producer.signing_keys has') or str(caught.value).startswith(
        'Producer.signing_keys is empty'
    )
    assert why in str(caught.value)
    assert_tells_nothing(caught.value)


def assert_tells_nothing(error: BaseException) -> None:
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in shown.stack if f'{os.sep}postage{os.sep}messaging{os.sep}' in frame.filename]
    assert ours
    text = f'{error!r} {[frame.locals for frame in ours]}'
    for secret in (SECRET, SECRET[:15], OTHER):
        assert secret not in text


@pytest.mark.parametrize('mode', [0o644, 0o604, 0o666])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / 'keys'
    file.write_text(SECRET)
    file.chmod(mode)
    with pytest.raises(
        errors.ConfigurationError, match=r'POSTAGE_SIGNING_KEYS_FILE .* its mode must be 0600'
    ) as caught:
        ids(POSTAGE_SIGNING_KEYS_FILE=str(file))
    assert_tells_nothing(caught.value)


@pytest.mark.parametrize(
    ('content', 'why'),
    [(None, 'cannot be read: No such file'), (b'\xff' * 32, 'it is not UTF-8'), (b'\n', 'is empty')],
)
def test_a_file_that_has_no_keys_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / 'keys'
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    with pytest.raises(errors.ConfigurationError, match=f'POSTAGE_SIGNING_KEYS_FILE .*{why}'):
        ids(POSTAGE_SIGNING_KEYS_FILE=str(file))


def test_a_variable_that_is_set_and_empty_is_no_way_to_sign_nothing() -> None:
    with pytest.raises(errors.ConfigurationError, match='POSTAGE_SIGNING_KEYS is empty'):
        ids(POSTAGE_SIGNING_KEYS='')


def test_nothing_shows_a_key() -> None:
    (key,) = keys_of('here', f'one:{SECRET}', {})
    assert repr(key) == '<Key one>'
    with pytest.raises(TypeError, match='not pickled'):
        pickle.dumps(key)


@pytest.mark.parametrize('base', [messaging.GenericProducer, messaging.GenericConsumer, messaging.MessageProcessor])
def test_bad_keys_of_a_class_are_told_before_it_connects(base: Any) -> None:
    cls = type('Mine', (base,), {'signing_keys': 'short', 'hup': 'amqp://localhost:1'})
    with pytest.raises(errors.ConfigurationError, match=r'^Mine.signing_keys has a key that has 5 bytes'):
        cls()


@pytest.mark.parametrize('base', [messaging.GenericConsumer, messaging.MessageProcessor])
@pytest.mark.parametrize(
    ('name', 'value', 'why'),
    [
        ('max_age', 0, 'a number of seconds above 0'),
        ('max_age', '60', 'a number of seconds above 0'),
        ('max_age', float('nan'), 'a number of seconds above 0'),
        ('signed_for', 'orders', 'a list of pairs'),
        ('signed_for', [(EXCHANGE, 7)], 'a list of pairs'),
        ('signed_for', [('orders', 'key')], 'must be an Exchange'),
    ],
)
def test_settings_of_the_wrong_shape_are_told_before_it_connects(base: Any, name: str, value: Any, why: str) -> None:
    cls = type('Mine', (base,), {'signing_keys': SECRET, name: value, 'hup': 'amqp://localhost:1'})
    with pytest.raises(errors.ConfigurationError, match=rf'^Mine\.{name}.*{why}'):
        cls()
