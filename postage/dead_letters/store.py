"""What the stores have in common: how their letters are numbered, chosen, grouped and handed out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

from postage import errors
from postage.messaging.letters import DeadLetter
from postage.printable import printable

GroupBy = Literal['exception', 'queue', 'reason', 'routing_key']
EDITABLE = ('body', 'properties', 'queue', 'exchange', 'routing_key')
"""The fields of a letter that may be changed: what is sent, and where to."""


@dataclass(frozen=True)
class StoredLetter:
    """A letter with its place in a store.

    :ivar id: its number there, as text
    :ivar replay_begun_at: when a replay took it out that did not come to its end, as ``time.time()`` has it: it may
        have been sent
    """

    id: str
    letter: DeadLetter
    replay_begun_at: float | None = None


@dataclass(frozen=True)
class Selection:
    """Which letters of a store are meant; by default all. Those that fit every condition.

    :ivar ids: those with these numbers
    :ivar exception: those of this exception, by its full name or the last part of it
    :ivar queue: those from this queue
    :ivar reason: those given up for this reason
    :ivar message_id: those of the message with this id
    """

    ids: tuple[str, ...] = ()
    exception: str | None = None
    queue: str | None = None
    reason: str | None = None
    message_id: str | None = None

    def __contains__(self, stored: object) -> bool:
        if not isinstance(stored, StoredLetter):
            return False
        letter = stored.letter
        return (
            (not self.ids or stored.id in self.ids)
            and (self.exception is None or f'.{letter.exception}'.endswith(f'.{self.exception}'))
            and (self.queue is None or letter.queue == self.queue)
            and (self.reason is None or letter.reason == self.reason)
            and (self.message_id is None or letter.message_id == self.message_id)
        )


ALL = Selection()


@dataclass(frozen=True)
class Group:
    """Letters that have something in common."""

    value: str
    count: int
    first_died_at: float
    last_died_at: float


class Handout(ABC):
    """Letters that are taken out of a store one by one. What is not settled stays there."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[list[StoredLetter]]:
        """Give them out, oldest first, in batches of that size at most."""

    @abstractmethod
    def settle(self, letters: list[StoredLetter]) -> None:
        """These have been sent: take them out of the store."""

    def put_back(self, letters: list[StoredLetter]) -> None:  # noqa: B027 - not every store notes what it gave out
        """These have certainly not been sent: it is as if they had not been given out."""


class DeadLetters(ABC):
    """A store of dead letters. Its methods block, and may be called from any thread.

    :raises errors.StoreError: by each of them, where the store cannot do it
    """

    @abstractmethod
    def put(self, letter: DeadLetter) -> str:
        """Take a letter over. It is safe when this returns. Returns where it lies, in words."""

    @abstractmethod
    def letters(self, selection: Selection = ALL, limit: int | None = None) -> Iterator[StoredLetter]:
        """The letters, oldest first."""

    @abstractmethod
    def delete(self, selection: Selection = ALL) -> int:
        """Delete letters. Returns how many."""

    @abstractmethod
    def edit(self, id: str, **changes: Any) -> StoredLetter:
        """Change a letter: its body, its properties, or where it goes.

        :param changes: fields of :data:`EDITABLE`
        :return: the letter as it is now
        :raises errors.NoSuchLetter: there is none of that number
        """

    @abstractmethod
    def hand_out(self, selection: Selection = ALL) -> AbstractContextManager[Handout]:
        """Take letters out one by one. Whatever ends the ``with``, what was not settled is still in the store."""

    def close(self) -> None:  # noqa: B027 - not every store holds something open
        """Give back what it holds open. It opens that again where it is used after all."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def count(self, selection: Selection = ALL) -> int:
        """How many letters there are."""
        return sum(1 for _ in self.letters(selection))

    def get(self, id: str) -> StoredLetter:
        """One letter.

        :raises errors.NoSuchLetter: there is none of that number
        """
        found = list(self.letters(Selection(ids=(id,)), limit=1))
        if not found:
            raise self.no_such_letter(id)
        return found[0]

    def groups(self, by: GroupBy = 'exception', selection: Selection = ALL) -> list[Group]:
        """The letters counted by what they have in common, the most frequent first."""
        groups: dict[str, Group] = {}
        for stored in self.letters(selection):
            value, at = str(getattr(stored.letter, by)), stored.letter.died_at
            known = groups.get(value, Group(value, 0, at, at))
            groups[value] = Group(value, known.count + 1, min(known.first_died_at, at), max(known.last_died_at, at))
        return sorted(groups.values(), key=lambda group: (-group.count, group.value))

    def no_such_letter(self, id: str) -> errors.NoSuchLetter:
        """The error for a number that the store does not have."""
        return errors.NoSuchLetter(f'{self} has no letter {printable(id, 80)}')


def edited(letter: DeadLetter, changes: Mapping[str, Any]) -> DeadLetter:
    """A letter with some of its fields changed.

    :raises TypeError: one of them may not be changed
    """
    unknown = sorted(set(changes) - set(EDITABLE))
    if unknown:
        raise TypeError(f'of a letter one can change {", ".join(EDITABLE)}, not {", ".join(unknown)}')
    return replace(letter, **changes)
