"""Dead letters sent back to where they came from.

A letter leaves its store once the broker has confirmed the message that it has become again. A replay that is killed in
between has sent some letters that are still in the store. The next replay sends those again, with the same
``message_id``, by which their receivers can tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from postage import errors
from postage.amqp.deliveries import with_link
from postage.amqp.frames import encode_all
from postage.dead_letters.signed import vouched
from postage.dead_letters.store import ALL, DeadLetters, Selection, StoredLetter
from postage.messaging import properties as amqp
from postage.messaging.forwarding import Forwarder, why_not_sent
from postage.messaging.signing import Signatures
from postage.printable import shown

BATCH = 200  # letters under way at a time
TIMEOUT = 60.0  # seconds in which a batch has to be confirmed
NOT_SENT = (errors.StoreError, errors.EncodingError, errors.Unroutable)
"""Errors after which no receiver has the letter; after any other, one may have it."""


@dataclass(frozen=True)
class Target:
    """Where letters are sent: an exchange with a key, or the default exchange with the name of a queue."""

    exchange: str
    routing_key: str


@dataclass
class Replayed:
    """What a replay did.

    :ivar sent: letters that the broker has confirmed, and that have left the store
    :ivar failures: numbers of letters that it has not, and why; they are still in the store
    :ivar repeated: how many of those sent may have been sent before, by a replay that was cut short
    :ivar given_up: whether the rest was not tried, because the broker confirmed nothing any more
    """

    sent: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    repeated: int = 0
    given_up: bool = False


def replay(
    store: DeadLetters,
    forwarder: Forwarder,
    selection: Selection = ALL,
    target: Target | None = None,
    rate: float | None = None,
    progress: Callable[[int], None] = lambda count: None,
    signatures: Signatures | None = None,
) -> Replayed:
    """Send letters back, oldest first. Blocks until all are sent, or the broker has confirmed none for a minute.

    :param forwarder: what sends them
    :param target: where to; by default each to the queue that it came from. One that came by another transport than
        a broker needs it
    :param rate: letters a second, at most; by default as fast as the broker confirms them
    :param progress: called with the number of letters that have been dealt with since it was last called
    :param signatures: vouch for letters that are signed by one of these keys, whatever their age
    :raises errors.StoreError: the store cannot be read, or another program is replaying it
    """
    done = Replayed()
    pace = _Pace(rate)
    with store.hand_out(selection) as handout:
        for batch in handout.batches(pace.batch):
            under_way = [(stored, _send(forwarder, stored, target, pace, signatures)) for stored in batch]
            deadline = time.monotonic() + TIMEOUT
            outcomes = [
                (stored, why_not_sent(future, deadline - time.monotonic(), TIMEOUT)) for stored, future in under_way
            ]
            sent = [stored for stored, error in outcomes if error is None]
            handout.settle(sent)
            handout.put_back([stored for stored, error in outcomes if isinstance(error, NOT_SENT)])
            done.failures |= {stored.id: str(error) or type(error).__name__ for stored, error in outcomes if error}
            done.sent += len(sent)
            done.repeated += sum(1 for stored in sent if stored.replay_begun_at is not None)
            progress(len(batch))
            done.given_up = any(isinstance(error, errors.PublishTimeout) for _, error in outcomes)
            if done.given_up:
                break
    return done


class _Pace:
    """So many letters a second."""

    def __init__(self, rate: float | None) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._next = time.monotonic()
        self.batch = max(1, min(BATCH, int(rate / 4))) if rate else BATCH  # a batch is not longer than a moment

    def wait(self) -> None:
        if self._interval:
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._next = max(self._next + self._interval, time.monotonic() - self._interval)


def _send(
    forwarder: Forwarder, stored: StoredLetter, target: Target | None, pace: _Pace, signatures: Signatures | None
) -> Future[None]:
    pace.wait()
    letter = stored.letter
    try:
        where = target or _way_back(stored)
        properties = amqp.from_plain(letter.properties)
        # The same each time, so that a receiver can tell a letter that was sent twice.
        properties.message_id = properties.message_id or f'dead-letter-{stored.id}-{int(letter.died_at * 1000)}'
        # Only its first user may send this, and it was sent to these others already.
        properties.user_id = None
        if signatures:
            properties = vouched(signatures, properties, letter.body, where.exchange, where.routing_key)
        headers = dict(properties.headers or {})
        headers.pop('CC', None)
        properties.headers = with_link(headers) or None
        encoded = encode_all(properties)
    except Exception as error:  # of any kind: a letter that cannot be sent must not keep the others
        failed: Future[None] = Future()
        own = isinstance(error, errors.PostageError)
        failed.set_exception(error if own else errors.StoreError(f'its properties cannot be sent: {shown(error)}'))
        return failed
    return forwarder.send(where.exchange, where.routing_key, encoded, letter.body, properties.message_id)


def _way_back(stored: StoredLetter) -> Target:
    if not stored.letter.queue:
        raise errors.StoreError(
            'it came from no queue, so nothing says where to send it: name a place, with --to, or target= in a program'
        )
    return Target('', stored.letter.queue)
