"""Stores of every kind, and the bench for what takes a broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fixtures import bench
from support.letters import KINDS, make_store

__all__ = ['bench', 'path', 'store']


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be."""
    return tmp_path / 'letters.db'


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[Any]:
    """An empty store; a test that takes it runs on every kind."""
    with make_store(request, monkeypatch, path) as store:
        yield store
