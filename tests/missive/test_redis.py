"""Messages from Redis Pub/Sub, with a real Redis."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
import redis

from missive.conftest import AnyProcessor, RedisServer, Run, slow_program, wait_until
from postage import missive
from postage.missive.adapters.redis import RedisPubSubAdapter
from support.canary import canary
from support.messaging import LogBook, Seen
from support.programs import Program


@pytest.fixture
def adapter(processor: AnyProcessor, redis_server: RedisServer) -> RedisPubSubAdapter[Any]:
    return RedisPubSubAdapter(missive.RawMessage, processor, url_or_conn=redis_server.url)


def test_what_is_published_is_handled(
    adapter: RedisPubSubAdapter[Any], run: Callable[..., Run], redis_server: RedisServer, seen: Seen
) -> None:
    run(adapter)
    redis_server.await_subscriber()
    with redis_server.client() as client:
        client.publish('news', b'one\n\x00')
        client.publish('other', b'two')
    one, two = seen.take(2)
    assert (one.raw_data, one.headers) == (b'one\n\x00', {'channel': 'news', 'pattern': '*'})
    assert (two.raw_data, two.headers['channel']) == (b'two', 'other')


def test_only_the_given_channels_are_listened_to(
    processor: AnyProcessor, run: Callable[..., Run], redis_server: RedisServer, seen: Seen
) -> None:
    run(RedisPubSubAdapter(missive.RawMessage, processor, ('news.*', 'one'), redis_server.url))
    redis_server.await_subscriber(2)
    with redis_server.client() as client:
        for channel in ('other', 'news.world', 'newsworld', 'one', 'ones', 'news.'):
            client.publish(channel, channel)
    assert [message.raw_data for message in seen.take(3)] == [b'news.world', b'one', b'news.']


def test_a_client_of_ones_own_will_do(
    processor: AnyProcessor, run: Callable[..., Run], redis_server: RedisServer, seen: Seen
) -> None:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        running = run(RedisPubSubAdapter(missive.RawMessage, processor, url_or_conn=client))
        redis_server.await_subscriber()
        client.publish('a', 'schön')
        assert seen.next().raw_data == 'schön'.encode()
        running.stop()
        assert client.ping()


def test_the_environment_names_the_redis(
    processor: AnyProcessor,
    run: Callable[..., Run],
    redis_server: RedisServer,
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = RedisPubSubAdapter(missive.RawMessage, processor)
    monkeypatch.setenv('REDIS_URL', redis_server.url)
    run(adapter)
    redis_server.await_subscriber()


def test_a_refused_message_is_lost_and_that_is_said_once(
    processor: AnyProcessor,
    adapter: RedisPubSubAdapter[Any],
    run: Callable[..., Run],
    redis_server: RedisServer,
    log: LogBook,
) -> None:
    handled = Seen()
    processor.after_handling(lambda ctx, handling: handled.put(handling.decision))
    processor.handle_for(lambda message: True)(lambda message, ctx: ctx.nack())
    run(adapter)
    redis_server.await_subscriber()
    with redis_server.client() as client:
        client.publish('a', b'1')
        client.publish('a', b'2')
    assert handled.take(2) == ['nack', 'nack']
    assert len(log.find('WARNING', 'Redis Pub/Sub takes no message back')) == 1


def test_redis_going_away_and_coming_back_under_load_is_survived(
    adapter: RedisPubSubAdapter[Any],
    run: Callable[..., Run],
    redis_server: RedisServer,
    seen: Seen,
    log: LogBook,
) -> None:
    run(adapter)
    for outage in range(3):
        redis_server.await_subscriber()
        with redis_server.client() as client:
            for number in range(500):
                client.publish('load', f'{outage}/{number}')
        assert [message.raw_data for message in seen.take(500)] == [f'{outage}/{n}'.encode() for n in range(500)]
        redis_server.stop()
        log.expect('no connection to Redis')
        redis_server.start()
    redis_server.await_subscriber()
    wait_until(lambda: len(log.find('connected to Redis again')) == 3, 'it is not said')


def test_a_redis_that_is_down_at_the_start_is_waited_for(
    adapter: RedisPubSubAdapter[Any], run: Callable[..., Run], redis_server: RedisServer, seen: Seen, log: LogBook
) -> None:
    redis_server.stop()
    run(adapter)
    log.expect('no connection to Redis')
    redis_server.start()
    redis_server.await_subscriber()
    with redis_server.client() as client:
        client.publish('a', b'at last')
    assert seen.next().raw_data == b'at last'


def test_a_refused_password_is_raised_at_once(
    processor: AnyProcessor, run: Callable[..., Run], redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.config_set('requirepass', canary('-redis'))
    with pytest.raises(redis.AuthenticationError):
        RedisPubSubAdapter(missive.RawMessage, processor, url_or_conn=redis_server.url).run()


def test_what_a_handler_raises_leaves_run(
    processor: AnyProcessor, adapter: RedisPubSubAdapter[Any], run: Callable[..., Run], redis_server: RedisServer
) -> None:
    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        raise redis.ConnectionError('of another Redis, which the handler uses')

    running = run(adapter)
    redis_server.await_subscriber()
    with redis_server.client() as client:
        client.publish('a', b'1')
    with pytest.raises(redis.ConnectionError, match='another'):
        running.wait()


PROGRAM = slow_program('redis', 'RedisPubSubAdapter')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('seconds', ['0.5', '0'])
def test_a_signal_ends_the_run_and_lets_a_message_end(
    run_program: Callable[..., Program], redis_server: RedisServer, number: signal.Signals, seconds: str
) -> None:
    program = run_program(PROGRAM, environment={'REDIS_URL': redis_server.url})
    redis_server.await_subscriber()
    with redis_server.client() as client:
        client.publish('a', seconds)
    program.expect('begin' if seconds == '0.5' else 'end')
    program.send_signal(number)
    assert program.wait() == 0
    assert program.lines == ['begin', 'end', 'shutdown']


@pytest.mark.parametrize(('module', 'package', 'extra'), [('redis', 'redis', 'redis'), ('wsgi', 'flask', 'wsgi')])
def test_a_missing_extra_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, extra: str
) -> None:
    name = f'postage.missive.adapters.{module}'
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'not installed: pip install postage\[{extra}\]') as caught:
        __import__(name)
    assert '\n' not in str(caught.value)
