"""What producers and consumers have in common: a connection, taken by the constructor and given back by ``close``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar

from postage import errors
from postage.amqp.connection import Connection, Role
from postage.amqp.registry import acquire, release
from postage.amqp.topology import Topology
from postage.messaging.encoders import Encoding
from postage.messaging.signing import Signatures
from postage.program import global_hup, program_settings
from postage.secret import Secret, revealed
from postage.settings import Hup, apply_debug_mode, broker_settings, debug_mode

C = TypeVar('C', bound='Connected')


class Connected(Encoding):
    """Holds a connection that it shares with others of the process, and what it declared there.

    The constructor reads the settings; those of its subclasses connect, in ``with self._connecting(…)``.

    :raises errors.ConfigurationError: a setting has the wrong shape
    :ivar topology: what it has declared
    """

    hup: Hup | None = global_hup
    vhost: str | None = None
    signing_keys: Any = None

    def __init__(self, hup: Hup | None, vhost: str | None) -> None:
        hup = Secret.of(hup)
        super().__init__()
        program = program_settings()
        apply_debug_mode(debug_mode(program))
        class_hup = (
            None if self.hup is global_hup else Secret.of(self.hup)
        )  # what the program set there is in its settings
        self._settings = broker_settings(hup, vhost, class_hup=class_hup, class_vhost=self.vhost, program=program)
        if hup is not None:
            self.hup = revealed(hup)
        self.vhost = self._settings.vhost
        # None where there are no keys: what is not signed pays for no more than a look at that.
        self._signatures = Signatures(f'{type(self).__name__}.signing_keys', self.signing_keys) or None
        self.topology = Topology()
        self._closed = False

    @contextmanager
    def _connecting(self, role: Role) -> Generator[None, None, None]:
        """Connect, and give the connection back where the rest of the constructor, the body of the ``with``, fails.

        :param role: which of the two connections to that broker
        :raises errors.BrokerError: as ``acquire`` does; it blocks until there is a connection
        """
        self._connection = acquire(self._settings, role)
        try:
            self._connection.topologies.add(self.topology)
            yield
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        self._closed = True
        self._connection.topologies.discard(self.topology)
        release(self._connection)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Closed(f'this {type(self).__name__} is closed')

    def close(self) -> None:
        """Give the connection back; the last to do so closes it. Blocks; does nothing the second time."""
        if not self._closed:
            self._give_back()

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def conn_broker(self) -> Connection:
        """The connection it works on, which others may share."""
        return self._connection
