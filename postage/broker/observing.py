"""Observers of what happens in a broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from postage.broker.messages import Message


class Observer(Protocol):
    """Hears of each message on its way through a virtual host."""

    def published(self, vhost: str, message: Message, queues: Sequence[str]) -> None:
        """A message came from a client and was put into these queues."""

    def delivered(self, vhost: str, queue: str, message: Message, redelivered: bool) -> None:
        """A message was sent to a consumer, or handed out by a get."""

    def died(self, vhost: str, queue: str, message: Message, reason: str) -> None:
        """A queue gave a message up, whether or not it has a dead-letter exchange."""
