"""Handlers of every colour: what becomes of their message, however they end; concurrency, order and time-outs."""

import asyncio
import itertools
import math
import queue
import threading
import time
from concurrent.futures import Future

import pytest

from postage import messaging, microthreads
from postage.messaging.processor import SLICE_MESSAGES
from postage.microthreads import MicroThread
from support.handling import (
    COLOURS,
    KINDS,
    RPC_KINDS,
    STOPPABLE_KINDS,
    UNSTOPPABLE_KINDS,
    Stage,
    of_every_colour,
)
from support.messaging import (
    EQK,
    GUARDED_EQK,
    TIMEOUT,
    EchoExchange,
    EchoProducer,
    HeldConfirms,
    Processor,
    eventually,
)
from support.soak import IS_SOAK


def on_each_broker(kinds):
    """Run a test with each kind on each broker. On RabbitMQ functions suffice, for no broker sees what a handler is.

    ``make soak`` has classes there, too.
    """
    pairs = [
        pytest.param(broker, kind, id=f'{broker}-{kind}')
        for broker, kind in itertools.product(('embedded', 'rabbitmq'), kinds)
        if broker == 'embedded' or IS_SOAK or not kind.is_class
    ]
    return pytest.mark.parametrize(('broker', 'kind'), pairs, indirect=['broker'])


of_every_kind = on_each_broker(KINDS)
of_every_rpc_kind = on_each_broker(RPC_KINDS)
of_every_stoppable_kind = on_each_broker(STOPPABLE_KINDS)
of_every_unstoppable_kind = on_each_broker(UNSTOPPABLE_KINDS)


class DoneProducer(EchoProducer):
    eks = [(EchoExchange, 'done-rk')]


def notes(processor, data, reply_func):
    """Note what came, and answer an RPC with it."""
    processor.seen.put(data['parameters'])
    return data['parameters'] if reply_func else None


def stays_empty(seen):
    """Give what must not happen a moment to happen."""
    try:
        seen.get(timeout=0.1)
    except queue.Empty:
        return True
    return False


def raises(error):
    """An act that raises this."""

    def act(processor, data, reply_func):
        raise error

    return act


# The table: every kind of handler, whatever it does


@of_every_kind
def test_a_handler_that_returns_has_its_message_acknowledged(bench, kind):
    stage = Stage(bench, kind, kind.handler(notes))
    stage.send('a message')
    assert stage.seen.next() == 'a message'
    assert stage.goes_on()
    stage.expect_acknowledged()


@of_every_rpc_kind
def test_what_an_rpc_handler_returns_is_the_answer(bench, kind):
    stage = Stage(bench, kind, kind.handler(notes))
    stage.send([1, 2])
    assert stage.answer() == {'type': 'success', 'value': [1, 2], 'message': ''}


@of_every_rpc_kind
def test_what_an_rpc_handler_replies_counts_before_what_it_returns(bench, kind):
    def replies(processor, data, reply_func):
        reply_func('replied')
        return 'returned'

    stage = Stage(bench, kind, kind.handler(replies))
    stage.send()
    assert stage.answer()['value'] == 'replied'
    assert stage.goes_on()
    stage.expect_acknowledged()


@of_every_rpc_kind
def test_an_rpc_may_be_answered_after_its_handler_has_returned(bench, kind):
    stage = Stage(bench, kind, kind.handler(lambda processor, data, reply_func: processor.seen.put(reply_func)))
    stage.send()
    reply_func = stage.seen.next()
    assert stage.goes_on()
    assert not stage.is_answered()
    reply_func('later')
    assert stage.answer()['value'] == 'later'


@of_every_kind
def test_a_handler_that_raises_has_its_message_rejected_and_its_traceback_logged(bench, kind):
    stage = Stage(bench, kind, kind.handler(raises(ValueError('the reason'))))
    stage.send()
    if kind.is_rpc:
        assert stage.answer() == {'type': 'exception', 'value': 'ValueError', 'message': 'the reason'}
    assert stage.goes_on()
    logged = bench.log.expect('ERROR', 'work raised on', 'which is rejected')
    assert 'Traceback' in logged
    assert 'ValueError: the reason' in logged
    assert 'test_handling.py' in logged, 'the traceback leads to the handler'
    stage.expect_rejected()


