"""What ``postage run`` is told: by its options, by variables, by ``pyproject.toml``."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from postage.errors import ConfigurationError

PROJECT = 'pyproject.toml'
SECTION = 'tool.postage'
LISTS = ('components', 'reload_dir')  # what there may be several of


@dataclasses.dataclass(frozen=True)
class Options:
    """How components are to be run, as the supervisor and its workers know it.

    :ivar components: ``MODULE:NAME`` of each
    :ivar workers: how many processes
    :ivar concurrency: of each processor; ``None`` for its own
    :ivar grace: seconds that what is in hand has to end in
    :ivar reload: whether workers are replaced when a source changes
    :ivar reload_dirs: where the sources are
    :ivar log_format: ``text`` or ``json``
    :ivar log_level: from which level on something is logged
    :ivar status: ``HOST:PORT`` at which its health is told; ``None`` for nowhere
    :ivar confirm_time: seconds after which an unconfirmed message is a fault
    :ivar handler_time: the same, of a message in hand; ``None`` for the time-outs of the handlers alone
    """

    components: tuple[str, ...]
    workers: int = 1
    concurrency: int | None = None
    grace: float = 30.0
    reload: bool = False
    reload_dirs: tuple[str, ...] = ('.',)
    log_format: str = 'text'
    log_level: str = 'info'
    status: str | None = None
    confirm_time: float = 30.0
    handler_time: float | None = None

    def as_json(self) -> str:
        """All of it on one line."""
        return json.dumps(dataclasses.asdict(self), separators=(',', ':'))

    @classmethod
    def of_json(cls, text: str) -> Options:
        """Undo :meth:`as_json`."""
        given: dict[str, Any] = json.loads(text)
        given.update({name: tuple(value) for name, value in given.items() if isinstance(value, list)})
        return cls(**given)


def of_project(known: Collection[str] | None = None) -> dict[str, Any]:
    """What the section ``[tool.postage]`` of a ``pyproject.toml`` says, by the names of the command's parameters.

    Below it a section ``run`` says the same, and goes first.

    :param known: the names that there are; any, where it is not given
    :raises ConfigurationError: the file cannot be read, or has a name that there is not
    """
    file = Path(PROJECT)
    if not file.is_file():
        return {}
    section = _section(file)
    own = section.pop('run', {})
    if not isinstance(own, dict):
        raise ConfigurationError(
            f'{PROJECT}: [{SECTION}] run must be a section; the components are named by "components"'
        )
    given = {name.replace('-', '_'): value for name, value in {**section, **own}.items()}
    for name in given:
        if known is not None and name not in known:
            options = ', '.join(sorted(each.replace('_', '-') for each in known))
            raise ConfigurationError(f'{PROJECT}: [{SECTION}] has the unknown key {name!r:.80}; it may have {options}')
    return {name: _as_text(name, value) for name, value in given.items()}


def _as_text(name: str, value: Any) -> str | list[str]:
    """A value as it would be written on a command line, which then tells 2 from 2.5 and true."""
    if name in LISTS:
        return [str(each) for each in (value if isinstance(value, list) else [value])]
    if isinstance(value, (list, dict)):
        raise ConfigurationError(f'{PROJECT}: [{SECTION}] {name.replace("_", "-")} must be a single value')
    return str(value)


def _section(file: Path) -> dict[str, Any]:
    """The section of a file; nothing is needed to read one that has none."""
    try:
        text = file.read_text(encoding='utf-8')
        if SECTION.rpartition('.')[2] not in text:
            return {}
        toml = _toml(file)
        section: Any = toml.loads(text)
        for part in SECTION.split('.'):
            section = section.get(part, {}) if isinstance(section, dict) else section
    except (OSError, ValueError) as error:
        raise ConfigurationError(f'{file} cannot be read: {error}') from error
    if not isinstance(section, dict):
        raise ConfigurationError(f'{file}: [{SECTION}] must be a section')
    return dict(section)


def _toml(file: Path) -> Any:
    for name in ('tomllib', 'tomli'):  # Python 3.10 has no tomllib
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ConfigurationError(f"to read {file} Python 3.10 needs tomli, which comes with: pip install 'postage[run]'")
