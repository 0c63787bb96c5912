"""What clients may take of a broker is limited, and guessing passwords is slow."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika import spec
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker

from postage.broker import BrokerServer, Limits
from postage.broker.limits import GIB, LARGEST_METHOD, MIB, size_of
from postage.broker.login import FORGIVEN, FREE_FAILURES, LONGEST_WAIT, REMEMBERED
from postage.broker.node import Node
from support.broker_client import Client
from support.channels import PROTOCOL_HEADER, content_frames, method_frame, raw_frame

PATIENCE = 10.0


def node_of(**limits: Any) -> Node:
    return Node({'guest': 'guest'}, limits=Limits(**limits))


def refusal(client: Client) -> tuple[str, int, str]:
    close = client.read()[-1]
    return close.NAME, close.reply_code, close.reply_text


def publish(client: Client, size: int, key: str = 'q', channel: int = 1) -> None:
    client.send(content_frames(channel, spec.Basic.Publish(routing_key=key), pika.BasicProperties(), bytes(size)))


# Numbers


def test_the_connections_that_are_open_are_limited() -> None:
    node = node_of(connections=2)
    first, second = Client(node).open(), Client(node).open()
    third = Client(node)
    third.send(PROTOCOL_HEADER)
    third.send(third.handshake())
    text = 'NOT_ALLOWED - connection refused: node connection limit (2) is reached'
    assert refusal(third) == ('Connection.Close', 530, text)
    first.connection.lost()
    assert Client(node).open().connection.is_open
    assert second.ask(spec.Queue.Declare(queue='q')).NAME == 'Queue.DeclareOk'


def test_of_too_many_connections_that_are_not_open_the_oldest_goes() -> None:
    node = node_of(handshakes=3)
    good = Client(node).open()
    waiting = []
    for _ in range(5):
        waiting.append(Client(node))
        waiting[-1].send(PROTOCOL_HEADER)
        node.shared.transport_clock.advance(0.01)
    assert [client.connection.finished for client in waiting] == [True, True, False, False, False]
    assert good.ask(spec.Queue.Declare(queue='q')).NAME == 'Queue.DeclareOk'
    assert Client(node).open().connection.is_open


def test_those_that_do_not_answer_a_close_count_as_not_open() -> None:
    node = node_of(handshakes=2)
    for _ in range(10):
        Client(node).open().connection.close(320, 'CONNECTION_FORCED - test')
    assert len(node.connections) <= 3


def test_the_channels_of_all_connections_are_limited() -> None:
    node = node_of(channels=3)
    first, second = Client(node).open(channels=2), Client(node).open()
    second.send(method_frame(2, spec.Channel.Open()))
    text = 'NOT_ALLOWED - number of channels opened on node (3) has reached the maximum allowed limit of (3)'
    assert refusal(second) == ('Connection.Close', 530, text)
    # What was given back can be had.
    assert node.shared.channels.count == 2
    first.send(method_frame(2, spec.Channel.Close(200, '', 0, 0)))
    first.ask(spec.Queue.Declare(queue='none', passive=True))
    assert node.shared.channels.count == 1
    first.send(method_frame(1, spec.Channel.CloseOk()))
    assert node.shared.channels.count == 0
    assert Client(node).open(channels=3).connection.is_open


def test_queues_exchanges_and_bindings_are_limited() -> None:
    client = Client(node_of(queues=1, exchanges=1, bindings=1)).open(channels=9)
    client.ask(spec.Queue.Declare(queue='one'))
    client.ask(spec.Exchange.Declare(exchange='one', type='topic'))
    client.ask(spec.Queue.Bind(queue='one', exchange='one', routing_key='a'))
    refused = {
        2: (spec.Queue.Declare(queue='two'), "cannot declare queue 'two': queue limit in vhost '/' (1) is reached"),
        3: (
            spec.Exchange.Declare(exchange='two', type='topic'),
            "cannot declare exchange 'two' in vhost '/': exchange limit of 1 is reached",
        ),
        4: (
            spec.Queue.Bind(queue='one', exchange='one', routing_key='b'),
            "cannot bind exchange 'one' in vhost '/': binding limit in vhost '/' (1) is reached",
        ),
    }
    for channel, (method, text) in refused.items():
        client.send(method_frame(channel, method))
        assert refusal(client) == ('Channel.Close', 406, f'PRECONDITION_FAILED - {text}')
    # What is there can be declared again, and what went makes room.
    assert client.ask(spec.Queue.Declare(queue='one'), 5).NAME == 'Queue.DeclareOk'
    assert client.ask(spec.Exchange.Declare(exchange='one', type='topic'), 5).NAME == 'Exchange.DeclareOk'
    for gone in (
        spec.Queue.Unbind(queue='one', exchange='one', routing_key='a'),
        spec.Exchange.Delete(exchange='one'),
        spec.Queue.Delete(queue='one'),
    ):
        client.ask(gone, 5)
    for method in (
        spec.Queue.Declare(queue='two'),
        spec.Exchange.Declare(exchange='two', type='direct'),
        spec.Queue.Bind(queue='two', exchange='two', routing_key='b'),
    ):
        assert client.ask(method, 5).NAME.endswith('Ok')


@pytest.mark.parametrize('end', ['exchange', 'queue', 'vhost'])
def test_bindings_that_go_with_what_they_bind_are_counted_no_more(end: str) -> None:
    node = node_of()
    client = Client(node).open()
    for kind in ('direct', 'topic', 'fanout', 'headers'):
        client.ask(spec.Exchange.Declare(exchange=kind, type=kind))
        client.ask(spec.Queue.Declare(queue=kind))
        for key in ('a', 'a', 'b'):
            client.ask(spec.Queue.Bind(queue=kind, exchange=kind, routing_key=key))
    host = node.shared.virtual_hosts['/']
    assert host._bindings.count == 8
    for kind in ('direct', 'topic', 'fanout', 'headers'):
        client.ask(spec.Exchange.Delete(exchange=kind) if end == 'exchange' else spec.Queue.Delete(queue=kind))
    assert host._bindings.count == 0


def test_the_consumers_of_a_virtual_host_are_limited() -> None:
    node = node_of(consumers=2)
    client = Client(node).open(channels=2)
    host = node.shared.virtual_hosts['/']
    client.ask(spec.Queue.Declare(queue='q'))
    client.ask(spec.Basic.Consume(queue='q', consumer_tag='a'))
    client.ask(spec.Basic.Consume(queue='q', consumer_tag='b'), 2)
    client.ask(spec.Basic.Cancel(consumer_tag='a'))
    assert host.consumers.count == 1
    client.ask(spec.Basic.Consume(queue='q', consumer_tag='c'))
    client.send(method_frame(1, spec.Basic.Consume(queue='q', consumer_tag='d')))
    assert refusal(client) == ('Connection.Close', 530, 'NOT_ALLOWED - reached maximum (2) of consumers')
    assert host.consumers.count == 0


def test_consumers_that_go_with_their_queue_are_counted_no_more() -> None:
    node = node_of()
    client = Client(node).open()
    client.ask(spec.Queue.Declare(queue='q'))
    client.ask(spec.Basic.Consume(queue='q'))
    client.ask(spec.Queue.Delete(queue='q'))
    assert node.shared.virtual_hosts['/'].consumers.count == 0


def test_a_body_that_is_too_large_is_refused_before_it_arrives() -> None:
    client = Client(node_of(message_size=1000)).open()
    publish(client, 1000, 'nowhere')
    assert client.read() == []
    publish(client, 1001, 'nowhere')
    text = 'PRECONDITION_FAILED - message size 1001 is larger than configured max size 1000'
    assert refusal(client) == ('Channel.Close', 406, text)


def test_names_and_arguments_that_are_too_large_are_refused() -> None:
    client = Client(node_of()).open()
    client.send(method_frame(1, spec.Queue.Declare(queue='q', arguments={'x': 'y' * LARGEST_METHOD})))
    name, code, text = refusal(client)
    assert (name, code) == ('Channel.Close', 406)
    assert text.startswith('PRECONDITION_FAILED - method size 16')


# Memory


@pytest.mark.parametrize('kept', ['ready', 'unacknowledged', 'transaction', 'partial', 'unread'])
def test_publishers_are_blocked_while_messages_take_too_much(kept: str) -> None:
    node = node_of(memory=1_000_000)
    holder, publisher = Client(node).open(), Client(node, **{'connection.blocked': True}).open()
    holder.ask(spec.Queue.Declare(queue='q'))
    body = 100_000
    if kept == 'transaction':
        holder.ask(spec.Tx.Select())
    if kept == 'unacknowledged':
        holder.ask(spec.Basic.Consume(queue='q'))
    if kept == 'unread':
        holder.ask(spec.Basic.Consume(queue='q', no_ack=True))
    for number in range(12):
        if kept == 'partial':
            holder.send(method_frame(number + 2, spec.Channel.Open()))
            holder.send(method_frame(number + 2, spec.Basic.Publish(routing_key='q')))
            holder.send(raw_frame(2, number + 2, b'\0\x3c\0\0' + (body + 1).to_bytes(8, 'big') + b'\0\0'))
            holder.send(raw_frame(3, number + 2, bytes(body)))
        else:
            publish(holder, body)
        if kept == 'unacknowledged':
            holder.read()
    node.run_due()
    publish(publisher, 1)
    (blocked,) = publisher.read()
    assert (blocked.NAME, blocked.reason) == ('Connection.Blocked', 'low on memory')
    assert not publisher.connection.wants_data
    holder.connection.lost()
    if kept in ('ready', 'unacknowledged', 'unread'):
        reader = Client(node).open()
        reader.ask(spec.Queue.Purge(queue='q'))
        reader.read()
    node.run_due()
    assert [method.NAME for method in publisher.read()] == ['Connection.Unblocked']
    assert node.shared.memory.count < 10_000


def test_under_the_alarm_a_body_that_is_under_way_stops_too() -> None:
    node = node_of(memory=1_000_000)
    client, filler = Client(node).open(), Client(node).open()
    client.send(method_frame(1, spec.Basic.Publish(routing_key='q')))
    client.send(raw_frame(2, 1, b'\0\x3c\0\0' + (2_000_000).to_bytes(8, 'big') + b'\0\0'))
    filler.ask(spec.Queue.Declare(queue='q'))
    for _ in range(11):
        publish(filler, 100_000)
    node.run_due()
    client.send(raw_frame(3, 1, bytes(1000)) + raw_frame(3, 1, bytes(1000)))
    assert not client.connection.wants_data


def test_what_a_message_takes_is_given_back_wherever_it_ends() -> None:
    node = node_of()
    client = Client(node).open(channels=2)
    dead = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead', 'x-max-length': 2}
    for queue, arguments in (('q', dead), ('dead', {'x-message-ttl': 1000}), ('other', {'x-expires': 1000})):
        client.ask(spec.Queue.Declare(queue=queue, arguments=arguments))
        client.ask(spec.Queue.Bind(queue=queue, exchange='amq.fanout'))
    for _ in range(20):
        client.send(content_frames(1, spec.Basic.Publish(exchange='amq.fanout'), pika.BasicProperties(), b'x' * 1000))
    client.ask(spec.Basic.Get(queue='q'))
    client.ask(spec.Basic.Get(queue='other', no_ack=True), 2)
    assert node.shared.memory.count > 20_000
    client.send(method_frame(1, spec.Basic.Reject(1, requeue=False)))
    client.ask(spec.Queue.Purge(queue='q'))
    node.shared.clock.advance(5)
    client.read()
    assert node.shared.memory.count == 0


def test_a_client_that_goes_while_it_is_blocked_gives_back_what_it_held() -> None:
    limits = Limits(memory=1_000_000)
    with BrokerServer(limits=limits) as server:
        hostile = socket.create_connection((server.host, server.port))
        client = Client(Node({'guest': 'guest'}))
        channels = b''.join(method_frame(each, spec.Channel.Open()) for each in range(1, 30))
        hostile.sendall(PROTOCOL_HEADER + client.handshake() + channels)
        for channel in range(1, 30):
            hostile.sendall(method_frame(channel, spec.Basic.Publish(routing_key='q')))
            hostile.sendall(raw_frame(2, channel, b'\0\x3c\0\0' + (200_000).to_bytes(8, 'big') + b'\0\0'))
            hostile.sendall(raw_frame(3, channel, bytes(60_000)))
        wait_until(lambda: server._shared.blocked == 'low on memory')
        hostile.close()
        wait_until(lambda: server._shared.blocked is None)
        assert server._shared.memory.count == 0


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.01)


# Guessing


def try_to_log_in(node: Node, password: str, address: str = 'here', user: str = 'guest') -> str:
    """What comes of it without any waiting: ``yes``, ``no``, ``later`` or ``never``."""
    client = Client(node, f'{address}:1', password, authentication_failure_close=True)
    client.send(PROTOCOL_HEADER)
    client.send(client.handshake().replace(b'\0guest\0', f'\0{user[:5]:5}\0'.encode()))
    names = [method.NAME for method in client.read()][1:]
    client_state = 'never' if client.connection.finished else 'later'
    return {'Connection.Tune': 'yes', 'Connection.Close': 'no'}.get(names[0], '') if names else client_state


def test_the_first_failures_cost_nothing_and_those_that_follow_ever_more() -> None:
    node = node_of()
    clock = node.shared.transport_clock
    assert [try_to_log_in(node, 'wrong') for _ in range(FREE_FAILURES)] == ['no'] * FREE_FAILURES
    waits = []
    for _ in range(8):
        client = Client(node, 'here:1', 'wrong', authentication_failure_close=True)
        client.send(PROTOCOL_HEADER)
        client.send(client.handshake())
        began = clock.now()
        while not [each for each in client.read() if each.NAME == 'Connection.Close']:
            clock.advance(0.05)
        waits.append(round(clock.now() - began, 1))
        client.connection.lost()
    assert waits == sorted(waits)
    assert waits[0] < 0.3
    assert waits[-1] >= LONGEST_WAIT - 0.1


def test_the_right_password_waits_its_turn_so_that_many_at_once_learn_nothing() -> None:
    node = node_of()
    for _ in range(FREE_FAILURES):
        try_to_log_in(node, 'wrong')
    assert try_to_log_in(node, 'guest') == 'later'
    results = [try_to_log_in(node, 'wrong') for _ in range(200)]
    assert set(results) == {'later', 'never'}
    assert results.count('later') < 100


def test_a_login_that_waited_goes_on_with_what_came_meanwhile() -> None:
    node = node_of()
    for _ in range(FREE_FAILURES):
        try_to_log_in(node, 'wrong', address='test')
    client = Client(node)
    client.send(PROTOCOL_HEADER)
    client.send(client.handshake() + method_frame(1, spec.Channel.Open()))
    assert not client.connection.wants_data
    node.shared.transport_clock.advance(1)
    names = [method.NAME for method in client.read()]
    assert names == ['Connection.Start', 'Connection.Tune', 'Connection.OpenOk', 'Channel.OpenOk']
    assert client.connection.wants_data


def test_other_addresses_and_other_users_wait_for_nothing() -> None:
    node = Node({'guest': 'guest', 'other': 'guest'})
    for _ in range(20):
        try_to_log_in(node, 'wrong')
    assert try_to_log_in(node, 'guest') in ('later', 'never')
    assert try_to_log_in(node, 'guest', address='there') == 'yes'
    assert try_to_log_in(node, 'guest', user='other') == 'yes'


def test_users_that_do_not_exist_are_one() -> None:
    node = node_of()
    results = [try_to_log_in(node, 'x', user=f'u{number}') for number in range(20)]
    assert results[:FREE_FAILURES] == ['no'] * FREE_FAILURES
    assert set(results[FREE_FAILURES:]) == {'later'}


def test_failures_are_forgiven_and_few_addresses_are_remembered() -> None:
    node = node_of(handshakes=10_000)
    for _ in range(FREE_FAILURES):
        try_to_log_in(node, 'wrong')
    node.shared.transport_clock.advance(FORGIVEN + 1)
    assert try_to_log_in(node, 'guest') == 'yes'
    for number in range(REMEMBERED + 100):
        node.shared.guard.failed(f'address {number}', 'guest')
    assert len(node.shared.guard._failures) == REMEMBERED


def test_a_client_that_goes_while_its_login_waits_is_forgotten() -> None:
    node = node_of()
    for _ in range(FREE_FAILURES):
        try_to_log_in(node, 'wrong')
    client = Client(node, 'here:1')
    client.send(PROTOCOL_HEADER)
    client.send(client.handshake())
    client.connection.lost()
    node.shared.transport_clock.advance(20)
    assert client.connection not in node.connections
    assert client.connection.finished


# As options


@pytest.mark.parametrize(
    'limits',
    [{'queues': 0}, {'channels': -1}, {'memory': 10}, {'connections': 'x'}, {'bindings': True}, {'memory': None}],
)
def test_a_limit_that_is_none_is_an_error(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f'the limit of {next(iter(limits))} must be'):
        Limits(**limits)


def test_sizes_are_read_as_people_write_them() -> None:
    assert [size_of(text) for text in ('10', ' 5 KiB', '20MiB', '1gib')] == [10, 5120, 20 * MIB, GIB]
    for text in ('x', '', 'MiB', '-1', '1.5MiB', '٣', '9' * 20):
        with pytest.raises(ValueError, match='is no size'):
            size_of(text)


@contextlib.contextmanager
def few_files(number: int) -> Iterator[None]:
    """This process may open so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir('/proc/self/fd'))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_broker_that_can_open_no_more_files_goes_on_when_it_can(caplog: pytest.LogCaptureFixture) -> None:
    with BrokerServer() as server:
        good = pika.BlockingConnection(pika.URLParameters(server.url))
        clients: list[socket.socket] = []
        began = time.process_time()
        with few_files(5):
            with contextlib.suppress(OSError):
                while True:
                    clients.append(socket.socket())
            # They take no other file when they connect, and the broker has none to accept them by.
            for client in clients[:5]:
                client.connect((server.host, server.port))
            wait_until(lambda: 'no more files' in caplog.text)
        assert good.channel().queue_declare('q').method.queue == 'q'
        assert time.process_time() - began < 2
        for client in clients:
            client.close()
        pika.BlockingConnection(pika.URLParameters(server.url)).close()
        good.close()


def test_the_server_and_its_command_take_limits(capsys: pytest.CaptureFixture[str]) -> None:
    from postage.broker.__main__ import main, parser_of

    with BrokerServer(limits=Limits(queues=1, connections=1)) as server:
        connection = pika.BlockingConnection(pika.URLParameters(server.url))
        with pytest.raises(AMQPConnectionError):
            pika.BlockingConnection(pika.URLParameters(server.url))
        channel = connection.channel()
        channel.queue_declare('one')
        with pytest.raises(ChannelClosedByBroker, match='queue limit'):
            channel.queue_declare('two')
        connection.close()
    options = parser_of().parse_args(['--max-queues', '5', '--max-memory', '2MiB', '--max-message-size', '1KiB'])
    assert (options.max_queues, options.max_memory, options.max_message_size) == (5, 2 * MIB, 1024)
    assert main(['--max-queues', '0']) == 1
    assert 'the limit of queues must be' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(['--max-memory', 'much'])
    assert 'is no size' in capsys.readouterr().err
