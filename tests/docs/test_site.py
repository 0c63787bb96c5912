"""The site: every page is in its table of contents, and it is made without a warning, so every link leads somewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from support.pages import DOCS, make_site

pytestmark = pytest.mark.timeout(300)  # to make the site, on a machine that does much else

PAGES = sorted(str(path.relative_to(DOCS).with_suffix('')) for path in DOCS.rglob('*.rst'))


def listed() -> list[str]:
    """The pages in a table of contents, below the folder of the page that has it."""
    return [
        os.path.normpath(path.relative_to(DOCS).parent / line.strip())
        for path in DOCS.rglob('*.rst')
        for toctree in re.findall(r'^\.\. toctree::\n((?:(?: .*)?\n)*)', path.read_text(), re.MULTILINE)
        for line in toctree.splitlines()
        if re.fullmatch(r'   [\w/]+', line)
    ]


@pytest.mark.parametrize('page', [page for page in PAGES if page != 'index'])
def test_every_page_is_in_one_table_of_contents(page: str) -> None:
    times = listed().count(page)
    assert times == 1, (
        f'docs/{page}.rst is in {times} tables of contents. Add the line `   {page}` to docs/index.rst, once: below '
        'Guides if it answers a question, below Reference where it is looked up, under Explanation where it says why.'
    )


def test_the_site_has_every_page_and_a_search(site: Path) -> None:
    assert [page for page in [*PAGES, 'search'] if not (site / f'{page}.html').exists()] == []


def test_the_search_finds_max_deliveries(site: Path) -> None:
    assert 'max_deliveri' in (site / 'searchindex.js').read_text()


def test_a_link_that_leads_nowhere_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / 'conf.py').write_text(
        f'import sys\nsys.path.insert(0, {str(DOCS / "_extensions")!r})\nextensions = ["offline_links"]\n'
    )
    (tmp_path / 'index.rst').write_text(
        'Page\n====\n\n`here <index.html#page>`__, `there <other.html>`__ and `below <index.html#below>`__\n'
    )
    made = make_site(tmp_path, tmp_path / 'site')
    assert made.returncode == 1
    found = re.findall("the link '(.*)' leads nowhere", made.stderr)
    assert found == ['other.html', 'index.html#below']
