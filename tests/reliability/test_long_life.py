"""A component that lives for months: what it needs does not grow with what it has been through.

The short form is part of every test run. The long one, 200 reconnects and 100,000 messages, runs where
``POSTAGE_SOAK`` is set, as ``make soak`` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support.messaging import Bench
from support.programs import ECHO, Program
from support.soak import IS_SOAK

COMPONENT = (
    ECHO
    + """
import gc, logging, os, sys, threading, time

logging.basicConfig(format='%(levelname)s %(message)s')
logging.getLogger('postage').setLevel(logging.INFO)
reconnects, messages = map(int, sys.argv[1:])

class Producer(messaging.GenericProducer):
    eks = [(EchoExchange, 'echo-rk')]
    rpc_timeout = 2
    max_retry = 10

class Component(messaging.MessageProcessor):
    missing = set()

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        number = content['parameters']
        self.missing.discard(number)
        if number % 10 == 0:
            producer.message_report(number, _key='report-rk')

    @messaging.MessageHandler('command', 'report')
    def msg_report(self, content):
        pass

    @messaging.RpcHandler('command', 'ask')
    def rpc_ask(self, content, reply_func):
        reply_func(messaging.MessageResult(content['parameters']))

class Again(logging.Handler):
    '''Counts how often both connections have come back.'''
    counts = {'publishing': 0, 'consuming': 0}

    def emit(self, record):
        text = record.getMessage()
        if ' again (' in text:
            self.counts['publishing' if '(publishing)' in text else 'consuming'] += 1

def work(until):
    '''Publish and ask until `until()`.'''
    global sent
    while not until():
        for _ in range(50):
            Component.missing.add(sent)
            producer.message_echo(sent)
            sent += 1
        answer = producer.rpc_ask(sent)
        assert answer, answer
        producer.flush(30)
        while Component.missing:
            time.sleep(0.001)

def need():
    '''Resident memory in KiB, and the number of threads.'''
    gc.collect()
    with open('/proc/self/statm') as statm:
        pages = int(statm.read().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') // 1024, threading.active_count()

again = Again()
logging.getLogger('postage').addHandler(again)
producer = Producer()
scheduler = microthreads.MicroScheduler()
bindings = [('echo-queue', 'echo-rk'), ('echo-queue', 'report-rk')]
component = Component({}, [(EchoExchange, bindings)])
scheduler.add_microthread(component)
thread = threading.Thread(target=lambda: [None for _ in scheduler.main()], daemon=True)
thread.start()
sent = 0

work(lambda: sent >= messages // 5)
print('cut me')
for cut in range(1, reconnects + 1):
    work(lambda: min(again.counts.values()) >= cut and sent >= messages * (1 + 4 * cut / reconnects) / 5)
    if cut == max(1, reconnects // 5):
        print('needs_before', *need())
    if cut < reconnects:
        print('cut me')
print('needs_after', *need())
producer.message_quit().wait()
thread.join()
component.close()
producer.close()
print('threads', *(each.name for each in threading.enumerate() if each.name.startswith('postage')))
"""
)


@dataclass(frozen=True)
class Form:
    """How long a life is tried.

    :ivar growth: KiB by which the memory may grow after the first fifth
    :ivar timeout: seconds for all of it
    """

    reconnects: int
    messages: int
    growth: int
    timeout: float


SHORT = Form(reconnects=10, messages=3_000, growth=1_536, timeout=50)
LONG = Form(reconnects=200, messages=100_000, growth=2_048, timeout=900)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads its memory in /proc')
@pytest.mark.timeout(1000 if IS_SOAK else 120)
def test_memory_and_threads_stay_what_they_were(bench: Bench, run_program: Callable[..., Program]) -> None:
    form = LONG if IS_SOAK else SHORT
    component = run_program(COMPONENT, [str(form.reconnects), str(form.messages)])
    for times in range(1, form.reconnects + 1):
        component.expect('cut me', form.timeout, times)
        bench.broker.close_all_connections()
    after = component.expect('needs_after', form.timeout)
    assert component.wait() == 0, component.output
    memory, threads = need(after)
    memory_before, threads_before = need(component.expect('needs_before'))
    print(f'{memory_before} KiB before, {memory} KiB after {form.reconnects} reconnects, {form.messages} messages')
    assert memory - memory_before < form.growth, f'{memory_before} KiB have become {memory} KiB'
    assert threads == threads_before
    assert component.lines[-1] == 'threads', 'left behind'
    assert not [line for line in component.lines if line.startswith('ERROR')], component.output


def need(line: str) -> tuple[int, int]:
    _, memory, threads = line.split()
    return int(memory), int(threads)
