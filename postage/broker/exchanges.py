"""Exchanges: which of its bindings a message follows (AMQP 0-9-1 section 3.1.3).

An exchange does not know queues from exchanges; it hands out destinations. A virtual host walks on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from postage.broker import tables
from postage.broker.arguments import type_name
from postage.broker.limits import Tally
from postage.broker.messages import Message
from postage.broker.queues import Queue
from postage.broker.replies import PRECONDITION_FAILED, Refusal

Destination: TypeAlias = 'Queue | Exchange'


@dataclass(frozen=True)
class Binding:
    """One way from an exchange to a destination; equal bindings are one."""

    destination: Destination
    routing_key: str
    arguments: Mapping[str, Any] = field(hash=False)


class Exchange:
    """What all types have in common: a name, flags, and bindings in the order of their making.

    :param tally: counts its bindings, with those of other exchanges
    :ivar reads_headers: True where the routing key alone does not decide
    """

    type: str
    reads_headers = False

    def __init__(
        self,
        name: str,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, Any] | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.name = name
        self.durable = durable
        self.auto_delete = auto_delete
        self.internal = internal
        self.arguments = arguments or {}
        self.bindings: dict[Binding, None] = {}
        self._tally = tally or Tally()

    @property
    def alternate(self) -> str | None:
        """The name of the exchange that gets what this one cannot route."""
        name = self.arguments.get('alternate-exchange')
        return name if isinstance(name, str) else None

    def check_binding(self, arguments: Mapping[str, Any]) -> None:
        """Make sure that a binding may have such arguments; headers exchanges are particular."""

    def bind(self, binding: Binding) -> None:
        """Add a binding; one that exists already stays as it is."""
        if binding not in self.bindings:
            self.bindings[binding] = None
            self._tally.count += 1

    def unbind(self, binding: Binding) -> bool:
        """Remove a binding and tell whether there was such a one."""
        if binding not in self.bindings:
            return False
        del self.bindings[binding]
        self._tally.count -= 1
        return True

    def end(self) -> None:
        """Come to its end, with its bindings."""
        self._tally.count -= len(self.bindings)

    def remove_destination(self, destination: Destination) -> bool:
        """Remove all bindings to a destination that goes away, and tell whether there were any."""
        gone = [binding for binding in self.bindings if binding.destination is destination]
        for binding in gone:
            self.unbind(binding)
        return bool(gone)

    def route(self, message: Message, routing_key: str) -> Iterable[Destination]:
        """Return where a message goes; a destination may come up more than once."""
        raise NotImplementedError


class DirectExchange(Exchange):
    """Follows the bindings whose key equals the message's."""

    type = 'direct'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._by_key: dict[str, list[Binding]] = {}

    def bind(self, binding: Binding) -> None:
        if binding not in self.bindings:
            super().bind(binding)
            self._by_key.setdefault(binding.routing_key, []).append(binding)

    def unbind(self, binding: Binding) -> bool:
        if not super().unbind(binding):
            return False
        same_key = self._by_key[binding.routing_key]
        same_key.remove(binding)
        if not same_key:
            del self._by_key[binding.routing_key]
        return True

    def route(self, message: Message, routing_key: str) -> Iterable[Destination]:
        return [binding.destination for binding in self._by_key.get(routing_key, ())]


class FanoutExchange(Exchange):
    """Follows every binding."""

    type = 'fanout'

    def route(self, message: Message, routing_key: str) -> Iterable[Destination]:
        return [binding.destination for binding in self.bindings]


class TopicExchange(Exchange):
    """Follows the bindings whose pattern matches the message's key."""

    type = 'topic'

    def route(self, message: Message, routing_key: str) -> Iterable[Destination]:
        words = words_of(routing_key)
        return [binding.destination for binding in self.bindings if topic_matches(words_of(binding.routing_key), words)]


class HeadersExchange(Exchange):
    """Follows the bindings whose arguments match the message's headers."""

    type = 'headers'
    reads_headers = True

    def check_binding(self, arguments: Mapping[str, Any]) -> None:
        rule = arguments.get('x-match', 'all')
        if not isinstance(rule, str):
            wrong = f'type {type_name(rule)} (value {rule}); expected longstr'
            raise Refusal(PRECONDITION_FAILED, f'Invalid x-match field {wrong}')
        if rule not in ('all', 'any', 'all-with-x', 'any-with-x'):
            wrong = f'<<"{rule}">>; expected all, any, all-with-x, or any-with-x'
            raise Refusal(PRECONDITION_FAILED, f'Invalid x-match field value {wrong}')

    def route(self, message: Message, routing_key: str) -> Iterable[Destination]:
        raw = message.header.headers
        headers = {} if raw is None else tables.decode_shallow(raw)
        return [binding.destination for binding in self.bindings if headers_match(binding.arguments, headers)]


TYPES: Final[dict[str, type[Exchange]]] = {
    kind.type: kind for kind in (DirectExchange, FanoutExchange, TopicExchange, HeadersExchange)
}


def words_of(routing_key: str) -> list[str]:
    """Return the words between the dots; an empty key has none."""
    return routing_key.split('.') if routing_key else []


def topic_matches(pattern: list[str], words: list[str]) -> bool:
    """Tell whether a pattern covers a routing key, both cut at their dots.

    ``*`` stands for one word, ``#`` for none or more. A position is remembered at the last ``#`` only: what an
    earlier one could swallow, the later one can swallow too, so the time is bounded by the product of the lengths.
    """
    at, word, hash_at, hash_word = 0, 0, -1, 0
    while word < len(words):
        if at < len(pattern) and pattern[at] == '#':
            hash_at, hash_word = at, word
            at += 1
        elif at < len(pattern) and pattern[at] in ('*', words[word]):
            at += 1
            word += 1
        elif hash_at >= 0:
            hash_word += 1
            at, word = hash_at + 1, hash_word
        else:
            return False
    return all(part == '#' for part in pattern[at:])


def headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Tell whether a message's headers match a binding; an argument without a value asks for presence only.

    Arguments that begin with ``x-`` count only under ``all-with-x`` and ``any-with-x``.
    """
    rule = arguments.get('x-match', 'all')
    with_x = rule in ('all-with-x', 'any-with-x')
    tests = (
        name in headers and (wanted is None or _same(wanted, headers[name]))
        for name, wanted in arguments.items()
        if name != 'x-match' and (with_x or not name.startswith('x-'))
    )
    return any(tests) if rule in ('any', 'any-with-x') else all(tests)


def _same(wanted: Any, found: Any) -> bool:
    """Compare two values; True is not 1, here as on the wire."""
    return isinstance(wanted, bool) == isinstance(found, bool) and bool(wanted == found)
