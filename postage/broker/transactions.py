"""What a transactional channel holds back until ``Tx.Commit`` (AMQP 0-9-1 section 1.9)."""

from __future__ import annotations

from collections.abc import Callable

from postage.broker.replies import PRECONDITION_FAILED, Refusal


class Transactions:
    """The transaction that is under way on a channel, if the channel has them.

    :ivar is_selected: True from ``Tx.Select`` on
    """

    def __init__(self) -> None:
        self.is_selected = False
        self._publishes: list[Callable[[], None]] = []
        self._settlements: list[Callable[[], None]] = []
        self._undo: list[Callable[[], None]] = []

    def publish_later(self, work: Callable[[], None]) -> None:
        """Hold back what hands a message over."""
        self._publishes.append(work)

    def settle_later(self, work: Callable[[], None], undo: Callable[[], None]) -> None:
        """Hold back what settles deliveries.

        :param undo: makes them unsettled again
        """
        self._settlements.append(work)
        self._undo.append(undo)

    def commit(self) -> None:
        """Do what was held back, messages before settlements, and begin anew.

        :raises Refusal: 406, where the channel has no transactions
        """
        for work in (*self._end(self._publishes), *self._end(self._settlements)):
            work()
        self._undo.clear()

    def roll_back(self) -> None:
        """Forget the messages; the deliveries that were settled are unsettled again.

        :raises Refusal: 406, where the channel has no transactions
        """
        self._end(self._publishes)
        self.undo()

    def undo(self) -> None:
        """Make unsettled again what was to be settled, and forget the messages, as the channel comes to its end."""
        self._publishes.clear()
        self._settlements.clear()
        for undo in self._undo:
            undo()
        self._undo.clear()

    def _end(self, works: list[Callable[[], None]]) -> list[Callable[[], None]]:
        if not self.is_selected:
            raise Refusal(PRECONDITION_FAILED, 'channel is not transactional')
        ended = works[:]
        works.clear()
        return ended
