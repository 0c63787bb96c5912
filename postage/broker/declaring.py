"""The methods of a channel that are about exchanges, queues and bindings (AMQP 0-9-1 sections 1.6 and 1.7)."""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pika import amqp_object, spec

from postage.broker.client import Client
from postage.broker.queues import Queue
from postage.broker.replies import NOT_FOUND, Refusal
from postage.broker.virtual_host import REPLY_TO


class Declaring:
    """Answers these methods on behalf of one channel, which remembers the queue that it declared last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._host = client.virtual_host
        self._rules = client.shared.rules
        self._last_queue = ''

    # --- permissions ---

    def require(self, right: str, kind: str, name: str) -> None:
        """Make sure that the user has a right.

        :raises Refusal: 403
        """
        if self._client.grant is not None:
            self._client.grant.check(right, kind, name)

    def _require_for_exchange(self, name: str, arguments: Mapping[str, Any]) -> None:
        if not name:
            return
        self.require('configure', 'exchange', name)
        if isinstance(alternate := arguments.get('alternate-exchange'), str):
            self.require('read', 'exchange', name)
            self.require('write', 'exchange', alternate)

    def _require_for_queue(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.require('configure', 'queue', name)
        if isinstance(dead_letters := arguments.get('x-dead-letter-exchange'), str):
            self.require('read', 'queue', name)
            self.require('write', 'exchange', dead_letters)

    def _require_to_look(self, kind: str, name: str) -> None:
        if self._rules.passive_needs_configure and name:
            self.require('configure', kind, name)

    # --- exchange ---

    def on_exchange_declare(self, method: spec.Exchange.Declare) -> amqp_object.Method:
        """Declare an exchange, or look whether there is one."""
        if method.passive:
            self._require_to_look('exchange', method.exchange)
            self._host.named_exchange(method.exchange)
        else:
            self._require_for_exchange(method.exchange, method.arguments or {})
            self._host.declare_exchange(
                method.exchange,
                method.type,
                method.durable,
                method.auto_delete,
                method.internal,
                method.arguments or {},
            )
        return spec.Exchange.DeclareOk()

    def on_exchange_delete(self, method: spec.Exchange.Delete) -> amqp_object.Method:
        """Delete an exchange."""
        if method.exchange and not method.exchange.startswith('amq.'):
            self.require('configure', 'exchange', method.exchange)
        self._host.delete_exchange(method.exchange, method.if_unused)
        return spec.Exchange.DeleteOk()

    def on_exchange_bind(self, method: spec.Exchange.Bind) -> amqp_object.Method:
        """Let an exchange send to another."""
        self.require('write', 'exchange', method.destination)
        self.require('read', 'exchange', method.source)
        self._host.named_exchange(method.source)
        destination = self._host.named_exchange(method.destination)
        self._host.bind(method.source, destination, method.routing_key, method.arguments or {})
        return spec.Exchange.BindOk()

    def on_exchange_unbind(self, method: spec.Exchange.Unbind) -> amqp_object.Method:
        """Take that back."""
        self.require('write', 'exchange', method.destination)
        self.require('read', 'exchange', method.source)
        if not method.destination:
            self._host.named_exchange('')
        destination = self._host.exchanges.get(method.destination)
        self._host.unbind(method.source, destination, method.routing_key, method.arguments or {})
        return spec.Exchange.UnbindOk()

    # --- queue ---

    def _queue_name(self, name: str) -> str:
        """Return the name, or that of the last queue declared here where it is empty."""
        if name:
            return name
        if not self._last_queue:
            raise Refusal(NOT_FOUND, 'no previously declared queue')
        return self._last_queue

    def _queue(self, name: str) -> Queue:
        return self._host.queue(self._queue_name(name), self._client)

    def readable_queue(self, name: str) -> Queue:
        """Return a queue that the user may read.

        :raises Refusal: 403, 404 or 405
        """
        self.require('read', 'queue', self._queue_name(name))
        return self._queue(name)

    def on_queue_declare(self, method: spec.Queue.Declare) -> amqp_object.Method:
        """Declare a queue, or look whether there is one."""
        if method.queue.startswith(REPLY_TO):
            return self._reply_queue_declared(method.queue)
        if method.passive:
            self._require_to_look('queue', method.queue)
            queue = self._host.queue(method.queue, self._client)
            queue.touch()
        else:
            name = self._host.new_queue_name(method.queue)
            self._require_for_queue(name, method.arguments or {})
            queue = self._host.declare_queue(
                name,
                self._client,
                method.durable,
                method.exclusive,
                method.auto_delete,
                method.arguments or {},
            )
        self._last_queue = queue.name
        return spec.Queue.DeclareOk(queue.name, len(queue.ready), queue.consumer_count)

    def _reply_queue_declared(self, name: str) -> amqp_object.Method:
        if name != REPLY_TO and name not in self._host.reply_addresses:
            raise Refusal(NOT_FOUND, f"no queue '{name}' in vhost '{self._host.name}'")
        return spec.Queue.DeclareOk(name, 0, 1)

    def _binding_of(self, method: spec.Queue.Bind | spec.Queue.Unbind) -> tuple[str, str]:
        """Name and key of the queue that is to be bound or unbound, where its user may do that."""
        name = self._queue_name(method.queue)
        self.require('write', 'queue', name)
        self.require('read', 'exchange', method.exchange)
        return name, method.routing_key if method.queue or method.routing_key else name

    def on_queue_bind(self, method: spec.Queue.Bind) -> amqp_object.Method:
        """Let an exchange send to a queue."""
        name, key = self._binding_of(method)
        self._host.named_exchange(method.exchange)
        self._host.bind(method.exchange, self._host.queue(name, self._client), key, method.arguments or {})
        return spec.Queue.BindOk()

    def on_queue_unbind(self, method: spec.Queue.Unbind) -> amqp_object.Method:
        """Take that back."""
        name, key = self._binding_of(method)
        queue, arguments = self._host.queues.get(name), method.arguments or {}
        if queue is not None and self._host.is_bound(method.exchange, queue, key, arguments):
            self._host.queue(name, self._client)  # RabbitMQ looks for its owner only where it has something to undo
        self._host.unbind(method.exchange, queue, key, arguments)
        return spec.Queue.UnbindOk()

    def on_queue_purge(self, method: spec.Queue.Purge) -> amqp_object.Method:
        """Drop what is ready in a queue."""
        return spec.Queue.PurgeOk(self.readable_queue(method.queue).purge())

    def on_queue_delete(self, method: spec.Queue.Delete) -> amqp_object.Method:
        """Delete a queue."""
        name = self._queue_name(method.queue)
        self.require('configure', 'queue', name)
        if name not in self._host.queues:
            return spec.Queue.DeleteOk(0)
        count = self._host.delete_queue_when(self._queue(name), method.if_unused, method.if_empty)
        return spec.Queue.DeleteOk(count)
