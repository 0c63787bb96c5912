"""A tracked session: what a stretch of a test set off in the broker, and when all of it has been handled."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from postage.broker.messages import Message
from postage.broker.server import BrokerServer
from postage.testing.messages import SeenMessage

TIMEOUT = 10.0
QUIET = 0.05
_LOOK_EVERY = 0.005


class PublishedMessage(SeenMessage):
    """A message that a client published.

    :ivar queues: the names of the queues that it reached
    """

    def __init__(self, message: Message, queues: Sequence[str]) -> None:
        super().__init__(message)
        self.queues = list(queues)


class DeliveredMessage(SeenMessage):
    """A message that was sent to a consumer, or handed out by ``basic.get``.

    :ivar queue: the queue that it came from
    :ivar redelivered: whether it had been delivered before
    """

    def __init__(self, message: Message, queue: str, redelivered: bool) -> None:
        super().__init__(message)
        self.queue = queue
        self.redelivered = redelivered


class DeadMessage(SeenMessage):
    """A message that a queue gave up.

    :ivar queue: that queue
    :ivar reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``
    """

    def __init__(self, message: Message, queue: str, reason: str) -> None:
        super().__init__(message)
        self.queue = queue
        self.reason = reason


class Session:
    """What happened since a tracked session began. Each list is in the broker's order.

    :ivar published: what clients published; a dead letter is not published anew
    :ivar delivered: what clients were given, once per delivery
    :ivar dead: what queues gave up, whether or not a dead-letter exchange took it
    """

    def __init__(self, broker: BrokerServer) -> None:
        self.published: list[PublishedMessage] = []
        self.delivered: list[DeliveredMessage] = []
        self.dead: list[DeadMessage] = []
        self._broker = broker

    def wait(self, timeout: float = TIMEOUT, quiet: float = QUIET) -> None:
        """Wait until all that was set off has been handled. Blocks.

        That is: what Postage publishes in this process is confirmed, the queues that have consumers are empty,
        no message is unacknowledged or on its way to a dead-letter exchange, no client has bytes left to read, and
        nothing has happened for a moment. What a client has not yet sent the broker cannot know of, and consumers that
        do not acknowledge may still be at work: give such clients a longer ``quiet``.

        :param timeout: seconds
        :param quiet: seconds in which nothing may happen any more
        :raises TimeoutError: when the time is over, with what is still under way
        """
        deadline = time.monotonic() + timeout
        seen, quiet_since = -1, 0.0
        while True:
            left = self._under_way(max(0.0, deadline - time.monotonic()))
            now = time.monotonic()
            if left or self._count != seen:
                seen, quiet_since = self._count, now
            elif now - quiet_since >= quiet:
                return
            if now >= deadline:
                what = '; '.join(left) or 'messages go on and on'
                raise TimeoutError(f'not all was handled within {timeout:g} s: {what}')
            time.sleep(_LOOK_EVERY)

    @property
    def _count(self) -> int:
        return len(self.published) + len(self.delivered) + len(self.dead)

    def _under_way(self, timeout: float) -> list[str]:
        # Where the program under test does not use Postage in this process, it is not loaded for this.
        registry = sys.modules.get('postage.amqp.registry')
        unconfirmed = [] if registry is None or registry.flush_all(timeout) else ['messages are not confirmed']
        return self._broker.under_way() + unconfirmed


class _Recorder:
    """Hears of each message in the broker's thread, and writes it down."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def published(self, vhost: str, message: Message, queues: Sequence[str]) -> None:
        """Take down a message that came in."""
        self._session.published.append(PublishedMessage(message, queues))

    def delivered(self, vhost: str, queue: str, message: Message, redelivered: bool) -> None:
        """Take down a message that went out."""
        self._session.delivered.append(DeliveredMessage(message, queue, redelivered))

    def died(self, vhost: str, queue: str, message: Message, reason: str) -> None:
        """Take down a death."""
        self._session.dead.append(DeadMessage(message, queue, reason))


@contextlib.contextmanager
def track(broker: BrokerServer, timeout: float = TIMEOUT, quiet: float = QUIET) -> Iterator[Session]:
    """A ``with`` that ends once all that was set off in it has been handled, see :meth:`Session.wait`.

    Where the block raises, that is not waited for. Sessions may overlap.

    :param broker: a running broker of this process
    :param timeout: seconds to wait at the end
    :param quiet: seconds in which nothing may happen any more
    :raises TimeoutError: when the time is over, with what is still under way
    """
    session = Session(broker)
    recorder = _Recorder(session)
    broker.observe(recorder)
    try:
        yield session
        session.wait(timeout, quiet)
    finally:
        with contextlib.suppress(RuntimeError):  # the broker may have been stopped in the block
            broker.unobserve(recorder)
