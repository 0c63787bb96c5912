"""A queue by itself: order, turns, limits and lifetimes, with a clock that tests move."""

from __future__ import annotations

import random
from typing import Any

import pika
import pytest
from pika import frame

from postage.broker.clock import Clock
from postage.broker.limits import Tally
from postage.broker.messages import ContentHeader, Message, QueuedMessage
from postage.broker.queues import Queue
from postage.broker.rules import rules_of


def message(body: bytes = b'', priority: int | None = None) -> Message:
    header = frame.Header(1, len(body), pika.BasicProperties(priority=priority)).marshal()[7:-1]
    return Message('', 'q', ContentHeader(header), body)


class Host:
    """A virtual host that remembers the dead."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.rules = rules_of()
        self.consumers = Tally()
        self.dead: list[tuple[bytes, str]] = []
        self.deleted: list[Queue] = []

    def dead_letter(self, queue: Queue, message: Message, reason: str, failures: int = 0) -> None:
        self.dead.append((message.body, reason))

    def delete_queue(self, queue: Queue) -> int:
        self.deleted.append(queue)
        return queue.delete()


class Taker:
    """A consumer with a certain room."""

    exclusive = False

    def __init__(self, room: int = 1_000_000, priority: int = 0) -> None:
        self.room = room
        self.priority = priority
        self.taken: list[QueuedMessage] = []
        self.queue_is_gone = False

    def has_room(self) -> bool:
        return len(self.taken) < self.room

    def deliver(self, entry: QueuedMessage) -> None:
        self.taken.append(entry)

    def queue_deleted(self) -> None:
        self.queue_is_gone = True

    @property
    def bodies(self) -> list[bytes]:
        return [entry.message.body for entry in self.taken]


@pytest.fixture
def host() -> Host:
    return Host()


def queue_on(host: Host, **arguments: Any) -> Queue:
    return Queue('q', host, arguments={name.replace('_', '-'): value for name, value in arguments.items()})


def publish(queue: Queue, *bodies: bytes, **options: Any) -> None:
    for body in bodies:
        queue.publish(message(body), **options)


def ready(queue: Queue) -> list[bytes]:
    return [entry.message.body for entry in queue.ready]


def take(queue: Queue) -> QueuedMessage:
    entry = queue.get()
    assert entry is not None
    return entry


def test_messages_return_to_their_order_however_they_come_back(host: Host) -> None:
    seed = random.randrange(2**32)
    print(f'seed {seed}')
    chance = random.Random(seed)
    queue = queue_on(host)
    publish(queue, *(bytes((number,)) for number in range(200)))
    taken = [take(queue) for _ in range(150)]
    chance.shuffle(taken)
    while taken:
        count = chance.randint(1, 10)
        queue.requeue(taken[:count])
        del taken[:count]
    assert ready(queue) == [bytes((number,)) for number in range(200)]
    assert queue.unacknowledged == 0


def test_many_messages_return_quickly(host: Host) -> None:
    queue = queue_on(host)
    publish(queue, *[b''] * 20_000)
    taken = [take(queue) for _ in range(20_000)]
    queue.requeue(taken[::2])
    queue.requeue(taken[1::2])
    assert [entry.position for entry in queue.ready] == list(range(20_000))


def test_consumers_take_turns_and_full_ones_are_passed_over(host: Host) -> None:
    queue = queue_on(host)
    takers = [Taker(), Taker(room=1), Taker()]
    for taker in takers:
        queue.add_consumer(taker)
    publish(queue, *(b'%d' % number for number in range(6)))
    assert [taker.bodies for taker in takers] == [[b'0', b'3', b'5'], [b'1'], [b'2', b'4']]


def test_a_higher_priority_comes_first(host: Host) -> None:
    queue = queue_on(host)
    low, high = Taker(priority=-1), Taker(room=1, priority=3)
    for taker in (low, high):
        queue.add_consumer(taker)
    publish(queue, b'1', b'2')
    assert (high.bodies, low.bodies) == ([b'1'], [b'2'])


def test_what_waits_is_handed_out_when_room_appears(host: Host) -> None:
    queue = queue_on(host)
    taker = Taker(room=1)
    queue.add_consumer(taker)
    publish(queue, b'1', b'2', b'3')
    taker.room = 2
    queue.dispatch()
    assert taker.bodies == [b'1', b'2']
    assert (ready(queue), queue.unacknowledged) == ([b'3'], 2)


def test_the_deletion_of_a_queue_is_told_to_its_consumers(host: Host) -> None:
    queue = queue_on(host)
    taker = Taker()
    queue.add_consumer(taker)
    queue.delete()
    assert taker.queue_is_gone


# Limits


def test_a_limit_drops_what_is_next_whatever_its_priority(host: Host) -> None:
    queue = queue_on(host, x_max_length=2, x_max_priority=5)
    for body, priority in ((b'high', 5), (b'low', 1), (b'higher', 4)):
        queue.publish(message(body, priority))
    assert host.dead == [(b'high', 'maxlen')]
    assert ready(queue) == [b'higher', b'low']


def test_a_waiting_consumer_takes_what_the_limit_would_drop(host: Host) -> None:
    queue = queue_on(host, x_max_length=0)
    taker = Taker()
    queue.add_consumer(taker)
    publish(queue, b'x')
    assert (taker.bodies, host.dead) == ([b'x'], [])


def test_the_bytes_that_wait_are_counted(host: Host) -> None:
    queue = queue_on(host, x_max_length_bytes=10)
    publish(queue, b'12345', b'67890')
    entry = take(queue)
    publish(queue, b'abcde')
    queue.requeue([entry])
    assert host.dead == [(b'12345', 'maxlen')]


# Lifetimes


def test_messages_die_on_time(host: Host) -> None:
    queue = queue_on(host, x_message_ttl=1000)
    publish(queue, b'queue')
    publish(queue, b'own', lifetime=500)
    host.clock.advance(0.9)
    assert host.dead == []
    host.clock.advance(0.2)
    assert host.dead == [(b'queue', 'expired'), (b'own', 'expired')]


def test_a_message_that_returns_keeps_its_time_of_death(host: Host) -> None:
    queue = queue_on(host, x_message_ttl=1000)
    publish(queue, b'x')
    entry = take(queue)
    host.clock.advance(2)
    queue.requeue([entry])
    assert host.dead == [(b'x', 'expired')]


def test_a_message_with_a_consumer_does_not_die(host: Host) -> None:
    queue = queue_on(host, x_message_ttl=1000)
    taker = Taker()
    queue.add_consumer(taker)
    publish(queue, b'x')
    host.clock.advance(5)
    assert host.dead == []


def test_an_unused_queue_goes_and_a_used_one_stays(host: Host) -> None:
    queue = queue_on(host, x_expires=1000)
    taker = Taker()
    queue.add_consumer(taker)
    host.clock.advance(10)
    queue.remove_consumer(taker)
    host.clock.advance(0.9)
    queue.get()
    host.clock.advance(0.9)
    assert host.deleted == []
    host.clock.advance(0.2)
    assert host.deleted == [queue]


def test_nothing_is_left_on_the_clock_by_a_deleted_queue(host: Host) -> None:
    queue = queue_on(host, x_expires=1000, x_message_ttl=500)
    publish(queue, b'x')
    queue.delete()
    assert host.clock.seconds_to_next() is None
