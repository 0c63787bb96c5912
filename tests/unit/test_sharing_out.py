"""The suite goes on when a process that runs tests dies, and says which test did that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('xdist')

TESTS = Path(__file__).parent.parent

CONFTEST = """
from support.sharing_out import SharingOut

def pytest_configure(config):
    config.pluginmanager.register(SharingOut())
"""

DIES = 'import os\n\ndef test_before(): pass\ndef test_dies(): os._exit(7)\ndef test_after(): pass\n'


def test_all_other_tests_run_when_a_process_dies(tmp_path: Path) -> None:
    (tmp_path / 'conftest.py').write_text(CONFTEST)
    (tmp_path / 'pytest.ini').write_text(f'[pytest]\npythonpath = {TESTS}\n')
    for number in range(12):
        (tmp_path / f'test_{number}.py').write_text('def test_one(): pass\n')
    for number in (6, 11):
        (tmp_path / f'test_{number}.py').write_text(DIES)
    ran = subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '-n', '2', '--dist', 'loadfile', tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert '2 failed, 14 passed' in ran.stdout, ran.stdout + ran.stderr
    assert ran.stdout.count('has ended with status 7') == 2
    for number in (6, 11):
        assert f"crashed while running 'test_{number}.py::test_dies'" in ran.stdout