@of_every_rpc_kind
def test_an_rpc_handler_that_raises_after_its_reply_changes_nothing_for_the_caller(bench, kind):
    def replies_and_raises(processor, data, reply_func):
        reply_func('replied')
        raise ValueError('the reason')

    stage = Stage(bench, kind, kind.handler(replies_and_raises))
    stage.send()
    assert stage.answer()['value'] == 'replied'
    stage.expect_rejected()


@of_every_kind
def test_reject_message_rejects_quietly(bench, kind):
    stage = Stage(bench, kind, kind.handler(raises(messaging.RejectMessage())))
    stage.send()
    if kind.is_rpc:
        assert stage.answer()['value'] == 'RejectMessage'
    assert stage.goes_on()
    assert 'Traceback' not in bench.log.text
    stage.expect_rejected()


@of_every_kind
def test_filter_error_from_a_handler_drops_the_message(bench, kind):
    stage = Stage(bench, kind, kind.handler(raises(messaging.FilterError('not for me'))))
    stage.send()
    if kind.is_rpc:
        assert stage.answer() == {'type': 'error', 'value': None, 'message': 'not for me'}
    assert stage.goes_on()
    bench.log.expect('WARNING', 'dropped by', 'work', 'not for me')
    stage.expect_acknowledged()


@of_every_kind
def test_a_filter_changes_what_the_handler_gets(bench, kind):
    def doubled(content, times):
        return {'parameters': content['parameters'] * times}

    stage = Stage(bench, kind, kind.handler(notes), messaging.MessageFilter(doubled, times=2))
    stage.send('ab')
    assert stage.seen.next() == 'abab'


@of_every_kind
def test_a_filter_that_raises_drops_the_message_before_the_handler_begins(bench, kind):
    def refuse(content):
        raise ValueError('not this one')

    stage = Stage(bench, kind, kind.handler(notes), messaging.MessageFilter(refuse))
    stage.send()
    if kind.is_rpc:
        assert stage.answer()['message'] == 'dropped by filter refuse: ValueError: not this one'
    assert stage.goes_on()
    assert stage.seen.empty()
    stage.expect_acknowledged()


@of_every_kind
def test_what_a_handler_publishes_is_confirmed_before_its_message_is_acknowledged(bench, kind, monkeypatch):
    producer = bench.producer(DoneProducer)
    done = bench.collect(key='done-rk')

    def publishes(processor, data, reply_func):
        producer.message_done()
        processor.seen.put(data['parameters'])

    class OneAtATime(messaging.GenericConsumer):
        prefetch_count = 1

    stage = Stage(bench, kind, kind.handler(publishes), consumer_class=OneAtATime)
    eventually(lambda: bench.consumers('echo-queue') == 1)
    held = HeldConfirms(monkeypatch)
    stage.send('first')
    stage.send('second')
    assert stage.seen.next() == 'first'
    held.arrived.next()
    # With a prefetch of 1 the broker delivers the second message once the first is acknowledged.
    assert stays_empty(stage.seen)
    held.release()
    assert stage.seen.next() == 'second'
    assert stage.goes_on()
    assert bench.count(done) == 2
    stage.expect_acknowledged()


@of_every_kind
def test_what_a_handler_published_in_vain_has_its_message_rejected(bench, kind):
    class MandatoryProducer(EchoProducer):
        eks = [(EchoExchange, 'nobody')]
        mandatory = True

    producer = bench.producer(MandatoryProducer)
    stage = Stage(bench, kind, kind.handler(lambda *_: producer.message_done() and None))
    stage.send()
    bench.log.expect('ERROR', 'is rejected, because what its handler published failed')
    stage.expect_rejected()
    with pytest.raises(messaging.Unroutable):
        producer.flush(TIMEOUT)


@of_every_kind
def test_exit_scheduler_acknowledges_and_ends_the_loop(bench, kind):
    stage = Stage(bench, kind, kind.handler(raises(microthreads.ExitScheduler())))
    stage.send()
    stage.running.wait()
    assert 'ERROR' not in bench.log.text
    stage.expect_acknowledged()


