"""Every link of the finished site that stays inside it leads to a page that is there, and to an anchor on it.

Sphinx checks the links that it makes itself. This one reads what was written, so that a link to ``page.rst``, or a raw
one to a section that has another name now, is a warning as well.
"""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

_logger = logging.getLogger(__name__)
MADE_BY_SPHINX = ('genindex.html', 'search.html', 'py-modindex.html')


class Page(HTMLParser):
    """The links of a page, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == 'id':
                self.anchors.add(value)
            elif (tag, name) in {
                ('a', 'href'),
                ('img', 'src'),
                ('object', 'data'),
                ('link', 'href'),
                ('script', 'src'),
            }:
                self.links.append(value)


def broken_links(folder: Path) -> list[tuple[str, str]]:
    """Return the pages of a site, each with a link that leads nowhere."""
    pages = {path: Page(path) for path in sorted(folder.rglob('*.html'))}
    return [
        (str(path.relative_to(folder)), link)
        for path, page in pages.items()
        for link in page.links
        if not _leads_somewhere(link, path, pages)
    ]


def _leads_somewhere(link: str, path: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True  # it leaves the site
    # Not resolve(): what the site links to is looked up as the browser does, by its name.
    target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
    if target not in pages:
        return target.is_file()
    anchor = unquote(parts.fragment)
    return not anchor or anchor in pages[target].anchors or target.name in MADE_BY_SPHINX


def _check(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == 'html':
        for page, link in broken_links(Path(app.outdir)):
            _logger.warning('%s: the link %r leads nowhere', page, link, type='offline_links')


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect('build-finished', _check)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
