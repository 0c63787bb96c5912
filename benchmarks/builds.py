"""Which Python the benchmarks run, and how that was built: an optimised one is what most users have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = Path('/usr/bin/python3')
OLDEST = (3, 10)

QUESTION = """
import importlib.util, json, platform, sys, sysconfig
print(json.dumps({
    'version': sys.version_info[:3],
    'compiler': platform.python_compiler(),
    'arguments': sysconfig.get_config_var('CONFIG_ARGS') or '',
    'is_debian': 'deb_system' in sysconfig.get_scheme_names(),
    'machine': platform.machine(),
    'has_venv': all(map(importlib.util.find_spec, ('venv', 'ensurepip'))),
}))
"""
"""What an interpreter is asked about itself."""

DEBIAN_OPTIMISES = ('x86_64', 'aarch64')
"""Machines for which Debian and Ubuntu build with PGO and LTO; they keep it out of ``CONFIG_ARGS`` (see the package's
changelog), so that extensions are not compiled that way."""


class NotSuitable(Exception):
    """An interpreter cannot run the benchmarks; the text says why."""


@dataclass(frozen=True)
class Build:
    """How an interpreter was built, as far as it tells.

    :ivar arguments: of its ``configure``
    :ivar is_debian: whether it is the one that Debian or Ubuntu ship
    """

    version: tuple[int, ...]
    compiler: str
    arguments: str
    is_debian: bool
    machine: str
    has_venv: bool

    @property
    def is_optimised_by_distribution(self) -> bool:
        """Whether the distribution builds it with PGO and LTO without saying so in the build."""
        return self.is_debian and self.machine in DEBIAN_OPTIMISES

    @property
    def has_pgo(self) -> bool:
        """Whether it was optimised by a profile."""
        return self.is_optimised_by_distribution or self._was_asked_for('--enable-optimizations')

    @property
    def has_lto(self) -> bool:
        """Whether it was optimised when it was linked."""
        return self.is_optimised_by_distribution or self._was_asked_for('--with-lto')

    def _was_asked_for(self, flag: str) -> bool:
        return bool(re.search(rf"{flag}(?!=no\b)(?=[='\s]|$)", self.arguments))

    def check(self, python: Path) -> None:
        """See that it can run the benchmarks.

        :raises NotSuitable: it cannot
        """
        if self.version < OLDEST:
            oldest = '.'.join(map(str, OLDEST))
            raise NotSuitable(f'{python} is Python {_dotted(self.version)}; Postage needs {oldest} or later')
        if not self.has_venv:
            raise NotSuitable(f'{python} has no venv (Debian, Ubuntu: apt-get install python3-venv)')

    def __str__(self) -> str:
        how = [name for name, has_it in (('PGO', self.has_pgo), ('LTO', self.has_lto)) if has_it]
        text = 'optimised' if self.has_pgo else 'not optimised'
        note = ": the distribution's" if self.is_optimised_by_distribution else ''
        if how:
            text += f' ({", ".join(how)}{note})'
        return f'Python {_dotted(self.version)}, {text}, {self.compiler}'


def _dotted(version: tuple[int, ...]) -> str:
    return '.'.join(map(str, version))


def build_of(python: Path) -> Build:
    """How an interpreter was built, as it says itself.

    :raises NotSuitable: it does not run, or is too old to answer
    """
    try:
        done = subprocess.run([str(python), '-c', QUESTION], capture_output=True, text=True, check=True)
        facts = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise NotSuitable(f'{python} does not say how it was built: {error}') from None
    return Build(**{**facts, 'version': tuple(facts['version'])})


def choose(asked_for: str | None, distribution: Path = DISTRIBUTION) -> Path:
    """The interpreter that the benchmarks are to run.

    :param asked_for: a name or a path; by default the distribution's where that is optimised and will do, else this one
    :raises NotSuitable: the one that is asked for will not do
    """
    if asked_for is not None:
        found = shutil.which(asked_for)
        if found is None:
            raise NotSuitable(f'there is no {asked_for}')
        build_of(Path(found)).check(Path(found))
        return Path(found)
    try:
        build = build_of(distribution)
        build.check(distribution)
    except NotSuitable:
        return Path(sys.executable)
    return distribution if build.has_pgo else Path(sys.executable)
