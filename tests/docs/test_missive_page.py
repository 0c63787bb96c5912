"""Every Python snippet of the page on Missive runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from postage import missive
from postage.missive.dlq.sqlite import SQLiteDLQ
from support.pages import DOCS, blocks


def test_the_page_is_one_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Not as __main__: reading lines without end is what its demo is run for.
    names = {'__name__': 'page'}
    for block in blocks(DOCS / 'missive.rst', 'python'):
        exec(compile(block, 'missive.rst', 'exec'), names)
    processor: missive.Processor[missive.RawMessage] = names['processor']  # type: ignore[assignment]
    assert isinstance(processor.dlq, SQLiteDLQ)
    processor.dlq.close()
