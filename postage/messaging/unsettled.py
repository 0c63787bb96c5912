"""Acknowledgements that wait for the confirms of what was published meanwhile."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from postage.amqp.deliveries import Delivery
from postage.amqp.publishing import PublishingChannel, Receipt


class Unsettled:
    """Deliveries that are handled, and wait for something before they are settled. Any thread.

    :param notify: called when there is work for the thread that consumes, and where :attr:`is_awaited` says so when
        one of them has been settled
    :ivar count: how many there are
    :ivar is_awaited: whether the last one is waited for without :meth:`wait`
    :ivar work: what only the thread that consumes may do; it calls :meth:`work_off`
    """

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.count = 0
        self._channels: set[PublishingChannel] = set()  # on which the confirms come
        self.is_awaited = False
        self.work: deque[Callable[[], None]] = deque()

    def add(
        self,
        delivery: Delivery,
        receipts: Sequence[Receipt],
        settle: Callable[[Delivery], object],
        give_up: Callable[[Delivery, Receipt], object],
    ) -> None:
        """Call ``settle(delivery)`` once all of the receipts are confirmed, or ``give_up(delivery, failed)``, with one
        that was not, once all are settled. Either is called on a connection's thread."""
        with self._lock:
            self.count += 1
        # Whether the broker may soon deliver no more until some are acknowledged.
        is_urgent = 0 < delivery.channel.prefetch <= 2 * self.count
        if len(receipts) == 1:  # the usual case: a reply
            receipt = receipts[0]
            self._channels.add(receipt.ledger.channel)
            receipt.when_settled(functools.partial(self._end, delivery, receipt, settle, give_up), is_urgent)
            return
        receipts = list(receipts)
        missing = len(receipts)

        def one_is_settled() -> None:
            nonlocal missing
            with self._lock:
                missing -= 1
                if missing:
                    return
            told = next((receipt for receipt in receipts if receipt.error is not None), receipts[0])
            self._end(delivery, told, settle, give_up)

        for receipt in receipts:
            self._channels.add(receipt.ledger.channel)
            receipt.when_settled(one_is_settled, is_urgent)

    def _end(
        self,
        delivery: Delivery,
        receipt: Receipt,
        settle: Callable[[Delivery], object],
        give_up: Callable[[Delivery, Receipt], object],
    ) -> None:
        if receipt.error is None:
            settle(delivery)
        else:
            give_up(delivery, receipt)
        self.one_less()

    def one_more(self) -> None:
        """One more waits for something."""
        with self._lock:
            self.count += 1

    def one_less(self) -> None:
        """One fewer waits."""
        with self._lock:
            self.count -= 1
            if not self.count:
                self._changed.notify_all()
        if self.is_awaited and self._notify is not None:
            self._notify()

    # What is left to the thread that consumes

    def leave(self, work: Callable[[], None]) -> None:
        """Leave something to the thread that consumes. Until that has done it, one more is unsettled."""
        with self._lock:
            # One step: between the two a waiting thread would see neither, and go.
            self.count += 1
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
                    self._changed.wait_for(lambda: self.work or not self.count, max(0.0, deadline - time.monotonic()))
                    if not self.work:
                        return not self.count
                self.work_off()
