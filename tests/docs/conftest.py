"""The bench, for what takes a broker, and the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.fixtures import bench
from support.pages import DOCS, make_site

__all__ = ['bench', 'site', 'site_text']


@pytest.fixture(scope='session')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished site."""
    folder = tmp_path_factory.mktemp('site')
    made = make_site(DOCS, folder)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope='session')
def site_text(site: Path) -> dict[str, str]:
    """Its pages by name, without the markup inside a line but for anchors."""
    inside = re.compile(r'</?(?:span|code|em|strong|a)\b(?![^>]* id=)[^>]*>')
    return {
        str(path.relative_to(site).with_suffix('')): inside.sub('', path.read_text()) for path in site.rglob('*.html')
    }
