"""The exception tree: drawn in the module's docstring, and kin to pika's and Python's own."""

from __future__ import annotations

import builtins
import re

import pika.exceptions
import pytest

from postage import errors

CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.PostageError)]


def drawn_tree() -> dict[str, str]:
    """Return the parent of each class as the docstring draws it."""
    parents, above = {}, {-1: 'PostageError'}
    for line in errors.__doc__.splitlines():
        if match := re.match(r'( {4}[│ ]*)[├└]── (\w+)', line):
            depth = len(match[1]) // 4 - 1
            above[depth] = match[2]
            parents[match[2]] = above[depth - 1]
    return parents


def test_the_docstring_draws_the_tree_as_it_is():
    parents = {each.__name__: each.__bases__[0].__name__ for each in CLASSES if each is not errors.PostageError}
    assert drawn_tree() == parents


@pytest.mark.parametrize('error', CLASSES)
def test_every_error_says_when_it_is_raised(error):
    assert error.__doc__


@pytest.mark.parametrize('error', CLASSES)
def test_every_error_shows_its_own_text(error):
    assert str(error('the text')) == 'the text'
    assert 'the text' in repr(error('the text'))


@pytest.mark.parametrize(
    ('error', 'kin'),
    [
        (errors.AuthenticationFailed, pika.exceptions.ProbableAuthenticationError),
        (errors.VirtualHostRefused, pika.exceptions.ProbableAccessDeniedError),
        (errors.BrokerUnavailable, pika.exceptions.AMQPConnectionError),
        (errors.ConnectionLost, pika.exceptions.AMQPConnectionError),
        (errors.OperationRefused, pika.exceptions.AMQPChannelError),
        (errors.TimeoutError, builtins.TimeoutError),
        (errors.PublishTimeout, builtins.TimeoutError),
    ],
)
def test_clauses_written_for_pika_or_python_go_on_working(error, kin):
    with pytest.raises(kin):
        raise error('the text')


def test_a_refused_operation_keeps_the_brokers_words():
    error = errors.NotFound('no exchange x', 404, "NOT_FOUND - no exchange 'x'")
    assert (error.reply_code, error.reply_text) == (404, "NOT_FOUND - no exchange 'x'")


def test_a_mismatch_names_the_field_that_differs():
    error = errors.DeclarationMismatch('differs', field='durable', wanted='true', found='false')
    assert (error.reply_code, error.field, error.wanted, error.found) == (406, 'durable', 'true', 'false')


def test_a_publish_error_alone_is_its_own_only_failure():
    error = errors.Nacked('refused')
    assert error.failures == (error,)


def test_a_publish_error_may_report_several_failures():
    several = [errors.Nacked('one'), errors.Unroutable('two')]
    assert errors.PublishError('two failed', several).failures == tuple(several)


def test_a_time_out_keeps_the_results_that_came():
    assert errors.TimeoutError('late').results == []
    assert errors.TimeoutError('late', (1, 2)).results == [1, 2]
