"""Every Python snippet of the pages on testing and on the embedded broker runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import docutils.core
import docutils.nodes

from support.programs import Module, Program

DOCS = Path(__file__).parents[2] / 'docs'


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in a language, in their order. What deserves a warning in it is an error."""
    settings = {'halt_level': 2, 'report_level': 2, 'file_insertion_enabled': False, 'raw_enabled': False}
    parsed = docutils.core.publish_doctree((DOCS / page).read_text(), settings_overrides=settings)
    return [block.astext() for block in parsed.findall(docutils.nodes.literal_block) if language in block['classes']]


def test_the_tests_of_the_page_on_testing_pass(tmp_path: Path) -> None:
    program, *tests = blocks('testing.rst', 'python')
    (tmp_path / 'shop.py').write_text(program)
    (tmp_path / 'test_shop.py').write_text('\n\n'.join(tests))
    command = [sys.executable, '-m', 'pytest', '-q', '-W', 'error', '--strict-markers', '-p', 'no:cacheprovider', '.']
    environment = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST_')}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'{sum(block.count("def test_") for block in tests)} passed' in done.stdout


def test_the_program_of_the_page_on_the_broker_prints_what_it_says(run_program: Callable[..., Program]) -> None:
    program = '\n'.join(blocks('embedded_broker.rst', 'python'))
    promised = [line.rpartition('  # ')[2] for line in program.splitlines() if 'print(' in line]
    running = run_program(program, environment={'PYTHONWARNINGS': 'error'})
    assert running.wait() == 0, running.output
    assert running.lines == promised


def test_the_command_of_the_page_on_the_broker_has_these_options(run_module: Callable[..., Module]) -> None:
    (command,) = blocks('embedded_broker.rst', 'sh')
    options = [word for word in command.split() if word.startswith('--')]
    text = (DOCS / 'embedded_broker.rst').read_text()
    help_text = run_module('postage.broker', ['--help'])
    assert help_text.wait() == 0
    known = {word for word in help_text.output.replace(',', ' ').split() if word.startswith('--')} - {'--help'}
    assert set(options) <= known
    assert all(f'``{option}' in text for option in known)
