"""What a connection has still to send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from postage.broker.limits import Tally

# Unsent bytes at which no more messages are delivered, at which they are again, and at which reading stops.
_FULL: Final = 512 * 1024
_ROOM: Final = 128 * 1024
_STUCK: Final = 2 * 1024 * 1024


class Output:
    """Bytes for the client, until they have left.

    :param begins: called when there is something to send where there was nothing
    :param cut: called when the connection is to end without a word, see :meth:`cut_after`
    :param memory: counts the bytes, too
    :ivar has_room: False while too much is unsent
    :ivar is_used: True where something was sent since a heartbeat looked last
    :ivar unsent: how many bytes the client has still to take
    """

    def __init__(self, begins: Callable[[], None], cut: Callable[[], None], memory: Tally) -> None:
        self.has_room = True
        self.is_used = False
        self.unsent = 0
        self._begins = begins
        self._cut = cut
        self._memory = memory
        self._pieces: list[bytes] = []
        self._cut_after: int | None = None

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def send(self, frames: bytes) -> None:
        """Queue bytes."""
        if not self._pieces:
            self._begins()
        self._pieces.append(frames)
        self.unsent += len(frames)
        self._memory.count += len(frames)
        self.is_used = True
        if self.unsent > _FULL:
            self.has_room = False

    def take(self) -> bytes:
        """Return and forget the bytes that are to be sent."""
        joined = self._pieces[0] if len(self._pieces) == 1 else b''.join(self._pieces)
        self._pieces.clear()
        if self._cut_after is None:
            return joined
        kept = joined[: self._cut_after]
        self._cut_after -= len(kept)
        if self._cut_after == 0:
            self._cut()
        return kept

    def cut_after(self, count: int) -> None:
        """Send so many bytes more, in the middle of a frame or not, and then hang up. A fault that tests ask for."""
        self._cut_after = count
        if count == 0:
            self._cut()

    def sent(self, count: int) -> bool:
        """Hear how many bytes have left, and tell whether there is room again where there was none."""
        count = min(count, self.unsent)
        self.unsent -= count
        self._memory.count -= count
        if self.has_room or self.unsent > _ROOM:
            return False
        self.has_room = True
        return True

    @property
    def is_stuck(self) -> bool:
        """True while the client takes so little that it must not be read."""
        return self.unsent >= _STUCK

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._memory.count -= self.unsent
        self.unsent = 0
