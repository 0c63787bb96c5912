"""Messages that are lines."""

from __future__ import annotations

import io
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from missive.conftest import AnyProcessor
from postage import missive
from postage.missive.adapters.stdin import StdinAdapter
from support.messaging import LogBook
from support.programs import Program


def lines_of(processor: AnyProcessor, filelike: Any) -> list[bytes]:
    """Run a processor over a file, and return what its handler got."""
    seen = []

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        seen.append(message.raw_data)
        ctx.ack()

    StdinAdapter(missive.RawMessage, processor, filelike).run()
    return seen


def test_each_line_is_a_message_and_the_end_of_the_file_ends_the_run(processor: AnyProcessor) -> None:
    assert lines_of(processor, io.BytesIO(b'one\n\ntwo\r\nthree')) == [b'one', b'', b'two\r', b'three']


def test_lines_are_whole_however_long(processor: AnyProcessor) -> None:
    lines = [b'x' * size for size in (4095, 4096, 4097, 5_000_000)]
    assert lines_of(processor, io.BytesIO(b'\n'.join(lines))) == lines


def test_a_text_file_will_do(processor: AnyProcessor) -> None:
    assert lines_of(processor, io.StringIO('schön\nneu\n')) == ['schön'.encode(), b'neu']


def test_a_file_on_disk_will_do(processor: AnyProcessor) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b'one\ntwo\n')
        file.seek(0)
        assert lines_of(processor, file) == [b'one', b'two']


def test_a_refused_line_is_lost_and_that_is_said_once(processor: AnyProcessor, log: LogBook) -> None:
    processor.handle_for(lambda message: True)(lambda message, ctx: ctx.nack())
    StdinAdapter(missive.RawMessage, processor, io.BytesIO(b'1\n2\n')).run()
    assert len(log.find('WARNING', 'stdin takes no message back')) == 1


def test_what_a_handler_raises_leaves_run(processor: AnyProcessor) -> None:
    ended = []
    processor.after_processing(lambda ctx: ended.append(ctx))

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        raise ValueError('no good')

    with pytest.raises(ValueError, match='no good'):
        StdinAdapter(missive.RawMessage, processor, io.BytesIO(b'1\n')).run()
    assert ended


PROGRAM = """
import os, sys, time
from postage import missive
from postage.missive.adapters.stdin import StdinAdapter

os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)
processor = missive.Processor()
processor.before_processing(lambda ctx: print('startup', flush=True))
processor.after_processing(lambda ctx: print('shutdown', flush=True))

@processor.handle_for(lambda message: True)
def handle(message, ctx):
    print('begin', message.raw_data, flush=True)
    time.sleep(float(message.raw_data))
    ctx.ack()
    print('end', flush=True)

StdinAdapter(missive.RawMessage, processor).run()
print('on with the program', flush=True)
"""


class Piped:
    """A program that reads what the test writes."""

    def __init__(self, run_program: Callable[..., Program], path: Path) -> None:
        os.mkfifo(path)
        self.program = run_program(PROGRAM, [str(path)])
        self._file = path.open('wb', buffering=0)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def piped(run_program: Callable[..., Program], tmp_path: Path) -> Iterator[Piped]:
    piped = Piped(run_program, tmp_path / 'input')
    piped.program.expect('startup')
    yield piped
    piped.close()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_message_lets_it_end(piped: Piped, number: signal.Signals) -> None:
    piped.write(b'0.5\n0.1\n')
    piped.program.expect('begin')
    piped.program.send_signal(number)
    assert piped.program.wait() == 0
    assert piped.program.lines == ['startup', "begin b'0.5'", 'end', 'shutdown', 'on with the program']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_waits_for_a_line_ends_it_at_once(piped: Piped, number: signal.Signals) -> None:
    piped.write(b'0\n')
    piped.program.expect('end')
    piped.program.send_signal(number)
    assert piped.program.wait() == 0
    assert piped.program.lines[-2:] == ['shutdown', 'on with the program']


def test_a_second_signal_ends_the_process(piped: Piped) -> None:
    piped.write(b'30\n')
    piped.program.expect('begin')
    piped.program.send_signal(signal.SIGTERM)
    # Two signals may become one before Python has seen the first.
    ended = threading.Event()
    for _ in range(100):
        piped.program.send_signal(signal.SIGTERM)
        if ended.wait(0.05) or not piped.program._reader.is_alive():
            break
    assert piped.program.wait() == -signal.SIGTERM


def test_an_answer_is_a_line_of_the_standard_output(
    processor: AnyProcessor, run_program: Callable[..., Program]
) -> None:
    program = run_program(
        'import io\nfrom postage import missive\nfrom postage.missive.adapters.stdin import StdinAdapter\n'
        'processor = missive.Processor()\n'
        'processor.handle_for(lambda m: True)(lambda m, ctx: (ctx.reply(m.raw_data.upper()), ctx.ack()))\n'
        "StdinAdapter(missive.RawMessage, processor, io.BytesIO(b'a\\nb')).run()\n"
    )
    assert program.wait() == 0
    assert program.lines == ['A', 'B']
