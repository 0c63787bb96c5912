"""Every Python snippet of the page on testing runs: they are the tests of a small program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.pages import DOCS, blocks

PAGE = DOCS / 'testing.rst'
PROGRAM, *TESTS = blocks(PAGE, 'python')


def output(folder: Path, tests: list[str]) -> str:
    """What pytest prints, which has to pass."""
    (folder / 'shop.py').write_text(PROGRAM)
    (folder / 'test_shop.py').write_text('\n\n'.join(tests))
    command = [sys.executable, '-m', 'pytest', '-q', '-W', 'error', '--strict-markers', '-p', 'no:cacheprovider']
    environment = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST_')}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    assert f'{sum(block.count("def test_") for block in TESTS)} passed' in output(tmp_path, TESTS)


def test_the_first_one_passes_by_itself_as_the_page_says(tmp_path: Path) -> None:
    _, run = blocks(PAGE, 'sh')
    (promised,) = blocks(PAGE, 'text')
    assert run == 'python -m pytest -q'
    assert promised in output(tmp_path, TESTS[:1])
