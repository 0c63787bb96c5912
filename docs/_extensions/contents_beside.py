"""The theme lists a page's sections beside it, so the list that a page has for other readers is left out."""

from docutils.parsers.rst.directives.parts import Contents
from sphinx.application import Sphinx


class NoContents(Contents):
    """The directive ``contents``, which leaves nothing."""

    def run(self):
        return []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive('contents', NoContents, override=True)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
