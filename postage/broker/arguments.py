"""The ``x-…`` arguments of queues, exchanges and consumers: which values are valid, and when two sets are equal.

The texts are those of RabbitMQ, as client programs may read them. See "Optional Arguments" in RabbitMQ's page on
queues (https://www.rabbitmq.com/docs/queues) and, for what each argument does, the page that it links.
:class:`ArgumentRules` has what differs between versions.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from postage.broker.replies import PRECONDITION_FAILED, Refusal
from postage.broker.tables import Long

Arguments = Mapping[str, Any]

LONGEST_EXPIRATION: Final = 86_400_000 * 3650  # milliseconds: RabbitMQ's ten years
_HIGHEST_PRIORITY: Final = 255


def type_name(value: Any) -> str:
    """Return RabbitMQ's name for the wire type of a decoded value."""
    names: tuple[tuple[Any, str], ...] = (
        (bool, 'bool'),
        (Long, 'long'),
        (int, 'signedint'),
        (str, 'longstr'),
        (bytes, 'binary'),
        (list, 'array'),
        (dict, 'table'),
        (decimal.Decimal, 'decimal'),
        (datetime, 'timestamp'),
    )
    name = next((name for kind, name in names if isinstance(value, kind)), 'void')
    return 'long' if name == 'signedint' and not -(2**31) <= value < 2**31 else name


