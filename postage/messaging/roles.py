"""The parts that work together to handle messages, as they know each other.

A processor gets its deliveries from a *source*, and each delivery is settled by its *settler*. With a broker these are
a :class:`GenericConsumer` and its channel; without one :class:`postage.messaging.local.LocalSource` is both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from postage.amqp.connection import Connection
from postage.amqp.deliveries import Delivery
from postage.messaging.letters import DeadLetterStore
from postage.messaging.outcomes import Failure
from postage.microthreads import MicroScheduler


class Source(Protocol):
    """Where the deliveries of a processor come from, and its answers go to.

    Its methods are those of :class:`GenericConsumer`, which says what each of them does.
    """

    @property
    def own_ack(self) -> Callable[[Any], None] | None: ...

    @property
    def conn_broker(self) -> Connection: ...
    def begin(self, notify: Callable[[], None], at_once: int = 1) -> None: ...
    def end(self) -> None: ...
    def wind_down(self) -> None: ...
    def next_delivery(self) -> Delivery | None: ...
    def decode(self, data: bytes) -> Any: ...
    def took(self, messages: int, seconds: float) -> None: ...
    def set_aside(self, change: int) -> None: ...
    def give_up(self, delivery: Delivery, failure: Failure) -> None: ...
    def is_delivery_of(self, delivery: Delivery) -> bool: ...
    def queues_reached(self, exchange: str, routing_key: str) -> list[str]: ...
    def rpc_reply(self, header: Any, message: Any) -> object: ...
    def answer_refused(self, header: Any, error: BaseException) -> None: ...


class Host(Protocol):
    """What a processor is to its own parts; all of it may change while it runs, but for ``max_deliveries``."""

    fingerprint: dict[str, Any]
    concurrency: int
    max_deliveries: int | None
    dead_letters: DeadLetterStore | None
    scheduler: MicroScheduler | None

    def restart(self) -> None: ...
