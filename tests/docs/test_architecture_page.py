"""The page on the architecture is true: messages go the ways that it lists, and these are no longer than allowed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import docutils.nodes
import pytest

from postage import amqp
from support.brokers import Broker
from support.pages import DOCS, ROOT, parse
from support.programs import Program

PAGE = DOCS / 'architecture.rst'
BENCHMARKS = ROOT / 'benchmarks'

on_linux = pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere the I/O thread reads, which is another way')
each_way = pytest.mark.parametrize('way', ['out', 'in'])


@pytest.fixture
def journey(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that goes the ways, and has the limits."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import journey

    return journey


def hops_on(page: Path, title: str) -> list[list[str]]:
    """The file and the function of each item of a section's numbered list."""
    [section] = [found for found in parse(page).findall(docutils.nodes.section) if found[0].astext() == title]
    [listed] = section.findall(docutils.nodes.enumerated_list)
    return [[literal.astext() for literal in item.findall(docutils.nodes.literal)][:2] for item in listed]


def files_of(package: str) -> list[str]:
    files = sorted(path.name for path in (ROOT / 'postage' / package).glob('*.py') if path.stem != '__init__')
    assert len(files) > 20
    return files


@on_linux
@each_way
def test_a_message_goes_the_way_that_the_page_lists_and_no_other(
    journey: ModuleType, way: str, broker: Broker, run_program: Callable[..., Program]
) -> None:
    program = run_program(
        BENCHMARKS / 'journey.py', [way, '--json', '--url', broker.url], environment={'POSTAGE_FAST_LANE': 'direct'}
    )
    assert program.wait() == 0, program.output
    assert json.loads(program.output) == hops_on(PAGE, journey.WAYS[way].title)


@each_way
def test_a_way_has_no_more_hops_than_it_may(journey: ModuleType, way: str) -> None:
    assert 0 < len(hops_on(PAGE, journey.WAYS[way].title)) <= journey.WAYS[way].limit


def test_every_file_and_function_of_a_list_is_in_the_sources(journey: ModuleType) -> None:
    hops = [tuple(hop) for way in journey.WAYS.values() for hop in hops_on(PAGE, way.title)]
    sources = {file: journey.functions_of(str(journey.PACKAGE / file)).values() for file, _ in hops}
    assert [hop for hop in hops if hop[1] not in {name for name, _ in sources[hop[0]]}] == []


def passed_over() -> None:
    """A docstring is no statement."""
    if passed_over:
        one = 1
        assert one


def long() -> None:
    passed_over()
    if long:
        one = 1
        assert one


def hands_on() -> None:
    return long()


class Constructed:
    def __init__(self) -> None:
        pass


def test_only_what_is_short_and_leads_nowhere_is_passed_over(journey: ModuleType) -> None:
    callees = {long.__code__: {passed_over.__code__}, hands_on.__code__: {long.__code__}}
    functions = [passed_over, long, hands_on, Constructed.__init__]
    assert [journey.is_hop(function.__code__, callees) for function in functions] == [False, True, True, True]


def test_what_follows_a_hop_stays_with_it_when_the_lists_are_made_anew(
    journey: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / 'page.rst'
    sections = {name: f'{way.title}\n{"-" * len(way.title)}\n\nWords.\n' for name, way in journey.WAYS.items()}
    page.write_text(
        f'Page\n====\n\n{sections["out"]}\n1. ``a.py``: ``f``: packs it\n2. ``a.py``: ``g``: sends it\n\n'
        f'{sections["in"]}\n1. ``b.py``: ``h``\n'
    )
    monkeypatch.setattr(journey, 'PAGE', page)
    out = [journey.Hop('c.py', 'new'), journey.Hop('a.py', 'g')]
    journey.write({'out': out, 'in': [journey.Hop('b.py', 'h'), journey.Hop('b.py', 'i')]})
    assert hops_on(page, journey.WAYS['out'].title) == [['c.py', 'new'], ['a.py', 'g']]
    assert hops_on(page, journey.WAYS['in'].title) == [['b.py', 'h'], ['b.py', 'i']]
    assert '2. ``a.py``: ``g``: sends it\n' in page.read_text()
    assert 'packs it' not in page.read_text()


def test_the_page_says_of_each_file_of_the_public_api_what_it_is_for() -> None:
    named = PAGE.read_text(encoding='utf-8')
    assert [file for file in files_of('messaging') if f'``{file}``' not in named] == []


def test_the_glossary_says_of_each_file_on_the_way_to_the_broker_what_it_is_for() -> None:
    named = amqp.__doc__ or ''
    assert [file for file in files_of('amqp') if f'``{file}``' not in named] == []
