"""A call tells its caller what became of it: at once where nobody is there, and why where its time has passed."""

from __future__ import annotations

import time

import pytest

from postage import messaging
from support.messaging import TIMEOUT, Echo, EchoProducer, Processor, eventually
from support.proxy import Proxy


class Silent(Processor):
    """Notes each request, and never answers."""

    @messaging.RpcHandler('command')
    def rpc_any(self, content, reply_func):
        self.seen.put(content['parameters'])


def text(reply):
    assert isinstance(reply, messaging.MessageResultException), reply
    return reply.body['content']['message']


def kind(reply):
    assert isinstance(reply, messaging.MessageResultException), reply
    return reply.body['content']['value']


@pytest.fixture
def proxy(bench, monkeypatch):
    """The environment leads through a proxy."""
    with Proxy.before(bench.broker) as proxy:
        monkeypatch.setenv('POSTAGE_URL', proxy.url(bench.broker.url))
        yield proxy
        proxy.accept()


# Nobody there


def test_a_call_that_no_queue_takes_is_told_so_at_once_and_without_further_attempts(bench):
    started = time.monotonic()
    reply = bench.producer().rpc_echo(_timeout=60, _max_retry=4)
    assert time.monotonic() - started < 30
    assert kind(reply) == 'Unroutable'
    assert text(reply) == "RPC 'rpc_echo': no queue is bound to exchange 'echo-exchange' for key 'echo-rk'"
    assert not reply


def test_a_call_to_a_queue_that_does_not_exist_names_it(bench):
    class Default(messaging.Exchange):
        name = ''

    reply = bench.producer().rpc_echo(_eks=[(Default, 'nowhere')], _timeout=60)
    assert text(reply) == "RPC 'rpc_echo': there is no queue 'nowhere'"


@pytest.mark.parametrize('producer', [EchoProducer, type('PerCall', (EchoProducer,), {'reply_queue_per_call': True})])
def test_once_there_is_a_queue_the_next_call_works(bench, producer):
    producer = bench.producer(producer)
    assert kind(producer.rpc_echo()) == 'Unroutable'
    assert kind(producer.rpc_future_echo().result(TIMEOUT)) == 'Unroutable'
    bench.run(Echo())
    eventually(lambda: kind_or_value(producer.rpc_echo('text')) == 'text')


def kind_or_value(reply):
    return reply.body['content']['value']


def test_headers_make_no_difference(bench):
    """RabbitMQ 4.0 and later return them in another order."""
    reply = bench.producer().rpc_echo(_headers={'b': 1, 'a': 2, 'c': {'z': 1, 'y': 2}}, _priority=3, _timeout=60)
    assert kind(reply) == 'Unroutable'


def test_a_thousand_calls_without_a_queue_are_each_told_at_the_time_of_a_round_trip(bench):
    producer = bench.producer()
    producer.rpc_echo()
    seconds = []
    for _ in range(1000):
        began = time.perf_counter()
        assert kind(producer.rpc_echo(_timeout=60)) == 'Unroutable'
        seconds.append(time.perf_counter() - began)
    seconds.sort()
    # All of it is a round trip and nothing else; what the machine does besides may delay a few.
    assert seconds[900] < 0.01 + 3 * seconds[500]
    assert seconds[500] < 0.05
    bench.run(Echo())
    eventually(lambda: kind_or_value(producer.rpc_echo('text')) == 'text')


def test_a_queue_without_a_consumer_is_waited_for(bench):
    bench.collect()
    future = bench.producer().rpc_future_echo('text', _timeout=TIMEOUT)
    consumer = Processor([])
    assert not future.done()
    consumer.close()
    bench.run(Echo([(EchoProducer.eks[0][0], [({'name': 'collected-echo-exchange-echo-rk'}, 'echo-rk')])]))
    assert future.result(TIMEOUT)


@pytest.mark.parametrize('options', [{}, {'_queue_only': True}], ids=['rpc_queue', '_queue_only'])
def test_a_call_by_queue_that_no_queue_takes_raises_and_leaves_no_queue(bench, options):
    producer = bench.producer()
    call = producer.rpc_echo if options else producer.rpc_queue_echo
    with pytest.raises(messaging.Unroutable, match='echo-exchange'):
        call(**options)
    eventually(lambda: not bench.broker.queues())


def test_a_call_by_queue_whose_exchange_has_gone_raises_and_leaves_no_queue(bench):
    producer = bench.producer()
    bench.bare.exchange_delete('echo-exchange')
    with pytest.raises(messaging.PublishError, match='echo-exchange'):
        producer.rpc_queue_echo()
    eventually(lambda: not bench.broker.queues())


# What a time-out says


def test_a_time_out_says_that_the_broker_took_the_request(bench):
    bench.run(Silent())
    reply = bench.producer().rpc_ask(_timeout=0.05, _max_retry=1)
    assert kind(reply) == 'TimeoutError'
    assert text(reply) == "RPC 'rpc_ask': no reply within 0.05 s, though the broker took the request, after 2 attempts"


def test_a_time_out_says_that_the_broker_closed_its_channel(bench):
    producer = bench.producer()
    bench.bare.exchange_delete('echo-exchange')
    reply = producer.rpc_ask(_timeout=TIMEOUT, _max_retry=0)
    assert kind(reply) == 'TimeoutError'
    assert text(reply).startswith("RPC 'rpc_ask': its channel was lost after it was sent: ")
    assert "no exchange 'echo-exchange'" in text(reply)
    assert producer.conn_broker.is_open


def test_a_time_out_says_that_the_broker_is_away_and_for_how_long(bench, proxy):
    producer = bench.producer()
    proxy.refuse()
    proxy.cut()
    eventually(lambda: not producer.conn_broker.is_open)
    found = text(producer.rpc_ask(_timeout=0.1, _max_retry=0))
    assert 'no reply within 0.1 s, and it could not be sent: the broker has been away for 0.' in found


def test_a_time_out_says_that_the_connection_was_lost_after_it_was_sent(bench, proxy):
    processor = Silent()
    bench.run(processor)
    producer = bench.producer()
    future = producer.rpc_future_ask(_timeout=60, _max_retry=0)
    processor.seen.next()
    proxy.cut()
    found = text(future.result(TIMEOUT))
    assert found.startswith("RPC 'rpc_ask': the connection was lost after it was sent: ")
    assert found.endswith('after 1 attempt')


def test_a_time_out_says_all_of_it_where_the_broker_did_not_come_back(bench, proxy):
    processor = Silent()
    bench.run(processor)
    future = bench.producer().rpc_future_ask(_timeout=0.5, _max_retry=1)
    processor.seen.next()
    proxy.refuse()
    proxy.cut()
    found = text(future.result(TIMEOUT))
    assert 'could not be sent: the broker has been away for 0.' in found
    assert 'the connection was lost after it was sent' in found


def test_a_time_out_says_that_the_broker_takes_no_messages(bench):
    bench.run(Silent())
    producer = bench.producer()
    assert kind(producer.rpc_ask(_timeout=0.05)) == 'TimeoutError'
    with bench.memory_alarm():
        # The broker tells of its alarm those who publish.
        producer.message_any(_key='no-queue')
        eventually(lambda: producer.conn_broker.trouble)
        found = text(producer.rpc_ask(_timeout=0.1))
    assert 'the broker has taken no messages for 0.' in found
