"""Ports for servers that are to listen where a test says."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

LOWEST = 10_000
GIVEN_OUT = Path('/proc/sys/net/ipv4/ip_local_port_range')
"""From which and to which the system gives ports to those that connect, Linux only."""


def free_ports(number: int) -> list[int]:
    """Return that many different TCP ports which were free on 127.0.0.1 a moment ago.

    They are none of those that the system gives out, so no connection takes one before its server listens; and they are
    drawn, so that tests that run side by side take others. Draws that a test seeds stay the same.
    """
    draw = random.SystemRandom()
    highest = int(GIVEN_OUT.read_text().split()[0]) if GIVEN_OUT.exists() else 32_768
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < number:
            port = draw.randrange(LOWEST, highest) if highest > LOWEST + 1000 else 0
            # Held open until all are found, so that none is found twice.
            held = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                held.bind(('127.0.0.1', port))
                found.append(held.getsockname()[1])
        return found
