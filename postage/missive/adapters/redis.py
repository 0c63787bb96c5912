"""Messages published to Redis channels (https://redis.io/docs/latest/develop/pubsub/)."""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from postage import errors
from postage.missive.adapters.running import RunnableAdapter
from postage.missive.contexts import ProcessingContext
from postage.missive.errors import MissingExtra
from postage.missive.messages import M
from postage.missive.processor import Processor
from postage.secret import Secret, revealed

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError:
    raise MissingExtra('RedisPubSubAdapter', 'redis', 'redis') from None

logger = logging.getLogger('postage')

DEFAULT_URL = 'redis://localhost:6379/0'
READ_TIMEOUT = 1.0  # seconds after which a read of a silent connection ends, so that stop() is noticed
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between attempts to connect; the last one is the ceiling
CONNECT_TIMEOUT = 10.0

# Where the other end of a connection has vanished, the operating system gives it up after 15 + 3 * 5 s.
KEEPALIVE = {
    getattr(socket, name): seconds
    for name, seconds in (('TCP_KEEPIDLE', 15), ('TCP_KEEPINTVL', 5), ('TCP_KEEPCNT', 3))
    if hasattr(socket, name)
}


class RedisPubSubAdapter(RunnableAdapter[M]):
    """Has each message of some channels handled, in their order.

    Redis keeps no messages. What is published while no adapter listens, or during an outage, is lost. A message
    that a handler refuses cannot be given back, which is logged. The connection is made again whenever it is lost.
    ``message.headers`` has the ``channel`` and the ``pattern`` that it matched.

    :param message_cls: makes a message out of what was published
    :param processor: what handles the messages
    :param channels: names, or glob-style patterns, of the channels to listen to
    :param url_or_conn: a Redis URL or a ``redis.Redis``; by default the variable ``REDIS_URL``, read by :meth:`run`,
        else the Redis on this machine
    """

    def __init__(
        self,
        message_cls: Callable[[bytes], M],
        processor: Processor[M],
        channels: Iterable[str] = ('*',),
        url_or_conn: str | redis.Redis | None = None,
    ) -> None:
        self._url_or_conn = Secret.of(url_or_conn)
        del url_or_conn
        super().__init__(message_cls, processor)
        self.channels = (channels,) if isinstance(channels, str) else tuple(channels)

    def _run(self, ctx: ProcessingContext[M]) -> None:
        with closing(_Subscription(self._url_or_conn, self.channels)) as subscription:
            while not self.shutdown_handler.should_exit():
                received = self.shutdown_handler.wait_for(subscription.read)
                if received is not None:
                    headers = {'channel': _text(received['channel']), 'pattern': _text(received['pattern'])}
                    ctx.handle(ctx.new_message(_data(received['data']), headers=headers))

    def ack(self, message: M) -> None:
        """Nothing: Redis has forgotten the message already."""

    def nack(self, message: M) -> None:
        """Log that the message is lost."""
        self._tell_once('Redis Pub/Sub takes no message back: what a handler refuses is lost')


class _Subscription:
    """A subscription that outlives its connections."""

    def __init__(self, url_or_conn: Secret[str | redis.Redis] | None, channels: tuple[str, ...]) -> None:
        self._channels = channels
        self._is_ours = not isinstance(revealed(url_or_conn), redis.Redis)
        self._client: Any = _client_of(url_or_conn) if self._is_ours else revealed(url_or_conn)
        if self._client is None:
            raise errors.ConfigurationError('url_or_conn, or else REDIS_URL, is no URL that the client of Redis takes')
        self._pubsub: Any = None
        self._failures = 0

    def read(self) -> dict[str, Any] | None:
        """Wait for the next message; ``None`` where nothing came for a while, or the connection was lost.

        :raises redis.AuthenticationError: user or password refused
        """
        try:
            if self._pubsub is None:
                self._pubsub = self._client.pubsub(ignore_subscribe_messages=False)
                self._pubsub.psubscribe(*self._channels)
            received: dict[str, Any] | None = self._pubsub.get_message(timeout=READ_TIMEOUT)
        except (redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError):
            raise
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._lost(error)
            return None
        if received is None or received['type'] == 'pmessage':
            return received
        if received['type'] == 'psubscribe' and self._failures:
            logger.warning('connected to Redis again, after %d attempts', self._failures)
            self._failures = 0
        return None

    def _lost(self, error: Exception) -> None:
        """Give up a connection, and pause before the next one is made."""
        if not self._failures:
            logger.warning('no connection to Redis: %s; what is published meanwhile is lost', error)
        self._drop()
        time.sleep(PAUSES[min(self._failures, len(PAUSES) - 1)] * random.uniform(0.5, 1.0))
        self._failures += 1

    def _drop(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()

    def close(self) -> None:
        """Unsubscribe and disconnect."""
        self._drop()
        if self._is_ours:
            self._client.close()


def _data(data: bytes | str) -> bytes:
    """What was published; a client with ``decode_responses`` has made text of it."""
    return data.encode() if isinstance(data, str) else data


def _client_of(url: Secret[Any] | None) -> redis.Redis | None:
    """A client for a URL; ``None`` where it is malformed, which the error must not quote: there is a password in it."""
    try:
        return redis.Redis.from_url(
            str(revealed(url) or os.environ.get('REDIS_URL') or DEFAULT_URL),
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_keepalive=True,
            socket_keepalive_options=KEEPALIVE,
        )
    except (ValueError, TypeError, AttributeError):
        return None


def _text(name: bytes | str) -> str:
    return name.decode('utf-8', 'replace') if isinstance(name, bytes) else name
