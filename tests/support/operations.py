"""How long blocking operations wait for the broker, for tests of those that wait in vain."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import FunctionType
from typing import Any

import pytest

import postage.amqp

CONSTANT = 'OPERATION_TIMEOUT'


def limit_operations(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have blocking operations raise after so many seconds."""
    found = False
    for module in amqp_modules():
        usual = getattr(module, CONSTANT, None)
        if usual is None:
            continue
        monkeypatch.setattr(module, CONSTANT, seconds)
        for function in functions_of(module):  # whose default was read when they were defined
            defaults = function.__defaults__ or ()
            if any(default is usual for default in defaults):
                changed = tuple(seconds if default is usual else default for default in defaults)
                monkeypatch.setattr(function, '__defaults__', changed)
            found = True
    assert found, f'nothing in postage.amqp has a {CONSTANT}'


def amqp_modules() -> Iterator[Any]:
    """The modules of ``postage.amqp``."""
    for module in pkgutil.iter_modules(postage.amqp.__path__):
        yield import_module(f'{postage.amqp.__name__}.{module.name}')


def functions_of(module: Any) -> Iterator[FunctionType]:
    """The functions and methods that a module defines."""
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    for owner in (module, *classes):
        yield from (each for each in vars(owner).values() if isinstance(each, FunctionType))
