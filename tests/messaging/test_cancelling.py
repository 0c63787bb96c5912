"""What its caller no longer wants is not computed any further: a cancel closes its handler, or drops its request."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading

import pytest

from postage import messaging, microthreads
from postage.amqp.cancelled import cancelled
from postage.broker.users import Permissions
from postage.messaging import rpc
from postage.messaging.cancelling import Canceller
from postage.messaging.metrics import samples
from support.canary import canary
from support.messaging import TIMEOUT, EchoExchange, EchoProducer, Processor, echo_producer, eventually
from support.proxy import Proxy
from support.users import add_user, delete_user


class Working(Processor):
    """Works at each request until it is closed, in each kind of handler."""

    concurrency = 10

    def __init__(self, *args, **kwds):
        self.go_on = threading.Event()
        super().__init__(*args, **kwds)

    @messaging.RpcHandler('command', 'generator')
    def rpc_generator(self, content, reply_func):
        self.seen.put('begun')
        try:
            yield microthreads.sleep(60)
        finally:
            self.seen.put('closed')

    @messaging.RpcHandler('command', 'coroutine')
    async def rpc_coroutine(self, content, reply_func):
        self.seen.put('begun')
        try:
            await asyncio.sleep(60)
        finally:
            self.seen.put('closed')

    @messaging.RpcHandler('command', 'threaded')
    @messaging.Threaded
    def rpc_threaded(self, content, reply_func):
        self.seen.put('begun')
        eventually(lambda: messaging.current_delivery().cancelled)
        self.seen.put('closed')
        return 'too late'

    @messaging.RpcHandler('command', 'plain')
    def rpc_plain(self, content, reply_func):
        self.seen.put('begun')
        eventually(lambda: messaging.current_delivery().cancelled)
        self.seen.put('closed')
        return 'too late'

    @messaging.RpcHandler('command', 'tidy')
    def rpc_tidy(self, content, reply_func):
        self.seen.put('begun')
        try:
            yield microthreads.sleep(60)
        finally:
            yield self.seen.put('a generator that is closed must not wait')

    @messaging.RpcHandler('command', 'queue')
    @messaging.Threaded
    def rpc_queue_up(self, content, reply_func):
        self.seen.put(content['parameters'])
        assert self.go_on.wait(TIMEOUT)
        return content['parameters']

    @messaging.RpcHandler('command', 'note')
    def rpc_note(self, content, reply_func):
        self.seen.put(content['parameters'])
        return content['parameters']

    @messaging.RpcHandler('command', 'hold')
    def rpc_hold(self, content, reply_func):
        self.seen.put('begun')
        assert self.go_on.wait(TIMEOUT)
        return 'held'


KINDS = ['generator', 'coroutine', 'threaded', 'plain']


@pytest.fixture
def working(bench):
    """A running processor that receives cancels."""
    processor = Working()
    bench.run(processor)
    listening(processor)
    yield processor
    processor.go_on.set()


def listening(processor):
    """Wait until a processor receives cancels."""
    connection = processor.consumer.conn_broker
    eventually(lambda: connection.cancels is not None and connection.cancels.is_open)


@pytest.mark.parametrize('kind', KINDS)
def test_a_cancelled_future_ends_its_handler(bench, working, kind):
    producer = bench.producer()
    future = getattr(producer, f'rpc_future_{kind}')(_timeout=60)
    assert working.seen.next() == 'begun'
    assert future.cancel()
    assert future.cancelled()
    assert working.seen.next() == 'closed'
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(TIMEOUT)
    assert producer.rpc_note('next').value == 'next'
    assert working.seen.next() == 'next'
    eventually(lambda: not working.is_busy)
    assert bench.count('echo-queue') == 0, 'it counts as handled'


def test_what_waits_for_several_calls_is_told_of_one_that_is_cancelled(bench, working):
    future = bench.producer().rpc_future_generator(_timeout=60)
    assert working.seen.next() == 'begun'
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(concurrent.futures.wait, [future], TIMEOUT)
        assert future.cancel()
        assert waiting.result(TIMEOUT).done == {future}
    assert future.cancel(), 'as any future, twice'
    assert next(concurrent.futures.as_completed([future], TIMEOUT)) is future


@pytest.mark.parametrize('kind', KINDS)
def test_a_call_whose_time_has_passed_ends_its_handler(bench, working, kind):
    reply = getattr(bench.producer(), f'rpc_{kind}')(_timeout=0.5)
    assert reply.value == 'TimeoutError'
    assert working.seen.take(2) == ['begun', 'closed']


@pytest.mark.parametrize('kind', KINDS)
def test_a_caller_that_closes_ends_its_handlers_and_no_others(bench, working, kind):
    closing, staying = EchoProducer(), bench.producer()
    future = getattr(closing, f'rpc_future_{kind}')(_timeout=60)
    assert working.seen.next() == 'begun'
    other = staying.rpc_future_note('other') if kind != 'plain' else None
    closing.close()
    with pytest.raises(messaging.Closed, match='this EchoProducer was closed'):
        future.result(TIMEOUT)
    assert 'closed' in working.seen.take(1 if other is None else 2)
    if other is not None:
        assert other.value(TIMEOUT) == 'other'


def test_the_log_says_that_a_handler_was_closed(bench, working):
    future = bench.producer().rpc_future_generator(_timeout=60)
    working.seen.next()
    future.cancel()
    bench.log.expect('INFO', 'Working.rpc_generator was closed: its caller wants no answer any more')


def test_a_request_that_waits_for_its_turn_is_dropped(bench, working):
    producer = bench.producer()
    held = producer.rpc_future_hold()
    working.seen.next()
    waiting = producer.rpc_future_note('waiting', _timeout=60)
    eventually(lambda: sum(bench.broker.messages().values()) == 2)  # else it is taken back before it is sent
    waiting.cancel()
    eventually(lambda: waiting.correlation_id in cancelled.until)
    working.go_on.set()
    assert held.value(TIMEOUT) == 'held'
    assert producer.rpc_note('next').value == 'next'
    assert working.seen.next() == 'next'
    bench.log.expect('is dropped unhandled: its caller wants no answer any more')


def test_a_request_that_was_not_delivered_yet_is_dropped(bench):
    queue = bench.collect()
    other = Working([(EchoExchange, [('other-queue', 'other')])])
    bench.run(other)
    listening(other)
    producer = bench.producer()
    future = producer.rpc_future_note('early', _timeout=60)
    eventually(lambda: bench.count(queue) == 1)
    future.cancel()
    eventually(lambda: future.correlation_id in cancelled.until)
    other.add_eqk([(EchoExchange, [(queue, 'echo-rk')])])
    assert producer.rpc_note('next').value == 'next'
    assert other.seen.next() == 'next'


def test_a_request_that_waits_for_a_thread_is_dropped(bench, working):
    working.scheduler.threads = 1
    producer = bench.producer()
    begun = producer.rpc_future_queue('begun', _timeout=60)
    assert working.seen.next() == 'begun'
    waiting = producer.rpc_future_queue('waiting', _timeout=60)
    entry = next(entry for entry in working.figures.handlers if entry.label.endswith('rpc_queue_up'))
    eventually(lambda: len(entry.begun) == 2)
    waiting.cancel()
    bench.log.expect('INFO', 'rpc_queue_up was dropped before it began: its caller wants no answer any more')
    eventually(lambda: len(entry.begun) == 1)
    working.go_on.set()
    assert begun.value(TIMEOUT) == 'begun'
    assert producer.rpc_note('next').value == 'next'
    assert working.seen.next() == 'next', 'the handler never ran'
    assert entry.cancelled == 1


def test_a_request_whose_deadline_passes_while_it_waits_for_a_thread_is_dropped(bench, working, monkeypatch):
    """Though its caller could not say so."""
    monkeypatch.setattr(Canceller, 'add', lambda *_: None)
    working._dispatcher.tolerance = 0.1
    working.scheduler.threads = 1
    producer = bench.producer()
    begun = producer.rpc_future_queue('begun', _timeout=60)
    assert working.seen.next() == 'begun'
    assert producer.rpc_queue('waiting', _timeout=1.5).value == 'TimeoutError'
    bench.log.expect('INFO', 'rpc_queue_up was dropped before it began: its deadline has passed')
    working.go_on.set()
    assert begun.value(TIMEOUT) == 'begun'
    assert producer.rpc_note('next').value == 'next'
    assert working.seen.next() == 'next'


@pytest.mark.parametrize('kind', ['generator', 'coroutine'])
def test_a_handler_is_closed_after_the_deadline_though_its_caller_was_killed(bench, working, kind, monkeypatch):
    """A caller that is killed sends no cancel."""
    monkeypatch.setattr(Canceller, 'add', lambda *_: None)
    working._dispatcher.tolerance = 0.1
    getattr(bench.producer(), f'rpc_future_{kind}')(_timeout=1.5)
    assert working.seen.take(2) == ['begun', 'closed']
    bench.log.expect('INFO', f'rpc_{kind} was closed: its deadline has passed')
    eventually(lambda: not working.is_busy)
    assert bench.count('echo-queue') == 0


@pytest.mark.parametrize('kind', ['threaded', 'plain'])
def test_other_handlers_see_that_the_deadline_has_passed_though_their_caller_was_killed(
    bench, working, kind, monkeypatch
):
    monkeypatch.setattr(Canceller, 'add', lambda *_: None)
    monkeypatch.setenv('POSTAGE_CLOCK_TOLERANCE', '0.1')
    getattr(bench.producer(), f'rpc_future_{kind}')(_timeout=1.5)
    assert working.seen.take(2) == ['begun', 'closed']


def test_a_generator_that_waits_once_more_when_it_is_closed_harms_nothing(bench, working):
    producer = bench.producer()
    future = producer.rpc_future_tidy(_timeout=60)
    assert working.seen.next() == 'begun'
    future.cancel()
    bench.log.expect('ERROR', 'Working.rpc_tidy raised while it was closed', 'generator ignored GeneratorExit')
    eventually(lambda: not working.is_busy)
    assert not bench.log.find('is rejected')
    assert bench.count('echo-queue') == 0


def test_a_caller_that_is_interrupted_ends_its_handler(bench, working):
    """Ctrl-C while a blocking call waits."""
    producer = bench.producer()
    main = threading.main_thread().ident
    ringing = threading.Thread(
        target=lambda: (working.seen.next(), signal.pthread_kill(main, signal.SIGINT)), daemon=True
    )
    ringing.start()
    with pytest.raises(KeyboardInterrupt):
        producer.rpc_generator(_timeout=60)
    ringing.join(TIMEOUT)
    assert working.seen.next() == 'closed'


def test_a_caller_whose_program_ends_ends_its_handlers(bench, working, run_program):
    """By its normal end, without closing its producer."""
    program = run_program("""
