"""Producers: classes whose ``message_*`` and ``rpc_*`` methods are a component's network API."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from sys import modules
from typing import Any

from postage import errors, settings
from postage.amqp import frames
from postage.amqp.deliveries import current
from postage.amqp.publishing import Ledger, Outgoing, Receipt, ids
from postage.messaging import tracing
from postage.messaging.calling import Caller
from postage.messaging.messages import Message, MessageCommand
from postage.messaging.options import (
    PUBLISH_OPTIONS,
    check_settings,
    further_properties,
    pack,
    refuse_unknown,
    take_options,
)
from postage.printable import shown_half_built
from postage.secret import Secret
from postage.settings import Hup

logger = logging.getLogger('postage')


class GenericProducer(Caller):
    """Sends messages and RPC requests; derive from it, one class for each API.

    ``producer.message_NAME(…)`` sends what ``build_message_NAME(…)`` returns, or a ``MessageCommand`` with the
    arguments packed into its parameters where there is no such method. ``rpc_NAME``, ``rpc_queue_NAME``,
    ``rpc_future_NAME`` and ``rpc_gather_NAME`` do the same for RPC requests and ``build_rpc_NAME``. All of it may be
    called from several threads at once.

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
    :cvar gather_timeout: seconds for which ``rpc_gather_*`` takes replies
    :cvar max_retry: how often an RPC is sent again
    :cvar persistent: whether messages survive a restart of the broker in durable queues (delivery mode 2)
    :cvar confirms: whether the broker confirms each message, in the background
    :cvar mandatory: whether a message that no queue takes is an error, told by its receipt
    :cvar publish_timeout: seconds that a call waits at a full window, and :meth:`close` for what is unconfirmed
    :cvar reply_queue_per_call: give each RPC a queue of its own for its reply, for responders that do not copy the
        correlation id, where several calls are under way at once
    :cvar rpc_queue_expires: seconds after which the broker deletes a queue of ``rpc_queue_*`` that no consumer reads
    :cvar signing_keys: what messages are signed with, and replies have to be; ``None`` for what the environment says
    """

    confirms: bool = True

    def __init__(self, fingerprint: Any = None, hup: Hup | None = None, vhost: str | None = None) -> None:
        hup = Secret.of(hup)
        check_settings(self)
        super().__init__(fingerprint, hup, vhost)
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

        RPC calls that are under way end, and their responders are told: their futures raise ``Closed``.

        What could not be confirmed within ``publish_timeout`` seconds is logged. Blocks; does nothing the second time.
        """
        if self._closed:
            return
        self._end_calls()
        try:
            self.flush(self.publish_timeout)
        except errors.PublishError as error:
            logger.error('%s was closed with messages not delivered: %s', self, error)
        self._give_back()

    # Sending

    def message(self, *args: Any, **kwds: Any) -> Receipt:
        """Send a generic ``Message(*args, **kwds)``; takes the same special keywords as ``message_*``."""
        options = take_options(kwds, PUBLISH_OPTIONS, 'message')
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

    def __dir__(self) -> list[str]:
        """What it has, the methods of its builders included."""
        names = {*super().__dir__()}
        for builder in [name for name in names if name.startswith(('build_message_', 'build_rpc_'))]:
            method = builder.removeprefix('build_')
            names.add(method)
            if method.startswith('rpc_'):
                names |= {f'rpc_{kind}_{method.removeprefix("rpc_")}' for kind in ('future', 'gather', 'queue')}
        return sorted(names)

    def _make_message(self, name: str) -> Callable[..., Receipt]:
        builder, command = f'build_{name}', name[len('message_') :]
        own, cls = self.__dict__, type(self)

        def send(*args: Any, **kwds: Any) -> Receipt:
            options = take_options(kwds, PUBLISH_OPTIONS, name, self, builder) if kwds else kwds
            if builder in own or hasattr(cls, builder):  # at each call: a program may add one at any time
                return self._send(self._build(builder, args, kwds), options)
            parameters = args[0] if len(args) == 1 and not kwds else pack(args, kwds)
            return self._send(MessageCommand(command, parameters), options)

        return send

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
        span = None
        if tracing.NEEDED in modules:
            span, further = tracing.sending(self._settings, routes[0], message_id, further)
        try:
            signatures = self._signatures
            if signatures is not None:
                properties = b''  # made for each exchange and key
            elif further is None:
                properties = frames.usual_properties(content_type, delivery_mode, message_id)
            elif further.keys() == {'headers'}:  # as of a message that is traced
                usual_ones = frames.usual_properties(content_type, delivery_mode, message_id)
                properties = frames.with_headers(usual_ones, further['headers'])
            else:
                usual = {'content_type': content_type or None, 'delivery_mode': delivery_mode, 'message_id': message_id}
                properties = frames.encode_properties(**usual, **further)
            receipt = Receipt(message_id, len(routes), self.confirms, self._ledger)
            for exchange, key in routes:
                if settings.is_debugging:
                    self._log_sending(exchange, key, body)
                if signatures is not None:
                    usually = content_type, delivery_mode, message_id
                    properties = signatures.message(exchange, key, encoded, *usually, further)
                self._publisher.publish(
                    Outgoing(exchange, key, self.mandatory, properties, encoded, receipt), self.publish_timeout
                )
        except BaseException as error:
            if span is not None:
                span.end(error)
            raise
        delivery = current.get()
        if delivery is not None:
            delivery.published(receipt)
        if span is not None:
            tracing.sent(span, receipt)
        return receipt


_stamp = Message.fingerprint

_MAGIC: tuple[tuple[str, Callable[[GenericProducer, str], Any]], ...] = (
    ('message_', GenericProducer._make_message),
    ('rpc_', GenericProducer._make_rpc),
)
