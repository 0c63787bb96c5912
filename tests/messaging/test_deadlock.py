"""Components that ask each other, and themselves, in their handlers; and calls that could never be answered."""

import asyncio
import time

import pytest

from postage import messaging, microthreads
from postage.amqp.control import BlockingAccess
from postage.microthreads import MicroThread
from support.handling import COLOURS, Stage
from support.messaging import TIMEOUT, BareResponder, EchoExchange, EchoProducer, Processor, Seen, eventually, result

LINKS = 5


class Link(Processor):
    """One of a chain of components: adds its number to what the next one answers.

    :param number: the last one of a chain has the number 0
    """

    def __init__(self, number, producer):
        self.number = number
        self.producer = producer
        super().__init__([(EchoExchange, [(f'link-{number}', f'link-{number}')])])

    def ask_next(self):
        return self.producer.rpc_future_sum(_key=f'link-{self.number - 1}')

    @messaging.RpcHandler('command', 'sum')
    def rpc_sum(self, content, reply_func):
        if self.number == 0:
            return [0]
        answer = yield self.ask_next()
        return [self.number, *answer.body['content']['value']]


class CoroutineLink(Link):
    @messaging.RpcHandler('command', 'sum')
    async def rpc_sum(self, content, reply_func):
        if self.number == 0:
            return [0]
        answer = await asyncio.wrap_future(self.ask_next())
        return [self.number, *answer.body['content']['value']]


class ThreadedLink(Link):
    @messaging.RpcHandler('command', 'sum')
    @messaging.Threaded
    def rpc_sum(self, content, reply_func):
        if self.number == 0:
            return [0]
        answer = self.producer.rpc_sum(_key=f'link-{self.number - 1}')
        return [self.number, *answer.body['content']['value']]


class BlockingLink(Link):
    @messaging.RpcHandler('command', 'sum')
    def rpc_sum(self, content, reply_func):
        if self.number == 0:
            return [0]
        answer = self.producer.rpc_sum(_key=f'link-{self.number - 1}')
        return [self.number, *answer.body['content']['value']]


# Chains


@pytest.mark.parametrize('link', [Link, CoroutineLink, ThreadedLink])
def test_five_components_in_one_scheduler_ask_each_the_next(bench, link):
    producer = bench.producer()
    bench.run(*(link(number, producer) for number in range(LINKS)))
    assert producer.rpc_sum(_key='link-4').body['content']['value'] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize('link', [Link, CoroutineLink, ThreadedLink, BlockingLink])
def test_five_components_in_schedulers_of_their_own_ask_each_the_next(bench, link):
    producer = bench.producer()
    for number in range(LINKS):
        bench.run(link(number, producer))
    assert producer.rpc_sum(_key='link-4').body['content']['value'] == [4, 3, 2, 1, 0]


def test_a_chain_in_one_scheduler_passes_many_requests_at_the_same_time(bench):
    producer = bench.producer()
    bench.run(*(type('Wide', (Link,), {'concurrency': 50})(number, producer) for number in range(LINKS)))
    calls = [producer.rpc_future_sum(_key='link-4') for _ in range(200)]
    assert all(call.result(TIMEOUT).body['content']['value'] == [4, 3, 2, 1, 0] for call in calls)


# A component that asks itself


class Recursive(Processor):
    """Counts down by asking itself."""

    def __init__(self, producer):
        self.producer = producer
        super().__init__()

    @messaging.RpcHandler('command', 'count')
    def rpc_count(self, content, reply_func):
        number = content['parameters']
        if number == 0:
            return [0]
        answer = yield self.producer.rpc_future_count(number - 1)
        return [number, *answer.body['content']['value']]

    @messaging.MessageHandler('command', 'count')
    def msg_count(self, content):
        answer = yield self.producer.rpc_future_count(content['parameters'])
        self.seen.put(answer.body['content']['value'])


@pytest.mark.parametrize('depth', [1, 5, 20])
def test_a_component_may_ask_itself_by_yield(bench, depth):
    producer = bench.producer()
    bench.run(Recursive(producer))
    assert producer.rpc_count(depth).body['content']['value'] == [*range(depth, -1, -1)]


