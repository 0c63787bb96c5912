"""kombu over py-amqp, with its own JSON serializer."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import common
from kombu import Connection, Consumer, Exchange, Producer, Queue

EXCHANGE = Exchange(common.EXCHANGE, 'direct', durable=True, no_declare=True)


def connect(options: common.Options) -> Connection:
    return Connection(
        hostname=options.host,
        port=options.port,
        virtual_host=options.vhost,
        userid='guest',
        password='guest',
        transport='pyamqp',
    )


def queue_of(name: str) -> Queue:
    return Queue(name, EXCHANGE, routing_key=name, no_declare=True)


def publish(options: common.Options, measure: common.Measure) -> None:
    """Publish; with confirms, these are read at a full window and at the end."""
    with connect(options) as connection:
        channel = connection.channel()
        producer = Producer(channel, EXCHANGE, serializer='json', auto_declare=False)
        body = common.envelope(common.text(options.size))

        def send(key: str) -> None:
            producer.publish(body, routing_key=key, delivery_mode=options.delivery_mode)

        for _ in range(common.WARM_UP):
            send(common.NOWHERE)
        confirms = Confirms(connection, channel) if options.confirms else None
        with measure:
            for sent in range(options.messages):
                if confirms is not None:
                    confirms.wait_for(sent - common.WINDOW)
                send(options.queue)
            if confirms is not None:
                confirms.wait_for(options.messages)
            else:
                while channel.queue_declare(options.queue, passive=True).message_count < options.messages:
                    time.sleep(0.001)


class Confirms:
    """Counts publisher confirms in the background, which kombu leaves to py-amqp's channel."""

    def __init__(self, connection: Connection, channel: Any) -> None:
        self.connection = connection
        self.confirmed = 0
        channel.confirm_select()
        channel.events['basic_ack'].add(self.on_ack)

    def on_ack(self, delivery_tag: int, multiple: bool) -> None:
        self.confirmed = delivery_tag if multiple else self.confirmed + 1

    def wait_for(self, messages: int) -> None:
        while self.confirmed < messages:
            self.connection.drain_events()


def consume(options: common.Options, measure: common.Measure) -> None:
    """Consume, and acknowledge each message."""
    handled = 0

    def echo(content: Any) -> None:
        nonlocal handled
        handled += 1

    handlers: common.Handlers = {('command', 'echo'): echo}

    def on_message(body: Any, message: Any) -> None:
        common.dispatch(handlers, body)
        message.ack()

    with connect(options) as connection:
        consumer = Consumer(
            connection.channel(),
            [queue_of(options.queue)],
            callbacks=[on_message],
            accept=['json'],
            auto_declare=False,
            prefetch_count=options.prefetch or None,
        )
        with measure, consumer:
            while handled < options.messages:
                connection.drain_events()


class Caller:
    """Calls over direct reply-to."""

    def __init__(self, options: common.Options, connection: Connection) -> None:
        self.options = options
        self.connection = connection
        channel = connection.channel()
        self.body = common.envelope(common.text(options.size, 'rpc'), 'rpc')
        self.under_way: set[str] = set()
        self.sent = 0
        self.producer = Producer(channel, EXCHANGE, serializer='json', auto_declare=False)
        self.consumer = Consumer(
            channel,
            [Queue('amq.rabbitmq.reply-to', no_declare=True)],
            callbacks=[self.on_reply],
            accept=['json'],
            auto_declare=False,
            no_ack=True,
        )
        self.consumer.consume()

    def send(self) -> None:
        self.sent += 1
        correlation_id = str(self.sent)
        self.under_way.add(correlation_id)
        self.producer.publish(
            self.body,
            routing_key=self.options.queue,
            delivery_mode=self.options.delivery_mode,
            reply_to='amq.rabbitmq.reply-to',
            correlation_id=correlation_id,
        )

    def on_reply(self, body: Any, message: Any) -> None:
        common.check_result(body)
        self.under_way.remove(message.properties['correlation_id'])

    def call(self) -> None:
        self.send()
        while self.under_way:
            self.connection.drain_events()

    def call_many(self, messages: int, in_flight: int) -> None:
        last = self.sent + messages
        while self.sent < last or self.under_way:
            while self.sent < last and len(self.under_way) < in_flight:
                self.send()
            if self.under_way:  # else the last replies have come while the last request was sent
                self.connection.drain_events()


def call(options: common.Options, measure: common.Measure) -> None:
    """Call a responder."""
    with connect(options) as connection:
        common.measure_calls(Caller(options, connection), options, measure)


def respond(options: common.Options, measure: common.Measure) -> None:
    """Answer RPCs."""
    answered = 0
    handlers: common.Handlers = {('command', 'echo'): lambda content: common.result(content['parameters'])}

    with connect(options) as connection:
        channel = connection.channel()
        producer = Producer(channel, serializer='json', auto_declare=False)

        def answer(body: Any, message: Any) -> None:
            producer.publish(
                common.dispatch(handlers, body),
                exchange='',
                routing_key=message.properties['reply_to'],
                correlation_id=message.properties['correlation_id'],
                delivery_mode=1,
            )
            message.ack()

        # To publish looks for what has arrived: an answer given in the callback would call it again, ever deeper.
        arrived: deque[tuple[Any, Any]] = deque()
        consumer = Consumer(
            channel,
            [queue_of(options.queue)],
            callbacks=[lambda *message: arrived.append(message)],
            accept=['json'],
            auto_declare=False,
        )
        with consumer, measure:
            while answered < options.calls_to_answer:
                if not arrived:
                    connection.drain_events()
                while arrived:
                    answer(*arrived.popleft())
                    answered += 1


if __name__ == '__main__':
    common.main({'publish': publish, 'consume': consume, 'call': call, 'respond': respond})
