"""Exceptions that travel: those that a responder raises and its caller gets as themselves.

Both sides register the class. What travels is the name under which it is registered, and the exception's arguments, in
the result's ``_reserved``; nothing of it is code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import MemberDescriptorType
from typing import Any, TypeVar, overload

from postage import errors
from postage.printable import shown

E = TypeVar('E', bound=Exception)

_registered: dict[str, type[Exception]] = {}


@overload
def remote_exception(exception: type[E]) -> type[E]: ...
@overload
def remote_exception(*, name: str) -> Callable[[type[E]], type[E]]: ...
def remote_exception(exception: Any = None, *, name: str | None = None) -> Any:
    """Register an exception class, which this decorates, so that an RPC raises it at the caller as itself.

    Both sides register a class of that name. What travels is what the exception's ``args`` and its attributes hold, as
    far as the encoder can encode it. The other side calls the class with those ``args``; where it does not take them,
    for its constructor gives other ones to its base, it is made without its constructor. It is ``reply.unwrap()``, or
    ``value()`` of a future, that raises it; a side that has not registered it gets a ``RemoteError``.

    :param name: under which it is registered; by default that of the class
    :raises errors.ConfigurationError: it is no exception class, or another class has that name
    """
    if exception is None:
        return lambda decorated: _register(decorated, name)
    return _register(exception, name)


def _register(exception: Any, name: str | None) -> Any:
    if not isinstance(exception, type) or not issubclass(exception, Exception):
        raise errors.ConfigurationError(f'@remote_exception decorates classes of exceptions, not {shown(exception)}')
    name = exception.__name__ if name is None else name
    if not isinstance(name, str):
        raise errors.ConfigurationError(f'@remote_exception: the name must be text, not {shown(name)}')
    known = _registered.get(name, exception)
    if (known.__module__, known.__qualname__) != (exception.__module__, exception.__qualname__):
        where = f'{known.__module__}.{known.__qualname__}'
        raise errors.ConfigurationError(f'@remote_exception: {where} is registered as {name!r}; give one a name=')
    _registered[name] = exception
    return exception


def packed(error: BaseException) -> dict[str, Any] | None:
    """What travels of a registered exception; ``None`` for all others."""
    for name, exception in _registered.items():
        if type(error) is exception:
            # What an OSError was made of; its args lack the name of the file.
            arguments = OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args
            slots = {slot: getattr(error, slot) for slot in _slots_of(exception) if hasattr(error, slot)}
            return {'name': name, 'args': list(arguments), 'attributes': {**slots, **vars(error)}}
    return None


def unpacked(exception: Any) -> Exception | None:
    """The exception that a result carries; ``None`` where it is none that is registered here."""
    if not isinstance(exception, Mapping):
        return None
    name, arguments = exception.get('name'), exception.get('args')
    cls = _registered.get(name) if isinstance(name, str) else None
    if cls is None or not isinstance(arguments, list):
        return None
    made: Any = None
    with contextlib.suppress(Exception):
        made = cls(*arguments)
    attributes = exception.get('attributes')
    if not isinstance(attributes, dict):
        return made if isinstance(made, cls) else None  # the other side has another version of it
    if not isinstance(made, cls):
        with contextlib.suppress(Exception):
            made = cls.__new__(cls, *arguments)
    if not isinstance(made, cls):
        return None
    # Of Python's own classes the nearest. It makes `args` of them, of which the constructor may have made others.
    builtin: Any = next(each for each in cls.__mro__ if each.__module__ == 'builtins')
    try:
        builtin.__init__(made, *arguments)
    except Exception:
        return None  # it wants what does not travel, such as bytes
    slots = _slots_of(cls)
    for name, value in attributes.items():  # whatever its __setattr__ says
        if name in slots:
            slots[name].__set__(made, value)
        else:
            vars(made)[name] = value
    return made


def _slots_of(cls: type[Exception]) -> dict[str, MemberDescriptorType]:
    """Those of its attributes that its ``__slots__`` name, which are in no dictionary of an object."""
    own = [ancestor for ancestor in cls.__mro__ if ancestor.__module__ != 'builtins']
    found = [(name, value) for ancestor in own for name, value in vars(ancestor).items()]
    return {name: value for name, value in found if isinstance(value, MemberDescriptorType)}
