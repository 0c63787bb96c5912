"""The Python snippets of the page on signing are one program, and print what their comments say."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from postage.amqp.frames import decode_properties
from postage.messaging import gate, keys
from postage.messaging.signing import Signatures
from support.brokers import Broker
from support.pages import DOCS, assert_prints_what_it_says, blocks
from support.programs import Program

PAGE = DOCS / 'signing.rst'


def test_the_page_is_one_program_that_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    assert_prints_what_it_says(blocks(PAGE, 'python'), broker, run_program)


def test_the_key_of_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = [block for block in blocks(PAGE, 'sh') if block.startswith('export')]
    name, _, value = line.removeprefix('export ').partition('=')
    (key,) = keys.keys_of('here', None, {name: value})
    assert key.id == '2026-11'


def test_the_numbers_of_the_page_are_true() -> None:
    text = ' '.join(PAGE.read_text().split())
    assert f'the last {gate.REMEMBERED:,} messages' in text
    assert f'A key is {keys.SHORTEST} bytes or more' in text
    signed = Signatures('here', '2026-11:0123456789abcdef').message(
        'an-exchange', 'key', b'{}', 'application/json', 2, 'id'
    )
    ((name, value),) = (decode_properties(signed).headers or {}).items()
    assert f'``{name}``' in text
    assert 100 < len(name) + len(value) < 150 + len('an-exchange')
    assert json.loads(value)[:2] == [1, '2026-11']
