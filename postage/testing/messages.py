"""Messages of the embedded broker, as a test sees them."""

from __future__ import annotations

from postage.amqp import seen
from postage.broker.messages import Message

_BEFORE_FLAGS = 12  # octets of a content header before its property flags (AMQP 0-9-1 section 4.2.6.1)


class SeenMessage(seen.SeenMessage):
    """A message that the broker has, or had."""

    def __init__(self, message: Message) -> None:
        super().__init__(message.exchange, message.routing_key, message.body, message.header.payload[_BEFORE_FLAGS:])
