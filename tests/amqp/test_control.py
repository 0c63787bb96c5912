"""On the control channel a refused operation fails alone: those behind it go on, in their order, on a new channel."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from postage import errors, messaging
from postage.amqp.channel import Channel
from postage.amqp.control import BlockingAccess, ControlChannel
from postage.amqp.steps import Drive
from support.messaging import TIMEOUT, Bench, EchoProducer, Seen, eventually
from support.pika_channels import Host
from support.proxy import Proxy


@pytest.fixture
def host() -> Any:
    return Host()


@pytest.fixture
def control(host: Any) -> ControlChannel:
    return ControlChannel(host)


def calls(host: Any) -> list[str]:
    """What was called on the present channel."""
    return [call.what for call in host.pika_channel.calls]


def ask_for(control: ControlChannel, *names: str) -> list[Future[Any]]:
    return [control.operate('queue_declare', f'declare {name}', queue=name) for name in names]


# Order


def test_the_channel_is_opened_with_the_first_operation_and_once(host: Any, control: ControlChannel) -> None:
    assert host.link.channels == []
    first, second = ask_for(control, 'a', 'b')
    assert len(host.link.channels) == 1
    assert calls(host) == []
    host.pika_channel.opened()
    assert calls(host) == ['queue_declare a']
    host.pika_channel.calls[0].answer('a is there')
    assert first.result(0) == 'a is there'
    assert calls(host) == ['queue_declare a', 'queue_declare b']
    assert not second.done()


def test_an_operation_behind_a_refused_one_goes_on_on_a_new_channel(host: Any, control: ControlChannel) -> None:
    refused, behind, last = ask_for(control, 'a', 'b', 'c')
    host.pika_channel.opened()
    host.pika_channel.refuse()
    with pytest.raises(errors.NotFound, match='refused to declare a'):
        refused.result(0)
    assert not behind.done()
    assert len(host.link.channels) == 2
    host.pika_channel.opened()
    assert calls(host) == ['queue_declare b']
    host.pika_channel.calls[0].answer()
    host.pika_channel.calls[1].answer()
    assert (behind.result(0), last.result(0)) == ('ok', 'ok')


def test_what_the_failure_of_one_leads_to_comes_behind_those_that_waited(host: Any, control: ControlChannel) -> None:
    refused, _ = ask_for(control, 'a', 'b')
    refused.add_done_callback(lambda _: ask_for(control, 'instead of a'))
    host.pika_channel.opened()
    host.pika_channel.refuse()
    assert len(host.link.channels) == 2
    ask_for(control, 'c')
    host.pika_channel.opened()
    for number in range(3):
        host.pika_channel.calls[number].answer()
    assert calls(host) == ['queue_declare b', 'queue_declare instead of a', 'queue_declare c']


def test_one_refusal_after_the_other_fails_each_alone(host: Any, control: ControlChannel) -> None:
    futures = ask_for(control, *'abcd')
    for number in range(3):
        host.pika_channel.opened()
        assert calls(host) == [f'queue_declare {"abcd"[number]}']
        host.pika_channel.refuse()
    host.pika_channel.opened()
    host.pika_channel.calls[0].answer()
    assert [type(future.exception(0)) for future in futures] == [errors.NotFound] * 3 + [type(None)]


def test_a_refusal_with_nothing_behind_it_opens_no_new_channel_until_there_is_something(
    host: Any, control: ControlChannel
) -> None:
    (refused,) = ask_for(control, 'a')
    host.pika_channel.opened()
    host.pika_channel.refuse()
    assert refused.done()
    assert len(host.link.channels) == 1
    ask_for(control, 'b')
    host.pika_channel.opened()
    assert calls(host) == ['queue_declare b']


@pytest.mark.parametrize('kind', [ControlChannel, Channel])
def test_an_operation_between_the_news_of_a_close_and_the_close_is_not_told_the_reason_of_that(
    host: Any, kind: type[Channel]
) -> None:
    """A thread that reads sees the close first; pika, on the I/O thread, a moment later."""
    channel = kind(host)
    opening = Drive(channel.ensure_open_steps())
    host.pika_channel.opened()
    assert opening.outcome.done()
    refused = channel.operate('queue_declare', 'declare a', queue='a')
    channel.closing()
    behind = channel.operate('queue_declare', 'declare b', queue='b')
    host.link.channels[0].refuse()
    assert isinstance(refused.exception(0), errors.NotFound)
    host.pika_channel.opened()
    if kind is ControlChannel:
        assert calls(host) == ['queue_declare b']
        host.pika_channel.calls[0].answer()
        assert behind.result(0) == 'ok'
    else:
        assert isinstance(behind.exception(0), errors.ChannelLost)
        assert channel.is_open
    assert len(host.link.channels) == 2


def test_steps_that_want_a_channel_open_between_the_news_of_a_close_and_the_close_get_the_next_one(host: Any) -> None:
    channel = Channel(host)
    Drive(channel.ensure_open_steps())
    host.pika_channel.opened()
    channel.closing()
    wanting = Drive(channel.ensure_open_steps())
    host.link.channels[0].refuse()
    host.pika_channel.opened()
    assert wanting.outcome.result(0) is None
    assert channel.is_open
    assert (len(host.link.channels), channel.generation) == (2, 2)


# Withdrawing


def test_an_operation_that_was_withdrawn_before_it_began_is_passed_over(host: Any, control: ControlChannel) -> None:
    first, withdrawn, last = ask_for(control, 'a', 'b', 'c')
    host.pika_channel.opened()
    assert withdrawn.cancel()
    host.pika_channel.calls[0].answer()
    assert calls(host) == ['queue_declare a', 'queue_declare c']
    assert first.done()
    assert not last.done()


def test_an_operation_under_way_cannot_be_withdrawn(host: Any, control: ControlChannel) -> None:
    (first,) = ask_for(control, 'a')
    host.pika_channel.opened()
    assert not first.cancel()


def test_one_that_was_withdrawn_behind_a_refused_one_is_passed_over_as_well(host: Any, control: ControlChannel) -> None:
    _, withdrawn, last = ask_for(control, 'a', 'b', 'c')
    host.pika_channel.opened()
    withdrawn.cancel()
    host.pika_channel.refuse()
    host.pika_channel.opened()
    assert calls(host) == ['queue_declare c']
    assert not last.done()


# The loss of the connection


def test_the_loss_of_the_connection_fails_all(host: Any, control: ControlChannel) -> None:
    under_way, *waiting = ask_for(control, 'a', 'b', 'c')
    host.pika_channel.opened()
    host.link.lose()
    for future, name in zip([under_way, *waiting], 'abc', strict=True):
        with pytest.raises(errors.ConnectionLost, match=f'declare {name}'):
            future.result(0)
    assert len(host.link.channels) == 1


def test_the_loss_of_the_connection_while_the_channel_is_opened_again_fails_all_that_wait(
    host: Any, control: ControlChannel
) -> None:
    _, behind = ask_for(control, 'a', 'b')
    host.pika_channel.opened()
    host.pika_channel.refuse()
    assert not behind.done()
    host.link.lose()
    with pytest.raises(errors.ConnectionLost):
        behind.result(0)


@pytest.mark.parametrize('link', ['none', 'one that is closed'])
def test_without_a_connection_an_operation_fails_at_once(host: Any, control: ControlChannel, link: str) -> None:
    host.link.is_open = False
    host.link = None if link == 'none' else host.link
    with pytest.raises(errors.ConnectionLost):
        ask_for(control, 'a')[0].result(0)


def test_after_a_loss_it_is_opened_on_the_new_connection(host: Any, control: ControlChannel) -> None:
    ask_for(control, 'a')
    host.pika_channel.opened()
    host.link.lose()
    host.link = Host().link
    (again,) = ask_for(control, 'a')
    host.pika_channel.opened()
    host.pika_channel.calls[0].answer()
    assert again.result(0) == 'ok'


# What is about one generation


@pytest.mark.parametrize('method', ['basic_ack', 'basic_nack', 'basic_reject'])
def test_an_acknowledgement_that_waited_while_the_channel_was_opened_anew_is_not_sent(
    host: Any, control: ControlChannel, method: str
) -> None:
    """The same delivery tag is another message there, which another thread may have got."""
    ask_for(control, 'a')
    host.pika_channel.opened()
    settling = control.operate(method, generation=control.generation, delivery_tag=1)
    (behind,) = ask_for(control, 'b')
    host.pika_channel.refuse()
    host.pika_channel.opened()
    with pytest.raises(errors.ChannelLost, match=f'cannot {method}: the channel has been opened anew'):
        settling.result(0)
    assert calls(host) == ['queue_declare b']
    assert not behind.done()


def test_an_acknowledgement_in_its_own_generation_is_sent(host: Any, control: ControlChannel) -> None:
    ask_for(control, 'a')
    host.pika_channel.opened()
    settling = control.operate('basic_ack', generation=control.generation, delivery_tag=1)
    host.pika_channel.calls[0].answer()
    assert calls(host) == ['queue_declare a', 'basic_ack 1']
    assert settling.result(0) is None


def ask_here(steps: Any) -> Any:
    """Take steps at once, as far as they go."""
    return Drive(steps()).outcome


@pytest.mark.parametrize('kind', [ControlChannel, Channel])
def test_blocking_access_says_which_generation_an_acknowledgement_is_of(host: Any, kind: type[Channel]) -> None:
    host.ask = ask_here
    channel = kind(host)
    access = BlockingAccess(channel)
    access.queue_declare('a')
    host.pika_channel.opened()
    acknowledged = access.basic_ack(1)
    assert not acknowledged.done()
    host.pika_channel.refuse()
    host.pika_channel.opened()
    assert isinstance(acknowledged.exception(0), errors.ChannelLost)
    assert 'basic_ack 1' not in calls(host)


def test_an_operation_on_another_channel_that_waited_behind_a_refused_one_is_made_again(host: Any) -> None:
    host.ask = ask_here
    channel = Channel(host)
    access = BlockingAccess(channel)
    refused, behind, published = access.queue_declare('a'), access.queue_purge('b'), access.basic_publish('', 'c', b'')
    host.pika_channel.opened()
    assert calls(host) == ['queue_declare a']
    host.pika_channel.refuse()
    assert isinstance(refused.exception(0), errors.NotFound)
    host.pika_channel.opened()
    assert calls(host) == ['queue_purge b']
    host.pika_channel.calls[0].answer()
    assert calls(host)[0] == 'queue_purge b'
    assert calls(host)[1].startswith('basic_publish  c')
    assert (behind.result(0), published.result(0)) == ('ok', None)


# On a broker


def test_refused_operations_of_one_thread_fail_alone_while_others_declare(bench: Bench) -> None:
    producer = bench.producer()
    stop = threading.Event()
    outcomes = Seen()

    def refused() -> None:
        while not stop.is_set():
            with pytest.raises(messaging.NotFound):
                producer.channel.queue_declare('missing', passive=True)

    def declaring(number: int) -> None:
        for turn in range(50):
            name = f'queue-{number}-{turn}'
            assert producer.channel.queue_declare(name, durable=True).method.queue == name
            producer.channel.queue_delete(name)
        outcomes.put('declared')

    refusing = [threading.Thread(target=refused, daemon=True) for _ in range(2)]
    threads = [threading.Thread(target=declaring, args=(number,), daemon=True) for number in range(2)]
    for thread in (*refusing, *threads):
        thread.start()
    try:
        assert outcomes.take(2) == ['declared'] * 2
    finally:
        stop.set()
        for thread in (*refusing, *threads):
            thread.join(TIMEOUT)
            assert not thread.is_alive()
    assert not bench.log.find('was lost')


def test_an_acknowledgement_on_the_consumer_s_channel_after_that_was_opened_anew_acknowledges_nothing(
    bench: Bench, proxied: Proxy
) -> None:
    """It was called for while there was no connection; on the next one the same tag is another message."""
    consumer = bench.consumer()
    seen, outcome = Seen(), Seen()
    consuming = threading.Thread(target=consumer.start_consuming, args=(lambda *delivery: seen.put(delivery),))
    consuming.start()
    producer = EchoProducer(None, bench.broker.url)
    producer.message_echo('text').wait(TIMEOUT)
    _, method, _, _ = seen.next()
    proxied.refuse()
    proxied.cut()
    bench.log.expect('was lost', 'consuming')

    # As consumer.channel had it before.
    channel = BlockingAccess(consumer.delivery_source.channel)
    acknowledging = threading.Thread(target=lambda: outcome.put(error_of(channel.basic_ack, method.delivery_tag)))
    acknowledging.start()
    eventually(lambda: consumer.conn_broker.io._asked)
    proxied.accept()
    error = outcome.next()
    assert isinstance(error, messaging.ChannelLost), error
    acknowledging.join(TIMEOUT)
    _, again, _, _ = seen.next()
    assert again.redelivered
    consumer.stop_consuming()
    consuming.join(TIMEOUT)
    consumer.close()
    producer.close()
    assert bench.count('echo-queue') == 1


def error_of(call: Any, *args: Any) -> Any:
    try:
        return call(*args)
    except Exception as error:
        return error
