"""Producers: classes whose ``message_*`` and ``rpc_*`` methods are a component's network API."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from postage import errors, settings
from postage.amqp import frames
from postage.amqp.control import BlockingAccess, declare_exchange, declare_queue
from postage.amqp.deliveries import current
from postage.amqp.publishing import Ledger, Outgoing, Receipt, ids
from postage.amqp.threads import this_thread
from postage.amqp.topology import Queue
from postage.amqp.turns import alarm_of_thread, read_by_this_thread
from postage.messaging import deadlocks
from postage.messaging.connected import Connected
from postage.messaging.exchanges import Exchange
from postage.messaging.fingerprint import as_fingerprint_dict
from postage.messaging.messages import Message, MessageCommand, MessageResult, RpcCommand
from postage.messaging.options import (
    PUBLISH_OPTIONS,
    RPC_OPTIONS,
    ExchangeKey,
    check_eks,
    further_properties,
    number,
    pack,
    refuse_unknown,
    take_options,
)
from postage.messaging.rpc import Answer, Call, RpcFuture, bodies_in, client_of, decode_result
from postage.microthreads import running_scheduler
from postage.printable import shown_half_built
from postage.secret import Secret

logger = logging.getLogger('postage')


class GenericProducer(Connected):
    """Sends messages and RPC requests; derive from it, one class for each API.

    ``producer.message_NAME(…)`` sends what ``build_message_NAME(…)`` returns, or a ``MessageCommand`` with the
    arguments packed into its parameters where there is no such method. ``rpc_NAME``, ``rpc_queue_NAME`` and
    ``rpc_future_NAME`` do the same for RPC requests and ``build_rpc_NAME``. All of it may be called from several
    threads at once.

    The constructor connects and declares the exchanges of ``eks``. Several producers in a process share a
    connection; the last :meth:`close` closes it. ``with`` closes, too.

    :param fingerprint: travels with each message; by default one of this process without a name
    :param hup: which broker: ``{'host': …, 'user': …, 'password': …}``, or an AMQP URL
    :param vhost: which virtual host of it
    :raises errors.ConfigurationError: ``eks`` or a setting has the wrong shape
    :raises errors.BrokerUnavailable: after ``POSTAGE_CONNECT_TIMEOUT`` seconds
    :raises errors.AuthenticationFailed: at once
    :raises errors.VirtualHostRefused: at once
    :raises errors.DeclarationMismatch: an exchange exists with another type or other flags

    :cvar eks: exchanges, each with the routing key, that a message goes to unless the call says otherwise
    :cvar encoder_class: has ``encode``, ``decode`` and ``content_type``
    :cvar rpc_timeout: seconds to wait for an RPC's reply, at each attempt
    :cvar max_retry: how often an RPC is sent again
    :cvar persistent: whether messages survive a restart of the broker in durable queues (delivery mode 2)
    :cvar confirms: whether the broker confirms each message, in the background
    :cvar mandatory: whether a message that no queue takes is an error, told by its receipt
    :cvar publish_timeout: seconds that a call waits at a full window, and :meth:`close` for what is unconfirmed
    :cvar reply_queue_per_call: give each RPC a queue of its own for its reply, for responders that do not copy the
        correlation id, where several calls are under way at once
    :cvar rpc_queue_expires: seconds after which the broker deletes a queue of ``rpc_queue_*`` that no consumer reads
    """

    eks: Sequence[ExchangeKey] = ()
    rpc_timeout: float = 30
    max_retry: int = 4
    persistent: bool = True
    confirms: bool = True
    mandatory: bool = False
    publish_timeout: float = 30.0
    reply_queue_per_call: bool = False
    rpc_queue_expires: float = 600.0

    def __init__(self, fingerprint: Any = None, hup: Any = None, vhost: str | None = None) -> None:
        hup = Secret.of(hup)
        super().__init__(hup, vhost)
        check_eks(self.eks, f'{type(self).__name__}.eks')
        self.fingerprint: dict[str, Any] = as_fingerprint_dict(fingerprint, self.vhost)
        self._names: dict[Any, str] = {}  # exchanges that were declared, by class or instance
        self._access: BlockingAccess | None = None
        with self._connecting('publishing'):
            self._publisher = self._connection.publisher(self.confirms)
            self._ledger = Ledger(self._publisher)
            self._look_at_eks()

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} on {self._connection.settings}>'

    # Life

    def close(self) -> None:
        """Wait until what was sent is confirmed, then give the connection back; the last to do so closes it.

        What could not be confirmed within ``publish_timeout`` seconds is logged. Blocks; does nothing the second time.
        """
        if self._closed:
            return
        try:
            self.flush(self.publish_timeout)
        except errors.PublishError as error:
            logger.error('%s was closed with messages not delivered: %s', self, error)
        self._give_back()

    @property
    def channel(self) -> BlockingAccess:
        """pika's channel methods, blocking, for what Postage does not wrap. An error on it harms nothing else."""
        if self._access is None:
            self._access = BlockingAccess(self._connection.control, self._connection)
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

    # Sending

    def message(self, *args: Any, **kwds: Any) -> Receipt:
        """Send a generic ``Message(*args, **kwds)``; takes the same special keywords as ``message_*``."""
        options = take_options(kwds, PUBLISH_OPTIONS)
        return self._send(Message(*args, **kwds), options)

    def forward(self, body: Any, **options: Any) -> Receipt:
        """Send a ready body as it is, fingerprint included; takes ``_key``, ``_eks`` and their kin.

        :param body: a body that some consumer received, or a message
        """
        refuse_unknown(options, PUBLISH_OPTIONS, 'forward')
        return self._publish(body.body if isinstance(body, Message) else body, options)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that this producer sent is confirmed. Blocks; any thread.

        :param timeout: seconds; by default as long as it takes
        :raises errors.PublishError: what has failed since it was last told; ``failures`` has all of it
        :raises errors.PublishTimeout: something was not confirmed in time
        """
        self._publisher.flush(self._ledger, timeout)

    @staticmethod
    def serialize_text_file(path: str | os.PathLike[str]) -> dict[str, Any]:
        """A text file as something a message can carry: ``{'name': basename, 'content': lines}``."""
        with open(path, encoding='utf-8') as text:
            return {'name': os.path.basename(path), 'content': text.readlines()}

    def __getattr__(self, name: str) -> Any:
        """Make ``message_*`` and ``rpc_*`` methods when they are first called."""
        for prefix, make in _MAGIC:
            if name.startswith(prefix) and len(name) > len(prefix):
                method = make(self, name)
                method.__name__ = method.__qualname__ = name
                self.__dict__[name] = method
                return method
        raise AttributeError(
            f'{type(self).__name__!r} object has no attribute {name!r}; what it can send are message_NAME and rpc_NAME'
        )

    def _make_message(self, name: str) -> Callable[..., Receipt]:
        builder, command = f'build_{name}', name[len('message_') :]
        own, cls = self.__dict__, type(self)

        def send(*args: Any, **kwds: Any) -> Receipt:
            options = take_options(kwds, PUBLISH_OPTIONS) if kwds else kwds
            if builder in own or hasattr(cls, builder):  # at each call: a program may add one at any time
                return self._send(self._build(builder, args, kwds), options)
            parameters = args[0] if len(args) == 1 and not kwds else pack(args, kwds)
            return self._send(MessageCommand(command, parameters), options)

        return send

    def _build(self, builder: str, args: tuple[Any, ...], kwds: dict[str, Any]) -> Any:
        """What a builder makes: a message, or whatever is like one."""
        message = getattr(self, builder)(*args, **kwds)
        if not isinstance(message, Message) and not (hasattr(message, 'body') and hasattr(message, 'fingerprint')):
            raise errors.ConfigurationError(
                f'{type(self).__name__}.{builder}() must return a Message, not {message!r:.80}'
            )
        return message

    def _send(self, message: Any, options: dict[str, Any]) -> Receipt:
        if type(message).fingerprint is _stamp:  # not overridden: without a call for each message
            message.body['fingerprint'].update(self.fingerprint)
        else:
            message.fingerprint(**self.fingerprint)
        return self._publish(message.body, options)

    def _publish(self, body: Any, options: dict[str, Any]) -> Receipt:
        """Hand one body to the publishing channel, once for each of its exchanges."""
        if self._closed:
            self._check_open()
        if self.eks != self._known_eks:
            self._look_at_eks()
        routes = self._routes_of(options) if options or not self._routes else self._routes
        encoded = self.encode(body)
        message_id = ids.new()
        content_type, delivery_mode = self.encoder.content_type, 2 if self.persistent else 1
        further = further_properties(options) if options else None
        if further is None:
            properties = frames.usual_properties(content_type, delivery_mode, message_id)
        else:
            usual = {'content_type': content_type or None, 'delivery_mode': delivery_mode, 'message_id': message_id}
            properties = frames.encode_properties(**usual, **further)
        receipt = Receipt(message_id, len(routes), self.confirms, self._ledger)
        for exchange, key in routes:
            if settings.is_debugging:
                self._log_sending(exchange, key, body)
            self._publisher.publish(
                Outgoing(exchange, key, self.mandatory, properties, encoded, receipt), self.publish_timeout
            )
        delivery = current.get()
        if delivery is not None:
            delivery.published(receipt)
        return receipt

    def _log_sending(self, exchange: str, key: str, body: Any) -> None:
        name = type(self).__name__
        logger.debug('%s: publish to exchange %r, key %r: %r', name, exchange, key, body)

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
            raise errors.ConfigurationError(f'_key must be a routing key, not {key!r:.80}')
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
                self._topology.exchanges[name] = parameters
            self._names[exchange] = name
        return name

    # RPC

    def _make_rpc(self, name: str) -> Callable[..., Any]:
        """``rpc_NAME``, ``rpc_queue_NAME`` or ``rpc_future_NAME``; an exact builder wins over the latter two."""
        for prefix, method in (('rpc_queue_', self._rpc_queue), ('rpc_future_', self._rpc_future)):
            if name.startswith(prefix) and len(name) > len(prefix) and not self._has_builder(f'build_{name}'):
                return self._rpc_caller('rpc_' + name[len(prefix) :], method)
        return self._rpc_caller(name, self._rpc)

    def _has_builder(self, builder: str) -> bool:
        return builder in self.__dict__ or hasattr(type(self), builder)

    def _rpc_caller(self, name: str, method: Callable[[str, Any, dict[str, Any]], Any]) -> Callable[..., Any]:
        builder, command = f'build_{name}', name[len('rpc_') :]
        own, cls = self.__dict__, type(self)

        def call(*args: Any, **kwds: Any) -> Any:
            options = take_options(kwds, RPC_OPTIONS) if kwds else kwds
            if builder in own or hasattr(cls, builder):
                return method(name, self._build(builder, args, kwds), options)
            parameters = args[0] if len(args) == 1 and not kwds else pack(args, kwds)
            return method(name, RpcCommand(command, parameters), options)

        return call

    def _rpc(self, name: str, message: Message, options: dict[str, Any]) -> MessageResult | str:
        if options and options.get('_queue_only'):
            return self._rpc_queue(name, message, options)
        scheduler = running_scheduler()
        if scheduler is not None:
            route = self._routes_of(options)[0]
            deadlocks.refuse(scheduler, self._settings, name, route, self.channel)
        alarm = alarm_of_thread()
        if alarm is None:
            return self._rpc_future(name, message, options).result()
        answer = Answer(alarm)
        thread = this_thread
        outer = thread.batch
        if outer is None:
            thread.batch = []  # sent as soon as it is complete, by the wait: this thread has nothing else to do
        try:
            self._call(name, message, options, answer)
            return answer.wait(self._connection)
        finally:
            if outer is None:
                thread.batch = None

    def _rpc_future(self, name: str, message: Message, options: dict[str, Any]) -> RpcFuture:
        future = RpcFuture(self._connection)
        read_by_this_thread(self._connection.readership)  # its scheduler, if it has one, will wait for the answer
        future.exchange, future.routing_key = self._call(name, message, options, future)
        return future

    def _call(
        self, name: str, message: Message, options: dict[str, Any], future: RpcFuture | Answer
    ) -> tuple[str, str]:
        """Send a request. Returns where it went: exchange and routing key."""
        if self._closed:
            self._check_open()
        if self.eks != self._known_eks:
            self._look_at_eks()
        route = self._routes_of(options)[0] if options or not self._routes else self._routes[0]
        timeout, max_retry = self.rpc_timeout, self.max_retry
        further = None
        if options:
            timeout = number(options, '_timeout', timeout)
            max_retry = int(number(options, '_max_retry', max_retry, whole=True))
            further = further_properties(options)
        message.fingerprint(**self.fingerprint)
        if settings.is_debugging:
            self._log_sending(*route, message.body)
        call = Call(
            name,
            route,
            future,
            self.encoder.content_type,
            2 if self.persistent else 1,
            further,
            self.encode(message.body),
            self.encoder.decode,
            timeout,
            max_retry,
            self.reply_queue_per_call,
        )
        (self._connection.rpc_client or client_of(self._connection)).call(call)
        return route

    def _rpc_queue(self, name: str, message: Message, options: dict[str, Any]) -> str:
        """Send the request once, and return the queue that its answer will be in."""
        self._check_open()
        exchange, key = self._routes_of(options)[0]
        message.fingerprint(**self.fingerprint)
        if settings.is_debugging:
            self._log_sending(exchange, key, message.body)
        encoded = self.encode(message.body)
        message_id = ids.new()
        queue = Queue(
            f'postage.rpc-{message_id}',
            {'durable': True, 'arguments': {'x-expires': int(self.rpc_queue_expires * 1000)}},
        )
        properties = frames.encode_properties(
            content_type=self.encoder.content_type or None,
            delivery_mode=2 if self.persistent else 1,
            message_id=message_id,
            correlation_id=message_id,
            reply_to=queue.name,
            **(further_properties(options) or {}),
        )
        self._connection.ask(lambda: declare_queue(self._connection.control, queue))
        publisher = self._connection.publisher(True)
        receipt = Receipt(message_id, 1, True, Ledger(publisher))
        outgoing = Outgoing(exchange, key, self.mandatory, properties, encoded, receipt, resend=False)
        publisher.publish(outgoing, self.publish_timeout)
        receipt.wait(self.publish_timeout)
        return queue.name

    def consume_rpc(
        self,
        queue: str,
        result_len: int = 1,
        callback: Callable[[Any], object] | None = None,
        timeout: float | None = None,
    ) -> list[MessageResult]:
        """Collect results from a queue that ``rpc_queue_*`` returned. Blocks; leaves no consumer behind.

        :param result_len: how many to wait for
        :param callback: called with each decoded body, in the calling thread
        :param timeout: seconds for all of them; by default, or where it is negative, ``rpc_timeout``
        :return: the results, in the order of their arrival; a malformed one as a ``MessageResultError``
        :raises errors.TimeoutError: too few arrived in time; its ``results`` has those that did
        :raises errors.NotFound: there is no such queue
        """
        self._check_open()
        results: list[MessageResult] = []
        deadline = time.monotonic() + (self.rpc_timeout if timeout is None or timeout < 0 else timeout)
        with contextlib.closing(bodies_in(queue, self._connection, result_len, deadline)) as bodies:
            for data in bodies:
                if callback is not None:
                    try:
                        body = self.encoder.decode(data)
                    except Exception:
                        pass  # the result says so: it is a MessageResultError
                    else:
                        callback(body)
                results.append(decode_result(data, self.encoder.decode))
        if len(results) < result_len:
            text = f'{len(results)} of {result_len} results arrived in queue {queue!r} in time'
            raise errors.TimeoutError(text, results)
        return results


_stamp = Message.fingerprint

_MAGIC: tuple[tuple[str, Callable[[GenericProducer, str], Any]], ...] = (
    ('message_', GenericProducer._make_message),
    ('rpc_', GenericProducer._make_rpc),
)
