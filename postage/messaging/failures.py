"""What becomes of deliveries that could not be handled: they are put off, or buried in a store, or counted.

Each is given into other hands first, the broker's or the store's, and acknowledged once those have it. Where they do
not take it, the message stays unacknowledged and is offered again, after pauses that grow.
"""

from __future__ import annotations

import functools
import logging
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from postage import errors
from postage.amqp.deliveries import Delivery
from postage.amqp.frames import encode_all
from postage.amqp.topology import Queue
from postage.messaging import properties as notes
from postage.messaging.forwarding import Forwarder
from postage.messaging.outcomes import DeadLetter, DeadLetterStore, Failure
from postage.messaging.properties import Properties, whole_header
from postage.messaging.retry import Pause, delay_queue, pause_after
from postage.microthreads import MicroThread, sleep

if TYPE_CHECKING:
    from postage.messaging.handlers import Entry
    from postage.messaging.processor import MessageProcessor

logger = logging.getLogger('postage')

FIRST_PAUSE = 1.0  # seconds before a message is offered again to whoever did not take it
LONGEST_PAUSE = 60.0
BUSY_PAUSE = 0.02  # seconds before a message is begun again for which there was no room
TRACEBACK_MAX = 16_000  # characters; its end says the most
MESSAGE_MAX = 4_000


