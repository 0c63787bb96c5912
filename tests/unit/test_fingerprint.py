"""Fingerprints say who sends a message, and look up what they are not told."""

from __future__ import annotations

import os
import pwd
import socket
import sys
import types

import pytest

from postage.errors import ConfigurationError
from postage.messaging.fingerprint import Fingerprint, as_fingerprint_dict
from postage.program import program_settings
from postage.secret import Secret


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    """Neither the environment nor the program names a virtual host."""
    for name in ('POSTAGE_URL', 'POSTAGE_VHOST'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, 'postage.messaging', types.ModuleType('postage.messaging'))


def test_a_bare_fingerprint_describes_this_process():
    assert Fingerprint().as_dict() == {
        'name': None,
        'type': None,
        'pid': str(os.getpid()),
        'host': socket.gethostname(),
        'user': pwd.getpwuid(os.getuid()).pw_name,
        'vhost': '/',
    }


def test_name_and_type_come_first():
    fingerprint = Fingerprint('echo_send', 'application')
    assert (fingerprint.name, fingerprint.type) == ('echo_send', 'application')


def test_what_is_given_is_not_looked_up():
    given = ('name', 'type', '1', 'host', 'user', 'vhost')
    assert Fingerprint(*given).as_tuple() == given


def test_the_dictionary_and_the_tuple_have_the_same_order():
    fingerprint = Fingerprint('name', 'type')
    assert list(fingerprint.as_dict()) == ['name', 'type', 'pid', 'host', 'user', 'vhost']
    assert tuple(fingerprint.as_dict().values()) == fingerprint.as_tuple()


def test_the_pid_is_text():
    assert Fingerprint(pid=123).pid == '123'


def test_each_dictionary_is_a_new_one():
    fingerprint = Fingerprint()
    fingerprint.as_dict()['name'] = 'changed'
    assert fingerprint.as_dict()['name'] is None


def test_a_forked_child_has_its_own_pid():
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, Fingerprint().pid.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100).decode() == str(child)
    os.close(read)
    os.close(write)


def test_a_user_without_a_name_is_known_by_its_number(monkeypatch):
    def no_entry(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, 'getpwuid', no_entry)
    assert Fingerprint().user == str(os.getuid())


def test_the_virtual_host_is_the_environments(monkeypatch):
    monkeypatch.setenv('POSTAGE_VHOST', 'variable')
    assert Fingerprint().vhost == 'variable'
    monkeypatch.setenv('POSTAGE_URL', 'amqp://h/url')
    assert Fingerprint().vhost == 'url'


def test_the_virtual_host_that_the_program_set_beats_the_environments(monkeypatch):
    monkeypatch.setenv('POSTAGE_URL', 'amqp://h/url')
    sys.modules['postage.messaging'].global_vhost = 'program'
    assert Fingerprint().vhost == 'program'


def test_the_programs_settings_are_read_when_asked_for():
    assert set(program_settings().values()) == {None}
    sys.modules['postage.messaging'].global_hup = {'host': 'h'}
    sys.modules['postage.messaging'].debug_mode = True
    assert program_settings() == {
        'global_hup': Secret({'host': 'h'}),
        'global_vhost': None,
        'global_user': None,
        'global_password': None,
        'debug_mode': True,
    }


def test_fingerprints_with_equal_fields_are_equal():
    assert Fingerprint('a') == Fingerprint('a')
    assert Fingerprint('a') != Fingerprint('b')
    assert Fingerprint('a') != Fingerprint('a').as_dict()


def test_the_representation_shows_every_field():
    assert repr(Fingerprint('n', 't', 1, 'h', 'u', 'v')) == (
        "Fingerprint(name='n', type='t', pid='1', host='h', user='u', vhost='v')"
    )


# What constructors accept as a fingerprint


def test_no_fingerprint_means_a_bare_one():
    assert as_fingerprint_dict(None) == Fingerprint().as_dict()


def test_a_fingerprint_is_accepted_wherever_its_dictionary_is():
    fingerprint = Fingerprint('a')
    assert as_fingerprint_dict(fingerprint) == as_fingerprint_dict(fingerprint.as_dict()) == fingerprint.as_dict()


def test_a_dictionary_is_laid_over_the_fingerprint_of_this_process():
    assert as_fingerprint_dict({}) == Fingerprint().as_dict()
    given = {'name': 'a', 'pid': 1, 'colour': 'green'}
    assert as_fingerprint_dict(given, 'v') == {**Fingerprint(vhost='v').as_dict(), **given}
    assert as_fingerprint_dict({'vhost': 'own'}, 'v')['vhost'] == 'own'


def test_all_but_none_is_text():
    assert Fingerprint(1, None, 2, 3, 4, 5).as_tuple() == ('1', None, '2', '3', '4', '5')


def test_any_attribute_may_be_set():
    fingerprint = Fingerprint()
    fingerprint.room = 'attic'
    assert fingerprint.room == 'attic'


def test_a_dictionary_is_copied():
    given = {'name': 'a'}
    as_fingerprint_dict(given)['name'] = 'changed'
    assert given == {'name': 'a'}


def test_any_object_with_a_dictionary_form_is_a_fingerprint():
    class Own:
        def as_dict(self):
            return {'name': 'own'}

    assert as_fingerprint_dict(Own()) == {**Fingerprint().as_dict(), 'name': 'own'}


@pytest.mark.parametrize('value', ['name', 5, ['name'], Fingerprint])
def test_anything_else_is_an_error_that_says_what_it_is(value):
    with pytest.raises(ConfigurationError, match=r'a fingerprint must be .* not (str|int|list|the class Fingerprint)'):
        as_fingerprint_dict(value)
