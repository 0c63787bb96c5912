"""The programs of the guides print what they say. Those of most guides share a process, and what it takes to start."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import docutils.nodes
import pytest
import trustme

from postage.broker.server import BrokerServer
from support.brokers import Broker
from support.pages import DOCS, ROOT, assert_prints_what_it_says, blocks, parse, promised
from support.programs import Program

GUIDES = DOCS / 'guides'
ALONE = ('asyncio_and_threads', 'coming_from', 'tls', 'types')
TOGETHER = sorted(path for path in GUIDES.glob('*.rst') if path.stem not in ALONE)


def test_most_guides_are_one_program_that_prints_what_it_says(
    broker: Broker, run_program: Callable[..., Program]
) -> None:
    assert len(TOGETHER) > 4
    assert_prints_what_it_says(['\n'.join(blocks(path, 'python')) for path in TOGETHER], broker, run_program)


def test_handlers_of_every_colour_answer(broker: Broker, run_program: Callable[..., Program]) -> None:
    program = '\n'.join(blocks(GUIDES / 'asyncio_and_threads.rst', 'python'))
    running = run_program(program, environment={'POSTAGE_URL': broker.url, 'PYTHONWARNINGS': 'error'})
    assert running.wait() == 0, running.output
    assert running.lines == ['from a coroutine', 'from a thread']
    assert promised(program) == running.lines[:1]


@pytest.mark.parametrize('name', ['postage', 'pika'])
def test_the_programs_of_both_libraries_do_the_same(
    name: str, broker: Broker, run_program: Callable[..., Program]
) -> None:
    literal = parse(GUIDES / 'coming_from.rst').findall(docutils.nodes.literal_block)
    (block,) = [block for block in literal if block['names'] == [name]]
    running = run_program(block.astext(), environment={'POSTAGE_URL': broker.url})
    assert running.wait() == 0, running.output
    assert running.lines == promised(block.astext()) == ['Hello Ada']


def test_the_programs_with_types_print_what_the_guide_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    programs, _ = blocks(GUIDES / 'types.rst', 'sh')
    answering, asking = (ROOT / 'demos' / 'typed_calls' / line.split()[1] for line in programs.splitlines())
    running = run_program(answering, environment={'POSTAGE_URL': broker.url})
    running.expect('Waiting for messages')
    caller = run_program(asking, environment={'POSTAGE_URL': broker.url})
    assert caller.wait() == 0, caller.output
    assert [caller.output.rstrip()] == blocks(GUIDES / 'types.rst', 'text')


def test_the_program_of_the_guide_on_tls_connects(tmp_path: Path, run_program: Callable[..., Program]) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / 'ca.pem')
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert('localhost').configure_cert(context)
    (program,) = blocks(GUIDES / 'tls.rst', 'python')
    with BrokerServer('localhost', 0, tls=context) as broker:
        assert "'port': 5671" in program
        running = run_program(program.replace('5671', str(broker.port)), cwd=tmp_path)
        assert running.wait() == 0, running.output
    assert running.lines == promised(program)
