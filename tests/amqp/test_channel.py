"""A channel is opened again after each loss, and what is asked of it comes to an end whatever the broker does."""

from __future__ import annotations

from typing import Any

import pytest

from postage import errors
from postage.amqp.channel import Channel
from postage.amqp.steps import Drive
from support.messaging import TIMEOUT, Bench, eventually
from support.pika_channels import Host
from support.proxy import Proxy


@pytest.fixture
def host() -> Any:
    return Host()


def opened(host: Any) -> Channel:
    channel = Channel(host)
    opening = Drive(channel.ensure_open_steps())
    host.pika_channel.opened()
    assert opening.outcome.done()
    return channel


def test_several_that_want_it_open_have_it_opened_once(host: Any) -> None:
    channel = Channel(host)
    first, second = Drive(channel.ensure_open_steps()), Drive(channel.ensure_open_steps())
    assert len(host.link.channels) == 1
    host.pika_channel.opened()
    assert (first.outcome.result(0), second.outcome.result(0)) == (None, None)
    assert (channel.is_open, channel.generation, channel.number) == (True, 1, 1)
    assert host.link.lanes == {1: channel}


def test_one_that_gives_up_waiting_for_the_opening_leaves_it_to_the_others(host: Any) -> None:
    channel = Channel(host)
    first, second = Drive(channel.ensure_open_steps()), Drive(channel.ensure_open_steps())
    first.abandon(TimeoutError())
    host.pika_channel.opened()
    assert second.outcome.result(0) is None
    assert channel.is_open


def test_one_that_the_broker_closed_is_opened_again_as_a_new_generation(host: Any) -> None:
    channel = opened(host)
    host.pika_channel.refuse()
    assert not channel.is_open
    host.pika_channel.opened()
    assert (channel.is_open, channel.generation, channel.number) == (True, 2, 2)
    assert host.link.lanes == {2: channel}


def test_one_that_is_not_wanted_any_more_is_not_opened_again(host: Any) -> None:
    channel = opened(host)
    channel.is_wanted = False
    host.pika_channel.refuse()
    assert len(host.link.channels) == 1


def test_an_operation_behind_a_refused_one_did_not_take_place_and_says_so(host: Any) -> None:
    channel = opened(host)
    refused, behind = channel.operate('queue_declare', queue='a'), channel.operate('queue_purge', queue='b')
    host.pika_channel.refuse()
    assert isinstance(refused.exception(0), errors.NotFound)
    assert isinstance(behind.exception(0), errors.ChannelLost)


def test_an_operation_on_a_channel_that_is_being_closed_did_not_take_place_and_says_so(host: Any) -> None:
    channel = opened(host)
    Drive(channel.close_steps())
    with pytest.raises(errors.ChannelLost, match="was being closed before it could declare queue 'a'"):
        channel.operate('queue_declare', "declare queue 'a'", queue='a').result(0)


def test_the_answer_to_a_close_that_is_waited_for_no_more_does_no_harm(host: Any) -> None:
    channel = opened(host)
    closing = Drive(channel.close_steps())
    assert [call.what for call in host.pika_channel.calls] == ['close']
    closing.abandon(TimeoutError())
    host.pika_channel.closed(ValueError('closed'))
    assert not channel.is_open


def test_an_exception_of_pika_s_fails_that_operation_alone(host: Any) -> None:
    def fails(**_: Any) -> None:
        raise ValueError('a wrong argument')

    channel = opened(host)
    host.pika_channel.queue_declare = fails
    wrong, right = channel.operate('queue_declare', queue='a'), channel.operate('queue_purge', queue='b')
    host.pika_channel.calls[0].answer()
    with pytest.raises(ValueError, match='a wrong argument'):
        wrong.result(0)
    assert right.result(0) == 'ok'


# On a broker


def test_a_channel_that_another_thread_closed_for_good_is_not_opened(bench: Bench) -> None:
    connection = bench.producer().conn_broker
    channels = bench.broker.channels()
    channel = Channel(connection)
    connection.remove_channel(channel)
    with pytest.raises(errors.ChannelLost, match='for good'):
        connection.add_channel(channel)
    assert channel not in connection.channels
    assert bench.broker.channels() == channels


def test_a_close_that_was_not_answered_in_time_costs_no_connection_when_it_is(bench: Bench, proxied: Proxy) -> None:
    producer = bench.producer()
    connection = producer.conn_broker
    channel = Channel(connection)
    connection.add_channel(channel)
    proxied.hold()
    with pytest.raises(errors.ConnectionLost, match='did not answer'):
        connection.ask(channel.close_steps, 0.1, when_open=False)
    proxied.resume()
    producer.message_echo('and on').wait(TIMEOUT)
    eventually(lambda: channel._pika is None)
    assert not bench.log.find('ERROR')
    assert not bench.log.find('was lost')