@of_every_rpc_kind
def test_an_rpc_is_answered_before_its_handler_ends_the_loop(bench, kind):
    def replies_and_quits(processor, data, reply_func):
        reply_func('good bye')
        raise microthreads.ExitScheduler

    stage = Stage(bench, kind, kind.handler(replies_and_quits))
    stage.send()
    stage.running.wait()
    assert stage.answer()['value'] == 'good bye'
    stage.expect_acknowledged()


@of_every_kind
def test_ack_and_restart_acknowledges_and_restarts(bench, kind):
    def restart(processor):
        processor.seen.put('restart')

    stage = Stage(bench, kind, kind.handler(raises(messaging.AckAndRestart())), restart=restart)
    stage.send()
    assert stage.seen.next() == 'restart'
    stage.expect_acknowledged()


@of_every_kind
def test_a_handler_may_stop_its_own_processor_once_its_message_is_settled(bench, kind):
    def stops(processor, data, reply_func):
        processor.stop_consuming()
        processor.seen.put('stopped')

    stage = Stage(bench, kind, kind.handler(stops))
    stage.send()
    assert stage.seen.next() == 'stopped'
    eventually(lambda: bench.consumers('echo-queue') == 0)
    assert bench.count('echo-queue') == 0
    stage.expect_acknowledged()


@of_every_stoppable_kind
def test_a_handler_is_closed_at_its_time_out_and_its_message_rejected(bench, kind):
    stage = Stage(bench, kind, kind.waiting_handler(), messaging.Timeout(0.1))
    stage.send()
    assert stage.seen.take(2) == ['begun', 'closed']
    if kind.is_rpc:
        answer = stage.answer()
        assert (answer['type'], answer['value']) == ('exception', 'HandlerTimeout')
        assert answer['message'] == 'TheWorker.work was closed after 0.1 s'
    assert stage.goes_on()
    bench.log.expect('ERROR', 'TheWorker.work raised on', 'HandlerTimeout: TheWorker.work was closed after 0.1 s')
    stage.expect_rejected()


@of_every_unstoppable_kind
def test_a_handler_that_cannot_be_closed_ends_in_its_own_time_and_the_log_says_so(bench, kind):
    def takes_long(processor, data, reply_func):
        time.sleep(0.1)
        return notes(processor, data, reply_func)

    stage = Stage(bench, kind, kind.handler(takes_long), messaging.Timeout(0.02))
    stage.send('late')
    assert stage.seen.next() == 'late'
    bench.log.expect('WARNING', 'TheWorker.work took longer than its time-out of 0.02 s, and could not be stopped')
    if kind.is_rpc:
        assert stage.answer()['value'] == 'late'
    assert stage.goes_on()
    assert len(bench.log.find('took longer')) == 1
    stage.expect_acknowledged()


@of_every_kind
def test_a_handler_that_keeps_to_its_time_is_not_disturbed(bench, kind):
    stage = Stage(bench, kind, kind.handler(notes), messaging.Timeout(5))
    stage.send('in time')
    assert stage.seen.next() == 'in time'
    assert stage.goes_on()
    assert bench.log.find('took longer') == []
    stage.expect_acknowledged()


@of_every_stoppable_kind
def test_a_handler_in_flight_at_the_end_is_closed_and_its_message_handed_back(bench, kind):
    stage = Stage(bench, kind, kind.waiting_handler())
    stage.send()
    assert stage.seen.next() == 'begun'
    stage.running.stop()
    assert stage.seen.next() == 'closed'
    assert not stage.is_answered(), 'whoever takes the message next answers'
    stage.expect_handed_back()


@pytest.mark.parametrize('kind', [kind for kind in COLOURS if kind.colour == 'threaded'], ids=str)
def test_what_a_thread_finishes_after_the_end_is_handed_back_all_the_same(bench, kind):
    go_on = threading.Event()

    def waits(processor, data, reply_func):
        processor.seen.put('begun')
        go_on.wait(TIMEOUT)
        processor.seen.put('ended')

    stage = Stage(bench, kind, kind.handler(waits))
    stage.send()
    assert stage.seen.next() == 'begun'
    stage.running.stop()
    go_on.set()
    assert stage.seen.next() == 'ended'
    stage.expect_handed_back()


