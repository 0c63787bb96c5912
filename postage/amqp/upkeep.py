"""Looks after what was declared and may go away without a word: exchanges, and the bindings to them.

When an exchange is deleted its bindings go with it, and the broker tells no consumer. A producer that declares the
exchange again would then publish to an exchange without bindings: confirmed, and never delivered. So whatever declares
a lost exchange again also restores the bindings to it that this process has made; and a connection that consumes looks
after its own bindings every :data:`CHECK_SECONDS`, so that one which is lost for another reason is missing no longer.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from postage import errors
from postage.amqp.channel import Host
from postage.amqp.control import bind, declare_exchange, logged, replay_exchanges
from postage.amqp.steps import Steps, done

logger = logging.getLogger('postage')

CHECK_SECONDS = 30.0  # between looks after the bindings of a connection that consumes
RESTORE_SECONDS = 5.0  # that a producer waits for the bindings to an exchange that it has declared again

_missing = re.compile(r"no exchange '(.+)' in vhost")


class Upkeep:
    """The declarations of one connection. For the I/O thread, but for :meth:`restore_bindings`.

    :param siblings: gives the upkeep of every connection of this process to the same broker
    """

    def __init__(self, connection: Host, siblings: Callable[[], Iterable[Upkeep]]) -> None:
        self._connection = connection
        self._siblings = siblings

    def begin(self) -> None:
        """Look after the bindings from now on."""
        self._connection.io.loop.call_later(CHECK_SECONDS, self._check)

    def _check(self) -> None:
        if not self._connection.standing.is_closed:
            if self._connection.standing.is_open:
                self._connection.tell(self._check_steps)
            self.begin()

    def _check_steps(self) -> Steps:
        control = self._connection.control
        for topology in self._connection.topologies:
            for name in list(topology.exchanges):
                try:
                    yield control.operate('exchange_declare', f'find exchange {name!r}', exchange=name, passive=True)
                except errors.NotFound:
                    _warn(name)
                    yield from self._restore_steps(name)
            for binding in list(topology.bindings):
                yield from bind(control, binding)  # which does nothing where it is there

    def restore_exchanges(self, error: errors.BrokerError) -> Steps:
        """Declare all exchanges again, after the broker has closed a channel with that error.

        Where one was missing, the bindings of this process to it are restored before this ends.
        """
        for topology in self._connection.topologies:
            yield from replay_exchanges(self._connection.control, topology)
        missing = _missing.search(str(error)) if isinstance(error, errors.NotFound) else None
        if missing is not None:
            name = missing.group(1)
            _warn(name)
            deadline = time.monotonic() + RESTORE_SECONDS
            for restored in [sibling.restore_bindings(name) for sibling in self._siblings()]:
                yield self._connection.io.settled_by(restored, deadline)

    def restore_bindings(self, exchange: str) -> Future[Any]:
        """Bind to an exchange again what was bound to it. From any thread; returns a future that is done after that."""
        if not self._connection.standing.is_open:
            return done()  # when it is open again, everything is declared and bound again
        restored: Future[Any] = Future()
        self._connection.tell(lambda: self._told_steps(exchange, restored))
        return restored

    def _told_steps(self, exchange: str, restored: Future[Any]) -> Steps:
        try:
            yield from self._restore_steps(exchange)
        finally:
            restored.set_result(None)

    def _restore_steps(self, exchange: str) -> Steps:
        """Declare an exchange again, and bind to it what was bound. At once: until that is done messages are lost."""
        control = self._connection.control
        for topology in self._connection.topologies:
            if exchange in topology.exchanges:
                yield from logged(declare_exchange(control, topology.exchanges[exchange]))
            for binding in [binding for binding in topology.bindings if binding.exchange == exchange]:
                yield from bind(control, binding)


def _warn(exchange: str) -> None:
    logger.warning(
        'exchange %r was gone, and all bindings to it: it is declared again, with the bindings of this process; '
        'those of other programs may be missing until these look after them',
        exchange,
    )
