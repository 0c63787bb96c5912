"""Queues and their bindings as users write them: ``eqk``, and the two forms of a queue in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from postage import errors
from postage.amqp.topology import QUEUE_FLAGS, Queue
from postage.messaging.exchanges import Exchange, check_exchange

_SHAPE = 'a list of (Exchange, [(queue, key), …])'


def check_eqk(eqk: Any, where: str) -> Iterator[tuple[type[Exchange] | Exchange, Any, str]]:
    """Exchange, queue and key of each binding; the flat form of the reference is understood as well."""
    if isinstance(eqk, (str, bytes, Mapping)) or not isinstance(eqk, Sequence):
        raise errors.ConfigurationError(f'{where} must be {_SHAPE}, not {eqk!r:.80}')
    pairs: Sequence[Any] = eqk
    if eqk and not _is_pair(eqk[0]):
        pairs = [eqk[i : i + 2] for i in range(0, len(eqk), 2)]
    for number, pair in enumerate(pairs):
        if not _is_pair(pair):
            raise errors.ConfigurationError(f'{where} must be {_SHAPE}; element {number} is {pair!r:.80}')
        exchange = check_exchange(pair[0], f'{where}[{number}]')
        bindings = pair[1]
        if isinstance(bindings, (str, bytes, Mapping)) or not isinstance(bindings, Sequence):
            raise errors.ConfigurationError(
                f'{where}[{number}] must list its queues as [(queue, key), …], not {bindings!r:.80}'
            )
        for binding in bindings:
            if not _is_pair(binding) or not isinstance(binding[1], str):
                raise errors.ConfigurationError(
                    f'{where}[{number}] must list its queues as [(queue, key), …]; one is {binding!r:.80}'
                )
            yield exchange, binding[0], binding[1]


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) == 2


def check_queue(queue: Any, more: Mapping[str, Any], where: str) -> Queue:
    """A queue as given by the user, a name or a dictionary, with its flags checked."""
    flags: dict[str, Any] = {}
    name = queue
    if isinstance(queue, Mapping):
        unknown = sorted(set(queue) - {'name', 'flags'})
        if unknown or 'name' not in queue:
            raise errors.ConfigurationError(
                f"{where}: a queue is a name or {{'name': …, 'flags': {{…}}}}, not {dict(queue)!r:.80}"
            )
        name = queue['name']
        flags.update(queue.get('flags') or {})
    if not isinstance(name, str) or not name:
        raise errors.ConfigurationError(f'{where}: the name of a queue must be text and not empty, not {name!r:.80}')
    flags.update(more)
    unknown = sorted(set(flags) - set(QUEUE_FLAGS))
    if unknown:
        raise errors.ConfigurationError(
            f'{where}: queue {name!r} has unknown flags {", ".join(map(repr, unknown))}; '
            f'there are {", ".join(QUEUE_FLAGS)}'
        )
    return Queue(name, flags, frozenset(flags) | frozenset(flags.get('arguments') or ()))
