"""Processors run in a scheduler, end as they should, and lose nothing on the way."""

from __future__ import annotations

import threading
import time

import pytest

from postage import messaging, microthreads
from postage.amqp import tick
from postage.messaging import failures
from support.messaging import (
    EQK,
    GUARDED_EQK,
    TIMEOUT,
    Echo,
    EchoExchange,
    EchoProducer,
    GreedyConsumer,
    HeldConfirms,
    OtherExchange,
    Processor,
    command,
    eventually,
)
from support.programs import ECHO


class OtherProducer(messaging.GenericProducer):
    eks = [(OtherExchange, 'other-rk')]


class Forwarding(Processor):
    """Sends on what it gets, by a producer of its own."""

    consumer_class = GreedyConsumer

    def __init__(self, producer, eqk=GUARDED_EQK):
        self.producer = producer
        super().__init__(eqk)

    @messaging.MessageHandler('command', 'forward')
    def msg_forward(self, content):
        self.receipt = self.producer.message_forwarded(content['parameters'])
        self.seen.put((content['parameters'], messaging.current_delivery().redelivered))

    @messaging.MessageHandler('command', 'note')
    def msg_note(self, content):
        self.seen.put((content['parameters'], messaging.current_delivery().redelivered))


# What it is


def test_a_processor_is_a_microthread_with_a_consumer_and_a_fingerprint(bench):
    processor = bench.closing(messaging.MessageProcessor(messaging.Fingerprint('me', 'test'), EQK, None, None))
    assert isinstance(processor, microthreads.MicroThread)
    assert isinstance(processor.consumer, messaging.GenericConsumer)
    assert processor.fingerprint == messaging.Fingerprint('me', 'test').as_dict()


def test_a_fingerprint_may_be_given_as_its_dictionary(bench):
    fingerprint = bench.closing(messaging.MessageProcessor({'name': 'me'}, EQK)).fingerprint
    assert fingerprint == {**messaging.Fingerprint().as_dict(), 'name': 'me'}


def test_an_overridden_step_need_not_return_what_it_got(bench):
    class Greedy(messaging.GenericConsumer):
        prefetch_count = 300

    class Stepping(Echo):
        consumer_class = Greedy

        def step(self):
            super().step()

    producer = bench.producer()
    processor = bench.closing(Stepping())
    for number in range(300):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    bench.run(processor)
    assert processor.seen.take(300) == list(range(300))


def test_an_ack_of_its_consumers_own_is_called_once_what_a_handler_published_is_confirmed(bench, monkeypatch):
    acknowledged = []

    class Own(GreedyConsumer):
        def ack(self, method):
            acknowledged.append(threading.current_thread().name)
            super().ack(method)

    class Sending(Forwarding):
        consumer_class = Own

    processor = Sending(bench.producer(OtherProducer), EQK)
    bench.run(processor)
    held = HeldConfirms(monkeypatch)
    bench.publish(command('forward', 'text'))
    processor.seen.next()
    held.arrived.next()
    assert not acknowledged
    held.release()
    eventually(lambda: acknowledged)
    assert acknowledged == ['scheduler-of-a-test']


def test_a_fingerprint_of_the_wrong_kind_raises(bench):
    with pytest.raises(messaging.ConfigurationError, match='fingerprint'):
        messaging.MessageProcessor('me', EQK)


def test_a_processor_that_stops_has_the_confirms_read_that_it_waits_for(bench, monkeypatch):
    """Its thread, which reads while it waits for deliveries, does not read now: the I/O thread has to, and at once."""
    monkeypatch.setattr(tick, 'SECONDS', 60)  # else the I/O thread would notice by itself

    class Last(Echo):
        @messaging.MessageHandler('command', 'last')
        def msg_last(self, content):
            producer.message_onward(_key='nowhere')
            raise microthreads.ExitScheduler

    producer = bench.producer()
    processor = Last()
    running = bench.run(processor)

    def scheduler_reads():
        bench.publish(command(parameters='hello'))
        processor.seen.next()
        turn = processor.consumer.connections[1].link.turn
        return turn is None or turn.reader is not None

    eventually(scheduler_reads)
    began = time.monotonic()
    bench.publish(command('last'))
    running.wait()
    assert time.monotonic() - began < 5
    assert not bench.log.find('wait for a confirm')
    assert bench.count('echo-queue') == 0


