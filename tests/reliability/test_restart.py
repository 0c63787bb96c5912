"""``restart``: the same program once more, in the same process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.messaging import TIMEOUT, Bench, EchoProducer, echo_producer, eventually
from support.programs import ECHO, Program
from support.recovery import Control

COMPONENT = (
    ECHO
    + """
import json, os, sys, time

class Producer(messaging.GenericProducer):
    eks = [(EchoExchange, 'report-rk')]

class Component(messaging.MessageProcessor):
    consumer_class = Greedy

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        print('echo', content['parameters'])

    @messaging.MessageHandler('command', 'slow')
    def msg_slow(self, content):
        print('slow begun')
        time.sleep(content['parameters'])

    @messaging.MessageHandler('command', 'report_and_restart')
    def msg_report_and_restart(self, content):
        for number in range(100):
            producer.message_report(number)
        raise messaging.AckAndRestart

    @messaging.RpcHandler('command', 'restart_and_tell')
    def rpc_restart_and_tell(self, content, reply_func):
        reply_func(messaging.MessageResult('at once'))
        raise messaging.AckAndRestart

producer = Producer()
scheduler = microthreads.MicroScheduler()
for number in (1, 2):
    scheduler.add_microthread(Component({}, [(EchoExchange, [(f'queue-{number}', f'key-{number}')])]))
print(json.dumps({
    'pid': os.getpid(), 'name': __name__, 'module': __spec__ and __spec__.name, 'argv': sys.argv[1:],
    'optimize': sys.flags.optimize, 'faulthandler': sys._xoptions.get('faulthandler'), 'words': sys.orig_argv,
    'directory': os.getcwd(),
}))
for _ in scheduler.main():
    pass
print('quit')
"""
)


class Component:
    """The component in a process of its own, started as ``python -O -m component 'an argument'``."""

    def __init__(self, run_program: Callable[..., Program], directory: Path) -> None:
        (directory / 'component.py').write_text(COMPONENT)
        self.program = run_program('-O', ['-m', 'component', 'an argument', '-x'], cwd=directory)
        self.first = self.started(1)

    def started(self, times: int) -> dict[str, Any]:
        """Wait until it has been started so many times, and return what it said about itself then."""
        about: dict[str, Any] = json.loads(self.program.expect('"pid"', times=times))
        return about


@pytest.fixture
def component(bench: Bench, run_program: Callable[..., Program], tmp_path: Path) -> Component:
    return Component(run_program, tmp_path)


@pytest.fixture
def producer(bench: Bench) -> EchoProducer:
    return bench.producer(echo_producer('key-1'))  # type: ignore[no-any-return]


def test_the_same_program_runs_again_in_the_same_process(component: Component, producer: EchoProducer) -> None:
    assert component.first['module'] == 'component'
    assert component.first['name'] == '__main__'
    assert component.first['argv'] == ['an argument', '-x']
    assert component.first['optimize'] == 1
    assert component.first['faulthandler'] is True
    producer.message_restart()
    assert component.started(2) == component.first


def test_the_message_is_acknowledged_before_the_program_is_replaced(
    bench: Bench, component: Component, producer: EchoProducer
) -> None:
    producer.message_restart()
    component.started(2)
    producer.message_quit()
    assert component.program.wait() == 0, component.program.output
    assert component.program.count('"pid"') == 2, 'restarted once more: the message was delivered again'
    assert bench.broker.queues() == {'queue-1': 0, 'queue-2': 0}


def test_what_was_prefetched_is_handled_after_the_restart(component: Component, producer: EchoProducer) -> None:
    producer.message_slow(0.3)
    component.program.expect('slow begun')
    producer.message_restart()
    for number in range(5):
        producer.message_echo(number)
        producer.message_echo(number + 100, _key='key-2')
    producer.flush(TIMEOUT)
    for number in range(5):
        component.program.expect(f'echo {number}')
        component.program.expect(f'echo {number + 100}')
    producer.message_quit()
    component.program.wait()
    lines = component.program.lines
    restarted = max(number for number, line in enumerate(lines) if '"pid"' in line)
    assert all(lines.index(f'echo {number}') > restarted for number in range(5)), component.program.output
    assert component.program.count('echo') == 10, 'each of them once'


def test_what_was_published_is_sent_before_the_restart(
    bench: Bench, component: Component, producer: EchoProducer
) -> None:
    reports = bench.collect(key='report-rk')
    producer.message_report_and_restart()
    component.started(2)
    assert [bench.get(reports).parameters for _ in range(100)] == list(range(100))
    assert bench.count('queue-1') == 0


def test_an_rpc_is_answered_before_the_restart(component: Component, producer: EchoProducer) -> None:
    assert producer.rpc_restart_and_tell().body['content']['value'] == 'at once'
    component.started(2)


def test_it_can_be_restarted_again_and_again(bench: Bench, component: Component, producer: EchoProducer) -> None:
    for times in range(2, 5):
        producer.message_restart()
        assert component.started(times) == component.first
    eventually(lambda: bench.consumers('queue-1') == 1)


def test_a_generic_application_claims_its_own_queue_again(bench: Bench, run_program: Callable[..., Program]) -> None:
    """Its own queue is exclusive: the old connection has to be gone before the new one claims it."""
    program = run_program("""
from postage import messaging, microthreads
from postage.generic_application import GenericApplication
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(GenericApplication(messaging.Fingerprint('phoenix', pid='1', host='a'), groups=['birds']))
print('ready')
scheduler.run()
""")
    control = bench.producer(Control)
    for times in range(1, 4):
        program.expect('ready', times=times)
        assert control.rpc_ping(_key='phoenix#birds', _timeout=2, _max_retry=5)
        control.message_restart(_key='phoenix')
    program.expect('ready', times=4)
    control.message_quit(_key='phoenix')
    assert program.wait() == 0, program.output
