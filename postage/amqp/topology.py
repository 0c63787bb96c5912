"""What one producer or consumer has declared, so that it can be declared again. Data only: :mod:`postage.amqp.control`
declares it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from postage import errors
from postage.amqp.streams import Position
from postage.living import Living

DELAYED_RETRY = ('x-delayed-retry-type', 'x-delayed-retry-min', 'x-delayed-retry-max')
"""Arguments that belong together: see :mod:`postage.amqp.retries`."""

QUEUE_FLAGS = ('durable', 'exclusive', 'auto_delete', 'arguments', 'passive')


@dataclass
class Queue:
    """A queue as it was asked for, and as it was found.

    :ivar flags: what ``queue_declare`` is told
    :ivar spelled: those of them that the user wrote out; only the others may differ from what is found
    :ivar consume: arguments of ``basic_consume``
    :ivar position: how far it has been handled, where it is a stream
    :ivar retry: when its failed messages are handled again, where their handler does not say so; for the consumer
    """

    name: str
    flags: dict[str, Any]
    spelled: frozenset[str] = frozenset()
    retry: Any = None
    consume: dict[str, Any] = field(default_factory=dict)
    position: Position | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.arguments.get('x-queue-type') == 'stream':
            self.position = Position()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Those of its declaration; empty where it has none."""
        return self.flags.get('arguments') or {}


@dataclass
class Binding:
    """A queue bound to an exchange with a routing key."""

    queue: str
    exchange: str
    routing_key: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Topology:
    """The exchanges, queues and bindings of one producer or consumer, in the order of their declaration."""

    exchanges: dict[str, dict[str, Any]] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)

    def queues_reached(self, exchange: str, routing_key: str) -> list[str]:
        """Which of these queues a message reaches, as far as the bindings known here tell."""
        if not exchange:
            return [routing_key] if routing_key in self.queues else []
        kind = self.exchanges.get(exchange, {}).get('exchange_type')
        return list(
            dict.fromkeys(
                binding.queue
                for binding in self.bindings
                if binding.exchange == exchange and _matches(kind, binding.routing_key, routing_key)
            )
        )


def _matches(kind: str | None, binding_key: str, routing_key: str) -> bool:
    """Whether an exchange of that type passes a key on to a binding (AMQP 0-9-1, section 3.1.3)."""
    if kind == 'topic':
        return matches_topic(binding_key, routing_key)
    return kind == 'fanout' or (kind == 'direct' and binding_key == routing_key)


def matches_topic(pattern: str, routing_key: str) -> bool:
    """Whether a routing key is one that a topic exchange passes on to a binding with this pattern."""
    words = (_topic_words.get(word, re.escape(word)) for word in pattern.split('.'))
    # A '#' stands for any number of words, none included, so the dots beside it belong to it.
    regex = r'\.'.join(words).replace(r'#\.', r'(?:[^.]*\.)*').replace(r'\.#', r'(?:\.[^.]*)*').replace('#', '.*')
    return re.fullmatch(regex, routing_key, re.DOTALL) is not None


_topic_words = {'*': '[^.]*', '#': '#'}


class Topologies(Living[Topology]):
    """What all producers and consumers of one connection have declared: it is declared again after every reconnect."""

    def check_exclusive(self, queue: Queue, topology: Topology) -> None:
        """See that no other consumer of this process owns an exclusive queue of that name.

        To the broker the consumers of a process are one connection, which may declare it twice; two owners would
        take each other's messages all the same.

        :raises errors.ResourceLocked: where one does
        """
        for other in self:
            owned = other.queues.get(queue.name) if other is not topology else None
            if owned is not None and (owned.flags.get('exclusive') or queue.flags.get('exclusive')):
                raise errors.ResourceLocked(
                    f'queue {queue.name!r} is exclusive, and another consumer of this process owns it', 405
                )
