"""Acknowledgements that wait for the confirms of what was published meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from postage.amqp.deliveries import Delivery
from postage.amqp.publishing import Receipt


def _nothing() -> None:
    """Nobody wants to be told."""


class Unsettled:
    """Deliveries whose acknowledgement waits for what their handlers published. Safe from any thread.

    :param notify: called whenever one of them has been settled
    """

    def __init__(self, notify: Callable[[], None] = _nothing) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._none_left = threading.Condition(self._lock)
        self._count = 0

    def add(
        self, delivery: Delivery, receipts: Sequence[Receipt], settle: Callable[[Delivery, Receipt | None], None]
    ) -> None:
        """Call ``settle(delivery, failed)`` once all of the receipts are settled; ``failed`` is one that was not
        confirmed, if there is one."""
        self.one_more()
        if len(receipts) == 1:  # the usual case: a reply
            receipt = receipts[0]
            receipt.when_settled(
                lambda: self._settled(delivery, receipt if receipt.error else None, settle), self._is_urgent(delivery)
            )
            return
        receipts = list(receipts)
        missing = len(receipts)

        def one_less() -> None:
            nonlocal missing
            with self._lock:
                missing -= 1
                if missing:
                    return
            failed = next((receipt for receipt in receipts if receipt.error is not None), None)
            self._settled(delivery, failed, settle)

        is_urgent = self._is_urgent(delivery)
        for receipt in receipts:
            receipt.when_settled(one_less, is_urgent)

    def _is_urgent(self, delivery: Delivery) -> bool:
        """Whether the broker may soon deliver no more until some of them are acknowledged."""
        return 0 < delivery.channel.prefetch <= 2 * self._count

    def _settled(
        self, delivery: Delivery, failed: Receipt | None, settle: Callable[[Delivery, Receipt | None], None]
    ) -> None:
        settle(delivery, failed)
        self.one_less()

    def one_more(self) -> None:
        """There is one that something else is waited for."""
        with self._lock:
            self._count += 1

    def one_less(self) -> None:
        """That has come to its end."""
        with self._lock:
            self._count -= 1
            if not self._count:
                self._none_left.notify_all()
        self._notify()

    def wait(self, timeout: float) -> bool:
        """Wait until there is none. Returns whether that is so within that many seconds."""
        with self._lock:
            return self._none_left.wait_for(lambda: not self._count, timeout)
