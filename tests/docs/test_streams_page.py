"""The Python snippets of the page on streams are one program, and print what their comments say."""

from __future__ import annotations

from collections.abc import Callable

from support.brokers import RabbitMQ
from support.pages import DOCS, assert_prints_what_it_says, blocks
from support.programs import Program


def test_the_page_is_one_program_that_prints_what_it_says(
    rabbitmq: RabbitMQ, run_program: Callable[..., Program]
) -> None:
    assert_prints_what_it_says(blocks(DOCS / 'streams.rst', 'python'), rabbitmq, run_program)
