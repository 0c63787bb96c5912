"""Every Python snippet of the page on testing runs: they are the tests of a small program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.pages import DOCS, blocks


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    program, *tests = blocks(DOCS / 'testing.rst', 'python')
    (tmp_path / 'shop.py').write_text(program)
    (tmp_path / 'test_shop.py').write_text('\n\n'.join(tests))
    command = [sys.executable, '-m', 'pytest', '-q', '-W', 'error', '--strict-markers', '-p', 'no:cacheprovider', '.']
    environment = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST_')}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'{sum(block.count("def test_") for block in tests)} passed' in done.stdout
