"""What becomes of deliveries that could not be handled: they are put off, or put into a store, or counted.

Each is given into other hands first, the broker's or the store's, and acknowledged once those have it. Where they do
not take it, the message stays unacknowledged and is offered again, after pauses that grow. Where they can never take
it, there is another end: what cannot be put off is a dead letter, what no store can hold is rejected. The log says why.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from typing import Any

from postage import errors
from postage.amqp.deliveries import Delivery
from postage.amqp.frames import HEADER_OVERHEAD, encode_all
from postage.amqp.publishing import Receipt
from postage.amqp.retries import DELIVERY_COUNT, count_of
from postage.amqp.topology import Queue
from postage.messaging import properties as notes
from postage.messaging.counting import Figures
from postage.messaging.delays import Spread, delay_queue, pause_after
from postage.messaging.forwarding import Forwarder, is_final
from postage.messaging.handlers import Retry
from postage.messaging.letters import DeadLetter, DeadLetterStore, first_attempt_at, letter_of
from postage.messaging.outcomes import Failure, Pause
from postage.messaging.properties import whole_header
from postage.messaging.roles import Consumer, Host
from postage.messaging.unsettled import Unsettled
from postage.microthreads import MicroThread, sleep
from postage.printable import text_of

logger = logging.getLogger('postage')

FIRST_PAUSE = 1.0  # seconds before a message is offered again to a store or broker that did not take it
LONGEST_PAUSE = 60.0
BROKER_NOTES = 4096  # bytes of headers that the broker may add as a message leaves the queue in which it waits
AFTER_REFUSAL = Retry(errors.Nacked)
"""When a message is handled again because the broker refused what its handler published."""
BUSY_PAUSE = 0.02  # seconds before a message is begun again for which there was no room


class Failures:
    """The failed deliveries of one processor. Its methods are for the scheduler's thread.

    :param unsettled: counts what has been begun, and ought to end before the processor does
    :param figures: in which it counts what becomes of them
    :ivar troubles: what could not be done with a delivery yet, and is tried again; read by any thread
    :param begin_again: handles a delivery once more, if there is room, and returns whether there was
    """

    def __init__(
        self,
        host: Host,
        consumer: Consumer,
        unsettled: Unsettled,
        figures: Figures,
        begin_again: Callable[[Delivery], bool],
    ) -> None:
        self._host = host
        self._consumer = consumer
        self._source = consumer.delivery_source
        self._unsettled = unsettled
        self._figures = figures
        self._begin_again = begin_again
        self._forwarder: Forwarder | None = None
        self._spread = Spread()
        self.troubles: dict[Delivery, str] = {}

    def close(self) -> None:
        """Give its connection back. Blocks."""
        if self._forwarder is not None:
            self._forwarder.close()

    # Another attempt

    def put_off(self, delivery: Delivery, pause: Pause, failure: Failure) -> None:
        """Have a message come back after a pause.

        It waits in its own queue where the broker delays retries as this pause asks for, in a delay queue elsewhere,
        and in this process where its queue is exclusive, or a stream.
        """
        self._vouch(delivery)
        self._figures.retried += 1
        properties = delivery.properties
        retries = delivery.retries
        if retries is not None and retries.takes(count_of(properties.headers), pause.shortest, pause.longest):
            delivery.channel.settle(delivery, requeue=True)
            return
        queue = _declared(delivery)
        counted = {
            'attempts': whole_header(properties.headers or {}, notes.ATTEMPTS) + 1,
            'first_attempt': int(first_attempt_at(properties) * 1000),
        }
        if delivery.position is not None or (queue is not None and queue.flags.get('exclusive')):
            # Without the broker's help: what goes with this connection need not outlive it, and a message that came
            # back into a stream would be there twice, for all that read it.
            headers = {notes.ATTEMPTS: counted['attempts'], notes.FIRST_ATTEMPT: counted['first_attempt']}
            properties.headers = {**(properties.headers or {}), **headers}
            self._source.set_aside(1)
            self._later(pause.seconds, functools.partial(self._release, delivery))
            return
        waiting = delay_queue(queue, delivery.queue, pause)
        expiration = self._spread.wait(waiting.name, pause) if pause.shortest < pause.longest else None

        def end(error: BaseException) -> None:
            logger.error('%r cannot be put off: %s', delivery, text_of(error))
            self.give_up(delivery, failure)

        try:
            encoded = _encoded(delivery, BROKER_NOTES, counted, expiration)
        except Exception as error:  # of any kind: there is an end for each message
            end(error)
            return
        send = functools.partial(self._send, delivery, waiting.name, encoded, properties.message_id, waiting)
        self._hand_over(delivery, send, f'to put it off in queue {waiting.name!r}', end)

    def _release(self, delivery: Delivery) -> None:
        if not _can_be_settled(delivery):  # it went back to its queue
            if self._source.is_delivery_of(delivery):
                self._source.set_aside(-1)
        elif self._begin_again(delivery):
            self._source.set_aside(-1)
        else:
            self._later(BUSY_PAUSE, functools.partial(self._release, delivery))

    # Deliveries that came to no end

    def unfinished(self, delivery: Delivery) -> int:
        """How many deliveries of a message came to no end, as far as is known.

        :raises errors.DecodingError: its headers cannot be decoded
        """
        headers = delivery.headers
        if self._is_counted_by_broker(delivery):
            return count_of(headers)
        return whole_header(headers, notes.DELIVERIES) + bool(delivery.redelivered)

    def has_to_be_counted(self, delivery: Delivery) -> bool:
        """Whether only a note of ours can tell that this message has been delivered before."""
        return delivery.redelivered and not self._is_counted_by_broker(delivery)

    def _is_counted_by_broker(self, delivery: Delivery) -> bool:
        # https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
        queue = _declared(delivery)
        is_quorum = queue is not None and queue.arguments.get('x-queue-type') == 'quorum'
        return is_quorum or DELIVERY_COUNT in delivery.headers

    def count(self, delivery: Delivery, end: Callable[[BaseException], None]) -> None:
        """Put a message back into its own queue, with a note of how often it was delivered.

        :param end: called where that can never be done, with why
        :raises errors.PostageError: in place of that call
        """
        properties = delivery.properties
        headers = properties.headers or {}
        counted = {'deliveries': self.unfinished(delivery)}
        if notes.ATTEMPTS in headers:
            counted |= {'attempts': whole_header(headers, notes.ATTEMPTS)}
            counted |= {'first_attempt': whole_header(headers, notes.FIRST_ATTEMPT)}
        encoded = _encoded(delivery, 0, counted)
        send = functools.partial(self._send, delivery, delivery.queue, encoded, properties.message_id, None)
        self._hand_over(delivery, send, 'to put it back with a count of its deliveries', end)

    # Dead letters

    def give_up(self, delivery: Delivery, failure: Failure) -> None:
        """Put a message into the processor's store; where it has none, reject it."""
        self._vouch(delivery)
        self._figures.gave_up(failure.reason)
        store = self._host.dead_letters
        if store is None:
            self._source.give_up(delivery, failure)
            return

        def end(error: BaseException) -> None:
            logger.error('%r is rejected: it cannot be stored as a dead letter (%s)', delivery, text_of(error))
            self._source.give_up(delivery, failure)

        try:
            put = functools.partial(self._put, store, letter_of(delivery, failure))
        except Exception as error:  # of any kind: there is an end for each message
            end(error)
            return
        self._hand_over(delivery, put, 'to store it as a dead letter', end)

    # What its handlers published was not taken

    def unpublished(self, delivery: Delivery, failed: Receipt) -> None:
        """The broker may take later what it refused: a queue was full, say, or had no leader.

        :param failed: the receipt of that
        """
        error = failed.error
        assert error is not None
        failure = Failure('unpublished', error)
        is_reply = failed.ledger.has_replies
        pause = None if is_reply or is_final(error) else pause_after([AFTER_REFUSAL], error, delivery)
        if pause is not None:
            text = '%r is handled again in about %.3g s, because what its handler published failed: %s'
            logger.warning(text, delivery, pause.seconds, error)
            for receipt in delivery.receipts or ():
                receipt.note_told()
            self.put_off(delivery, pause, failure)
            return
        logger.error('%r is rejected, because what its handler published failed: %s', delivery, error)
        self.look_at_reply(delivery, failed)
        self.give_up(delivery, failure)

    def look_at_reply(self, delivery: Delivery, receipt: Receipt) -> None:
        """Where this is a reply that the broker has refused, say so to its caller, which would wait in vain."""
        if receipt.error is not None and receipt.ledger.has_replies:
            self._consumer.reply_sender.refused(delivery.salvaged, receipt.error)

    # What they do to it

    def _vouch(self, delivery: Delivery) -> None:
        """What could be verified can be so again, wherever it is sent to."""
        if self._source.gate is not None:
            self._source.gate.failed(delivery, is_sent_on=True)

    def _put(self, store: DeadLetterStore, letter: DeadLetter) -> Future[Any]:
        if self._host.scheduler is not None:
            return self._host.scheduler.executor.submit(store.put, letter)
        done: Future[Any] = Future()
        done.set_result(store.put(letter))
        return done

    # Into other hands

    def _send(
        self, delivery: Delivery, routing_key: str, properties: bytes, message_id: str | None, queue: Queue | None
    ) -> Future[None]:
        if self._forwarder is None:
            self._forwarder = Forwarder(self._consumer.conn_broker.settings)
        return self._forwarder.send('', routing_key, properties, delivery.body, message_id or '', queue)

    def _hand_over(
        self,
        delivery: Delivery,
        work: Callable[[], Future[Any]],
        what: str,
        end: Callable[[BaseException], None],
        pause: float = FIRST_PAUSE,
    ) -> None:
        """Do some work, and acknowledge the delivery once it is done. Where it fails, do it again after a pause.

        :param end: called in the scheduler's thread where it can never be done, with why
        """

        def done(future: Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            self.troubles.pop(delivery, None)
            if error is not None and is_final(error):
                self._unsettled.leave(functools.partial(end, error))
            elif error is not None:
                wait = f'next try in {pause:g} s'
                self.troubles[delivery] = f'failed {what} ({text_of(error)})'
                logger.error('%r stays unacknowledged: failed %s (%s); %s', delivery, what, text_of(error), wait)
                again = functools.partial(self._hand_over_again, delivery, work, what, end, 2 * pause)
                self._later(pause, again)
            elif not future.cancelled():  # by the end of the scheduler: the broker delivers it again
                delivery.channel.settle(delivery)
                if isinstance(where := future.result(), str):
                    tried = notes.attempt_of(delivery)
                    attempts = 'one attempt' if tried == 1 else f'{tried} attempts'
                    logger.warning('%r is given up after %s: it is %s', delivery, attempts, where)
            self._unsettled.one_less()

        self._unsettled.one_more()
        try:
            under_way = work()
        except Exception as error:
            under_way = Future()
            under_way.set_exception(error)
        under_way.add_done_callback(done)

    def _hand_over_again(
        self,
        delivery: Delivery,
        work: Callable[[], Future[Any]],
        what: str,
        end: Callable[[BaseException], None],
        pause: float,
    ) -> None:
        if _can_be_settled(delivery):
            self._hand_over(delivery, work, what, end, min(pause, LONGEST_PAUSE))
        else:
            self.troubles.pop(delivery, None)

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back in the scheduler's thread. From any thread."""
        if self._host.scheduler is not None:
            self._host.scheduler.add_microthread(_Later(seconds, callback))


class _Later(MicroThread):
    """One call, after a while."""

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self._seconds = seconds
        self._callback = callback

    def main(self) -> Generator[sleep, None, None]:
        yield sleep(self._seconds)
        self._callback()


def _encoded(delivery: Delivery, spare: int, counted: Mapping[str, int], expiration: int | None = None) -> bytes:
    """The properties of a message that is sent on, with counts in its headers.

    They have to fit into one frame. Where the publisher has left too little room, its origin is left out.

    :param spare: bytes to be left for what the broker adds
    :param expiration: milliseconds after which it expires, if it does
    :raises errors.EncodingError: the counts do not fit, either
    """
    room = delivery.channel.frame_max - HEADER_OVERHEAD - spare
    for origin in ((delivery.exchange, delivery.routing_key), None):
        changed = notes.sent_on(delivery.properties, origin, **counted)
        changed.expiration = None if expiration is None else str(expiration)
        encoded = encode_all(changed)
        if len(encoded) <= room:
            return encoded
    raise errors.EncodingError(
        f'with what has to be noted in its headers its properties are {len(encoded)} bytes, and {room} fit'
    )


def _declared(delivery: Delivery) -> Queue | None:
    settler = delivery.channel
    return settler.topology.queues.get(delivery.queue)


def _can_be_settled(delivery: Delivery) -> bool:
    """Whether a delivery is still this process's. Else the broker has put its message back, and delivers it anew."""
    settler = delivery.channel
    return settler.is_wanted and settler.is_open and settler.generation == delivery.generation
