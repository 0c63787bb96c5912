"""The tutorial shows all of the demo, whose programs tests/demos runs, and its test passes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.brokers import Embedded
from support.pages import DOCS, ROOT, blocks
from support.programs import Module, Program

pytestmark = pytest.mark.timeout(300)  # to make the site, on a machine that does much else

PAGE = DOCS / 'tutorial.rst'
DEMO = ROOT / 'demos' / 'order_system'


def test_every_program_of_the_demo_is_shown() -> None:
    shown = set(re.findall(r'literalinclude:: \.\./demos/order_system/(\w+\.py)', PAGE.read_text()))
    assert shown == {path.name for path in DEMO.glob('*.py')}


def test_the_lines_for_the_shell_are_those_of_the_demo() -> None:
    first, broker, *others, test = blocks(PAGE, 'sh')
    readme = (DEMO / 'README.rst').read_text()
    lines = [line for block in others for line in block.splitlines()]
    assert [line for line in lines if f'    {line}\n' not in readme] == []
    assert (first.splitlines()[-1], broker) == (f'cd postage-*/{DEMO.relative_to(ROOT)}', 'postage broker')
    assert test.splitlines()[-1] == 'python -m pytest -q test_orders.py'


def masked(output: str) -> list[str]:
    """Its lines, with one message id and one time for all, and one space between words."""
    output = re.sub(r'\b[0-9a-f]{16}-\d+', 'ID', re.sub(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d', 'TIME', output))
    return [' '.join(line.split()) for line in output.strip().splitlines()]


def test_prices_are_asked_for_as_the_page_says(embedded: Embedded, run_program: Callable[..., Program]) -> None:
    (lines,) = [block for block in blocks(PAGE, 'sh') if block.startswith('python pricing.py')]
    promised, *_ = blocks(PAGE, 'text')
    environment = {'POSTAGE_URL': embedded.url}
    answering, asking = (DEMO / line.split()[1] for line in lines.splitlines())
    alone = run_program(asking, environment=environment)
    assert alone.wait() == 1
    assert 'Unroutable' in alone.lines[-1]
    pricing = run_program(answering, environment=environment)
    pricing.expect('Waiting for messages')
    customer = run_program(asking, environment=environment)
    assert customer.wait() == 0, customer.output
    seconds = re.compile(r'in \d+\.\d s')
    assert seconds.sub('in N s', customer.output.strip()) == seconds.sub('in N s', promised)
    pricing.stop()


def test_the_bad_day_goes_as_the_page_says(
    tmp_path: Path,
    embedded: Embedded,
    run_program: Callable[..., Program],
    run_module: Callable[..., Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('POSTAGE_URL', embedded.url)
    chapter = PAGE.read_text().partition('Chapter 3')[2].partition('Chapter 4')[0]
    steps = re.findall(r'code:: (sh|text)\n\n((?:    .*\n)+)', chapter)
    assert [kind for kind, _ in steps] == ['sh', 'sh', 'sh', 'text', 'sh', 'text', 'sh', 'text']

    def start(line: str) -> Program:
        name, script, *words = shlex.split(line)
        return run_module(name, [script, *words]) if name == 'postage' else run_program(DEMO / script, words)

    orders, printed = start('python orders.py .'), ''
    orders.expect('Waiting for messages')
    for kind, block in steps:
        lines = [line.strip() for line in block.splitlines()]
        if kind == 'text':
            assert masked(printed) == masked(block)
            continue
        printed = ''
        for line in lines:
            if line != 'python orders.py .':
                program = start(line)
                assert program.wait() == 0, program.output
                printed += program.output + '\n'
            awaited = {'item=tea': 'Ada has ordered', 'item=book': 'is letter 1', 'replay': 'Bob has ordered'}
            for word, text in awaited.items():
                if word in line:
                    orders.expect(text)


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