def test_the_consumer_is_of_the_consumer_class(bench):
    class MyConsumer(messaging.GenericConsumer):
        eqk = EQK

    class MyProcessor(Echo):
        consumer_class = MyConsumer

    processor = MyProcessor(None)
    bench.run(processor)
    assert type(processor.consumer) is MyConsumer
    bench.producer().message_echo('text')
    assert processor.seen.next() == 'text'


def test_hup_and_virtual_host_may_be_given(bench, monkeypatch):
    monkeypatch.delenv('POSTAGE_URL')
    processor = Echo(EQK, hup=bench.broker.url, vhost=bench.broker.vhost)
    bench.run(processor)
    bench.producer(EchoProducer, hup=bench.broker.url).message_echo('text')
    assert processor.seen.next() == 'text'


@pytest.mark.parametrize('running', [False, True])
def test_add_eqk_consumes_from_more_queues(bench, running):
    processor = Echo()
    if running:
        bench.run(processor)
    processor.add_eqk([(OtherExchange, [('more', 'other-rk')])])
    if not running:
        bench.run(processor)
    bench.producer(OtherProducer).message_echo('text')
    assert processor.seen.next() == 'text'


def test_a_handler_may_add_queues(bench):
    class Growing(Echo):
        @messaging.MessageHandler('command', 'grow')
        def msg_grow(self, content):
            self.add_eqk([(OtherExchange, [('more', 'other-rk')])])
            self.seen.put('grown')

    processor = Growing()
    bench.run(processor)
    bench.producer().message_grow()
    processor.seen.next()
    bench.producer(OtherProducer).message_echo('text')
    assert processor.seen.next() == 'text'


def test_step_may_be_overridden_to_do_more(bench):
    class Stepping(Echo):
        def step(self):
            self.seen.put('step')
            return super().step()

    processor = Stepping()
    bench.run(processor)
    bench.producer().message_echo('text')
    while processor.seen.next() != 'text':
        pass


# Timers


@pytest.mark.parametrize('running', [False, True])
def test_add_timeout_calls_back_in_the_schedulers_thread(bench, running):
    class Timing(Processor):
        @messaging.MessageHandler('command', 'time')
        def msg_time(self, content):
            self.add_timeout(0.02, lambda: self.seen.put(threading.current_thread().name))

    processor = Timing()
    if running:
        bench.run(processor)
        bench.producer().message_time()
    else:
        processor.add_timeout(0.02, lambda: processor.seen.put(threading.current_thread().name))
        bench.run(processor)
    assert processor.seen.next() == 'scheduler-of-a-test'


def test_a_timer_may_be_cancelled(bench):
    class Timing(Processor):
        @messaging.MessageHandler('command', 'time')
        def msg_time(self, content):
            self.add_timeout(0.02, lambda: self.seen.put('cancelled')).cancel()
            self.add_timeout(0.04, lambda: self.seen.put('kept'))

    processor = Timing()
    bench.run(processor)
    bench.producer().message_time()
    assert processor.seen.next() == 'kept'
    assert processor.seen.empty()


def test_add_timeout_without_a_callback_sleeps(bench, monkeypatch):
    slept = []
    monkeypatch.setattr('time.sleep', slept.append)
    bench.closing(Processor([])).add_timeout(3)
    assert slept == [3]


# Starting and stopping


def test_stop_consuming_hands_back_what_was_prefetched_and_start_consuming_goes_on(bench):
    class Stopping(Echo):
        @messaging.MessageHandler('command', 'stop')
        def msg_stop(self, content):
            self.stop_consuming()

    processor = Stopping()
    producer = bench.producer()
    producer.message_stop()
    for number in range(5):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    bench.run(processor)
    eventually(lambda: bench.consumers('echo-queue') == 0 and bench.count('echo-queue') == 5)
    assert processor.seen.empty()
    processor.start_consuming()
    assert processor.seen.take(5) == [0, 1, 2, 3, 4]


