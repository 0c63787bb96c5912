"""Free ports on the loopback interface."""

from __future__ import annotations

import contextlib
import socket


def free_ports(number: int) -> list[int]:
    """Return that many different TCP ports which were free on 127.0.0.1 a moment ago."""
    with contextlib.ExitStack() as stack:
        # All are held open at once, or the system could hand out the same one twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        return [each.getsockname()[1] for each in sockets]
