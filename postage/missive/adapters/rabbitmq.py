"""Messages from queues of RabbitMQ, or another AMQP 0-9-1 broker, on Postage's own connection."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlencode

from postage import errors, messaging
from postage.amqp.connection import Connection
from postage.amqp.deliveries import Delivery, current
from postage.amqp.publishing import Receipt
from postage.messaging.declarations import check_queue
from postage.messaging.gate import Gate
from postage.messaging.unsettled import Unsettled
from postage.microthreads.alarm import Alarm
from postage.missive.adapters.running import RunnableAdapter
from postage.missive.contexts import ProcessingContext
from postage.missive.messages import M, Message, UnreadableMessage
from postage.missive.processor import Processor
from postage.secret import Secret, revealed
from postage.settings import Hup

logger = logging.getLogger('postage')


class RabbitMQAdapter(RunnableAdapter[M]):
    """Has the messages of some queues handled, in the order in which they arrive.

    The connection is Postage's: it heals itself, declares everything again, and goes on. What was not acknowledged
    when it was lost comes again; an acknowledgement that comes too late for that is dropped, and logged. What a
    handler publishes through Postage is confirmed before its message is acknowledged.

    ``message.headers`` has the AMQP headers, ``message.message_id`` the property of this name where it is set, and
    ``message.delivery`` the delivery with all the rest: queue, exchange, routing key, properties, redelivered.

    :param message_cls: makes a message out of a body
    :param processor: what handles the messages
    :param queues: names of queues, or ``{'name': …, 'flags': {…}}``, which are declared where they are missing
    :param url_or_conn: an AMQP URL; a HUP; or a ``Connection`` of Postage, or of kombu, whose broker and credentials
        are used; by default what the environment says, as for every class of Postage
    :param disable_shutdown_handler: leave SIGTERM and SIGINT to the program, so that only :meth:`stop` ends a run
    :param drain_timeout: seconds that the end of a run waits for acknowledgements which wait for confirms
    :param eqk: exchanges, queues and keys to declare and consume from, as for ``GenericConsumer``
    :param prefetch_count: messages that the broker sends ahead of their acknowledgement; ``None`` leaves it to Postage
    :param accept_reply_to: where answers may go, as for ``GenericConsumer``; a method gets the message's properties
    """

    def __init__(
        self,
        message_cls: Callable[[bytes], M],
        processor: Processor[M],
        queues: Sequence[str | Mapping[str, Any]] = (),
        url_or_conn: Any = None,
        disable_shutdown_handler: bool = False,
        drain_timeout: float = 1,
        *,
        eqk: Any = (),
        prefetch_count: int | None = None,
        accept_reply_to: Any = None,
    ) -> None:
        self.url_or_conn = url_or_conn
        url_or_conn = Secret.of(url_or_conn)
        super().__init__(message_cls, processor)
        self.queues = [queues] if isinstance(queues, str) else list(queues)
        for queue in self.queues:
            check_queue(queue, {}, type(self).__name__)
        self.disable_shutdown_handler = disable_shutdown_handler
        self.prefetch_count = prefetch_count
        self.accept_reply_to = accept_reply_to
        self.drain_timeout = drain_timeout
        self._eqk = eqk
        self._alarm = Alarm()
        self._unsettled = Unsettled(self._give_up, self._settle)
        self._consumer: AdapterConsumer | None = None

    # Receiving

    def run(self) -> None:
        """Receive messages and have them handled until SIGTERM or SIGINT (Ctrl-C), or :meth:`stop`.

        Blocks. Connects first, and waits for a broker that is down for ``POSTAGE_CONNECT_TIMEOUT`` seconds. At the
        signal the message in hand is finished, and what was sent ahead goes back to its queue.

        :raises errors.BrokerError: no connection, or the broker refuses a queue
        :raises Exception: as every adapter does
        """
        super().run()

    def _run(self, ctx: ProcessingContext[M]) -> None:
        consumer = self.shutdown_handler.wait_for(self._connect)
        if consumer is None:
            return
        self._consumer = consumer
        logger.info('consuming from %s', consumer)
        try:
            while not self.shutdown_handler.should_exit():
                delivery = consumer.delivery_source.next_delivery()
                if delivery is None:
                    self.shutdown_handler.wait_for(lambda: self._alarm.wait(None))
                else:
                    began = time.monotonic()
                    self._receive(ctx, delivery)
                    consumer.delivery_source.took(1, time.monotonic() - began)
        finally:
            if not self._unsettled.wait(self.drain_timeout):
                logger.error('%s stops with messages that wait for a confirm; they come again', type(self).__name__)
            self._consumer = None
            consumer.close()

    def _connect(self) -> AdapterConsumer:
        hup, vhost = _broker_of(Secret.of(self.url_or_conn))
        consumer = AdapterConsumer(self._eqk, hup, vhost, self.prefetch_count, self.accept_reply_to)
        try:
            for queue in self.queues:
                consumer.queue_declare(queue)
            consumer.delivery_source.begin(self._alarm.ring)
        except BaseException:
            consumer.close()
            raise
        return consumer

    def _receive(self, ctx: ProcessingContext[M], delivery: Delivery) -> None:
        """Have one delivery handled."""
        message: Any
        gate = self._gate
        try:
            if gate is not None and not gate.admits(delivery):
                return
            message_id = (delivery.properties.message_id or '').encode('utf-8', 'surrogateescape')
            message = ctx.new_message(delivery.body, message_id, delivery.headers, delivery)
        except (errors.DecodingError, errors.SignatureRefused) as error:
            message = UnreadableMessage(delivery.body, error)
            message.delivery = delivery
            if self.processor.dlq is None:
                # Raised, it would end the program because of what a sender sent, again after each redelivery.
                logger.warning('%r is rejected: %s', delivery, error)
                self.reject(message)
                return
        token = current.set(delivery)
        try:
            ctx.handle(message)
        finally:
            current.reset(token)

    @property
    def _gate(self) -> Gate | None:
        return None if self._consumer is None else self._consumer.delivery_source.gate

    def _wake(self) -> None:
        self._alarm.ring()

    # What becomes of a message

    def ack(self, message: Message) -> None:
        """Acknowledge a message, once what its handler has published so far is confirmed. Does not block."""
        delivery: Delivery = message.delivery
        if not delivery.receipts:
            self._settle(delivery)
        else:
            self._unsettled.add(delivery, delivery.receipts)

    def nack(self, message: Message) -> None:
        """Return a message to its queue, which delivers it again. Does not block."""
        self._hand_back(message.delivery, requeue=True)

    def reject(self, message: Message) -> None:
        """Reject a message: to its queue's dead-letter exchange, if it has one. Does not block."""
        self._hand_back(message.delivery, requeue=False)

    def reply(self, message: Message, data: bytes, content_type: str) -> None:
        """Publish an answer to the address in the message's ``reply_to``."""
        properties = message.delivery.properties
        if self._consumer is not None and properties.reply_to:
            self._consumer.reply(properties, data, content_type)
        else:
            logger.warning('%r names no address to answer to', message)

    def _give_up(self, delivery: Delivery, failed: Receipt) -> None:
        logger.error('%r is rejected, because what its handler published failed: %s', delivery, failed.error)
        self._hand_back(delivery, requeue=False)

    def _settle(self, delivery: Delivery) -> None:
        """What a handler published is confirmed. Called on a connection's thread."""
        if (gate := self._gate) is not None:
            gate.handled(delivery)
        delivery.channel.settle(delivery)

    def _hand_back(self, delivery: Delivery, requeue: bool) -> None:
        if (gate := self._gate) is not None:
            gate.failed(delivery)
        delivery.channel.settle(delivery, requeue=requeue)


