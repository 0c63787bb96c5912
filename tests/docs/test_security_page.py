"""Each promise of the page on security has its test."""

from __future__ import annotations

import re

from support.pages import DOCS

PAGE = DOCS / 'security.rst'


def test_every_test_that_the_page_names_is_there_and_none_is_left_out() -> None:
    named = set(re.findall(r'``(tests/security/test_\w+\.py)``', PAGE.read_text()))
    there = {str(path.relative_to(DOCS.parent)) for path in (DOCS.parent / 'tests' / 'security').glob('test_*.py')}
    assert named == there
