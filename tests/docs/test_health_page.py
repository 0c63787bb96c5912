"""The page on health: its program prints what it says, and it has every figure and field."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from postage import messaging
from postage.cli.probe import command
from postage.messaging.metrics import METRICS
from support.brokers import Broker
from support.pages import DOCS, assert_prints_what_it_says, blocks
from support.programs import Program

PAGE = DOCS / 'health.rst'
TEXT = PAGE.read_text()


def test_the_program_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    assert_prints_what_it_says(blocks(PAGE, 'python'), broker, run_program)


def test_the_page_has_every_figure_and_no_other() -> None:
    assert set(re.findall(r'^``((?:messaging|postage)\.[a-z._]+)``  ', TEXT, re.MULTILINE)) == set(METRICS)


def test_the_page_has_every_field() -> None:
    named = re.findall(r'^``([a-z_]+)``  ', TEXT, re.MULTILINE)
    assert named == [field.name for field in dataclasses.fields(messaging.Health)]


def test_the_page_has_every_option_of_the_probe() -> None:
    names = [name for option in command.params for name in option.opts if name not in ('--help', '--ready')]
    assert [name for name in names if f'``{name}``' not in TEXT] == []