# Where handlers run


def whereabouts(bench, kind, messages=1):
    """The threads in which a handler of this kind ran, and that of its scheduler."""

    class Whereabouts(Processor):
        work = messaging.MessageHandler('command', 'work')(
            kind.handler(lambda processor, *_: processor.seen.put(threading.current_thread()))
        )

        @messaging.MessageHandler('command', 'scheduler')
        def msg_scheduler(self, content):
            self.seen.put(threading.current_thread())

    processor = Whereabouts()
    bench.run(processor)
    producer = bench.producer()
    for _ in range(messages):
        producer.message_work()
    producer.message_scheduler()
    *workers, scheduler = processor.seen.take(messages + 1)
    return set(workers), scheduler


@of_every_colour
def test_plain_and_generator_handlers_alone_run_in_the_thread_of_the_scheduler(bench, kind):
    workers, scheduler = whereabouts(bench, kind)
    assert (workers == {scheduler}) == (kind.colour in ('plain', 'generator'))


@pytest.mark.parametrize('kind', [kind for kind in COLOURS if kind.colour == 'coroutine'], ids=str)
def test_coroutine_handlers_share_one_asyncio_loop(bench, kind):
    workers, _ = whereabouts(bench, kind, messages=20)
    assert [worker.name for worker in workers] == ['postage-asyncio']


def test_threads_for_handlers_are_bounded(bench):
    together = threading.Barrier(3)  # two handlers and the test

    class Blocking(Processor):
        concurrency = 10

        @messaging.MessageHandler('command', 'work')
        @messaging.Threaded
        def work(self, content):
            self.seen.put(content['parameters'])
            together.wait(TIMEOUT)

    processor = Blocking()
    scheduler = bench.run(processor).scheduler
    scheduler.threads = 2
    producer = bench.producer()
    for number in range(4):
        producer.message_work(number)
    assert sorted(processor.seen.take(2)) == [0, 1]
    assert stays_empty(processor.seen)
    together.wait(TIMEOUT)
    assert sorted(processor.seen.take(2)) == [2, 3]
    together.wait(TIMEOUT)


@of_every_colour
def test_the_current_delivery_is_that_of_the_handler_also_while_others_run(bench, kind):
    def whose(processor, data, reply_func):
        processor.seen.put((data['parameters'], messaging.current_delivery().headers['number']))

    work = messaging.MessageHandler('command', 'work')(kind.handler(whose))
    processor = type('Whose', (Processor,), {'work': work, 'concurrency': 20})()
    bench.run(processor)
    producer = bench.producer()
    for number in range(20):
        producer.message_work(number, _headers={'number': number})
    assert sorted(processor.seen.take(20)) == [(number, number) for number in range(20)]


def test_all_handlers_of_a_message_run_in_their_order_whatever_their_colour(bench):
    class Mixed(Processor):
        @messaging.MessageHandler('command', 'work')
        def first(self, content):
            yield microthreads.sleep(0.05)
            self.seen.put('generator')

        @messaging.MessageHandler('command', 'work')
        def second(self, content):
            self.seen.put('plain')
            raise ValueError('the reason')

        @messaging.MessageHandler('command', 'work')
        async def third(self, content):
            await asyncio.sleep(0.02)
            self.seen.put('coroutine')

        @messaging.MessageHandler('command', 'work')
        @messaging.Threaded
        def fourth(self, content):
            self.seen.put('threaded')

    bench.dead()
    processor = Mixed(GUARDED_EQK)
    bench.run(processor)
    bench.producer().message_work()
    assert processor.seen.take(4) == ['generator', 'plain', 'coroutine', 'threaded']
    bench.await_message('dead')