class AdapterConsumer(messaging.GenericConsumer):
    """The consumer of one adapter."""

    def __init__(
        self, eqk: Any, hup: Hup | None, vhost: str | None, prefetch_count: int | None, accept_reply_to: Any = None
    ) -> None:
        hup = Secret.of(hup)
        self.prefetch_count = prefetch_count
        self.accept_reply_to = accept_reply_to
        super().__init__(eqk, hup, vhost)


def _broker_of(given: Secret[Any] | None) -> tuple[Any, str | None]:
    """What a consumer takes as ``hup`` and ``vhost``: for a connection, those that lead to the same broker."""
    if hasattr(revealed(given), 'as_uri'):
        return _broker_of_kombu(revealed(given))
    if not isinstance(revealed(given), Connection):
        return given, None
    settings = revealed(given).settings
    tls = next((endpoint.ssl_options for endpoint in settings.endpoints if endpoint.ssl_options), None)
    if tls is not None:
        hosts = ','.join(map(str, settings.endpoints))
        return {'host': hosts, 'user': settings.user, 'password': settings.password, 'ssl': tls}, settings.vhost
    user, ends = quote(settings.user, safe=''), [f'{each}/?{urlencode(each.options)}' for each in settings.endpoints]
    urls = (f'amqp://{user}:{quote(settings.password.reveal(), safe="")}@{end}' for end in ends)
    return Secret(','.join(urls)), settings.vhost


def _broker_of_kombu(connection: Any) -> tuple[Secret[str], str | None]:
    """The same for a connection of kombu, whose URL has the virtual host as it is, a ``/`` in it too."""
    url = Secret(connection.as_uri(include_password=True))
    scheme = url.reveal().partition('://')[0]
    if scheme not in ('amqp', 'amqps', 'pyamqp', 'librabbitmq'):
        raise errors.ConfigurationError(f'url_or_conn is a connection by {scheme}, and must be one by AMQP')
    is_encrypted = scheme == 'amqps' or bool(getattr(connection, 'ssl', False))
    where = Secret(url.reveal().partition('://')[2].partition('/'))
    vhost = unquote(where.reveal()[2]) or None
    return Secret(f'{"amqps" if is_encrypted else "amqp"}://{where.reveal()[0]}'), vhost
