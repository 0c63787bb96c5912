"""Producers: classes whose ``message_*`` and ``rpc_*`` methods are a component's network API."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from postage import errors
from postage.amqp import wire
from postage.amqp.channel import BlockingAccess
from postage.amqp.consuming import ConsumingChannel, current
from postage.amqp.publishing import Ledger, Outgoing, Receipt, new_message_id
from postage.amqp.topology import Queue, Topology, declare_exchange, declare_queue
from postage.amqp.waiting import Batch, alarm_of_thread, this_thread
from postage.messaging import deadlocks
from postage.messaging.connected import Connected
from postage.messaging.exchanges import Exchange, check_exchange
from postage.messaging.fingerprint import Fingerprint, as_fingerprint_dict
from postage.messaging.messages import Message, MessageCommand, MessageResult, RpcCommand
from postage.messaging.rpc import Answer, Call, RpcFuture, client_of, decode_result
from postage.microthreads import running_scheduler

ExchangeKey = tuple['type[Exchange] | Exchange', str]
"""An exchange and a routing key: an element of ``eks``."""

_PUBLISH_OPTIONS = ('_key', '_eks', '_headers', '_priority', '_expiration')
_RPC_OPTIONS = (*_PUBLISH_OPTIONS, '_timeout', '_max_retry', '_queue_only')


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
    :cvar rpc_queue_expires: seconds after which the broker deletes a queue of ``rpc_queue_*`` that nobody reads
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
        super().__init__(hup, vhost)
        routes = _check_eks(self.eks, f'{type(self).__name__}.eks')
        if fingerprint is None:
            fingerprint = Fingerprint(vhost=self.vhost)
        self.fingerprint: dict[str, Any] = as_fingerprint_dict(fingerprint)
        self._names: dict[Any, str] = {}  # exchanges that were declared, by class or instance
        self._access: BlockingAccess | None = None
        with self._connecting('publishing'):
            self._ledger = Ledger(self._connection)
            self._publisher = self._connection.publisher(self.confirms)
            self._routes = [(self._declared(exchange), key) for exchange, key in routes]

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
            self._connection.logger.error('%s was closed with messages not delivered: %s', self, error)
        self._give_back()

    @property
    def channel(self) -> BlockingAccess:
        """pika's channel methods, blocking, for what Postage does not wrap. An error on it harms nothing else."""
        if self._access is None:
            self._access = BlockingAccess(self._connection.control)
        return self._access

    # Sending

    def message(self, *args: Any, **kwds: Any) -> Receipt:
        """Send a generic ``Message(*args, **kwds)``; takes the same special keywords as ``message_*``."""
        options = _take_options(kwds, _PUBLISH_OPTIONS)
        return self._send(Message(*args, **kwds), options)

    def forward(self, body: Any, **options: Any) -> Receipt:
        """Send a ready body as it is, fingerprint included; takes ``_key``, ``_eks`` and their kin.

        :param body: a body that some consumer received, or a message
        """
        _refuse_unknown(options, _PUBLISH_OPTIONS, 'forward')
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
        build = self._builder(name, MessageCommand, name[len('message_') :])

        def send(*args: Any, **kwds: Any) -> Receipt:
            options = _take_options(kwds, _PUBLISH_OPTIONS)
            return self._send(build(*args, **kwds), options)

        return send

    def _builder(self, name: str, message_class: Callable[[str, Any], Message], command: str) -> Callable[..., Message]:
        """The builder of a message: the class's own, or one that packs the arguments into a command."""
        builder = getattr(type(self), f'build_{name}', None) or self.__dict__.get(f'build_{name}')
        if builder is None:
            return lambda *args, **kwds: message_class(command, _pack(args, kwds))

        def build(*args: Any, **kwds: Any) -> Message:
            message = getattr(self, f'build_{name}')(*args, **kwds)
            if not isinstance(message, Message):
                raise errors.ConfigurationError(
                    f'{type(self).__name__}.build_{name}() must return a Message, not {message!r:.80}'
                )
            return message

        return build

    def _send(self, message: Message, options: dict[str, Any]) -> Receipt:
        message.fingerprint(self.fingerprint)
        return self._publish(message.body, options)

    def _publish(self, body: Any, options: dict[str, Any]) -> Receipt:
        """Hand one body to the publishing channel, once for each of its exchanges."""
        self._check_open()
        routes = self._routes_of(options) if options else self._routes
        if not routes:
            raise errors.ConfigurationError(
                f'{type(self).__name__} has no eks, so it needs _eks=[(Exchange, key)] to know where to send'
            )
        encoded = self.encode(body)
        message_id = new_message_id()
        properties = self._properties(message_id, options)
        receipt = Receipt(message_id, len(routes), self.confirms, self._ledger)
        for exchange, key in routes:
            self._publisher.publish(
                Outgoing(exchange, key, self.mandatory, properties, encoded, receipt), self.publish_timeout
            )
        delivery = current.get()
        if delivery is not None:
            delivery.published(receipt)
        return receipt

    @property
    def _usual_properties(self) -> tuple[str, int]:
        """Content type and delivery mode of all its messages."""
        return self.encoder.content_type, 2 if self.persistent else 1

    def _properties(self, message_id: str, options: dict[str, Any]) -> bytes:
        """The AMQP properties of a message."""
        further = _further_properties(options)
        if further is None:
            return wire.usual_properties(*self._usual_properties, message_id)
        return wire.encode_properties(*self._usual_properties, message_id, **further)

    def _routes_of(self, options: dict[str, Any]) -> list[tuple[str, str]]:
        """Where a message goes: exchange names with keys, from ``_eks``, ``_key`` or the class."""
        eks = options.get('_eks')
        if eks is not None:
            return [(self._declared(exchange), key) for exchange, key in _check_eks(eks, '_eks')]
        key = options.get('_key')
        if key is None:
            return self._routes
        if not isinstance(key, str):
            raise errors.ConfigurationError(f'_key must be a routing key, not {key!r:.80}')
        if not self._routes:
            raise errors.ConfigurationError(f'_key needs an exchange, and {type(self).__name__}.eks has none; use _eks')
        return [(self._routes[0][0], key)]

    def _declared(self, exchange: type[Exchange] | Exchange) -> str:
        """The name of an exchange, which is declared first where this producer has not yet done so."""
        name = self._names.get(exchange)
        if name is None:
            name = exchange.name
            if name:
                parameters = exchange.parameters
                connection = self._connection
                connection.run(lambda: declare_exchange(connection.control, parameters))
                self._topology.exchanges[name] = parameters
            self._names[exchange] = name
        return name

    # RPC

    def _make_rpc(self, name: str) -> Callable[..., Any]:
        """``rpc_NAME``, ``rpc_queue_NAME`` or ``rpc_future_NAME``; an exact builder wins over the latter two."""
        for prefix, method in (('rpc_queue_', self._rpc_queue), ('rpc_future_', self._rpc_future)):
            if name.startswith(prefix) and len(name) > len(prefix) and not hasattr(type(self), f'build_{name}'):
                return self._rpc_caller('rpc_' + name[len(prefix) :], method)
        return self._rpc_caller(name, self._rpc)

    def _rpc_caller(self, name: str, method: Callable[[str, Message, dict[str, Any]], Any]) -> Callable[..., Any]:
        build = self._builder(name, RpcCommand, name[len('rpc_') :])

        def call(*args: Any, **kwds: Any) -> Any:
            options = _take_options(kwds, _RPC_OPTIONS)
            return method(name, build(*args, **kwds), options)

        return call

    def _rpc(self, name: str, message: Message, options: dict[str, Any]) -> MessageResult | str:
        if options.get('_queue_only'):
            return self._rpc_queue(name, message, options)
        scheduler = running_scheduler()
        if scheduler is not None:
            deadlocks.refuse(scheduler, self, name, self._rpc_route(options))
        alarm = alarm_of_thread()
        if alarm is None:
            return self._rpc_future(name, message, options).result()
        answer = Answer(alarm)
        with Batch():  # sent as soon as that is complete, for this thread has nothing to do but wait
            self._call(name, message, options, self._rpc_route(options), answer)
        return answer.wait(self._connection)

    def _rpc_future(self, name: str, message: Message, options: dict[str, Any]) -> RpcFuture:
        route = self._rpc_route(options)
        future = RpcFuture(*route, self._connection)
        if this_thread.alarm is not None:
            this_thread.alarm.add(self._connection)  # this thread's scheduler, if it has one, will wait for the answer
        self._call(name, message, options, route, future)
        return future

    def _call(
        self, name: str, message: Message, options: dict[str, Any], route: tuple[str, str], future: RpcFuture | Answer
    ) -> None:
        self._check_open()
        timeout, max_retry = self.rpc_timeout, self.max_retry
        if options:
            timeout = _number(options, '_timeout', timeout)
            max_retry = int(_number(options, '_max_retry', max_retry, whole=True))
        further_properties = _further_properties(options)
        if further_properties is not None:
            wire.encode_properties(**further_properties)  # what cannot be is told here, and not where it is sent
        message.fingerprint(self.fingerprint)
        call = Call(
            name,
            *route,
            future,
            self._usual_properties,
            further_properties,
            self.encode(message.body),
            self.encoder.decode,
            timeout,
            max_retry,
            self.reply_queue_per_call,
        )
        client_of(self._connection).call(call)

    def _rpc_queue(self, name: str, message: Message, options: dict[str, Any]) -> str:
        """Send the request once, and return the queue that its answer will be in."""
        self._check_open()
        exchange, key = self._rpc_route(options)
        message.fingerprint(self.fingerprint)
        encoded = self.encode(message.body)
        message_id = new_message_id()
        queue = Queue(
            f'postage.rpc-{message_id}',
            {'durable': True, 'arguments': {'x-expires': int(self.rpc_queue_expires * 1000)}},
        )
        self._connection.run(lambda: declare_queue(self._connection.control, queue))
        properties = wire.encode_properties(
            *self._usual_properties, message_id, message_id, queue.name, **(_further_properties(options) or {})
        )
        receipt = Receipt(message_id, 1, True, Ledger(self._connection))
        outgoing = Outgoing(exchange, key, self.mandatory, properties, encoded, receipt, resend=False)
        self._connection.publisher(True).publish(outgoing, self.publish_timeout)
        receipt.wait(self.publish_timeout)
        return queue.name

    def _rpc_route(self, options: dict[str, Any]) -> tuple[str, str]:
        routes = self._routes_of(options)
        if not routes:
            raise errors.ConfigurationError(
                f'{type(self).__name__} has no eks, so an RPC needs _eks=[(Exchange, key)] to know where to go'
            )
        return routes[0]

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
        :param timeout: seconds for all of them; by default ``rpc_timeout``
        :return: the results, in the order of their arrival; a malformed one as a ``MessageResultError``
        :raises errors.TimeoutError: too few arrived in time; its ``results`` has those that did
        :raises errors.NotFound: there is no such queue
        """
        self._check_open()
        deadline = time.monotonic() + (self.rpc_timeout if timeout is None else timeout)
        arrived = threading.Semaphore(0)
        channel = ConsumingChannel(self._connection, Topology(), prefetch=result_len)
        channel.notify = arrived.release
        results: list[MessageResult] = []
        try:
            self._connection.run(lambda: channel.consume_steps(queue))
            self._connection.add_channel(channel)
            while len(results) < result_len:
                with self._connection.awaited():
                    in_time = bool(channel.inbox) or arrived.acquire(timeout=max(0.0, deadline - time.monotonic()))
                if not in_time:
                    raise errors.TimeoutError(
                        f'{len(results)} of {result_len} results arrived in queue {queue!r} in time', results
                    )
                if channel.error is not None:
                    raise channel.error
                if channel.inbox:
                    delivery = channel.inbox.popleft()
                    if callback is not None:
                        self._call_with_body(callback, delivery.body)
                    results.append(decode_result(delivery.body, self.encoder.decode))
                    channel.settle(delivery)
        finally:
            self._connection.remove_channel(channel)
        return results

    def _call_with_body(self, callback: Callable[[Any], object], data: bytes) -> None:
        try:
            body = self.encoder.decode(data)
        except Exception:
            return  # the result says so: it is a MessageResultError
        callback(body)


_MAGIC: tuple[tuple[str, Callable[[GenericProducer, str], Any]], ...] = (
    ('message_', GenericProducer._make_message),
    ('rpc_', GenericProducer._make_rpc),
)


def _pack(args: tuple[Any, ...], kwds: dict[str, Any]) -> Any:
    """The parameters of a command that has no builder: as little wrapping as the arguments allow."""
    if args and kwds:
        return {'args': list(args), 'kwds': kwds}
    if args:
        return args[0] if len(args) == 1 else list(args)
    if len(kwds) == 1 and 'parameters' in kwds:
        return kwds['parameters']
    return kwds


def _take_options(kwds: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Move the special keywords out of a call's arguments."""
    return {name: kwds.pop(name) for name in names if name in kwds} if kwds else {}