def test_stop_consuming_may_be_called_from_another_thread(bench):
    processor = Echo()
    bench.run(processor)
    producer = bench.producer()
    producer.message_echo(1)
    processor.seen.next()
    processor.stop_consuming()
    producer.message_echo(2).wait(TIMEOUT)
    assert bench.count('echo-queue') == 1
    processor.start_consuming()
    assert processor.seen.next() == 2


def test_a_processor_that_never_ran_can_be_closed(bench):
    messaging.MessageProcessor({}, EQK).close()


# Quit


def test_quit_is_acknowledged_and_ends_the_loop_and_the_program_runs_on(bench):
    bench.dead()
    processor = bench.closing(Echo(GUARDED_EQK))
    bench.producer().message_quit()
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(processor)
    for _ in scheduler.main():
        pass
    processor.close()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 0}


def test_quit_cancels_the_consumers_and_hands_back_what_was_prefetched(bench):
    processor = Echo()
    producer = bench.producer()
    producer.message_echo('before')
    producer.message_quit()
    for number in range(5):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    bench.run(processor).wait()
    assert processor.seen.next() == 'before'
    assert processor.seen.empty()
    assert bench.consumers('echo-queue') == 0
    assert bench.count('echo-queue') == 5
    assert [bench.get('echo-queue').parameters for _ in range(5)] == [0, 1, 2, 3, 4]


def test_quit_cancels_the_consumers_of_every_processor_in_the_loop(bench):
    class Slow(Echo):
        """Begins, and then has more in its inbox than it can handle before the other one quits."""

        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            super().msg_echo(content)
            if content['parameters'] == 0:
                quitter.message_quit().wait(TIMEOUT)
            else:
                threading.Event().wait(0.05)

    quitter = bench.producer(OtherProducer)
    slow, quitting = Slow(), Processor([(OtherExchange, [('other-queue', 'other-rk')])])
    producer = bench.producer()
    for number in range(50):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    bench.run(slow, quitting).wait()
    handled = slow.seen.qsize()
    assert 1 <= handled < 50
    assert bench.consumers('echo-queue') == bench.consumers('other-queue') == 0
    assert bench.count('echo-queue') == 50 - handled


def test_what_a_handler_published_before_quit_is_not_lost(bench):
    queue = bench.collect(OtherExchange, 'other-rk')
    processor = Forwarding(bench.producer(OtherProducer))
    bench.dead()
    producer = bench.producer()
    for number in range(100):
        producer.message_forward(number)
    producer.message_quit()
    bench.run(processor).wait()
    assert bench.count(queue) == 100
    assert bench.broker.queues()['echo-queue'] == 0


def test_quit_may_be_overridden(bench):
    class Stubborn(Echo):
        def msg_quit(self, content):
            self.seen.put('no')

    processor = Stubborn()
    bench.run(processor)
    producer = bench.producer()
    producer.message_quit()
    producer.message_echo('still here')
    assert processor.seen.take(2) == ['no', 'still here']


def test_a_handler_may_raise_exit_scheduler(bench):
    class Leaving(Processor):
        @messaging.MessageHandler('command', 'leave')
        def msg_leave(self, content):
            raise microthreads.ExitScheduler

    bench.dead()
    running = bench.run(Leaving(GUARDED_EQK))
    bench.producer().message_leave()
    running.wait()
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 0}


def test_the_handlers_after_the_one_that_quits_still_run(bench):
    class Quitting(Processor):
        @messaging.MessageHandler('command', 'quit')
        def after_quit(self, content):
            self.seen.put('after')

    processor = Quitting()
    running = bench.run(processor)
    bench.producer().message_quit()
    running.wait()
    assert processor.seen.next() == 'after'


# Restart


