"""Connections that lead nowhere: producers, consumers and processors are made on them as on real ones."""

from __future__ import annotations

from typing import Any

import pytest

from postage import errors, messaging
from postage.amqp.recording import recording
from support.ports import free_ports


class JobExchange(messaging.Exchange):
    name = 'job-exchange'


class JobProducer(messaging.GenericProducer):
    eks = [(JobExchange, 'job')]
    mandatory = True


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no broker."""
    (port,) = free_ports(1)
    monkeypatch.setenv('POSTAGE_URL', f'amqp://127.0.0.1:{port}/')
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.1')


def test_what_a_consumer_declares_is_noted_with_what_it_spells() -> None:
    with recording() as connections:
        messaging.GenericConsumer([(JobExchange, [({'name': 'jobs', 'flags': {'auto_delete': True}}, 'job')])])
    (connection,) = connections
    (topology,) = connection.recorded
    assert connection.role == 'consuming'
    assert topology.exchanges == {'job-exchange': JobExchange.parameters}
    assert topology.queues['jobs'].flags == {'auto_delete': True, 'durable': True}
    assert topology.queues['jobs'].spelled == {'auto_delete'}
    assert [binding.routing_key for binding in topology.bindings] == ['job']


def test_what_is_done_with_pikas_methods_is_noted_on_each_channel() -> None:
    with recording() as connections:
        consumer, producer = messaging.GenericConsumer(), JobProducer()
        consumer.channel.basic_qos(prefetch_count=2, global_qos=True)
        assert producer.channel.queue_declare('', exclusive=True).method.queue
        assert producer.channel.basic_get('jobs') == (None, None, None)
        assert producer.channel.queue_purge('jobs').method.message_count == 0
    operations = [operation for connection in connections for operation in connection.operations]
    assert ('basic_qos', {'prefetch_count': 2, 'global_qos': True}) in operations
    assert ('queue_declare', {'queue': '', 'exclusive': True}) in operations


def test_messages_are_dropped_and_no_one_waits_for_them() -> None:
    with recording(), JobProducer() as producer:
        told: list[Any] = []
        receipt = producer.message_work(_eks=[(JobExchange, 'a'), (JobExchange, 'b')])
        receipt.add_done_callback(lambda: told.append(receipt))
        receipt.wait(1)
        producer.flush(1)
        assert told == [receipt]


def test_an_rpc_is_refused_at_once() -> None:
    with recording(), JobProducer() as producer, pytest.raises(errors.ConfigurationError, match='only recorded'):
        producer.rpc_work()


def test_objects_of_one_broker_share_a_connection_which_outlives_them() -> None:
    with recording() as connections:
        for _ in range(2):
            with JobProducer():
                pass
        JobProducer(vhost='another')
    assert [connection.settings.vhost for connection in connections] == ['/', 'another']
    assert len(connections[0].recorded) == 2


def test_afterwards_connections_are_made_again() -> None:
    with recording():
        pass
    with pytest.raises(errors.BrokerUnavailable):
        JobProducer()
