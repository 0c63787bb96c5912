"""Every snippet of the page on the embedded broker runs, and the page has all its options."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from postage.broker.connection import HANDSHAKE_SECONDS
from postage.broker.limits import GIB, LARGEST_METHOD, Limits
from support.pages import DOCS, blocks, promised
from support.programs import Module, Program

PAGE = DOCS / 'embedded_broker.rst'


def test_the_page_is_one_program_that_prints_what_it_says(run_program: Callable[..., Program]) -> None:
    program = '\n'.join(blocks(PAGE, 'python'))
    running = run_program(program, environment={'PYTHONWARNINGS': 'error'})
    assert running.wait() == 0, running.output
    assert running.lines == promised(program)


def test_the_command_of_the_page_has_these_options(run_module: Callable[..., Module]) -> None:
    (command,) = blocks(PAGE, 'sh')
    options = [word for word in command.split() if word.startswith('--')]
    text = PAGE.read_text()
    help_text = run_module('postage.broker', ['--help'])
    assert help_text.wait() == 0
    known = {word for word in help_text.output.replace(',', ' ').split() if word.startswith('--')} - {'--help'}
    assert set(options) <= known
    assert all(f'``{option}' in text for option in known)


def test_the_defaults_of_limits_are_those_of_the_page() -> None:
    rows = dict(re.findall(r'^``--max-(\S+)``  +(\S+(?: GiB)?)  ', PAGE.read_text(), re.MULTILINE))
    said = {name.replace('-', '_'): default.replace(',', '') for name, default in rows.items()}
    shown = {GIB: '1 GiB', None: "RabbitMQ's"}
    fields = dataclasses.fields(Limits)
    assert said == {each.name: shown.get(each.default, str(each.default)) for each in fields}
    assert f'{HANDSHAKE_SECONDS} seconds to open a connection' in ' '.join(PAGE.read_text().split())
    assert f'{LARGEST_METHOD // 1024} KiB at most' in PAGE.read_text()
