"""The embedded broker as a test sees it, and the messages in it."""

from __future__ import annotations

from postage.broker.messages import QueuedMessage
from postage.broker.server import BrokerServer
from postage.testing.messages import SeenMessage


class StoredMessage(SeenMessage):
    """A message that waits in a queue.

    :ivar redelivered: whether it was delivered before, and came back
    """

    def __init__(self, entry: QueuedMessage) -> None:
        super().__init__(entry.message)
        self.redelivered = entry.redelivered


class Broker(BrokerServer):
    """An AMQP broker in memory that listens on a free port of 127.0.0.1, in a thread of this process.

    Use it in a ``with``; ``broker.url`` is then what clients connect to. Its parameters, and its other methods, are
    those of :class:`postage.broker.server.BrokerServer`. They may be called from any thread while it runs, and each
    has taken effect when it returns. Nothing outlives the ``with``: connections are closed, messages forgotten.
    """

    def messages(self, queue: str, vhost: str = '/') -> list[StoredMessage]:
        """Return the messages of a queue that wait to be delivered, the next one first, and leave them there.

        :raises KeyError: where there is no such queue or virtual host
        """
        return [StoredMessage(entry) for entry in self.ready_messages(queue, vhost)]
