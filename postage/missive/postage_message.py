"""Postage's own messages, over any transport."""

from __future__ import annotations

from typing import Any, ClassVar

from postage import messaging
from postage.messaging.messages import check_envelope
from postage.missive.messages import Message


class PostageMessage(Message):
    """A message in Postage's envelope: a command, a status, a result, or an RPC request.

    :cvar encoder_class: has ``encode``, ``decode`` and ``content_type``
    """

    encoder_class: ClassVar[Any] = messaging.JsonEncoder
    _body: dict[str, Any] | None = None

    @classmethod
    def of(cls, message: messaging.Message) -> PostageMessage:
        """The message that stands for one of ``postage.messaging``, such as a ``MessageCommand``."""
        return cls(cls.encoder_class().encode(message.body))

    @property
    def body(self) -> dict[str, Any]:
        """The dictionary that travelled. It is decoded once.

        :raises messaging.DecodingError: where the bytes cannot be decoded
        :raises messaging.EnvelopeError: where it is not a Postage message
        """
        if self._body is None:
            self._body = check_envelope(self.encoder_class().decode(self.raw_data))
        return self._body

    @property
    def type(self) -> str:
        """What it is, such as ``'command'``."""
        return str(self.body['type'])

    @property
    def name(self) -> str:
        """Which one, such as ``'echo'``."""
        return str(self.body['name'])

    @property
    def category(self) -> str:
        """``'message'``, or ``'rpc'`` where the sender waits for a result."""
        return str(self.body['category'])

    @property
    def content(self) -> dict[str, Any]:
        """What it says."""
        content: dict[str, Any] = self.body['content']
        return content

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Who sent it; empty where it does not say."""
        fingerprint: dict[str, Any] = self.body.get('fingerprint', {})
        return fingerprint
