"""What the tests of the messaging layer share: a bench on which a test sets up producers, consumers and processors."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pika
import pika.data
import pika.exceptions

from postage import messaging, microthreads
from postage.amqp import publishing
from support.brokers import Broker, Embedded, RabbitMQ, connect

TIMEOUT = 20.0
"""Seconds after which a test gives up waiting."""


class EchoExchange(messaging.Exchange):
    name = 'echo-exchange'


class OtherExchange(messaging.Exchange):
    name = 'other-exchange'


class EchoProducer(messaging.GenericProducer):
    eks = [(EchoExchange, 'echo-rk')]
    rpc_timeout = TIMEOUT
    max_retry = 0


class GreedyConsumer(messaging.GenericConsumer):
    prefetch_count = 100


def echo_producer(key: str) -> type[EchoProducer]:
    """An :class:`EchoProducer` that sends with another key."""
    return type('EchoProducer', (EchoProducer,), {'eks': [(EchoExchange, key)]})


EQK = [(EchoExchange, [('echo-queue', 'echo-rk')])]

DEAD_LETTERING = {'arguments': {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}}
"""Flags of a queue whose rejected messages end up in the queue ``dead`` (see :meth:`Bench.dead`)."""

GUARDED_EQK = [(EchoExchange, [({'name': 'echo-queue', 'flags': DEAD_LETTERING}, 'echo-rk')])]


class Seen(queue.Queue[Any]):
    """What handlers have noted, oldest first."""

    def take(self, number: int = 1) -> list[Any]:
        """Wait for so many notes and return them."""
        return [self.get(timeout=TIMEOUT) for _ in range(number)]

    def next(self) -> Any:
        """Wait for the next note and return it."""
        return self.get(timeout=TIMEOUT)


class Processor(messaging.MessageProcessor):
    """A processor that notes what it sees.

    :ivar seen: for its handlers to put in what they got
    """

    def __init__(self, eqk: Any = EQK, fingerprint: Any = None, **kwds: Any) -> None:
        self.seen = Seen()
        super().__init__({} if fingerprint is None else fingerprint, eqk, **kwds)


class Echo(Processor):
    """Notes the parameters of each ``echo``, and answers an RPC with them."""

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        self.seen.put(content['parameters'])

    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        reply_func(messaging.MessageResult(content['parameters']))


class Running:
    """Processors in a scheduler of their own, in a thread of its own."""

    def __init__(self, processors: tuple[messaging.MessageProcessor, ...]) -> None:
        self.processors = processors
        self.scheduler = microthreads.MicroScheduler()
        for processor in processors:
            self.scheduler.add_microthread(processor)
        self._thread = threading.Thread(target=self._run, name='scheduler-of-a-test', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for _ in self.scheduler.main():
            pass

    def wait(self) -> None:
        """Wait until the loop has ended by itself."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), 'the scheduler still runs'

    def stop(self) -> None:
        """End the loop, if it still runs, and close the processors. What they had prefetched is back in its queue."""
        if self._thread.is_alive():
            self.scheduler.add_microthread(_Exit())
        self.wait()
        for processor in self.processors:
            processor.close()


class _Exit(microthreads.MicroThread):
    def step(self) -> None:
        raise microthreads.ExitScheduler


