"""A virtual host: its exchanges and queues, how they are declared, and the way of a message through them."""

from __future__ import annotations

import base64
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from postage.broker import arguments as args
from postage.broker.clock import Clock
from postage.broker.dead_letters import dead_letter_of, deaths_of, is_cycle
from postage.broker.exchanges import TYPES, Binding, Exchange
from postage.broker.limits import Limits, Tally
from postage.broker.messages import Message
from postage.broker.observing import Observer
from postage.broker.queues import Queue
from postage.broker.replies import (
    ACCESS_REFUSED,
    NOT_FOUND,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    RESOURCE_LOCKED,
    Refusal,
)
from postage.broker.routing import Routes
from postage.broker.rules import Rules

logger = logging.getLogger(__name__)

REPLY_TO: Final = 'amq.rabbitmq.reply-to'
_PREDECLARED: Final = (
    ('', 'direct', False),
    ('amq.direct', 'direct', False),
    ('amq.fanout', 'fanout', False),
    ('amq.headers', 'headers', False),
    ('amq.match', 'headers', False),
    ('amq.topic', 'topic', False),
    ('amq.rabbitmq.trace', 'topic', True),
)

Reply = Callable[[Message], None]


def generated_name(prefix: str) -> str:
    """Return a name that is new, as RabbitMQ makes them."""
    return prefix + base64.urlsafe_b64encode(secrets.token_bytes(16)).rstrip(b'=').decode()


