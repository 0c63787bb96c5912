"""Connections that lead nowhere: what a program would declare and send is noted, and nothing reaches a broker.

``postage doctor`` makes a program's components this way to learn what they are, and ``test_client()`` runs a
processor so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, NamedTuple, NoReturn

import pika.frame
import pika.spec

from postage import errors
from postage.amqp.channel import Channel
from postage.amqp.connection import OPERATION_TIMEOUT, Connection, Role
from postage.amqp.control import ControlChannel
from postage.amqp.publishing import Outgoing, PublishingChannel
from postage.amqp.registry import diverted
from postage.amqp.steps import Drive, Steps, done, no_steps
from postage.amqp.topology import Topologies, Topology
from postage.settings import BrokerSettings


class Operation(NamedTuple):
    """One of pika's channel methods, as it was called."""

    method: str
    arguments: dict[str, Any]


class RecordingConnection(Connection):
    """Stands for a connection. Every operation on it succeeds at once.

    :ivar recorded: the topologies of all that were made on it, closed ones included
    :ivar operations: what was done, in order
    :ivar published: what was sent, in order
    """

    def __init__(self, settings: BrokerSettings, role: Role, published: list[Outgoing]) -> None:
        super().__init__(settings, role)
        self.published = published
        self.recorded: list[Topology] = []
        self.operations: list[Operation] = []
        self.topologies = _Kept(self.recorded)
        self.rpc_client = _NoCalls()
        self._recording_control = _RecordingControl(self)

    @property
    def control(self) -> ControlChannel:
        """Notes what is declared."""
        return self._recording_control

    def open(self, timeout: float) -> None:
        """It is open."""

    def awaited(self) -> contextlib.AbstractContextManager[None]:
        """There is nothing to wait for."""
        return contextlib.nullcontext()

    def ask(self, steps: Callable[[], Steps], timeout: float = OPERATION_TIMEOUT, when_open: bool = True) -> Any:
        """Take steps, in this thread."""
        return Drive(steps()).outcome.result()

    def tell(self, work: Callable[[], Steps | None]) -> None:
        """What is only told concerns deliveries, of which there are none."""

    def add_channel(self, channel: Channel) -> None:
        """Have what is done on a channel noted as well."""
        for name, method in (('ensure_open_steps', no_steps), ('operate', self._recording_control.operate)):
            setattr(channel, name, method)

    def publisher(self, confirms: bool) -> PublishingChannel:
        """A channel that notes what is published, which counts as confirmed."""
        return self.publishers.setdefault(confirms, _NotingChannel(self, confirms, self.published))


class Recording:
    """What is noted in place of being done. Not for use beside threads that connect.

    :ivar connections: those that were asked for meanwhile
    :ivar published: what was sent on any of them, in order
    """

    def __init__(self) -> None:
        self.connections: list[RecordingConnection] = []
        self.published: list[Outgoing] = []

    def here(self) -> contextlib.AbstractContextManager[None]:
        """For the length of a ``with``, have all connections of this process noted instead of made.

        What was made in it stays without a broker.
        """
        return diverted(self._connect)

    def close(self) -> None:
        """Give back what the connections hold."""
        for connection in self.connections:
            connection.close()

    def _connect(self, settings: BrokerSettings, role: Role) -> Connection:
        for known in self.connections:
            if (known.settings, known.role) == (settings, role):
                return known
        connection = RecordingConnection(settings, role, self.published)
        connection.users = 1  # so that no release closes it
        self.connections.append(connection)
        return connection


@contextlib.contextmanager
def recording() -> Generator[list[RecordingConnection], None, None]:
    """A :class:`Recording` for the length of a ``with``; what it gives are its connections."""
    noted = Recording()
    try:
        with noted.here():
            yield noted.connections
    finally:
        noted.close()


class _Kept(Topologies):
    """Topologies that outlive what declared them."""

    def __init__(self, kept: list[Topology]) -> None:
        super().__init__()
        self._kept = kept

    def add(self, topology: Topology) -> None:
        self._kept.append(topology)
        super().add(topology)


class _RecordingControl(ControlChannel):
    def __init__(self, connection: RecordingConnection) -> None:
        super().__init__(connection)
        self._connection = connection

    def operate(self, method: str, doing: str = '', generation: int | None = None, **arguments: Any) -> Future[Any]:
        self._connection.operations.append(Operation(method, arguments))
        return done(_answer(method, arguments))


def _answer(method: str, arguments: dict[str, Any]) -> Any:
    """What a broker would say to it that has nothing in its queues."""
    if method == 'basic_get':
        return None, None, None
    answer: Any = None
    if method == 'queue_declare':
        answer = pika.spec.Queue.DeclareOk(arguments.get('queue') or 'amq.gen-recorded', 0, 0)  # type: ignore[no-untyped-call]
    elif method in ('queue_delete', 'queue_purge'):
        answer = pika.spec.Queue.PurgeOk(0)  # type: ignore[no-untyped-call]
    return pika.frame.Method(0, answer)


class _NotingChannel(PublishingChannel):
    def __init__(self, connection: Connection, confirms: bool, published: list[Outgoing]) -> None:
        super().__init__(connection, confirms)
        self._published = published

    def publish(self, outgoing: Outgoing, timeout: float) -> None:
        self._published.append(outgoing)
        if outgoing.receipt is not None:
            outgoing.receipt.unsettled -= 1  # done with; no other thread knows it yet


class _NoCalls:
    """In place of the client of RPC calls."""

    late_replies = 0

    def call(self, call: Any) -> NoReturn:
        """There is no component that could answer a request."""
        raise errors.ConfigurationError(
            f'RPC {call.name!r} cannot be answered: there is no broker, and what is declared and sent is only recorded'
        )

    def abandon(self, correlation_id: str) -> None:
        """There are none."""

    def end_calls(self, error: errors.PostageError, owner: object = None) -> None:
        """There are none."""
