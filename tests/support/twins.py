"""The same client on two brokers: what it is told, in a form that can be compared."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from typing import Any, NamedTuple

import pika
from pika import frame, spec

from support.brokers import Broker
from support.channels import PATIENCE, PROTOCOL_HEADER, content_frames, method_frame

CAPABILITIES = {'consumer_cancel_notify': True, 'basic.nack': True, 'publisher_confirms': True}
CHANNEL = 1

Outcome = tuple[Any, ...]


class Delivery(NamedTuple):
    """A message that came to a consumer.

    :ivar tag: the delivery tag, which two brokers may number differently
    """

    consumer: str
    body: bytes
    redelivered: bool
    exchange: str
    routing_key: str
    tag: int

    @property
    def content(self) -> tuple[Any, ...]:
        """Everything that has to be equal on two brokers."""
        return self[:-1]


class Client:
    """One connection with one confirming channel, opened anew whenever an error has closed it.

    :ivar deliveries: what has come to consumers and was not taken by :meth:`take_news`
    :ivar unsettled: delivery tags by consumer, or by the queue of a get, and by the message's body
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._connect()

    # --- life ---

    def _connect(self) -> None:
        broker = self._broker
        self._socket = socket.create_connection((broker.host, broker.port), timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b''
        self._socket.sendall(PROTOCOL_HEADER)
        self._expect(spec.Connection.Start)
        start = spec.Connection.StartOk({'capabilities': CAPABILITIES}, 'PLAIN', '\0guest\0guest', 'en_US')
        self._send(0, start)
        tune = self._expect(spec.Connection.Tune)
        self._send(0, spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), spec.Connection.Open(broker.vhost))
        self._expect(spec.Connection.OpenOk)
        self._open_channel()

    def _open_channel(self) -> None:
        self.deliveries: list[Delivery] = []
        self.cancelled: list[str] = []
        self.unsettled: dict[tuple[str, bytes], list[int]] = defaultdict(list)
        self._confirms: list[str] = []
        self._returned: list[Outcome] = []
        self._no_ack: set[str] = set()
        self._send(CHANNEL, spec.Channel.Open(), spec.Confirm.Select())
        self._expect(spec.Channel.OpenOk)
        self._expect(spec.Confirm.SelectOk)

    def close_channel(self) -> Outcome:
        """Close the channel, and open another."""
        self._send(CHANNEL, spec.Channel.Close(200, '', 0, 0))
        self._expect(spec.Channel.CloseOk)
        self._open_channel()
        return ('channel closed',)

    def close_connection(self) -> Outcome:
        """Close the connection, and open another."""
        self.close()
        self._connect()
        return ('connection closed',)

    def close(self) -> None:
        """Close the connection for good."""
        self._send(0, spec.Connection.Close(200, '', 0, 0))
        self._expect(spec.Connection.CloseOk)
        self._socket.close()

    # --- asking ---

    def ask(self, method: Any) -> Outcome:
        """Send a method, wait until the broker has done it, and return what it answered."""
        return self._ask(method_frame(CHANNEL, method), getattr(method, 'queue', None))

    def consume(self, method: spec.Basic.Consume) -> Outcome:
        """Send a ``Basic.Consume``."""
        outcome = self.ask(method)
        if method.no_ack and outcome[0] == 'Basic.ConsumeOk':
            self._no_ack.add(method.consumer_tag)
        return outcome

    def publish(self, method: spec.Basic.Publish, properties: pika.BasicProperties, body: bytes) -> Outcome:
        """Publish a message; return whether it was returned, and whether it was confirmed or refused."""
        outcome = self._ask(content_frames(CHANNEL, method, properties, body))
        if outcome[0] == 'done':
            while not self._confirms:
                self._take(self._read())
            outcome = (self._confirms.pop(), *self._returned)
            self._returned.clear()
        return outcome

    def settle(self, method: Any, key: tuple[str, bytes], tags: list[int]) -> Outcome:
        """Send an acknowledgement or its contrary for deliveries that came."""
        for name, known in list(self.unsettled.items()):
            self.unsettled[name] = [tag for tag in known if tag not in tags]
            if not self.unsettled[name]:
                del self.unsettled[name]
        return self.ask(method)

    def tags_up_to(self, tag: int) -> list[int]:
        """Return the unsettled delivery tags that a multiple acknowledgement of one covers."""
        return sorted(each for tags in self.unsettled.values() for each in tags if each <= tag)

    def forget_unsettled(self) -> None:
        """Know of no delivery any more, as all were returned."""
        self.unsettled.clear()

    # --- news ---

    def await_news(self, count: int) -> None:
        """Wait until that many deliveries and cancellations have come, or for a while."""
        deadline = time.monotonic() + PATIENCE / 2
        while len(self.deliveries) + len(self.cancelled) < count and time.monotonic() < deadline:
            self._take(self._read())

    def take_news(self) -> tuple[dict[str, list[tuple[Any, ...]]], list[str]]:
        """Return and forget the deliveries, consumer by consumer, and the consumers that the broker has cancelled."""
        news: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for delivery in self.deliveries:
            news[delivery.consumer].append(delivery.content)
        cancelled = sorted(self.cancelled)
        self.deliveries.clear()
        self.cancelled.clear()
        return dict(news), cancelled

    # --- frames ---

    def _send(self, channel: int, *methods: Any) -> None:
        self._socket.sendall(b''.join(method_frame(channel, method) for method in methods))

    def _ask(self, data: bytes, queue: str | None = None) -> Outcome:
        # The second method, which every channel may do, tells that the first one is done, answered or not.
        self._socket.sendall(data + method_frame(CHANNEL, spec.Basic.RecoverAsync_FENCE))
        raise NotImplementedError

    def _expect(self, kind: Any) -> Any:
        while not isinstance(method := getattr(self._read(), 'method', None), kind):
            pass
        return method

    def _read(self) -> Any:
        while True:
            size, found = frame.decode_frame(self._received)
            if found is not None:
                self._received = self._received[size:]
                return found
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError('the broker hung up')
            self._received += data
