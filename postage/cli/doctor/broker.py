"""The broker that is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from postage import errors
from postage.amqp.connection import Connection
from postage.amqp.registry import acquire, release
from postage.amqp.steps import Steps
from postage.settings import BrokerSettings

KNOWN = ('RabbitMQ', 'Postage')
"""Products of which it is known that the questions declare nothing, from version 3.10 on."""


class Broker:
    """A broker, by one connection to it.

    :ivar product: such as ``RabbitMQ``
    :ivar version: such as ``4.3.6``
    :ivar release: its first two numbers; empty where they are not RabbitMQ's
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        properties = self._ask(self._properties_steps)
        self.product, self.version = (_text(properties.get(name)) for name in ('product', 'version'))
        numbers = self.version.split('.')[:2]
        is_known = self.product in KNOWN and len(numbers) == 2 and all(number.isdecimal() for number in numbers)
        self.release: tuple[int, ...] = tuple(map(int, numbers)) if is_known else ()
        self.user = connection.settings.user

    def __str__(self) -> str:
        return f'{self.product} {self.version}'

    @property
    def answers_safely(self) -> bool:
        """Whether declarations that have to be refused are known to be refused."""
        return self.release >= (3, 10)

    def refusal(self, method: str, **arguments: Any) -> errors.OperationRefused | None:
        """Do one of pika's channel methods, and return how the broker refused it, if it did. Blocks.

        :raises errors.BrokerError: the broker does not answer in time
        """

        def steps() -> Steps:
            yield self._connection.control.operate(method, **arguments)

        return self._refusal_of(steps)

    def refusal_of_message(self, exchange: str, routing_key: str) -> errors.OperationRefused | None:
        """Publish an empty message, and return how the broker refused it, if it did. Blocks.

        :raises errors.BrokerError: the broker does not answer in time
        """

        def steps() -> Steps:
            control = self._connection.control
            control.operate('basic_publish', exchange=exchange, routing_key=routing_key, body=b'')
            # A message is not answered. What comes right behind it is, or gets the refusal of the message.
            yield control.operate('basic_qos', prefetch_count=0)

        return self._refusal_of(steps)

    def _refusal_of(self, steps: Callable[[], Steps]) -> errors.OperationRefused | None:
        try:
            self._ask(steps)
        except errors.OperationRefused as error:
            return error
        return None

    def _properties_steps(self) -> Steps:
        yield from ()
        link = self._connection.link
        if link is None:
            raise errors.ConnectionLost('the connection went before the broker was known')
        return dict(link.server_properties or {})

    def _ask(self, steps: Callable[[], Steps]) -> Any:
        return self._connection.ask(steps, self._timeout)


def _text(value: Any) -> str:
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value or 'unknown')


@contextlib.contextmanager
def connected(settings: BrokerSettings, timeout: float) -> Generator[Broker, None, None]:
    """A broker, for the length of a ``with``.

    Without the size of frames that the settings ask for: a broker that refuses it would not say so.

    :param timeout: seconds to wait for a connection, and for each answer
    :raises errors.BrokerError: as ``acquire`` does
    """
    endpoints = tuple(
        replace(endpoint, options=tuple(option for option in endpoint.options if option[0] != 'frame_max'))
        for endpoint in settings.endpoints
    )
    connection = acquire(replace(settings, endpoints=endpoints, connect_timeout=timeout), 'publishing')
    try:
        yield Broker(connection, timeout)
    finally:
        release(connection)