def _refuse_unknown(options: Mapping[str, Any], known: Sequence[str], method: str) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f'{method}() takes {", ".join(known)}, not {", ".join(unknown)}')


def _check_eks(eks: Any, where: str) -> list[ExchangeKey]:
    """``eks`` as given by the user, or a clear error."""
    shape = f'{where} must be a list of pairs (Exchange, routing key)'
    if isinstance(eks, (str, bytes, Mapping)) or not isinstance(eks, Sequence):
        raise errors.ConfigurationError(f'{shape}, not {eks!r:.80}')
    routes: list[ExchangeKey] = []
    for number, pair in enumerate(eks):
        if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)) or len(pair) != 2:
            raise errors.ConfigurationError(f'{shape}; element {number} is {pair!r:.80}')
        exchange = check_exchange(pair[0], f'{where}[{number}]', default_allowed=True)
        if not isinstance(pair[1], str):
            raise errors.ConfigurationError(f'{shape}; the key of element {number} is {pair[1]!r:.80}')
        routes.append((exchange, pair[1]))
    return routes


def _further_properties(options: dict[str, Any]) -> dict[str, Any] | None:
    """What the options add, by the names of ``wire.encode_properties``; ``None`` where they add nothing."""
    if not options:
        return None
    properties: dict[str, Any] = {}
    headers = options.get('_headers')
    if headers is not None:
        if not isinstance(headers, Mapping):
            raise errors.ConfigurationError(f'_headers must be a dictionary, not {headers!r:.80}')
        properties['headers'] = headers
    priority = options.get('_priority')
    if priority is not None:
        if not isinstance(priority, int) or not 0 <= priority <= 255:
            raise errors.ConfigurationError(f'_priority must be a number from 0 to 255, not {priority!r:.80}')
        properties['priority'] = priority
    expiration = options.get('_expiration')
    if expiration is not None:
        properties['expiration'] = _milliseconds(expiration)
    return properties or None


def _milliseconds(expiration: Any) -> str:
    """A message's expiration as AMQP wants it: from seconds, or from text that is in milliseconds already."""
    if isinstance(expiration, str) and expiration.isdecimal():
        return expiration
    if isinstance(expiration, (int, float)) and math.isfinite(expiration) and expiration >= 0:
        return str(round(expiration * 1000))
    raise errors.ConfigurationError(
        f'_expiration must be seconds, or milliseconds as text the way AMQP has it, not {expiration!r:.80}'
    )


def _number(options: dict[str, Any], name: str, default: float, whole: bool = False) -> float:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value >= 0:
        raise errors.ConfigurationError(
            f'{name} must be {"a whole" if whole else "a"} number, 0 or more, not {value!r:.80}'
        )
    return value
