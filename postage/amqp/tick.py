"""The tick: at which the I/O thread looks after what a busy thread may have left undone.

A thread that publishes or reads does much of what an I/O thread usually does, and may stop in the middle of it: a
handler runs long with messages gathered and not sent, or with the turn to read. While there is activity the I/O thread
looks every :data:`SECONDS`; one such look without activity, and with nothing to look after, is the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

SECONDS = 0.01  # between looks


class Loop(Protocol):
    """Of pika's loop, what this package uses beside its start and its end."""

    def add_callback_threadsafe(self, callback: Callable[[], Any]) -> None:
        """Call back on the I/O thread. Any thread."""

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Any:
        """Call back on the I/O thread after so many seconds. From the I/O thread."""

    def remove_timeout(self, timeout_handle: Any) -> None:
        """Undo :meth:`call_later`. From the I/O thread."""


class Tick:
    """The looks of one connection.

    A thread that is active writes ``tick.is_stirred = True`` and, where ``tick.is_ticking`` is false, calls
    :meth:`begin`. The order is safe: the I/O thread clears ``is_ticking`` first and looks at ``is_stirred`` after that,
    so that an activity which finds it ticking is seen by one more look.

    :param call_soon: calls back on the I/O thread, which it starts where it does not run; any thread
    :ivar is_stirred: whether there was activity since the last look
    :ivar is_ticking: whether there will be another look
    """

    def __init__(self, loop: Loop, call_soon: Callable[[Callable[[], Any]], None]) -> None:
        self._loop = loop
        self._call_soon = call_soon
        self._looks: list[Callable[[bool], bool]] = []
        self.is_stirred = self.is_ticking = False
        self._is_armed = False  # for the I/O thread only

    def add(self, look: Callable[[bool], bool]) -> None:
        """Have a look taken at each tick, on the I/O thread.

        :param look: gets whether there was activity since the last look; returns whether to go on looking
        """
        self._looks.append(look)

    def remove(self, look: Callable[[bool], bool]) -> None:
        """Undo :meth:`add`."""
        if look in self._looks:
            self._looks.remove(look)

    def stir(self) -> None:
        """Say that there is activity. Any thread; never blocks."""
        self.is_stirred = True
        if not self.is_ticking:
            self.begin()

    def begin(self) -> None:
        """Begin to look. Any thread; never blocks."""
        self.is_ticking = True
        self._call_soon(self._arm)

    def _arm(self) -> None:
        if not self._is_armed:  # two threads may begin at the same time
            self._is_armed = True
            self._loop.call_later(SECONDS, self._look)

    def _look(self) -> None:
        self._is_armed = False
        was_stirred, self.is_stirred = self.is_stirred, False
        goes_on = was_stirred
        try:
            for look in list(self._looks):
                goes_on = look(was_stirred) or goes_on
        finally:
            if goes_on:
                self._arm()
            else:
                self.is_ticking = False
                if self.is_stirred:
                    self.begin()
