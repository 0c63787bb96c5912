"""Objects that are known for as long as they live, to any thread."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar('T')


class Living(Generic[T]):
    """Objects that this alone does not keep alive. Any thread, without a lock.

    A ``WeakSet`` fails where one thread looks through it while another one adds something. Here each change of the
    dictionary, and the copy of what is in it, is one step of the interpreter.
    """

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[T]] = {}

    def add(self, one: T) -> None:
        """Know an object until it is discarded, or ends."""
        key = id(one)  # which no other object has before the callback of this one was called
        self._known[key] = weakref.ref(one, lambda _: self._known.pop(key, None))

    def discard(self, one: T) -> None:
        """Know it no more; does nothing where it is not known."""
        self._known.pop(id(one), None)

    def __iter__(self) -> Iterator[T]:
        """Those that are known now, in the order in which they came."""
        found = [known() for known in list(self._known.values())]
        return iter([one for one in found if one is not None])
