"""Spans and metrics, compared with golden files: names, kinds, attributes, parents, links and buckets."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.brokers import Broker
from support.programs import Program

GOLDEN = Path(__file__).with_name('spans.json')
GOLDEN_METRICS = Path(__file__).with_name('metrics.json')

TRACED = """
import json, sys, threading
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from postage import messaging, microthreads
from postage.dead_letters import SQLiteDeadLetters
from postage.dead_letters.replay import replay
from postage.messaging.forwarding import Forwarder
from postage.settings import broker_settings

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer('test')

class ShopExchange(messaging.Exchange):
    name = 'shop'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]
    mandatory = True

class Lost(Producer):
    eks = [(ShopExchange, 'nowhere')]

class Downstream(messaging.GenericProducer):
    eks = [(ShopExchange, 'done-rk')]

store = SQLiteDeadLetters('letters.db')

class Prices(messaging.MessageProcessor):
    dead_letters = store
    died = 0

    def __init__(self):
        super().__init__({}, [(ShopExchange, [('prices', 'price-rk'), ('same', 'same')])])
        self.downstream = Downstream()

    @messaging.MessageHandler('command', 'plain')
    def msg_plain(self, content):
        self.downstream.message_done(1)
        seen.append('plain')

    @messaging.MessageHandler('command', 'generator')
    def msg_generator(self, content):
        yield microthreads.sleep(0.01)
        self.downstream.message_done(2)
        seen.append('generator')

    @messaging.MessageHandler('command', 'threaded')
    @messaging.Threaded
    def msg_threaded(self, content):
        self.downstream.message_done(3)
        seen.append('threaded')

    @messaging.MessageHandler('command', 'again')
    @messaging.Retry(KeyError, delays=(0.1,))
    def msg_again(self, content):
        if messaging.current_delivery().headers.get('x-postage-attempts', 0) == 0:
            raise KeyError('at first')
        seen.append('again')

    @messaging.MessageHandler('command', 'dies')
    def msg_dies(self, content):
        Prices.died += 1
        if Prices.died == 1:
            raise ValueError('no such price')
        seen.append('dies')

    @messaging.RpcHandler('command', 'ask')
    def rpc_ask(self, content, reply):
        return 5

class Seen(list):
    changed = threading.Condition()
    def append(self, what):
        with self.changed:
            super().append(what)
            self.changed.notify_all()
    def wait(self, what):
        with self.changed:
            assert self.changed.wait_for(lambda: what in self, 20), (what, list(self))

seen = Seen()
scheduler = microthreads.MicroScheduler()
processor = Prices()
scheduler.add_microthread(processor)
thread = threading.Thread(target=lambda: [None for _ in scheduler.main()], daemon=True)
thread.start()
producer = Producer()
with tracer.start_as_current_span('outer'):
    for name in ('plain', 'generator', 'threaded', 'again', 'dies'):
        getattr(producer, f'message_{name}')()
        if name != 'dies':
            seen.wait(name)
    elsewhere = {'traceparent': f"00-{'a' * 32}-{'b' * 16}-01"}
    producer.message_plain(_eks=[(ShopExchange, 'same')], _headers=elsewhere)
    assert producer.rpc_ask().value == 5
    lost = Lost()
    lost.message_plain()
    try:
        lost.flush(10)
    except messaging.Unroutable:
        pass
producer.flush(10)
while not store.count():
    threading.Event().wait(0.01)
forwarder = Forwarder(broker_settings())
replay(store, forwarder)
forwarder.close()
seen.wait('dies')
scheduler.stop()
thread.join(20)
spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
def named(context):
    return context and (spans[context.span_id].name if context.span_id in spans else 'remote')
for span in exporter.get_finished_spans():
    print('span', json.dumps({
        'name': span.name, 'kind': span.kind.name, 'status': span.status.status_code.name,
        'attributes': sorted(span.attributes), 'error': span.attributes.get('error.type'),
        'destination': span.attributes.get('messaging.destination.name'),
        'parent': named(span.parent), 'links': [named(link.context) for link in span.links],
    }, sort_keys=True))
