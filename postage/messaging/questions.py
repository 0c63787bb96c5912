"""What a component says of itself: ``info``, ``stats`` and ``stacks``. Any thread; nothing here blocks."""

from __future__ import annotations

import inspect
import platform
import sys
import threading
import time
import traceback
from typing import Any

from postage import __version__
from postage.amqp.connection import Connection
from postage.messaging.counting import Figures
from postage.messaging.handlers import Entry, HandlerTable
from postage.messaging.roles import Host
from postage.microthreads.inspection import line_of, where_they_are


def identity(host: Host) -> dict[str, Any]:
    """Who it is: its fingerprint, and what it is made of."""
    return {
        'fingerprint': host.fingerprint,
        'version': None if host.version is None else str(host.version),
        'postage': __version__,
        'python': platform.python_version(),
        'class': f'{type(host).__module__}.{type(host).__qualname__}',
    }


def info(host: Host, table: HandlerTable) -> dict[str, Any]:
    """What it is: queues with their keys, handlers, and what becomes of messages that they fail."""
    return {
        **identity(host),
        'groups': list(getattr(host, 'groups', ())),
        'queues': _queues(host.consumer.topology),
        'handlers': [_handler(entry) for entry in table.entries],
        'concurrency': host.concurrency,
        'timeout': host.timeout,
        'max_deliveries': host.max_deliveries,
        'dead_letters': None if host.dead_letters is None else repr(host.dead_letters),
    }


def _queues(topology: Any) -> list[dict[str, Any]]:
    return [
        {
            'name': queue.name,
            'keys': [
                {'exchange': binding.exchange, 'key': binding.routing_key}
                for binding in list(topology.bindings)
                if binding.queue == queue.name
            ],
            'flags': {key: value for key, value in queue.flags.items() if key != 'arguments'},
            'arguments': dict(queue.arguments),
        }
        for queue in list(topology.queues.values())
    ]


def _handler(entry: Entry) -> dict[str, Any]:
    doc = (inspect.getdoc(entry.call) or '').strip()
    return {
        'handler': entry.label,
        'category': entry.data.category,
        'type': entry.data.type,
        'name': entry.data.name,
        'doc': doc.splitlines()[0] if doc else '',
        'runs_as': entry.colour.value,
        'is_built_in': entry.is_built_in,
        'timeout': entry.timeout,
        'retries': [
            {
                'exceptions': [exception.__name__ for exception in retry.exceptions],
                'delays': list(retry.delays),
                'jitter': retry.jitter,
            }
            for retry in entry.retries
        ],
    }


def stats(host: Host, table: HandlerTable, figures: Figures, started_at: float) -> dict[str, Any]:
    """How it is: what it has counted, and its connections.

    :param started_at: when it began to consume, as ``time.time()`` has it
    """
    return {
        **identity(host),
        'started_at': round(started_at, 3),
        'uptime': round(time.time() - started_at, 3),
        'paused': host.is_paused,
        'messages': figures.as_dict(),
        'handlers': {
            entry.label: entry.figures.as_dict()
            for entry in table.entries
            if entry.figures.total or entry.figures.begun_at or not entry.is_built_in
        },
        'connections': [connection_figures(connection) for connection in host.consumer.connections],
    }


def connection_figures(connection: Connection) -> dict[str, Any]:
    """How a connection is."""
    standing = connection.standing
    opened_at, blocked_at = standing.opened_at, standing.blocked_at
    return {
        'role': connection.role,
        'broker': str(connection.settings),
        'is_open': standing.is_open,
        'up_since': round(opened_at, 3) if opened_at is not None and standing.is_open else None,
        'reconnects': standing.reconnects,
        'blocked_since': None if blocked_at is None else round(blocked_at, 3),
        'unconfirmed': connection.unconfirmed,
    }


def stacks(host: Host) -> dict[str, Any]:
    """Where it is: the stack of each thread, and what each microthread waits for."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads = [
        {
            'thread': names.get(ident, str(ident)),
            'stack': [line_of(entry.filename, entry.lineno or 0, entry.name) for entry in traceback.extract_stack(at)],
        }
        for ident, at in sys._current_frames().items()
    ]
    scheduler = host.scheduler
    return {
        'fingerprint': host.fingerprint,
        'threads': threads,
        'microthreads': [] if scheduler is None else where_they_are(scheduler),
    }
