"""What a forked child does before anything else: it shares no connection, lock or thread with its parent.

One hook for all, so that the order is stated here and does not hang on the order of imports.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable


class Stage(enum.IntEnum):
    """The order in which a forked child starts over."""

    LOCKS = 1  # held perhaps by a thread that the child does not have; what follows takes them
    THREAD = 2  # what is known of the present thread: no batch in hand, nothing being read
    ALARMS = 3  # which connections register with
    CONNECTIONS = 4  # closed without a word to the broker, and opened again at their first use


_callbacks: list[tuple[Stage, Callable[[], None]]] = []


def call_in_child(stage: Stage, callback: Callable[[], None]) -> None:
    """Have a forked child call this, at that stage. For modules, as they are imported."""
    _callbacks.append((stage, callback))
    _callbacks.sort(key=lambda registered: registered[0])  # stable: within a stage in the order of registration


def _after_fork_in_child() -> None:
    for _, callback in _callbacks:
        callback()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork_in_child)
