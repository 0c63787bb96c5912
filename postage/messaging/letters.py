"""Dead letters: messages that could not be handled, and where they are put."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from postage import errors
from postage.amqp.deliveries import Delivery
from postage.messaging import properties as notes
from postage.messaging.outcomes import Failure, Reason
from postage.messaging.properties import Properties, whole_header
from postage.printable import class_path_of, encodable, text_of, traceback_of

TRACEBACK_MAX = 16_000  # characters; its end says the most
MESSAGE_MAX = 4_000


@dataclass(frozen=True)
class DeadLetter:
    """A message that could not be handled, and why. All of it but the body can be written as JSON.

    :ivar body: the bytes of its body
    :ivar properties: its AMQP properties, as :func:`postage.messaging.properties.as_plain` writes them
    :ivar queue: the queue it was delivered from
    :ivar exchange: the exchange it was first published to
    :ivar routing_key: the routing key it was first published with
    :ivar reason: one of :data:`postage.messaging.outcomes.Reason`
    :ivar exception: name of the exception's class, with its module where that is not Python's own
    :ivar message: the exception's text
    :ivar traceback: the exception's traceback, the end of it where it is long
    :ivar attempts: how often it was handled; 0 where it could not even be read
    :ivar first_attempt_at: when it was first handled, as ``time.time()`` has it
    :ivar died_at: when it was given up
    :ivar is_repeated: whether the same message may have been given up before: it was delivered, or sent, again
    """

    body: bytes = field(repr=False)
    properties: dict[str, Any]
    queue: str
    exchange: str
    routing_key: str
    reason: Reason
    exception: str
    message: str
    traceback: str = field(repr=False)
    attempts: int
    first_attempt_at: float
    died_at: float
    is_repeated: bool = False

    @property
    def message_id(self) -> str:
        """The ``message_id`` it travelled under; empty where it had none."""
        return str(self.properties.get('message_id') or '')


class DeadLetterStore(Protocol):
    """Where a processor puts the messages that it could not handle. Its :attr:`dead_letters` is one."""

    def put(self, letter: DeadLetter) -> object:
        """Take a letter over. The message is acknowledged when this returns, so the letter has to be safe by then.

        May block; called from threads of the scheduler's pool, from several at once.

        :return: where it lies, in words for the log, such as ``letter 2 in dead.db``; anything but text is ignored
        :raises Exception: where it cannot be taken; it stays unacknowledged, and is offered again after a pause
        """


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
        exception=encodable(class_path_of(error)),
        message=encodable(text_of(error)[:MESSAGE_MAX]),
        traceback=encodable(traceback_of(error)[-TRACEBACK_MAX:]),
        attempts=failed_before + (failure.reason not in ('undecodable', 'deliveries', 'refused')),
        first_attempt_at=first_attempt_at(properties),
        died_at=time.time(),
        is_repeated=delivery.redelivered or failed_before > 0 or unfinished > 0,
    )


def first_attempt_at(properties: Properties) -> float:
    """When a message was first handled, as ``time.time()`` has it; now, where this is the first time."""
    now = time.time()
    noted = whole_header(properties.headers or {}, notes.FIRST_ATTEMPT) / 1000
    return min(noted, now) or now  # any program may write that header
