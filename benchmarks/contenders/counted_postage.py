"""Postage with its calls counted, message by message: the roles that the benchmarks compare, in stretches of a length.

A program like the contenders, but what it prints at the end is what all of its threads called in each stretch
(``counting.py``). The first stretch is for warming up, and is not counted. ``benchmarks/calls.py`` starts it.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import common
import with_postage
from counting import CallCounter

from postage import messaging, microthreads


def publish(counter: CallCounter, options: common.Options) -> None:
    """Publish, confirmed in the background; at the end of a stretch wait until all of it is confirmed."""
    producer = with_postage.make_producer(options)
    text = common.text(options.size)

    def stretch() -> None:
        for _ in range(options.messages):
            producer.message_echo(text)
        producer.flush()

    count_stretches(counter, options, stretch)
    producer.close()


def call(counter: CallCounter, options: common.Options) -> None:
    """Call a responder, one request after the other or ``in_flight`` of them at a time."""
    producer = with_postage.make_producer(options)
    text = common.text(options.size, 'rpc')

    def in_turn() -> None:
        for _ in range(options.messages):
            producer.rpc_echo(text)

    under_way: deque[messaging.RpcFuture] = deque()

    def in_flight() -> None:
        for _ in range(options.messages):
            if len(under_way) == options.in_flight:
                under_way.popleft().result()
            under_way.append(producer.rpc_future_echo(text))

    count_stretches(counter, options, in_flight if options.in_flight > 1 else in_turn)
    while under_way:
        under_way.popleft().result()
    producer.close()


def count_stretches(counter: CallCounter, options: common.Options, stretch: Callable[[], None]) -> None:
    """Do one stretch for warming up, and then those that count."""
    wait_to_go()
    for _ in range(1 + options.stretches):
        stretch()
        counter.mark()
    tell_stretches(counter, options)


def consume(counter: CallCounter, options: common.Options) -> None:
    """Consume and acknowledge, with a processor and a plain handler."""

    class Processor(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            if counter.message(options.messages) == options.stretches:
                raise microthreads.ExitScheduler

    run(Processor({}, with_postage.bindings(options.queue), with_postage.url(options)))
    tell_stretches(counter, options)


def respond(counter: CallCounter, options: common.Options) -> None:
    """Answer RPCs, with a processor and a plain handler."""

    class Responder(messaging.MessageProcessor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: dict[str, Any], reply_func: Any) -> None:
            reply_func(messaging.MessageResult(content['parameters']))
            if counter.message(options.messages) == options.stretches:
                raise microthreads.ExitScheduler

    run(Responder({}, with_postage.bindings(options.queue), with_postage.url(options)))
    tell_stretches(counter, options)


def run(processor: messaging.MessageProcessor) -> None:
    """Run a processor until it ends the loop."""
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(processor)
    wait_to_go()
    for _ in scheduler.main():
        pass
    processor.close()


def consume_by_callback(counter: CallCounter, options: common.Options) -> None:
    """Consume and acknowledge, with a consumer and a callback."""
    consumer = messaging.GenericConsumer(with_postage.bindings(options.queue), with_postage.url(options))

    def callback(channel: Any, method: Any, header: Any, body: bytes) -> None:
        consumer.ack(method)
        if counter.message(options.messages) == options.stretches:
            consumer.stop_consuming()

    wait_to_go()
    consumer.start_consuming(callback)
    consumer.close()
    tell_stretches(counter, options)


def wait_to_go() -> None:
    """Say that all is prepared, and wait to be told to go."""
    common.tell('ready')
    if not sys.stdin.readline():
        raise SystemExit('the harness has gone')


def tell_stretches(counter: CallCounter, options: common.Options) -> None:
    """Print what was counted."""
    counter.stop()
    common.tell(json.dumps({'messages': options.messages, 'stretches': counter.stretches()}))


if __name__ == '__main__':
    options = common.parse(sys.argv[1:])
    roles = {
        'publish': publish,
        'consume': consume,
        'consume-by-callback': consume_by_callback,
        'call': call,
        'respond': respond,
    }
    roles[options.role](CallCounter(), options)
