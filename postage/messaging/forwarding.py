"""Messages that are sent on as they came: later, elsewhere, or counted."""

from __future__ import annotations

import time
from concurrent.futures import Future, wait

from postage import errors
from postage.amqp.control import declare_queue
from postage.amqp.publishing import Ledger, Outgoing, PublishingChannel, Receipt
from postage.amqp.registry import acquire, release
from postage.amqp.steps import Steps
from postage.amqp.topology import Queue
from postage.settings import BrokerSettings

TIMEOUT = 30.0  # seconds that a message waits at a full window
LEASE = 600  # seconds that a queue which expires outlives its last message
PAUSE = 0.2  # seconds between two attempts to declare a queue on a connection that comes and goes


class Forwarder:
    """Sends messages with properties that are ready, on the connection that publishes, each confirmed.

    Every message is mandatory: one that no queue takes is an error. Safe from several threads.

    :param settings: which broker, and the credentials
    :raises errors.BrokerError: as ``acquire`` does; it blocks until there is a connection
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._connection = acquire(settings, 'publishing')
        self._declared: dict[str, float] = {}  # queues, and when that was
        self._closed = False

    def close(self) -> None:
        """Give the connection back; the last to do so closes it. Blocks."""
        if not self._closed:
            self._closed = True
            release(self._connection)

    def send(
        self,
        exchange: str,
        routing_key: str,
        properties: bytes,
        body: bytes,
        message_id: str = '',
        queue: Queue | None = None,
    ) -> Future[None]:
        """Send a message. Blocks only at a full window of unconfirmed messages.

        :param properties: as :func:`postage.messaging.properties.encode` gives them
        :param message_id: what is in them, for the log
        :param queue: declared first, where that was not done lately
        :return: a future that is done once the broker has taken the message over; its exception says why not, a
            :class:`errors.PublishError` or :class:`errors.BrokerError`. Its callbacks run on the connection's thread.
        """
        done: Future[None] = Future()
        try:
            publisher = self._connection.publisher(True)
            receipt = Receipt(message_id or '(without an id)', 1, True, Ledger(publisher))
            receipt.add_done_callback(lambda: self._settle(done, receipt.error, queue))
            outgoing = Outgoing(exchange, routing_key, True, properties, body, receipt)
            if queue is None or self._is_fresh(queue):
                publisher.publish(outgoing, TIMEOUT)
            else:
                self._connection.tell(lambda: self._declare_and_send(publisher, queue, outgoing, done))
        except errors.PostageError as error:
            done.set_exception(error)
        return done

    def _is_fresh(self, queue: Queue) -> bool:
        """Whether a queue was declared so lately that it cannot have expired, nor will before a message leaves it."""
        return time.monotonic() - self._declared.get(queue.name, -LEASE) < LEASE / 2

    def _declare_and_send(
        self, publisher: PublishingChannel, queue: Queue, outgoing: Outgoing, done: Future[None]
    ) -> Steps:
        """Declare, then publish. On the I/O thread, so that no other thread waits for a broker that is down."""
        try:
            while True:
                yield self._connection.standing.when_open()
                declared_at = time.monotonic()
                try:
                    yield from declare_queue(self._connection.control, queue)
                    break
                except errors.ConnectionLost:
                    yield self._connection.io.pause(PAUSE)
            self._declared[queue.name] = declared_at
            publisher.publish(outgoing, TIMEOUT)
        except Exception as error:  # of any kind: the message waits for what becomes of it
            done.set_exception(error)

    def _settle(self, done: Future[None], error: errors.PublishError | None, queue: Queue | None) -> None:
        if error is None:
            done.set_result(None)
            return
        if queue is not None:
            self._declared.pop(queue.name, None)  # another program may have deleted it
        done.set_exception(error)


def is_final(error: BaseException) -> bool:
    """Whether what could not be done can never be done: too large, say, for a frame, a store, or the broker."""
    refused = isinstance(error, errors.Nacked) and isinstance(error.__cause__, errors.OperationRefused)
    return refused or isinstance(error, (errors.EncodingError, errors.LetterRefused))


def why_not_sent(future: Future[None], remaining: float, timeout: float) -> BaseException | None:
    """Why the broker has not taken a message; ``None`` where it has. Blocks.

    :param remaining: seconds that are left to wait
    :param timeout: seconds that there were, for the text
    """
    if not wait([future], max(0.0, remaining)).done:
        return errors.PublishTimeout(f'the broker has not confirmed it within {timeout:g} s')
    return future.exception()
