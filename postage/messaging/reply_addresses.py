"""Where answers may go: a request names its reply address, and its sender may name a stranger's queue."""

from __future__ import annotations

import fnmatch
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from postage import errors
from postage.amqp.connection import Connection
from postage.amqp.frames import short_string
from postage.amqp.steps import Steps
from postage.messaging.signing import DIRECT_REPLY_TO
from postage.printable import shown
from postage.sparingly import Sparingly

logger = logging.getLogger('postage')

KNOWN_MAX: Final = 1024  # addresses of which is remembered what the broker has said
KNOWN_SECONDS: Final = 30.0  # for which that counts

# Of the broker, of Postage, of Spring; and of all that make a name of a UUID, or of as many random digits.
_GENERATED: Final = re.compile(
    r'amq\.gen-.+|postage\.reply-[0-9a-f]{24}|postage\.rpc-[0-9a-f]{16}-[0-9a-f]+|spring\.gen-.+'
    r'|.*[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}.*|.*[0-9a-f]{24}.*',
    re.IGNORECASE | re.DOTALL,
)


class Answering(Protocol):
    """A consumer, as its reply addresses see it."""

    @property
    def accept_reply_to(self) -> Any: ...
    @property
    def conn_broker(self) -> Connection: ...


class ReplyAddresses:
    """Which reply addresses one consumer answers to.

    Always to direct reply-to, which only a caller can have, and to queues whose names look generated, which no
    other program guesses. Else to what ``accept_reply_to`` names; where that says nothing, to queues that are
    exclusive: those belong to a connection, and no other program reads them. AMQP does not tell whether that is the
    caller's.

    :param consumer: the consumer
    :raises errors.ConfigurationError: its ``accept_reply_to`` has the wrong shape
    """

    def __init__(self, consumer: Answering) -> None:
        check_accepted(f'{type(consumer).__name__}.accept_reply_to', consumer.accept_reply_to)
        self._consumer = consumer
        self._sparingly = Sparingly()
        self._known: dict[str, tuple[float, bool]] = {}  # whether a queue is exclusive, and until when that counts

    def accepts(self, address: str, request: Any) -> bool:
        """Whether an answer may go to an address. Asks the broker, which blocks, where nothing else tells.

        :param request: the delivery, or the properties, that ``accept_reply_to`` may want to see
        :raises errors.EncodingError: no address could be so
        """
        short_string(address, 'reply_to')  # one that AMQP cannot hold is not even an address
        if address.startswith(DIRECT_REPLY_TO) or _GENERATED.fullmatch(address):
            return True
        accepted = self._consumer.accept_reply_to
        if accepted is None:
            return self._is_exclusive(address)
        if callable(accepted):
            return self._decided(accepted, request)
        return accepted is True or any(_matches(pattern, address) for pattern in _patterns(accepted))

    def _decided(self, decide: Callable[[Any], Any], request: Any) -> bool:
        try:
            return decide(request) is True
        except Exception:  # of a user's own: it must not be the end of the processor
            logger.exception('accept_reply_to of %r raised', self._consumer)
            return False

    def drop(self, header: Any, message: Any = None) -> None:
        """Say that an answer goes nowhere."""
        self._sparingly.log(
            logging.WARNING,
            'an answer goes nowhere: the reply address %s is neither direct reply-to nor a queue that looks generated '
            'or is exclusive; a component that is to answer there says so: accept_reply_to',
            shown(header.reply_to),
        )

    def _is_exclusive(self, address: str) -> bool:
        now = time.monotonic()
        until, is_exclusive = self._known.get(address, (0.0, False))
        if until < now:
            is_exclusive = self._ask(address)
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[address] = now + KNOWN_SECONDS, is_exclusive
        return is_exclusive

    def _ask(self, address: str) -> bool:
        """Whether a queue is exclusive: then the broker refuses to show it to this connection, which is another one."""
        connection = self._consumer.conn_broker

        def look() -> Steps:
            doing = f'see whether queue {shown(address)} is exclusive'
            yield connection.control.operate('queue_declare', doing, queue=address, passive=True)

        for topology in connection.topologies:
            own = topology.queues.get(address)
            if own is not None and own.flags.get('exclusive'):
                return True
        try:
            connection.ask(look)
        except errors.ResourceLocked:
            return True
        except (errors.PostageError, RuntimeError) as error:  # the latter on a thread that must not wait
            logger.debug('it is not known whether %s is exclusive: %s', shown(address), error)
        return False


def check_accepted(name: str, accepted: Any) -> None:
    """See that reply addresses can be accepted by it.

    :raises errors.ConfigurationError: it is neither ``None`` nor a truth value nor a pattern, or several, nor a method
    """
    if accepted is None or isinstance(accepted, bool) or callable(accepted):
        return
    patterns = _patterns(accepted)
    if not patterns or not all(isinstance(pattern, (str, re.Pattern)) and pattern for pattern in patterns):
        raise errors.ConfigurationError(
            f'{name} must be None, True, False, a pattern such as "replies.*", a list of these, or a method, '
            f'not {shown(accepted)}'
        )


def _patterns(accepted: Any) -> Sequence[Any]:
    if accepted is False:
        return ()
    return accepted if isinstance(accepted, (list, tuple)) else (accepted,)


def _matches(pattern: Any, address: str) -> bool:
    """A text is a pattern as for file names; a compiled regular expression is one of its own."""
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(address, pattern)
    return pattern.fullmatch(address) is not None