def test_a_generator_handler_gets_the_exception_of_its_future_at_the_yield(bench):
    class Catching(Processor):
        @messaging.RpcHandler('command', 'work')
        def work(self, content, reply_func):
            future = Future()
            future.set_exception(KeyError('lost'))
            try:
                yield future
            except KeyError as error:
                return f'caught {error}'

    bench.run(Catching())
    assert bench.producer().rpc_work().body['content']['value'] == "caught 'lost'"


def test_a_generator_handler_may_wait_for_all_that_a_microthread_may(bench):
    class Helper(MicroThread):
        def main(self):
            yield
            return 'joined'

    class Waiting(Processor):
        concurrency = 2

        @messaging.RpcHandler('command', 'work')
        def work(self, content, reply_func):
            helper = Helper()
            self.scheduler.add_microthread(helper)
            joined = yield helper
            yield microthreads.sleep(0.01)
            yield 'anything else'
            answer = yield producer.rpc_future_other()
            return [joined, answer.body['content']['value']]

        @messaging.RpcHandler('command', 'other')
        def other(self, content, reply_func):
            return 'answered'

    bench.run(Waiting())
    producer = bench.producer()
    assert producer.rpc_work().body['content']['value'] == ['joined', 'answered']


def test_the_traceback_of_a_generator_handler_leads_through_what_it_delegates_to(bench):
    class Delegating(Processor):
        @messaging.MessageHandler('command', 'work')
        def work(self, content):
            yield from self.inner_part()

        def inner_part(self):
            yield
            raise ValueError('deep inside')

    bench.run(Delegating())
    bench.producer().message_work()
    logged = bench.log.expect('Delegating.work raised on', 'ValueError: deep inside')
    assert 'in work' in logged
    assert 'in inner_part' in logged


# Concurrency and order


class Held(Processor):
    """Its handlers wait until the test lets them go on.

    :ivar parked: the futures for which they wait, by the number of their message
    """

    def __init__(self, eqk=EQK):
        self.parked = {}
        super().__init__(eqk)

    def park(self, content):
        number = content['parameters']
        self.parked[number] = Future()
        self.seen.put(number)
        return self.parked[number]


class HeldGenerator(Held):
    @messaging.MessageHandler('command', 'work')
    def work(self, content):
        yield self.park(content)


class HeldCoroutine(Held):
    @messaging.MessageHandler('command', 'work')
    async def work(self, content):
        await asyncio.wrap_future(self.park(content))


class HeldThreaded(Held):
    @messaging.MessageHandler('command', 'work')
    @messaging.Threaded
    def work(self, content):
        self.park(content).result(TIMEOUT)


of_every_held = pytest.mark.parametrize('held', [HeldGenerator, HeldCoroutine, HeldThreaded])


@of_every_held
def test_concurrency_bounds_the_messages_in_hand(bench, held):
    processor = type('Three', (held,), {'concurrency': 3})()
    bench.run(processor)
    producer = bench.producer()
    for number in range(5):
        producer.message_work(number)
    assert sorted(processor.seen.take(3)) == [0, 1, 2], 'three at once'
    assert stays_empty(processor.seen)
    for number in range(5):
        processor.parked[number].set_result(None)
        if number < 2:
            assert processor.seen.next() == number + 3, 'each that ends makes room for one'


@of_every_held
def test_with_a_concurrency_of_one_a_message_waits_for_the_one_before_it(bench, held):
    processor = held()
    bench.run(processor)
    producer = bench.producer()
    for number in range(3):
        producer.message_work(number)
    for number in range(3):
        assert processor.seen.next() == number
        assert processor.seen.empty()
        processor.parked[number].set_result(None)


def test_with_a_concurrency_of_one_order_holds_between_handlers_of_every_colour(bench):
    kinds = {kind.colour: kind.handler(notes) for kind in COLOURS}
    handlers = {colour: messaging.MessageHandler('command', colour)(handler) for colour, handler in kinds.items()}
    processor = type('Mixed', (Processor,), handlers)()
    bench.run(processor)
    producer = bench.producer()
    sent = []
    for number in range(40):
        colour = ('generator', 'plain', 'coroutine', 'threaded')[number % 4]
        getattr(producer, f'message_{colour}')(number)
        sent.append(number)
    assert processor.seen.take(40) == sent


