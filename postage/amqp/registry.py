"""The connections of this process: one that publishes and one that consumes for each broker and credentials.

Under a memory alarm the broker stops reading connections that publish, and acknowledgements must not stop with them
(https://www.rabbitmq.com/docs/alarms). :func:`acquire` hands the connections out, and counts their holders.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator

from postage import errors
from postage.amqp.connection import CLOSE_TIMEOUT, Connection, Role
from postage.amqp.forks import Stage, call_in_child
from postage.settings import BrokerSettings

logger = logging.getLogger('postage')

_lock = threading.RLock()
_shared: dict[tuple[BrokerSettings, Role], Connection] = {}
_diverted: Callable[[BrokerSettings, Role], Connection] | None = None


def acquire(settings: BrokerSettings, role: Role) -> Connection:
    """The connection of this process to that broker, opened if it is the first use. Blocks; any thread.

    :raises errors.AuthenticationFailed, errors.VirtualHostRefused: at once
    :raises errors.BrokerUnavailable: after ``settings.connect_timeout`` seconds
    """
    with _lock:
        if _diverted is not None:
            diverted_to = _diverted(settings, role)
            diverted_to.users += 1
            return diverted_to
        connection = _shared.get((settings, role))
        if connection is None or connection.standing.error is not None or connection.is_closed:
            connection = _shared[settings, role] = Connection(settings, role, lambda: _with(settings))
        connection.users += 1
    try:
        connection.open(settings.connect_timeout)
    except BaseException:
        release(connection)
        raise
    return connection


@contextlib.contextmanager
def diverted(connect: Callable[[BrokerSettings, Role], Connection]) -> Generator[None, None, None]:
    """For the length of a ``with``, have :func:`acquire` give what ``connect(settings, role)`` returns, open or not."""
    global _diverted
    with _lock:
        _diverted, before = connect, _diverted
    try:
        yield
    finally:
        with _lock:
            _diverted = before


def _with(settings: BrokerSettings) -> list[Connection]:
    with _lock:
        return [connection for (its_settings, _), connection in _shared.items() if its_settings == settings]


def connections() -> list[Connection]:
    """Those that are open, or are to be. Any thread."""
    with _lock:
        return list(_shared.values())


def release(connection: Connection) -> None:
    """Give back what :func:`acquire` gave. The last one to do so closes the connection. Blocks; any thread."""
    with _lock:
        connection.users -= 1
        if connection.users > 0:
            return
        key = (connection.settings, connection.role)
        if _shared.get(key) is connection:
            del _shared[key]
    connection.close()


def flush_all(timeout: float = CLOSE_TIMEOUT) -> bool:
    """Wait until everything that this process published is confirmed. Blocks. Returns whether that is so in time."""
    deadline = time.monotonic() + timeout
    with _lock:
        publishers = [channel for connection in _shared.values() for channel in connection.publishers.values()]
    done = [channel.is_empty(max(0.0, deadline - time.monotonic())) for channel in publishers]
    if not all(done):
        logger.error('not all messages were confirmed within %g s', timeout)
    return all(done)


def close_all(timeout: float = CLOSE_TIMEOUT) -> None:
    """Send what is pending on every connection and close it: the normal end of a program, bounded.

    RPC calls that are under way end, and their responders are told.
    """
    with _lock:
        # Those that publish come first: acknowledgements wait for what their handlers published.
        connections = sorted(_shared.values(), key=lambda connection: connection.role, reverse=True)
        _shared.clear()
    deadline = time.monotonic() + timeout
    for connection in connections:
        if connection.rpc_client is not None:
            connection.rpc_client.end_calls(errors.Closed('the program ends'))
    for connection in connections:
        connection.close(max(0.5, deadline - time.monotonic()))


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


atexit.register(close_all)
call_in_child(Stage.LOCKS, _after_fork_in_child)
