"""What every adapter has: the way from a processor back to its transport."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Generic

from postage.missive.messages import M

logger = logging.getLogger('postage')


class Adapter(ABC, Generic[M]):
    """Base of adapters. One of your own has to define :meth:`ack` and :meth:`nack`.

    It gives what it receives to a processor like this::

        with processor.context(message_cls, self) as ctx:
            for data in received:
                ctx.handle(ctx.new_message(data))

    :cvar answers_in_place: whether an answer has to be there when its message has been handled, as with HTTP
    """

    answers_in_place: bool = False

    @abstractmethod
    def ack(self, message: M) -> None:
        """Tell the transport that it may forget a message."""

    @abstractmethod
    def nack(self, message: M) -> None:
        """Return a message to the transport, where that can take it back."""

    def reject(self, message: M) -> None:
        """Refuse a message for good. Unless overridden this is :meth:`nack`."""
        self.nack(message)

    def reply(self, message: M, data: bytes, content_type: str) -> None:
        """Answer the sender of a message. Unless overridden there is no way back, and that is logged."""
        logger.warning('%s has no way back for the answer to %r', type(self).__name__, message)

    def stop(self) -> None:
        """End the run in good order, where there is one that can be ended. Any thread; does not wait for the end."""
