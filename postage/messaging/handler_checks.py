"""What can be wrong with the handlers of a class, told when a processor is made and not by its first message."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from postage import errors
from postage.messaging.messages import Message, MessageCommand, MessageResult, MessageStatus
from postage.printable import shown

TYPES = frozenset(cls.type for cls in (Message, MessageCommand, MessageStatus, MessageResult))
"""The types of the messages that Postage knows. Others are those of classes derived from ``messaging.Message``."""

HOOKS: dict[str, tuple[str, ...]] = {
    'before_processing': (),
    'after_processing': (),
    'before_handling': ('handling',),
    'after_handling': ('handling',),
}
"""The hooks of a processor, and what each is called with."""

_WAITING = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)

ALIKE = 0.8  # difflib's ratio, from which a word is taken for another one that is written wrongly


def check_type(label: str, type: str, name: str | None) -> None:
    """See that there are messages of the type of a handler: no mistyped one, nor one in the place of the name.

    :param label: what to call the handler
    :raises errors.ConfigurationError: there are none
    """
    known = _known_types()
    if type in known:
        return
    wrong = f'the handler {label} takes messages of type {type!r}'
    import difflib  # which no program needs that is right

    alike = difflib.get_close_matches(type.strip().lower(), known, 1, ALIKE)
    if alike:
        wrong += f': is {alike[0]!r} meant?'
    elif not type or name is None or name in TYPES:
        wrong += f" and name {name!r}: the type comes first, as in ('command', 'echo')."
    else:
        wrong += ', which no messages have.'
    words = ', '.join(repr(each) for each in sorted(known))
    raise errors.ConfigurationError(
        f'{wrong} The types are {words}; one of your own is that of a class derived from messaging.Message'
    )


def _known_types() -> set[str]:
    return {*TYPES, *(str(cls.type) for cls in _subclasses(Message))}


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    subclass: type[Any]
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def check_parameters(label: str, handler: Any, decorator: str, *given: str) -> None:
    """See that a handler can be called with what its decorator gives it.

    :param handler: the bound method, or the class
    :param given: what it gets, in words
    :raises errors.ConfigurationError: it cannot
    """
    misfit = _misfit(handler, *given)
    if misfit is not None:
        signature, error = misfit
        raise errors.ConfigurationError(
            f'the handler {label}{signature} does not fit its decorator: {decorator} calls it with '
            f'{", ".join(given)} ({error})'
        )


def check_filter(label: str, function: Any, args: tuple[Any, ...], kwds: Mapping[str, Any]) -> None:
    """See that a filter can be called with what its handler would get, and its own arguments.

    :param label: what to call the handler
    :raises errors.ConfigurationError: it cannot, or is a coroutine
    """
    name = f'the filter {getattr(function, "__name__", shown(function))} of the handler {label}'
    if inspect.iscoroutinefunction(function):
        raise errors.ConfigurationError(f'{name} must be a plain function: a coroutine is not waited for')
    misfit = _misfit(function, 'message', *args, **kwds)
    if misfit is not None:
        given = ['the message', *map(shown, args), *(f'{key}={shown(value)}' for key, value in kwds.items())]
        raise errors.ConfigurationError(
            f'{name} takes {misfit[0]}, and is called with {", ".join(given)} ({misfit[1]})'
        )


def check_hooks(processor: Any) -> None:
    """See that the hooks of a processor can be called before and after its handlers.

    :raises errors.ConfigurationError: one cannot, or what it does would have to be waited for
    """
    for name, given in HOOKS.items():
        label, hook = f'the hook {type(processor).__name__}.{name}', getattr(processor, name)
        if any(kind(hook) for kind in _WAITING):
            raise errors.ConfigurationError(f'{label} must be a plain function: coroutines and generators are not run')
        misfit = _misfit(hook, *given)
        if misfit is not None:
            what = ', '.join(given) or 'nothing'
            raise errors.ConfigurationError(f'{label}{misfit[0]} is called with {what} ({misfit[1]})')


def _misfit(function: Any, *given: Any, **named: Any) -> tuple[inspect.Signature, TypeError] | None:
    """What a function takes, and why it cannot be called so; ``None`` where it can, or that is not known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None  # it is written in C, say
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        return signature, error
    return None


def check_alone(answering: Mapping[tuple[str, str | None], list[str]], cls: str) -> None:
    """See that of the RPC handlers in one class no two take the same requests: only one of them could answer.

    :param answering: type and name of the requests → the methods that take them
    :raises errors.ConfigurationError: two do
    """
    for (type, name), methods in answering.items():
        if len(methods) > 1:
            what = f'{type} {name!r}' if name is not None else f'every other {type}'
            raise errors.ConfigurationError(
                f'{cls} has {len(methods)} RPC handlers for {what}, of which one alone can answer: {", ".join(methods)}'
            )
