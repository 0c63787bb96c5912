"""The bench, for what takes a broker, and the site."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

import pytest

from support.fixtures import bench
from support.pages import DOCS, make_site

__all__ = ['bench', 'site', 'site_text']


@pytest.fixture(scope='session')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished site, which the processes that run tests share."""
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    site, is_made = folder / 'site', folder / 'site-is-made'
    with (folder / 'site.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not is_made.exists():
            made = make_site(DOCS, site)
            assert made.returncode == 0, made.stdout + made.stderr
            is_made.touch()
    return site


@pytest.fixture(scope='session')
def site_text(site: Path) -> dict[str, str]:
    """Its pages by name, without the markup inside a line but for anchors."""
    inside = re.compile(r'</?(?:span|code|em|strong|a)\b(?![^>]* id=)[^>]*>')
    return {
        str(path.relative_to(site).with_suffix('')): inside.sub('', path.read_text()) for path in site.rglob('*.html')
    }
