"""``postage run`` in tests: a component that notes what it handles, and what came of a stream of messages."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from postage import messaging

SHOP = """
import os, time
from postage import messaging

NOTES = os.environ['NOTES']

class ShopExchange(messaging.Exchange):
    name = 'shop-exchange'

# A count of its own: by default a process that gets no processor for a while gives back what it has fetched.
class Greedy(messaging.GenericConsumer):
    prefetch_count = 64

class Prices(messaging.MessageProcessor):
    consumer_class = Greedy

    def __init__(self):
        super().__init__(messaging.Fingerprint('prices', 'component'), [(ShopExchange, [('prices', 'price-rk')])])
        self.notes = open(NOTES, 'a', buffering=1)

    @messaging.MessageHandler('command', 'price')
    def msg_price(self, content):
        number, sent = content['parameters']
        redelivered = messaging.current_delivery().redelivered
        self.notes.write(f'{number} {sent} {time.monotonic()} {int(redelivered)} {os.getpid()}\\n')

class Orders(messaging.MessageProcessor):
    def __init__(self):
        super().__init__({}, [(ShopExchange, [('orders', 'order-rk')])])

def both():
    return [Prices(), Orders()]
"""


class ShopExchange(messaging.Exchange):
    name = 'shop-exchange'


class ShopProducer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]


class Note(NamedTuple):
    """One message as it was handled. Times are those of the monotonic clock, which all processes share."""

    number: int
    sent: float
    handled: float
    redelivered: bool
    pid: int


class Notes:
    """What the components of a test have noted, in the order in which it was handled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[Note]:
        """All that is noted by now."""
        lines = [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []
        notes = [
            Note(int(line[0]), float(line[1]), float(line[2]), line[3] == '1', int(line[4]))
            for line in lines
            if len(line) == 5
        ]
        return sorted(notes, key=lambda note: note.handled)

    def wait(self, count: int, timeout: float) -> list[Note]:
        """Wait until so many different messages are noted, and return the notes."""
        deadline = time.monotonic() + timeout
        while True:
            notes = self.all()
            different = len({note.number for note in notes})
            if different >= count:
                return notes
            assert time.monotonic() < deadline, f'{different} of {count} after {timeout} s'
            time.sleep(0.05)  # they are lines in a file


class Stream:
    """Messages at an even rate, sent by a thread of its own for the length of a ``with``.

    :param least: so many at least, if the ``with`` ends sooner
    :param rate: each second
    :ivar sent: how many there were
    """

    def __init__(self, producer: ShopProducer, least: int, rate: float) -> None:
        self._producer = producer
        self._least = least
        self._is_over = threading.Event()
        self.sent = 0
        self._rate = rate
        self._thread = threading.Thread(target=self._send, name='stream-of-a-test')

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _send(self) -> None:
        began = time.monotonic()
        while self.sent < self._least or not self._is_over.is_set():
            wait = began + self.sent / self._rate - time.monotonic()
            if wait > 0.002:
                time.sleep(wait)  # the rate is what is asked for
            self._producer.message_price([self.sent, time.monotonic()])
            self.sent += 1
        self._producer.flush(30)


def longest_gap(notes: list[Note]) -> float:
    """The longest time, in seconds, in which a message waited and none was handled."""
    longest, waits_since = 0.0, math.inf
    for before, after in reversed(list(itertools.pairwise(notes))):
        waits_since = min(waits_since, after.sent)  # of all that were not handled by then
        longest = max(longest, after.handled - max(before.handled, waits_since))
    return longest


def handled_more_than_once(notes: list[Note]) -> int:
    """How many messages were handled again."""
    return sum(times - 1 for times in Counter(note.number for note in notes).values())