for each in (producer, lost, processor.downstream, processor):
    each.close()
"""


def test_spans_are_those_of_the_golden_file(broker: Broker, run_program: Callable[..., Program]) -> None:
    program = run_program(TRACED, environment={'POSTAGE_URL': broker.url})
    assert program.wait(60) == 0, program.output
    spans: list[dict[str, Any]] = [json.loads(line[5:]) for line in program.lines if line.startswith('span ')]
    found = sorted(json.dumps(span, sort_keys=True) for span in spans)
    golden = sorted(json.dumps(span, sort_keys=True) for span in json.loads(GOLDEN.read_text()))
    assert found == golden


MEASURED = """
import json, threading
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from postage import messaging, microthreads

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))

class ShopExchange(messaging.Exchange):
    name = 'shop'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]

class Prices(messaging.MessageProcessor):
    def __init__(self):
        super().__init__({}, [(ShopExchange, [('prices', 'price-rk')])])

    @messaging.MessageHandler('command', 'plain')
    def msg_plain(self, content):
        pass

    @messaging.MessageHandler('command', 'fails')
    def msg_fails(self, content):
        raise KeyError('a price')

    @messaging.MessageHandler('command', 'end')
    def msg_end(self, content):
        raise microthreads.ExitScheduler

processor, producer = Prices(), Producer()
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(processor)
for name in ('plain', 'fails', 'unknown', 'end'):
    getattr(producer, f'message_{name}')()
producer.flush(10)
for _ in scheduler.main():
    pass
for resource in reader.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            points = metric.data.data_points
            print('metric', json.dumps({
                'name': metric.name, 'unit': metric.unit, 'kind': type(metric.data).__name__,
                'bounds': list(points[0].explicit_bounds) if hasattr(points[0], 'explicit_bounds') else None,
                'attributes': sorted({key for point in points for key in point.attributes}),
                'count': sum(getattr(point, 'count', None) or getattr(point, 'value', 0) for point in points),
            }, sort_keys=True))
producer.close()
processor.close()
"""


def test_metrics_are_those_of_the_golden_file(broker: Broker, run_program: Callable[..., Program]) -> None:
    program = run_program(MEASURED, environment={'POSTAGE_URL': broker.url})
    assert program.wait(60) == 0, program.output
    found = sorted(line[7:] for line in program.lines if line.startswith('metric '))
    golden = sorted(json.dumps(metric, sort_keys=True) for metric in json.loads(GOLDEN_METRICS.read_text()))
    assert found == golden


ALIKE = """
import threading
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from postage import messaging, microthreads
from postage.cli.run import openmetrics
from postage.messaging.metrics import samples
from prometheus_client.openmetrics.parser import text_string_to_metric_families

reader = InMemoryMetricReader()
views = [
    View(instrument_name='messaging.process.duration', aggregation=ExplicitBucketHistogramAggregation([0.5])),
    View(instrument_name='postage.messages.in_hand', attribute_keys={'postage.component'}),
]
metrics.set_meter_provider(MeterProvider([reader], views=views))

class ShopExchange(messaging.Exchange):
    name = 'shöp "1"'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]

class Prices(messaging.MessageProcessor):
    concurrency = 2

    def __init__(self, name, queue):
        super().__init__({'name': name}, [(ShopExchange, [(queue, 'price-rk')])])

    @messaging.MessageHandler('command', 'all')
    def msg_all(self, content):
        begun.release()
        yield microthreads.sleep(60)

begun = threading.Semaphore(0)
named = [('twins', 'q'), ('twins', 'q'), ('"a\\n\\\\', 'ü"'), ('☃\\x85\\u2028', '{x="y"} # 1'), ('\\ud800', '\\t')]
processors = [Prices(*each) for each in named]
scheduler = microthreads.MicroScheduler()
for each in processors:
    scheduler.add_microthread(each)
thread = threading.Thread(target=lambda: [None for _ in scheduler.main()], daemon=True)
thread.start()
producer = Producer()
for number in range(2):
    producer.message_all()