class VirtualHost:
    """Everything that clients of one virtual host share.

    :ivar rules: what the version of RabbitMQ that is followed allows
    :ivar limits: how much of everything there may be
    :ivar consumers: counts the consumers of its queues
    :ivar observers: what hears of each message
    :ivar reply_addresses: what takes a message for a direct reply-to address, by the address
    """

    def __init__(
        self, name: str, clock: Clock, rules: Rules, observers: Sequence[Observer] = (), limits: Limits | None = None
    ) -> None:
        self.name = name
        self.clock = clock
        self.rules = rules
        self.observers = observers
        self.limits = limits or Limits()
        self.consumers, self._bindings = Tally(), Tally()
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, Queue] = {}
        self.reply_addresses: dict[str, Reply] = {}
        self._routes = Routes(self.exchanges, self.queues)
        self._dead: deque[tuple[Queue, Message, str, int]] = deque()
        self._burying = False
        for exchange, kind, internal in _PREDECLARED:
            self.exchanges[exchange] = TYPES[kind](exchange, durable=True, internal=internal, tally=self._bindings)

    def _exchange_text(self, name: str) -> str:
        return f"exchange '{name}' in vhost '{self.name}'"

    def _queue_text(self, name: str) -> str:
        return f"queue '{name}' in vhost '{self.name}'"

    # --- exchanges ---

    def exchange(self, name: str) -> Exchange:
        """Return an exchange.

        :raises Refusal: 404, where there is none of that name
        """
        found = self.exchanges.get(name)
        if found is None:
            raise Refusal(NOT_FOUND, f'no {self._exchange_text(name)}')
        return found

    def named_exchange(self, name: str) -> Exchange:
        """Return an exchange that may be bound or declared, which the default exchange may not."""
        if not name:
            raise Refusal(ACCESS_REFUSED, 'operation not permitted on the default exchange')
        return self.exchange(name)

    def declare_exchange(
        self,
        name: str,
        kind: str,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: Mapping[str, Any],
    ) -> Exchange:
        """Return an exchange with these properties, made where it did not exist.

        :raises Refusal: 403 for a reserved name, 406 where it exists otherwise, 503 or 406 for an unknown type
        """
        exchange_type = TYPES.get(kind)
        if exchange_type is None:
            wrong = f"{'unknown' if kind else 'invalid'} exchange type '{kind}'"
            raise Refusal(self.rules.unknown_exchange_type, wrong)
        if not name:
            raise Refusal(ACCESS_REFUSED, 'operation not permitted on the default exchange')
        found = self.exchanges.get(name)
        if found is not None:
            flags = {'type': kind, 'durable': durable, 'auto_delete': auto_delete, 'internal': internal}
            self._check_exchange(found, flags, arguments)
            return found
        if name.startswith('amq.'):
            raise Refusal(ACCESS_REFUSED, f"exchange name '{name}' contains reserved prefix 'amq.*'")
        alternate = arguments.get('alternate-exchange', '')
        if not isinstance(alternate, str):
            wrong = f"invalid type '{args.type_name(alternate)}' for arg 'alternate-exchange' in"
            raise Refusal(PRECONDITION_FAILED, f'{wrong} {self._exchange_text(name)}')
        if len(self.exchanges) - len(_PREDECLARED) >= self.limits.exchanges:
            limit = f'exchange limit of {self.limits.exchanges} is reached'
            raise Refusal(PRECONDITION_FAILED, f'cannot declare {self._exchange_text(name)}: {limit}')
        exchange = exchange_type(name, durable, auto_delete, internal, arguments, self._bindings)
        self.exchanges[name] = exchange
        self._routes.forget()
        logger.debug('%s: %s exchange %r declared', self.name, kind, name)
        return exchange

    def _check_exchange(self, found: Exchange, flags: dict[str, Any], arguments: Mapping[str, Any]) -> None:
        what = self._exchange_text(found.name)
        for flag, received in flags.items():
            current = getattr(found, flag)
            if received != current:
                new, old = args.text_of(received), args.text_of(current)
                raise args.inequivalent(what, flag, f"'{new}'", f"'{old}'")
        args.check_equivalent(what, arguments, found.arguments, args.EXCHANGE_KEYS)

    def delete_exchange(self, name: str, if_unused: bool) -> None:
        """Remove an exchange and the bindings from and to it; one that does not exist is no error."""
        if not name:
            raise Refusal(ACCESS_REFUSED, 'operation not permitted on the default exchange')
        if name.startswith('amq.'):
            raise Refusal(ACCESS_REFUSED, f'deletion of system {self._exchange_text(name)} not allowed')
        exchange = self.exchanges.get(name)
        if exchange is None:
            return
        if if_unused and exchange.bindings:
            raise Refusal(PRECONDITION_FAILED, f'{self._exchange_text(name)} in use')
        self._remove_exchange(exchange)

    def _remove_exchange(self, exchange: Exchange) -> None:
        del self.exchanges[exchange.name]
        exchange.end()
        self._remove_destination(exchange)
        logger.debug('%s: exchange %r deleted', self.name, exchange.name)

    # --- bindings ---

    def bind(self, source: str, destination: Queue | Exchange, routing_key: str, arguments: Mapping[str, Any]) -> None:
        """Let an exchange send to a queue or to another exchange."""
        exchange = self.named_exchange(source)
        exchange.check_binding(arguments)
        if self._bindings.count >= self.limits.bindings:
            limit = f"binding limit in vhost '{self.name}' ({self.limits.bindings}) is reached"
            raise Refusal(PRECONDITION_FAILED, f'cannot bind {self._exchange_text(source)}: {limit}')
        exchange.bind(Binding(destination, routing_key, arguments))
        self._routes.forget()
        logger.debug('%s: %r bound to exchange %r with key %r', self.name, destination.name, source, routing_key)

    def is_bound(self, source: str, destination: Queue, routing_key: str, arguments: Mapping[str, Any]) -> bool:
        """Tell whether an exchange sends to a queue by just that binding."""
        exchange = self.exchanges.get(source)
        return exchange is not None and Binding(destination, routing_key, arguments) in exchange.bindings

    def unbind(
        self, source: str, destination: Queue | Exchange | None, routing_key: str, arguments: Mapping[str, Any]
    ) -> None:
        """Take a binding back; what does not exist is no error."""
        if not source:
            raise Refusal(ACCESS_REFUSED, 'operation not permitted on the default exchange')
        exchange = self.exchanges.get(source)
        if exchange is None or destination is None:
            return
        if exchange.unbind(Binding(destination, routing_key, arguments)):
            self._routes.forget()
            self._delete_if_unbound(exchange)

    def _remove_destination(self, destination: Queue | Exchange) -> None:
        for exchange in list(self.exchanges.values()):
            if exchange.remove_destination(destination):
                self._delete_if_unbound(exchange)
        self._routes.forget()

    def _delete_if_unbound(self, exchange: Exchange) -> None:
        if exchange.auto_delete and not exchange.bindings and self.exchanges.get(exchange.name) is exchange:
            self._remove_exchange(exchange)

    # --- queues ---

    def queue(self, name: str, user: object) -> Queue:
        """Return a queue that this connection may use.

        :raises Refusal: 404, where there is none; 405, where another connection owns it
        """
        queue = self.queues.get(name)
        if queue is None:
            raise Refusal(NOT_FOUND, f'no {self._queue_text(name)}')
        if queue.owner is not None and queue.owner is not user:
            raise self._locked(name)
        return queue

    def _locked(self, name: str) -> Refusal:
        return Refusal(
            RESOURCE_LOCKED,
            f'cannot obtain exclusive access to locked {self._queue_text(name)}. It could be originally declared '
            'on another connection or the exclusive property value does not match that of the original '
            'declaration.',
        )

    def new_queue_name(self, name: str) -> str:
        """Return the name of a queue that is to be declared: a new one where it is empty.

        :raises Refusal: 403 for a reserved name
        """
        if name.startswith('amq.'):
            raise Refusal(ACCESS_REFUSED, f"queue name '{name}' contains reserved prefix 'amq.*'")
        return name or generated_name('amq.gen-')

    def declare_queue(
        self,
        name: str,
        user: object,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any],
    ) -> Queue:
        """Return a queue with these properties, made where it did not exist.

        :param name: what :meth:`new_queue_name` returned
        :raises Refusal: 405 and 406 where it exists otherwise, 406 for wrong arguments
        """
        # An exclusive queue ends with its connection, so that RabbitMQ takes no notice of its being durable.
        durable = durable and not exclusive
        found = self.queues.get(name)
        if found is not None:
            self._check_queue(found, user, durable, exclusive, auto_delete, arguments)
            found.touch()
            return found
        if len(self.queues) >= self.limits.queues:
            limit = f"queue limit in vhost '{self.name}' ({self.limits.queues}) is reached"
            raise Refusal(PRECONDITION_FAILED, f"cannot declare queue '{name}': {limit}")
        args.check_queue_arguments(name, self.name, arguments, self.rules.arguments)
        self.rules.check_queue(durable, exclusive, arguments)
        if arguments.get('x-queue-type') == 'quorum':
            self._check_quorum(name, durable, exclusive, auto_delete)
        owner = user if exclusive else None
        queue = Queue(name, self, durable, owner, auto_delete, arguments)
        self.queues[queue.name] = queue
        self._routes.forget()
        logger.debug('%s: %s queue %r declared', self.name, queue.type, queue.name)
        return queue

    def _check_queue(
        self,
        found: Queue,
        user: object,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        if found.owner is not (user if exclusive else None):
            raise self._locked(found.name)
        what = self._queue_text(found.name)
        for flag, received in (('durable', durable), ('auto_delete', auto_delete)):
            current = getattr(found, flag)
            if received != current:
                new, old = args.text_of(received), args.text_of(current)
                raise args.inequivalent(what, flag, f"'{new}'", f"'{old}'")
        received_all, current_all = _with_types(arguments, found.arguments, self.rules)
        args.check_equivalent(what, received_all, current_all, self.rules.arguments.queue_keys[found.type])

    def _check_quorum(self, name: str, durable: bool, exclusive: bool, auto_delete: bool) -> None:
        wrong = (('auto-delete', auto_delete), ('exclusive-owner', exclusive), ('non-durable', not durable))
        for what, is_wrong in wrong:
            if is_wrong:
                raise Refusal(PRECONDITION_FAILED, f"invalid property '{what}' for {self._queue_text(name)}")

    def delete_queue(self, queue: Queue) -> int:
        """Remove a queue with its bindings, and return how many messages were ready in it."""
        if queue.deleted:
            return 0
        del self.queues[queue.name]
        self._remove_destination(queue)
        logger.debug('%s: queue %r deleted', self.name, queue.name)
        return queue.delete()

    def delete_queue_when(self, queue: Queue, if_unused: bool, if_empty: bool) -> int:
        """Remove a queue that meets the conditions.

        :raises Refusal: 406, where it does not; 540 for a quorum queue, which knows no conditions
        """
        for flag, is_set in (('if-unused', if_unused), ('if-empty', if_empty)):
            if is_set and queue.is_quorum:
                wrong = f'queue.delete operations with {flag} flag set are not supported by quorum queues'
                raise Refusal(NOT_IMPLEMENTED, f'cannot delete {self._queue_text(queue.name)}. {wrong}')
        if if_unused and queue.consumers:
            raise Refusal(PRECONDITION_FAILED, f'{self._queue_text(queue.name)} in use')
        if if_empty and queue.ready:
            raise Refusal(PRECONDITION_FAILED, f'{self._queue_text(queue.name)} not empty')
        return self.delete_queue(queue)

    def owner_gone(self, user: object) -> None:
        """Remove the exclusive queues of a connection that has closed."""
        for queue in [queue for queue in self.queues.values() if queue.owner is user]:
            self.delete_queue(queue)

    # --- the way of a message ---

    def reply(self, message: Message) -> bool:
        """Hand a message to the consumers of replies among its addresses, and tell whether there are any."""
        consumers = [self.reply_addresses[key] for key in message.routing_keys if key in self.reply_addresses]
        for deliver in consumers:
            deliver(message)
        return bool(consumers)

    def put(self, queues: Sequence[Queue], message: Message, lifetime: int | None) -> bool:
        """Put a message into queues, and tell whether all of them took it.

        :param lifetime: the message's own expiration in milliseconds
        """
        if len(queues) == 1:
            return queues[0].publish(message, lifetime)
        # What dies for the sake of this message comes behind it where they meet, so it waits.
        is_first, self._burying = not self._burying, True
        try:
            accepted = [queue.publish(message, lifetime) for queue in queues]
        finally:
            if is_first:
                self._bury_all()
        return all(accepted)

    def route(self, exchange: Exchange, message: Message) -> tuple[Queue, ...]:
        """Return the queues that a message reaches from an exchange, each once."""
        return self._routes.find(exchange, message)

    # --- dead letters ---

    def dead_letter(self, queue: Queue, message: Message, reason: str, failures: int = 0) -> None:
        """Send a dead message to its queue's dead-letter exchange, if it has one.

        Deaths that follow from deaths wait in line, so that a chain of queues does not become a chain of calls.
        """
        for observer in self.observers:
            observer.died(self.name, queue.name, message, reason)
        if queue.dead_letter_exchange is None:
            return
        self._dead.append((queue, message, reason, failures))
        if not self._burying:
            self._bury_all()

    def _bury_all(self) -> None:
        self._burying = True
        try:
            while self._dead:
                self._bury(*self._dead.popleft())
        finally:
            self._burying = False

    def _bury(self, queue: Queue, message: Message, reason: str, failures: int) -> None:
        exchange = self.exchanges.get(queue.arguments['x-dead-letter-exchange'])
        if exchange is None:
            return
        letter = dead_letter_of(message, queue.name, queue.arguments, exchange.name, reason, self.rules, failures)
        deaths = deaths_of(letter, self.rules) or ()
        for target in self.route(exchange, letter):
            if reason == 'rejected' or not is_cycle(target.name, deaths):
                target.publish(letter)


def _with_types(
    received: Mapping[str, Any], current: Mapping[str, Any], rules: Rules
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return two sets of arguments with the queue type that is meant where they name none."""
    default = {'x-queue-type': 'classic'}
    if rules.arguments.knows_default_type:
        return {**default, **received}, {**default, **current}
    # Naming the default type is the same as not naming it.
    received_all = {**default, **received} if current.get('x-queue-type') == 'classic' else received
    return received_all, {**default, **current} if received.get('x-queue-type') == 'classic' else current
