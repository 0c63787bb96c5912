"""The parts that work together to handle messages, as they know each other.

A processor gets its deliveries from a *source*, and each delivery is settled by its *settler*. With a broker these are
a :class:`GenericConsumer` and its channel; without one :class:`postage.messaging.local.LocalSource` is both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from postage.amqp.connection import Connection
from postage.amqp.consuming import Delivery
from postage.amqp.topology import Topology
from postage.messaging.letters import DeadLetterStore
from postage.messaging.outcomes import Failure
from postage.microthreads import MicroScheduler


class Settler(Protocol):
    """What settles deliveries: the attribute ``channel`` of each.

    :ivar topology: the queues that it consumes from, as they were declared
    :ivar prefetch: deliveries that may be unsettled at the same time; 0 for any number
    :ivar generation: which of its successive channels is in use; a delivery of another one cannot be settled any more
    :ivar is_open: whether that one is open
    :ivar is_wanted: whether it will be opened again when it is closed
    """

    topology: Topology
    prefetch: int
    generation: int
    is_open: bool
    is_wanted: bool

    def settle(self, delivery: Delivery, requeue: bool | None = None) -> None:
        """Acknowledge a delivery, or reject it where ``requeue`` is given. Any thread; never blocks."""


class Source(Protocol):
    """Where the deliveries of a processor come from, and its answers go to. Its methods are those of the consumer."""

    @property
    def own_ack(self) -> Callable[[Any], None] | None:
        """What acknowledges a delivery in place of its settler, in the scheduler's thread, if anything does."""

    def begin(self, notify: Callable[[], None], at_once: int = 1) -> None:
        """Deliver from now on; call ``notify()``, from any thread, when there is something. May block."""

    def end(self) -> None:
        """Undo :meth:`begin`: what is not settled is delivered again elsewhere. May block."""

    def wind_down(self) -> None:
        """Deliver nothing more. Does not block."""

    def next_delivery(self) -> Delivery | None:
        """The oldest delivery that nobody has taken."""

    def decode(self, data: bytes) -> Any:
        """Decode a body; raises :class:`errors.DecodingError`."""

    def took(self, messages: int, seconds: float) -> None:
        """So many messages took so long. Never blocks."""

    def set_aside(self, change: int) -> None:
        """One message more (1), or less (-1), stays unsettled for long. Never blocks."""

    def give_up(self, delivery: Delivery, failure: Failure) -> None:
        """Reject a delivery for good, and say so where that loses it. Any thread; never blocks."""

    def is_delivery_of(self, delivery: Delivery) -> bool:
        """Whether it is one of those that have come since the last :meth:`begin`."""

    def queues_reached(self, exchange: str, routing_key: str) -> list[str]:
        """The queues of this source that a message would come to."""

    @property
    def conn_broker(self) -> Connection:
        """The connection to the broker it reads."""

    def rpc_reply(self, header: Any, message: Any) -> object:
        """Answer the request that has these properties. Any thread."""


class Host(Protocol):
    """What a processor is to its own parts; all of it may change while it runs, but for ``max_deliveries``."""

    fingerprint: dict[str, Any]
    concurrency: int
    max_deliveries: int | None
    dead_letters: DeadLetterStore | None
    scheduler: MicroScheduler | None

    def restart(self) -> None:
        """Run the program again."""
