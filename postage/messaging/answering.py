"""Answers to RPC requests, on the connection that publishes: what a consumer is beside its deliveries."""

from __future__ import annotations

import logging
from typing import Any

from postage.amqp.connection import Connection
from postage.amqp.frames import Answerable
from postage.amqp.publishing import Receipt
from postage.messaging.connected import Connected
from postage.messaging.messages import MessageResult
from postage.messaging.replies import ReplySender
from postage.messaging.reply_addresses import ReplyAddresses
from postage.settings import Hup
from postage.sparingly import Sparingly


class Answering(Connected):
    """Sends replies, beside what it does on its own connection. They go out on another one, taken at the first reply.

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
