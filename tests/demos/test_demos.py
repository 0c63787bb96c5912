"""The demos as a reader would run them: programs in several shells, on either broker."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postage.dead_letters import SQLiteDeadLetters
from support.brokers import Broker, RabbitMQ
from support.messaging import eventually
from support.programs import Module, Program
from support.soak import IS_SOAK

DEMOS = Path(__file__).parents[2] / 'demos'


class Demo:
    """Starts the programs of the demos on one broker."""

    def __init__(self, start: Callable[..., Program], broker: Broker) -> None:
        self._start = start
        self.environment = {'POSTAGE_URL': broker.url}

    def receiver(self, demo: str, name: str = 'echo_receive.py', *arguments: str) -> Program:
        program = self.program(demo, name, *arguments)
        program.expect('Waiting for messages')
        return program

    def send(self, demo: str, name: str = 'echo_send.py') -> Program:
        """Run the sender to its end."""
        sender = self.program(demo, name)
        assert sender.wait() == 0, sender.output
        return sender

    def program(self, demo: str, name: str, *arguments: str) -> Program:
        return self._start(DEMOS / demo / name, arguments, environment=self.environment)


@pytest.fixture(params=['embedded', 'rabbitmq'] if IS_SOAK else ['rabbitmq'])
def broker(request: pytest.FixtureRequest) -> Broker:
    """A broker. On the embedded one all demos run at once, further down; in ``make soak`` also one by one."""
    found: Broker = request.getfixturevalue(request.param)
    return found


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


def test_concurrent_questions_are_answered_at_once(demo: Demo) -> None:
    answerer = demo.receiver('concurrent_rpc', 'concurrent_answer.py')
    asker = demo.send('concurrent_rpc', 'concurrent_ask.py')
    answerer.expect('Asked for 100 prices')
    told = re.fullmatch(
        r'500 answers at once: 124750, in (\S+) s\n'
        r'A coroutine and a thread answered \[5, 4\], in (\S+) s\n'
        r'A list of 100 things costs 400, in (\S+) s',
        asker.output,
    )
    assert told, asker.output
    # One after the other they would take 250, 1 and 50 seconds.
    assert float(told[1]) < 25
    assert float(told[3]) < 10


def test_the_answers_of_all_stations_are_gathered_and_the_silent_ones_named(demo: Demo) -> None:
    stations = {
        name: demo.receiver('rpc_gather', 'gather_answer.py', name, *words)
        for name, *words in (('Oslo', '3'), ('Cairo', '31'), ('Quito', '14', '60'))
    }
    asker = demo.program('rpc_gather', 'gather_ask.py', 'Oslo', 'Cairo', 'Quito', 'Lima')
    assert asker.wait() == 0, asker.output
    assert sorted(asker.lines[:2]) == ['Cairo: 31 degrees', 'Oslo: 3 degrees']
    assert asker.lines[2:] == ['Lima was silent', 'Quito was silent']
    stations['Quito'].expect('Nobody waits for it any more')


def test_a_letter_is_retried_until_the_postman_is_there(demo: Demo, tmp_path: Path) -> None:
    office = demo.receiver('retries', 'post_office.py', str(tmp_path / 'letters.db'))
    demo.send('retries', 'send_letters.py')
    office.expect('A letter for Ann was brought to Elm Street after 2 failures')
    assert office.count('Ann has to wait') == 2


def test_a_dead_letter_is_kept_and_arrives_when_it_is_replayed(
    demo: Demo, tmp_path: Path, run_module: Callable[..., Module]
) -> None:
    letters = str(tmp_path / 'letters.db')
    office = demo.receiver('retries', 'post_office.py', letters)
    demo.send('retries', 'send_letters.py')
    office.expect('Nobody knows where Bob lives')
    demo.send('retries', 'move_in.py')
    with SQLiteDeadLetters(letters) as store:
        eventually(lambda: store.count() == 1)
    replay = run_module('postage.cli', ['dead-letters', 'replay', '--store', letters], environment=demo.environment)
    assert (replay.wait(), replay.lines) == (0, ['1 letter sent'])
    office.expect('A letter for Bob was brought to Oak Street after 2 failures')


def test_programs_that_end_right_after_sending_lose_nothing(demo: Demo, broker: Broker) -> None:
    receiver = demo.receiver('basic_echo')
    rounds = 5 if IS_SOAK else 2
    for _ in range(rounds):
        together = [demo.program('basic_echo', 'echo_send.py') for _ in range(4)]
        assert [sender.wait() for sender in together] == [0, 0, 0, 0]
    receiver.expect('A test message', times=4 * rounds)
    assert receiver.count('A test message') == 4 * rounds
    assert broker.queues() == {'echo-queue': 0}


def test_the_control_of_applications_ends_them_where_it_is_told_to(demo: Demo) -> None:
    application = demo.program('generic_application', 'application.py', 'monitor')
    application.expect('Running as')
    assert demo.program('generic_application', 'control.py', 'monitor', '--quit').wait() == 0
    assert application.wait() == 0


@pytest.mark.timeout(120)
def test_all_demos_run_on_a_rabbitmq_given_by_its_url(run_program: Callable[..., Program], rabbitmq: RabbitMQ) -> None:
    # The others are above, one by one.
    names = [] if IS_SOAK else ['generic_application', 'order_system']
    demos = run_program(DEMOS / 'run_all.py', names, environment={'POSTAGE_URL': rabbitmq.url})
    assert demos.wait(90) == 0, demos.output
    demos.expect('a shop took orders')
    demos.expect('four applications were addressed')
    assert demos.count('[broker]') == demos.count('the one that POSTAGE_URL') == 1


def test_a_demo_that_there_is_not_is_told(run_program: Callable[..., Program]) -> None:
    demos = run_program(DEMOS / 'run_all.py', ['basic', 'order'])
    assert demos.wait() == 2
    assert 'there is no order; there are basic, advanced, ' in demos.output


@pytest.mark.timeout(120)
def test_all_demos_bring_the_embedded_broker_and_name_whose_line_is_whose(
    run_program: Callable[..., Program],
) -> None:
    demos = run_program(DEMOS / 'run_all.py')
    assert demos.wait(90) == 0, demos.output
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
