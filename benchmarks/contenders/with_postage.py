"""Postage, through its public API. Roles beyond those of the others show how its cost grows."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import common

from postage import messaging, microthreads


def publish(options: common.Options, measure: common.Measure) -> None:
    """Publish, from ``count`` threads through one producer."""
    producer = make_producer(options)
    text = common.text(options.size)
    for _ in range(common.WARM_UP):
        producer.message_echo(text, _key=common.NOWHERE)
    producer.flush(30)
    share = options.messages // options.count

    def send() -> None:
        for _ in range(share):
            producer.message_echo(text)

    threads = [threading.Thread(target=send) for _ in range(options.count - 1)]
    with measure:
        for thread in threads:
            thread.start()
        send()
        for thread in threads:
            thread.join()
        producer.flush()
        if not options.confirms:
            await_messages(producer, options.queue, share * options.count)
    producer.close()


def await_messages(producer: messaging.GenericProducer, queue: str, messages: int) -> None:
    """Return once the broker has that many messages in the queue."""
    while producer.channel.queue_declare(queue, passive=True).method.message_count < messages:
        time.sleep(0.001)


def consume(options: common.Options, measure: common.Measure) -> None:
    """Consume with one processor, which has ``count`` handlers."""
    handled = 0

    class Processor(messaging.MessageProcessor):
        consumer_class = consumer_class(options)

        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            nonlocal handled
            handled += 1
            if handled == options.messages:
                raise microthreads.ExitScheduler

    scheduler = microthreads.MicroScheduler()
    processor = with_more_handlers(Processor, options.count - 1)({}, bindings(options.queue), url(options))
    scheduler.add_microthread(processor)
    with measure:
        for _ in scheduler.main():
            pass
    processor.close()


def consume_own(options: common.Options, measure: common.Measure) -> None:
    """Publish the messages first, and then consume them: the clock runs for the latter only."""
    producer = make_producer(options)
    text = common.text(options.size)
    for _ in range(options.messages):
        producer.message_echo(text)
    await_messages(producer, options.queue, options.messages)
    producer.close()
    consume(options, measure)


def consume_many(options: common.Options, measure: common.Measure) -> None:
    """Consume with ``count`` processors in one scheduler, each with a queue of its own.

    The clock runs from the moment when all of them are at work: how long it takes to start them is not the question.
    """
    handled = 0
    starting: set[messaging.MessageProcessor] = set()

    class Processor(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            nonlocal handled
            handled += 1
            if starting:
                starting.discard(self)
                if not starting:
                    measure.figures['messages'] = options.messages - handled
                    measure.start_clock()
            elif handled == options.messages:
                measure.stop()
                raise microthreads.ExitScheduler

    scheduler = microthreads.MicroScheduler()
    processors = [Processor({}, bindings(f'{options.queue}-{number}'), url(options)) for number in range(options.count)]
    for processor in processors:
        scheduler.add_microthread(processor)
    starting.update(processors)
    measure.get_ready()
    for _ in scheduler.main():
        pass
    for processor in processors:
        processor.close()


def with_more_handlers(kind: type[messaging.MessageProcessor], number: int) -> type[messaging.MessageProcessor]:
    """A processor class with that many handlers for other messages."""

    def handler(name: str) -> Any:
        return messaging.MessageHandler('command', name)(lambda self, content: None)

    return type('Processor', (kind,), {f'msg_other_{n}': handler(f'other-{n}') for n in range(number)})


class Caller:
    """Sends requests and looks at their results."""

    def __init__(self, producer: messaging.GenericProducer, text: str) -> None:
        self.producer = producer
        self.text = text

    def call(self) -> None:
        common.check_result(self.producer.rpc_echo(self.text).body)

    def call_many(self, messages: int, in_flight: int) -> None:
        """Many requests under way, of which the oldest is waited for before the next is sent."""
        under_way: deque[messaging.RpcFuture] = deque()
        for _ in range(messages):
            if len(under_way) == in_flight:
                common.check_result(under_way.popleft().result().body)
            under_way.append(self.producer.rpc_future_echo(self.text))
        while under_way:
            common.check_result(under_way.popleft().result().body)


def call(options: common.Options, measure: common.Measure) -> None:
    """Call a responder, with ``in_flight`` requests under way at a time."""
    producer = make_producer(options)
    common.measure_calls(Caller(producer, common.text(options.size, 'rpc')), options, measure)
    producer.close()


def respond(options: common.Options, measure: common.Measure) -> None:
    """Answer RPCs."""
    left = options.calls_to_answer

    class Responder(messaging.MessageProcessor):
        consumer_class = consumer_class(options)

        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content: dict[str, Any], reply_func: Any) -> None:
            nonlocal left
            left -= 1
            reply_func(messaging.MessageResult(content['parameters']))
            if not left:
                raise microthreads.ExitScheduler

    scheduler = microthreads.MicroScheduler()
    responder = Responder({}, bindings(options.queue), url(options))
    scheduler.add_microthread(responder)
    with measure:
        for _ in scheduler.main():
            pass
    responder.close()


def idle(options: common.Options, measure: common.Measure) -> None:
    """Let ``count`` processors wait for messages that never come."""

    def end() -> None:
        measure.stop()
        raise microthreads.ExitScheduler

    scheduler = microthreads.MicroScheduler()
    processors = [
        messaging.MessageProcessor({}, bindings(f'{options.queue}-{number}'), url(options))
        for number in range(options.count)
    ]
    for processor in processors:
        scheduler.add_microthread(processor)
    measure.get_ready()
    settled = min(1.0, options.seconds)
    scheduler.call_later(settled, measure.start_clock)
    scheduler.call_later(settled + options.seconds, end)
    for _ in scheduler.main():
        pass
    for processor in processors:
        processor.close()


def memory(options: common.Options, measure: common.Measure) -> None:
    """Make ``count`` processors beside a first one, and say how many bytes each of them takes."""

    class Processor(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            pass

    def consuming(queue: str) -> Processor:
        processor = Processor({}, bindings(queue), url(options))
        processor.start_consuming()
        return processor

    made = [consuming(options.queue)]
    measure.get_ready()
    before = resident_bytes()
    measure.start_clock()
    made += [consuming(f'{options.queue}-{number}') for number in range(options.count)]
    measure.figures['bytes'] = (resident_bytes() - before) / options.count
    measure.stop()
    for processor in made:
        processor.close()


def resident_bytes() -> int:
    """Memory of this process that is in RAM. Linux only."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


