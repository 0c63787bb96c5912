"""A call is answered once, by its own answer, or says after its attempts that nobody answered."""

from __future__ import annotations

import builtins
import concurrent.futures
import json
import threading
import time

import pytest

from postage import messaging
from support.messaging import (
    EQK,
    HOSTILE,
    TIMEOUT,
    BareResponder,
    Echo,
    EchoExchange,
    EchoProducer,
    OtherExchange,
    Processor,
    command,
    eventually,
    result,
)


class Silent(Processor):
    """Notes each request and never answers by itself; a test may, by the ``reply_func`` that it noted."""

    @messaging.RpcHandler('command')
    def rpc_any(self, content, reply_func):
        self.seen.put((content['parameters'], reply_func, messaging.current_delivery()))


class PerCallProducer(EchoProducer):
    reply_queue_per_call = True


def value(reply):
    assert isinstance(reply, messaging.MessageResult), reply
    return reply.body['content']['value']


def is_time_out(reply):
    return isinstance(reply, messaging.MessageResultException) and reply.body['content']['value'] == 'TimeoutError'


def silent(bench):
    """A running processor that never answers by itself."""
    processor = Silent()
    bench.run(processor)
    return processor


def responder(bench, answer):
    """A running program of bare pika that answers what comes with the key of the echo producer."""
    return bench.closing(BareResponder(bench.broker, bench.collect(), answer))


# Calling


def test_an_rpc_returns_the_result_message(bench):
    bench.run(Echo())
    reply = bench.producer().rpc_echo({'a': [1]})
    assert reply
    assert value(reply) == {'a': [1]}