for _ in range(8):
    assert begun.acquire(timeout=20)
found = {}
for resource in reader.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            if metric.name == 'postage.messages.in_hand':
                found = {point.attributes['postage.component']: point.value for point in metric.data.data_points}
text, _ = openmetrics.text_of(openmetrics.added({}, samples()))
labelled = {}
for family in text_string_to_metric_families(text.decode()):
    for sample in family.samples:
        if family.name == 'postage_messages_in_hand':
            labels = sample.labels
            labelled[labels['postage_component']] = labels['messaging_destination_name'], sample.value
for name in sorted(found):
    print(ascii([name, found[name], *labelled[name]]))
scheduler.stop()
thread.join(20)
for each in (producer, *processors):
    each.close()
"""


def test_figures_of_processors_that_are_called_alike_are_added_and_odd_names_come_through(
    embedded: Broker, run_program: Callable[..., Program]
) -> None:
    program = run_program(ALIKE, environment={'POSTAGE_URL': embedded.url})
    assert program.wait(60) == 0, program.output
    assert [ast.literal_eval(line) for line in program.lines] == [
        ['"a\n\\', 2, 'ü"', 2.0],
        ['\\ud800', 2, '\t', 2.0],
        ['twins', 2, 'q', 2.0],
        ['☃\x85\u2028', 2, '{x="y"} # 1', 2.0],
    ]


UNUSED = """
import sys
from postage import messaging

class ShopExchange(messaging.Exchange):
    name = 'shop'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]

with Producer() as producer:
    producer.message_price(1)
print([name for name in sys.modules if name.startswith('opentelemetry')])
"""


def test_what_is_not_used_is_not_imported(embedded: Broker, run_program: Callable[..., Program]) -> None:
    program = run_program(UNUSED, environment={'POSTAGE_URL': embedded.url})
    assert program.wait() == 0
    assert program.output == '[]'


@pytest.mark.parametrize(
    ('exchange', 'key', 'queue', 'name'),
    [
        ('shop', 'price', None, 'shop:price'),
        ('shop', '', None, 'shop'),
        ('', 'prices', None, 'prices'),
        ('', '', None, 'amq.default'),
        ('shop', 'price', 'prices', 'shop:price:prices'),
        ('shop', 'prices', 'prices', 'shop:prices'),
        ('', 'prices', 'prices', 'prices'),
        ('', 'price', 'prices', 'price:prices'),
    ],
)
def test_destinations_are_named_as_the_convention_has_it(exchange: str, key: str, queue: str | None, name: str) -> None:
    from postage.messaging.tracing import destination_of

    assert destination_of(exchange, key, queue) == name


ODD = """
import asyncio, logging, threading
from opentelemetry import baggage, context, propagate, trace
from postage import errors, messaging, microthreads

class ShopExchange(messaging.Exchange):
    name = 'shop'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]

class Lost(Producer):
    eks = [(ShopExchange, 'nowhere')]

class Private(messaging.MessageProcessor):
    concurrency = 4

    def __init__(self):
        super().__init__({}, [(ShopExchange, [({'name': 'private', 'flags': {'exclusive': True}}, 'price-rk')])])

    @messaging.MessageHandler('command', 'again')
    @messaging.Retry(KeyError, delays=(0.01,))
    def msg_again(self, content):
        tried.append(baggage.get_baggage('user'))
        with tracer.start_as_current_span(f'attempt {len(tried)}'):
            if len(tried) == 1:
                raise KeyError('at first')
        tried_again.set()

    @messaging.RpcHandler('command', 'generator')
    def rpc_generator(self, content, reply):
        own = trace.get_current_span()
        for _ in range(5):
            with tracer.start_as_current_span('step') as step:
                yield microthreads.sleep(0.001)
                assert trace.get_current_span() is step
            assert trace.get_current_span() is own
        return baggage.get_baggage('user') or 'nobody'

    @messaging.RpcHandler('command', 'coroutine')
    async def rpc_coroutine(self, content, reply):
        own = trace.get_current_span()
        for _ in range(5):
            with tracer.start_as_current_span('step') as step:
                await asyncio.sleep(0.001)
                assert trace.get_current_span() is step
            assert trace.get_current_span() is own
        return baggage.get_baggage('user') or 'nobody'