from postage import messaging

class EchoExchange(messaging.Exchange):
    name = 'echo-exchange'

class EchoProducer(messaging.GenericProducer):
    eks = [(EchoExchange, 'echo-rk')]

producer = EchoProducer()
future = producer.rpc_future_generator(_timeout=60)
print(producer.rpc_note('after it').value)
""")
    assert program.wait() == 0
    assert program.lines == ['after it']
    assert sorted(working.seen.take(3)) == ['after it', 'begun', 'closed']


def test_a_caller_that_loses_its_connection_ends_its_handler(bench, working):
    with Proxy.before(bench.broker) as proxy, EchoProducer(hup=proxy.url(bench.broker.url)) as producer:
        future = producer.rpc_future_generator(_timeout=60, _max_retry=0)
        assert working.seen.next() == 'begun'
        proxy.cut()
        assert future.result(TIMEOUT).value == 'TimeoutError'
        assert working.seen.next() == 'closed'


@pytest.mark.parametrize('by', ['all of it', 'next'])
def test_what_a_handler_gathers_is_cancelled_with_it(bench, working, by):
    class Asking(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            gathering = inner.rpc_gather_generator(_timeout=60)
            yield gathering if by == 'all of it' else gathering.next()

    inner = bench.producer()
    asking = Asking([(EchoExchange, [('asking-queue', 'asking')])])
    bench.run(asking)
    listening(asking)
    future = bench.producer(echo_producer('asking')).rpc_future_ask(_timeout=60)
    assert working.seen.next() == 'begun'
    future.cancel()
    assert working.seen.next() == 'closed'


def test_hooks_and_figures_tell_a_cancelled_request(bench):
    class Watched(Working):
        def after_handling(self, handling):
            self.seen.put((handling.outcome, handling.exception))

    watched = Watched()
    bench.run(watched)
    listening(watched)
    future = bench.producer().rpc_future_generator(_timeout=60)
    assert watched.seen.next() == 'begun'
    future.cancel()
    assert watched.seen.take(2) == ['closed', ('cancelled', None)]
    entry = next(entry for entry in watched.figures.handlers if entry.label.endswith('rpc_generator'))
    assert (entry.cancelled, entry.handled, entry.failed) == (1, 0, 0)


def timed_out(producer):
    return producer.rpc_future_queue('late', _timeout=0.3)


def past_its_deadline(producer):
    with messaging.deadline(0.3):
        return producer.rpc_future_queue('late')


def cancelled_at_once(producer):
    return producer.rpc_future_queue('late', _timeout=60)


def gathered(producer):
    return producer.rpc_gather_queue('late', _timeout=0.3)


@pytest.mark.parametrize('ended', [timed_out, past_its_deadline, cancelled_at_once, gathered])
def test_a_late_reply_is_dropped_and_counted(bench, working, ended):
    producer = bench.producer()
    before = producer.late_replies
    future = ended(producer)
    assert working.seen.next() == 'late'
    if ended is cancelled_at_once:
        future.cancel()
    concurrent.futures.wait([future], TIMEOUT)
    working.go_on.set()
    eventually(lambda: producer.late_replies == before + 1)
    assert before + 1 in [each.value for each in samples() if each.name == 'postage.replies.late']
    assert producer.rpc_note('next').value == 'next'


def test_an_address_that_takes_no_calls_is_kept_for_late_replies_and_not_for_long(bench, working, monkeypatch):
    monkeypatch.setattr(rpc, 'LATE_SECONDS', 0.5)
    producer = bench.producer()
    for _ in range(rpc.LATE_ADDRESSES + 2):
        assert producer.rpc_generator(_timeout=0.01).value == 'TimeoutError'
        client = producer.conn_broker.rpc_client
        assert 1 <= len(client._addresses) <= rpc.LATE_ADDRESSES
    eventually(lambda: not client._addresses)
    eventually(lambda: not client._is_tidying)


def test_a_cancel_goes_on_to_what_the_handler_waits_for(bench, working):
    class Asking(Processor):
        concurrency = 10

        def __init__(self, producer):
            self.producer = producer
            super().__init__([(EchoExchange, [('asking', 'asking')])])

        @messaging.RpcHandler('command', 'generator')
        def rpc_generator(self, content, reply_func):
            yield self.producer.rpc_future_generator(_timeout=60)

        @messaging.RpcHandler('command', 'coroutine')
        async def rpc_coroutine(self, content, reply_func):
            await asyncio.wrap_future(self.producer.rpc_future_generator(_timeout=60))

    asking = Asking(bench.producer())
    bench.run(asking)
    listening(asking)
    for kind in ('generator', 'coroutine'):
        future = getattr(bench.producer(), f'rpc_future_{kind}')(_key='asking', _timeout=60)
        assert working.seen.next() == 'begun'
        future.cancel()
        assert working.seen.next() == 'closed'


def test_a_future_whose_result_has_come_is_not_cancelled(bench, working):
    future = bench.producer().rpc_future_note(1)
    assert future.value(TIMEOUT) == 1
    assert not future.cancel()
    assert future.value() == 1


def test_a_call_to_the_default_exchange_is_cancelled_too(bench, working):
    class Default(messaging.Exchange):
        name = ''

    future = bench.producer().rpc_future_generator(_eks=[(Default, 'echo-queue')], _timeout=60)
    assert working.seen.next() == 'begun'
    future.cancel()
    assert working.seen.next() == 'closed'


def test_cancels_are_received_again_after_a_lost_connection(bench, working):
    producer = bench.producer()
    assert producer.rpc_note('first').value == 'first'
    generation = working.consumer.conn_broker.cancels.generation
    bench.close_all_connections()
    eventually(lambda: working.consumer.conn_broker.cancels.generation > generation)
    listening(working)
    assert producer.rpc_note('again', _max_retry=3, _timeout=2).value == 'again'
    working.seen.take(2)
    future = producer.rpc_future_generator(_timeout=60, _max_retry=0)
    while working.seen.next() != 'begun':
        pass
    future.cancel()
    assert working.seen.next() == 'closed'


@pytest.mark.parametrize('body', [b'', b'{', b'[]', b'{"cancel": 5}', b'{"cancel": [[1, 2]]}', b'{"cancel": [["x"]]}'])
def test_what_is_no_cancel_costs_nothing(bench, working, body):
    bench.publish(body, 'echo-exchange', 'postage.cancel')
    future = bench.producer().rpc_future_generator(_timeout=60)
    assert working.seen.next() == 'begun'
    future.cancel()
    assert working.seen.next() == 'closed'


def test_what_is_cancelled_is_forgotten_after_its_deadline(bench, working):
    producer = bench.producer()
    futures = [producer.rpc_future_note(number, _timeout=0.2) for number in range(100)]
    for future in futures:
        future.cancel()
    eventually(lambda: not any(future.correlation_id in cancelled.until for future in futures))


def test_what_is_cancelled_is_forgotten_where_nothing_is_consumed_any_more(bench):
    processor = Working()
    running = bench.run(processor)
    listening(processor)
    future = bench.producer().rpc_future_generator(_timeout=600)
    processor.seen.next()
    future.cancel()
    eventually(lambda: future.correlation_id in cancelled.until)
    running.stop()
    assert not cancelled.until


def test_ten_thousand_cancels_are_kept_and_no_more():
    for number in range(10_050):
        cancelled.add(str(number), 100)
    assert len(cancelled.until) == 10_000
    assert '49' not in cancelled.until
    assert '10049' in cancelled.until
    cancelled.start_over()


def test_users_who_may_declare_neither_the_exchange_nor_a_queue_for_cancels_do_without(bench):
    name = 'restricted'
    add_user(bench.broker, name, Permissions('^echo.*', '.*', '.*'))
    try:
        hup = {'host': bench.broker.host, 'port': bench.broker.port, 'user': name, 'password': canary(name)}
        working = Working(hup=hup, vhost=bench.broker.vhost)
        running = bench.run(working)
        producer = bench.producer(hup=hup, vhost=bench.broker.vhost)
        for number in range(2):
            assert producer.rpc_generator(_timeout=0.3).value == 'TimeoutError'
            assert producer.rpc_note(number).value == number
        bench.log.expect('DEBUG', 'cancels are not received')
        bench.log.expect('DEBUG', 'requests were not cancelled')
        assert not bench.log.find('ERROR')
        running.scheduler.stop()
        producer.close()
        running.stop()
    finally:
        delete_user(bench.broker, name)


def test_a_processor_without_rpc_handlers_receives_no_cancels(bench):
    processor = Processor()
    bench.run(processor)
    assert processor.consumer.conn_broker.cancels is None
