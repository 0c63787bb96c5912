"""What users may do: https://www.rabbitmq.com/docs/access-control."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ProbableAccessDeniedError

from conformance.version_table import says
from postage.broker.users import Permissions
from support.brokers import Broker
from support.canary import canary
from support.channels import refusal_of
from support.users import add_user, delete_user


def connect_as(broker: Broker, name: str) -> pika.BlockingConnection:
    parameters = pika.URLParameters(broker.url)
    parameters.credentials = pika.PlainCredentials(name, canary(name))
    return pika.BlockingConnection(parameters)


@pytest.fixture
def bob(broker: Broker, channel: BlockingChannel) -> Iterator[BlockingChannel]:
    """A channel of a user who may configure names with ``c-``, write to those with ``w-``, and read ``r-`` and ``c-``.

    Queues and exchanges with each of these prefixes, and with ``o-``, exist.
    """
    for prefix in 'cwro':
        channel.queue_declare(f'{prefix}-q', durable=True)
        channel.exchange_declare(f'{prefix}-x')
    add_user(broker, 'bob', Permissions('^c-', '^w-', '^[rc]-'))
    with contextlib.closing(connect_as(broker, 'bob')) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    delete_user(broker, 'bob')


def with_arguments(**arguments: str) -> dict[str, str]:
    return {name.replace('_', '-'): value for name, value in arguments.items()}


Action = Callable[[BlockingChannel], Any]

ALLOWED: dict[str, Action] = {
    'declare': lambda channel: channel.queue_declare('c-q', durable=True),
    'declare with dead letters': lambda channel: channel.queue_declare(
        'c-new', exclusive=True, arguments=with_arguments(x_dead_letter_exchange='w-x')
    ),
    'declare an exchange': lambda channel: channel.exchange_declare('c-x'),
    'bind': lambda channel: channel.queue_bind('w-q', 'r-x', 'k'),
    'bind exchanges': lambda channel: channel.exchange_bind('w-x', 'r-x', 'k'),
    'get': lambda channel: channel.basic_get('r-q'),
    'consume': lambda channel: channel.basic_consume('r-q', print),
    'purge': lambda channel: channel.queue_purge('r-q'),
    'publish': lambda channel: channel.basic_publish('w-x', 'k', b''),
    'delete': lambda channel: channel.queue_delete('c-q'),
    'delete an exchange': lambda channel: channel.exchange_delete('c-x'),
}

REFUSED: dict[str, tuple[Action, str]] = {
    'declare': (lambda channel: channel.queue_declare('w-new', durable=True), "configure queue 'w-new'"),
    'declare otherwise': (lambda channel: channel.queue_declare('o-q'), "configure queue 'o-q'"),
    'declare what is invalid': (
        lambda channel: channel.queue_declare('o-new', arguments={'x-message-ttl': -1}),
        "configure queue 'o-new'",
    ),
    'declare with dead letters': (
        lambda channel: channel.queue_declare('c-new', arguments=with_arguments(x_dead_letter_exchange='o-x')),
        "write exchange 'o-x'",
    ),
    'declare with dead letters to queues': (
        lambda channel: channel.queue_declare('c-new', arguments=with_arguments(x_dead_letter_exchange='')),
        "write exchange 'amq.default'",
    ),
    'declare an exchange': (lambda channel: channel.exchange_declare('o-x'), "configure exchange 'o-x'"),
    'declare an exchange with an alternate': (
        lambda channel: channel.exchange_declare('c-new', arguments=with_arguments(alternate_exchange='o-x')),
        "write exchange 'o-x'",
    ),
    'delete': (lambda channel: channel.queue_delete('o-q'), "configure queue 'o-q'"),
    'delete what is missing': (lambda channel: channel.queue_delete('missing'), "configure queue 'missing'"),
    'delete an exchange': (lambda channel: channel.exchange_delete('o-x'), "configure exchange 'o-x'"),
    'bind a queue': (lambda channel: channel.queue_bind('o-q', 'r-x', 'k'), "write queue 'o-q'"),
    'bind to an exchange': (lambda channel: channel.queue_bind('w-q', 'o-x', 'k'), "read exchange 'o-x'"),
    'bind what is missing': (lambda channel: channel.queue_bind('missing', 'r-x', 'k'), "write queue 'missing'"),
    'bind to the default exchange': (lambda channel: channel.queue_bind('o-q', '', 'k'), "write queue 'o-q'"),
    'unbind a queue': (lambda channel: channel.queue_unbind('o-q', 'o-x', 'k'), "write queue 'o-q'"),
    'unbind from an exchange': (lambda channel: channel.queue_unbind('w-q', 'o-x', 'k'), "read exchange 'o-x'"),
    'bind an exchange': (lambda channel: channel.exchange_bind('o-x', 'r-x', 'k'), "write exchange 'o-x'"),
    'bind from an exchange': (lambda channel: channel.exchange_bind('w-x', 'o-x', 'k'), "read exchange 'o-x'"),
    'get': (lambda channel: channel.basic_get('o-q'), "read queue 'o-q'"),
    'get from what is missing': (lambda channel: channel.basic_get('missing'), "read queue 'missing'"),
    'consume': (lambda channel: channel.basic_consume('o-q', print), "read queue 'o-q'"),
    'purge': (lambda channel: channel.queue_purge('o-q'), "read queue 'o-q'"),
    'publish': (lambda channel: channel.basic_publish('o-x', 'k', b''), "write exchange 'o-x'"),
    'publish to what is missing': (
        lambda channel: channel.basic_publish('missing', 'k', b''),
        "write exchange 'missing'",
    ),
    'publish to queues': (lambda channel: channel.basic_publish('', 'w-q', b''), "write exchange 'amq.default'"),
}


def test_a_user_may_do_what_the_permissions_cover(bob: BlockingChannel) -> None:
    for action in ALLOWED.values():
        action(bob)


def test_a_user_is_refused_everything_else(broker: Broker, bob: BlockingChannel) -> None:
    for name, (action, what) in REFUSED.items():
        refusal = refusal_of(action, confirming(bob))
        right, _, resource = what.partition(' ')
        missing = says(broker, 'a refusal says which right is missing').format(right=right)
        text = f"ACCESS_REFUSED - {missing} to {resource} in vhost '{broker.vhost}' refused for user 'bob'"
        assert refusal == (403, text), name


def confirming(channel: BlockingChannel) -> BlockingChannel:
    """Return another channel of the same connection, as each refusal costs one."""
    another = channel.connection.channel()
    another.confirm_delivery()
    return another


def test_a_server_named_queue_needs_a_permission_too(broker: Broker, bob: BlockingChannel) -> None:
    code, text = refusal_of(bob.queue_declare, '', exclusive=True)
    assert code == 403
    missing = says(broker, 'a refusal says which right is missing').format(right='configure')
    assert text.startswith(f"ACCESS_REFUSED - {missing} to queue 'amq.gen-")


def test_a_user_without_permissions_in_a_virtual_host_may_not_enter_it(broker: Broker) -> None:
    add_user(broker, 'carol', None)
    try:
        with pytest.raises(ProbableAccessDeniedError) as caught:
            connect_as(broker, 'carol')
    finally:
        delete_user(broker, 'carol')
    assert f"NOT_ALLOWED - access to vhost '{broker.vhost}' refused for user 'carol'" in str(caught.value)