def test_a_handler_of_messages_may_ask_its_own_component_too(bench):
    producer = bench.producer()
    recursive = Recursive(producer)
    bench.run(recursive)
    producer.message_count(3)
    assert recursive.seen.next() == [3, 2, 1, 0]


@pytest.mark.parametrize('prefetch', [1, 3, 64, 0])
def test_a_component_may_ask_itself_whatever_its_prefetch_count(bench, prefetch):
    consumer_class = type('Prefetching', (messaging.GenericConsumer,), {'prefetch_count': prefetch})
    producer = bench.producer()
    bench.run(type('Narrow', (Recursive,), {'consumer_class': consumer_class})(producer))
    assert producer.rpc_count(5).body['content']['value'] == [5, 4, 3, 2, 1, 0]


def test_a_flooded_component_may_ask_itself(bench):
    """Many requests before the first answer: each waits for one that is behind all of them in the queue."""
    producer = bench.producer()
    recursive = Recursive(producer)
    calls = [producer.rpc_future_count(1) for _ in range(300)]
    eventually(lambda: bench.count('echo-queue') == 300)
    bench.run(recursive)
    assert all(call.result(TIMEOUT).body['content']['value'] == [1, 0] for call in calls)


def test_a_component_that_asked_itself_handles_one_message_after_the_other_again(bench):
    class Ordered(Recursive):
        @messaging.MessageHandler('command', 'work')
        def msg_work(self, content):
            self.seen.put(f'begin {content["parameters"]}')
            yield microthreads.sleep(0.02)
            self.seen.put(f'end {content["parameters"]}')

    producer = bench.producer()
    ordered = Ordered(producer)
    bench.run(ordered)
    assert producer.rpc_count(5)
    for number in range(3):
        producer.message_work(number)
    assert ordered.seen.take(6) == ['begin 0', 'end 0', 'begin 1', 'end 1', 'begin 2', 'end 2']


# Calls that could never be answered

blocking = pytest.mark.parametrize('kind', [kind for kind in COLOURS if kind.colour in ('plain', 'generator')], ids=str)


def asks(call):
    """An act that notes what a blocking call raised or answered, and how long it took."""

    def act(processor, data, reply_func):
        began = time.monotonic()
        try:
            answer = call()
        except messaging.PostageError as error:
            answer = error
        processor.seen.put((answer, time.monotonic() - began))

    return act


def asked_inside(bench, kind, call, **attributes):
    """What a blocking call from inside a handler came to."""
    stage = Stage(bench, kind, kind.handler(asks(call)), **attributes)
    stage.send()
    answer, seconds = stage.seen.next()
    if isinstance(answer, messaging.Deadlock):
        assert seconds < 1, 'at once'
    return answer


@blocking
def test_a_blocking_call_to_oneself_is_refused_at_once_and_the_error_shows_what_works(bench, kind):
    producer = bench.producer()
    refused = asked_inside(bench, kind, lambda: producer.rpc_marker())
    assert isinstance(refused, messaging.Deadlock)
    assert "rpc_marker() blocks the only scheduler that answers queue 'echo-queue'" in str(refused)
    assert str(refused).endswith('result = yield producer.rpc_future_marker(...)')
    assert bench.count('echo-queue') == 0, 'nothing was sent'


@pytest.mark.parametrize('kind', [kind for kind in COLOURS if kind.colour in ('coroutine', 'threaded')], ids=str)
def test_a_blocking_call_to_oneself_is_answered_where_it_does_not_block_the_scheduler(bench, kind):
    producer = bench.producer()
    answer = asked_inside(bench, kind, lambda: producer.rpc_marker(), concurrency=2)
    assert answer.body['content']['value'] == 'reached'


class TopicExchange(messaging.Exchange):
    name = 'topic-exchange'
    exchange_type = 'topic'


class FanoutExchange(messaging.Exchange):
    name = 'fanout-exchange'
    exchange_type = 'fanout'


class DefaultExchange(messaging.Exchange):
    name = ''