def text_of(value: Any) -> str:
    """Return a value as RabbitMQ writes it into an error."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return str(value)


# --- validation: each check returns why a value is wrong, or None ---


def _integer(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return f'"expected integer, got {type_name(value)}"'
    return None


def _not_negative(value: Any) -> str | None:
    return _integer(value) or (f'{{value_negative,{value}}}' if value < 0 else None)


def _expires(value: Any) -> str | None:
    return _lifetime(value) or (f'{{value_zero,{value}}}' if value == 0 else None)


def _lifetime(value: Any) -> str | None:
    wrong = _not_negative(value)
    if wrong is None and value > LONGEST_EXPIRATION:
        return f'{{value_too_large,{value}}}'
    return wrong


def _max_priority(value: Any) -> str | None:
    wrong = _not_negative(value)
    if wrong is None and value > _HIGHEST_PRIORITY:
        return f'{{max_value_exceeded,{value}}}'
    return wrong


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else f'{{unacceptable_type,{type_name(value)}}}'


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f'{{unacceptable_type,{type_name(value)}}}'


def _overflow(value: Any) -> str | None:
    known = ('drop-head', 'reject-publish', 'reject-publish-dlx')
    return _text(value) or (None if value in known else 'invalid_overflow')


def _queue_type(value: Any) -> str | None:
    return _text(value) or (None if value in ('classic', 'quorum') else f'"unsupported queue type \'{value}\'"')


def _queue_mode(value: Any) -> str | None:
    return _text(value) or (None if value in ('default', 'lazy') else f'"unsupported queue mode \'{value}\'"')


def _queue_version(value: Any) -> str | None:
    return _integer(value) or (None if value in (1, 2) else f'"unsupported queue version \'{value}\'"')


def _second_queue_version(value: Any) -> str | None:
    return _queue_version(value) or (None if value == 2 else f'"unsupported queue version \'{value}\'"')


def _locator(value: Any) -> str | None:
    known = ('client-local', 'balanced', 'random', 'least-leaders')
    return _text(value) or (None if value in known else 'invalid_queue_locator_arg')


def _strategy(value: Any) -> str | None:
    return _text(value) or (None if value in ('at-most-once', 'at-least-once') else 'invalid_dlx_strategy')


def _anything(value: Any) -> str | None:
    return None


Check = Callable[[Any], 'str | None']


@dataclass(frozen=True)
class ArgumentRules:
    """What one version does with arguments.

    :ivar checks: by argument, a function that returns why a value is wrong; others may be anything
    :ivar allowed: by queue type, which of these arguments it takes
    :ivar queue_keys: by the type of a queue, the arguments that have to be equal when it is declared again
    :ivar knows_default_type: True where a queue that names no type is as one that names the classic one
    """

    checks: Mapping[str, Check]
    allowed: Mapping[str, frozenset[str]]
    queue_keys: Mapping[str, tuple[str, ...]]
    knows_default_type: bool


_CHECKS: Final[dict[str, Check]] = {
    'x-expires': _expires,
    'x-message-ttl': _lifetime,
    'x-dead-letter-exchange': _text,
    'x-dead-letter-routing-key': _text,
    'x-dead-letter-strategy': _strategy,
    'x-max-length': _not_negative,
    'x-max-length-bytes': _not_negative,
    'x-max-in-memory-length': _not_negative,
    'x-max-in-memory-bytes': _not_negative,
    'x-overflow': _overflow,
    'x-max-priority': _max_priority,
    'x-queue-mode': _queue_mode,
    'x-queue-version': _queue_version,
    'x-queue-type': _queue_type,
    'x-single-active-consumer': _flag,
    'x-delivery-limit': _anything,
    'x-quorum-initial-group-size': _not_negative,
    'x-queue-master-locator': _text,
    'x-max-age': _text,
    'x-stream-max-segment-size-bytes': _not_negative,
    'x-initial-cluster-size': _not_negative,
    'x-queue-leader-locator': _locator,
}
_COMMON: Final = frozenset(
    (
        'x-expires',
        'x-message-ttl',
        'x-dead-letter-exchange',
        'x-dead-letter-routing-key',
        'x-max-length',
        'x-max-length-bytes',
        'x-overflow',
        'x-queue-type',
        'x-single-active-consumer',
    )
)
_CLASSIC: Final = _COMMON | {'x-max-priority', 'x-queue-mode', 'x-queue-version', 'x-queue-master-locator'}
_QUORUM: Final = _COMMON | {
    'x-dead-letter-strategy',
    'x-delivery-limit',
    'x-max-in-memory-length',
    'x-max-in-memory-bytes',
    'x-quorum-initial-group-size',
    'x-queue-leader-locator',
}
# In the order in which RabbitMQ looks, and so finds the first that differs.
_CLASSIC_KEYS: Final = (
    'x-expires',
    'x-message-ttl',
    'x-dead-letter-exchange',
    'x-dead-letter-routing-key',
    'x-max-length',
    'x-max-length-bytes',
    'x-max-priority',
    'x-overflow',
    'x-queue-mode',
    'x-queue-version',
    'x-single-active-consumer',
    'x-queue-type',
    'x-queue-master-locator',
)
_QUORUM_KEYS: Final = (
    'x-dead-letter-exchange',
    'x-dead-letter-routing-key',
    'x-dead-letter-strategy',
    'x-expires',
    'x-max-length',
    'x-max-length-bytes',
    'x-max-in-memory-length',
    'x-max-in-memory-bytes',
    'x-overflow',
    'x-single-active-consumer',
    'x-queue-type',
    'x-quorum-initial-group-size',
    'x-delivery-limit',
    'x-message-ttl',
    'x-queue-leader-locator',
)
_RETRY_KEYS: Final = ('x-consumer-timeout', 'x-delayed-retry-type', 'x-delayed-retry-min', 'x-delayed-retry-max')

RULES_OF_3_10: Final = ArgumentRules(
    checks=_CHECKS,
    allowed={'classic': _CLASSIC, 'quorum': _QUORUM},
    queue_keys={'classic': _CLASSIC_KEYS, 'quorum': _QUORUM_KEYS},
    knows_default_type=False,
)
RULES_OF_4_3: Final = ArgumentRules(
    checks={
        **_CHECKS,
        'x-queue-mode': _anything,
        'x-queue-version': _second_queue_version,
        **dict.fromkeys(_RETRY_KEYS, _anything),
    },
    allowed={'classic': _CLASSIC | {'x-queue-leader-locator'}, 'quorum': _QUORUM | set(_RETRY_KEYS)},
    queue_keys={
        'classic': (*_CLASSIC_KEYS, 'x-queue-leader-locator'),
        'quorum': (*_QUORUM_KEYS, *_RETRY_KEYS),
    },
    knows_default_type=True,
)


def _invalid(queue: str, vhost: str, name: str, why: str) -> Refusal:
    return Refusal(PRECONDITION_FAILED, f"invalid arg '{name}' for queue '{queue}' in vhost '{vhost}'{why}")


def check_queue_arguments(queue: str, vhost: str, arguments: Arguments, rules: ArgumentRules) -> None:
    """Make sure that a new queue's arguments are valid; unknown ones are.

    :raises Refusal: 406, in RabbitMQ's words
    """
    exchange = arguments.get('x-dead-letter-exchange')
    if 'x-dead-letter-exchange' in arguments and not isinstance(exchange, str):
        wrong = f"invalid type '{type_name(exchange)}' for arg 'x-dead-letter-exchange' in queue"
        raise Refusal(PRECONDITION_FAILED, f"{wrong} '{queue}' in vhost '{vhost}'")
    kind = arguments.get('x-queue-type', 'classic')
    wrong_type = _queue_type(kind)
    if wrong_type is not None:
        raise _invalid(queue, vhost, 'x-queue-type', f': {wrong_type}')
    for name, value in arguments.items():
        check = rules.checks.get(name)
        if check is None:
            continue
        if name not in rules.allowed[kind]:
            raise _invalid(queue, vhost, name, f' of queue type rabbit_{kind}_queue')
        why = check(value)
        if why is not None:
            raise _invalid(queue, vhost, name, f': {why}')
    if 'x-dead-letter-routing-key' in arguments and exchange is None:
        raise _invalid(queue, vhost, 'x-dead-letter-routing-key', ': routing_key_but_no_dlx_defined')


def check_consumer_arguments(queue: str, vhost: str, arguments: Arguments) -> None:
    """Make sure that a consumer's arguments are valid.

    :raises Refusal: 406
    """
    if 'x-priority' in arguments:
        why = _integer(arguments['x-priority'])
        if why is not None:
            raise _invalid(queue, vhost, 'x-priority', f': {why}')


def check_expiration(text: str) -> int:
    """Return a message's ``expiration`` in milliseconds.

    :raises Refusal: 406, where it is not a number that RabbitMQ takes
    """
    digits = text[1:] if text[:1] in ('-', '+') else text
    length = len(digits) - len(digits.lstrip('0123456789'))
    if length == 0 or not text.isascii():
        why: str | None = 'no_integer'
    elif length < len(digits):
        why = f'{{leftover_string,"{digits[length:]}"}}'
    else:
        why = _lifetime(int(text))
    if why is not None:
        raise Refusal(PRECONDITION_FAILED, f"invalid expiration '{text}': {why}")
    return int(text)


# --- equivalence ---

EXCHANGE_KEYS: Final = ('alternate-exchange',)


def _described(value: Any, present: bool) -> str:
    return f"the value '{text_of(value)}' of type '{type_name(value)}'" if present else 'none'


def inequivalent(what: str, name: str, received: str, current: str) -> Refusal:
    """Return the refusal of a second declaration; ``what`` is such as ``queue 'x' in vhost '/'``."""
    difference = f'received {received} but current is {current}'
    return Refusal(PRECONDITION_FAILED, f"inequivalent arg '{name}' for {what}: {difference}")


def check_equivalent(what: str, received: Arguments, current: Arguments, keys: Iterable[str]) -> None:
    """Make sure that the named arguments are those with which something was declared before.

    :raises Refusal: 406, naming the first that differs
    """
    for key in keys:
        new, old = received.get(key), current.get(key)
        if (key in received) != (key in current):
            raise inequivalent(what, key, _described(new, key in received), _described(old, key in current))
        if new != old or isinstance(new, bool) != isinstance(old, bool):
            raise inequivalent(what, key, f"'{text_of(new)}'", f"'{text_of(old)}'")