tracer = trace.get_tracer('test')
tried, tried_again = [], threading.Event()
scheduler = microthreads.MicroScheduler()
processor, producer, lost = Private(), Producer(), Lost()
scheduler.add_microthread(processor)
thread = threading.Thread(target=lambda: [None for _ in scheduler.main()], daemon=True)
thread.start()
assert producer.rpc_generator().value == 'nobody'  # before the program has a provider

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

class Faulty(SpanProcessor):
    def on_start(self, span, parent_context=None):
        if 'start' in faults and span.name != 'step':
            raise RuntimeError('no span')
    def on_end(self, span):
        if 'end' in faults and span.name != 'step':
            raise RuntimeError('no end')

faults, exporter, provider = set(), InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
provider.add_span_processor(Faulty())
trace.set_tracer_provider(provider)

def ask(name, user):
    token = context.attach(baggage.set_baggage('user', user))
    try:
        return getattr(producer, f'rpc_future_{name}')()
    finally:
        context.detach(token)

asked = [(user, ask(name, user)) for user in 'abcdefgh' for name in ('generator', 'coroutine')]
for user, answer in asked:
    assert answer.result(10).value == user, (user, answer)
token = context.attach(baggage.set_baggage('user', '7'))
producer.message_again()
context.detach(token)
assert tried_again.wait(10)
assert tried == ['7', '7'], tried
assert isinstance(lost.rpc_generator().failure, errors.Unroutable)
for send in (lost.message_refused, lost.rpc_refused):
    try:
        send(_key='refused', _headers={'a': object()})
    except errors.EncodingError:
        pass
propagators = propagate.get_global_textmap()
class Own(type(propagators)):
    fields = {'own'}
    def __init__(self):
        pass
    def inject(self, carrier, context=None, setter=None):
        carrier['own'] = 'ours'
    def extract(self, carrier, context=None, getter=None):
        return context
propagate.set_global_textmap(Own())
from postage.messaging import tracing
for given in ({}, {'traceparent': 'theirs'}, {'own': 'theirs'}):
    _, further = tracing.sending(None, ('shop', 'price-rk'), 'id', {'headers': given})
    print('headers', further['headers'])
propagate.set_global_textmap(propagators)
logging.getLogger('postage').setLevel(logging.CRITICAL)
for fault in ('start', 'end'):
    faults = {fault}
    assert producer.rpc_generator().value == 'nobody'
    producer.message_unknown()
    producer.flush(10)
    faults = set()
provider.shutdown()
assert producer.rpc_generator().value == 'nobody'
scheduler.stop()
thread.join(20)
for each in (producer, lost, processor):
    each.close()
spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
for span in spans.values():
    if span.name.startswith('attempt'):
        handled = spans[span.parent.span_id]
        sender = handled.parent or handled.links[0].context
        print(span.name, 'in', handled.name, 'of', spans[sender.span_id].name, bool(handled.parent))
    if 'nowhere' in span.name or 'refused' in span.name:
        print(span.name, span.kind.name, span.attributes.get('error.type'))
"""


def test_contexts_attempts_and_faults_that_the_golden_file_has_not(
    embedded: Broker, run_program: Callable[..., Program]
) -> None:
    program = run_program(ODD, environment={'POSTAGE_URL': embedded.url})
    assert program.wait(60) == 0, program.output
    assert [line for line in program.lines if line.startswith(('headers', 'attempt', 'send'))] == [
        "headers {'own': 'ours'}",
        "headers {'traceparent': 'theirs', 'own': 'ours'}",
        "headers {'own': 'theirs'}",
        'attempt 1 in process shop:price-rk:private of send shop:price-rk True',
        'attempt 2 in process shop:price-rk:private of send shop:price-rk False',
        'send shop:nowhere PRODUCER postage.errors.Unroutable',
        'send shop:refused PRODUCER postage.errors.EncodingError',
        'send shop:refused PRODUCER postage.errors.EncodingError',
    ]


PROPAGATED = """
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from postage.messaging import propagation

