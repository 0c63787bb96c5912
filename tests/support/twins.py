"""The same client on two brokers: what it is told, in a form that can be compared."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, NamedTuple

import pika
from pika import frame, spec

from support.brokers import Broker
from support.channels import PATIENCE, PROTOCOL_HEADER, content_frames, method_frame

Outcome = tuple[Any, ...]

CAPABILITIES = {'consumer_cancel_notify': True, 'basic.nack': True, 'publisher_confirms': True}
CHANNEL = 1
ASIDE = 2
"""The number of a second channel, on which the broker is only looked at."""
DONE: Outcome = ('done',)
FENCE = method_frame(CHANNEL, spec.Exchange.Declare(exchange='amq.direct', passive=True))
"""A method that is always answered: the one before it is done then, answered or not."""


class Delivery(NamedTuple):
    """A message that came to a consumer."""

    consumer: str
    body: bytes
    redelivered: bool
    exchange: str
    routing_key: str
    headers: Any


def comparable(value: Any) -> Any:
    """Return headers without the times of deaths, which are never the same."""
    if isinstance(value, dict):
        return {name: comparable(each) for name, each in sorted(value.items()) if name != 'time'}
    if isinstance(value, list):
        return [comparable(each) for each in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


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
        self._send(ASIDE, spec.Channel.Open())
        self._expect(spec.Channel.OpenOk)
        self._open_channel()

    def _open_channel(self) -> None:
        self.deliveries: list[Delivery] = []
        self.cancelled: list[str] = []
        self.unsettled: dict[tuple[str, bytes], list[int]] = {}
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
        return self._ask(method_frame(CHANNEL, method), method)

    def consume(self, method: spec.Basic.Consume) -> Outcome:
        """Send a ``Basic.Consume``."""
        if method.no_ack:
            self._no_ack.add(method.consumer_tag)
        else:
            self._no_ack.discard(method.consumer_tag)
        return self.ask(method)

    def publish(self, method: spec.Basic.Publish, properties: pika.BasicProperties, body: bytes) -> Outcome:
        """Publish a message; return whether it was confirmed or refused, and what was returned."""
        outcome = self._ask(content_frames(CHANNEL, method, properties, body), method)
        if outcome != DONE:
            return outcome
        while not self._confirms:
            self._take(*self._read_event())
        outcome = (self._confirms.pop(), *self._returned)
        self._returned.clear()
        return outcome

    def settle(self, method: Any, tags: list[int]) -> Outcome:
        """Acknowledge or refuse the deliveries with these tags by one method."""
        for key, known in list(self.unsettled.items()):
            left = [tag for tag in known if tag not in tags]
            if left:
                self.unsettled[key] = left
            else:
                del self.unsettled[key]
        return self.ask(method)

    def tags_up_to(self, last: int) -> list[int]:
        """Return the unsettled delivery tags that a multiple acknowledgement of one covers."""
        return sorted(tag for tags in self.unsettled.values() for tag in tags if tag <= last)

    def keys_of(self, tags: list[int]) -> list[tuple[str, bytes]]:
        """Return which deliveries these are, in a way that does not depend on their numbers."""
        return sorted(key for key, known in self.unsettled.items() for tag in known if tag in tags)

    # --- news ---

    def catch_up(self) -> None:
        """Read what the broker has sent until now."""
        self._send(ASIDE, spec.Exchange.Declare(exchange='amq.direct', passive=True))
        self._await_aside()

    def await_news(self, count: int) -> None:
        """Wait until that many deliveries and cancellations have come.

        :raises TimeoutError: where they do not
        """
        while len(self.deliveries) + len(self.cancelled) < count:
            self._take(*self._read_event())

    @property
    def news_count(self) -> int:
        """How many deliveries and cancellations have come that were not taken."""
        return len(self.deliveries) + len(self.cancelled)

    def take_news(self) -> tuple[dict[str, list[Outcome]], list[str]]:
        """Return and forget the deliveries, consumer by consumer, and the consumers that the broker has cancelled."""
        news: dict[str, list[Outcome]] = {}
        for delivery in self.deliveries:
            news.setdefault(delivery.consumer, []).append(tuple(delivery))
        cancelled = sorted(self.cancelled)
        self.deliveries.clear()
        self.cancelled.clear()
        return news, cancelled

    def counts(self, queues: Iterable[str]) -> dict[str, Outcome]:
        """Return how many messages and consumers these queues have, or why that cannot be told."""
        found: dict[str, Outcome] = {}
        for queue in queues:
            self._socket.sendall(method_frame(ASIDE, spec.Queue.Declare(queue=queue, passive=True)))
            method = self._await_aside()
            if isinstance(method, spec.Channel.Close):
                found[queue] = (method.reply_code,)
                self._send(ASIDE, spec.Channel.CloseOk(), spec.Channel.Open())
                self._await_aside()
            else:
                found[queue] = (method.message_count, method.consumer_count)
        return found

    # --- frames ---

    def _send(self, channel: int, *methods: Any) -> None:
        self._socket.sendall(b''.join(method_frame(channel, method) for method in methods))

    def _ask(self, data: bytes, asked: Any) -> Outcome:
        self._socket.sendall(data + FENCE)
        # RabbitMQ answers some methods from another process, so that the answer may come after that to the fence.
        awaited = 2 if asked.synchronous else 1
        answer: Outcome = DONE
        while awaited:
            method, body, headers = self._read_event()
            if self._take(method, body, headers):
                continue
            if isinstance(method, spec.Channel.Close):
                self._send(CHANNEL, spec.Channel.CloseOk())
                self._open_channel()
                return ('Channel.Close', method.reply_code, method.reply_text, method.class_id, method.method_id)
            if isinstance(method, spec.Connection.Close):
                self._send(0, spec.Connection.CloseOk())
                self._socket.close()
                self._connect()
                return ('Connection.Close', method.reply_code, method.reply_text, method.class_id, method.method_id)
            awaited -= 1
            if answer == DONE or not isinstance(method, spec.Exchange.DeclareOk):
                answer = self._described(method, body, headers, asked)
        return answer if asked.synchronous else DONE

    def _described(self, method: Any, body: bytes, headers: Any, asked: Any) -> Outcome:
        fields = {name: value for name, value in vars(method).items() if name not in ('delivery_tag', 'cluster_id')}
        if isinstance(method, spec.Basic.GetOk):
            if not asked.no_ack:
                self.unsettled.setdefault((f'get {asked.queue}', body), []).append(method.delivery_tag)
            return (method.NAME, body, headers, *sorted(fields.items()))
        if isinstance(method, spec.Queue.DeclareOk):
            # How many messages and consumers there are is compared once everything has settled.
            return (method.NAME, method.queue)
        return (method.NAME, *sorted(fields.items()))

    def _take(self, method: Any, body: bytes, headers: Any) -> bool:
        """Remember what comes by itself, and tell whether this is such a thing."""
        if isinstance(method, spec.Basic.Deliver):
            self.deliveries.append(
                Delivery(method.consumer_tag, body, method.redelivered, method.exchange, method.routing_key, headers)
            )
            if method.consumer_tag not in self._no_ack:
                self.unsettled.setdefault((method.consumer_tag, body), []).append(method.delivery_tag)
        elif isinstance(method, spec.Basic.Cancel):
            self.cancelled.append(method.consumer_tag)
        elif isinstance(method, spec.Basic.Return):
            self._returned.append((method.reply_code, method.reply_text, method.exchange, method.routing_key, body))
        elif isinstance(method, (spec.Basic.Ack, spec.Basic.Nack)):
            self._confirms.append(method.NAME)
        else:
            return False
        return True

    def _await_aside(self) -> Any:
        while True:
            method, body, headers = self._read_event()
            if not self._take(method, body, headers):
                return method

    def _expect(self, kind: Any) -> Any:
        while not isinstance(method := self._read_event()[0], kind):
            pass
        return method

    def _read_event(self) -> tuple[Any, bytes, Any]:
        """Return the next method, and the body and the headers of its message where it has one."""
        method = self._read_frame().method
        if not isinstance(method, (spec.Basic.Deliver, spec.Basic.GetOk, spec.Basic.Return)):
            return method, b'', None
        header = self._read_frame()
        missing, parts = header.body_size, []
        while missing:
            parts.append(self._read_frame().fragment)
            missing -= len(parts[-1])
        return method, b''.join(parts), comparable(header.properties.headers or {})

    def _read_frame(self) -> Any:
        while True:
            size, found = frame.decode_frame(self._received)
            if found is not None:
                self._received = self._received[size:]
                return found
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError('the broker hung up')
            self._received += data
