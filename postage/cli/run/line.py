"""What the supervisor and a worker say to each other: an object of JSON in each line, over a pair of sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

FAILED, CUT, SIGNALLED = 1, 3, 4
"""Exit statuses of a worker: a component could not be made, or ended by an exception; something was interrupted; it
ended in good order, by a signal that it got itself."""


class Line:
    """One end of it. Any thread may say something; one thread hears.

    :param end: its socket
    :ivar has_ended: whether no more can come
    """

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._buffer = b''
        self._lock = threading.Lock()
        self.has_ended = False

    def say(self, **message: Any) -> None:
        """Send a message. Where the other end has gone, nothing happens."""
        data = json.dumps(message, default=str).encode() + b'\n'
        with self._lock, contextlib.suppress(OSError):
            self.socket.sendall(data)

    def hear(self, wait: bool = True) -> list[dict[str, Any]]:
        """Return what is whole of that which has come; ``has_ended`` is set once no more can come.

        :param wait: whether to block where nothing has come
        """
        try:
            data = self.socket.recv(65536, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            data = b''
        if not data:
            self.has_ended = True
        *lines, self._buffer = (self._buffer + data).split(b'\n')
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Say and hear no more."""
        self.socket.close()
