"""What ``MODULE:NAME`` on a command line stands for: components, imported from the program and made."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any

from postage import errors
from postage.printable import printable, shown


@contextlib.contextmanager
def present_directory() -> Generator[None, None, None]:
    """Have modules found where the command is run, as ``python -m`` has."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def components_of(
    target: str, kinds: tuple[type[Any], ...], what: str, known: Mapping[str, Callable[[Any], Any]] | None = None
) -> list[Any]:
    """Import and make what ``MODULE:NAME`` stands for: one object, its class, or a function that returns some.

    :param kinds: what each has to be
    :param what: these, in words
    :param known: arguments that are given to a class which cannot do without: name → makes it, and gets the class
    :raises errors.ConfigurationError: it cannot be imported or made; what the program's own code raised is its cause
    """
    with _told(target):
        module, _, name = target.partition(':')
        found: Any = importlib.import_module(module)
        for part in name.split('.'):
            found = getattr(found, part)
    if callable(found) and not isinstance(found, kinds):
        needed = _needed(found)
        given = {name: (known or {})[name](found) for name in needed if name in (known or {})}
        missing = [name for name in needed if name not in given]
        if missing:
            raise errors.ConfigurationError(
                f'{target} needs {", ".join(missing)}; name a function without arguments that makes one'
            )
        with _told(target):
            found = found(**given)
    components = list(found) if isinstance(found, Iterable) and not isinstance(found, (str, *kinds)) else [found]
    if not components:
        raise errors.ConfigurationError(f'{target} makes nothing: no {what}')
    for component in components:
        if not isinstance(component, kinds):
            raise errors.ConfigurationError(f'{target} is no {what}, and makes none, but {shown(component)}')
    return components


def check_targets(targets: Iterable[str]) -> None:
    """See that each is ``MODULE:NAME``.

    :raises errors.ConfigurationError: one is not
    """
    for target in targets:
        if '://' in target:  # not repeated: a URL may have a password
            raise errors.ConfigurationError('a URL is no MODULE:NAME; POSTAGE_URL says which broker')
        if not all(target.partition(':')):
            raise errors.ConfigurationError(f'{printable(target)!r} is no MODULE:NAME, such as shop:Shipper')


@contextlib.contextmanager
def _told(target: str) -> Generator[None, None, None]:
    """What the program's own code raises, as an error in one line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        kind = '' if isinstance(error, errors.PostageError) else f'{type(error).__name__}: '
        raise errors.ConfigurationError(f'{target}: {kind}{error}') from error.with_traceback(_own(error.__traceback__))


def _own(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback from where the program's own code begins; ``None`` where that was not reached."""
    while traceback is not None and _is_loading(traceback.tb_frame.f_code.co_filename):
        traceback = traceback.tb_next
    return traceback


def _is_loading(file: str) -> bool:
    return file.startswith('<frozen') or file in (__file__, importlib.__file__)


def is_of_program(error: errors.PostageError) -> bool:
    """Whether the program's own code raised what :func:`components_of` told, so that where it did is worth showing."""
    cause = error.__cause__
    if cause is None or isinstance(cause, errors.PostageError):
        return False
    return isinstance(cause, SyntaxError) or cause.__traceback__ is not None


def _needed(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function cannot do without."""
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind not in any_number]
