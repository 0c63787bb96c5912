"""The programs of other frameworks in the guide: read by every run of the tests, run by ``make frameworks``."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import docutils.nodes
import pytest

from support.brokers import Broker
from support.pages import DOCS, blocks, parse, promised
from support.programs import Program

PAGE = DOCS / 'guides' / 'coming_from.rst'
LITERAL = list(parse(PAGE).findall(docutils.nodes.literal_block))
PROGRAMS = {block['names'][0]: block.astext() for block in LITERAL if block['names']}
SERVED = {'celery': ('tasks.py', 'ready.'), 'nameko': ('greeter.py', 'Connected to amqp://')}
"""By framework: the file of the component, and what it prints when it answers."""


def needs(framework: str) -> pytest.MarkDecorator:
    is_missing = importlib.util.find_spec(framework) is None
    return pytest.mark.skipif(is_missing, reason=f'{framework} is not installed; `make frameworks` runs its program')


def test_every_program_can_be_read_and_says_what_it_prints() -> None:
    assert set(PROGRAMS) == {
        'postage',
        'pika',
        'tasks.py',
        'celery/ask.py',
        'greeter.py',
        'nameko/ask.py',
        'faststream',
    }
    for name, text in PROGRAMS.items():
        compile(text, name, 'exec')
        assert promised(text) == ([] if name in ('tasks.py', 'greeter.py') else ['Hello Ada']), name


def test_the_lines_for_the_shell_start_the_files_that_are_shown() -> None:
    for block, (framework, (file, _)) in zip(blocks(PAGE, 'sh'), SERVED.items(), strict=True):
        serve, ask = map(shlex.split, block.splitlines())
        assert (serve[0], ask) == (framework, ['python', 'ask.py'])
        assert Path(file).stem in serve


@pytest.mark.parametrize('framework', [pytest.param(name, marks=needs(name)) for name in SERVED])
def test_a_component_of_two_files_answers(
    framework: str,
    tmp_path: Path,
    broker: Broker,
    run_program: Callable[..., Program],
) -> None:
    file, ready = SERVED[framework]
    (tmp_path / file).write_text(PROGRAMS[file])
    (tmp_path / 'ask.py').write_text(PROGRAMS[f'{framework}/ask.py'])
    (serve,) = [line for block in blocks(PAGE, 'sh') for line in block.splitlines() if line.startswith(framework)]
    environment = {'POSTAGE_URL': broker.url, 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': str(tmp_path)}
    command = [broker.url if word == '$POSTAGE_URL' else word for word in shlex.split(serve)]
    program = str(Path(sys.executable).with_name(command[0]))
    component = run_program(program, command[1:], environment=environment, cwd=tmp_path)
    component.expect(ready)
    asking = run_program(tmp_path / 'ask.py', environment=environment, cwd=tmp_path)
    assert asking.wait() == 0, asking.output
    assert asking.lines[-1:] == ['Hello Ada']


@needs('faststream')
def test_a_component_of_faststream_answers(broker: Broker, run_program: Callable[..., Program]) -> None:
    running = run_program(PROGRAMS['faststream'], environment={'POSTAGE_URL': broker.url})
    assert running.wait() == 0, running.output
    assert running.lines == ['Hello Ada']
