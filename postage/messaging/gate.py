"""Which deliveries a consumer with keys lets through: signed ones, in time, at the right place, and each once."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from postage import errors
from postage.amqp.deliveries import Delivery
from postage.amqp.frames import DEADLINE
from postage.amqp.topology import Topology, matches_topic
from postage.messaging.exchanges import check_exchange
from postage.messaging.properties import VOUCHER
from postage.messaging.signing import Signature, Signatures, where
from postage.printable import shown
from postage.sparingly import Sparingly

REMEMBERED: Final = 65_536  # messages of one consumer, of which each takes about 200 bytes
MAC_BYTES: Final = 16  # of a signature, by which it is remembered


class Gate:
    """Judges the deliveries of one consumer, and remembers them.

    A message is known by its signature, which is its own: two attempts of one RPC have the same ``message_id``. One
    that has been handled, or is in hand, is not handled again; what the broker delivers again meanwhile waits for the
    end of the first. All of it may be called from any thread.

    :param signatures: verify
    :param max_age: seconds that a signature may be old; ``None`` for any age
    :param elsewhere: where else messages may have been sent first, as :func:`check_elsewhere` gives it
    :param topology: the consumer's
    :param take_again: puts a delivery that has waited back into the inbox
    """

    def __init__(
        self,
        signatures: Signatures,
        max_age: float | None,
        elsewhere: Sequence[tuple[str, str]] | bool,
        topology: Topology,
        take_again: Callable[[Delivery], None],
    ) -> None:
        self._signatures = signatures
        self._max_age = max_age
        self._elsewhere = elsewhere
        self._topology = topology
        self._take_again = take_again
        self._sparingly = Sparingly()
        self._lock = threading.Lock()  # of all that follows
        self._known: OrderedDict[bytes, bool] = OrderedDict()  # by signature and queue: whether it has been handled
        self._in_hand: dict[Delivery, tuple[bytes, Signature]] = {}
        self._waiting: dict[bytes, list[Delivery]] = {}  # for the end of the one in hand

    def begin(self) -> None:
        """It begins to consume: the broker delivers again what was in hand."""
        with self._lock:
            self._in_hand.clear()
            self._waiting.clear()

    def admits(self, delivery: Delivery) -> bool:
        """Whether a delivery is to be handled. What is not has been acknowledged, or waits.

        :raises errors.SignatureRefused: it is to be refused; a line at WARNING has said so
        """
        try:
            signature = self._verified(delivery)
        except errors.SignatureRefused as error:
            self._sparingly.log(logging.WARNING, '%r is refused: %s', delivery, error)
            raise
        mark = _mark(delivery, signature)
        with self._lock:
            waiting = self._waiting.get(mark)
            if waiting is None and not self._known.get(mark):
                self._remember(mark, False)
                self._in_hand[delivery] = mark, signature
                self._waiting[mark] = []
                return True
            if waiting is not None and delivery.redelivered:
                # Perhaps it is the very message that is in hand, which its connection has lost: then this is the
                # only delivery of it that can be acknowledged, once it is known that there is no need for another.
                waiting.append(delivery)
                return False
        self._sparingly.log(logging.WARNING, '%r is a copy of a message that has been handled; acknowledged', delivery)
        delivery.channel.settle(delivery)
        return False

    def cancel_id(self, delivery: Delivery, correlation_id: str | None) -> str | None:
        """What a request in hand is called where it is cancelled."""
        found = self._in_hand.get(delivery)
        return None if found is None else self._signatures.cancel_id(correlation_id or '', found[1].key_id)

    def handled(self, delivery: Delivery) -> None:
        """It is about to be acknowledged, for it has been handled."""
        self._end(delivery, True)

    def failed(self, delivery: Delivery, is_sent_on: bool = False) -> None:
        """It has not been handled to its end; it may be, at another time.

        :param is_sent_on: vouch for it: Postage sends it on, or a store keeps it
        """
        found = self._end(delivery, False)
        if found is not None and is_sent_on:
            properties = delivery.properties
            voucher = self._signatures.vouch(found, delivery.queue)
            properties.headers = {**(properties.headers or {}), VOUCHER: voucher}

    def _end(self, delivery: Delivery, is_handled: bool) -> Signature | None:
        with self._lock:
            mark, signature = self._in_hand.pop(delivery, (None, None))
            if mark is None:
                return None
            if is_handled:
                self._remember(mark, True)
            waiting = self._waiting.pop(mark, ())
        for other in waiting:
            self._take_again(other)
        return signature

    def _remember(self, mark: bytes, is_handled: bool) -> None:
        """With the lock held."""
        self._known[mark] = is_handled
        self._known.move_to_end(mark)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _verified(self, delivery: Delivery) -> Signature:
        try:
            properties = delivery.properties
        except errors.DecodingError as error:
            raise errors.SignatureRefused(str(error)) from None
        signature = self._signatures.verify(properties, delivery.body)
        comes_first = delivery.arrived_by == (signature.exchange, signature.routing_key)
        is_whole = not signature.deadline or DEADLINE in properties.headers
        if comes_first and is_whole and self._max_age is None:
            return signature  # the usual case
        if self._signatures.is_vouched(properties, signature, delivery.queue):
            return signature
        if not self._leads_here(delivery, signature):
            exchange, key = delivery.arrived_by
            raise errors.SignatureRefused(
                f'it was signed for {where(signature)}, which leads not to queue {shown(delivery.queue)}, and came by '
                f'exchange {shown(exchange)}, key {shown(key)}; see signed_for',
                'misdirected',
            )
        if comes_first and not is_whole:
            raise errors.SignatureRefused('its deadline is missing')
        self._check_age(delivery, signature)
        return signature

    def _leads_here(self, delivery: Delivery, signature: Signature) -> bool:
        """Whether a message could have come to this queue from where it was first sent to."""
        exchange, key = signature.exchange, signature.routing_key
        arrived_by = delivery.arrived_by
        if arrived_by == (exchange, key) or self._elsewhere is True:
            return True
        # Sent back to its queue: that is no more than its sender could have had.
        if arrived_by == ('', delivery.queue) and delivery.queue in self._topology.queues_reached(exchange, key):
            return True
        return any(exchange == name and matches_topic(pattern, key) for name, pattern in self._elsewhere or ())

    def _check_age(self, delivery: Delivery, signature: Signature) -> None:
        if self._max_age is None:
            return
        age = time.time() - signature.seconds
        if abs(age) <= self._max_age:
            return
        if delivery.redelivered and _mark(delivery, signature) in self._known:
            return  # it was in time when it first came, and its connection was lost
        old = f'{age:.0f} s ago' if age > 0 else f'{-age:.0f} s in the future'
        raise errors.SignatureRefused(f'it was signed {old}, and max_age is {self._max_age:g} s', 'stale')


def _mark(delivery: Delivery, signature: Signature) -> bytes:
    """By which a delivery is remembered."""
    return signature.mac[:MAC_BYTES] + delivery.queue.encode('utf-8', 'surrogatepass')


def check_max_age(name: str, seconds: Any) -> float | None:
    """An age in seconds, or ``None``.

    :raises errors.ConfigurationError: it is neither
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise errors.ConfigurationError(f'{name} must be a number of seconds above 0, or None, not {shown(seconds)}')
    return float(seconds)


def check_elsewhere(name: str, given: Any) -> Sequence[tuple[str, str]] | bool:
    """Exchanges with patterns of routing keys, or ``True``.

    :raises errors.ConfigurationError: it is neither
    """
    if given is True or given is None:
        return bool(given)
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        pairs = [pair for pair in given if isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[1], str)]
        if len(pairs) == len(given):
            return [(check_exchange(exchange, name, default_allowed=True).name, key) for exchange, key in pairs]
    raise errors.ConfigurationError(
        f'{name} must be True, or a list of pairs (Exchange, pattern of routing keys), not {shown(given)}'
    )
