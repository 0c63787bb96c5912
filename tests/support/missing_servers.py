"""What happens to tests that lack a server, or an old release: they skip, or fail where it is required.

The last lines of the output say how many have skipped and why. A test skips with the sentence
``{server} is not installed``; the tests may run in several processes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.rabbitmq_versions import PREPARED, WANTED

# The variable that makes it a failure, and the target that installs the server.
SERVERS = {
    'rabbitmq-server': ('POSTAGE_REQUIRE_RABBITMQ', 'make rabbitmq'),
    **{f'rabbitmq-server {version}': ('POSTAGE_REQUIRE_RABBITMQ', 'make brokers') for version in PREPARED},
    'redis-server': ('POSTAGE_REQUIRE_REDIS', 'make redis'),
    'Postage 1.2.1': ('POSTAGE_REQUIRE_OLD_RELEASES', 'make old-releases'),
}


def is_required(server: str) -> bool:
    """Whether a test that lacks that server is to fail."""
    return REQUIRED[server]


# Read when the tests begin: each of them runs without the variables of Postage.
REQUIRED = {server: os.environ.get(variable, '') not in ('', '0') for server, (variable, _) in SERVERS.items()}
for version in PREPARED:
    # A few tests take several versions. Those are left out where they are missing, but for the one that is asked for.
    REQUIRED[f'rabbitmq-server {version}'] &= version == WANTED


class MissingServers:
    """The plugin."""

    def __init__(self) -> None:
        self._skipped: Counter[str] = Counter()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        """Where the server is required, make the skip a failure."""
        outcome = yield
        report: pytest.TestReport = outcome.get_result()
        server = missing_server(report)
        if server is not None and REQUIRED[server]:
            report.outcome = 'failed'
            report.longrepr = f'{server} is not installed, and {SERVERS[server][0]} is set'

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the others."""
        server = missing_server(report)
        if server is not None:
            self._skipped[server] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Say what was left out, after everything else that pytest prints."""
        if hasattr(config, 'workerinput'):
            return  # the process that distributes the tests says it
        for server, count in self._skipped.items():
            note = f'{count} tests were skipped: {server} is not installed. `{SERVERS[server][1]}` installs it.'
            print(f'\n{note}')
            # `make test` repeats the note below what tox prints.
            if path := os.environ.get('POSTAGE_TEST_NOTE'):
                with Path(path).open('a') as file:
                    file.write(f'{note}\n')


def missing_server(report: pytest.TestReport) -> str | None:
    """The server for whose sake a test skipped."""
    if not report.skipped or not isinstance(report.longrepr, tuple):
        return None
    return next((server for server in SERVERS if f'{server} is not installed' in report.longrepr[2]), None)
