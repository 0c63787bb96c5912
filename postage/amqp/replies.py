"""The channel over which a caller sends its RPC requests and receives their replies.

Direct reply-to demands that both happen on one channel (https://www.rabbitmq.com/docs/direct-reply-to).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from postage import errors
from postage.amqp.channel import Host, never_called
from postage.amqp.cutter import Content
from postage.amqp.publishing import PublishingChannel
from postage.amqp.steps import Steps


class ReplyChannel(PublishingChannel):
    """A channel that publishes requests, without confirms, and receives their replies.

    By default through direct reply-to, where the address belongs to the channel and needs no queue. When the channel
    goes, replies that were still to come are lost, and a caller that waits for one has to ask again.

    :param own_queue: receive the replies through an exclusive queue instead
    :param on_reply: called on the thread that reads with the content of each reply
    :param on_returned: called there with each request that no queue took
    :param on_lost: called on the I/O thread when the channel has gone
    :ivar address: what a request's ``reply_to`` is
    """

    ALWAYS_AWAITED = True

    def __init__(
        self,
        host: Host,
        own_queue: bool,
        on_reply: Callable[[ReplyChannel, Content], None],
        on_returned: Callable[[ReplyChannel, Content], None],
        on_lost: Callable[[ReplyChannel, errors.PostageError], None],
    ) -> None:
        super().__init__(host, confirms=False)
        self.own_queue = own_queue
        self.address = f'postage.reply-{os.urandom(12).hex()}' if own_queue else 'amq.rabbitmq.reply-to'
        self.delivered = functools.partial(on_reply, self)  # type: ignore[method-assign]  # one call less for each reply
        self.returned = functools.partial(on_returned, self)  # type: ignore[method-assign]
        self._on_channel_lost = on_lost

    def _set_up(self) -> Steps:
        if self.own_queue:
            yield self.operate(
                'queue_declare', 'declare a queue for replies', queue=self.address, exclusive=True, auto_delete=True
            )
        yield self.operate(
            'basic_consume', 'receive replies', queue=self.address, on_message_callback=never_called, auto_ack=True
        )

    def too_large(self, content: Content) -> None:
        """Its caller is told that the reply is malformed, which an empty body is."""
        content.body = b''
        self.delivered(content)

    def _on_lost(self, error: errors.BrokerError) -> None:
        super()._on_lost(error)
        self._on_channel_lost(self, error)

    def give_up(self, error: errors.PostageError) -> None:
        super().give_up(error)
        self._on_channel_lost(self, error)

    def after_fork(self) -> bool:
        super().after_fork()
        return False
