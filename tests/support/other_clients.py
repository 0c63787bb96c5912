"""Clients that do not use pika's codec, behind one small interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from support.brokers import Broker, with_login

T = TypeVar('T')

PATIENCE = 10.0


@dataclass
class Got:
    """A message that a client got.

    :ivar settle: acknowledges it, or refuses it with ``requeue`` or without
    """

    body: bytes
    headers: dict[str, Any]
    redelivered: bool
    reply_to: str | None
    correlation_id: str | None
    settle: Callable[[str], None]


class Client(Protocol):
    """One connection with one channel in confirm mode. Everything blocks.

    :cvar since: the Python from which on it can be installed beside the others
    """

    name: ClassVar[str]
    since: ClassVar[tuple[int, int]]

    def __init__(self, broker: Broker, password: str = 'guest', heartbeat: int = 0) -> None: ...

    def close(self) -> None:
        """Close the connection."""

    def declare_exchange(self, name: str, kind: str) -> None:
        """Declare an exchange."""

    def declare_queue(self, name: str, arguments: dict[str, Any] | None = None, passive: bool = False) -> int:
        """Declare a queue, and return how many messages it has."""

    def bind(self, queue: str, exchange: str, key: str) -> None:
        """Bind a queue."""

    def publish(self, exchange: str, key: str, body: bytes, **properties: Any) -> str:
        """Publish a mandatory message, and return what became of it: ``ack``, ``nack`` or ``returned``."""

    def get(self, queue: str) -> Got | None:
        """Get a message."""

    def consume(self, queue: str, count: int, no_ack: bool = False, meanwhile: Callable[[], Any] | None = None) -> Any:
        """Consume that many messages, acknowledge them, and return them; ``meanwhile`` is called once subscribed."""

    def idle(self, seconds: float) -> None:
        """Do nothing but what the protocol asks for."""

    def code_of(self, action: Callable[[], Any]) -> int:
        """Return the reply code with which the broker refuses an action."""


class PyAmqp:
    """py-amqp, the client below kombu and Celery."""

    name = 'amqp'
    since = (3, 10)

    def __init__(self, broker: Broker, password: str = 'guest', heartbeat: int = 0) -> None:
        import amqp

        self._amqp = amqp
        self._connection = amqp.Connection(
            f'{broker.host}:{broker.port}',
            userid='guest',
            password=password,
            virtual_host=broker.vhost,
            confirm_publish=True,
            heartbeat=heartbeat,
        )
        self._connection.connect()
        self._returned = False
        self._channel = self._connection.channel()
        self._channel.events['basic_return'].add(self._on_return)

    def _on_return(self, *_: Any) -> None:
        self._returned = True

    def close(self) -> None:
        self._connection.close()

    def declare_exchange(self, name: str, kind: str) -> None:
        self._channel.exchange_declare(name, kind, auto_delete=True)

    def declare_queue(self, name: str, arguments: dict[str, Any] | None = None, passive: bool = False) -> int:
        declared = self._channel.queue_declare(name, passive=passive, auto_delete=False, arguments=arguments)
        return int(declared.message_count)

    def bind(self, queue: str, exchange: str, key: str) -> None:
        self._channel.queue_bind(queue, exchange, key)

    def publish(self, exchange: str, key: str, body: bytes, **properties: Any) -> str:
        headers = properties.pop('headers', None)
        message = self._amqp.Message(body, application_headers=headers, **properties)
        self._returned = False
        try:
            self._channel.basic_publish(message, exchange, key, mandatory=True)
        except self._amqp.exceptions.MessageNacked:
            return 'nack'
        return 'returned' if self._returned else 'ack'

    def _got(self, message: Any) -> Got:
        tag = message.delivery_info['delivery_tag']

        def settle(how: str) -> None:
            if how == 'ack':
                self._channel.basic_ack(tag)
            else:
                self._channel.basic_reject(tag, requeue=how == 'requeue')

        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        properties = message.properties
        return Got(
            body,
            message.headers or {},
            bool(message.delivery_info['redelivered']),
            properties.get('reply_to'),
            properties.get('correlation_id'),
            settle,
        )

    def get(self, queue: str) -> Got | None:
        message = self._channel.basic_get(queue)
        return None if message is None else self._got(message)

    def consume(self, queue: str, count: int, no_ack: bool = False, meanwhile: Callable[[], Any] | None = None) -> Any:
        found: list[Got] = []
        tag = self._channel.basic_consume(
            queue, no_ack=no_ack, callback=lambda message: found.append(self._got(message))
        )
        if meanwhile is not None:
            meanwhile()
        while len(found) < count:
            self._connection.drain_events(timeout=PATIENCE)
        for each in found:
            if not no_ack:
                each.settle('ack')
        self._channel.basic_cancel(tag)
        return found

    def idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._connection.heartbeat_tick()
            try:
                self._connection.drain_events(timeout=0.2)
            except (TimeoutError, OSError):
                continue

    def code_of(self, action: Callable[[], Any]) -> int:
        try:
            action()
        except self._amqp.exceptions.AMQPError as error:
            return int(error.reply_code)
        raise AssertionError('not refused')


class AmqpStorm:
    """AMQPStorm, which encodes by pamqp and reads in a thread."""

    name = 'amqpstorm'
    since = (3, 11)

    def __init__(self, broker: Broker, password: str = 'guest', heartbeat: int = 0) -> None:
        import amqpstorm

        self._amqpstorm = amqpstorm
        self._connection = amqpstorm.Connection(
            broker.host, 'guest', password, port=broker.port, virtual_host=broker.vhost, heartbeat=heartbeat
        )
        self._channel = self._connection.channel()
        self._channel.confirm_deliveries()

    def close(self) -> None:
        self._connection.close()

    def declare_exchange(self, name: str, kind: str) -> None:
        self._channel.exchange.declare(name, kind, auto_delete=True)

    def declare_queue(self, name: str, arguments: dict[str, Any] | None = None, passive: bool = False) -> int:
        return int(self._channel.queue.declare(name, passive=passive, arguments=arguments)['message_count'])

    def bind(self, queue: str, exchange: str, key: str) -> None:
        self._channel.queue.bind(queue, exchange, key)

    def publish(self, exchange: str, key: str, body: bytes, **properties: Any) -> str:
        try:
            done = self._channel.basic.publish(body, key, exchange, properties, mandatory=True)
        except self._amqpstorm.AMQPMessageError:
            return 'returned'
        return 'ack' if done else 'nack'

    def _got(self, message: Any) -> Got:
        def settle(how: str) -> None:
            if how == 'ack':
                message.ack()
            else:
                message.reject(requeue=how == 'requeue')

        properties = message.properties
        return Got(
            message._body if isinstance(message._body, bytes) else message._body.encode(),
            properties.get('headers') or {},
            bool(message.redelivered),
            message.reply_to or None,
            message.correlation_id or None,
            settle,
        )

    def get(self, queue: str) -> Got | None:
        message = self._channel.basic.get(queue, auto_decode=False)
        return None if message is None else self._got(message)

    def consume(self, queue: str, count: int, no_ack: bool = False, meanwhile: Callable[[], Any] | None = None) -> Any:
        found: list[Got] = []
        tag = self._channel.basic.consume(lambda message: found.append(self._got(message)), queue, no_ack=no_ack)
        if meanwhile is not None:
            meanwhile()
        deadline = time.monotonic() + PATIENCE
        while len(found) < count:
            assert time.monotonic() < deadline, 'waited in vain'
            self._channel.process_data_events(auto_decode=False)
            time.sleep(0.005)
        for each in found:
            if not no_ack:
                each.settle('ack')
        self._channel.basic.cancel(tag)
        return found

    def idle(self, seconds: float) -> None:
        time.sleep(seconds)
        self._channel.check_for_errors()

    def code_of(self, action: Callable[[], Any]) -> int:
        try:
            action()
        except self._amqpstorm.AMQPError as error:
            return int(error.error_code)
        raise AssertionError('not refused')


class AioPika:
    """aio-pika on aiormq, for asyncio."""

    name = 'aio_pika'
    since = (3, 10)

    def __init__(self, broker: Broker, password: str = 'guest', heartbeat: int = 0) -> None:
        import aio_pika

        self._aio_pika = aio_pika
        self._loop = asyncio.new_event_loop()
        try:
            self._run(self._open(broker, password, heartbeat))
        except BaseException:
            self._loop.close()
            raise

    def _run(self, steps: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(steps, PATIENCE * 2))

    async def _open(self, broker: Broker, password: str, heartbeat: int) -> None:
        url = with_login(broker.url, f'guest:{password}') + f'?heartbeat={heartbeat}'
        self._connection = await self._aio_pika.connect(url)
        self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)

    def close(self) -> None:
        self._run(self._connection.close())
        self._run(asyncio.sleep(0))
        self._loop.close()

    def declare_exchange(self, name: str, kind: str) -> None:
        self._run(self._channel.declare_exchange(name, kind, auto_delete=True))

    def declare_queue(self, name: str, arguments: dict[str, Any] | None = None, passive: bool = False) -> int:
        queue = self._run(self._channel.declare_queue(name, passive=passive, arguments=arguments))
        return int(queue.declaration_result.message_count)

    async def _queue(self, name: str) -> Any:
        return await self._channel.get_queue(name, ensure=False)

    def bind(self, queue: str, exchange: str, key: str) -> None:
        async def bind() -> None:
            await (await self._queue(queue)).bind(exchange, key)

        self._run(bind())

    def publish(self, exchange: str, key: str, body: bytes, **properties: Any) -> str:
        message = self._aio_pika.Message(body, **properties)

        async def publish() -> None:
            target = self._channel.default_exchange
            if exchange:
                target = await self._channel.get_exchange(exchange, ensure=False)
            await target.publish(message, key, mandatory=True)

        try:
            self._run(publish())
        except self._aio_pika.exceptions.PublishError:
            return 'returned'
        except self._aio_pika.exceptions.DeliveryError:
            return 'nack'
        return 'ack'

    def _got(self, message: Any) -> Got:
        def settle(how: str) -> None:
            self._run(message.ack() if how == 'ack' else message.reject(requeue=how == 'requeue'))

        headers = dict(message.headers)
        redelivered = bool(message.redelivered)
        return Got(message.body, headers, redelivered, message.reply_to, message.correlation_id, settle)

    def get(self, queue: str) -> Got | None:
        async def get() -> Any:
            return await (await self._queue(queue)).get(fail=False)

        message = self._run(get())
        return None if message is None else self._got(message)

    def consume(self, queue: str, count: int, no_ack: bool = False, meanwhile: Callable[[], Any] | None = None) -> Any:
        messages: list[Any] = []
        came = asyncio.Event()

        async def take(message: Any) -> None:
            messages.append(message)
            came.set()

        async def subscribe() -> Any:
            found = await self._queue(queue)
            return found, await found.consume(take, no_ack=no_ack)

        async def wait() -> None:
            while len(messages) < count:
                came.clear()
                await came.wait()

        found, tag = self._run(subscribe())
        if meanwhile is not None:
            meanwhile()
        self._run(wait())
        got = [self._got(message) for message in messages]
        for each in got:
            if not no_ack:
                each.settle('ack')
        self._run(found.cancel(tag))
        return got

    def idle(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))

    def code_of(self, action: Callable[[], Any]) -> int:
        import aiormq

        codes = {
            aiormq.exceptions.ChannelNotFoundEntity: 404,
            aiormq.exceptions.ChannelPreconditionFailed: 406,
            aiormq.exceptions.ProbableAuthenticationError: 403,
        }
        try:
            action()
        except tuple(codes) as error:
            return codes[type(error)]
        raise AssertionError('not refused')


CLIENTS: tuple[type[Client], ...] = (PyAmqp, AmqpStorm, AioPika)