COMPONENT = (
    ECHO
    + """
import os, sys

class EchoProducer(messaging.GenericProducer):
    eks = [(EchoExchange, 'pending')]

class Component(messaging.MessageProcessor):
    @messaging.MessageHandler('command', 'last')
    def msg_last(self, content):
        for number in range(100):
            producer.message_pending(number)
        raise messaging.AckAndRestart

producer = EchoProducer()
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(Component({}, [(EchoExchange, [('echo-queue', 'echo-rk')])]))
print('started', os.getpid(), __name__, sys.argv[1:], 'faulthandler' in sys._xoptions, flush=True)
for _ in scheduler.main():
    pass
print('ended', flush=True)
"""
)


def test_restart_runs_the_same_program_again_with_its_flags_and_arguments(bench, run_module, tmp_path):
    (tmp_path / 'component.py').write_text(COMPONENT)
    program = run_module('component', ['an argument'])
    first = program.expect('started')
    bench.producer().message_restart()
    assert program.expect('started', times=2) == first
    assert first == f"started {program.pid} __main__ ['an argument'] True"
    bench.producer().message_quit()
    assert program.wait() == 0
    assert program.lines == [first, first, 'ended']
    assert bench.count('echo-queue') == 0


def test_restart_sends_what_is_pending_and_hands_back_what_was_prefetched(bench, run_program):
    queue = bench.collect(key='pending')
    bench.consumer()
    producer = bench.producer()
    producer.message_last()
    producer.message_unknown()
    program = run_program(COMPONENT)
    program.expect('started', times=2)
    producer.message_quit()
    assert program.wait() == 0
    assert bench.count(queue) == 100
    assert bench.count('echo-queue') == 0


# Chains of components


def test_a_message_is_acknowledged_after_what_its_handler_published_was_confirmed(bench, monkeypatch):
    bench.collect(OtherExchange, 'other-rk')
    bench.dead()
    processor = Forwarding(bench.producer(OtherProducer))
    bench.run(processor)
    bench.publish(command('note', 'warm'))
    processor.seen.next()
    held = HeldConfirms(monkeypatch)
    bench.publish(command('forward', 'waits'))
    bench.publish(command('note', 'does not wait'))
    assert processor.seen.take(2) == [('waits', False), ('does not wait', False)]
    held.arrived.next()
    processor.consumer.channel.basic_qos(prefetch_count=64)  # answered after the acknowledgements have gone out
    held.forget()
    bench.close_all_connections()
    assert processor.seen.next() == ('waits', True)
    eventually(lambda: processor.receipt.confirmed)
    assert processor.seen.empty()


def test_a_message_whose_handlers_publication_is_confirmed_is_acknowledged(bench):
    queue = bench.collect(OtherExchange, 'other-rk')
    bench.dead()
    processor = Forwarding(bench.producer(OtherProducer))
    running = bench.run(processor)
    bench.producer().message_forward('text')
    assert processor.seen.next() == ('text', False)
    assert bench.await_message(queue).parameters == 'text'
    running.stop()
    counts = bench.broker.queues()
    assert (counts['echo-queue'], counts['dead']) == (0, 0)


def test_a_message_whose_handlers_publication_fails_is_rejected_not_lost(bench, monkeypatch):
    monkeypatch.setattr(failures, 'AFTER_REFUSAL', messaging.Retry(messaging.Nacked, delays=(0.1,)))
    full = bench.collect(OtherExchange, 'other-rk', arguments={'x-max-length': 1, 'x-overflow': 'reject-publish'})
    bench.dead()
    processor = Forwarding(bench.producer(OtherProducer))
    running = bench.run(processor)
    producer = bench.producer()
    producer.message_forward('fits')
    producer.message_forward('does not fit')
    processor.seen.take(3)
    bench.log.expect('ERROR', 'is rejected, because what its handler published failed')
    running.stop()
    assert bench.get(full).parameters == 'fits'
    assert bench.get('dead').parameters == 'does not fit'
    assert bench.count('echo-queue') == 0


