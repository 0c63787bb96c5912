"""A handler that takes longer than the broker lets a consumer keep a message.

RabbitMQ 4.3 ends the consumer of a quorum queue as soon as the time of its ``x-consumer-timeout`` is over; 3.12 to 4.2
look at it once a minute, and close the channel; 3.10 does not know the argument. What holds is the same on each.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from postage import messaging
from support.messaging import Bench, EchoExchange, Processor, eventually
from support.soak import IS_SOAK

QUORUM_EQK = [
    (
        EchoExchange,
        [
            (
                {'name': 'echo-queue', 'flags': {'arguments': {'x-queue-type': 'quorum', 'x-consumer-timeout': 1000}}},
                'echo-rk',
            )
        ],
    )
]


class Dozing(Processor):
    """Takes its time for ``long`` when it sees that for the first time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.handled = threading.Event()
        super().__init__(QUORUM_EQK)

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content: dict[str, Any]) -> None:
        delivery = messaging.current_delivery()
        assert delivery is not None
        self.seen.put(content['parameters'])
        if content['parameters'] == 'long' and not delivery.redelivered:
            self.handled.wait(self.seconds)


@pytest.mark.timeout(150)
@pytest.mark.parametrize('prefetch', [1, None])
@pytest.mark.parametrize(
    'seconds',
    [
        2.5,
        pytest.param(70, marks=pytest.mark.skipif(not IS_SOAK, reason='takes 70 seconds; make soak has it')),
    ],
)
def test_a_handler_that_outlives_its_consumer_ends_neither_the_connection_nor_the_component(
    bench: Bench, seconds: float, prefetch: int | None
) -> None:
    class Consumer(messaging.GenericConsumer):
        prefetch_count = prefetch

    dozing = type('Dozing', (Dozing,), {'consumer_class': Consumer})(seconds)
    running = bench.run(dozing)
    producer = bench.producer()
    for text in ('long', 'behind'):
        producer.message_echo(text)
    seen = [dozing.seen.get(timeout=seconds + 10)]
    while 'behind' not in seen:
        seen.append(dozing.seen.get(timeout=seconds + 10))
    producer.message_echo('later')
    while seen[-1] != 'later':
        seen.append(dozing.seen.next())
    assert set(seen) == {'long', 'behind', 'later'}
    eventually(lambda: not dozing.is_busy)
    running.stop()
    eventually(lambda: bench.broker.messages()['echo-queue'] == 0)  # a quorum queue counts every few seconds only
    assert not bench.log.find('(consuming) was lost'), bench.log.text
    assert not bench.log.find('ERROR'), bench.log.text
