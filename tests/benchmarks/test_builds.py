"""Which Python the benchmarks run, and that their report names how it was built."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that tells builds apart."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import builds

    return builds


@pytest.fixture
def python_that_says(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a program which answers as an interpreter of that build does."""

    def make(**facts: object) -> Path:
        told = {
            'version': [3, 11, 2],
            'compiler': 'GCC 12.2.0',
            'arguments': '',
            'is_debian': False,
            'machine': 'x86_64',
            'has_venv': True,
            **facts,
        }
        program = tmp_path / f'python{len(list(tmp_path.iterdir()))}'
        program.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
        program.chmod(0o755)
        return program

    return make


@pytest.mark.parametrize(
    ('facts', 'text'),
    [
        ({'arguments': "'--prefix=/opt'"}, 'Python 3.11.2, not optimised, GCC 12.2.0'),
        ({'arguments': "'--enable-optimizations'"}, 'Python 3.11.2, optimised (PGO), GCC 12.2.0'),
        (
            {'arguments': "'--enable-optimizations' '--with-lto=full'"},
            'Python 3.11.2, optimised (PGO, LTO), GCC 12.2.0',
        ),
        ({'arguments': "'--with-lto'"}, 'Python 3.11.2, not optimised (LTO), GCC 12.2.0'),
        ({'arguments': "'--enable-optimizations=no'"}, 'Python 3.11.2, not optimised, GCC 12.2.0'),
        ({'is_debian': True}, "Python 3.11.2, optimised (PGO, LTO: the distribution's), GCC 12.2.0"),
        ({'is_debian': True, 'machine': 'mips64'}, 'Python 3.11.2, not optimised, GCC 12.2.0'),
    ],
)
def test_a_build_says_whether_it_was_optimised_and_by_which_compiler(
    builds: ModuleType, python_that_says: Callable[..., Path], facts: dict[str, object], text: str
) -> None:
    assert str(builds.build_of(python_that_says(**facts))) == text


def test_the_build_of_this_interpreter_has_its_version(builds: ModuleType) -> None:
    assert str(builds.build_of(Path(sys.executable))).startswith(f'Python {platform.python_version()}, ')


def test_the_distributions_python_is_chosen_where_it_is_optimised_and_suitable(
    builds: ModuleType, python_that_says: Callable[..., Path]
) -> None:
    optimised = python_that_says(arguments="'--enable-optimizations'")
    assert builds.choose(None, distribution=optimised) == optimised


@pytest.mark.parametrize(
    'facts',
    [
        {'arguments': ''},
        {'arguments': "'--enable-optimizations'", 'version': [3, 9, 2]},
        {'arguments': "'--enable-optimizations'", 'has_venv': False},
    ],
)
def test_this_interpreter_is_chosen_where_the_distributions_will_not_do(
    builds: ModuleType, python_that_says: Callable[..., Path], facts: dict[str, object]
) -> None:
    assert builds.choose(None, distribution=python_that_says(**facts)) == Path(sys.executable)


def test_this_interpreter_is_chosen_where_the_distribution_has_none(builds: ModuleType, tmp_path: Path) -> None:
    assert builds.choose(None, distribution=tmp_path / 'absent') == Path(sys.executable)


def test_an_interpreter_that_is_asked_for_is_taken(builds: ModuleType, python_that_says: Callable[..., Path]) -> None:
    asked_for, optimised = python_that_says(), python_that_says(arguments="'--enable-optimizations'")
    assert builds.choose(str(asked_for), distribution=optimised) == asked_for


def test_an_interpreter_that_is_asked_for_and_will_not_do_is_an_error(
    builds: ModuleType, python_that_says: Callable[..., Path]
) -> None:
    with pytest.raises(builds.NotSuitable, match=r'is Python 3\.9\.2; Postage needs 3\.10 or later'):
        builds.choose(str(python_that_says(version=[3, 9, 2])))
    with pytest.raises(builds.NotSuitable, match='has no venv'):
        builds.choose(str(python_that_says(has_venv=False)))
    with pytest.raises(builds.NotSuitable, match='there is no python-of-nowhere'):
        builds.choose('python-of-nowhere')
