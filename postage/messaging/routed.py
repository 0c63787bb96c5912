"""Where messages go: the exchanges and routing keys of a producer, which both of its halves share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from postage import errors
from postage.amqp.control import BlockingAccess, declare_exchange
from postage.messaging.connected import Connected
from postage.messaging.exchanges import Exchange
from postage.messaging.fingerprint import as_fingerprint_dict
from postage.messaging.messages import Message
from postage.messaging.options import ExchangeKey, check_eks
from postage.printable import shown
from postage.settings import Hup

logger = logging.getLogger('postage')


class Routed(Connected):
    """Has exchanges with routing keys, and builders of messages.

    The base of :class:`GenericProducer`, which says what the arguments and attributes mean.
    """

    eks: Sequence[ExchangeKey] = ()
    persistent: bool = True
    mandatory: bool = False
    publish_timeout: float = 30.0

    def __init__(self, fingerprint: Any, hup: Hup | None, vhost: str | None) -> None:
        super().__init__(hup, vhost)
        check_eks(self.eks, f'{type(self).__name__}.eks')
        self.fingerprint: dict[str, Any] = as_fingerprint_dict(fingerprint, self.vhost)
        self._names: dict[Any, str] = {}  # exchanges that were declared, by class or instance
        self._access: BlockingAccess | None = None

    @property
    def channel(self) -> BlockingAccess:
        """pika's channel methods, blocking, for what Postage does not wrap. An error on it harms nothing else."""
        if self._access is None:
            self._access = BlockingAccess(self._connection.control)
        return self._access

    @property
    def default_exchange(self) -> type[Exchange] | Exchange | None:
        """The exchange of the first pair of ``eks``, which ``_key`` and RPCs go to; ``None`` where there is no pair."""
        return self.eks[0][0] if self.eks else None

    def _look_at_eks(self) -> None:
        """Take over ``eks`` as it is now. Blocks where it has an exchange that is not declared yet."""
        eks = self.eks
        self._routes = [
            (self._declared(exchange), key) for exchange, key in check_eks(eks, f'{type(self).__name__}.eks')
        ]
        self._known_eks = eks[:]  # a copy: a program may change the list itself

    def _routes_of(self, options: dict[str, Any]) -> list[tuple[str, str]]:
        """Where a message goes: exchange names with keys, from ``_eks``, ``_key`` or the class. Never empty."""
        if self.eks != self._known_eks:
            self._look_at_eks()
        routes, eks, key = self._routes, options.get('_eks'), options.get('_key')
        if eks is not None:
            routes = [(self._declared(exchange), key) for exchange, key in check_eks(eks, '_eks')]
        if not routes:
            label = type(self).__name__
            if eks is None and key is not None:
                raise errors.ConfigurationError(f'_key needs an exchange, and {label}.eks has none; use _eks')
            raise errors.ConfigurationError(
                f'{label} has no eks, so it needs _eks=[(Exchange, key)] to know where to send'
            )
        if eks is not None or key is None:
            return routes
        if not isinstance(key, str):
            raise errors.ConfigurationError(f'_key must be a routing key, not {shown(key)}')
        return [(routes[0][0], key)]

    def _declared(self, exchange: type[Exchange] | Exchange) -> str:
        """The name of an exchange, which is declared first where this producer has not yet done so."""
        name = self._names.get(exchange)
        if name is None:
            name = exchange.name
            if name:
                parameters = exchange.parameters
                connection = self._connection
                connection.ask(lambda: declare_exchange(connection.control, parameters))
                self.topology.exchanges[name] = parameters
            self._names[exchange] = name
        return name

    def _build(self, builder: str, args: tuple[Any, ...], kwds: dict[str, Any]) -> Any:
        """What a builder makes: a message, or whatever is like one."""
        message = getattr(self, builder)(*args, **kwds)
        if not isinstance(message, Message) and not (hasattr(message, 'body') and hasattr(message, 'fingerprint')):
            raise errors.ConfigurationError(
                f'{type(self).__name__}.{builder}() must return a Message, not {shown(message)}'
            )
        return message

    def _log_sending(self, exchange: str, key: str, body: Any) -> None:
        name = type(self).__name__
        logger.debug('%s: publish to exchange %r, key %r: %r', name, exchange, key, body)
