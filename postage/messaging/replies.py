"""The way back: the answers to RPC requests."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from postage import errors, settings
from postage.amqp import frames
from postage.amqp.connection import Connection
from postage.amqp.deliveries import Delivery, current
from postage.amqp.publishing import Ledger, Outgoing, PublishingChannel, Receipt, ids
from postage.amqp.registry import acquire, release
from postage.messaging.messages import Message, MessageResult, MessageResultError, MessageResultException
from postage.messaging.outcomes import FilterError
from postage.messaging.remote import packed
from postage.messaging.reply_addresses import ReplyAddresses
from postage.messaging.signing import DIRECT_REPLY_TO, Signatures
from postage.printable import class_of, encodable, text_of
from postage.settings import BrokerSettings

logger = logging.getLogger('postage')

PUBLISH_TIMEOUT = 30.0  # seconds that a reply waits at a full window


class ReplySender:
    """Publishes the replies of one consumer. Any thread.

    They go out on the connection that publishes: under a memory alarm the broker stops reading publishers, and
    acknowledgements must not stop with them.

    :param settings: which broker
    :param signatures: sign them, where they are to be signed
    :ivar connection: that connection, once it has been opened
    """

    def __init__(self, settings: BrokerSettings, signatures: Signatures | None = None) -> None:
        self._settings = settings
        self._signatures = signatures
        self.connection: Connection | None = None
        self._publisher: PublishingChannel | None = None
        self._ledger: Ledger

    def open(self) -> None:
        """Connect, which is done at the first reply otherwise. Blocks."""
        if self.connection is None:
            self.connection = acquire(self._settings, 'publishing')
        self._publisher = self.connection.publisher(True)
        self._ledger = Ledger(self._publisher, failures_kept=0, has_replies=True)

    def close(self) -> None:
        """Give the connection back. Blocks."""
        if self.connection is not None:
            release(self.connection)
            self.connection = None

    def send(
        self,
        header: Any,
        encoded: bytes,
        content_type: str,
        on_refused: Callable[[Any, BaseException], None] | None = None,
        is_signed: bool = True,
    ) -> Receipt:
        """Publish a reply. Blocks only at a full window of unconfirmed messages.

        :param header: the AMQP properties of the request, which name a reply address
        :param is_signed: sign it, where there are keys
        :param on_refused: called with these and the error where the broker refuses the reply, on the thread that reads;
            not in a handler, whose processor waits for what becomes of the reply, and sees to that
        :return: what becomes of it
        """
        if settings.is_debugging:
            logger.debug('answer to %r: %r', header.reply_to, encoded)
        if self._publisher is None or not self._publisher.is_wanted:
            self.open()
        assert self._publisher is not None
        receipt = Receipt(ids.new(), 1, True, self._ledger)
        ids_of_it = receipt.message_id, header.correlation_id or ''
        if self._signatures is None or not is_signed:
            properties = frames.reply_properties(content_type, *ids_of_it)
        else:
            properties = self._signatures.reply(header.reply_to, encoded, content_type, *ids_of_it)
        self._publisher.publish(Outgoing('', header.reply_to, False, properties, encoded, receipt), PUBLISH_TIMEOUT)
        delivery = current.get()
        if (delivery is None or not delivery.published(receipt)) and on_refused is not None:
            receipt.when_settled(functools.partial(_look_at, header, on_refused), is_urgent=False)
        return receipt


def unanswerable(body: Mapping[str, Any], has_message_handler: bool) -> MessageResultError:
    """The answer to a request that has no handler."""
    text = f'no handler for {body["type"]} {body["name"]!r}'
    if has_message_handler:
        text += ' as an RPC: it has a MessageHandler, which does not answer; send it as a message, or add an RpcHandler'
    return MessageResultError(text)


def _look_at(header: Any, on_refused: Callable[[Any, BaseException], None], receipt: Receipt) -> None:
    if isinstance(receipt.error, errors.Nacked):
        on_refused(header, receipt.error)


class Reply:
    """The ``reply_func`` of one RPC: the first answer counts. May be called from any thread.

    :param send: called with the properties of the request and the message
    :param delivery: the request
    :param fingerprint: of the processor that answers
    :param header: of its properties, those that the answer depends on; by default they are read
    :param addresses: which reply addresses are answered to, by default all; asks the broker where it has to, and blocks
    :raises errors.DecodingError: the properties of the request cannot be decoded

    :ivar header: those properties
    :ivar sent: whether it was answered
    :ivar cancel_id: what the request is called where it is cancelled
    """

    __slots__ = ('_began', '_fingerprint', '_send', 'cancel_id', 'header', 'sent')

    def __init__(
        self,
        send: Callable[[Any, Message], object],
        delivery: Delivery,
        fingerprint: Mapping[str, Any],
        header: Any = None,
        addresses: ReplyAddresses | None = None,
    ) -> None:
        self._send = send
        self.header = header = delivery.answerable if header is None else header
        self.cancel_id: str | None = header.correlation_id
        to = header.reply_to
        # Direct reply-to, the usual case, without a call.
        if addresses is not None and to and not to.startswith(DIRECT_REPLY_TO) and not addresses.accepts(to, delivery):
            self._send = addresses.drop
        self._fingerprint = fingerprint
        self._began = time.monotonic()
        self.sent = False

    def __call__(self, message: Any) -> None:
        """Answer, with a result message or a plain value.

        :raises errors.EncodingError: it cannot be encoded; nothing was sent
        """
        if self.sent:
            logger.warning('a second answer to RPC %s was dropped', self.header.correlation_id)
            return
        is_own = isinstance(message, Message)
        if not is_own and not hasattr(message, 'body'):
            message, is_own = MessageResult(message), True
        if is_own:
            body = message.body
            if not body['fingerprint']:
                body['fingerprint'].update(self._fingerprint)
            reserved = body.setdefault('_reserved', {})
            reserved['fingerprint'] = self._fingerprint
            # Microseconds; round() would take five times as long.
            reserved['duration'] = int(1e6 * (time.monotonic() - self._began)) / 1e6
        self._send(self.header, message)
        self.sent = True

    def tell(self, error: BaseException) -> None:
        """Answer with what a handler raised, whatever is in its text."""
        text = encodable(text_of(error))
        is_error = isinstance(error, FilterError)
        result = MessageResultError(text) if is_error else MessageResultException(class_of(error), text)
        exception = packed(error)
        while exception is not None:
            result.body['_reserved']['exception'] = exception
            try:
                self(result)
                return
            except errors.EncodingError as failure:
                left_out = 'attributes' if exception['attributes'] else 'arguments'
                logger.warning('%s travels without its %s: %s', class_of(error), left_out, failure)
                exception = {**exception, 'attributes': None} if exception['attributes'] else None
        result.body['_reserved'].pop('exception', None)
        self(result)
