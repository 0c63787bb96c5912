"""The way back: the answers to RPC requests, on the connection that publishes."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from postage import errors, settings
from postage.amqp import frames
from postage.amqp.cancelled import cancelled
from postage.amqp.connection import Connection
from postage.amqp.deliveries import Delivery, current
from postage.amqp.frames import Answerable
from postage.amqp.publishing import Ledger, Outgoing, PublishingChannel, Receipt, ids
from postage.amqp.registry import acquire, release
from postage.messaging.connected import Connected
from postage.messaging.encoders import Encoding
from postage.messaging.messages import Message, MessageResult, MessageResultError, MessageResultException
from postage.messaging.outcomes import FilterError
from postage.messaging.remote import packed
from postage.messaging.reply_addresses import ReplyAddresses
from postage.messaging.signing import DIRECT_REPLY_TO, Signatures
from postage.printable import class_of, encodable, text_of
from postage.settings import BrokerSettings, Hup
from postage.sparingly import Sparingly

logger = logging.getLogger('postage')

PUBLISH_TIMEOUT = 30.0  # seconds that a reply waits at a full window
UNWANTED = 'its caller wants no answer any more'


class ReplySender:
    """Publishes the replies of one consumer. Any thread.

    They go out on the connection that publishes; :mod:`postage.amqp.registry` says why there are two.

    :param encoding: encodes the results that are told here
    :param settings: which broker
    :param signatures: sign them, where they are to be signed
    :ivar connection: that connection, once it has been opened
    """

    def __init__(self, encoding: Encoding, settings: BrokerSettings, signatures: Signatures | None) -> None:
        self._encoding = encoding
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
        tells_refusal: bool = False,
        is_signed: bool = True,
    ) -> Receipt:
        """Publish a reply. Blocks only at a full window of unconfirmed messages.

        :param header: the AMQP properties of the request, which name a reply address
        :param tells_refusal: tell the caller where the broker refuses the reply; not in a handler, whose processor
            waits for what becomes of the reply, and sees to that
        :param is_signed: sign it, where there are keys
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
        if (delivery is None or not delivery.published(receipt)) and tells_refusal:
            receipt.when_settled(functools.partial(self._look_at, header), is_urgent=False)
        return receipt

    def unsigned(self, header: Any, message: Message) -> None:
        """Answer a request whose sender is not known, without a signature. Blocks as little as :meth:`send`."""
        self.send(header, self._encoding.encode(message.body), self._encoding.encoder.content_type, is_signed=False)

    def refused(self, header: Any, error: BaseException) -> None:
        """Tell the caller of an RPC that its reply could not be sent: the broker refuses it, for its size, say.

        Does not block; any thread.

        :param header: the properties of the request
        """
        result = MessageResultError(f'the reply could not be sent: {error}')
        try:
            self.send(header, self._encoding.encode(result.body), self._encoding.encoder.content_type)
        except Exception as failure:
            logger.error('the caller of an RPC could not be told that its reply was refused: %s', text_of(failure))

    def _look_at(self, header: Any, receipt: Receipt) -> None:
        if isinstance(receipt.error, errors.Nacked):
            self.refused(header, receipt.error)


class Answering(Connected):
    """Sends replies, beside what it does on its own connection: the half of a consumer that is not about deliveries.

    :ivar reply_addresses: which reply addresses are answered to
    :ivar reply_sender: publishes the replies
    """

    accept_reply_to: Any = None

    def __init__(self, hup: Hup | None, vhost: str | None) -> None:
        super().__init__(hup, vhost)
        self.reply_addresses = ReplyAddresses(self)
        self.reply_sender = ReplySender(self, self._settings, self._signatures)
        self._sparingly = Sparingly()

    def _give_back(self) -> None:
        super()._give_back()
        self.reply_sender.close()

    @property
    def connections(self) -> list[Connection]:
        """The connection it consumes on, and the one that its replies go out on, where it has been opened."""
        return [self._connection, *filter(None, [self.reply_sender.connection])]

    def rpc_reply(self, header: Any, message: Any) -> Receipt | None:
        """Answer an RPC. Blocks at a full window of unconfirmed messages, and to ask about a reply address; any thread.

        :param header: the AMQP properties of the request
        :param message: a ``MessageResult`` or one of its kin; a plain value is wrapped in one
        :return: what becomes of it; ``None`` where the request names no reply address, or one that is not accepted
        :raises errors.EncodingError: the result cannot be encoded
        """
        if not header.reply_to:
            self._sparingly.log(logging.WARNING, 'an RPC without a reply_to property cannot be answered')
            return None
        # That of a processor's own request, an Answerable, has been looked at when the request was begun.
        if type(header) is not Answerable and not self._may_answer(header):
            return None
        if not hasattr(message, 'body'):
            message = MessageResult(message)
        encoded = self.encode(message.body)
        return self.reply_sender.send(header, encoded, self.encoder.content_type, tells_refusal=True)

    def _may_answer(self, header: Any) -> bool:
        """Whether an answer may go where a request says. It is said where not."""
        if self.reply_addresses.accepts(header.reply_to, header):
            return True
        self.reply_addresses.drop(header)
        return False

    def reply(self, header: Any, encoded: bytes, content_type: str) -> Receipt | None:
        """Answer a request with bytes that are ready. Blocks as little as :meth:`rpc_reply`; any thread.

        :param header: the AMQP properties of the request, which name a reply address
        :param encoded: the body of the answer
        :param content_type: what it is
        :return: what becomes of it; ``None`` where the reply address is not accepted
        """
        if not self._may_answer(header):
            return None
        return self.reply_sender.send(header, encoded, content_type)


def unanswerable(body: Mapping[str, Any], has_message_handler: bool) -> MessageResultError:
    """The answer to a request that has no handler."""
    text = f'no handler for {body["type"]} {body["name"]!r}'
    if has_message_handler:
        text += ' as an RPC: it has a MessageHandler, which does not answer; send it as a message, or add an RpcHandler'
    return MessageResultError(text)


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

    def why_unwanted(self, tolerance: float) -> str:
        """Why the request is not worth to be handled any more, in words; empty where it is.

        :param tolerance: seconds by which its deadline may have passed, for the clock of its sender may be another
        """
        if self.cancel_id in cancelled.until:
            return UNWANTED
        deadline = self.header.deadline
        late = 0.0 if deadline is None else time.time() - deadline / 1000
        return f'its deadline passed {late:.2f} s ago' if late > tolerance else ''

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
