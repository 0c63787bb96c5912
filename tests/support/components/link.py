"""The programs between which there is chaos: ``link.py ROLE NAME LIFE [QUEUE NEXT]``.

``producer``
    publishes numbered items, in bursts, to the first queue of the chain; again what the broker refuses
``stage``
    handles the items of a queue one by one and publishes each to the next queue, if there is one; answers calls
``juggler``
    does the same with several at the same time
``trier``
    does the same, and needs two attempts for every tenth item
``caller``
    calls, again and again

With ``LINK_QUEUES=quorum`` the queues are quorum queues; ``LINK_PAUSE`` has the seconds that lie between two bursts at
most. Each says what it does in a line of its standard output that
is written before the next step is taken: what stands there has happened, even where the program is killed a moment
later. SIGTERM ends it in good order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from postage import messaging, microthreads

FLUSH_TIMEOUT = 60.0
PAUSE = float(os.environ.get('LINK_PAUSE') or 0.2)


class ChainExchange(messaging.Exchange):
    name = 'chain-exchange'


class Producer(messaging.GenericProducer):
    eks = [(ChainExchange, 'a')]
    # A call may lose every attempt to another fault.
    rpc_timeout = 1.5
    max_retry = 40


def tell(*words: object) -> None:
    """Say it at once, in one piece."""
    os.write(1, (' '.join(map(str, ('@', *words))) + '\n').encode())


def publish(producer: Producer, item: str, refused: Callable[[tuple[str, str]], object], **options: Any) -> None:
    """Publish an item, and tell its ``message_id`` and when it is confirmed.

    :param refused: called with both where it is refused, as by a queue that has lost its majority
    """

    def settled() -> None:
        if receipt.confirmed:
            tell('confirmed', item, receipt.message_id)
        else:
            tell('refused', item, receipt.message_id)
            refused((item, receipt.message_id))

    receipt = producer.message_item(item, **options)
    tell('published', item, receipt.message_id)
    receipt.add_done_callback(settled)


def described(queue: str) -> Any:
    """Return a queue as it is to be declared."""
    if os.environ.get('LINK_QUEUES') != 'quorum':
        return queue
    # Nodes that die cost deliveries, which is no reason to give a message up.
    return messaging.quorum(queue, delivery_limit=1000)


class Stage(messaging.MessageProcessor):
    """Hands each item on to the next queue, if there is one, with the ``message_id`` that it had in the first."""

    def __init__(self, queue: str, following: str) -> None:
        self._next = following
        self._producer = Producer()
        super().__init__({}, [(ChainExchange, [(described(queue), queue), (described('questions'), 'question')])])

    @messaging.MessageHandler('command', 'item')
    def msg_item(self, content: dict[str, Any]) -> None:
        self.hand_on(content['parameters'], self.begin(content['parameters']))

    def begin(self, item: str) -> str:
        """Tell that an item is in hand, and return its first ``message_id``."""
        delivery = messaging.current_delivery()
        message_id = delivery.properties.message_id
        origin = delivery.headers.get('origin', message_id)
        tell('handles', item, message_id, 'again' if delivery.redelivered else 'fresh', origin)
        return origin

    def hand_on(self, item: str, origin: str) -> None:
        """Publish an item to the next queue."""
        if self._next:
            message_id = messaging.current_delivery().properties.message_id
            # It is handled again then.
            publish(
                self._producer,
                item,
                lambda _: tell('again', item, message_id),
                _key=self._next,
                _headers={'origin': origin},
            )

    @messaging.RpcHandler('command', 'double')
    def rpc_double(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        reply_func(2 * content['parameters'])

    def close(self) -> None:
        super().close()
        self._producer.close()


class Juggler(Stage):
    """Has several items in hand at the same time."""

    concurrency = 10

    @messaging.MessageHandler('command', 'item')
    def msg_item(self, content: dict[str, Any]) -> Any:
        origin = self.begin(content['parameters'])
        yield microthreads.sleep(0.002)
        self.hand_on(content['parameters'], origin)


class Trier(Stage):
    """Fails the first time with every tenth item."""

    @messaging.Retry(ConnectionError, delays=(0.1,))
    @messaging.MessageHandler('command', 'item')
    def msg_item(self, content: dict[str, Any]) -> None:
        delivery = messaging.current_delivery()
        item = content['parameters']
        if item.endswith('0') and 'x-postage-attempts' not in delivery.headers:
            tell('fails', item, delivery.properties.message_id)
            raise ConnectionError
        self.hand_on(item, self.begin(item))


STAGES = {'stage': Stage, 'juggler': Juggler, 'trier': Trier}


def produce(name: str, life: str) -> None:
    stop = await_signal()
    bursts = random.Random(f'{name} {life}')
    producer = Producer()
    tell('begins')
    number = 0
    refused: deque[tuple[str, str]] = deque()
    while not stop.wait(bursts.uniform(0.0, PAUSE)):
        publish_again(producer, refused)
        for _ in range(bursts.randint(1, 15)):
            item = f'{name}.{life}.{number}'
            tell('publishes', item)
            publish(producer, item, refused.append)
            number += 1
    flush(producer)
    while refused:
        publish_again(producer, refused)
        flush(producer)
    producer.close()


def publish_again(producer: Producer, refused: deque[tuple[str, str]]) -> None:
    """Publish what was refused, which may be in the queue all the same."""
    while refused:
        item, origin = refused.popleft()
        tell('publishes', item)
        publish(producer, item, refused.append, _headers={'origin': origin})


def flush(producer: Producer) -> None:
    """Wait until all is confirmed or refused."""
    with contextlib.suppress(messaging.Nacked):
        producer.flush(FLUSH_TIMEOUT)


def handle(stage: Stage) -> None:
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(stage)
    tell('begins')
    scheduler.run(FLUSH_TIMEOUT)
    stage.close()


def call(name: str, life: str) -> None:
    stop = await_signal()
    producer = Producer()
    tell('begins')
    number = 0
    while not stop.wait(0.02):
        tell('asks', number)
        answer = producer.rpc_double(number, _key='question')
        assert answer, answer.body
        assert answer.body['content']['value'] == 2 * number, answer.body
        tell('answered', number)
        number += 1
    producer.close()


def await_signal() -> threading.Event:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


def main(role: str, name: str, life: str, *rest: str) -> None:
    logging.basicConfig(format='%(levelname)s %(message)s')
    if role in STAGES:
        queue, following = rest
        handle(STAGES[role](queue, following))
    else:
        {'producer': produce, 'caller': call}[role](name, life)
    tell('ends')


main(*sys.argv[1:])