def test_one_that_ends_first_is_acknowledged_first(bench):
    processor = type('Two', (HeldGenerator,), {'concurrency': 2})(GUARDED_EQK)
    running = bench.run(processor)
    producer = bench.producer()
    producer.message_work(0)
    producer.message_work(1)
    processor.seen.take(2)
    processor.parked[1].set_result(None)
    eventually(lambda: processor._dispatcher.in_hand == 1)
    running.stop()
    message = bench.get('echo-queue')
    assert message.parameters == 0
    assert bench.count('echo-queue') == 0


@pytest.mark.parametrize('prefetch', [1, 2, None])
def test_the_prefetch_is_never_below_the_concurrency(bench, prefetch):
    consumer_class = type('Narrow', (messaging.GenericConsumer,), {'prefetch_count': prefetch})
    processor = type('Wide', (HeldGenerator,), {'concurrency': 100, 'consumer_class': consumer_class})()
    bench.run(processor)
    producer = bench.producer()
    for number in range(100):
        producer.message_work(number)
    assert sorted(processor.seen.take(100)) == list(range(100))
    for future in processor.parked.values():
        future.set_result(None)


@pytest.mark.parametrize('concurrency', [0, -1, 1.5, '3', None, True, math.inf])
def test_a_concurrency_that_is_no_number_of_messages_is_refused(bench, concurrency):
    with pytest.raises(messaging.ConfigurationError, match=r'Wrong\.concurrency must be 1 or more'):
        type('Wrong', (Processor,), {'concurrency': concurrency})()


# Time-outs


@pytest.mark.parametrize('seconds', [0, -1, 'soon', None, True, math.nan])
def test_a_time_out_that_is_no_number_of_seconds_is_refused(bench, seconds):
    with pytest.raises(messaging.ConfigurationError, match='@Timeout must be a number of seconds above 0'):
        messaging.Timeout(seconds)
    if seconds is not None:
        with pytest.raises(messaging.ConfigurationError, match=r'Wrong\.timeout must be a number of seconds above 0'):
            type('Wrong', (Processor,), {'timeout': seconds})()


@of_every_stoppable_kind
def test_the_time_out_of_a_processor_is_that_of_its_handlers(bench, kind):
    stage = Stage(bench, kind, kind.waiting_handler(), timeout=0.1)
    stage.send()
    assert stage.seen.take(2) == ['begun', 'closed']
    stage.expect_rejected()


def test_the_time_out_of_a_handler_goes_before_that_of_its_processor(bench):
    class Patient(Processor):
        timeout = 0.05

        @messaging.RpcHandler('command', 'work')
        @messaging.Timeout(5)
        def work(self, content, reply_func):
            yield microthreads.sleep(0.2)
            return 'done'

    bench.run(Patient())
    assert bench.producer().rpc_work().body['content']['value'] == 'done'


def test_each_handler_of_a_message_has_its_own_time(bench):
    class Three(Processor):
        timeout = 0.3

        def work(self, content):
            yield microthreads.sleep(0.2)
            self.seen.put('done')

        first = messaging.MessageHandler('command', 'work')(work)

        @messaging.MessageHandler('command', 'work')
        def second(self, content):
            yield from self.work(content)

    processor = Three()
    bench.run(processor)
    bench.producer().message_work()
    assert processor.seen.take(2) == ['done', 'done']


def test_a_generator_that_never_parks_is_closed_at_its_time_out(bench):
    class Spinning(Processor):
        @messaging.RpcHandler('command', 'work')
        @messaging.Timeout(0.1)
        def work(self, content, reply_func):
            try:
                while True:
                    yield
            finally:
                self.seen.put('closed')

    processor = Spinning()
    bench.run(processor)
    assert bench.producer().rpc_work().body['content']['value'] == 'HandlerTimeout'
    assert processor.seen.next() == 'closed'


def test_the_handlers_after_one_that_was_closed_have_their_turn(bench):
    class Two(Processor):
        @messaging.MessageHandler('command', 'work')
        @messaging.Timeout(0.05)
        def first(self, content):
            yield Future()

        @messaging.MessageHandler('command', 'work')
        def second(self, content):
            self.seen.put('second')

    processor = Two()
    bench.run(processor)
    bench.producer().message_work()
    assert processor.seen.next() == 'second'


