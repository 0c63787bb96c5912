"""What tests have to say beside whether they have passed, in the last lines of the output."""

from __future__ import annotations

from typing import Any

import pytest

NOTE = 'note'


class Notes:
    """The plugin. Tests write notes with the fixture ``record_note``; they may run in several processes."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == 'teardown':
            self._notes += [str(text) for name, text in report.user_properties if name == NOTE]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._notes:
            terminalreporter.section('notes')
            for text in self._notes:
                terminalreporter.line(text)
