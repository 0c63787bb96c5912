"""Exchanges, described by classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from postage.errors import ConfigurationError
from postage.printable import shown
from postage.settings import SHORT_STRING_BYTES

_FLAGS = ('passive', 'durable', 'auto_delete', 'internal')
_ATTRIBUTES = ('name', 'exchange_type', *_FLAGS, 'arguments')


class _Parameters:
    """Lets ``parameters`` be read on the class and on an instance, which may have attributes of its own.

    The dictionary is the same until an attribute changes: a program may change it item by item.
    """

    def __get__(self, instance: Exchange | None, owner: type[Exchange]) -> dict[str, Any]:
        source = instance if instance is not None and any(name in vars(instance) for name in _ATTRIBUTES) else owner
        attributes = [getattr(source, name) for name in _ATTRIBUTES]
        known: tuple[list[Any], dict[str, Any]] | None = vars(source).get('_known_parameters')
        if known is None or known[0] != attributes:
            known = attributes, self._parameters_of(source)
            source._known_parameters = known
        return known[1]

    def _parameters_of(self, source: type[Exchange] | Exchange) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            'exchange': source.name,
            'exchange_type': source.exchange_type,
            'passive': source.passive,
            'durable': source.durable,
            'auto_delete': source.auto_delete,
        }
        if source.internal:
            parameters['internal'] = source.internal
        if source.arguments:
            parameters['arguments'] = dict(source.arguments)
        return parameters


class Exchange:
    """An exchange; derive from it and set the class attributes.

    Their meaning is that of ``exchange.declare``
    (AMQP 0-9-1 section 1.6.2.1, https://www.rabbitmq.com/docs/exchanges).

    :cvar name: its name, which every derived class must have
    :cvar exchange_type: ``direct``, ``topic``, ``fanout``, ``headers``, or the type of a plugin
    :cvar passive: only check that it exists, do not declare it
    :cvar durable: it survives a restart of the broker
    :cvar auto_delete: it goes when its last binding goes
    :cvar internal: nothing can be published to it directly
    :cvar arguments: further arguments, such as ``{'alternate-exchange': 'unrouted'}``
    """

    name: str
    exchange_type: str = 'direct'
    passive: bool = False
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Any] | None = None

    #: The arguments of ``exchange_declare``; ``internal`` and ``arguments`` only where set.
    parameters = _Parameters()
    _known_parameters: tuple[list[Any], dict[str, Any]]


def check_exchange(value: Any, where: str, *, default_allowed: bool = False) -> type[Exchange] | Exchange:
    """Return the exchange itself, a class or an instance, where it can be declared.

    :param value: what was given
    :param where: where it was given, such as ``EchoProducer.eks[0]``, for the error
    :param default_allowed: let the default exchange pass, whose name is empty: one may publish to it, but not
        declare it or bind to it (https://www.rabbitmq.com/docs/exchanges#default-exchange)
    :raises ConfigurationError: where it is no exchange, has no name, or an attribute of the wrong type
    """
    is_class = isinstance(value, type)
    if not (issubclass(value, Exchange) if is_class else isinstance(value, Exchange)):
        found = f'the class {value.__name__}' if is_class else f'{shown(value)}'
        raise ConfigurationError(f'{where} must be an Exchange, a class or an instance of one, not {found}')
    fault = _fault(value, default_allowed)
    if fault:
        raise ConfigurationError(f'{where}: {(value if is_class else type(value)).__name__}{fault}')
    exchange: type[Exchange] | Exchange = value
    return exchange


def _fault(exchange: Any, default_allowed: bool) -> str | None:
    """Return what is wrong with the exchange's attributes, or ``None``."""
    name = getattr(exchange, 'name', None)
    if name is None:
        return ' has no name; set the class attribute name'
    if not isinstance(name, str):
        return f'.name must be text, not {type(name).__name__}'
    if not name and not default_allowed:
        return '.name is empty, which means the default exchange; no program can declare it or bind to it'
    if len(name.encode('utf-8', 'replace')) > SHORT_STRING_BYTES:
        return f'.name is longer than the {SHORT_STRING_BYTES} bytes that AMQP allows'
    if not isinstance(exchange.exchange_type, str) or not exchange.exchange_type:
        return f".exchange_type must be text such as 'direct', not {shown(exchange.exchange_type)}"
    for flag in _FLAGS:
        if getattr(exchange, flag) not in (True, False):
            return f'.{flag} must be True or False, not {shown(getattr(exchange, flag))}'
    if exchange.arguments is not None and not isinstance(exchange.arguments, Mapping):
        return f'.arguments must be a dictionary or None, not {shown(exchange.arguments)}'
    return None