class Failures:
    """The failed deliveries of one processor. Its methods are for the scheduler's thread.

    :param begun: called when something has been begun that ought to end before the processor does
    :param ended: called when it has ended; from any thread
    """

    def __init__(
        self,
        processor: MessageProcessor,
        begun: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._processor = processor
        self._begun = begun
        self._ended = ended
        self._forwarder: Forwarder | None = None

    def close(self) -> None:
        """Give its connection back. Blocks."""
        if self._forwarder is not None:
            self._forwarder.close()

    # Another attempt

    def pause_after(self, entry: Entry, error: Exception, delivery: Delivery) -> Pause | None:
        """How long a message waits for its next attempt; ``None`` where there is none.

        There is none, either, for a message that would have expired by then: the caller of an RPC is gone.
        """
        try:
            properties = delivery.properties
        except errors.DecodingError:
            return None  # what cannot be read cannot be sent on
        pause = pause_after(entry.retries, error, whole_header(properties.headers or {}, notes.ATTEMPTS))
        expiration = notes.original(properties).expiration
        if pause is not None and expiration is not None and expiration.isdecimal():
            expires_at = _first_attempt_at(properties) + int(expiration) / 1000
            if time.time() + pause.seconds > expires_at:
                return None
        return pause

    def put_off(self, delivery: Delivery, pause: Pause, failure: Failure) -> None:
        """Have a message come back after a pause: by way of the broker, or of this process for an exclusive queue."""
        properties = delivery.properties
        queue = self._declared(delivery)
        counted = {
            'attempts': whole_header(properties.headers or {}, notes.ATTEMPTS) + 1,
            'first_attempt': int(_first_attempt_at(properties) * 1000),
        }
        if queue is not None and queue.flags.get('exclusive'):
            self._hold(delivery, pause, counted)
            return
        changed = notes.sent_on(properties, (delivery.exchange, delivery.routing_key), **counted)
        waiting = delay_queue(queue, delivery.queue, pause)
        try:
            encoded = encode_all(changed)
        except errors.EncodingError as error:
            logger.error('%r cannot be put off: %s', delivery, error)
            self.bury(delivery, failure)
            return
        send = functools.partial(self._send, delivery, waiting.name, encoded, changed.message_id, waiting)
        self._hand_over(delivery, send, f'to put it off in queue {waiting.name!r}')

    def _hold(self, delivery: Delivery, pause: Pause, counted: dict[str, int]) -> None:
        """Handle it again without the broker's help: what goes with this connection need not outlive it."""
        properties = delivery.properties
        headers = {notes.ATTEMPTS: counted['attempts'], notes.FIRST_ATTEMPT: counted['first_attempt']}
        properties.headers = {**(properties.headers or {}), **headers}
        self._processor.consumer.set_aside(1)
        self._later(pause.seconds, functools.partial(self._release, delivery))

    def _release(self, delivery: Delivery) -> None:
        if not delivery.channel.is_wanted:
            return  # it went back to its queue
        if self._processor.begin_again(delivery):
            self._processor.consumer.set_aside(-1)
        else:
            self._later(BUSY_PAUSE, functools.partial(self._release, delivery))

    # Deliveries that came to no end

    def unfinished(self, delivery: Delivery) -> int:
        """How many deliveries of a message came to no end, as far as is known.

        :raises errors.DecodingError: its headers cannot be decoded
        """
        headers = delivery.headers
        if self._is_counted_by_broker(delivery):
            return whole_header(headers, 'x-delivery-count')
        return whole_header(headers, notes.DELIVERIES) + bool(delivery.redelivered)

    def has_to_be_counted(self, delivery: Delivery) -> bool:
        """Whether nobody but us notes that this message has been delivered before."""
        return delivery.redelivered and not self._is_counted_by_broker(delivery)

    def _is_counted_by_broker(self, delivery: Delivery) -> bool:
        # https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
        queue = self._declared(delivery)
        kind = ((queue.flags.get('arguments') or {}) if queue is not None else {}).get('x-queue-type')
        return kind == 'quorum' or 'x-delivery-count' in delivery.headers

    def count(self, delivery: Delivery) -> None:
        """Put a message back into its own queue, with a note of how often it was delivered."""
        properties = delivery.properties
        headers = properties.headers or {}
        counted = {'deliveries': self.unfinished(delivery)}
        if notes.ATTEMPTS in headers:
            counted |= {'attempts': whole_header(headers, notes.ATTEMPTS)}
            counted |= {'first_attempt': whole_header(headers, notes.FIRST_ATTEMPT)}
        changed = notes.sent_on(properties, (delivery.exchange, delivery.routing_key), **counted)
        encoded = encode_all(changed)
        send = functools.partial(self._send, delivery, delivery.queue, encoded, changed.message_id, None)
        self._hand_over(delivery, send, 'to put it back with a count of its deliveries')

    # Dead letters

    def bury(self, delivery: Delivery, failure: Failure) -> None:
        """Put a message into the processor's store. To be called where there is one."""
        store: DeadLetterStore | None = self._processor.dead_letters
        assert store is not None
        letter = letter_of(delivery, failure)
        self._hand_over(delivery, functools.partial(self._put, store, letter), 'to store it as a dead letter')

    def _put(self, store: DeadLetterStore, letter: DeadLetter) -> Future[None]:
        scheduler = self._processor.scheduler
        if scheduler is not None:
            return scheduler.executor.submit(store.put, letter)
        done: Future[None] = Future()
        store.put(letter)
        done.set_result(None)
        return done

    # Into other hands

    def _send(
        self, delivery: Delivery, routing_key: str, properties: bytes, message_id: str | None, queue: Queue | None
    ) -> Future[None]:
        if self._forwarder is None:
            self._forwarder = Forwarder(self._processor.consumer.conn_broker.settings)
        return self._forwarder.send('', routing_key, properties, delivery.body, message_id or '', queue)

    def _hand_over(
        self, delivery: Delivery, work: Callable[[], Future[None]], what: str, pause: float = FIRST_PAUSE
    ) -> None:
        """Do some work, and acknowledge the delivery once it is done. Where it fails, do it again after a pause."""

        def done(future: Future[None]) -> None:
            error = None if future.cancelled() else future.exception()
            if error is not None:
                wait = f'next try in {pause:g} s'
                logger.error('%r stays unacknowledged: failed %s (%s); %s', delivery, what, _text(error), wait)
                self._later(pause, functools.partial(self._hand_over_again, delivery, work, what, 2 * pause))
            elif not future.cancelled():  # by the end of the scheduler: the broker delivers it again
                delivery.channel.settle(delivery)
            self._ended()

        self._begun()
        try:
            under_way = work()
        except Exception as error:
            under_way = Future()
            under_way.set_exception(error)
        under_way.add_done_callback(done)

    def _hand_over_again(self, delivery: Delivery, work: Callable[[], Future[None]], what: str, pause: float) -> None:
        channel = delivery.channel
        if channel.is_wanted and channel.generation == delivery.generation:
            self._hand_over(delivery, work, what, min(pause, LONGEST_PAUSE))

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back in the scheduler's thread. From any thread."""
        if self._processor.scheduler is not None:
            self._processor.scheduler.add_microthread(_Later(seconds, callback))

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back in the scheduler's thread, as soon as it can. From any thread."""
        self._later(0.0, callback)

    @staticmethod
    def _declared(delivery: Delivery) -> Queue | None:
        return delivery.channel.topology.queues.get(delivery.queue)


class _Later(MicroThread):
    """One call, after a while."""

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self._seconds = seconds
        self._callback = callback

    def main(self) -> Generator[Any, Any, None]:
        if self._seconds:
            yield sleep(self._seconds)
        self._callback()
        yield


def _first_attempt_at(properties: Properties) -> float:
    return whole_header(properties.headers or {}, notes.FIRST_ATTEMPT) / 1000 or time.time()


def letter_of(delivery: Delivery, failure: Failure) -> DeadLetter:
    """A failed delivery as a dead letter."""
    try:
        properties = delivery.properties
    except errors.DecodingError:
        properties = Properties()  # type: ignore[no-untyped-call]
    headers = properties.headers or {}
    failed_before, unfinished = whole_header(headers, notes.ATTEMPTS), whole_header(headers, notes.DELIVERIES)
    error = failure.error
    return DeadLetter(
        body=delivery.body,
        properties=notes.as_plain(notes.original(properties)),
        queue=delivery.queue,
        exchange=delivery.exchange,
        routing_key=delivery.routing_key,
        reason=failure.reason,
        exception=_name(type(error)),
        message=_text(error)[:MESSAGE_MAX],
        traceback=''.join(traceback.format_exception(error))[-TRACEBACK_MAX:],
        attempts=failed_before + (failure.reason not in ('undecodable', 'deliveries')),
        first_attempt_at=_first_attempt_at(properties),
        died_at=time.time(),
        is_repeated=delivery.redelivered or failed_before > 0 or unfinished > 0,
    )


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == 'builtins' else f'{kind.__module__}.{kind.__qualname__}'


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception class of the user's
        return repr(type(error))
