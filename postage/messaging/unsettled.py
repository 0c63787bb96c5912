"""Acknowledgements that wait for the confirms of what was published meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from postage.amqp.deliveries import Delivery
from postage.amqp.publishing import PublishingChannel, Receipt


class Unsettled:
    """Deliveries that are handled, and wait for something before they are settled. Any thread.

    :param give_up: called with a delivery of whose messages one was not confirmed, and that one's receipt, once all are
        settled; on a connection's thread
    :param settle: called there with one of whose messages all are confirmed; by default that is acknowledged
    :param notify: called when there is work for the thread that consumes, and where :attr:`is_awaited` says so when
        one of them has been settled
    :ivar is_awaited: whether the last one is waited for without :meth:`wait`
    :ivar work: what only the thread that consumes may do; it calls :meth:`work_off`
    """

    def __init__(
        self,
        give_up: Callable[[Delivery, Receipt], object],
        settle: Callable[[Delivery], object] | None = None,
        notify: Callable[[], None] | None = None,
    ) -> None:
        self._give_up = give_up
        self._settle = settle
        self._notify = notify
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._replies: dict[Receipt, Delivery] = {}  # those that wait for one confirm; each step on it is one by itself
        self._others = 0  # guarded by the lock
        self._waiting = 0  # threads in wait(); guarded by the lock
        self._channels: set[PublishingChannel] = set()  # on which the confirms come
        self.is_awaited = False
        self.work: deque[Callable[[], None]] = deque()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._replies) + self._others

    def add(self, delivery: Delivery, receipts: Sequence[Receipt]) -> None:
        """Settle a delivery, or give it up, once all of these receipts are settled. Does not block."""
        if len(receipts) > 1:
            self._add_many(delivery, list(receipts))
            return
        receipt = receipts[0]  # the usual case: that of a reply
        self._replies[receipt] = delivery
        self._channels.add(receipt.ledger.channel)
        # Whether the broker may soon deliver no more until some are acknowledged.
        is_urgent = 0 < delivery.channel.prefetch <= 2 * (len(self._replies) + self._others)
        receipt.when_settled(self._on_settled, is_urgent)

    def _add_many(self, delivery: Delivery, receipts: list[Receipt]) -> None:
        missing = len(receipts)

        def one_is_settled(_: Receipt) -> None:
            nonlocal missing
            with self._lock:
                missing -= 1
                if missing:
                    return
            told = next((receipt for receipt in receipts if receipt.error is not None), receipts[0])
            self._end(delivery, told)
            self.one_less()

        self.one_more()
        is_urgent = 0 < delivery.channel.prefetch <= 2 * self.count
        for receipt in receipts:
            self._channels.add(receipt.ledger.channel)
            receipt.when_settled(one_is_settled, is_urgent)

    def _on_settled(self, receipt: Receipt) -> None:
        delivery = self._replies[receipt]
        if receipt.error is None and self._settle is None:
            delivery.channel.settle(delivery)  # without a call more for each reply
        else:
            self._end(delivery, receipt)
        # It is taken out before the look at who waits; a thread that waits is counted before it looks at what is in. So
        # one of the two sees the other.
        del self._replies[receipt]
        if self._waiting:
            with self._lock:
                self._changed.notify_all()
        if self.is_awaited and self._notify is not None:
            self._notify()

    def _end(self, delivery: Delivery, receipt: Receipt) -> None:
        if receipt.error is not None:
            self._give_up(delivery, receipt)
        elif self._settle is not None:
            self._settle(delivery)
        else:
            delivery.channel.settle(delivery)

    def one_more(self) -> None:
        """One more waits for something."""
        with self._lock:
            self._others += 1

    def one_less(self) -> None:
        """One fewer waits."""
        with self._lock:
            self._others -= 1
            self._changed.notify_all()
        if self.is_awaited and self._notify is not None:
            self._notify()

    # What is left to the thread that consumes

    def leave(self, work: Callable[[], None]) -> None:
        """Leave something to the thread that consumes. Until that has done it, one more is unsettled."""
        with self._lock:
            # One step: between the two a waiting thread would see neither, and go.
            self._others += 1
            self.work.append(work)
            self._changed.notify_all()
        if self._notify is not None:
            self._notify()

    def work_off(self) -> None:
        """Do what was left to the thread that consumes. In that thread."""
        while self.work:
            work = self.work.popleft()
            try:
                work()
            finally:
                self.one_less()

    def wait(self, timeout: float) -> bool:
        """Wait until there is none. Returns whether that is so within that many seconds.

        Blocks, in the thread that consumes, which does the work that is left to it meanwhile.
        """
        if not self.count:
            return True
        deadline = time.monotonic() + timeout
        with contextlib.ExitStack() as stack:
            # This thread does not read now, so what is to read for it must know that it waits.
            for channel in list(self._channels):
                if not channel.is_wanted:
                    self._channels.discard(channel)
                else:
                    stack.enter_context(channel.host.awaited())
            while True:
                with self._lock:
                    self._waiting += 1
                    try:
                        rest = max(0.0, deadline - time.monotonic())
                        self._changed.wait_for(lambda: self.work or not self.count, rest)
                    finally:
                        self._waiting -= 1
                    if not self.work:
                        return not self.count
                self.work_off()
