"""The tutorial shows all of the demo, whose programs tests/demos runs, and its test passes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.pages import DOCS, ROOT, blocks

pytestmark = pytest.mark.timeout(300)  # to make the site, on a machine that does much else

PAGE = DOCS / 'tutorial.rst'
DEMO = ROOT / 'demos' / 'order_system'


def test_every_program_of_the_demo_is_shown() -> None:
    shown = set(re.findall(r'literalinclude:: \.\./demos/order_system/(\w+\.py)', PAGE.read_text()))
    assert shown == {path.name for path in DEMO.glob('*.py')}


def test_the_lines_for_the_shell_are_those_of_the_demo() -> None:
    lines = {line for block in blocks(PAGE, 'sh') for line in block.splitlines()} - {'postage broker'}
    readme = (DEMO / 'README.rst').read_text()
    assert [line for line in sorted(lines) if f'    {line}\n' not in readme] == []


def test_the_pieces_that_are_shown_begin_and_end_where_a_thing_does(site_text: dict[str, str]) -> None:
    text = site_text['tutorial']
    assert 'class PriceProducer' in text
    assert "RpcCommand('price', {'item': item})" in text.replace('&#39;', "'")
    assert text.count('class OrderProducer') == 1
    assert text.count('class News(') == 1
    assert text.count('def after_processing') == 1
    assert text.count('TABLES = ') == 1


def test_the_test_of_the_page_passes(tmp_path: Path) -> None:
    (test,) = blocks(PAGE, 'python')
    (tmp_path / 'test_orders.py').write_text(test)
    command = [sys.executable, '-m', 'pytest', '-q', '-W', 'error', '-p', 'no:cacheprovider', '.']
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(DEMO), os.environ.get('PYTHONPATH', '')])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
