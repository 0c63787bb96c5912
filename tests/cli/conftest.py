"""The command, and stores of every kind for it to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fixtures import bench
from support.letters import KINDS, make_store
from support.programs import Module

__all__ = ['bench', 'path', 'run', 'store', 'where']


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be."""
    return tmp_path / 'letters.db'


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[Any]:
    """An empty store; a test that takes it runs on every kind."""
    with make_store(request, monkeypatch, path) as store:
        store.count()  # it exists
        yield store


@pytest.fixture
def where(store: Any) -> list[str]:
    """The options that lead to the store."""
    return ['--store', str(store.path)] if hasattr(store, 'path') else ['--queue', store.name]


@pytest.fixture
def run(run_module: Callable[..., Module]) -> Callable[..., Module]:
    """A function that starts ``postage dead-letters`` with arguments."""

    def start(*arguments: Any, **environment: str) -> Module:
        return run_module('postage.cli', ['dead-letters', *map(str, arguments)], environment)

    return start
