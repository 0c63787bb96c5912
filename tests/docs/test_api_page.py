"""Every Python snippet of the page on the API runs, and prints what its comments say."""

from __future__ import annotations

from collections.abc import Callable

from support.brokers import Broker
from support.pages import DOCS, assert_prints_what_it_says, blocks
from support.programs import Program


def test_the_page_is_one_program_that_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    assert_prints_what_it_says(blocks(DOCS / 'api.rst', 'python'), broker, run_program)
