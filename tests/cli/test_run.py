"""``postage run``: what it runs, how it ends, and what it says."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from postage.cli.run.options import Options
from postage.cli.run.supervisor import Supervisor
from support.brokers import Broker
from support.messaging import eventually
from support.programs import Module
from support.running import SHOP, Notes, ShopProducer

SLOW = (
    SHOP
    + """
import logging, re, threading, warnings

class Slow(Prices):
    @messaging.MessageHandler('command', 'price')
    def msg_price(self, content):
        print('begun %s\\n' % content['parameters'], end='', flush=True)  # in one piece, for others write there, too
        time.sleep(content['parameters'])
        print('done', content['parameters'], flush=True)

class Fails(Prices):
    @messaging.MessageHandler('command', 'price')
    def msg_price(self, content):
        raise KeyError('no such price')

class Named(messaging.MessageProcessor):
    def __init__(self, fingerprint):
        super().__init__(fingerprint, [])
        print('named', self.fingerprint['name'], flush=True)

class Ends(Prices):
    def main(self):
        yield
        raise OSError('the disk is gone')

class Wide(Prices):
    def main(self):
        print('concurrency', self.concurrency, flush=True)
        yield from super().main()

class Threaded(Prices):
    def __init__(self):
        super().__init__()
        threading.Thread(target=self.wait, name='its-own').start()

    def wait(self):
        while not os.path.exists('release'):
            time.sleep(0.05)

class Warns(Prices):
    def __init__(self):
        super().__init__()
        warnings.warn('be careful')
        threading.Thread(target=lambda: 1 / 0, name='counting').start()

class Careless(Prices):
    def __init__(self):
        super().__init__()
        third = logging.getLogger('third.party')
        third.error('%d of %d', 'one')
        third.error('where is it', stack_info=True)
        third.error('%s', type('Shy', (), {'__str__': lambda self: 1 / 0})())

class Deaf(Prices):
    @messaging.MessageHandler('command', 'price')
    def msg_price(self, content):
        print('begun', flush=True)
        re.match('(a+)+$', 'a' * 60 + 'b')  # years, in which no other thread of Python has a turn

def nothing():
    return []

