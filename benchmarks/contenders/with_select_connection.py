"""pika's SelectConnection: callbacks on its own loop, nothing else in the process."""

from __future__ import annotations

import json
import time
from typing import Any

import common
import pika
from with_blocking_connection import parameters

BATCH = 100
"""Messages that are published in one turn of the loop, before it may read and write."""


class Program:
    """A connection with one channel, and what is done on it."""

    def __init__(self, options: common.Options, measure: common.Measure) -> None:
        self.options = options
        self.measure = measure
        self.connection = pika.SelectConnection(
            parameters(options),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self.on_channel),
            on_open_error_callback=self.on_failure,
            on_close_callback=self.on_failure,
        )

    def run(self) -> None:
        """Run the loop until the work is done."""
        self.is_done = False
        self.connection.ioloop.start()

    def on_failure(self, connection: Any, error: BaseException) -> None:
        self.connection.ioloop.stop()
        if not self.is_done:
            raise error

    def on_channel(self, channel: Any) -> None:
        self.channel = channel
        self.prepare()

    def prepare(self) -> None:
        """Do what comes before the timed part."""
        raise NotImplementedError

    def finish(self) -> None:
        """The work is done."""
        self.measure.stop()
        self.is_done = True
        self.connection.close()


class Publisher(Program):
    """Publishes in batches, at most a window ahead of the confirms."""

    def prepare(self) -> None:
        self.body = common.envelope(common.text(self.options.size))
        self.properties = pika.BasicProperties(
            content_type='application/json', delivery_mode=self.options.delivery_mode
        )
        self.sent = self.confirmed = 0
        self.is_parked = False
        for _ in range(common.WARM_UP):
            self.send(common.NOWHERE)
        if self.options.confirms:
            self.channel.confirm_delivery(self.on_confirm, callback=lambda frame: self.begin())
        else:
            self.channel.queue_declare(self.options.queue, passive=True, callback=lambda frame: self.begin())

    def send(self, key: str) -> None:
        self.channel.basic_publish(common.EXCHANGE, key, common.encode(self.body), self.properties)

    def begin(self) -> None:
        self.measure.start()
        self.publish_batch()

    def publish_batch(self) -> None:
        batch = min(BATCH, self.options.messages - self.sent)
        for _ in range(batch):
            self.send(self.options.queue)
        self.sent += batch
        if self.sent == self.options.messages:
            if not self.options.confirms:
                self.await_messages()
        elif self.options.confirms and self.sent - self.confirmed > common.WINDOW - BATCH:
            self.is_parked = True
        else:
            self.connection.ioloop.call_later(0, self.publish_batch)

    def on_confirm(self, frame: Any) -> None:
        if not isinstance(frame.method, pika.spec.Basic.Ack):
            raise ValueError(f'the broker refused a message: {frame}')
        # Delivery tags count from confirm.select on.
        self.confirmed = frame.method.delivery_tag if frame.method.multiple else self.confirmed + 1
        if self.confirmed == self.options.messages:
            self.finish()
        elif self.is_parked and self.sent - self.confirmed <= common.WINDOW - BATCH:
            self.is_parked = False
            self.publish_batch()

    def await_messages(self, frame: Any = None) -> None:
        if frame is not None and frame.method.message_count >= self.options.messages:
            self.finish()
        else:
            self.channel.queue_declare(self.options.queue, passive=True, callback=self.await_messages)


class Consumer(Program):
    """Consumes, and acknowledges each message."""

    def prepare(self) -> None:
        self.handled = 0
        self.handlers: common.Handlers = {('command', 'echo'): self.echo}
        if self.options.prefetch:
            self.channel.basic_qos(prefetch_count=self.options.prefetch, callback=lambda frame: self.begin())
        else:
            self.begin()

    def begin(self) -> None:
        self.measure.start()
        self.tag = self.channel.basic_consume(self.options.queue, self.on_message)

    def echo(self, content: Any) -> None:
        self.handled += 1

    def on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        common.dispatch(self.handlers, json.loads(body))
        channel.basic_ack(method.delivery_tag)
        if self.handled == self.options.messages:
            channel.basic_cancel(self.tag, callback=lambda frame: self.finish())


class Caller(Program):
    """Calls over direct reply-to, and sends the next request when a reply has come."""

    def prepare(self) -> None:
        self.body = common.envelope(common.text(self.options.size, 'rpc'), 'rpc')
        self.under_way: dict[str, float] = {}
        self.sent = 0
        self.limit = common.WARM_UP_CALLS
        self.on_last_reply = self.begin
        self.channel.basic_consume(
            'amq.rabbitmq.reply-to', self.on_reply, auto_ack=True, callback=lambda frame: self.send()
        )

    def begin(self) -> None:
        self.limit += self.options.messages
        self.on_last_reply = self.finish
        self.measure.start()
        for _ in range(min(self.options.in_flight, self.options.messages)):
            self.send()

    def send(self) -> None:
        self.sent += 1
        correlation_id = str(self.sent)
        self.under_way[correlation_id] = time.perf_counter()
        properties = pika.BasicProperties(
            content_type='application/json',
            delivery_mode=self.options.delivery_mode,
            reply_to='amq.rabbitmq.reply-to',
            correlation_id=correlation_id,
        )
        self.channel.basic_publish(common.EXCHANGE, self.options.queue, common.encode(self.body), properties)

    def on_reply(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        common.check_result(json.loads(body))
        began = self.under_way.pop(properties.correlation_id)
        if self.options.in_flight == 1 and self.limit > common.WARM_UP_CALLS:
            self.measure.latencies.append(time.perf_counter() - began)
        if self.sent < self.limit:
            self.send()
        elif not self.under_way:
            self.on_last_reply()


class Responder(Program):
    """Answers RPCs."""

    def prepare(self) -> None:
        self.answered = 0
        self.handlers: common.Handlers = {('command', 'echo'): lambda content: common.result(content['parameters'])}
        self.tag = self.channel.basic_consume(
            self.options.queue, self.on_message, callback=lambda frame: self.measure.start()
        )

    def on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        reply = common.dispatch(self.handlers, json.loads(body))
        channel.basic_publish(
            '',
            properties.reply_to,
            common.encode(reply),
            pika.BasicProperties(content_type='application/json', correlation_id=properties.correlation_id),
        )
        channel.basic_ack(method.delivery_tag)
        self.answered += 1
        if self.answered == self.options.calls_to_answer:
            channel.basic_cancel(self.tag, callback=lambda frame: self.finish())


if __name__ == '__main__':
    programs = {'publish': Publisher, 'consume': Consumer, 'call': Caller, 'respond': Responder}
    common.main(
        {
            role: lambda options, measure, program=program: program(options, measure).run()
            for role, program in programs.items()
        }
    )