ROUTES = {
    'direct': ((EchoExchange, 'work'), (EchoExchange, 'work'), (EchoExchange, 'elsewhere')),
    'topic': ((TopicExchange, '*.work.#'), (TopicExchange, 'some.work'), (TopicExchange, 'some.other.work')),
    'fanout': ((FanoutExchange, ''), (FanoutExchange, 'any'), None),
    'default': ((EchoExchange, 'work'), (DefaultExchange, 'the-queue'), (DefaultExchange, 'no-queue')),
}


class Asking(Processor):
    """Asks where it is told to, by a blocking call.

    :ivar route: exchange and key
    """

    route = None

    def __init__(self, producer, binding):
        self.producer = producer
        super().__init__([(binding[0], [('the-queue', binding[1])])])

    @messaging.MessageHandler('command', 'begin')
    def msg_begin(self, content):
        try:
            answer = self.producer.rpc_echo(_eks=[self.route], _timeout=0.2)
        except messaging.Deadlock as refused:
            answer = refused
        self.seen.put(answer)


@pytest.mark.parametrize('exchange', ROUTES)
def test_a_call_is_refused_by_whatever_exchange_it_would_come_back(bench, exchange):
    binding, route, elsewhere = ROUTES[exchange]
    producer = bench.producer()
    asking = Asking(producer, binding)
    bench.run(asking)
    asking.route = route
    producer.message_begin(_eks=[(DefaultExchange, 'the-queue')])
    assert isinstance(asking.seen.next(), messaging.Deadlock)
    if elsewhere is not None:
        asking.route = elsewhere
        producer.message_begin(_eks=[(DefaultExchange, 'the-queue')])
        answer = asking.seen.next()
        assert not isinstance(answer, messaging.Deadlock)
        assert answer.body['content']['value'] == 'Unroutable', 'nobody is there'


def test_a_call_to_another_component_of_the_same_scheduler_is_refused(bench):
    producer = bench.producer()
    bench.run(*(BlockingLink(number, producer) for number in range(2)))
    answer = producer.rpc_sum(_key='link-1').body['content']
    assert answer['value'] == 'Deadlock'
    assert "queue 'link-0'" in answer['message']


def test_a_call_from_any_microthread_of_the_scheduler_is_refused(bench):
    outcome = Seen()
    producer = bench.producer()

    class Caller(MicroThread):
        def step(self):
            try:
                outcome.put(producer.rpc_sum(_key='link-0'))
            except messaging.Deadlock as refused:
                outcome.put(refused)
            raise StopIteration

    running = bench.run(Link(0, producer))
    assert producer.rpc_sum(_key='link-0')
    running.scheduler.add_microthread(Caller())
    assert isinstance(outcome.next(), messaging.Deadlock)


def test_a_call_from_outside_the_scheduler_is_answered(bench):
    producer = bench.producer()
    bench.run(Link(0, producer))
    assert producer.rpc_sum(_key='link-0').body['content']['value'] == [0]


class Patient(EchoProducer):
    """The broker deals out in turn: what comes to the one that blocks is asked again, and comes to the other."""

    max_retry = 10


def asking_beside(bench, other):
    """Ask for ``echo`` in a queue that this processor and another one serve, by a blocking call from a handler.

    :param other: called to start the other one
    """
    asking = Asking(bench.producer(Patient), (EchoExchange, 'work'))
    asking.route = (EchoExchange, 'work')
    bench.run(asking)
    eventually(lambda: bench.consumers('the-queue') == 1)
    other()
    eventually(lambda: bench.consumers('the-queue') == 2)
    producer = bench.producer()
    for _ in range(2):  # one comes to the other, which does not mind
        producer.message_begin(_eks=[(DefaultExchange, 'the-queue')])
    return asking.seen.next()


def test_a_call_to_a_queue_that_another_scheduler_serves_too_is_answered(bench):
    class Other(Processor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content, reply_func):
            return 'from the other'

    answer = asking_beside(bench, lambda: bench.run(Other([(EchoExchange, [('the-queue', 'work')])])))
    assert answer.body['content']['value'] == 'from the other'


