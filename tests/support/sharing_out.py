"""How the files of tests are shared out among the processes that run them."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling


class FileByFile(LoadFileScheduling):
    """A file's tests stay in one process, for they share what it took to set up.

    All the others are still run when a process dies. That needs more than pytest-xdist does: it gives what the dead
    process has done to another one, which then waits for the end of nothing, and runs the test again that it died in.
    """

    def remove_node(self, node: Any) -> str | None:
        """Take back what a process has not done.

        :return: the test that it died in; ``None`` where it has done all
        """
        work = self.assigned_work.pop(node)
        left = [(file, test) for file, tests in work.items() for test, is_done in tests.items() if not is_done]
        if not left:
            return None
        file, died_in = left[0]
        work[file][died_in] = True
        self.workqueue.update({file: tests for file, tests in work.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return died_in

    def _reschedule(self, node: Any) -> None:
        """Give a process more to do where it has little left: it begins a test once it knows the one after it."""
        if node not in self.registered_collections:
            return  # it takes the place of one that died, and has not said yet that it is ready
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)


class SharingOut:
    """The plugin, for the process that reports. It also says with what status a process died: -9 is SIGKILL."""

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> FileByFile | None:
        return FileByFile(config, log) if config.getvalue('dist') == 'loadfile' else None

    @pytest.hookimpl(trylast=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if not error:
            return
        try:
            status = node.gateway._io.popen.wait(5)
        except subprocess.TimeoutExpired:
            status = None
        reporter = node.config.pluginmanager.getplugin('terminalreporter')
        reporter.write_line(f'{node.gateway.id} has ended with status {status}')
