"""Every message is confirmed, sent again after a loss, or said to have failed; one that fails takes no other along."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from postage import messaging
from postage.amqp import publishing
from support.messaging import TIMEOUT, Bench, Echo, EchoExchange, EchoProducer, HeldConfirms, Seen, eventually
from support.proxy import Proxy


class Vanishing(messaging.Exchange):
    """Somebody else declares it, and may delete it for good."""

    name = 'vanishing-exchange'
    passive = True


class Internal(messaging.Exchange):
    """Only other exchanges may publish to it."""

    name = 'internal-exchange'
    internal = True


def parameters_in(bench: Bench, queue: str) -> list[Any]:
    """The parameters of all messages that wait in a queue, oldest first; they are taken out."""
    return [bench.get(queue).parameters for _ in range(bench.count(queue))]


# Losses


def test_what_was_not_confirmed_when_the_connection_was_lost_is_sent_again(
    bench: Bench, proxied: Proxy, held: HeldConfirms
) -> None:
    queue = bench.collect()
    producer = bench.producer()
    receipts = [producer.message_echo(number) for number in range(10)]
    eventually(lambda: bench.count(queue) == 10)
    held.arrived.next()
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost')
    held.forget()
    proxied.accept()
    for receipt in receipts:
        receipt.wait(TIMEOUT)
        assert receipt.confirmed
    got = [bench.get(queue) for _ in range(bench.count(queue))]
    assert {message.parameters for message in got} == set(range(10))
    assert {message.properties.message_id for message in got} == {receipt.message_id for receipt in receipts}
    assert len(got) > 10  # those of which the confirm did not arrive came twice, under the same id


def test_messages_that_are_sent_again_keep_their_order(bench: Bench, proxied: Proxy) -> None:
    queue = bench.collect()
    producer = bench.producer()
    proxied.hold()
    for number in range(200):
        producer.message_echo(number)
    proxied.cut()
    proxied.resume()
    producer.flush(TIMEOUT)
    got = parameters_in(bench, queue)
    last_seen = list(dict.fromkeys(reversed(got)))[::-1]
    assert last_seen == list(range(200))


def test_what_is_published_while_there_is_no_connection_leaves_when_there_is_one(bench: Bench, proxied: Proxy) -> None:
    queue = bench.collect()
    producer = bench.producer()
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost')
    begin = time.monotonic()
    receipts = [producer.message_echo(number) for number in range(100)]
    assert time.monotonic() - begin < 1.0
    assert not any(receipt.settled for receipt in receipts)
    proxied.accept()
    producer.flush(TIMEOUT)
    assert parameters_in(bench, queue) == list(range(100))


def test_what_is_not_confirmed_in_time_may_still_be_confirmed_later(bench: Bench, proxied: Proxy) -> None:
    producer = bench.producer()
    proxied.hold()
    receipt = producer.message_echo('slow')
    with pytest.raises(messaging.PublishTimeout, match=receipt.message_id):
        receipt.wait(0.05)
    with pytest.raises(messaging.PublishTimeout, match='1 message'):
        producer.flush(0.05)
    proxied.resume()
    receipt.wait(TIMEOUT)
    assert receipt.confirmed
    producer.flush(TIMEOUT)


def test_without_confirms_what_waits_while_there_is_no_connection_is_sent_later(bench: Bench, proxied: Proxy) -> None:
    class Unconfirmed(EchoProducer):
        confirms = False

    queue = bench.collect()
    producer = bench.producer(Unconfirmed)
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost')
    receipt = producer.message_echo('later')
    proxied.accept()
    receipt.wait(TIMEOUT)
    assert not receipt.confirmed
    assert bench.await_message(queue).parameters == 'later'


# The window


def test_a_full_window_makes_a_call_wait_until_there_is_room(
    bench: Bench, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, 'WINDOW_MESSAGES', 50)
    queue = bench.collect()
    producer = bench.producer()
    proxied.hold()
    done = Seen()

    def publish() -> None:
        for number in range(120):
            producer.message_echo(number)
            done.put(number)

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    assert done.take(50) == list(range(50))
    assert done.empty()
    proxied.resume()
    assert done.take(70) == list(range(50, 120))
    thread.join(TIMEOUT)
    producer.flush(TIMEOUT)
    assert parameters_in(bench, queue) == list(range(120))


def test_a_window_that_stays_full_is_an_error(bench: Bench, proxied: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(EchoProducer):
        publish_timeout = 0.1

    monkeypatch.setattr(publishing, 'WINDOW_MESSAGES', 10)
    queue = bench.collect()
    producer = bench.producer(Impatient)
    proxied.hold()
    for number in range(10):
        producer.message_echo(number)
    with pytest.raises(messaging.PublishTimeout, match='not accepted'):
        producer.message_echo('one too many')
    proxied.resume()
    producer.flush(TIMEOUT)
    assert parameters_in(bench, queue) == list(range(10))


def test_the_window_counts_bytes_too_and_lets_a_big_message_in_alone(
    bench: Bench, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(EchoProducer):
        publish_timeout = 0.1

    monkeypatch.setattr(publishing, 'WINDOW_BYTES', 10_000)
    bench.collect()
    producer = bench.producer(Impatient)
    proxied.hold()
    big = producer.message_echo('x' * 20_000)
    with pytest.raises(messaging.PublishTimeout):
        producer.message_echo('small')
    proxied.resume()
    big.wait(TIMEOUT)
    producer.message_echo('small').wait(TIMEOUT)


def test_bodies_of_many_sizes_arrive_whole_and_in_order(bench: Bench) -> None:
    echo = Echo()
    bench.run(echo)
    producer = bench.producer()
    sizes = [0, 1, 1000, 131_063, 131_064, 131_065, 200_000, 0, 3_000_000, 5]
    for number, size in enumerate(sizes):
        producer.message_echo([number, 'x' * size])
    assert [(number, len(text)) for number, text in echo.seen.take(len(sizes))] == list(enumerate(sizes))


# An exchange that is gone


def test_an_exchange_deleted_under_a_producer_is_declared_again_and_nothing_is_lost(bench: Bench) -> None:
    producer = bench.producer()
    producer.message_echo('before').wait(TIMEOUT)
    bench.bare.exchange_delete(EchoExchange.name)
    receipts = [producer.message_echo(number) for number in range(20)]
    for receipt in receipts:
        receipt.wait(TIMEOUT)
    bench.bare.exchange_declare(EchoExchange.name, passive=True)
    queue = bench.collect()
    producer.message_echo('after').wait(TIMEOUT)
    assert bench.get(queue).parameters == 'after'


def test_an_exchange_deleted_together_with_the_connection_is_declared_again(bench: Bench) -> None:
    producer = bench.producer()
    bench.bare.exchange_delete(EchoExchange.name)
    bench.close_all_connections()
    bench.log.expect('again (publishing)')
    bench.bare.exchange_declare(EchoExchange.name, passive=True)
    producer.message_echo('after').wait(TIMEOUT)


class Several(messaging.GenericProducer):
    """Publishes to an exchange that works and, when told so, to one that does not."""

    eks = [(EchoExchange, 'echo-rk')]


def publish_with_one_guilty(producer: Any, exchange: type[messaging.Exchange]) -> list[Any]:
    return [
        producer.message_echo(number, _eks=[(exchange if number == 7 else EchoExchange, 'echo-rk')])
        for number in range(15)
    ]


def check_that_one_alone_failed(receipts: list[Any], exchange: type[messaging.Exchange], code: int) -> None:
    for number, receipt in enumerate(receipts):
        if number == 7:
            with pytest.raises(messaging.Nacked, match=exchange.name) as caught:
                receipt.wait(TIMEOUT)
            assert str(code) in str(caught.value)
        else:
            receipt.wait(TIMEOUT)
            assert receipt.confirmed


def test_a_message_to_an_exchange_that_was_deleted_for_good_fails_alone(bench: Bench) -> None:
    bench.bare.exchange_declare(Vanishing.name)
    queue = bench.collect()
    producer = bench.producer(Several)
    producer.message_echo('declare it', _eks=[(Vanishing, 'key')]).wait(TIMEOUT)
    bench.bare.exchange_delete(Vanishing.name)
    receipts = publish_with_one_guilty(producer, Vanishing)
    check_that_one_alone_failed(receipts, Vanishing, 404)
    assert set(parameters_in(bench, queue)) == set(range(15)) - {7}


def test_a_message_to_an_internal_exchange_fails_alone(bench: Bench) -> None:
    queue = bench.collect()
    producer = bench.producer(Several)
    receipts = publish_with_one_guilty(producer, Internal)
    check_that_one_alone_failed(receipts, Internal, 403)
    assert set(parameters_in(bench, queue)) == set(range(15)) - {7}


def test_flush_names_the_failures_once_and_the_producer_works_on(bench: Bench) -> None:
    producer = bench.producer(Several)
    publish_with_one_guilty(producer, Internal)
    with pytest.raises(messaging.Nacked, match=Internal.name) as caught:
        producer.flush(TIMEOUT)
    assert len(caught.value.failures) == 1
    producer.flush(TIMEOUT)
    producer.message_echo('on and on').wait(TIMEOUT)


def test_several_guilty_messages_fail_and_the_others_arrive(bench: Bench) -> None:
    queue = bench.collect()
    producer = bench.producer(Several)
    guilty = {2, 3, 9}
    receipts = [
        producer.message_echo(number, _eks=[(Internal if number in guilty else EchoExchange, 'echo-rk')])
        for number in range(12)
    ]
    with pytest.raises(messaging.Nacked) as caught:
        producer.flush(TIMEOUT)
    assert len(caught.value.failures) == 3
    assert {number for number, receipt in enumerate(receipts) if not receipt.confirmed} == guilty
    assert set(parameters_in(bench, queue)) == set(range(12)) - guilty


def test_a_guilty_message_of_one_producer_harms_no_other_producer_s(bench: Bench) -> None:
    guilty, innocent = bench.producer(Several), bench.producer()
    bench.collect()
    receipts = [innocent.message_echo(number) for number in range(50)]
    guilty.message_echo('guilty', _eks=[(Internal, 'key')])
    receipts += [innocent.message_echo(number) for number in range(50)]
    innocent.flush(TIMEOUT)
    assert all(receipt.confirmed for receipt in receipts)
    with pytest.raises(messaging.Nacked):
        guilty.flush(TIMEOUT)


# The user's own channel


def test_an_error_on_the_producer_s_channel_harms_nothing_that_is_published(bench: Bench) -> None:
    queue = bench.collect()
    producer = bench.producer()
    receipts = [producer.message_echo(number) for number in range(10)]
    with pytest.raises(messaging.NotFound) as caught:
        producer.channel.queue_declare('missing', passive=True)
    assert caught.value.reply_code == 404
    assert 'missing' in caught.value.reply_text
    receipts += [producer.message_echo(number) for number in range(10, 20)]
    producer.flush(TIMEOUT)
    assert parameters_in(bench, queue) == list(range(20))
    assert producer.channel.queue_declare('there', durable=True).method.queue == 'there'


def test_the_producer_s_channel_works_from_several_threads_at_once(bench: Bench) -> None:
    producer = bench.producer()
    results = Seen()

    def declare(number: int) -> None:
        for turn in range(5):
            name = f'queue-{number}-{turn}'
            results.put(producer.channel.queue_declare(name, durable=True).method.queue == name)
            producer.channel.basic_publish('', name, b'body')
            producer.channel.queue_purge(name)

    threads = [threading.Thread(target=declare, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    assert results.take(30) == [True] * 30
    for thread in threads:
        thread.join(TIMEOUT)


def test_basic_get_on_the_producer_s_channel_returns_what_pika_returns(bench: Bench) -> None:
    producer = bench.producer()
    queue = bench.collect()
    assert producer.channel.basic_get(queue) == (None, None, None)
    producer.message_echo('text').wait(TIMEOUT)
    method, properties, body = producer.channel.basic_get(queue, auto_ack=True)
    assert (method.routing_key, properties.content_type) == ('echo-rk', 'application/json')
    assert b'text' in body


# A broker that takes nothing


def publish_until_blocked(bench: Bench, producer: Any) -> None:
    """An alarm reaches a connection some time after it was set, and counts from the next message on."""

    def blocked() -> bool:
        producer.message_echo('perhaps the one', _key='read by nobody')
        return bool(bench.log.find('WARNING', 'takes no messages at present'))

    eventually(blocked)


def test_a_broker_under_a_memory_alarm_makes_publishers_wait_and_the_log_says_so(bench: Bench) -> None:
    bench.collect()
    producer = bench.producer()
    producer.message_echo('before').wait(TIMEOUT)
    with bench.memory_alarm():
        publish_until_blocked(bench, producer)
        receipt = producer.message_echo('during')
        with pytest.raises(messaging.PublishTimeout):
            receipt.wait(0.1)
    bench.log.expect('INFO', 'takes messages again')
    receipt.wait(TIMEOUT)


def test_acknowledgements_go_on_under_a_memory_alarm(bench: Bench) -> None:
    echo = bench.closing(Echo())
    producer = bench.producer()
    for number in range(100):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    with bench.memory_alarm():
        publish_until_blocked(bench, producer)
        running = bench.run(echo)
        assert echo.seen.take(100) == list(range(100))
        running.stop()
        assert bench.count('echo-queue') == 0


def test_receipts_and_the_count_that_flush_waits_for_change_together(bench: Bench) -> None:
    """Under one lock, so that no receipt is unsettled after `flush()`, and none is settled that it still waits for."""
    bench.consumer().close()
    producer = bench.producer()
    channel = producer._publisher
    looks = 0
    for _ in range(20):
        receipts = [producer.message_echo(number) for number in range(50)]
        while True:
            with channel.lock:
                unsettled = sum(receipt.unsettled for receipt in receipts)
                assert producer._ledger.unsettled == channel.in_flight == unsettled
            looks += 1
            if unsettled < 25:
                break
        producer.flush(TIMEOUT)
        assert all(receipt.confirmed for receipt in receipts)
    assert looks >= 20


@pytest.mark.parametrize('headers', [None, {'x': 1.5, 'y': [None, {'z': True}]}], ids=['bare', 'with headers'])
def test_a_message_that_no_queue_takes_is_returned(bench: Bench, headers: Any) -> None:
    class Mandatory(EchoProducer):
        mandatory = True

    producer = bench.producer(Mandatory)
    with pytest.raises(messaging.Unroutable, match='NO_ROUTE'):
        producer.message_echo(_key='nowhere', _headers=headers).wait(TIMEOUT)


def test_a_ctrl_c_while_messages_are_settled_leaves_none_of_them_unsettled(bench: Bench, held: HeldConfirms) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    producer = bench.producer()
    receipts = [producer.message_echo(number) for number in range(3)]
    receipts[0].add_done_callback(interrupt)
    channel = producer._publisher
    eventually(lambda: channel._tag == 3)
    held.forget()
    channel.confirmed(3, True, True)
    with pytest.raises(KeyboardInterrupt):
        channel.end_of_read()
    assert all(receipt.confirmed for receipt in receipts)
    producer.flush(0)