@contextlib.contextmanager
def consuming(consumer: Any, callback: Any = None) -> Iterator[Seen]:
    """Run ``start_consuming`` in a thread; what is delivered is acknowledged, if the callback does not see to that."""
    seen = Seen()

    def note(channel: Any, method: Any, header: Any, body: bytes) -> None:
        (callback or (lambda method: consumer.ack(method)))(method)
        seen.put((channel, method, header, body))

    thread = threading.Thread(target=consumer.start_consuming, args=(note,), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        consumer.stop_consuming()
        thread.join(TIMEOUT)
        assert not thread.is_alive(), 'start_consuming did not return'


class LogBook(logging.Handler):
    """What Postage has logged, to be waited for."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter('%(levelname)s %(name)s: %(message)s'))
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    @property
    def text(self) -> str:
        """All that was logged so far, tracebacks included."""
        return '\n'.join(self.lines)

    def find(self, *words: str) -> list[str]:
        """Return the lines that contain all of these words."""
        return [line for line in list(self.lines) if all(word in line for word in words)]

    def expect(self, *words: str) -> str:
        """Wait until a line contains all of these words, and return it."""
        with self._changed:
            found = self._changed.wait_for(lambda: self.find(*words), TIMEOUT)
        assert found, f'nothing was logged with {words} in:\n{self.text}'
        return found[0]


class Bench:
    """A broker, and what a test sets up on it; the end of the test takes it all down.

    :ivar log: what the logger ``postage`` was given
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.log = LogBook()
        self._end = contextlib.ExitStack()
        self._bare_end = contextlib.ExitStack()
        self._bare: Any = None

    def __enter__(self) -> Bench:
        logger = logging.getLogger('postage')
        level = logger.level
        logger.addHandler(self.log)
        logger.setLevel(logging.DEBUG)
        self._end.callback(logger.setLevel, level)
        self._end.callback(logger.removeHandler, self.log)
        return self

    def __exit__(self, *_: object) -> None:
        with self._end:  # whatever becomes of the bare connection
            self._bare_end.close()

    # Postage's side

    def closing(self, thing: Any) -> Any:
        """Close this at the end of the test, and return it."""
        self._end.callback(thing.close)
        return thing

    def producer(self, cls: type[messaging.GenericProducer] = EchoProducer, *args: Any, **kwds: Any) -> Any:
        """A producer, which the end of the test closes."""
        return self.closing(cls(*args, **kwds))

    def consumer(self, eqk: Any = EQK, cls: type[messaging.GenericConsumer] = messaging.GenericConsumer) -> Any:
        """A consumer, which the end of the test closes."""
        return self.closing(cls(eqk))

    def run(self, *processors: messaging.MessageProcessor) -> Running:
        """Run processors until the end of the test."""
        running = Running(processors)
        self._end.callback(running.stop)
        return running

    # The broker's side, by bare pika

    @property
    def bare(self) -> Any:
        """A channel of a bare pika connection; a new one where the broker has closed the last one."""
        if self._bare is None or self._bare.connection.is_closed:
            self._bare_end.close()
            self._bare = self._bare_end.enter_context(connect(self.broker)).channel()
        elif self._bare.is_closed:
            self._bare = self._bare.connection.channel()
        return self._bare

    def collect(self, exchange: type[messaging.Exchange] = EchoExchange, key: str = 'echo-rk', **flags: Any) -> str:
        """Declare a queue that collects what is published with a key, and return its name."""
        name = f'collected-{exchange.name}-{key}'
        self.bare.exchange_declare(**exchange.parameters)
        self.bare.queue_declare(name, durable=True, **flags)
        self.bare.queue_bind(name, exchange.name, key)
        return name

    def get(self, queue: str) -> Any:
        """Take the next message from a queue, at once: what was confirmed is there."""
        method, properties, body = self.bare.basic_get(queue, auto_ack=True)
        assert method is not None, f'there is no message in {queue}'
        return Got(method, properties, body)

    def await_message(self, queue: str) -> Any:
        """Wait for the next message in a queue, and take it."""

        def take() -> Any:
            method, properties, body = self.bare.basic_get(queue, auto_ack=True)
            return None if method is None else Got(method, properties, body)

        return eventually(take)

    def dead(self) -> None:
        """Declare the queue to which :data:`DEAD_LETTERING` queues send what is rejected."""
        self.bare.queue_declare('dead', durable=True)

    def count(self, queue: str) -> int:
        """Return how many messages of a queue wait to be delivered."""
        return self.broker.queues()[queue]

    def consumers(self, queue: str) -> int:
        """Return how many consumers a queue has."""
        return int(self.bare.queue_declare(queue, passive=True).method.consumer_count)

    def await_consumed(self, queue: str) -> None:
        """Wait until a queue exists and is consumed from; so it is bound as well."""
        eventually(lambda: queue in self.broker.queues() and self.consumers(queue))

    def publish(self, body: Any, key: str = 'echo-rk', exchange: str = EchoExchange.name, **properties: Any) -> None:
        """Publish by bare pika: bytes as they are, everything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        properties.setdefault('content_type', 'application/json')
        self.bare.basic_publish(exchange, key, data, pika.BasicProperties(**properties))

    def publish_hostile(
        self,
        headers: Hostile,
        key: str = 'echo-rk',
        exchange: str = EchoExchange.name,
        body: Any = None,
        **properties: Any,
    ) -> None:
        """Publish a good message, a command by default, with headers that pika's decoder does not survive."""
        data = json.dumps(body or command()).encode()
        encode = pika.data.encode_table

        def encode_hostile(pieces: list[bytes], table: Any) -> int:
            if not isinstance(table, Hostile):
                return encode(pieces, table)
            pieces.append(table.raw)
            return len(table.raw)

        channel = self.bare  # opened first: pika sends tables then, too
        with mock.patch.object(pika.data, 'encode_table', encode_hostile):
            channel.basic_publish(exchange, key, data, pika.BasicProperties(headers=headers, **properties))

    def close_all_connections(self) -> None:
        """Have the broker close every connection."""
        self._bare_end.close()
        self._bare = None
        self.broker.close_all_connections()

    def memory_alarm(self) -> contextlib.AbstractContextManager[None]:
        """The broker reads nothing from those who publish, for the length of a ``with``."""
        return memory_alarm(self.broker)


@contextlib.contextmanager
def memory_alarm(broker: Broker) -> Iterator[None]:
    """A broker reads nothing from those who publish, for the length of a ``with``."""
    if isinstance(broker, Embedded):
        broker.server.block()
        try:
            yield
        finally:
            broker.server.unblock()
    else:
        assert isinstance(broker, RabbitMQ)
        # The answers to the two questions say that the alarm was raised, and that every connection knows of it.
        broker.node.evaluate(
            'rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}), rabbit_alarm:get_alarms(),'
            ' rabbit_networking:connection_info_all([state]), ""'
        )
        try:
            yield
        finally:
            broker.node.evaluate('rabbit_alarm:clear_alarm({resource_limit, memory, node()}), ""')


class Hostile(dict[str, Any]):
    """Headers that are sent as these bytes."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(any=1)
        self.raw = raw


def _table(entries: bytes) -> bytes:
    return struct.pack('>I', len(entries)) + entries


def _nested(depth: int) -> bytes:
    table = _table(b'')
    for _ in range(depth):
        table = _table(b'\x01nF' + table)
    return table


HOSTILE = {
    'a timestamp beyond the end of time': Hostile(_table(b'\x01tT' + b'\x7f' + b'\xff' * 7)),
    'tables nested 500 deep': Hostile(_nested(500)),
}


class Got:
    """A message as bare pika gets it.

    :ivar body: decoded, where it is JSON
    """

    def __init__(self, method: Any, properties: Any, data: bytes) -> None:
        self.method = method
        self.properties = properties
        self.data = data

    @property
    def body(self) -> Any:
        return json.loads(self.data)

    @property
    def parameters(self) -> Any:
        """The parameters of a command."""
        return self.body['content']['parameters']


class BareResponder:
    """A program of bare pika that answers what comes to a queue, in a thread of its own.

    :param answer: called with the decoded body and the properties of each request; returns the replies to send, each
        with its queue, its body (bytes, or what becomes JSON) and its correlation id (or ``None``)
    :param declare: called with the channel first
    """

    def __init__(
        self,
        broker: Broker,
        queue: str,
        answer: Callable[[Any, Any], Any],
        declare: Callable[[Any], object] | None = None,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._answer = answer
        self._declare = declare
        self._ready = threading.Event()
        self._connection: Any = None
        self._thread = threading.Thread(target=self._run, name='bare-responder', daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT), 'the bare responder does not consume'

    def _run(self) -> None:
        with connect(self._broker) as self._connection:
            self._channel = self._connection.channel()
            if self._declare is not None:
                self._declare(self._channel)
            self._channel.basic_consume(self._queue, self._on_message, auto_ack=True)
            self._ready.set()
            with contextlib.suppress(pika.exceptions.ConnectionClosedByBroker):
                self._channel.start_consuming()

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        for address, reply, correlation_id in self._answer(json.loads(body), properties):
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            channel.basic_publish(
                '', address, data, pika.BasicProperties(content_type='application/json', correlation_id=correlation_id)
            )

    def close(self) -> None:
        """Stop it."""
        if self._thread.is_alive():
            self._connection.add_callback_threadsafe(self._channel.stop_consuming)
        self._thread.join(TIMEOUT)


def responder_of_results(bench: Bench, bodies: list[Any]) -> BareResponder:
    """A program of bare pika that answers the next requests with these bodies, one after the other."""
    rest = iter(bodies)

    def answer(body: Any, properties: Any) -> Any:
        return [(properties.reply_to, next(rest), properties.correlation_id)]

    responder: BareResponder = bench.closing(BareResponder(bench.broker, bench.collect(), answer))
    return responder


class HeldConfirms:
    """Confirms that arrive are kept back until :meth:`release`: messages stay unconfirmed meanwhile."""

    def __init__(self, monkeypatch: Any) -> None:
        self._monkeypatch = monkeypatch
        self._deliver = publishing.PublishingChannel.confirmed
        self._held: list[tuple[Any, ...]] = []
        self.arrived = Seen()
        held, arrived = self._held, self.arrived

        def hold(channel: Any, *confirm: Any) -> None:
            held.append((channel, *confirm))
            arrived.put(confirm)

        monkeypatch.setattr(publishing.PublishingChannel, 'confirmed', hold)

    def forget(self) -> None:
        """Lose those that have arrived; the next ones are let through."""
        self._monkeypatch.setattr(publishing.PublishingChannel, 'confirmed', self._deliver)

    def release(self) -> None:
        """Let through those that have arrived, and the next ones."""
        self.forget()
        for channel, *confirm in self._held:
            channel.host.tell(lambda channel=channel, confirm=confirm: channel.confirmed(*confirm))
            channel.host.tell(channel.end_of_read)


def command(name: str = 'echo', parameters: Any = None, category: str = 'message', **changes: Any) -> dict[str, Any]:
    """The body of a command, as any program may write it; ``...`` takes a field away."""
    body = {
        'type': 'command',
        'name': name,
        'category': category,
        'version': '2',
        'fingerprint': {},
        'content': {'parameters': parameters},
        '_reserved': {},
        **changes,
    }
    return {field: value for field, value in body.items() if value is not ...}


def result(value: Any, **content: Any) -> dict[str, Any]:
    """The body of a result, as any program may write it."""
    return {
        'type': 'result',
        'name': 'none',
        'category': 'message',
        'version': '2',
        'fingerprint': {},
        'content': {'type': 'success', 'value': value, 'message': '', **content},
        '_reserved': {},
    }


def eventually(condition: Callable[[], Any]) -> Any:
    """Wait for what nothing tells us about, by looking again and again, and return it once it is true."""
    deadline = time.monotonic() + TIMEOUT
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, 'it did not come about in time'
        pause.wait(0.01)
    return found