def span(**more):
    known = {'trace_id': 1, 'span_id': 2 ** 64 - 1, 'is_remote': False, **more}
    return trace.NonRecordingSpan(trace.SpanContext(**known))

def as_it_is(found):
    return trace.get_current_span(found).get_span_context(), dict(baggage.get_all(found)), len(found)

own = 'ab' * 16, 'cd' * 8
stated = trace.TraceState([('vendor', 'x')])
arounds = {
    'nothing': Context(),
    'a span': trace.set_span_in_context(span(), Context()),
    'baggage': baggage.set_baggage('user', '7', Context()),
    'both': baggage.set_baggage('user', '7', trace.set_span_in_context(span(), Context())),
    'something': context.set_value('what', 1, Context()),
}
spans = [span(), span(trace_flags=trace.TraceFlags(3)), span(trace_state=stated), trace.INVALID_SPAN]
headers = [
    {}, {'x': 1}, {'traceparent': 5}, {'traceparent': ''}, {'traceparent': '00-' + 'ab' * 30},
    *({'traceparent': form.format(*own)} for form in (
        '00-{}-{}-01', '00-{}-{}-00', '00-{}-{}-fe', '01-{}-{}-01', '01-{}-{}-01-more', '00-{}-{}-01-more',
        'ff-{}-{}-01', ' 00-{}-{}-01', '00-{}-{}-01 ', '00-{}-{}-1', '00-{}-{}-zz', '00-{}{}-01',
    )),
    {'traceparent': f"00-{'0' * 32}-{own[1]}-01"}, {'traceparent': f"00-{own[0]}-{'0' * 16}-01"},
    {'traceparent': f'00-{own[0].upper()}-{own[1]}-01'},
    {'traceparent': f'00-{own[0]}-{own[1]}-01', 'tracestate': 'vendor=x'},
    {'traceparent': f'00-{own[0]}-{own[1]}-01', 'baggage': 'user=7'}, {'baggage': 'user=7', 'n': b'1'},
]
usual = propagate.get_global_textmap()
for propagator in (usual, CompositePropagator([TraceContextTextMapPropagator()]), usual):
    propagate.set_global_textmap(propagator)
    for name, around in arounds.items():
        token = context.attach(around)
        for each in spans:
            ours, theirs = {'h': 1}, {'h': 1}
            propagation.inject(each, ours)
            propagate.inject(theirs, trace.set_span_in_context(each))
            assert ours == theirs, (name, each, ours, theirs)
        context.detach(token)
    for each in headers:
        text = {key: value for key, value in each.items() if isinstance(value, str)}
        ours, theirs = propagation.extract(each), propagate.extract(text, Context())
        assert as_it_is(ours) == as_it_is(theirs), each
print('the same')
"""


def test_contexts_travel_as_the_programs_propagators_have_it(run_program: Callable[..., Program]) -> None:
    program = run_program(PROPAGATED)
    assert program.wait() == 0, program.output
    program.expect('the same')


UNSAMPLED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, sampling

class Attentive(sampling.Sampler):
    seen = []
    def should_sample(self, parent, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        self.seen.append((name, dict(attributes)))
        return sampling.SamplingResult(sampling.Decision.DROP)
    def get_description(self):
        return 'attentive'

trace.set_tracer_provider(TracerProvider(sampler=Attentive()))
from postage.messaging import tracing
from postage.settings import broker_settings

settings = broker_settings()
for number in range(tracing.MOST_ROUTES * 2 + 5):
    recorded, further = tracing.sending(settings, ('shop', f'key-{number}'), f'id-{number}', {'correlation_id': 'c'})
    assert recorded is None
    assert further['headers']['traceparent'].endswith(('-00', '-02'))
assert len(tracing._routes) <= tracing.MOST_ROUTES
ids = [attributes['messaging.message.id'] for _, attributes in Attentive.seen]
assert ids == [f'id-{number}' for number in range(len(ids))]
name, attributes = Attentive.seen[-1]
print(name, attributes['messaging.rabbitmq.destination.routing_key'], attributes['messaging.message.conversation_id'])
"""


