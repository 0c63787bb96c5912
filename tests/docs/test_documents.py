"""What holds for every document: it is valid, and what it has the reader run is there."""

from __future__ import annotations

import re
from pathlib import Path

import docutils.nodes
import pytest

from support.pages import DOCS, ROOT, parse

PAGES = sorted(DOCS.rglob('*.rst'))
FOLDERS = (ROOT, *ROOT.glob('demos/*'), ROOT / 'benchmarks')
DOCUMENTS = sorted([*PAGES, *(path for folder in FOLDERS for path in folder.glob('*.rst'))])
every_document = pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def shell_lines(path: Path) -> list[str]:
    """The lines of the blocks that are not in another language."""
    literal = parse(path).findall(docutils.nodes.literal_block)
    return [line for block in literal if 'python' not in block['classes'] for line in block.astext().splitlines()]


@every_document
def test_the_documents_are_valid(path: Path) -> None:
    parse(path)


@pytest.mark.parametrize('page', sorted(DOCS.glob('*.rst')), ids=lambda page: page.name)
def test_every_page_has_a_module_that_runs_its_snippets(page: Path) -> None:
    has_snippets = any('code' in block['classes'] for block in parse(page).findall(docutils.nodes.literal_block))
    assert Path(__file__).with_name(f'test_{page.stem}_page.py').exists() or not has_snippets


@pytest.mark.parametrize('folder', ['explanation', 'reference'])
def test_a_page_without_a_module_has_no_program(folder: str) -> None:
    pages = list((DOCS / folder).glob('*.rst'))
    literal = [block for page in pages for block in parse(page).findall(docutils.nodes.literal_block)]
    assert pages
    assert [block.astext() for block in literal if 'python' in block['classes']] == []


@pytest.mark.parametrize('path', [path for path in DOCUMENTS if path not in PAGES], ids=lambda path: path.name)
def test_what_only_the_site_knows_is_in_its_pages_alone(path: Path) -> None:
    assert re.findall(r'(?<!`):[a-z]+:`[^`]+`', path.read_text()) == []


@every_document
def test_the_targets_of_make_that_it_names_are_there(path: Path) -> None:
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    named = [line.split()[1] for line in shell_lines(path) if line.startswith('make ')]
    assert set(named) <= set(targets)


@pytest.mark.parametrize('path', sorted(ROOT.glob('demos/*/README.rst')), ids=lambda path: path.parent.name)
def test_the_programs_that_a_demo_has_the_reader_run_are_there(path: Path) -> None:
    named = {word for line in shell_lines(path) for word in line.split() if word.endswith('.py')}
    assert named
    assert named == {program.name for program in path.parent.glob('*.py') if not program.stem.endswith('_shared')}
