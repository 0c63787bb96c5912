"""The microthreads of the page on concepts count as it shows."""

from __future__ import annotations

import pytest

from support.pages import DOCS, blocks

PAGE = DOCS / 'concepts.rst'


def test_the_microthreads_count_as_the_text_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(PAGE, 'python')
    exec(compile(block, PAGE.name, 'exec'), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert '::\n\n    ' + '\n    '.join(printed) + '\n\n' in PAGE.read_text()