def test_a_generator_cannot_catch_its_time_out_as_an_exception(bench):
    class Catching(Processor):
        @messaging.RpcHandler('command', 'work')
        @messaging.Timeout(0.05)
        def work(self, content, reply_func):
            try:
                yield Future()
            except Exception:
                reply_func('caught')

    bench.run(Catching())
    assert bench.producer().rpc_work().body['content']['value'] == 'HandlerTimeout'


def test_a_generator_that_refuses_to_be_closed_at_its_time_out_is_told_of_and_left(bench, caplog):
    class Stubborn(Processor):
        @messaging.RpcHandler('command', 'work')
        @messaging.Timeout(0.05)
        def work(self, content, reply_func):
            try:
                yield Future()
            finally:
                yield Future()

        @messaging.RpcHandler('command', 'echo')
        def echo(self, content, reply_func):
            return 'goes on'

    bench.dead()
    bench.run(Stubborn(GUARDED_EQK))
    producer = bench.producer()
    answer = producer.rpc_work().body['content']
    assert (answer['type'], answer['value']) == ('exception', 'HandlerTimeout')
    assert 'generator ignored GeneratorExit' in caplog.text
    bench.await_message('dead')
    assert producer.rpc_echo().body['content']['value'] == 'goes on'


def test_a_generator_whose_finally_raises_at_the_end_has_its_message_handed_back(bench):
    class Untidy(Processor):
        @messaging.MessageHandler('command', 'work')
        def first(self, content):
            self.seen.put('begun')
            try:
                yield Future()
            finally:
                raise ValueError('untidy')

        @messaging.MessageHandler('command', 'work')
        def second(self, content):
            self.seen.put('second')

    bench.dead()
    processor = Untidy(GUARDED_EQK)
    running = bench.run(processor)
    bench.producer().message_work()
    assert processor.seen.next() == 'begun'
    running.stop()
    assert bench.await_message('echo-queue').method.redelivered
    assert processor.seen.empty(), 'the other handler began although the scheduler had ended'
    assert bench.log.find('untidy')


def test_a_coroutine_that_goes_on_after_it_was_cancelled_changes_nothing(bench):
    class Stubborn(Processor):
        @messaging.RpcHandler('command', 'work')
        @messaging.Timeout(0.05)
        async def work(self, content, reply_func):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.seen.put('cancelled')
            return 'done all the same'

    bench.dead()
    processor = Stubborn(GUARDED_EQK)
    bench.run(processor)
    assert bench.producer().rpc_work().body['content']['value'] == 'HandlerTimeout'
    assert processor.seen.next() == 'cancelled'
    bench.await_message('dead')


# What is no handler


def test_an_async_generator_is_no_handler(bench):
    class Wrong(Processor):
        @messaging.MessageHandler('command', 'work')
        async def work(self, content):
            yield

    with pytest.raises(messaging.ConfigurationError, match=r'Wrong\.work must be a function, a generator function or'):
        Wrong()


@pytest.mark.parametrize('kind', [kind for kind in COLOURS if kind.colour in ('generator', 'coroutine')], ids=str)
def test_only_plain_functions_may_be_threaded(bench, kind):
    work = messaging.MessageHandler('command', 'work')(messaging.Threaded(kind.handler(notes)))
    with pytest.raises(messaging.ConfigurationError, match=r'Wrong\.work must be .*, and to be @Threaded a plain one'):
        type('Wrong', (Processor,), {'work': work})()


# Fairness


class Ticks(MicroThread):
    """Counts its turns."""

    count = 0

    def step(self):
        self.count += 1


FLOOD = 3000


