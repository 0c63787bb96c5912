"""What a connection is at, and what waits for it to be open."""

from __future__ import annotations

import enum
import logging
import time
from concurrent.futures import Future
from typing import Any

from postage import errors
from postage.printable import printable
from postage.sparingly import Sparingly


class State(enum.Enum):
    """What a connection is at. The I/O thread alone changes it, but for the step out of NEW."""

    NEW = 'no thread runs for it'
    CONNECTING = 'attempts are made'
    RESTORING = 'connected; what was on it is declared and opened again'
    OPEN = 'connected, with everything on it'
    REFUSED = 'no attempt can succeed; says why in `error`'
    CLOSING = 'says farewell'
    CLOSED = 'for good'


class Standing:
    """The state of one connection.

    ::

        NEW ──▶ CONNECTING ──▶ RESTORING ──▶ OPEN
                  │    ▲           │          │
          refused │    └─── lost ──┴──────────┘
                  ▼
               REFUSED             from any state, after close(): CLOSING ──▶ CLOSED

    Other threads may look at it: each look is at one field, and old by the time it is acted upon, as any look at a
    connection is. What has to be sure has the I/O thread look, and act.

    :param where: what the connection leads to, for the errors
    :ivar state: what it is at
    :ivar error: what no attempt can cure, in state REFUSED
    :ivar opened_at: since when it is open, or was last, as ``time.time()`` has it; ``None`` before that
    :ivar lost_at: since when it is not open, or was not last, on the same clock
    :ivar reconnects: how often it was open again after a loss
    :ivar blocked_at: since when the broker takes no messages on it, as it has said; ``None`` where it does
    """

    def __init__(self, where: object) -> None:
        self._where = where
        self.state = State.NEW
        self.error: errors.BrokerError | None = None
        self.opened_at: float | None = None
        self.blocked_at: float | None = None
        self.lost_at = time.time()
        self.reconnects = 0
        self._waiting: list[Future[Any]] = []
        self._sparingly = Sparingly()

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed for good."""
        return self.state in (State.CLOSING, State.CLOSED)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection at the moment, with everything on it restored."""
        return self.state is State.OPEN

    def closed(self) -> errors.Closed:
        """The error for what needs a connection that has been closed."""
        return errors.Closed(f'the connection to {self._where} is closed')

    def enter(self, state: State, error: errors.BrokerError | None = None) -> None:
        """Be in another state, and tell what waits for the connection. On the I/O thread.

        :param error: what no attempt can cure
        """
        self.error = error or self.error  # first, for a thread that finds it refused asks why
        if state is State.OPEN:
            self.reconnects += self.opened_at is not None
            self.opened_at = time.time()
        elif state is State.CONNECTING:
            self.blocked_at, self.lost_at = None, time.time()
        self.state = state
        failed = self.closed() if state is State.CLOSING else self.error
        if state is State.OPEN or failed is not None:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if failed is not None:
                    future.set_exception(failed.again())
                else:
                    future.set_result(None)

    def block(self, reason: str) -> None:
        """The broker has said that it takes no messages, and why. On the I/O thread."""
        self.blocked_at = self.blocked_at or time.time()
        text = 'the broker at %s takes no messages at present: %s'
        self._sparingly.log(logging.WARNING, text, self._where, printable(reason, 200))

    def unblock(self) -> None:
        """The broker has said that it takes messages again. On the I/O thread."""
        self.blocked_at = None
        self._sparingly.log(logging.INFO, 'the broker at %s takes messages again', self._where)

    def when_open(self) -> Future[Any]:
        """A future that is done once there is a connection with everything on it restored. On the I/O thread."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        if self.error is not None:
            future.set_exception(self.error.again())
        elif self.is_closed:
            future.set_exception(self.closed())
        elif self.is_open:
            future.set_result(None)
        else:
            self._waiting.append(future)
        return future
