"""Operations that the broker refuses, and threads that ask for them without end.

A refusal closes the channel that the operation was made on (AMQP 0-9-1, section 4.10.2), and on a connection all that
declares, binds and deletes shares one channel: what one thread is refused must cost no other thread anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from postage import errors, messaging
from support.messaging import TIMEOUT, Bench, eventually


class Missing(messaging.Exchange):
    """An exchange that nobody has declared, and that is not declared here."""

    name = 'missing-exchange'
    passive = True


OTHER_FLAGS = 'other-flags'
"""A queue that is not durable."""

REFUSALS: dict[str, type[errors.OperationRefused]] = {
    'missing': errors.NotFound,
    'bound to a missing exchange': errors.NotFound,
    'other flags': errors.DeclarationMismatch,
    'a reserved name': errors.AccessRefused,
}
"""What is refused, and with which error."""


def prepare(bench: Bench) -> None:
    """Declare what the refusals need."""
    bench.bare.queue_declare(OTHER_FLAGS, durable=False, exclusive=False)


def refused_to_producer(producer: Any, kind: str) -> Callable[[], object]:
    """What the broker refuses on the connection that publishes."""
    channel = producer.channel
    return {
        'missing': lambda: channel.queue_declare('missing', passive=True),
        'bound to a missing exchange': lambda: channel.queue_bind(OTHER_FLAGS, 'missing-exchange', 'key'),
        'other flags': lambda: channel.queue_declare(OTHER_FLAGS, durable=True),
        'a reserved name': lambda: channel.queue_declare('amq.reserved', durable=True),
    }[kind]


def refused_to_consumer(consumer: Any, kind: str) -> Callable[[], object]:
    """What the broker refuses on the connection that consumes."""
    return {
        'missing': lambda: consumer.queue_declare('missing', passive=True),
        'bound to a missing exchange': lambda: consumer.queue_bind(Missing, OTHER_FLAGS, 'key', passive=True),
        'other flags': lambda: consumer.queue_declare(OTHER_FLAGS, durable=True),
        'a reserved name': lambda: consumer.queue_declare('amq.reserved'),
    }[kind]


class Refused:
    """Threads each of which has an operation refused, again and again, until the end of a ``with``.

    :param operations: what is refused, and with which error; a thread for each
    """

    def __init__(self, *operations: tuple[Callable[[], object], type[errors.OperationRefused]]) -> None:
        self._stop = threading.Event()
        self._counts = [0] * len(operations)
        self._failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, *operation), name=f'refused-{number}', daemon=True)
            for number, operation in enumerate(operations)
        ]

    def _run(self, number: int, operation: Callable[[], object], error: type[errors.OperationRefused]) -> None:
        while not self._stop.is_set():
            try:
                result = operation()
            except BaseException as failure:
                if type(failure) is not error:
                    self._failures.append(f'{failure!r} in place of {error.__name__}')
                    return
            else:
                self._failures.append(f'{result!r} in place of {error.__name__}')
                return
            self._counts[number] += 1

    def __enter__(self) -> Refused:
        for thread in self._threads:
            thread.start()
        self.await_more(1)
        return self

    def await_more(self, times: int) -> None:
        """Wait until each of the threads has been refused so many times more."""
        wanted = [count + times for count in self._counts]
        eventually(lambda: self._failures or all(map(int.__ge__, self._counts, wanted)))
        assert not self._failures, self._failures

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads), 'a refused operation hangs'
            assert not self._failures, self._failures


@contextmanager
def all_refused(of: Callable[[str], Callable[[], object]]) -> Iterator[Refused]:
    """All the kinds of refusals at once, for the length of a ``with``.

    :param of: returns the operation of a kind
    """
    with Refused(*((of(kind), error) for kind, error in REFUSALS.items())) as refused:
        yield refused
