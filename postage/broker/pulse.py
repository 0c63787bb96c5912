"""The times of one connection: heartbeats (AMQP 0-9-1 section 4.2.7), and how long a step may take."""

from __future__ import annotations

import logging
from collections.abc import Callable

from postage.broker.clock import Clock, Timer
from postage.broker.output import Output

logger = logging.getLogger(__name__)

HEARTBEAT_FRAME = b'\x08\x00\x00\x00\x00\x00\x00\xce'


class Pulse:
    """One timer: for the step that a connection is in or, once that is open, for its heartbeats.

    :param peer: the client's name in logs
    :param is_excused: tells whether the client need not be heard, because it is not read
    :param lost: called when the client is silent for too long
    """

    def __init__(
        self, clock: Clock, peer: str, output: Output, is_excused: Callable[[], bool], lost: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._peer = peer
        self._output = output
        self._is_excused = is_excused
        self._lost = lost
        self._heard_at = clock.now()
        self._heartbeat = 0
        self._timer: Timer | None = None

    def heard(self) -> None:
        """Note that bytes have come."""
        self._heard_at = self._clock.now()

    def stop(self) -> None:
        """Call nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def limit(self, seconds: float, callback: Callable[[], None]) -> None:
        """Have something called after that time, unless another step begins before."""
        self.stop()
        self._timer = self._clock.call_later(seconds, callback)

    def beat_every(self, seconds: int) -> None:
        """Send heartbeats, and expect them, from now on; 0 for none."""
        self._heartbeat = seconds
        self.stop()
        if seconds:
            self.limit(seconds / 2, self._beat)

    def _beat(self) -> None:
        silence = self._clock.now() - self._heard_at
        if silence > 2 * self._heartbeat and not self._is_excused():
            logger.warning('%s: missed heartbeats for %d seconds', self._peer, silence)
            self._lost()
            return
        if not self._output.is_used:
            self._output.send(HEARTBEAT_FRAME)
        self._output.is_used = False
        self.limit(self._heartbeat / 2, self._beat)
