"""What producers and consumers have in common: a connection, taken by the constructor and given back by ``close``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar

from postage import errors
from postage.amqp.connection import Connection, Role
from postage.amqp.registry import acquire, release
from postage.amqp.topology import Topology
from postage.messaging.encoders import JsonEncoder
from postage.messaging.program import program_settings
from postage.settings import apply_debug_mode, broker_settings, debug_mode


class Connected:
    """Holds a connection that it shares with others of the process, and what it declared there.

    The constructor reads the settings; those of its subclasses connect, in ``with self._connecting(…)``.

    :param hup: which broker: ``{'host': …, 'user': …, 'password': …}``, or an AMQP URL
    :param vhost: which virtual host of it
    :raises errors.ConfigurationError: a setting has the wrong shape
    """

    encoder_class: ClassVar[Any] = JsonEncoder
    hup: Any = None
    vhost: str | None = None

    def __init__(self, hup: Any, vhost: str | None) -> None:
        program = program_settings()
        apply_debug_mode(debug_mode(program))
        cls = type(self)
        self._settings = broker_settings(hup, vhost, class_hup=cls.hup, class_vhost=cls.vhost, program=program)
        self.vhost = self._settings.vhost
        self.encoder = self.encoder_class()
        self._topology = Topology()
        self._closed = False

    @contextmanager
    def _connecting(self, role: Role) -> Generator[None, None, None]:
        """Connect, and give the connection back where the rest of the constructor, the body of the ``with``, fails.

        :param role: which of the two connections to that broker
        :raises errors.BrokerError: as ``acquire`` does; it blocks until there is a connection
        """
        self._connection = acquire(self._settings, role)
        try:
            self._connection.topologies.add(self._topology)
            yield
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        self._closed = True
        self._connection.topologies.discard(self._topology)
        release(self._connection)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Closed(f'this {type(self).__name__} is closed')

    def encode(self, body: Any) -> bytes:
        """Encode a message's body.

        :raises errors.EncodingError: where it cannot be encoded; a user's own encoder may raise something else
        """
        encoded = self.encoder.encode(body)
        if isinstance(encoded, bytes):
            return encoded
        if isinstance(encoded, str):
            return encoded.encode('utf-8')
        if isinstance(encoded, (bytearray, memoryview)):
            return bytes(encoded)
        raise errors.EncodingError(
            f'{type(self.encoder).__name__}.encode() must return bytes or text, not {type(encoded).__name__}'
        )

    def close(self) -> None:
        """Give the connection back; the last to do so closes it. Blocks; does nothing the second time."""
        if not self._closed:
            self._give_back()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def conn_broker(self) -> Connection:
        """The connection it works on, which others may share."""
        return self._connection
