"""Every snippet of the page on the embedded broker runs, and the page has all its options."""

from __future__ import annotations

from collections.abc import Callable

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