@of_every_colour
@pytest.mark.parametrize('broker', ['embedded', 'rabbitmq'] if IS_SOAK else ['embedded'], indirect=True)
def test_a_flooded_inbox_starves_nobody(bench, kind):
    work = messaging.MessageHandler('command', 'work')(kind.handler(notes))
    flooded = type('Flooded', (Processor,), {'work': work, 'concurrency': 100})()

    class Neighbour(Processor):
        @messaging.RpcHandler('command', 'ask')
        def ask(self, content, reply_func):
            yield microthreads.sleep(0.01)
            return flooded.seen.qsize()

    producer = bench.producer()
    for number in range(FLOOD):
        producer.message_work(number)
    producer.flush(TIMEOUT)
    ticks = Ticks()
    neighbour = Neighbour([(EchoExchange, [('neighbour-queue', 'neighbour-rk')])])
    running = bench.run(flooded, neighbour)
    running.scheduler.add_microthread(ticks)
    handled = producer.rpc_ask(_key='neighbour-rk').body['content']['value']
    assert handled < FLOOD, 'the neighbour answers while the flood lasts'
    got = flooded.seen.take(FLOOD)
    turns = ticks.count
    assert sorted(got) == list(range(FLOOD))
    # In a round the flood has one slice, so there are rounds enough; some were before the first tick.
    assert turns > FLOOD // SLICE_MESSAGES // 2


# Inside asyncio


class Guest(Processor):
    @messaging.RpcHandler('command', 'coroutine')
    async def coroutine(self, content, reply_func):
        await asyncio.sleep(0.01)
        return asyncio.get_running_loop() is self.loop

    @messaging.RpcHandler('command', 'generator')
    def generator(self, content, reply_func):
        return (yield self.scheduler.run_coroutine(self.coroutine(content, reply_func)))

    @messaging.RpcHandler('command', 'waits')
    async def waits(self, content, reply_func):
        self.seen.put('begun')
        try:
            await asyncio.Event().wait()
        finally:
            self.seen.put('closed')


def run_inside_asyncio(bench, visit):
    """Run a processor inside asyncio, and ``visit(processor, task)`` beside it, where ``task`` is what runs it."""

    async def main():
        processor = bench.closing(Guest(GUARDED_EQK))
        processor.loop = asyncio.get_running_loop()
        processor.producer = bench.producer()
        scheduler = microthreads.MicroScheduler()
        scheduler.add_microthread(processor)
        task = asyncio.create_task(scheduler.run_async())
        await asyncio.wait_for(visit(processor, task), TIMEOUT)

    bench.dead()
    asyncio.run(main())


@pytest.mark.parametrize('colour', ['coroutine', 'generator'])
def test_a_processor_inside_asyncio_handles_messages_while_asyncio_s_own_tasks_go_on(bench, colour):
    turns = []

    async def counts():
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0.001)

    async def visit(processor, task):
        counting = asyncio.create_task(counts())
        for _ in range(20):
            call = getattr(processor.producer, f'rpc_future_{colour}')()
            answer = await asyncio.wrap_future(call)
            assert answer.body['content']['value'] is True, 'a coroutine handler runs on the loop of the program'
        counting.cancel()
        processor.producer.message_quit()
        await task

    run_inside_asyncio(bench, visit)
    assert len(turns) > 20
    assert max(later - earlier for earlier, later in itertools.pairwise(turns)) < 0.5


def test_cancelling_the_scheduler_inside_asyncio_closes_handlers_and_hands_back_their_messages(bench):
    async def visit(processor, task):
        processor.producer.rpc_future_waits()
        while processor.seen.empty():
            await asyncio.sleep(0.01)
        assert processor.seen.next() == 'begun'
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while processor.seen.empty():
            await asyncio.sleep(0.01)
        assert processor.seen.next() == 'closed'

    run_inside_asyncio(bench, visit)
    assert bench.await_message('echo-queue').method.redelivered


def test_a_program_may_step_the_scheduler_from_a_loop_of_its_own(bench):
    echo = bench.closing(Guest())
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(echo)
    echo.loop = None
    producer = bench.producer()
    answer = producer.rpc_future_coroutine()
    rounds = 0
    for _ in scheduler.main(block=False):
        rounds += 1
        if answer.done():
            break
        threading.Event().wait(0.001)  # the program's own work
    assert answer.result().body['content']['value'] is False
    assert rounds > 1
