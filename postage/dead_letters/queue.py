"""Dead letters in a queue on the broker.

Each is the message as it was, with a header that says why it is there, so that other tools can read and move it, too.
Messages that RabbitMQ itself has moved into the queue (https://www.rabbitmq.com/docs/dlx) are read as letters as well.

A queue cannot be read without taking messages out. So its letters are held, unacknowledged, while they are looked at,
and go back to their places at the end, however that comes; no other program can see them meanwhile.

A quorum queue may count that as a delivery in vain, and drops what has too many of them: before RabbitMQ 4.3 each time,
since then where the reader did not come to its end. So a letter that has one is sent to the queue's end again, as a new
message, and acknowledged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any, Final

from postage import errors
from postage.amqp.channel import Host
from postage.amqp.connection import CLOSE_TIMEOUT
from postage.amqp.consuming import ConsumingChannel
from postage.amqp.control import declare_queue
from postage.amqp.deliveries import Delivery
from postage.amqp.frames import encode_all
from postage.amqp.registry import acquire, release
from postage.amqp.retries import count_of
from postage.amqp.steps import Steps
from postage.amqp.topology import Queue, Topology
from postage.dead_letters.store import ALL, DeadLetters, Handout, Selection, StoredLetter, edited
from postage.messaging import properties as amqp
from postage.messaging.forwarding import Forwarder, is_final
from postage.messaging.letters import DeadLetter
from postage.messaging.properties import Properties
from postage.printable import shown, shown_half_built
from postage.program import program_settings
from postage.secret import Secret
from postage.settings import BrokerSettings, Hup, broker_settings

logger = logging.getLogger('postage')

LETTER: Final = 'x-postage-letter'
"""The header with what the message itself does not say, as JSON."""
WINDOW: Final = 500  # letters held at a time where each is settled at once
HEADER_MAX: Final = 120_000  # bytes of properties, which have to fit into one frame (section 4.2.6)
PATIENCE: Final = 30.0  # seconds that a letter may take to come
BACK_SECONDS: Final = 2.0  # that letters may take to be back in their queue
BACK_PAUSE: Final = 0.02  # between two looks whether they are

# What a message in a store must not have of its own: it would expire, be refused, or be sent to others as well.
_UNSAFE: Final = ('expiration', 'user_id', 'delivery_mode')
_NOTED: Final[Mapping[str, Any]] = {
    **dict.fromkeys(('queue', 'exchange', 'routing_key', 'reason', 'exception', 'message', 'traceback'), str),
    'attempts': int,
    **dict.fromkeys(('first_attempt_at', 'died_at'), (int, float)),
    'is_repeated': bool,
}
"""What is noted of a letter beside the message that it is, and of which type."""


class QueueDeadLetters(DeadLetters):
    """A store of dead letters in a durable queue on the broker. Safe for several threads and processes.

    :param name: the queue, which is declared where it does not exist
    :param hup: which broker: ``{'host': …, 'user': …, 'password': …}``, or an AMQP URL
    :param vhost: which virtual host of it
    :param timeout: seconds in which the broker has to confirm a letter
    :param create: declare the queue where it does not exist; without, that is an error
    """

    def __init__(
        self, name: str, hup: Hup | None = None, vhost: str | None = None, timeout: float = 30.0, create: bool = True
    ) -> None:
        hup = Secret.of(hup)
        if not isinstance(name, str) or not name:
            raise errors.ConfigurationError(f'the name of a queue must be text and not empty, not {shown(name)}')
        self.name = name
        self.timeout = timeout
        self.create = create
        self._hup, self._vhost = hup, vhost
        self._lock = threading.Lock()
        self._forwarder: Forwarder | None = None

    def __str__(self) -> str:
        return f'the queue {self.name!r}'

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.name}>'

    @property
    def settings(self) -> BrokerSettings:
        """Which broker it is on."""
        return broker_settings(self._hup, self._vhost, program=program_settings())

    def close(self) -> None:
        with self._lock:
            forwarder, self._forwarder = self._forwarder, None
        if forwarder is not None:
            forwarder.close()

    def put(self, letter: DeadLetter) -> str:
        """Send a letter to the queue. The broker has confirmed it when this returns. Returns where it lies, in words.

        :raises errors.StoreError: it does not in time, or refuses
        :raises errors.LetterRefused: it is too large for a message
        """
        id = secrets.token_hex(6)
        self._send(id, letter)
        return f'letter {id} in queue {self.name!r}'

    def _send(self, id: str, letter: DeadLetter) -> None:
        self._await(self._begin_to_send(id, letter), self.timeout)

    def _begin_to_send(self, id: str, letter: DeadLetter) -> Future[None]:
        with self._lock:
            if self._forwarder is None:
                self._forwarder = Forwarder(self.settings)
            forwarder = self._forwarder
        encoded = self._encoded(id, letter)
        return forwarder.send('', self.name, encoded, letter.body, letter.message_id, self._declaration())

    def _await(self, sent: Future[None], timeout: float) -> None:
        try:
            sent.result(timeout)
        except FutureTimeout as error:
            raise errors.StoreError(f'{self} did not take a letter within {self.timeout:g} s') from error
        except errors.PostageError as error:
            kind = errors.LetterRefused if is_final(error) else errors.StoreError
            raise kind(f'{self} did not take a letter: {error}') from error

    def _encoded(self, id: str, letter: DeadLetter) -> bytes:
        """The properties of a letter, without its traceback where they would be too large with it."""
        for candidate in (letter, replace(letter, traceback='(too large)')):
            encoded = encode_all(_written(id, candidate))
            if len(encoded) <= HEADER_MAX:
                return encoded
        raise errors.LetterRefused(f'{self} cannot take a letter with {len(encoded)} bytes of headers')

    def _declaration(self) -> Queue:
        return Queue(self.name, {'durable': True} if self.create else {'passive': True})

    # Reading

    def letters(self, selection: Selection = ALL, limit: int | None = None) -> Iterator[StoredLetter]:
        found = 0
        with self._reading(0) as deliveries:
            for delivery in deliveries:
                stored = _read(delivery)
                if not _is_counted(delivery):
                    delivery.body = b''  # held by the broker as well, and there may be many
                if stored in selection:
                    yield stored
                    found += 1
                    if found == limit:
                        return

    def count(self, selection: Selection = ALL) -> int:
        if selection != ALL:
            return super().count(selection)
        with self._connected() as connection:
            declared = connection.ask(lambda: declare_queue(connection.control, self._declaration()))
            return int(declared.method.message_count)

    def edit(self, id: str, **changes: Any) -> StoredLetter:
        def change(delivery: Delivery, stored: StoredLetter) -> StoredLetter:
            letter = edited(stored.letter, changes)
            self._send(id, letter)  # confirmed before the old one goes; it has a new place, at the end
            delivery.channel.settle(delivery)
            return StoredLetter(id, letter)

        changed: list[StoredLetter] = self._each(Selection(ids=(id,)), change)
        if not changed:
            raise self.no_such_letter(id)
        return changed[0]

    def delete(self, selection: Selection = ALL) -> int:
        return sum(1 for _ in self._each(selection, lambda delivery, _: delivery.channel.settle(delivery)))

    def _each(self, selection: Selection, action: Callable[[Delivery, StoredLetter], Any]) -> list[Any]:
        results = []
        with self._reading(0 if selection != ALL else WINDOW) as deliveries:
            for delivery in deliveries:
                stored = _read(delivery)
                if stored in selection:
                    results.append(action(delivery, stored))
        return results

    @contextlib.contextmanager
    def hand_out(self, selection: Selection = ALL) -> Generator[Handout, None, None]:
        with self._reading(0 if selection != ALL else WINDOW) as deliveries:
            yield _QueueHandout(deliveries, selection)

    @contextlib.contextmanager
    def _connected(self) -> Generator[Any, None, None]:
        connection = acquire(self.settings, 'consuming')
        try:
            yield connection
        except errors.NotFound as error:
            raise errors.StoreError(f'{self} does not exist') from error
        except errors.BrokerError as error:
            raise errors.StoreError(f'{self} cannot be read: {error}') from error
        finally:
            release(connection)

    @contextlib.contextmanager
    def _reading(self, window: int) -> Generator[Iterator[Delivery], None, None]:
        """The letters that are in the queue now, oldest first. What is not settled goes back to its place at the end.

        :param window: how many to hold at a time; 0 for all, where not each of them is settled
        """
        with self._connected() as connection:
            channel = _Reader(connection, window)
            arrived = threading.Semaphore(0)
            channel.notify = arrived.release

            def begin() -> Steps:
                declared = yield from declare_queue(connection.control, self._declaration())
                yield from channel.consumers.begin_steps(self.name)
                return declared.method.message_count

            try:
                there = connection.ask(begin)
                if there:
                    connection.add_channel(channel)
                yield self._arriving(channel, arrived, there)
            finally:
                try:
                    connection.ask(channel.consumers.end_all_steps, CLOSE_TIMEOUT, when_open=False)
                    left = channel.left()
                    self._put_back(left)
                    connection.ask(lambda: self._await_back(connection, len(left)), CLOSE_TIMEOUT, when_open=False)
                except errors.BrokerError as error:
                    logger.debug('%s: the broker puts its letters back by itself: %s', self, error)
                connection.remove_channel(channel)

    def _arriving(self, channel: _Reader, arrived: threading.Semaphore, there: int) -> Iterator[Delivery]:
        generation = channel.generation
        for number in range(there):
            while not channel.inbox:
                in_time = arrived.acquire(timeout=PATIENCE)
                if channel.error is not None:
                    raise channel.error.again()
                if not in_time or channel.generation != generation:
                    why = 'the connection was lost' if in_time else f'nothing came for {PATIENCE:g} s'
                    raise errors.StoreError(f'{self}: {number} of {there} letters were read, then {why}')
            yield channel.take()

    def _put_back(self, left: list[Delivery]) -> None:
        """Have letters wait in the queue again, those anew that the broker counts."""
        sent_again: list[tuple[Delivery, Future[None]]] = []
        for delivery in left:
            if _is_counted(delivery):
                sent_again.append((delivery, self._send_again(_read(delivery))))
            else:
                delivery.channel.hand_back(delivery)
        wait([sent for _, sent in sent_again], self.timeout)
        for delivery, sent in sent_again:
            try:
                self._await(sent, 0)
                delivery.channel.settle(delivery)
            except errors.StoreError as error:
                logger.warning('%s counts one more delivery in vain of a letter: %s', self, error)
                delivery.channel.hand_back(delivery)

    def _await_back(self, connection: Any, count: int) -> Steps:
        """Wait until the queue has got them: the next reader asks first how many there are.

        A quorum queue takes back what it is told to without an answer. Others may read meanwhile, hence the limit.
        """
        until = time.monotonic() + BACK_SECONDS
        while count and time.monotonic() < until:
            there = yield from declare_queue(connection.control, Queue(self.name, {'passive': True}))
            if there.method.message_count >= count:
                return
            yield connection.io.pause(BACK_PAUSE)

    def _send_again(self, stored: StoredLetter) -> Future[None]:
        try:
            return self._begin_to_send(stored.id, stored.letter)
        except errors.PostageError as error:
            failed: Future[None] = Future()
            failed.set_exception(error)
            return failed


class _Reader(ConsumingChannel):
    """A channel that knows which of its letters are not settled.

    Its letters are taken and settled by one thread, in which they are put back as well.
    """

    def __init__(self, host: Host, window: int) -> None:
        super().__init__(host, Topology(), window)
        self._taken: dict[int, Delivery] = {}

    def take(self) -> Delivery:
        """Take the next one out of the inbox."""
        delivery = self.inbox.popleft()
        self._taken[delivery.delivery_tag] = delivery
        return delivery

    def settle(self, delivery: Delivery, requeue: bool | None = None) -> None:
        self._taken.pop(delivery.delivery_tag, None)
        super().settle(delivery, requeue)

    def left(self) -> list[Delivery]:
        """Take what is not settled, oldest first, of what the broker still holds for this channel."""
        left = [*self._taken.values(), *self.inbox]
        self._taken.clear()
        self.inbox.clear()
        return [delivery for delivery in left if self.is_open and delivery.generation == self.generation]


class _QueueHandout(Handout):
    """Letters that the broker holds for us; it takes back those that were not settled."""

    def __init__(self, deliveries: Iterator[Delivery], selection: Selection) -> None:
        self._deliveries = deliveries
        self._selection = selection
        self._held: dict[int, Delivery] = {}  # by identity: nothing keeps two messages from having one id

    def batches(self, size: int) -> Iterator[list[StoredLetter]]:
        batch: list[StoredLetter] = []
        for delivery in self._deliveries:
            stored = _read(delivery)
            if stored not in self._selection:
                continue
            self._held[id(stored)] = delivery
            batch.append(stored)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def settle(self, letters: list[StoredLetter]) -> None:
        for stored in letters:
            delivery = self._held.pop(id(stored))
            delivery.channel.settle(delivery)


def _is_counted(delivery: Delivery) -> bool:
    """Whether the broker says that a letter was delivered in vain before: from this queue, not from another."""
    try:
        return delivery.redelivered and count_of(delivery.headers) > 0
    except errors.DecodingError:
        return False


# A letter as a message


def _written(id: str, letter: DeadLetter) -> Properties:
    """The properties of the message that a letter becomes."""
    kept = {name: value for name, value in letter.properties.items() if name not in _UNSAFE}
    notes: dict[str, Any] = {name: getattr(letter, name) for name in _NOTED}
    notes |= {'id': id, 'properties': {name: letter.properties[name] for name in _UNSAFE if name in letter.properties}}
    properties = amqp.from_plain(kept)
    headers = dict(properties.headers or {})
    if 'CC' in headers:
        headers[amqp.CC] = headers.pop('CC')
    properties.headers = {**headers, LETTER: json.dumps(notes)}
    properties.delivery_mode = 2
    return properties


def _read(delivery: Delivery) -> StoredLetter:
    """The letter that a message is. Any program may put a message there, and whatever it likes into its headers."""
    try:
        properties = delivery.properties
    except errors.DecodingError:
        properties = Properties()  # type: ignore[no-untyped-call]
    plain = amqp.as_plain(amqp.original(properties))
    try:
        notes = json.loads((properties.headers or {})[LETTER])
        values = {name: _checked(notes[name], kind) for name, kind in _NOTED.items()}
        id, kept = _checked(notes['id'], str), _checked(notes['properties'], dict)
    except (KeyError, TypeError, ValueError, RecursionError):
        return _moved_by_broker(delivery, plain)
    plain.pop('delivery_mode', None)
    return StoredLetter(id, DeadLetter(delivery.body, {**plain, **kept}, **values))


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f'{shown(value)} is not of type {kind}')
    return value


def _moved_by_broker(delivery: Delivery, plain: dict[str, Any]) -> StoredLetter:
    """The letter that a message is which no store of ours has put here. What is known of it is in its ``x-death``."""
    deaths = plain.get('headers', {}).get('x-death') or [{}]
    death = deaths[0] if isinstance(deaths, list) and isinstance(deaths[0], dict) else {}
    keys = death.get('routing-keys')
    key = keys[0] if isinstance(keys, list) and keys else ''
    try:
        died_at = amqp.seconds_of(death['time'])
    except (KeyError, ValueError):
        died_at = time.time()
    letter = DeadLetter(
        body=delivery.body,
        properties=plain,
        queue=str(death.get('queue', '')),
        exchange=str(death.get('exchange', delivery.exchange)),
        routing_key=str(key if death else delivery.routing_key),
        reason='rejected',
        exception='',
        message=f'moved here by the broker: {death.get("reason", "unknown")}',
        traceback='',
        attempts=amqp.whole_header(death, 'count'),
        first_attempt_at=died_at,
        died_at=died_at,
    )
    # Its place in the queue is all that it can be known by, unless it has an id of its own.
    return StoredLetter(letter.message_id or f'#{delivery.delivery_tag}', letter)
