"""Exchanges: declared, bound, deleted, and where each type sends a message."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import UnroutableError

from support.brokers import Broker
from support.channels import bodies, check_refusal, inequivalent, refusal_of


def routed(channel: BlockingChannel, exchange: str, key: str, headers: dict[str, Any] | None = None) -> bool:
    """Publish a message and tell whether it reached a queue."""
    try:
        channel.basic_publish(exchange, key, b'', pika.BasicProperties(headers=headers), mandatory=True)
    except UnroutableError:
        return False
    return True


def queue_bound_to(channel: BlockingChannel, exchange: str, key: str = '', arguments: Any = None) -> str:
    queue = channel.queue_declare('', exclusive=True).method.queue
    channel.queue_bind(queue, exchange, key, arguments)
    return str(queue)


# Declaration


@pytest.mark.parametrize(
    ('first', 'second', 'text'),
    [
        ({}, {'exchange_type': 'fanout'}, "'type' for {}: received 'fanout' but current is 'direct'"),
        ({}, {'durable': True}, "'durable' for {}: received 'true' but current is 'false'"),
        ({'auto_delete': True}, {}, "'auto_delete' for {}: received 'false' but current is 'true'"),
        ({'internal': True}, {}, "'internal' for {}: received 'false' but current is 'true'"),
        (
            {},
            {'arguments': {'alternate-exchange': 'a'}},
            "'alternate-exchange' for {}: received the value 'a' of type 'longstr' but current is none",
        ),
        (
            {'arguments': {'alternate-exchange': 'a'}},
            {'arguments': {'alternate-exchange': 'b'}},
            "'alternate-exchange' for {}: received 'b' but current is 'a'",
        ),
    ],
)
def test_an_exchange_redeclared_otherwise_is_refused_with_the_field_that_differs(
    broker: Broker, channel: BlockingChannel, first: dict[str, Any], second: dict[str, Any], text: str
) -> None:
    channel.exchange_declare('x', **first)
    refusal = refusal_of(channel.exchange_declare, 'x', **second)
    assert refusal == inequivalent(broker, "exchange 'x'", text)


@pytest.mark.parametrize(
    'again',
    [{}, {'passive': True, 'exchange_type': 'fanout'}, {'arguments': {'x-unknown': 1}}],
    ids=['the same', 'passive', 'unknown arguments'],
)
def test_an_exchange_redeclared_alike_is_accepted(channel: BlockingChannel, again: dict[str, Any]) -> None:
    channel.exchange_declare('x')
    channel.exchange_declare('x', **again)


@pytest.mark.parametrize(
    ('action', 'arguments', 'code', 'text'),
    [
        (
            'exchange_declare',
            {'exchange': 'amq.mine'},
            403,
            "exchange name 'amq.mine' contains reserved prefix 'amq.*'",
        ),
        ('exchange_declare', {'exchange': ''}, 403, 'operation not permitted on the default exchange'),
        ('exchange_declare', {'exchange': '', 'passive': True}, 403, 'operation not permitted on the default exchange'),
        ('exchange_declare', {'exchange': 'nx', 'passive': True}, 404, "no exchange 'nx' in vhost '{vhost}'"),
        ('exchange_delete', {'exchange': ''}, 403, 'operation not permitted on the default exchange'),
        (
            'exchange_delete',
            {'exchange': 'amq.direct'},
            403,
            "deletion of system exchange 'amq.direct' in vhost '{vhost}' not allowed",
        ),
        (
            'exchange_bind',
            {'destination': 'nx', 'source': 'amq.direct', 'routing_key': 'k'},
            404,
            "no exchange 'nx' in vhost '{vhost}'",
        ),
        (
            'exchange_bind',
            {'destination': 'amq.direct', 'source': 'nx', 'routing_key': 'k'},
            404,
            "no exchange 'nx' in vhost '{vhost}'",
        ),
        (
            'exchange_bind',
            {'destination': '', 'source': 'amq.direct', 'routing_key': 'k'},
            403,
            'operation not permitted on the default exchange',
        ),
        (
            'exchange_bind',
            {'destination': 'amq.direct', 'source': '', 'routing_key': 'k'},
            403,
            'operation not permitted on the default exchange',
        ),
    ],
)
def test_what_cannot_be_done_with_an_exchange_is_refused(
    broker: Broker, channel: BlockingChannel, action: str, arguments: dict[str, Any], code: int, text: str
) -> None:
    check_refusal(broker, channel, action, arguments, code, text)


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('amq.direct', 'direct'),
        ('amq.fanout', 'fanout'),
        ('amq.topic', 'topic'),
        ('amq.headers', 'headers'),
        ('amq.match', 'headers'),
    ],
)
def test_the_standard_exchanges_exist(channel: BlockingChannel, name: str, kind: str) -> None:
    channel.exchange_declare(name, kind, durable=True)


def test_deleting_a_missing_exchange_is_no_error(channel: BlockingChannel) -> None:
    channel.exchange_delete('nx')


def test_a_bound_exchange_is_not_deleted_if_unused_is_asked_for(broker: Broker, channel: BlockingChannel) -> None:
    channel.exchange_declare('x')
    queue_bound_to(channel, 'x', 'k')
    assert refusal_of(channel.exchange_delete, 'x', if_unused=True) == (
        406,
        f"PRECONDITION_FAILED - exchange 'x' in vhost '{broker.vhost}' in use",
    )


def test_an_auto_delete_exchange_goes_with_its_last_binding(channel: BlockingChannel) -> None:
    channel.exchange_declare('x', auto_delete=True)
    queue = queue_bound_to(channel, 'x', 'k')
    channel.queue_unbind(queue, 'x', 'k')
    assert refusal_of(channel.exchange_declare, 'x', passive=True)[0] == 404


def test_auto_delete_exchanges_in_a_chain_go_one_after_the_other(
    connection: pika.BlockingConnection, channel: BlockingChannel
) -> None:
    channel.exchange_declare('first', auto_delete=True)
    channel.exchange_declare('second', auto_delete=True)
    channel.exchange_bind('second', 'first', 'k')
    queue = queue_bound_to(channel, 'second', 'k')
    channel.queue_delete(queue)
    for name in ('first', 'second'):
        assert refusal_of(connection.channel().exchange_declare, name, passive=True)[0] == 404


# Publishing to exchanges


def test_publishing_to_a_missing_exchange_closes_the_channel(broker: Broker, channel: BlockingChannel) -> None:
    assert refusal_of(channel.basic_publish, 'nx', 'k', b'') == (
        404,
        f"NOT_FOUND - no exchange 'nx' in vhost '{broker.vhost}'",
    )


def test_an_internal_exchange_takes_nothing_from_clients(broker: Broker, channel: BlockingChannel) -> None:
    channel.exchange_declare('x', internal=True)
    assert refusal_of(channel.basic_publish, 'x', 'k', b'') == (
        403,
        f"ACCESS_REFUSED - cannot publish to internal exchange 'x' in vhost '{broker.vhost}'",
    )


def test_the_default_exchange_leads_to_the_queue_of_that_name(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    assert routed(channel, '', 'q')
    assert not routed(channel, '', 'nq')


def test_a_direct_exchange_compares_keys(channel: BlockingChannel) -> None:
    queue_bound_to(channel, 'amq.direct', 'k')
    assert routed(channel, 'amq.direct', 'k')
    assert not routed(channel, 'amq.direct', 'K')


def test_a_fanout_exchange_sends_to_every_queue(channel: BlockingChannel) -> None:
    queues = [queue_bound_to(channel, 'amq.fanout', key) for key in ('', 'k')]
    channel.basic_publish('amq.fanout', 'other', b'x')
    assert [bodies(channel, queue) for queue in queues] == [[b'x'], [b'x']]


@pytest.mark.parametrize(
    ('pattern', 'matching'),
    [
        ('', ['']),
        ('#', ['', 'a', 'a.b', 'a.b.c', 'b', '.', 'a.', '.a', 'a..b', '*', '#', 'a.*']),
        ('*', ['a', 'b', '*', '#']),
        ('a', ['a']),
        ('a.*', ['a.b', 'a.', 'a.*']),
        ('a.#', ['a', 'a.b', 'a.b.c', 'a.', 'a..b', 'a.*']),
        ('#.b', ['a.b', 'b', 'a..b']),
        ('*.*', ['a.b', '.', 'a.', '.a', 'a.*']),
        ('a.#.c', ['a.b.c']),
        ('*.#', ['a', 'a.b', 'a.b.c', 'b', '.', 'a.', '.a', 'a..b', '*', '#', 'a.*']),
        ('a.*.b', ['a..b']),
        ('#.b.#', ['a.b', 'a.b.c', 'b', 'a..b']),
        ('#.#', ['', 'a', 'a.b', 'a.b.c', 'b', '.', 'a.', '.a', 'a..b', '*', '#', 'a.*']),
        ('**', []),
        ('.', ['.']),
    ],
)
def test_a_topic_pattern_matches_words(channel: BlockingChannel, pattern: str, matching: list[str]) -> None:
    queue_bound_to(channel, 'amq.topic', pattern)
    keys = ['', 'a', 'a.b', 'a.b.c', 'b', '.', 'a.', '.a', 'a..b', '*', '#', 'a.*']
    assert [key for key in keys if routed(channel, 'amq.topic', key)] == matching


@pytest.mark.parametrize(
    ('arguments', 'matching'),
    [
        ({'x-match': 'all', 'a': 1, 'b': 'x'}, [3]),
        ({'x-match': 'any', 'a': 1, 'b': 'x'}, [2, 3, 4, 5]),
        ({'a': 1}, [2, 3]),
        ({'x-match': 'all'}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({'x-match': 'any'}, []),
        ({'a': None}, [2, 3, 5, 7, 8]),
        ({'x-foo': 1}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({'x-match': 'all-with-x', 'x-foo': 1}, [6]),
        ({'x-match': 'any-with-x', 'x-foo': 1, 'b': 'x'}, [3, 4, 5, 6]),
        ({'a': True}, [7]),
        ({'a': '1'}, [8]),
    ],
)
def test_a_headers_exchange_compares_headers(
    channel: BlockingChannel, arguments: dict[str, Any], matching: list[int]
) -> None:
    queue_bound_to(channel, 'amq.headers', arguments=arguments)
    headers: list[dict[str, Any] | None] = [
        None,
        {},
        {'a': 1},
        {'a': 1, 'b': 'x'},
        {'b': 'x'},
        {'a': 2, 'b': 'x'},
        {'x-foo': 1},
        {'a': True},
        {'a': '1'},
    ]
    assert [number for number, each in enumerate(headers) if routed(channel, 'amq.headers', '', each)] == matching


@pytest.mark.parametrize(
    ('rule', 'text'),
    [
        ('odd', 'Invalid x-match field value <<"odd">>; expected all, any, all-with-x, or any-with-x'),
        (4, 'Invalid x-match field type signedint (value 4); expected longstr'),
    ],
)
def test_an_unknown_rule_of_a_headers_binding_is_refused(channel: BlockingChannel, rule: Any, text: str) -> None:
    refusal = refusal_of(queue_bound_to, channel, 'amq.headers', arguments={'x-match': rule})
    assert refusal == (406, f'PRECONDITION_FAILED - {text}')


# From exchange to exchange


def test_a_message_follows_bindings_between_exchanges(channel: BlockingChannel) -> None:
    channel.exchange_declare('first', 'topic', auto_delete=True)
    channel.exchange_bind('amq.direct', 'first', 'a.#')
    queue_bound_to(channel, 'amq.direct', 'a.b')
    assert routed(channel, 'first', 'a.b')
    assert not routed(channel, 'first', 'a.c')
    channel.exchange_unbind('amq.direct', 'first', 'a.#')


def test_a_message_that_arrives_on_two_ways_is_queued_once(channel: BlockingChannel) -> None:
    queue = queue_bound_to(channel, 'amq.topic', 'a.*')
    channel.queue_bind(queue, 'amq.topic', '#')
    channel.basic_publish('amq.topic', 'a.b', b'x')
    assert bodies(channel, queue) == [b'x']


def test_exchanges_bound_in_a_circle_end(channel: BlockingChannel) -> None:
    for name in ('one', 'two'):
        channel.exchange_declare(name, 'fanout')
    channel.exchange_bind('one', 'two')
    channel.exchange_bind('two', 'one')
    queue = queue_bound_to(channel, 'two')
    channel.basic_publish('one', '', b'x')
    assert bodies(channel, queue) == [b'x']


def test_the_alternate_exchange_gets_what_cannot_be_routed(channel: BlockingChannel) -> None:
    channel.exchange_declare('x', arguments={'alternate-exchange': 'amq.fanout'})
    known = queue_bound_to(channel, 'x', 'known')
    other = queue_bound_to(channel, 'amq.fanout')
    channel.basic_publish('x', 'known', b'1')
    channel.basic_publish('x', 'unknown', b'2', mandatory=True)
    assert bodies(channel, known) == [b'1']
    message, _, body = channel.basic_get(other, auto_ack=True)
    assert (message.exchange, message.routing_key, body) == ('x', 'unknown', b'2')


# Bindings


def test_bindings_that_differ_in_arguments_are_two(channel: BlockingChannel) -> None:
    queue = queue_bound_to(channel, 'amq.direct', 'k', {'a': 1})
    channel.queue_bind(queue, 'amq.direct', 'k', {'a': 2})
    channel.queue_unbind(queue, 'amq.direct', 'k', {'a': 1})
    assert routed(channel, 'amq.direct', 'k')
    channel.queue_unbind(queue, 'amq.direct', 'k', {'a': 2})
    assert not routed(channel, 'amq.direct', 'k')


@pytest.mark.parametrize(
    ('queue', 'exchange', 'code', 'text'),
    [
        ('nq', 'amq.direct', 404, "NOT_FOUND - no queue 'nq' in vhost '{vhost}'"),
        ('q', 'nx', 404, "NOT_FOUND - no exchange 'nx' in vhost '{vhost}'"),
        ('nq', 'nx', 404, "NOT_FOUND - no exchange 'nx' in vhost '{vhost}'"),
        ('q', '', 403, 'ACCESS_REFUSED - operation not permitted on the default exchange'),
    ],
)
def test_a_binding_of_what_is_missing_is_refused(
    broker: Broker, channel: BlockingChannel, queue: str, exchange: str, code: int, text: str
) -> None:
    channel.queue_declare('q', exclusive=True)
    assert refusal_of(channel.queue_bind, queue, exchange, 'k') == (code, text.format(vhost=broker.vhost))


def test_unbinding_what_is_not_there_is_no_error(channel: BlockingChannel) -> None:
    channel.queue_declare('q', exclusive=True)
    channel.queue_unbind('q', 'amq.direct', 'k')
    channel.queue_unbind('nq', 'amq.direct', 'k')
    channel.queue_unbind('q', 'nx', 'k')
    channel.exchange_unbind('nx', 'amq.direct', 'k')


def test_an_empty_name_and_key_bind_the_last_queue_by_its_name(channel: BlockingChannel) -> None:
    queue = channel.queue_declare('', exclusive=True).method.queue
    channel.queue_bind('', 'amq.direct', '')
    assert routed(channel, 'amq.direct', queue)
