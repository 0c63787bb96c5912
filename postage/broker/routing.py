"""The way of a message from an exchange to its queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from postage.broker.exchanges import Exchange, FanoutExchange, HeadersExchange
from postage.broker.messages import Message
from postage.broker.queues import Queue

_REMEMBERED_ROUTES: Final = 4096


class Routes:
    """Finds queues, and remembers what it has found until exchanges, queues or bindings change.

    :param exchanges: all exchanges of a virtual host, by name
    :param queues: all its queues, by name
    """

    def __init__(self, exchanges: Mapping[str, Exchange], queues: Mapping[str, Queue]) -> None:
        self._exchanges = exchanges
        self._queues = queues
        self._known: dict[tuple[str, tuple[str, ...]], tuple[Queue, ...]] = {}

    def forget(self) -> None:
        """Find everything anew."""
        self._known.clear()

    def find(self, exchange: Exchange, message: Message) -> tuple[Queue, ...]:
        """Return the queues that a message reaches from an exchange, each once."""
        key = (exchange.name, message.routing_keys)
        known = self._known.get(key)
        if known is None:
            known, is_fixed = self._walk(exchange, message)
            if is_fixed:
                if len(self._known) >= _REMEMBERED_ROUTES:
                    self._known.clear()
                self._known[key] = known
        return known

    def _walk(self, start: Exchange, message: Message) -> tuple[tuple[Queue, ...], bool]:
        """Follow bindings, and alternate exchanges where there are none to follow.

        :returns: the queues, and whether routing key and bindings alone led to them
        """
        is_fixed = True
        found: dict[Queue, None] = {}
        seen = {start.name}
        to_visit = [start]
        for exchange in to_visit:
            is_fixed = is_fixed and not exchange.reads_headers
            nexts = list(self._destinations(exchange, message))
            alternate = exchange.alternate
            if not nexts and alternate is not None and alternate in self._exchanges:
                nexts.append(self._exchanges[alternate])
            for destination in nexts:
                if isinstance(destination, Queue):
                    found.setdefault(destination)
                elif destination.name not in seen:
                    seen.add(destination.name)
                    to_visit.append(destination)
        return tuple(found), is_fixed

    def _destinations(self, exchange: Exchange, message: Message) -> Iterable[Queue | Exchange]:
        if not exchange.name:
            return [self._queues[key] for key in message.routing_keys if key in self._queues]
        if isinstance(exchange, (FanoutExchange, HeadersExchange)):
            return exchange.route(message, message.routing_key)
        return [found for key in message.routing_keys for found in exchange.route(message, key)]