number = 7
"""
)


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, embedded: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'shop.py').write_text(SLOW)
    monkeypatch.setenv('POSTAGE_URL', embedded.url)
    monkeypatch.setenv('NOTES', str(tmp_path / 'notes'))


@pytest.fixture
def start(run_module: Callable[..., Module]) -> Callable[..., Module]:
    """A function that starts ``postage run``."""
    return lambda *arguments, **environment: run_module('postage', ['run', *arguments], environment)


@pytest.fixture
def producer() -> Iterator[ShopProducer]:
    with ShopProducer() as producer:
        yield producer


def end(program: Module) -> int:
    program.send_signal(signal.SIGTERM)
    return program.wait()


# What it runs


def test_several_components_and_what_a_function_makes_run_in_one_scheduler(
    start: Callable[..., Module], producer: ShopProducer, tmp_path: Path, embedded: Broker
) -> None:
    program = start('shop:Prices', 'shop:both', 'shop:Named')
    program.expect('named Named')
    program.expect('worker 1 (pid')
    producer.message_price([1, 0])
    producer.message_price([2, 0])
    assert len({note.pid for note in Notes(tmp_path / 'notes').wait(2, 10)}) == 1
    assert sorted(embedded.queues()) == ['orders', 'prices']
    assert end(program) == 0, program.output


def test_workers_are_processes(start: Callable[..., Module]) -> None:
    program = start('shop:Prices', '--workers', '3')
    program.expect('is ready', times=3)
    assert len({line.split('pid ')[1].split(')')[0] for line in program.lines if 'is ready' in line}) == 3
    assert end(program) == 0


def test_options_are_variables_too(start: Callable[..., Module]) -> None:
    program = start(POSTAGE_RUN_COMPONENTS='shop:Wide', POSTAGE_RUN_WORKERS='2', POSTAGE_RUN_CONCURRENCY='7')
    program.expect('concurrency 7', times=2)
    program.expect('is ready', times=2)
    assert end(program) == 0


def test_options_stand_in_the_project_file_and_a_variable_goes_first(
    start: Callable[..., Module], tmp_path: Path
) -> None:
    project = tmp_path / 'pyproject.toml'
    project.write_text(
        '[tool.postage]\ncomponents = ["shop:Wide"]\nconcurrency = 3\nlog-format = "json"\nworkers = 1\n'
    )
    program = start(POSTAGE_RUN_CONCURRENCY='4')
    program.expect('concurrency 4')
    program.expect('"message": "worker 1')
    assert end(program) == 0


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('[tool.postage]\nwokers = 1\n', "[tool.postage] has the unknown key 'wokers'; it may have components, "),
        (
            '[tool.postage]\nworkers = "many"\n',
            "for pyproject.toml: [tool.postage] workers: 'many' is not a valid integer",
        ),
        ('[tool.postage]\nworkers = 2.5\n', "[tool.postage] workers: '2.5' is not a valid integer"),
        ('[tool.postage]\nworkers = true\n', "[tool.postage] workers: 'True' is not a valid integer"),
        ('[tool.postage]\nreload-dir = ["gone"]\n', "[tool.postage] reload-dir: Directory 'gone' does not exist"),
        ('[tool.postage]\nstatus = 9100\n', "'9100' is no HOST:PORT"),
        ('[tool.postage]\nworkers = []\n', '[tool.postage] workers must be a single value'),
        ('[tool.postage]\nlog-format = {a = 1}\n', '[tool.postage] log-format must be a single value'),
        ('[tool.postage]\ngrace = inf\n', '[tool.postage] grace: inf is no number up to 1e+09'),
        ('[tool.postage]\nreload-dir = "gone"\n', "[tool.postage] reload-dir: Directory 'gone' does not exist"),
        ('[tool.postage\n', 'pyproject.toml cannot be read: '),
        ('tool.postage = 5\n', 'pyproject.toml: [tool.postage] must be a section'),
        ('[[tool.postage]]\nworkers = 1\n', 'pyproject.toml: [tool.postage] must be a section'),
    ],
)
def test_what_is_wrong_in_the_project_file_is_named(
    start: Callable[..., Module], tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / 'pyproject.toml').write_text(text)
    program = start('shop:Prices')
    assert program.wait() in (1, 2)
    assert words in program.output
    assert 'Traceback' not in program.output


def test_a_variable_that_is_wrong_is_named(start: Callable[..., Module]) -> None:
    program = start('shop:Prices', POSTAGE_RUN_WORKERS='many')
    assert program.wait() == 2
    program.expect("Invalid value for POSTAGE_RUN_WORKERS: 'many' is not a valid integer")
    program = start('shop:nothing', POSTAGE_RUN_WORKRES='2')
    program.expect('POSTAGE_RUN_WORKRES means nothing; there are POSTAGE_RUN_COMPONENTS, ')
    program.wait()


def test_one_component_need_not_be_a_list(start: Callable[..., Module], tmp_path: Path) -> None:
    (tmp_path / 'pyproject.toml').write_text('[tool.postage]\ncomponents = "shop:Prices"\nreload-dir = "."\n')
    program = start()
    program.expect('is ready')
    assert end(program) == 0


# What cannot be run


@pytest.mark.parametrize(
    ('target', 'words'),
    [
        ('nonsense:It', "Error: nonsense:It: ModuleNotFoundError: No module named 'nonsense'"),
        ('shop:It', "Error: shop:It: AttributeError: module 'shop' has no attribute 'It'"),
        ('shop:number', 'Error: shop:number is no processor, application or other microthread, and makes none, but 7'),
        ('shop:nothing', 'Error: shop:nothing makes nothing: no processor, application or other microthread'),
        ('shop:ShopExchange', 'Error: shop:ShopExchange is no processor, application or other microthread'),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(start: Callable[..., Module], target: str, words: str) -> None:
    program = start(target)
    assert program.wait() == 1
    assert len(program.lines) == 1, program.output
    assert program.lines[0].startswith(words)


@pytest.mark.parametrize(
    'arguments',
    [
        (),
        ('shop',),
        ('amqp://localhost:5672',),
        ('shop:Prices', '--workers', '0'),
        ('shop:Prices', '--status', 'nonsense'),
        ('shop:Prices', '--status', '127.0.0.1:http'),
        ('shop:Prices', '--reload-dir', 'gone'),
    ],
)
def test_a_wrong_call_is_a_mistake_of_the_caller(start: Callable[..., Module], arguments: tuple[str, ...]) -> None:
    program = start(*arguments)
    assert program.wait() == 2
    assert program.count('Error: ') == 1


def test_where_the_program_itself_raises_its_traceback_is_shown(start: Callable[..., Module], tmp_path: Path) -> None:
    (tmp_path / 'shop.py').write_text('import os\n\ndef prices():\n    return os.nonsense\n')
    program = start('shop:prices')
    assert program.wait() == 1
    assert program.count('return os.nonsense') == 1
    assert program.count('File "') == 1  # the program's own alone
    assert program.count('Error: shop:prices: AttributeError: ') == 1


WITHOUT_WATCHFILES = """
import sys
sys.modules['watchfiles'] = None
sys.argv = ['postage', 'run', 'shop:Prices', '--reload']
from postage.cli import main
sys.exit(main())
"""


def test_reload_without_its_extra_is_one_line_that_names_it(run_program: Callable[..., Module]) -> None:
    program = run_program(WITHOUT_WATCHFILES)
    assert program.wait() == 1
    assert program.output == "Error: --reload needs watchfiles, which comes with: pip install 'postage[run]'"


# How it ends


def test_at_a_signal_the_handler_ends_and_the_rest_goes_back(
    start: Callable[..., Module], producer: ShopProducer, embedded: Broker
) -> None:
    program = start('shop:Slow')
    program.expect('is ready')
    for seconds in (1, 0, 0):
        producer.message_price(seconds)
    program.expect('begun 1')
    assert end(program) == 0
    assert program.count('done') == 1
    assert embedded.messages() == {'prices': 2}


def test_a_second_signal_hands_everything_back(
    start: Callable[..., Module], producer: ShopProducer, embedded: Broker
) -> None:
    program = start('shop:Slow')
    program.expect('is ready')
    producer.message_price(30)
    producer.message_price(31)
    program.expect('begun 30')
    program.send_signal(signal.SIGTERM)
    with pytest.raises(AssertionError, match='still running'):
        program.wait(0.3)
    assert end(program) == 3
    program.expect('was told to end at once, and was interrupted')
    assert embedded.messages() == {'prices': 2}


def test_what_takes_longer_than_the_grace_is_interrupted(
    start: Callable[..., Module], producer: ShopProducer, embedded: Broker
) -> None:
    program = start('shop:Slow', '--grace', '0.3')
    program.expect('is ready')
    producer.message_price(30)
    program.expect('begun 30')
    assert end(program) == 3
    assert embedded.messages() == {'prices': 1}


def test_a_worker_that_is_killed_as_it_ends_was_interrupted_too(
    start: Callable[..., Module], producer: ShopProducer, embedded: Broker
) -> None:
    program = start('shop:Deaf')
    program.expect('is ready')
    producer.message_price([1, 0])
    program.expect('begun')
    for _ in range(2):
        program.send_signal(signal.SIGTERM)
        with pytest.raises(AssertionError, match='still running'):
            program.wait(0.3)
    assert end(program) == 3
    program.expect('was killed by SIGKILL')
    assert embedded.messages() == {'prices': 1}


def test_a_thread_that_keeps_a_worker_from_its_end_is_named(start: Callable[..., Module], tmp_path: Path) -> None:
    program = start('shop:Threaded')
    program.expect('is ready')
    program.send_signal(signal.SIGTERM)
    program.expect('it waits for threads of the program that are no daemons: its-own')
    (tmp_path / 'release').touch()
    assert program.wait() == 0


def test_the_command_quit_ends_it(start: Callable[..., Module], producer: ShopProducer) -> None:
    program = start('shop:Prices')
    program.expect('is ready')
    producer.message_quit()
    assert program.wait() == 0
    program.expect('was told to quit')


def test_a_worker_that_is_ended_by_a_signal_to_it_alone_is_started_again(start: Callable[..., Module]) -> None:
    program = start('shop:Prices')
    worker = int(program.expect('is ready').split('pid ')[1].split(')')[0])
    os.kill(worker, signal.SIGTERM)
    program.expect(f'(pid {worker}) was ended by a signal; another one begins')
    program.expect('is ready', times=2)
    assert end(program) == 0


def test_signals_to_all_processes_end_it_in_good_order(start: Callable[..., Module]) -> None:
    program = start('shop:Prices', '--workers', '2')
    program.expect('is ready', times=2)
    workers = [int(line.split('pid ')[1].split(')')[0]) for line in program.lines if 'is ready' in line]
    for pid in (program.pid, *workers):
        os.kill(pid, signal.SIGTERM)
    assert program.wait() == 0
    assert program.count('WARNING') == 0, program.output


def test_a_worker_whose_supervisor_is_killed_ends_too(start: Callable[..., Module], embedded: Broker) -> None:
    program = start('shop:Prices')
    worker = int(program.expect('is ready').split('pid ')[1].split(')')[0])
    program.send_signal(signal.SIGKILL)
    program.wait()  # until no process has its output open
    assert embedded.channels() == 0
    assert worker != program.pid


INTERRUPTED = """
import os, signal, sys
if 'postage.cli.run.worker' in sys.orig_argv:
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
"""


def test_ctrl_c_in_a_terminal_leaves_alone_a_worker_that_is_being_started(
    start: Callable[..., Module], tmp_path: Path
) -> None:
    """It reaches all processes; what becomes of them is the supervisor's affair."""
    (tmp_path / 'sitecustomize.py').write_text(INTERRUPTED)
    program = start('shop:Prices', PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    program.expect('is ready')
    assert end(program) == 0
    assert len([line for line in program.lines if 'worker 1' in line]) == 2, program.output  # it is ready, it has ended


# Workers that end, and are replaced


def test_a_component_that_ends_by_an_exception_is_started_again_with_growing_pauses(
    start: Callable[..., Module],
) -> None:
    program = start('shop:Ends')
    program.expect('ended with status 1; another one begins in 0.2 s', 30)
    assert end(program) == 0


def test_a_worker_that_waits_for_the_end_of_a_pause_is_started_at_once_where_a_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    supervisor = Supervisor(Options(('shop:Prices',)))
    (slot,) = supervisor._slots
    slot.is_due = True
    supervisor.replace_all('shop.py')
    started = slot.current
    supervisor.close()
    assert started is not None
    assert (slot.is_due, slot.replacement) == (False, None)
    eventually(lambda: started.status == -signal.SIGKILL)


def test_sighup_replaces_the_workers_one_by_one(start: Callable[..., Module]) -> None:
    program = start('shop:Prices', '--workers', '2')
    program.expect('is ready', times=2)
    program.send_signal(signal.SIGHUP)
    program.expect('in place of pid', times=2)
    program.expect('ended with status 0', times=2)
    assert end(program) == 0


def test_a_source_that_is_broken_keeps_the_old_worker_until_it_is_mended(
    start: Callable[..., Module], tmp_path: Path, producer: ShopProducer
) -> None:
    program = start('shop:Prices', '--reload')
    program.expect('is ready')
    (tmp_path / 'shop.py').write_text('def broken(:\n')
    program.expect('was to take over and failed, so the old one goes on')
    producer.message_price([1, 0])
    Notes(tmp_path / 'notes').wait(1, 10)
    (tmp_path / 'shop.py').write_text(SLOW)
    program.expect('in place of pid')
    assert end(program) == 0


def test_a_source_that_is_broken_at_the_start_is_waited_for_where_changes_are_watched(
    start: Callable[..., Module], tmp_path: Path
) -> None:
    (tmp_path / 'shop.py').write_text('def broken(:\n')
    program = start('shop:Prices', '--reload', '--workers', '2')
    program.expect('SyntaxError')
    (tmp_path / 'shop.py').write_text(SLOW)
    program.expect('is ready', times=2)
    assert end(program) == 0


def test_one_that_waits_for_its_source_can_be_ended(start: Callable[..., Module], tmp_path: Path) -> None:
    (tmp_path / 'shop.py').write_text('def broken(:\n')
    program = start('shop:Prices', '--reload')
    program.expect('another one begins in')
    assert end(program) == 0


def test_a_source_that_changes_twice_in_a_second_is_loaded_as_it_is_then(
    start: Callable[..., Module], tmp_path: Path
) -> None:
    """Python takes compiled code for that of a source with the same second and size."""
    helper = tmp_path / 'helper.py'
    moment = helper.parent.stat().st_mtime

    def write(number: int) -> None:
        with helper.open('w') as file:
            file.write(f'print("helper", {number}, flush=True)\n')
            file.flush()
            os.utime(helper, (moment, moment))

    write(1)
    (tmp_path / 'shop.py').write_text(f'import helper\n{SLOW}')
    program = start('shop:Prices', '--reload', PYTHONDONTWRITEBYTECODE='')
    for number in (1, 2, 3):
        write(number)
        program.expect(f'helper {number}')
    assert end(program) == 0


def test_a_source_that_never_ends_to_load_is_replaced_by_one_that_does(
    start: Callable[..., Module], tmp_path: Path
) -> None:
    program = start('shop:Prices', '--reload')
    program.expect('is ready')
    (tmp_path / 'shop.py').write_text('import threading\nprint("loads", flush=True)\nthreading.Event().wait()\n')
    program.expect('loads')
    (tmp_path / 'shop.py').write_text(SLOW)
    program.expect('in place of pid')
    assert end(program) == 0
    assert program.count('so the old one goes on') == 0


# What it says


def test_a_line_of_json_says_which_message_it_is_about(start: Callable[..., Module], producer: ShopProducer) -> None:
    program = start('shop:Fails', '--log-format', 'json')
    program.expect('is ready')
    receipt = producer.message_price([1, 0])
    line = json.loads(program.expect('raised on'))
    assert line['level'] == 'ERROR'
    assert line['message_id'] == receipt.message_id
    assert line['attempt'] == 1
    assert line['fingerprint']['name'] == 'prices'
    assert 'KeyError' in line['exception']
    assert end(program) == 0
    for each in program.lines:
        json.loads(each)


TRACED = """
import logging
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from postage import messaging
from shop import Prices

trace.set_tracer_provider(TracerProvider())

class Traced(Prices):
    concurrency = 2

    def note(self):
        logging.getLogger('traced').warning('%032x', trace.get_current_span().get_span_context().trace_id)
        raise KeyError('no such price')

    @messaging.Retry(delays=(0.01,))
    @messaging.MessageHandler('command', 'price')
    def msg_price(self, content):
        self.note()

    @messaging.Retry(delays=(0.01,))
    @messaging.MessageHandler('command', 'later')
    def msg_later(self, content):
        yield
        self.note()
"""


def test_the_trace_in_a_line_of_json_is_that_of_the_span(
    start: Callable[..., Module], producer: ShopProducer, tmp_path: Path
) -> None:
    pytest.importorskip('opentelemetry.sdk')
    (tmp_path / 'traced.py').write_text(TRACED)
    program = start('traced:Traced', '--log-format', 'json')
    program.expect('is ready')
    trace_id = 'ab' * 16
    for send in (producer.message_price, producer.message_later):
        send(_headers={'traceparent': f'00-{trace_id}-{"cd" * 8}-01'})
    producer.message_price()  # by a program that has no traces
    program.expect('which is rejected', 20, times=3)
    assert end(program) == 0
    lines = [line for line in map(json.loads, program.lines) if 'attempt' in line]
    own = [line for line in lines if line['logger'] == 'traced']
    assert [line['trace_id'] for line in own] == [line['message'] for line in own]
    first = [line['trace_id'] for line in own if line['attempt'] == 1]
    assert (len(first), first.count(trace_id)) == (3, 2)
    assert trace_id not in [line['trace_id'] for line in own if line['attempt'] == 2]
    raised = {(line['message_id'], line['attempt']): line['trace_id'] for line in lines if 'raised' in line['message']}
    assert raised == {(line['message_id'], line['attempt']): line['trace_id'] for line in own}


def test_warnings_and_what_nothing_catches_are_lines_of_json_too(start: Callable[..., Module]) -> None:
    program = start('shop:Warns', '--log-format', 'json')
    program.expect('is ready')
    assert 'be careful' in json.loads(program.expect('py.warnings'))['message']
    line = json.loads(program.expect('ended by an exception'))
    assert (line['message'], 'ZeroDivisionError' in line['exception']) == (
        'thread counting ended by an exception',
        True,
    )
    assert end(program) == 0
    assert all(json.loads(each) for each in program.lines)


def test_a_log_call_that_is_wrong_is_told_and_what_it_was_to_say(start: Callable[..., Module]) -> None:
    program = start('shop:Careless', '--log-format', 'json')
    program.expect('is ready')
    assert end(program) == 0
    lines = [line for line in map(json.loads, program.lines) if line['logger'] == 'third.party']
    unfitting, whole, shy = lines
    assert re.fullmatch(
        r".*shop\.py:\d+ logs '%d of %d' with \('one',\), which cannot be formatted", unfitting['message']
    )
    assert 'TypeError' in unfitting['exception']
    assert whole['message'] == 'where is it'
    assert 'in __init__\n    third.error(' in whole['stack']
    assert 'ZeroDivisionError' in shy['exception']
    program = start('shop:Careless')
    program.expect('is ready')
    assert "logs '%d of %d' with ('one',), which cannot be formatted" in program.output
    assert end(program) == 0


TALKS = """
import logging, os
from postage import microthreads

class Talks(microthreads.MicroThread):
    def main(self):
        for _ in range(100):
            logging.getLogger('talks').error('%d %s', os.getpid(), 'word ' * 4000)
            yield
"""


def test_long_lines_of_several_workers_stay_whole(tmp_path: Path) -> None:
    (tmp_path / 'talks.py').write_text(TALKS)
    command = [sys.executable, '-m', 'postage', 'run', 'talks:Talks', '--workers', '3', '--log-format', 'json']
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        eventually(lambda: unread(process.stderr) > 50_000)  # now they all wait for room
        lines = [json.loads(line) for line in process.stderr]
    assert process.returncode == 0
    talk = [line['message'] for line in lines if line['logger'] == 'talks']
    assert len(talk) == 300
    assert len({words.partition(' ')[0] for words in talk}) == 3


def unread(file: Any) -> int:
    """Bytes that lie in a pipe."""
    return int.from_bytes(fcntl.ioctl(file, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_why_it_could_not_begin_is_a_line_of_json_too(start: Callable[..., Module]) -> None:
    program = start('shop:number', '--log-format', 'json')
    assert program.wait() == 1
    (line,) = map(json.loads, program.lines)
    assert (line['level'], line['message'][:14]) == ('CRITICAL', 'shop:number is')


def test_a_worker_is_ready_before_its_first_message_is_handled(
    start: Callable[..., Module], producer: ShopProducer
) -> None:
    program = start('shop:Prices')
    program.expect('is ready')
    assert end(program) == 0
    producer.message_price(30)
    program = start('shop:Slow', '--grace', '0.1')
    program.expect('is ready', 15)
    program.expect('begun 30')
    assert end(program) == 3


def test_python_m_postage_is_the_command(run_module: Callable[..., Module]) -> None:
    program = run_module('postage', ['--help'])
    assert program.wait() == 0
    assert program.count('Usage: postage ') == 1
    assert len(program.lines) <= 24, 'it fits a screen'
    assert sum(line.startswith('  run ') for line in program.lines) == 1
