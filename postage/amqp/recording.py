"""Connections that lead nowhere: what a program would declare is noted, and nothing reaches a broker.

``postage doctor`` makes a program's components this way to learn what they are.
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
from postage.amqp.steps import Steps, done, drive
from postage.amqp.topology import Topologies, Topology
from postage.settings import BrokerSettings


class Operation(NamedTuple):
    """One of pika's channel methods, as it was called."""

    method: str
    arguments: dict[str, Any]


class RecordingConnection(Connection):
    """Stands for a connection. Every operation on it succeeds at once; messages are dropped.

    :ivar recorded: the topologies of all that were made on it, closed ones included
    :ivar operations: what was done, in order
    """

    def __init__(self, settings: BrokerSettings, role: Role) -> None:
        super().__init__(settings, role)
        self.recorded: list[Topology] = []
        self.operations: list[Operation] = []
        self.topologies = _Kept(self.recorded)
        self.rpc_client = _NoCalls()
        self._recording_control = _RecordingControl(self)
        self._dropping: dict[bool, PublishingChannel] = {}

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
        return drive(steps()).outcome.result()

    def tell(self, work: Callable[[], Steps | None]) -> None:
        """What is only told concerns deliveries, of which there are none."""

    def add_channel(self, channel: Channel) -> None:
        """Have what is done on a channel noted as well."""
        for name, method in (('ensure_open_steps', _nothing), ('operate', self._recording_control.operate)):
            setattr(channel, name, method)

    def publisher(self, confirms: bool) -> PublishingChannel:
        """A channel that drops what is published."""
        return self._dropping.setdefault(confirms, _DroppingChannel(self, confirms))


@contextlib.contextmanager
def recording() -> Generator[list[RecordingConnection], None, None]:
    """For the length of a ``with``, have all connections of this process noted instead of made.

    What is still open at its end stays without a broker. Not for use beside threads that connect.
    """
    connections: list[RecordingConnection] = []

    def connect(settings: BrokerSettings, role: Role) -> Connection:
        for known in connections:
            if (known.settings, known.role) == (settings, role):
                return known
        connections.append(RecordingConnection(settings, role))
        connections[-1].users = 1  # so that no release closes it
        return connections[-1]

    try:
        with diverted(connect):
            yield connections
    finally:
        for connection in connections:
            connection.io.loop.close()  # which no thread has run


def _nothing() -> Steps:
    yield from ()


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


class _DroppingChannel(PublishingChannel):
    def publish(self, outgoing: Outgoing, timeout: float) -> None:
        if outgoing.receipt is not None:
            outgoing.receipt.unsettled -= 1  # done with; no other thread knows it yet


class _NoCalls:
    """In place of the client of RPC calls."""

    def __getattr__(self, name: str) -> NoReturn:
        raise errors.ConfigurationError('an RPC is called while it is only recorded what the program declares')
