"""Cancels: a caller says that it wants no answer any more, by correlation id. Best effort, on an exchange of our own.

A cancel goes to all processes that consume from the exchange to which its request went: its routing key is that
exchange's name, or ``/`` and the queue's for the default exchange. Each such process has one queue for them, which goes
with its connection, and is read beside its handlers.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
import weakref
from collections.abc import Iterable
from typing import Any

from postage import errors, settings
from postage.amqp import frames
from postage.amqp.cancelled import KEPT_SECONDS, cancelled
from postage.amqp.channel import Channel, never_called
from postage.amqp.connection import Connection
from postage.amqp.control import declare_exchange
from postage.amqp.cutter import Content
from postage.amqp.publishing import Outgoing, PublishingChannel
from postage.amqp.steps import Steps
from postage.amqp.topology import Topology

logger = logging.getLogger('postage')

EXCHANGE = 'postage.cancel'
PARAMETERS: dict[str, Any] = {
    'exchange': EXCHANGE,
    'exchange_type': 'direct',
    'passive': False,
    'durable': True,
    'auto_delete': False,
}
IDS_AT_ONCE = 1000  # in one message


def key_of(exchange: str, routing_key: str) -> str:
    """The routing key of the cancel for a request that was sent there."""
    return exchange or f'/{routing_key}'[:255]


class Canceller:
    """The caller's side: sends the cancels of one publishing connection.

    :ivar waiting: those that are not sent yet: key, correlation id, and deadline in milliseconds since 1970
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.waiting: list[tuple[str, str, int]] = []
        self._channel: PublishingChannel | None = None
        self._topology = Topology()
        self._is_told = self._is_refused = False

    def add(self, exchange: str, routing_key: str, correlation_id: str, gives_up_at: float) -> None:
        """Cancel a request. Any thread; never blocks.

        :param gives_up_at: its deadline on the monotonic clock
        """
        if self._is_refused:
            return
        remaining = min(gives_up_at - time.monotonic(), KEPT_SECONDS)  # it may wait for ever
        deadline = int(1000 * (time.time() + remaining))
        self.waiting.append((key_of(exchange, routing_key), correlation_id, deadline))
        if not self._is_told:
            self._is_told = True
            self._connection.tell(self.send_steps)

    def send_steps(self) -> Steps:
        """Send what waits. On the I/O thread; never raises."""
        self._is_told = False
        try:
            yield self._connection.standing.when_open()
            if EXCHANGE not in self._topology.exchanges:
                yield from declare_exchange(self._connection.control, PARAMETERS)
                self._topology.exchanges[EXCHANGE] = PARAMETERS
                self._connection.topologies.add(self._topology)  # declared again after a loss
            channel = self._channel
            if channel is None or not channel.is_wanted:
                channel = self._channel = PublishingChannel(self._connection, confirms=False)
                self._connection.attach(channel)
                yield from channel.ensure_open_steps()
            waiting, self.waiting = self.waiting, []
            by_key: dict[str, list[tuple[str, int]]] = {}
            for key, correlation_id, deadline in waiting:
                by_key.setdefault(key, []).append((correlation_id, deadline))
            for key, ids in by_key.items():
                for start in range(0, len(ids), IDS_AT_ONCE):
                    self._send(channel, key, ids[start : start + IDS_AT_ONCE])
        except errors.PostageError as error:
            self.waiting.clear()
            self._is_refused = isinstance(error, errors.OperationRefused)
            logger.debug('requests were not cancelled: %s', error)

    def _send(self, channel: PublishingChannel, key: str, ids: list[tuple[str, int]]) -> None:
        properties = frames.encode_properties(content_type='application/json', delivery_mode=1)
        body = json.dumps({'cancel': ids}).encode()
        channel.publish(Outgoing(EXCHANGE, key, False, properties, body, None, resend=False), 0.0)


class CancelChannel(Channel):
    """The responder's side: receives the cancels for all consumers of a connection, on a queue of its own."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._queue = f'{EXCHANGE}-{os.urandom(12).hex()}'
        self._keys: dict[str, None] = {}
        self._tolerance = settings.clock_tolerance()
        self._is_tidying = False

    def bind(self, keys: Iterable[str]) -> None:
        """Receive the cancels with these keys, too. On the I/O thread."""
        for key in keys:
            if key not in self._keys:
                self._keys[key] = None
                if self.is_open:
                    self._bind(key)

    def _bind(self, key: str) -> Any:
        return self.operate('queue_bind', 'receive cancels', queue=self._queue, exchange=EXCHANGE, routing_key=key)

    def _set_up(self) -> Steps:
        _receiving.add(self)
        yield self.operate('exchange_declare', f'declare exchange {EXCHANGE!r}', **PARAMETERS)
        yield self.operate('queue_declare', 'receive cancels', queue=self._queue, exclusive=True, auto_delete=True)
        for key in list(self._keys):
            yield self._bind(key)
        yield self.operate(
            'basic_consume', 'receive cancels', queue=self._queue, on_message_callback=never_called, auto_ack=True
        )

    def on_refused(self, error: errors.PostageError) -> None:
        """A program that may not declare does without cancels."""
        self.is_wanted = False
        logger.debug('cancels are not received: %s', error)

    def give_up(self, error: errors.PostageError) -> None:
        """The connection closes; where none is left that receives cancels, those that were received have no use."""
        _receiving.discard(self)
        if not _receiving:
            cancelled.until.clear()

    def delivered(self, content: Content) -> None:
        try:
            for correlation_id, deadline in json.loads(content.body)['cancel']:
                if isinstance(correlation_id, str):
                    cancelled.add(correlation_id, deadline / 1000 - time.time() + self._tolerance)
        except Exception as error:  # whatever it is: it must not cost the connection
            logger.debug('a cancel could not be read: %r', error)
        if cancelled.until and not self._is_tidying:
            self._is_tidying = True
            self.host.tell(self._tidy)

    def _tidy(self) -> None:
        """Forget what has passed, as long as there is something to. On the I/O thread."""
        seconds = cancelled.forget_past()
        self._is_tidying = seconds is not None
        if seconds is not None:
            self.host.io.pause(max(0.1, seconds)).add_done_callback(lambda _: self._tidy())

    def after_fork(self) -> bool:
        super().after_fork()
        _receiving.discard(self)
        return False


_receiving: weakref.WeakSet[CancelChannel] = weakref.WeakSet()


def listen(connection: Connection, topology: Topology) -> None:
    """Receive the cancels of the requests that come to what a consumer has declared. Any thread; does not block."""
    keys = [binding.exchange for binding in topology.bindings]
    keys += [key_of('', queue) for queue in topology.queues]
    connection.tell(functools.partial(_listen, connection, dict.fromkeys(keys)))


def _listen(connection: Connection, keys: Iterable[str]) -> None:
    channel = connection.cancels
    if channel is None:
        channel = connection.cancels = CancelChannel(connection)
        channel.bind(keys)
        connection.attach(channel)
    else:
        channel.bind(keys)
