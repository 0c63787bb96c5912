"""What pika's codec makes of methods and messages, for tests to compare with."""

from __future__ import annotations

from typing import Any

import pika
import pika.frame
from hypothesis import settings

# The same examples in every run; a failing one is printed with what reproduces it.
PROFILE = settings(derandomize=True, print_blob=True, deadline=None, max_examples=100, database=None)

FRAME_MAX = 4096


def by_pika(channel: int, *methods: Any) -> bytes:
    """The frames of methods."""
    return b''.join(pika.frame.Method(channel, method).marshal() for method in methods)


def content_by_pika(channel: int, body: bytes, properties: Any = None, room: int = FRAME_MAX - 8) -> bytes:
    """The header and the body frames of a message."""
    header = pika.frame.Header(channel, len(body), properties or pika.BasicProperties()).marshal()
    pieces = [body[start : start + room] for start in range(0, len(body), room)]
    return header + b''.join(pika.frame.Body(channel, piece).marshal() for piece in pieces)
