"""The demos as a reader would run them: programs in several shells, on either broker."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.brokers import Broker
from support.programs import Program

DEMOS = Path(__file__).parents[2] / 'demos'


class Demo:
    """Starts the programs of the demos on one broker."""

    def __init__(self, start: Callable[..., Program], broker: Broker) -> None:
        self._start = start
        self._environment = {'POSTAGE_URL': broker.url}

    def receiver(self, demo: str) -> Program:
        program = self.program(demo, 'echo_receive.py')
        program.expect('Waiting for messages')
        return program

    def send(self, demo: str) -> Program:
        """Run the sender to its end."""
        sender = self.program(demo, 'echo_send.py')
        assert sender.wait() == 0, sender.output
        return sender

    def program(self, demo: str, name: str) -> Program:
        return self._start(DEMOS / demo / name, environment=self._environment)


@pytest.fixture
def demo(run_program: Callable[..., Program], broker: Broker) -> Demo:
    return Demo(run_program, broker)


def test_the_basic_receiver_prints_what_the_sender_sends(demo: Demo) -> None:
    receiver = demo.receiver('basic_echo')
    demo.send('basic_echo')
    receiver.expect('A test message')


def test_ctrl_c_ends_a_receiver_without_a_traceback(demo: Demo) -> None:
    receiver = demo.receiver('basic_echo')
    receiver.send_signal(signal.SIGINT)
    assert receiver.wait() == 0
    assert receiver.lines == ['Waiting for messages']


def test_two_advanced_receivers_take_single_messages_in_turn(demo: Demo) -> None:
    receivers = [demo.receiver('advanced_echo') for _ in range(2)]
    for _ in range(4):
        demo.send('advanced_echo')
    for receiver in receivers:
        receiver.expect('A single test message', times=2)


def test_all_advanced_receivers_get_the_fanout_message(demo: Demo) -> None:
    receivers = [demo.receiver('advanced_echo') for _ in range(2)]
    demo.send('advanced_echo')
    for receiver in receivers:
        receiver.expect('A fanout test message')
    assert sum(receiver.count('A single test message') for receiver in receivers) == 1


def test_the_advanced_receiver_prints_who_sent_the_message(demo: Demo) -> None:
    receiver = demo.receiver('advanced_echo')
    sender = demo.send('advanced_echo')
    line = receiver.expect('Message fingerprint:')
    assert "'name': 'echo_send'" in line
    assert f"'pid': '{sender.pid}'" in line


def test_the_rpc_sender_prints_the_value_of_the_reply(demo: Demo) -> None:
    receiver = demo.receiver('rpc_echo')
    sender = demo.send('rpc_echo')
    receiver.expect('RPC test message')
    assert sender.lines == ['RPC message received']


def test_programs_that_end_right_after_sending_lose_nothing(demo: Demo, broker: Broker) -> None:
    receiver = demo.receiver('basic_echo')
    for _ in range(5):
        together = [demo.program('basic_echo', 'echo_send.py') for _ in range(4)]
        assert [sender.wait() for sender in together] == [0, 0, 0, 0]
    receiver.expect('A test message', times=20)
    assert receiver.count('A test message') == 20
    assert broker.queues() == {'echo-queue': 0}


def test_all_demos_run_on_a_broker_given_by_its_url(run_program: Callable[..., Program], broker: Broker) -> None:
    demos = run_program(DEMOS / 'run_all.py', environment={'POSTAGE_URL': broker.url})
    assert demos.wait() == 0, demos.output


def test_all_demos_bring_the_embedded_broker_and_name_whose_line_is_whose(
    run_program: Callable[..., Program],
) -> None:
    demos = run_program(DEMOS / 'run_all.py')
    assert demos.wait() == 0, demos.output
    demos.expect('[broker]')
    demos.expect('[basic receiver]      A test message')
    assert '\x1b' not in demos.output


@pytest.mark.skipif(sys.platform != 'linux', reason='looks for processes in /proc')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ending_the_demos_early_leaves_no_process_behind(
    run_program: Callable[..., Program], number: signal.Signals
) -> None:
    marker = f'POSTAGE_TEST_MARKER={os.urandom(8).hex()}'
    demos = run_program(DEMOS / 'run_all.py', environment=dict([marker.split('=')]))
    demos.expect('Waiting for messages')
    assert processes_with(marker)
    demos.send_signal(number)
    assert demos.wait() == 128 + number
    assert processes_with(marker) == []


def processes_with(variable: str) -> list[int]:
    """Return the processes whose environment holds the variable."""
    found = []
    for directory in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if variable.encode() in (directory / 'environ').read_bytes():
                found.append(int(directory.name))
    return found
