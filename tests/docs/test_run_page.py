"""The page on ``postage run``: its program runs, its file is read, and it has every option and exit status."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

from postage.broker.server import BrokerServer
from postage.cli.run.command import command
from support.pages import DOCS, blocks
from support.programs import Module

PAGE = DOCS / 'run.rst'


def test_the_example_runs_as_the_page_and_its_file_say(tmp_path: Path, run_module: Callable[..., Module]) -> None:
    (example,), (line,), (project,) = (blocks(PAGE, language) for language in ('python', 'sh', 'toml'))
    (tmp_path / 'shop.py').write_text(example)
    with BrokerServer('127.0.0.1', 0) as broker:
        first = run_module('postage', shlex.split(line)[1:], {'POSTAGE_URL': broker.url})
        first.expect('is ready', times=2)
        (tmp_path / 'pyproject.toml').write_text(project)
        second = run_module('postage', ['run'], {'POSTAGE_URL': broker.url})
        second.expect('"message": "worker', times=2)
        assert sorted(broker.queues('/')) == ['orders', 'prices']
        assert [counts.consumers for counts in broker.queues('/').values()] == [4, 4]
        for program in (first, second):
            program.send_signal(signal.SIGTERM)
            assert program.wait() == 0


def test_the_page_has_every_option() -> None:
    names = [name for option in command.params for name in option.opts if name.startswith('--') and name != '--help']
    assert names
    assert [name for name in names if f'``{name}``' not in PAGE.read_text()] == []
