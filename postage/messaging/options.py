"""What a call of a producer takes: its routes, its special keywords, and the parameters of a command."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from postage import errors
from postage.amqp.frames import EXPIRATION_MAX
from postage.messaging.exchanges import Exchange, check_exchange
from postage.printable import shown

ExchangeKey = tuple['type[Exchange] | Exchange', str]
"""An exchange and a routing key: an element of ``eks``."""

PUBLISH_OPTIONS = ('_key', '_eks', '_headers', '_priority', '_expiration')
FUTURE_OPTIONS = (*PUBLISH_OPTIONS, '_timeout', '_max_retry')
RPC_OPTIONS = (*FUTURE_OPTIONS, '_queue_only')
QUEUE_OPTIONS = (*PUBLISH_OPTIONS, '_queue_only')
GATHER_OPTIONS = (*PUBLISH_OPTIONS, '_timeout', '_expect')


def pack(args: tuple[Any, ...], kwds: dict[str, Any]) -> Any:
    """The parameters of a command that has no builder: as little wrapping as the arguments allow."""
    if args and kwds:
        return {'args': list(args), 'kwds': kwds}
    if args:
        return args[0] if len(args) == 1 else list(args)
    if len(kwds) == 1 and 'parameters' in kwds:
        return kwds['parameters']
    return kwds


def take_options(
    kwds: dict[str, Any], names: Sequence[str], method: str, owner: object = None, builder: str = ''
) -> dict[str, Any]:
    """Move the special keywords out of a call's arguments.

    :param method: that was called
    :param owner: whose builder may take other arguments that begin with an underscore
    :param builder: the name of that
    :raises TypeError: there is one that begins with an underscore, and nothing knows it
    """
    options = {name: kwds.pop(name) for name in names if name in kwds}
    strays = [name for name in kwds if name.startswith('_')]
    if strays:
        taken = _parameters_of(getattr(owner, builder, None))
        refuse_unknown([name for name in strays if taken is not None and name not in taken], names, method)
    return options


def _parameters_of(builder: Any) -> Sequence[str] | None:
    """The names of the parameters of a builder, if there is one; ``None`` where it takes any."""
    if builder is None:
        return ()
    try:
        parameters = inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return list(parameters)


def refuse_unknown(options: Iterable[str], known: Sequence[str], method: str) -> None:
    """See that a method is given no other options than those it knows."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f'{method}() takes {", ".join(known)}, not {", ".join(unknown)}')


def check_eks(eks: Any, where: str) -> list[ExchangeKey]:
    """``eks`` as given by the user, or a clear error."""
    shape = f'{where} must be a list of pairs (Exchange, routing key)'
    if isinstance(eks, (str, bytes, Mapping)) or not isinstance(eks, Sequence):
        raise errors.ConfigurationError(f'{shape}, not {shown(eks)}')
    routes: list[ExchangeKey] = []
    for number, pair in enumerate(eks):
        if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)) or len(pair) != 2:
            raise errors.ConfigurationError(f'{shape}; element {number} is {shown(pair)}')
        exchange = check_exchange(pair[0], f'{where}[{number}]', default_allowed=True)
        if not isinstance(pair[1], str):
            raise errors.ConfigurationError(f'{shape}; the key of element {number} is {shown(pair[1])}')
        routes.append((exchange, pair[1]))
    return routes


def check_settings(producer: Any) -> None:
    """See that what a class of producers says of itself makes sense.

    :raises errors.ConfigurationError: it does not
    """
    where = type(producer).__name__
    for name in ('persistent', 'mandatory', 'confirms', 'reply_queue_per_call'):
        value = getattr(producer, name, False)
        if not isinstance(value, int) or value not in (True, False):
            raise errors.ConfigurationError(f'{where}.{name} must be True or False, not {shown(value)}')
    for name in ('publish_timeout', 'rpc_timeout', 'gather_timeout', 'max_retry'):
        check_number(getattr(producer, name), f'{where}.{name}', whole=name == 'max_retry')
    expires = check_number(producer.rpc_queue_expires, f'{where}.rpc_queue_expires')
    if not 0.001 <= expires <= EXPIRATION_MAX / 1000:
        most = f'{EXPIRATION_MAX // 1000:,}'
        raise errors.ConfigurationError(f'{where}.rpc_queue_expires must be from 0.001 to {most} seconds')


def further_properties(options: dict[str, Any]) -> dict[str, Any] | None:
    """What the options add, by the names of ``frames.encode_properties``; ``None`` where they add nothing."""
    properties: dict[str, Any] = {}
    headers = options.get('_headers')
    if headers is not None:
        if not isinstance(headers, Mapping):
            raise errors.ConfigurationError(f'_headers must be a dictionary, not {shown(headers)}')
        properties['headers'] = headers
    priority = options.get('_priority')
    if priority is not None:
        if not isinstance(priority, int) or not 0 <= priority <= 255:
            raise errors.ConfigurationError(f'_priority must be a number from 0 to 255, not {shown(priority)}')
        properties['priority'] = priority
    expiration = options.get('_expiration')
    if expiration is not None:
        properties['expiration'] = _milliseconds(expiration)
    return properties or None


def _milliseconds(expiration: Any) -> str:
    """A message's expiration as AMQP wants it: from seconds, or from text that is in milliseconds already."""
    text = expiration
    if isinstance(expiration, (int, float)) and 0 <= expiration <= EXPIRATION_MAX:
        text = str(round(expiration * 1000))
    is_number = isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 10
    if is_number and int(text) <= EXPIRATION_MAX:
        return str(text)
    raise errors.ConfigurationError(
        f'_expiration must be seconds, or milliseconds as text the way AMQP has it, and at most {EXPIRATION_MAX:,} '
        f'milliseconds, not {shown(expiration)}'
    )


def number(options: dict[str, Any], name: str, default: float, whole: bool = False) -> float:
    """A number among the options, 0 or more; the default where it is left out."""
    value = options.get(name)
    return default if value is None else check_number(value, name, whole)


def check_number(value: Any, name: str, whole: bool = False) -> float:
    """A number as given by the user, 0 or more, infinity included, or a clear error."""
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not (0 <= value <= sys.float_info.max or value == math.inf):
        raise errors.ConfigurationError(
            f'{name} must be {"a whole" if whole else "a"} number, 0 or more, not {shown(value)}'
        )
    return int(value) if whole else float(value)