def test_what_the_sampler_leaves_out_is_not_recorded_and_travels_all_the_same(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(UNSAMPLED)
    assert program.wait() == 0, program.output
    program.expect('send shop:key-2004 key-2004 c')


COUNTED = """
import threading
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from postage import messaging, microthreads

class ShopExchange(messaging.Exchange):
    name = 'shop'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]

class Prices(messaging.MessageProcessor):
    max_deliveries = 2
    eqk = [(ShopExchange, [('prices', 'price-rk')])]

    @messaging.MessageHandler('command', 'price')
    def msg_price(self, content):
        within.append(trace.get_current_span().get_span_context().span_id)

    def after_handling(self, handling):
        handled.set()

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
within, handled = [], threading.Event()
with messaging.GenericConsumer(Prices.eqk) as consumer, Producer() as producer:
    producer.message_price(5)
    producer.flush(10)
    consumer.channel.basic_get('prices')  # and it goes back: so its next delivery is one to be counted
processor, scheduler = Prices({}, Prices.eqk), microthreads.MicroScheduler()
scheduler.add_microthread(processor)
thread = threading.Thread(target=scheduler.run)
thread.start()
assert handled.wait(20)
scheduler.stop()
thread.join(20)
processor.close()
sent, *processed = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time)
print(sent.name, 'ended', sent.end_time is not None)
for span in processed:
    is_own = span.context.span_id in within
    of = {sent.context.span_id: sent.name}.get(span.parent and span.parent.span_id)
    print(span.name, 'below', of, span.status.status_code.name, 'of the handler' if is_own else 'put back')
print('messages', len({span.attributes['messaging.message.id'] for span in [sent, *processed]}))
"""


def test_a_delivery_that_is_put_back_to_be_counted_has_a_span_that_ends(
    broker: Broker, run_program: Callable[..., Program]
) -> None:
    program = run_program(COUNTED, environment={'POSTAGE_URL': broker.url})
    assert program.wait(60) == 0, program.output
    assert program.lines == [
        'send shop:price-rk ended True',
        'process shop:price-rk:prices below send shop:price-rk UNSET put back',
        'process shop:price-rk:prices below send shop:price-rk UNSET of the handler',
        'messages 1',
    ]


UNFINISHED = """
import signal, threading, time
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from postage import messaging, microthreads

class ShopExchange(messaging.Exchange):
    name = 'shop'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]

class Prices(messaging.MessageProcessor):
    concurrency = 2
    eqk = [(ShopExchange, [({'name': 'prices', 'flags': {'exclusive': True}}, 'price-rk')])]

    @messaging.MessageHandler('command', 'generator')
    def msg_generator(self, content):
        producer.message_plain()
        yield microthreads.sleep(60)

    @messaging.MessageHandler('command', 'plain')
    def msg_plain(self, content):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
processor, scheduler = Prices({}, Prices.eqk), microthreads.MicroScheduler()
scheduler.add_microthread(processor)
with Producer() as producer:
    producer.message_generator()
    scheduler.run(grace=0.2)
processor.close()
for span in sorted(exporter.get_finished_spans(), key=lambda span: span.start_time):
    if span.name.startswith('process'):
        print(span.status.status_code.name, span.attributes.get('error.type'), span.status.description)
"""


def test_the_span_of_what_is_interrupted_ends_and_says_so(
    embedded: Broker, run_program: Callable[..., Program]
) -> None:
    program = run_program(UNFINISHED, environment={'POSTAGE_URL': embedded.url})
    program.wait(60)
    unfinished = 'ERROR postage.errors.HandlingUnfinished it was not handled to its end, and goes back to its queue'
    assert [line for line in program.lines if 'ERROR postage.errors' in line or 'UNSET' in line] == [unfinished] * 2, (
        program.output
    )
