"""The page on upgrading has the table that the programs give, and a checklist that fits on one screen."""

from __future__ import annotations

import docutils.nodes

from support import fidelity
from support.pages import DOCS, parse

PAGE = DOCS / 'upgrading.rst'
SCREEN = 40  # lines


def test_the_table_is_that_of_the_programs() -> None:
    assert fidelity.table_of_the_page() == fidelity.table(), '`make table` writes it anew'


def test_every_program_has_its_row() -> None:
    (table,) = parse(PAGE).findall(docutils.nodes.table)
    (body,) = table.findall(docutils.nodes.tbody)
    verdicts = [row[1].astext() for row in body.findall(docutils.nodes.row)]
    assert len(verdicts) == len(fidelity.rows())
    assert set(verdicts) == set(fidelity.VERDICTS)


def test_every_row_that_is_not_the_same_says_why_or_what_instead() -> None:
    assert all(row.why for row in fidelity.rows() if row.verdict != 'same')


def test_the_checklist_fits_on_one_screen() -> None:
    _, _, rest = PAGE.read_text().partition('The checklist\n')
    checklist, _, _ = rest.partition('\nWhat was tried\n')
    assert len(checklist.splitlines()) <= SCREEN
