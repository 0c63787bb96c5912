"""What a test may not leave behind: threads of Postage and child processes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from support.rabbitmq_node import RabbitMQNode

PATIENCE = 5.0
"""Seconds that threads and processes on their way out are given."""


def postage_threads() -> set[threading.Thread]:
    """Return the living threads of this process that Postage started."""
    return {thread for thread in threading.enumerate() if thread.name.startswith('postage')}


def child_processes() -> set[int]:
    """Return the ids of this process's children, the RabbitMQ nodes of the tests excepted.

    Linux only; elsewhere the set is empty.
    """
    tasks = Path(f'/proc/{os.getpid()}/task')
    children: set[int] = set()
    for task in tasks.glob('*/children'):
        try:
            children.update(int(pid) for pid in task.read_text().split())
        except OSError:  # the thread has ended meanwhile
            continue
    return children - RabbitMQNode.running


def leftovers(threads_before: set[threading.Thread], children_before: set[int]) -> list[str]:
    """Name what has come since and does not go away within :data:`PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    for thread in postage_threads() - threads_before:
        thread.join(max(0.0, deadline - time.monotonic()))
    threads = [f'thread {thread.name}' for thread in postage_threads() - threads_before]
    children = [f'process {command_of(pid)}' for pid in child_processes() - children_before]
    return threads + children


def command_of(pid: int) -> str:
    """Return the command line of a process, to name it by."""
    try:
        words = Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
    except OSError:
        words = []
    return f'{pid} {b" ".join(words).decode(errors="replace")}'.strip()
