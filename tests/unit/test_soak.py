"""``make soak`` has the long form of every test that has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MAKEFILE = TESTS.parent / 'Makefile'


def soak_tests() -> list[Path]:
    """Return the files and folders of tests that ``make soak`` runs."""
    text = MAKEFILE.read_text().replace('\\\n', ' ')
    found = re.search(r'^SOAK_TESTS := (.+)', text, re.MULTILINE)
    assert found is not None
    return [TESTS.parent / name for name in found.group(1).split()]


def has_a_long_form(path: Path) -> bool:
    """Whether a file of tests asks which form it is to have."""
    return bool(re.search(r"environ\.get\('POSTAGE_SOAK'|from support\.soak import", path.read_text()))


@pytest.mark.skipif(not MAKEFILE.exists(), reason='the tests do not run in a checkout')
def test_every_file_with_a_long_form_is_soaked() -> None:
    soaked = soak_tests()
    assert [path for path in soaked if not path.exists()] == []
    long = [path for path in sorted(TESTS.rglob('test_*.py')) if has_a_long_form(path)]
    assert len(long) > 10
    assert [path for path in long if not any(path.is_relative_to(each) for each in soaked)] == []
