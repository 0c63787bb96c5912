"""Passwords and keys of the tests, which can be told from anything else, and where they turn up.

What tests use for passwords and keys is made by :mod:`support.canary`. At the end of a run :class:`Watch` has searched
all that the tests printed, logged and failed with, and their programs, too; where one was found, the run fails.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytest

from support.canary import CANARY

SIGHTING = 'canary'


def sightings(text: str) -> list[str]:
    """Where a canary is in a text, as it is or quoted or encoded: each time with what surrounds it."""
    found = []
    for form in FORMS:
        at = text.find(form)
        while at >= 0:
            found.append(text[max(0, at - 60) : at + 60])
            at = text.find(form, at + 1)
    return found


def _forms() -> Iterator[str]:
    """A canary as it is, in octets as the broker shows them, and in base64 at each of its three offsets."""
    octets = CANARY.encode()
    yield CANARY
    yield ','.join(map(str, octets))
    yield octets.hex()
    for offset in range(3):
        # The first and the last characters depend on what is before and behind it.
        yield base64.b64encode(bytes(offset) + octets).decode()[4 if offset else 0 : -4]


FORMS = tuple(_forms())


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception with its causes, its contexts (suppressed or not), and the members of groups."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__, *getattr(each, 'exceptions', ())]


def frames_of(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def leaks(error: BaseException, package: str = 'postage') -> list[str]:
    """Where an exception, or a local variable of a frame on its way, shows a canary.

    :param package: the frames of its modules are looked at, and those of all that it called
    """
    found = []
    for each in chain(error):
        texts = {f'{type(each).__name__}': f'{each!r} {each} {getattr(each, "__notes__", "")}'}
        is_ours = False
        for frame in frames_of(each.__traceback__):
            is_ours = is_ours or str(frame.f_globals.get('__name__')).partition('.')[0] == package
            if is_ours:
                where = f'{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}'
                texts |= {f'{where}: {name}': shown(value) for name, value in frame.f_locals.items()}
        found += [f'{where} = {text[:100]}' for where, text in texts.items() if sightings(text)]
    return found


def shown(value: Any) -> str:
    """A value as tools show it: by ``repr()``, and its items one by one, as those do that walk containers."""
    try:
        text = repr(value)
    except Exception as error:
        text = f'repr: {error}'
    if isinstance(value, str):
        text += str.__str__(value)
    if isinstance(value, dict):
        text += ' '.join(map(shown, dict.values(value)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        text += ' '.join(map(shown, value))
    return text


# The search at the end of a run

_noted: list[tuple[str, str]] = []


def note(where: str, text: str) -> None:
    """Search what a test has got hold of by itself, such as the output of a program; the run fails if that is found."""
    _noted.extend((where, found) for found in sightings(text))


def watch_commands() -> None:
    """Search what commands print that tests run in this process, where there is a command at all."""
    if importlib.util.find_spec('click') is None:
        return
    from click.testing import CliRunner

    invoke = CliRunner.invoke

    @functools.wraps(invoke)
    def invoke_and_note(self: CliRunner, *args: Any, **kwds: Any) -> Any:
        result = invoke(self, *args, **kwds)
        note('the output of a command', f'{result.output} {result.exception}')
        return result

    if not hasattr(invoke, '__wrapped__'):
        CliRunner.invoke = invoke_and_note  # type: ignore[method-assign]


MADE_BY_TESTS = ('*.py', '*.pem', '*.toml', 'password*', 'keys*')
"""Files in which a test itself has put what is secret."""
LARGEST = 2**22  # bytes of a file that is searched


def files_with_canaries(folder: Path) -> Iterator[tuple[str, str]]:
    """The files below a folder that have one, stores and recordings among them, each with what surrounds it."""
    for path in folder.rglob('*'):
        is_ours = not any(path.match(pattern) for pattern in MADE_BY_TESTS)
        if is_ours and path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST:
            for found in sightings(path.read_bytes().decode('latin-1')):
                yield f'file {path.name}', found


class Watch:
    """The plugin: the run fails where a password or a key of a test was printed, logged, or quoted by an error."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[Any]:
        """Hand what was noted to the process that reports, which may be another one."""
        report: pytest.TestReport = yield
        folder = getattr(item, 'funcargs', {}).get('tmp_path')
        if report.when == 'call' and isinstance(folder, Path):
            _noted.extend(files_with_canaries(folder))
        report.user_properties += [(SIGHTING, f'{where}: {found}') for where, found in _noted]
        _noted.clear()
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Search what a test has printed and logged, and its error."""
        seen = [str(text) for name, text in report.user_properties if name == SIGHTING]
        for name, text in (*report.sections, ('the error', report.longreprtext)):
            seen += [f'{name}: {found}' for found in sightings(text)]
        self.found += [f'{report.nodeid}: {each!r}' for each in dict.fromkeys(seen)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run."""
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say where."""
        if self.found:
            terminalreporter.section('passwords or keys that were written', sep='=', red=True)
            for line in dict.fromkeys(self.found):
                terminalreporter.line(line[:300])
