"""A message that kills its process is given up after so many deliveries, on classic and on quorum queues."""

from __future__ import annotations

import re

import pytest

from postage import messaging
from support.messaging import EQK, GUARDED_EQK, EchoExchange, Processor, command, eventually
from support.programs import ECHO

CRASHING = (
    ECHO
    + """
import logging, os, signal, sys
logging.basicConfig(level=logging.WARNING)
from postage.dead_letters import SQLiteDeadLetters

class Crashing(messaging.MessageProcessor):
    max_deliveries = 3
    dead_letters = SQLiteDeadLetters(sys.argv[2])

    @messaging.MessageHandler('command', 'kill')
    def msg_kill(self, content):
        print('killed', flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        print('handled', content['parameters'], flush=True)

queue = messaging.quorum('echo-queue') if sys.argv[1] == 'quorum' else 'echo-queue'
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(Crashing({}, [(EchoExchange, [(queue, 'echo-rk')])]))
for _ in scheduler.main():
    pass
"""
)


@pytest.mark.parametrize('kind', ['classic', 'quorum'])
def test_a_message_that_kills_its_process_is_dead_after_so_many_deliveries(bench, run_program, tmp_path, kind):
    from postage.dead_letters import SQLiteDeadLetters

    queue = messaging.quorum('echo-queue') if kind == 'quorum' else 'echo-queue'
    bench.consumer([(EchoExchange, [(queue, 'echo-rk')])]).close()
    producer = bench.producer()
    producer.message_kill('poison')
    for number in range(5):
        producer.message_echo(number)
    producer.flush(10)
    path = tmp_path / 'letters.db'
    runs = []
    for _ in range(3):
        runs.append(run_program(CRASHING, [kind, str(path)]))
        assert runs[-1].wait() == -9
    runs.append(run_program(CRASHING, [kind, str(path)]))
    runs[-1].expect('is given up')
    producer.message_quit()
    assert runs[-1].wait() == 0
    assert sum(run.count('killed') for run in runs) == 3
    # Not by lines: a log line of another thread may come between a print and its end.
    handled = {number for run in runs for number in re.findall(r'handled (\d)', run.output)}
    assert handled == {'0', '1', '2', '3', '4'}
    with SQLiteDeadLetters(path) as store:
        (stored,) = store.letters()
    assert (stored.letter.reason, stored.letter.queue) == ('deliveries', 'echo-queue')
    assert stored.letter.message == 'it was delivered 3 times and never handled to its end'
    assert stored.letter.exchange == EchoExchange.name


class Limited(Processor):
    max_deliveries = 2

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        self.seen.put((content['parameters'], messaging.current_delivery().headers))


def test_a_message_that_was_delivered_once_before_is_counted_and_handled(bench):
    bench.consumer().close()
    bench.producer().message_echo('hello')
    bench.producer().flush(10)
    bench.bare.basic_get('echo-queue')
    bench.bare.close()
    processor = Limited()
    bench.run(processor)
    text, headers = processor.seen.next()
    assert text == 'hello'
    assert headers['x-postage-deliveries'] == 1
    assert headers['x-postage-exchange'] == EchoExchange.name


def test_a_message_delivered_too_often_is_rejected_where_there_is_no_store(bench):
    bench.dead()
    processor = Limited(GUARDED_EQK)
    bench.publish(command(parameters='bad'), headers={'x-postage-deliveries': 2})
    bench.publish(command(parameters='good'), headers={'x-postage-deliveries': 1})
    bench.run(processor)
    assert processor.seen.next()[0] == 'good'
    assert bench.await_message('dead').parameters == 'bad'
    bench.log.expect('is given up', 'it was delivered 2 times')


def test_the_caller_of_an_rpc_that_is_given_up_is_told(bench):
    processor = Limited()
    bench.run(processor)
    result = bench.producer().rpc_echo(_headers={'x-postage-deliveries': 5})
    assert result.body['content']['message'] == 'it was delivered 5 times and never handled to its end'


def test_no_more_messages_are_fetched_than_are_handled_at_the_same_time(bench):
    processor = Limited()
    assert processor.consumer.prefetch_count == 1
    bench.closing(processor)


def test_a_prefetch_count_of_the_user_s_is_respected(bench):
    consumer = type('Greedy', (messaging.GenericConsumer,), {'prefetch_count': 7})
    processor = bench.closing(type('Greedily', (Limited,), {'consumer_class': consumer})())
    assert type(processor.consumer) is consumer


def test_attempts_go_on_being_counted_across_a_crash(bench):
    class Both(Processor):
        max_deliveries = 5

        @messaging.Retry(delays=(0.1, 0.1, 0.1))
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            headers = messaging.current_delivery().headers
            self.seen.put((headers.get('x-postage-attempts'), headers.get('x-postage-deliveries')))
            raise ValueError

    processor = Both()
    bench.publish(command(), headers={'x-postage-attempts': 1, 'x-postage-first-attempt': 1000})
    eventually(lambda: bench.count('echo-queue') == 1)
    bench.bare.basic_get('echo-queue')
    bench.bare.close()
    bench.run(processor)
    assert processor.seen.take(3) == [(1, 1), (2, None), (3, None)]


@pytest.mark.parametrize('limit', [0, -1, 'three', True, 1.5])
def test_a_limit_that_is_no_number_of_deliveries_is_refused(embedded, limit):
    with pytest.raises(messaging.ConfigurationError, match='max_deliveries must be 1 or more, or None'):
        type('Wrong', (messaging.MessageProcessor,), {'max_deliveries': limit})({}, EQK)
