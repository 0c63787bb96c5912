"""The tests' own RabbitMQ node keeps what it promises to the tests that rely on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pika
import pytest

from support.brokers import Broker, RabbitMQ, connect
from support.programs import Program
from support.rabbitmq_node import START_TIMEOUT, RabbitMQNode, binary
from support.soak import IS_SOAK

# To start a node takes four seconds of the processor. The tests of reliability do that to theirs all the time.
soak_only = pytest.mark.skipif(not IS_SOAK, reason='takes long; make soak runs it')

NODE_THAT_IS_KILLED = """
import sys, time
activity, *sys.path[:0] = sys.argv[1:]
from support.rabbitmq_node import RabbitMQNode
node = RabbitMQNode()
node.start()
print(node.evaluate('os:getpid()'), node._directory)
if activity == 'talks':
    node._type('(fun Talk() -> io:format("talk~n"), timer:sleep(10), Talk() end)().')
    while 'talk' not in node._answers.get(timeout=10): pass
print('ready')
time.sleep(60)
"""


def to(node: RabbitMQNode, vhost: str) -> pika.URLParameters:
    return pika.URLParameters(node.url(vhost))


def test_every_test_has_an_empty_virtual_host(broker: Broker) -> None:
    assert broker.queues() == {}
    with connect(broker) as connection:
        connection.channel().queue_declare('something', durable=True)
    assert broker.queues() == {'something': 0}


def test_every_test_has_an_empty_virtual_host_also_after_another_test(broker: Broker) -> None:
    test_every_test_has_an_empty_virtual_host(broker)


def test_a_virtual_host_that_was_used_by_amqp_alone_is_emptied_and_serves_again(rabbitmq_node: RabbitMQNode) -> None:
    with (
        rabbitmq_node.new_vhost() as first,
        pika.BlockingConnection(to(rabbitmq_node, first)) as connection,
    ):
        channel = connection.channel()
        channel.exchange_declare('an exchange', durable=True)
        for queue, flags in {'shared': {}, 'exclusive': {'exclusive': True}}.items():
            channel.queue_declare(queue, durable=True, **flags)
            channel.queue_bind(queue, 'an exchange', 'key')
            channel.queue_bind(queue, 'amq.topic', 'key')
            channel.basic_publish('', queue, b'message')
    with rabbitmq_node.new_vhost() as second:
        assert second == first
        made = f'length(rabbit_exchange:list({binary(first)})), length(rabbit_binding:list({binary(first)}))'
        assert rabbitmq_node.queues(first) == {}
        assert rabbitmq_node.evaluate(f'io_lib:format("~p, ~p", [{made}])') == '7, 0'
    with rabbitmq_node.new_vhost() as third:
        assert third != first  # something other than AMQP may have changed that one


def test_a_virtual_host_with_a_binding_that_stays_is_deleted(rabbitmq_node: RabbitMQNode) -> None:
    with rabbitmq_node.new_vhost() as first, pika.BlockingConnection(to(rabbitmq_node, first)) as connection:
        connection.channel().exchange_bind('amq.topic', 'amq.direct', 'key')
    with rabbitmq_node.new_vhost() as second:
        assert second != first


def test_a_virtual_host_with_a_connection_that_stays_is_deleted(rabbitmq_node: RabbitMQNode) -> None:
    with rabbitmq_node.new_vhost() as first:
        connection = pika.BlockingConnection(to(rabbitmq_node, first))
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker):
        connection.process_data_events(time_limit=10)
    with rabbitmq_node.new_vhost() as second:
        assert second != first


def test_queues_are_counted_by_the_messages_that_wait(broker: Broker) -> None:
    with connect(broker) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare('a queue: größe', durable=True)
        channel.basic_publish('', 'a queue: größe', b'one')
        channel.basic_publish('', 'a queue: größe', b'two')
        assert broker.queues() == {'a queue: größe': 2}


def test_closing_all_connections_tells_them_so(broker: Broker) -> None:
    with connect(broker) as connection:
        broker.close_all_connections()
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as caught:
            connection.process_data_events(time_limit=10)
        assert caught.value.reply_code == 320


def test_virtual_hosts_come_and_go(broker: Broker) -> None:
    broker.add_vhost('another one/%')
    parameters = pika.URLParameters(broker.url_of('another one/%'))
    pika.BlockingConnection(parameters).close()
    broker.delete_vhost('another one/%')
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError):
        pika.BlockingConnection(parameters)


def test_a_killed_node_comes_back_with_its_durable_queues(private_rabbitmq: RabbitMQ) -> None:
    with connect(private_rabbitmq) as connection:
        connection.channel().queue_declare('kept', durable=True)
        private_rabbitmq.node.evaluate('mnesia:sync_log(), ""')  # a broker answers before its log is written
        private_rabbitmq.node.kill()
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            connection.process_data_events(time_limit=10)
    private_rabbitmq.node.start()
    assert private_rabbitmq.queues() == {'kept': 0}


def test_a_stopped_node_listens_no_more_and_can_be_started_again(private_rabbitmq: RabbitMQ) -> None:
    with connect(private_rabbitmq) as connection:
        connection.channel().queue_declare('kept', durable=True)
        private_rabbitmq.node.stop()
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match='CONNECTION_FORCED'):
            connection.process_data_events(time_limit=10)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((private_rabbitmq.host, private_rabbitmq.port))
    private_rabbitmq.node.start()
    assert private_rabbitmq.queues() == {'kept': 0}


@pytest.mark.timeout(150)
@pytest.mark.parametrize('activity', ['talks', pytest.param('waits', marks=soak_only)])
@pytest.mark.usefixtures('rabbitmq')
def test_a_node_ends_with_the_program_that_started_it(run_program: Callable[..., Program], activity: str) -> None:
    program = run_program(NODE_THAT_IS_KILLED, [activity, *sys.path])
    pid, directory = program.expect('/', START_TIMEOUT).split()
    program.expect('ready')
    os.kill(program.pid, 9)
    program.wait()
    # `tail --pid` waits for the end of a process that is not our child.
    subprocess.run(['tail', '--pid', pid, '-f', '/dev/null'], timeout=START_TIMEOUT, check=True)
    subprocess.run(['rm', '-r', directory], check=True)
