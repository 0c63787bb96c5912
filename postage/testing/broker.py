"""The embedded broker as a test sees it, and the messages in it."""

from __future__ import annotations

import time
from typing import Literal

from postage.broker.messages import QueuedMessage
from postage.broker.server import BrokerServer
from postage.testing.messages import SeenMessage

_LOOK_EVERY = 0.005  # seconds


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

    def wait_for_consumers(self, queue: str, count: int = 1, timeout: float = 10.0, vhost: str = '/') -> None:
        """Wait until a queue exists and has so many consumers. Blocks.

        Until a program under test consumes, what is sent to it merely waits in its queue.

        :param timeout: seconds
        :raises TimeoutError: when the time is over
        """
        self._wait_for('consumers', queue, count, timeout, vhost)

    def wait_for_messages(self, queue: str, count: int = 1, timeout: float = 10.0, vhost: str = '/') -> None:
        """Wait until a queue exists and so many messages wait in it. Blocks.

        That is how a test knows that a message waits for its next attempt, before it puts the clock forward.

        :param timeout: seconds
        :raises TimeoutError: when the time is over
        """
        self._wait_for('messages', queue, count, timeout, vhost)

    def _wait_for(
        self, what: Literal['consumers', 'messages'], queue: str, count: int, timeout: float, vhost: str
    ) -> None:
        deadline = time.monotonic() + timeout
        while True:
            counts = self.queues(vhost).get(queue)
            found = 0 if counts is None else counts.consumers if what == 'consumers' else counts.ready
            if found >= count:
                return
            if time.monotonic() >= deadline:
                raise TimeoutError(f'queue {queue!r} has {found} of {count} {what} after {timeout:g} s')
            time.sleep(_LOOK_EVERY)
