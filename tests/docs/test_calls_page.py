"""The page on calls: its snippets are one program, and each row of its table has a test."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from support.brokers import Broker
from support.pages import DOCS, assert_prints_what_it_says, blocks
from support.programs import Program

PAGE = DOCS / 'calls.rst'
TESTS = Path(__file__).parents[1]


def test_the_page_is_one_program_that_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    assert_prints_what_it_says(blocks(PAGE, 'python'), broker, run_program)


def test_each_row_of_the_table_names_a_test_that_there_is() -> None:
    table = PAGE.read_text().partition('.. list-table::')[2]
    rows = re.findall(r'^   \* - (.*)$', table, re.MULTILINE)[1:]
    named = re.findall(r'``(test_\w+)``', table)
    assert len(named) == len(rows) >= 14
    tests = '\n'.join(path.read_text() for path in TESTS.rglob('test_*.py'))
    assert [name for name in named if f'def {name}(' not in tests] == []