def test_a_chain_of_components_passes_a_message_on(bench):
    class Passing(Echo):
        def __init__(self, number, producer):
            self.number, self.producer = number, producer
            super().__init__([(EchoExchange, [(f'queue-{number}', f'key-{number}')])])

        def msg_echo(self, content):
            super().msg_echo(content)
            self.producer.message_echo([*content['parameters'], self.number], _key=f'key-{self.number + 1}')

    producer = bench.producer()
    processors = [Passing(number, producer) for number in range(5)]
    bench.run(*processors)
    producer.message_echo([], _key='key-0')
    assert [processor.seen.next() for processor in processors] == [list(range(number)) for number in range(5)]


# Several in one scheduler


def test_two_processors_in_one_scheduler_both_handle_their_messages(bench):
    first, second = Echo(), Echo([(OtherExchange, [('other-queue', 'other-rk')])])
    bench.run(first, second)
    producers = bench.producer(), bench.producer(OtherProducer)
    for number in range(20):
        for producer in producers:
            producer.message_echo(number)
    assert first.seen.take(20) == list(range(20))
    assert second.seen.take(20) == list(range(20))


FLOOD = 600


def test_a_flooded_processor_leaves_turns_to_the_others(bench):
    begun, all_is_there = threading.Event(), threading.Event()

    class Counting(microthreads.MicroThread):
        turns = 0

        def step(self):
            self.turns += 1

    class Flooded(Echo):
        consumer_class = type('Consumer', (messaging.GenericConsumer,), {'prefetch_count': FLOOD})

        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            begun.set()
            assert all_is_there.wait(TIMEOUT)  # the scheduler stands still meanwhile
            self.seen.put((content['parameters'], counting.turns))

    class Other(Echo):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(flooded.seen.qsize())

    counting, flooded = Counting(), Flooded()
    others = [Other([(OtherExchange, [(f'other-{number}', 'other-rk')])]) for number in range(2)]
    producer = bench.producer()
    for number in range(FLOOD):
        producer.message_echo(number)
    producer.flush(TIMEOUT)
    running = bench.run(*others, flooded)
    running.scheduler.add_microthread(counting)
    assert begun.wait(TIMEOUT)
    bench.producer(OtherProducer).message_echo('other')
    eventually(lambda: len(flooded.consumer.delivery_source.channel.inbox) == FLOOD - 1)
    eventually(lambda: all(other.consumer.delivery_source.channel.inbox for other in others))
    all_is_there.set()
    assert all(other.seen.next() < FLOOD for other in others)
    numbers, turns = zip(*flooded.seen.take(FLOOD), strict=True)
    assert numbers == tuple(range(FLOOD))
    assert turns[-1] > turns[0]
    running.stop()


def test_two_processors_share_a_queue_in_turn(bench):
    first, second = Echo(), Echo()
    bench.run(first, second)
    eventually(lambda: bench.consumers('echo-queue') == 2)
    producer = bench.producer()
    for number in range(10):
        producer.message_echo(number)
        eventually(lambda number=number: first.seen.qsize() + second.seen.qsize() == number + 1)
    assert first.seen.qsize() == second.seen.qsize() == 5


def test_messages_of_one_queue_are_handled_in_their_order(bench):
    processor = Echo()
    bench.run(processor)
    producer = bench.producer()
    for number in range(500):
        producer.message_echo(number)
    assert processor.seen.take(500) == list(range(500))


# Lost connections


def test_a_processor_carries_on_after_its_connection_was_closed(bench):
    processor = Echo()
    bench.run(processor)
    producer = bench.producer()
    for number in range(3):
        producer.message_echo(number).wait(TIMEOUT)
        while processor.seen.next() != number:
            pass  # the one before may come again: its acknowledgement may have been lost
        bench.close_all_connections()


def test_a_queue_deleted_under_a_running_processor_is_consumed_again(bench):
    processor = Echo()
    bench.run(processor)
    producer = bench.producer()
    producer.message_echo('before')
    processor.seen.next()
    bench.bare.queue_delete('echo-queue')
    bench.log.expect('WARNING', "queue 'echo-queue' went away")
    bench.await_consumed('echo-queue')
    producer.message_echo('after')
    assert processor.seen.next() == 'after'
