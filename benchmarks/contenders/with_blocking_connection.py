"""pika's BlockingConnection."""

from __future__ import annotations

import json
import time
from typing import Any

import common
import pika


def connect(options: common.Options) -> tuple[pika.BlockingConnection, Any]:
    connection = pika.BlockingConnection(parameters(options))
    return connection, connection.channel()


def parameters(options: common.Options) -> pika.ConnectionParameters:
    return pika.ConnectionParameters(options.host, options.port, options.vhost)


def publish(options: common.Options, measure: common.Measure) -> None:
    """Publish; with confirms, each is waited for, since that is the only way it offers."""
    connection, channel = connect(options)
    if options.confirms:
        channel.confirm_delivery()
    properties = pika.BasicProperties(content_type='application/json', delivery_mode=options.delivery_mode)
    body = common.envelope(common.text(options.size))
    for _ in range(common.WARM_UP):
        channel.basic_publish(common.EXCHANGE, common.NOWHERE, common.encode(body), properties)
    with measure:
        for _ in range(options.messages):
            channel.basic_publish(common.EXCHANGE, options.queue, common.encode(body), properties)
        while channel.queue_declare(options.queue, passive=True).method.message_count < options.messages:
            time.sleep(0.001)
    connection.close()


def consume(options: common.Options, measure: common.Measure) -> None:
    """Consume, and acknowledge each message."""
    connection, channel = connect(options)
    handled = 0

    def echo(content: Any) -> None:
        nonlocal handled
        handled += 1

    handlers: common.Handlers = {('command', 'echo'): echo}

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        common.dispatch(handlers, json.loads(body))
        channel.basic_ack(method.delivery_tag)
        if handled == options.messages:
            channel.stop_consuming()

    if options.prefetch:
        channel.basic_qos(prefetch_count=options.prefetch)
    with measure:
        channel.basic_consume(options.queue, on_message)
        channel.start_consuming()
    connection.close()


class Caller:
    """Calls over direct reply-to."""

    def __init__(self, options: common.Options) -> None:
        self.options = options
        self.connection, self.channel = connect(options)
        self.body = common.envelope(common.text(options.size, 'rpc'), 'rpc')
        self.under_way: set[str] = set()
        self.sent = 0
        self.channel.basic_consume('amq.rabbitmq.reply-to', self.on_reply, auto_ack=True)

    def send(self) -> None:
        self.sent += 1
        correlation_id = str(self.sent)
        self.under_way.add(correlation_id)
        properties = pika.BasicProperties(
            content_type='application/json',
            delivery_mode=self.options.delivery_mode,
            reply_to='amq.rabbitmq.reply-to',
            correlation_id=correlation_id,
        )
        self.channel.basic_publish(common.EXCHANGE, self.options.queue, common.encode(self.body), properties)

    def on_reply(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        common.check_result(json.loads(body))
        self.under_way.remove(properties.correlation_id)

    def call(self) -> None:
        self.send()
        while self.under_way:
            self.connection.process_data_events(time_limit=None)

    def call_many(self, messages: int, in_flight: int) -> None:
        last = self.sent + messages
        while self.sent < last or self.under_way:
            while self.sent < last and len(self.under_way) < in_flight:
                self.send()
            self.connection.process_data_events(time_limit=None)


def call(options: common.Options, measure: common.Measure) -> None:
    """Call a responder."""
    caller = Caller(options)
    common.measure_calls(caller, options, measure)
    caller.connection.close()


def respond(options: common.Options, measure: common.Measure) -> None:
    """Answer RPCs."""
    connection, channel = connect(options)
    answered = 0
    handlers: common.Handlers = {('command', 'echo'): lambda content: common.result(content['parameters'])}

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        nonlocal answered
        reply = common.dispatch(handlers, json.loads(body))
        channel.basic_publish(
            '',
            properties.reply_to,
            common.encode(reply),
            pika.BasicProperties(content_type='application/json', correlation_id=properties.correlation_id),
        )
        channel.basic_ack(method.delivery_tag)
        answered += 1
        if answered == options.calls_to_answer:
            channel.stop_consuming()

    channel.basic_consume(options.queue, on_message)
    with measure:
        channel.start_consuming()
    connection.close()


if __name__ == '__main__':
    common.main({'publish': publish, 'consume': consume, 'call': call, 'respond': respond})