@pytest.mark.parametrize(
    'answer',
    [
        messaging.MessageResult({'a': 1}, 'a word on it'),
        messaging.MessageResultError('no'),
        messaging.MessageResultException('KeyError', 'x'),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_every_kind_of_result_comes_back_as_what_it_was(bench, answer):
    class Answering(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            reply_func(answer)

    bench.run(Answering())
    reply = bench.producer().rpc_ask()
    assert type(reply) is type(answer)
    assert reply.body['content'] == answer.body['content']
    assert bool(reply) == bool(answer)


def test_the_request_is_an_rpc_command_with_the_producers_fingerprint(bench):
    requests = []
    responder(bench, lambda body, properties: requests.append(body) or [(properties.reply_to, result(1), None)])
    fingerprint = messaging.Fingerprint('asker', 'test').as_dict()
    bench.producer(EchoProducer, fingerprint).rpc_echo('text')
    assert requests == [command('echo', 'text', category='rpc', fingerprint=fingerprint)]


def test_the_request_is_what_its_builder_builds(bench):
    class AddProducer(EchoProducer):
        def build_rpc_add(self, a, b=0):
            return messaging.RpcCommand('echo', [a, b])

    bench.run(Echo())
    producer = bench.producer(AddProducer)
    assert value(producer.rpc_add(5, b=6)) == [5, 6]
    assert value(producer.rpc_future_add(7).result(TIMEOUT)) == [7, 0]


def test_the_name_of_an_rpc_may_contain_the_prefixes(bench):
    responder(bench, lambda body, properties: [(properties.reply_to, result(body['name']), None)])
    producer = bench.producer()
    for name in ('rpc_x', 'message_x', 'queue', 'future'):
        assert value(getattr(producer, f'rpc_{name}')()) == name


def test_an_rpc_goes_to_the_first_pair_alone(bench):
    class BothProducer(EchoProducer):
        eks = [(EchoExchange, 'echo-rk'), (OtherExchange, 'other-rk')]

    other = bench.collect(OtherExchange, 'other-rk')
    bench.run(Echo())
    producer = bench.producer(BothProducer)
    assert value(producer.rpc_echo('text')) == 'text'
    producer.message_other(_eks=[(OtherExchange, 'elsewhere')]).wait(TIMEOUT)
    assert bench.count(other) == 0


def test_an_rpc_takes_a_key_and_eks_and_headers(bench):
    processor = Silent([(EchoExchange, [('a', 'key')]), (OtherExchange, [('b', 'key')])])
    bench.run(processor)
    producer = bench.producer()
    futures = [
        producer.rpc_future_x(1, _key='key', _headers={'h': 1}),
        producer.rpc_future_x(2, _eks=[(OtherExchange, 'key')], _priority=3),
    ]
    requests = sorted(processor.seen.take(2), key=lambda request: request[0])
    for _, reply_func, _ in requests:
        reply_func('done')
    assert [value(future.result(TIMEOUT)) for future in futures] == ['done', 'done']
    assert [request[2].exchange for request in requests] == ['echo-exchange', 'other-exchange']
    assert requests[0][2].headers['h'] == 1
    assert requests[1][2].properties.priority == 3


def test_a_request_that_cannot_be_encoded_raises_and_the_next_is_answered(bench):
    bench.run(Echo())
    producer = bench.producer()
    for call in (producer.rpc_echo, producer.rpc_future_echo, producer.rpc_queue_echo):
        with pytest.raises(messaging.EncodingError, match='thing'):
            call({'thing': object()})
    assert value(producer.rpc_echo('good')) == 'good'


def test_a_time_out_or_a_retry_count_of_the_wrong_kind_raises(bench):
    producer = bench.producer()
    for options, fault in [
        ({'_timeout': 'long'}, "_timeout must be a number, 0 or more, not 'long'"),
        ({'_timeout': -1}, '_timeout must be a number, 0 or more, not -1'),
        ({'_max_retry': 1.5}, '_max_retry must be a whole number, 0 or more, not 1.5'),
        ({'_max_retry': -1}, '_max_retry must be a whole number, 0 or more, not -1'),
        ({'_timeout': float('nan')}, '_timeout must be a number, 0 or more, not nan'),
        ({'_timeout': 10**400}, '_timeout must be a number, 0 or more, not 1000'),
        ({'_max_retry': 10**400}, '_max_retry must be a whole number, 0 or more, not 1000'),
    ]:
        with pytest.raises(messaging.ConfigurationError, match=fault):
            producer.rpc_echo(**options)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('rpc_timeout', None),
        ('rpc_timeout', 'long'),
        ('gather_timeout', -1),
        ('max_retry', 1.5),
        ('max_retry', -1),
        ('rpc_queue_expires', True),
    ],
)
def test_a_setting_of_the_class_that_is_no_such_number_is_told_when_a_producer_is_made(bench, name, value):
    with pytest.raises(messaging.ConfigurationError, match=rf'Wrong\.{name} must be a .*number, 0 or more, not '):
        type('Wrong', (EchoProducer,), {name: value})()


@pytest.mark.parametrize('timeout', [float('inf'), 1e300, 10**300, 5])
def test_a_call_may_wait_for_ever_and_be_given_up(bench, timeout):
    bench.run(Silent())
    producer = bench.producer()
    calls = [producer.rpc_future_note(_timeout=timeout, _max_retry=10**300), producer.rpc_gather_note(_timeout=timeout)]
    assert all(call.cancel() for call in calls)
    left = producer.rpc_future_note(_timeout=timeout)
    producer.close()
    with pytest.raises(messaging.Closed):
        left.result(TIMEOUT)


@pytest.mark.parametrize(
    ('options', 'fault'),
    [
        ({'timeout': 'long'}, "timeout must be a number, 0 or more, not 'long'"),
        ({'timeout': float('nan')}, 'timeout must be a number, 0 or more, not nan'),
        ({'result_len': -1}, 'result_len must be a whole number, 0 or more, not -1'),
        ({'result_len': '2'}, "result_len must be a whole number, 0 or more, not '2'"),
    ],
)
def test_what_is_collected_has_to_be_a_number_in_a_time(bench, options, fault):
    bench.run(Echo())
    producer = bench.producer()
    queue = producer.rpc_queue_echo('there')
    with pytest.raises(messaging.ConfigurationError, match=fault):
        producer.consume_rpc(queue, **options)
    with pytest.raises(messaging.TimeoutError) as raised:
        producer.consume_rpc(queue, 100_000, timeout=0.5)
    assert raised.value.results[0].value == 'there'


def test_four_threads_ask_through_one_producer_and_each_gets_its_own_answers(bench):
    bench.run(Echo())
    producer = bench.producer()

    def ask(thread):
        return [value(producer.rpc_echo([thread, number])) for number in range(25)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert answers == [[[thread, number] for number in range(25)] for thread in range(4)]


# Time-outs and retries


def test_the_defaults_are_thirty_seconds_and_four_retries():
    assert messaging.GenericProducer.rpc_timeout == 30
    assert messaging.GenericProducer.max_retry == 4


def test_the_attempts_spent_it_returns_a_time_out(bench):
    silent(bench)
    reply = bench.producer().rpc_ask(_timeout=0.05, _max_retry=0)
    assert is_time_out(reply)
    assert not reply
    assert "'rpc_ask'" in reply.body['content']['message']


def test_max_retry_is_how_often_it_is_sent_again(bench):
    processor = silent(bench)
    assert is_time_out(bench.producer().rpc_ask(_timeout=0.08, _max_retry=2))
    processor.seen.take(3)
    assert processor.seen.empty()


def test_the_timeout_is_that_of_each_attempt(bench):
    silent(bench)
    started = time.monotonic()
    bench.producer().rpc_ask(_timeout=0.1, _max_retry=2)
    assert 0.3 <= time.monotonic() - started < 3


def test_the_class_says_how_long_and_how_often(bench):
    processor = silent(bench)
    hasty = type('HastyProducer', (EchoProducer,), {'rpc_timeout': 0.08, 'max_retry': 1})
    assert is_time_out(bench.producer(hasty).rpc_ask())
    processor.seen.take(2)
    assert processor.seen.empty()


def test_attempts_share_one_correlation_id_and_one_message_id(bench):
    processor = silent(bench)
    bench.producer().rpc_ask(_timeout=0.08, _max_retry=2)
    properties = [delivery.properties for _, _, delivery in processor.seen.take(3)]
    assert len({each.correlation_id for each in properties}) == 1
    assert len({each.message_id for each in properties}) == 1
    assert properties[0].correlation_id
    assert properties[0].message_id


def test_two_calls_have_different_ids(bench):
    processor = silent(bench)
    producer = bench.producer()
    for _ in range(2):
        producer.rpc_future_ask()
    first, second = [delivery.properties for _, _, delivery in processor.seen.take(2)]
    assert first.correlation_id != second.correlation_id
    assert first.message_id != second.message_id


def test_an_answer_to_an_early_attempt_ends_the_call(bench):
    processor = silent(bench)
    future = bench.producer().rpc_future_ask(_timeout=0.1, _max_retry=50)
    (_, reply_func, _), _ = processor.seen.take(2)
    reply_func('to the first attempt')
    assert value(future.result(TIMEOUT)) == 'to the first attempt'


def test_the_first_reply_wins_and_the_next_call_gets_its_own(bench):
    processor = silent(bench)
    producer = bench.producer()
    future = producer.rpc_future_ask(_timeout=0.1, _max_retry=50)
    requests = processor.seen.take(2)
    requests[1][1]('second attempt')
    requests[0][1]('first attempt')
    assert value(future.result(TIMEOUT)) == 'second attempt'
    following = producer.rpc_future_ask('next')
    while (request := processor.seen.next())[0] != 'next':
        pass
    request[1]('answer to the next')
    assert value(following.result(TIMEOUT)) == 'answer to the next'


def test_a_request_expires_when_its_caller_no_longer_waits(bench):
    queue = bench.collect()
    assert is_time_out(bench.producer().rpc_ask(_timeout=0.05, _max_retry=0))
    eventually(lambda: bench.count(queue) == 0)


# Malformed replies


MALFORMED = [
    (b'{"type": ', 'Malformed reply'),
    (b'', 'Malformed reply'),
    (b'\xff\xfe', 'Malformed reply'),
    ([1, 2], 'a message must be a dictionary, but is list'),
    ({}, "'type' is missing"),
    (command('echo'), "the type of a reply must be 'result', but is 'command'"),
    ({**result(1), 'content': 'text'}, "'content' must be a dictionary, but is str"),
    (result(1, type='surprise'), "but is 'surprise'"),
    ({**result(1), 'content': {'type': 'success'}}, 'the value in a result'),
]


def test_a_malformed_reply_becomes_an_error_that_says_so_and_the_next_call_works(bench):
    replies = [each for reply, _ in MALFORMED for each in (reply, result('good'))]
    responder(bench, lambda body, properties: [(properties.reply_to, replies.pop(0), properties.correlation_id)])
    producer = bench.producer()
    for _, fault in MALFORMED:
        found = producer.rpc_echo()
        assert isinstance(found, messaging.MessageResultError)
        assert found.body['content']['message'].startswith('Malformed reply')
        assert fault in found.body['content']['message']
        assert value(producer.rpc_echo()) == 'good'


# Replies and their calls


def test_a_reply_without_a_correlation_id_is_understood_where_one_call_is_outstanding(bench):
    responder(bench, lambda body, properties: [(properties.reply_to, result(body['content']['parameters']), None)])
    producer = bench.producer()
    assert [value(producer.rpc_echo(number)) for number in range(5)] == list(range(5))


def test_a_reply_without_a_correlation_id_is_dropped_where_several_calls_are_outstanding(bench):
    processor = silent(bench)
    producer = bench.producer()
    futures = [producer.rpc_future_ask(number, _timeout=TIMEOUT) for number in range(2)]
    requests = processor.seen.take(2)
    bench.publish(result('whose?'), requests[0][2].properties.reply_to, '')
    bench.log.expect('WARNING', 'without a correlation id was dropped', 'reply_queue_per_call = True')
    for number, reply_func, _ in requests:
        reply_func(number)
    assert [value(future.result(TIMEOUT)) for future in futures] == [0, 1]


def test_a_reply_that_nobody_waits_for_is_dropped(bench):
    processor = silent(bench)
    future = bench.producer().rpc_future_ask()
    _, reply_func, delivery = processor.seen.next()
    bench.publish(result('wrong'), delivery.properties.reply_to, '', correlation_id='another')
    bench.log.expect('a reply was dropped', "'another'")
    reply_func('right')
    assert value(future.result(TIMEOUT)) == 'right'


def test_a_late_reply_without_a_correlation_id_is_never_taken_for_another_calls(bench):
    addresses = []

    def answer(body, properties):
        """The first call is answered when the second one has come, before the second one itself."""
        addresses.append(properties.reply_to)
        if len(addresses) == 1:
            return []
        return [(addresses[0], result('late'), None), (addresses[1], result('in time'), None)]

    responder(bench, answer)
    producer = bench.producer()
    assert is_time_out(producer.rpc_ask(_timeout=0.1))
    assert value(producer.rpc_ask()) == 'in time'


def test_a_late_reply_is_not_taken_for_a_call_that_was_under_way_already(bench):
    processor = silent(bench)
    producer = bench.producer()
    brief = producer.rpc_future_ask('brief', _timeout=0.1)
    lasting = producer.rpc_future_ask('lasting')
    requests = {request[0]: request for request in processor.seen.take(2)}
    assert is_time_out(brief.result(TIMEOUT))
    requests['brief'][1]('late')
    requests['lasting'][1]('in time')
    assert value(lasting.result(TIMEOUT)) == 'in time'


def test_a_late_reply_without_a_correlation_id_is_not_taken_for_a_call_under_way_already(bench):
    processor = silent(bench)
    producer = bench.producer()
    brief = producer.rpc_future_ask('brief', _timeout=0.1)
    lasting = producer.rpc_future_ask('lasting')
    requests = {request[0]: request for request in processor.seen.take(2)}
    assert is_time_out(brief.result(TIMEOUT))
    bench.publish(result('late'), requests['brief'][2].properties.reply_to, '')
    requests['lasting'][1]('in time')
    assert value(lasting.result(TIMEOUT)) == 'in time'


def test_a_reply_queue_per_call_tells_replies_apart_that_carry_no_correlation_id(bench):
    waiting = []

    def answer(body, properties):
        waiting.append((properties.reply_to, result(body['content']['parameters']), None))
        return [] if len(waiting) < 3 else reversed(waiting)

    responder(bench, answer)
    producer = bench.producer(PerCallProducer)
    futures = [producer.rpc_future_echo(number) for number in range(3)]
    assert [value(future.result(TIMEOUT)) for future in futures] == [0, 1, 2]
    assert len({address for address, *_ in waiting}) == 3


def test_a_reply_queue_per_call_is_gone_after_the_call(bench):
    bench.run(Echo())
    assert value(bench.producer(PerCallProducer).rpc_echo('text')) == 'text'
    eventually(lambda: list(bench.broker.queues()) == ['echo-queue'])


def test_a_time_out_leaves_no_reply_queue_behind(bench):
    silent(bench)
    assert is_time_out(bench.producer(PerCallProducer).rpc_ask(_timeout=0.05, _max_retry=1))
    eventually(lambda: list(bench.broker.queues()) == ['echo-queue'])


@pytest.mark.parametrize('headers', HOSTILE.values(), ids=HOSTILE)
def test_a_reply_with_hostile_headers_is_told_at_once_as_malformed(bench, headers):
    processor = silent(bench)
    producer = bench.producer()
    future, other = producer.rpc_future_ask(1), producer.rpc_future_ask(2)
    (_, _, delivery), (_, reply_func, _) = processor.seen.take(2)
    correlation_id = delivery.properties.correlation_id
    bench.publish_hostile(headers, delivery.properties.reply_to, '', correlation_id=correlation_id)
    reply = future.result(TIMEOUT)
    assert isinstance(reply, messaging.MessageResultError)
    assert reply.body['content']['message'].startswith('Malformed reply: the AMQP properties cannot be decoded')
    reply_func('good')
    assert value(other.result(TIMEOUT)) == 'good'


@pytest.mark.parametrize('headers', HOSTILE.values(), ids=HOSTILE)
def test_a_reply_with_hostile_headers_and_no_correlation_id_is_told_to_the_one_call_there_is(bench, headers):
    processor = silent(bench)
    future = bench.producer().rpc_future_ask()
    _, _, delivery = processor.seen.next()
    bench.publish_hostile(headers, delivery.properties.reply_to, '')
    assert future.result(TIMEOUT).body['content']['message'].startswith('Malformed reply')


# Lost connections


def test_a_lost_connection_fails_the_attempt_and_the_next_begins(bench):
    processor = silent(bench)
    started = time.monotonic()
    future = bench.producer().rpc_future_ask(_timeout=TIMEOUT, _max_retry=1)
    first = processor.seen.next()[2].properties
    bench.close_all_connections()
    ids = set()
    while not future.done():  # the first request may come again as well: its acknowledgement may have been lost
        _, reply_func, delivery = processor.seen.next()
        ids.add((delivery.properties.correlation_id, delivery.properties.message_id))
        reply_func('to the second attempt')
        concurrent.futures.wait([future], 1.0)
    assert value(future.result(TIMEOUT)) == 'to the second attempt'
    assert ids == {(first.correlation_id, first.message_id)}
    assert time.monotonic() - started < TIMEOUT


def test_a_connection_lost_in_the_last_attempt_returns_a_time_out_at_once(bench):
    processor = silent(bench)
    future = bench.producer().rpc_future_ask(_timeout=60, _max_retry=0)
    processor.seen.next()
    bench.close_all_connections()
    assert is_time_out(future.result(TIMEOUT))


def test_callers_carry_on_after_their_connection_was_closed(bench):
    bench.run(Echo())
    producer = bench.producer()
    for number in range(3):
        assert value(producer.rpc_echo(number, _timeout=5, _max_retry=1)) == number
        bench.close_all_connections()


def test_closing_the_connection_ends_the_calls_under_way(bench):
    processor = silent(bench)
    producer = bench.producer()
    other = bench.closing(Echo([]))
    future = producer.rpc_future_ask(_timeout=60)
    processor.seen.next()
    other.close()
    producer.close()
    processor.close()
    with pytest.raises(messaging.Closed):
        future.result(TIMEOUT)


# Queues to be read later


def test_queue_only_returns_a_queue_in_which_the_result_will_be(bench):
    bench.run(Echo())
    producer = bench.producer()
    queue = producer.rpc_echo('text', _queue_only=True)
    assert isinstance(queue, str)
    assert [value(each) for each in producer.consume_rpc(queue)] == ['text']


def test_rpc_queue_is_the_same_as_queue_only(bench):
    bench.run(Echo())
    producer = bench.producer()
    assert [value(each) for each in producer.consume_rpc(producer.rpc_queue_echo('text'))] == ['text']


def test_another_producer_may_collect_the_result(bench):
    bench.run(Echo())
    queue = bench.producer().rpc_queue_echo('text')
    assert [value(each) for each in bench.producer().consume_rpc(queue)] == ['text']


def test_each_call_has_a_queue_of_its_own(bench):
    bench.run(Echo())
    producer = bench.producer()
    queues = [producer.rpc_queue_echo(number) for number in range(3)]
    assert [value(producer.consume_rpc(queue)[0]) for queue in reversed(queues)] == [2, 1, 0]


def test_a_queue_that_nobody_reads_expires(bench):
    bench.collect()
    producer = bench.producer(type('BriefProducer', (EchoProducer,), {'rpc_queue_expires': 0.05}))
    queue = producer.rpc_queue_echo()
    eventually(lambda: queue not in bench.broker.queues())


def test_the_request_of_a_queue_call_carries_its_correlation_id(bench):
    processor = silent(bench)
    queue = bench.producer().rpc_queue_ask()
    properties = processor.seen.next()[2].properties
    assert properties.reply_to == queue
    assert properties.correlation_id


def test_consume_rpc_returns_as_many_results_as_asked_for_and_leaves_the_rest(bench):
    bench.collect()
    producer = bench.producer()
    queue = producer.rpc_queue_echo()
    for number in range(3):
        bench.publish(result(number), queue, '')
    assert [value(each) for each in producer.consume_rpc(queue, result_len=2)] == [0, 1]
    assert [value(each) for each in producer.consume_rpc(queue)] == [2]


def test_consume_rpc_calls_back_with_each_decoded_body(bench):
    bench.collect()
    producer = bench.producer()
    queue = producer.rpc_queue_echo()
    bodies = []
    for number in range(2):
        bench.publish(result(number), queue, '')
    producer.consume_rpc(queue, 2, lambda body: bodies.append((threading.current_thread(), body)))
    assert bodies == [(threading.current_thread(), result(number)) for number in range(2)]


def test_too_few_results_raise_a_time_out_that_holds_those_that_came(bench):
    bench.collect()
    producer = bench.producer()
    queue = producer.rpc_queue_echo()
    bench.publish(result('one'), queue, '')
    with pytest.raises(messaging.TimeoutError, match=f'1 of 2 results arrived in queue {queue!r}') as caught:
        producer.consume_rpc(queue, result_len=2, timeout=0.2)
    assert [value(each) for each in caught.value.results] == ['one']
    assert isinstance(caught.value, builtins.TimeoutError)


def test_the_time_to_collect_is_by_default_that_of_an_rpc(bench):
    bench.collect()
    producer = bench.producer(type('HastyProducer', (EchoProducer,), {'rpc_timeout': 0.05}))
    with pytest.raises(messaging.TimeoutError, match='0 of 1'):
        producer.consume_rpc(producer.rpc_queue_echo())


@pytest.mark.parametrize('come', [0, 1])
def test_consume_rpc_leaves_no_consumer_behind(bench, come):
    bench.collect()
    producer = bench.producer()
    queue = producer.rpc_queue_echo()
    for _ in range(come):
        bench.publish(result(1), queue, '')
    try:
        producer.consume_rpc(queue, timeout=0.1 if not come else TIMEOUT)
    except messaging.TimeoutError:
        assert not come
    eventually(lambda: bench.consumers(queue) == 0)
    assert bench.count(queue) == 0


def test_a_callback_that_raises_ends_consume_rpc_and_leaves_no_consumer_behind(bench):
    bench.collect()
    producer = bench.producer()
    queue = producer.rpc_queue_echo()
    bench.publish(result(1), queue, '')
    with pytest.raises(ZeroDivisionError):
        producer.consume_rpc(queue, callback=lambda body: 1 / 0)
    eventually(lambda: bench.consumers(queue) == 0)
    assert bench.count(queue) == 1


def test_a_malformed_result_is_collected_as_an_error(bench):
    bench.collect()
    producer = bench.producer()
    queue = producer.rpc_queue_echo()
    bench.publish(b'{"type"', queue, '')
    bench.publish(result('good'), queue, '')
    malformed, good = producer.consume_rpc(queue, 2)
    assert malformed.body['content']['message'].startswith('Malformed reply')
    assert value(good) == 'good'


def test_a_malformed_result_does_not_stop_a_callback_from_getting_the_others(bench):
    bench.collect()
    producer = bench.producer()
    queue = producer.rpc_queue_echo()
    bodies = []
    bench.publish(b'{"type"', queue, '')
    bench.publish(result('good'), queue, '')
    malformed, good = producer.consume_rpc(queue, 2, bodies.append)
    assert malformed.body['content']['message'].startswith('Malformed reply')
    assert value(good) == 'good'
    assert bodies == [result('good')]


def test_collecting_from_a_queue_that_does_not_exist_raises(bench):
    with pytest.raises(messaging.NotFound, match="no queue 'nothing'"):
        bench.producer().consume_rpc('nothing', timeout=TIMEOUT)


# Futures


def test_rpc_future_returns_a_future_at_once(bench):
    processor = silent(bench)
    future = bench.producer().rpc_future_ask()
    assert isinstance(future, concurrent.futures.Future)
    assert not future.done()
    processor.seen.next()[1]('done')
    assert value(future.result(TIMEOUT)) == 'done'


def test_many_calls_are_under_way_at_once_and_each_gets_its_own_answer(bench):
    bench.run(Echo())
    producer = bench.producer()
    futures = [producer.rpc_future_echo(number) for number in range(200)]
    assert [value(future.result(TIMEOUT)) for future in futures] == list(range(200))


def test_a_future_that_times_out_returns_a_time_out(bench):
    silent(bench)
    assert is_time_out(bench.producer().rpc_future_ask(_timeout=0.05).result(TIMEOUT))


def test_a_cancelled_future_is_not_sent_again_and_its_answer_harms_nothing(bench):
    processor = silent(bench)
    producer = bench.producer()
    cancelled = producer.rpc_future_ask('cancelled', _timeout=0.1, _max_retry=50)
    request = processor.seen.next()
    assert cancelled.cancel()
    assert is_time_out(producer.rpc_ask('meanwhile', _timeout=0.3))
    request[1]('too late')
    assert processor.seen.next()[0] == 'meanwhile'
    assert processor.seen.empty()
    following = producer.rpc_future_ask('next')
    processor.seen.next()[1]('done')
    assert value(following.result(TIMEOUT)) == 'done'


@pytest.mark.parametrize('name', ['rpc_queue_x', 'rpc_future_x'])
def test_an_exact_builder_wins_over_the_reading_of_the_name(bench, name):
    class ExactProducer(EchoProducer):
        def build_rpc_queue_x(self, text):
            return messaging.RpcCommand('echo', ['built', text])

        build_rpc_future_x = build_rpc_queue_x

    bench.run(Echo())
    assert value(getattr(bench.producer(ExactProducer), name)('text')) == ['built', 'text']


def test_an_rpc_encoded_by_another_encoder_is_understood(bench):
    class Upper(messaging.JsonEncoder):
        content_type = 'text/upper'

        def encode(self, body):
            return b'UPPER' + super().encode(body)

        def decode(self, data):
            return super().decode(data[len('UPPER') :])

    class UpperConsumer(messaging.GenericConsumer):
        encoder_class = Upper

    class UpperEcho(Echo):
        consumer_class = UpperConsumer

    bench.run(UpperEcho(EQK))
    producer = bench.producer(type('UpperProducer', (EchoProducer,), {'encoder_class': Upper}))
    assert value(producer.rpc_echo('text')) == 'text'


def test_an_encoder_that_makes_text_serves_on_both_sides(bench):
    class Text:
        content_type = 'application/json'

        def encode(self, body):
            return json.dumps(body)

        def decode(self, data):
            return json.loads(data)

    class TextEcho(Echo):
        consumer_class = type('TextConsumer', (messaging.GenericConsumer,), {'encoder_class': Text})

    bench.run(TextEcho(EQK))
    producer = bench.producer(type('TextProducer', (EchoProducer,), {'encoder_class': Text}))
    assert value(producer.rpc_echo('text')) == 'text'