def test_a_call_to_a_queue_that_another_program_serves_too_is_answered(bench):
    def answer(body, properties):
        if properties.reply_to:
            yield properties.reply_to, result('from outside'), properties.correlation_id

    got = asking_beside(bench, lambda: bench.closing(BareResponder(bench.broker, 'the-queue', answer)))
    assert got.body['content']['value'] == 'from outside'


def test_the_broker_is_not_asked_before_each_call_who_else_serves_the_queue(bench, monkeypatch):
    asked = Seen()
    declare = BlockingAccess.__getattr__

    def note(access, name):
        asked.put(name)
        return declare(access, name)

    def answer(body, properties):
        if properties.reply_to:
            yield properties.reply_to, result('from outside'), properties.correlation_id

    class Insistent(Asking):
        @messaging.MessageHandler('command', 'insist')
        def msg_insist(self, content):
            monkeypatch.setattr(BlockingAccess, '__getattr__', note)
            self.seen.put([self.producer.rpc_echo(_key='work') for _ in range(3)])

    insistent = Insistent(bench.producer(Patient), (EchoExchange, 'work'))
    insistent.producer.rpc_timeout = 0.5
    bench.run(insistent)
    bench.closing(BareResponder(bench.broker, 'the-queue', answer))
    eventually(lambda: bench.consumers('the-queue') == 2)
    for _ in range(2):
        bench.producer().message_insist(_eks=[(DefaultExchange, 'the-queue')])
    assert [answer.body['content']['value'] for answer in insistent.seen.next()] == ['from outside'] * 3
    monkeypatch.undo()
    assert asked.take(asked.qsize()) == ['queue_declare']


def test_a_call_to_a_queue_of_the_same_name_on_another_virtual_host_is_not_refused(bench):
    other = f'{bench.broker.vhost}-other'.replace('/', 'root')
    bench.broker.add_vhost(other)
    try:
        asking = Asking(bench.producer(vhost=other), (EchoExchange, 'work'))
        asking.route = (EchoExchange, 'work')
        running = bench.run(asking)
        bench.producer().message_begin(_eks=[(DefaultExchange, 'the-queue')])
        assert asking.seen.next().body['content']['value'] == 'Unroutable', 'nobody is there'
        running.stop()
        asking.producer.close()
    finally:
        bench.broker.delete_vhost(other)


@pytest.mark.parametrize('kind', [kind for kind in COLOURS if kind.colour == 'plain'], ids=str)
def test_calls_that_do_not_wait_for_the_answer_are_not_refused(bench, kind):
    producer = bench.producer()

    def does_not_wait(processor, data, reply_func):
        processor.seen.put((producer.rpc_future_marker(), producer.rpc_queue_marker()))

    stage = Stage(bench, kind, kind.handler(does_not_wait))
    stage.send()
    future, queue = stage.seen.next()
    assert future.result(TIMEOUT).body['content']['value'] == 'reached'
    (collected,) = producer.consume_rpc(queue)
    assert collected.body['content']['value'] == 'reached'


@blocking
def test_a_refused_call_that_nobody_catches_has_the_message_rejected(bench, kind):
    producer = bench.producer()
    stage = Stage(bench, kind, kind.handler(lambda *_: producer.rpc_marker()))
    stage.send()
    bench.log.expect('ERROR', 'is rejected', 'Deadlock', 'yield producer.rpc_future_marker(...)')
    stage.expect_rejected()


def test_inside_asyncio_a_coroutine_s_blocking_call_is_refused_too(bench):
    """Handlers and scheduler share one thread there."""
    producer = bench.producer()

    class Guest(Processor):
        @messaging.RpcHandler('command', 'work')
        async def work(self, content, reply_func):
            return producer.rpc_work()

    async def main():
        guest = bench.closing(Guest())
        scheduler = microthreads.MicroScheduler()
        scheduler.add_microthread(guest)
        task = asyncio.create_task(scheduler.run_async())
        answer = await asyncio.wait_for(asyncio.wrap_future(producer.rpc_future_work()), TIMEOUT)
        producer.message_quit()
        await asyncio.wait_for(task, TIMEOUT)
        return answer

    assert asyncio.run(main()).body['content']['value'] == 'Deadlock'
