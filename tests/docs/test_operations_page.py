"""The page on operations: its Python snippets are one program, and it names every question and outcome."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import get_args

from postage.messaging import control
from postage.messaging.outcomes import Fate
from support.brokers import Broker
from support.pages import DOCS, assert_prints_what_it_says, blocks
from support.programs import Program

PAGE = DOCS / 'operations.rst'


def test_the_page_is_one_program_that_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    assert_prints_what_it_says(blocks(PAGE, 'python'), broker, run_program)


def test_the_page_has_every_question_and_command() -> None:
    named = re.findall(r'^``(\w+)``  ', str(control.__doc__), re.MULTILINE)
    assert len(named) == 9
    assert all(f'``{name}``' in PAGE.read_text() for name in named)


def test_the_page_has_every_outcome() -> None:
    assert all(f"``'{fate}'``" in PAGE.read_text() for fate in get_args(Fate))