# Postage's side of what the harness has declared


def url(options: common.Options) -> str:
    scheme, query = 'amqp', ''
    if options.authority:
        trusting = {'cafile': options.authority, 'server_hostname': options.host}
        scheme, query = 'amqps', f'?ssl_options={quote(repr(trusting))}'
    return f'{scheme}://guest:guest@{options.host}:{options.port}/{quote(options.vhost, safe="")}{query}'


class BenchmarkExchange(messaging.Exchange):
    name = common.EXCHANGE
    exchange_type = 'direct'
    passive = False
    durable = True
    auto_delete = False


def bindings(queue: str) -> list[Any]:
    return [(BenchmarkExchange, [(queue, queue)])]


def make_producer(options: common.Options) -> messaging.GenericProducer:
    class Producer(messaging.GenericProducer):
        eks = [(BenchmarkExchange, options.queue)]
        confirms = bool(options.confirms)
        persistent = bool(options.persistent)

    return Producer(messaging.Fingerprint(**common.FINGERPRINT), url(options))


def consumer_class(options: common.Options) -> type[messaging.GenericConsumer]:
    class Consumer(messaging.GenericConsumer):
        prefetch_count = options.prefetch or None

    return Consumer


# Traces


def use_opentelemetry(how: str) -> None:
    """Have the messages of this process meet the API alone, a sampler that leaves all out, or one that records all."""
    from opentelemetry import trace

    if how == 'api':
        return
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Discarding(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=sampling.ALWAYS_ON if how == 'recorded' else sampling.ALWAYS_OFF)
    provider.add_span_processor(BatchSpanProcessor(Discarding()))
    trace.set_tracer_provider(provider)


if __name__ == '__main__':
    if 'BENCHMARK_TRACES' in os.environ:
        use_opentelemetry(os.environ['BENCHMARK_TRACES'])
    common.main(
        {
            'publish': publish,
            'consume': consume,
            'consume-many': consume_many,
            'consume-own': consume_own,
            'call': call,
            'respond': respond,
            'idle': idle,
            'memory': memory,
        }
    )
