"""What the parts of a channel ask of the connection behind it, and the way out that they share."""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Protocol

from pika import amqp_object

from postage.broker import wire
from postage.broker.messages import Message
from postage.broker.shared import Shared
from postage.broker.users import Grant
from postage.broker.virtual_host import VirtualHost


class Client(Protocol):
    """A connection, as its channels see it.

    :ivar shared: what all connections of the broker share
    :ivar user: the user's name
    :ivar grant: what the user may do here; ``None`` stands for everything
    :ivar frame_max: bytes of the largest frame that the client takes
    :ivar wants_cancel_notifications: whether the client is told of consumers that the broker has cancelled
    """

    shared: Shared
    virtual_host: VirtualHost
    user: str
    grant: Grant | None
    frame_max: int
    wants_cancel_notifications: bool

    @property
    def takes_deliveries(self) -> bool:
        """False while too much is unsent, and at the end."""

    def send(self, frames: bytes) -> None:
        """Queue bytes for the client."""

    def publish_begins(self) -> None:
        """Hear that a message is about to arrive."""

    def published(self, number: int) -> None:
        """Hear that a message has arrived on a channel; confirms are sent once all that arrived together is done."""


class Outlet:
    """Where a channel's frames leave."""

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self._number = number

    def send(self, method: amqp_object.Method) -> None:
        """Send a method without content."""
        self._client.send(wire.encode_method(self._number, method))

    def send_content(self, payload: bytes, message: Message, header: bytes) -> None:
        """Send a method, as its frame's payload, and the message that belongs to it.

        :param header: the payload of the content header, which may differ from the message's own
        """
        self._client.send(wire.content_frames(self._number, payload, header, message, self._client.frame_max))
