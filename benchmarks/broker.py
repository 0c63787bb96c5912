"""The embedded broker beside RabbitMQ, as a program on pika's BlockingConnection sees them, and what it costs a test.

``python benchmarks/broker.py`` starts both brokers itself, each in a process of its own, and prints medians: how many
messages a second can be published, consumed and asked and answered, the embedded broker's as a part of RabbitMQ's, and
the milliseconds that starting and stopping a broker in a test's own process takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(path) for path in (HERE, HERE.parent / 'tests') if str(path) not in sys.path]

BODY = b'x' * 270
QUEUE = 'postage-benchmark'
REPLY_TO = 'amq.rabbitmq.reply-to'
GOAL = 0.8  # of RabbitMQ
GOAL_MILLISECONDS = 20.0

RESPONDER = f"""
import sys
import pika

def answer(channel, method, properties, body):
    channel.basic_publish('', properties.reply_to, body, pika.BasicProperties(correlation_id=properties.correlation_id))
    channel.basic_ack(method.delivery_tag)

channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
channel.queue_declare('{QUEUE}', exclusive=True)
channel.basic_consume('{QUEUE}', answer)
print('ready', flush=True)
channel.start_consuming()
"""


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog='broker.py', description='Measure the embedded broker beside RabbitMQ.')
    parser.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    parser.add_argument('--size', type=float, default=1.0, help='factor for all numbers of messages')
    parser.add_argument('--seed', type=int, help='of the order of the runs; by default a new one, which is printed')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures of all rounds there too')
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the figures, and return the exit status: 0 wherever they could be taken."""
    options = arguments(words)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    from brokers import embedded, rabbitmq

    rates: dict[str, dict[str, list[float]]] = {name: {} for name in SCENARIOS}
    with contextlib.ExitStack() as stack:
        brokers = [stack.enter_context(start()) for start in (embedded, rabbitmq)]
        tasks = [(name, broker) for name in SCENARIOS for broker in brokers]
        for number in range(options.rounds):
            random.Random(seed + number).shuffle(tasks)
            for name, broker in tasks:
                measure, count = SCENARIOS[name]
                url = f'amqp://guest:guest@{broker.host}:{broker.port}/%2F'
                rates[name].setdefault(broker.name, []).append(measure(url, max(1, round(count * options.size))))
    lives = [life() for _ in range(max(5, round(30 * options.size)))]
    report(rates, lives, seed, options.rounds)
    if options.json is not None:
        options.json.write_text(json.dumps({'seed': seed, 'rates': rates, 'start and stop, s': lives}, indent=1))
    return 0


# What is measured


@contextlib.contextmanager
def channel_to(url: str) -> Iterator[BlockingChannel]:
    """A channel of a blocking connection, with the queue of the benchmark, which is empty."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        yield connection.channel()


def fill(channel: BlockingChannel, count: int) -> None:
    """Publish so many messages."""
    for _ in range(count):
        channel.basic_publish('', QUEUE, BODY)


def await_count(channel: BlockingChannel, count: int) -> None:
    """Wait until the broker has so many messages in the queue."""
    while channel.queue_declare(QUEUE, passive=True).method.message_count < count:
        channel.connection.sleep(0.001)


def publish(url: str, count: int) -> float:
    """Messages a second, from the first call until the last one is in its queue."""
    with channel_to(url) as channel:
        channel.queue_declare(QUEUE, exclusive=True)
        started = time.perf_counter()
        fill(channel, count)
        await_count(channel, count)
        return count / (time.perf_counter() - started)


def consume(url: str, count: int) -> float:
    """Messages a second, each acknowledged, from the subscription to the last one."""
    with channel_to(url) as channel:
        channel.queue_declare(QUEUE, exclusive=True)
        fill(channel, count)
        await_count(channel, count)
        left = count

        def take(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            nonlocal left
            channel.basic_ack(method.delivery_tag)
            left -= 1
            if not left:
                channel.stop_consuming()

        channel.basic_qos(prefetch_count=100)
        started = time.perf_counter()
        channel.basic_consume(QUEUE, take)
        channel.start_consuming()
        return count / (time.perf_counter() - started)


def rpc(url: str, count: int) -> float:
    """Questions a second, asked one after the other of another process, answered by direct reply-to."""
    process = subprocess.Popen([sys.executable, '-c', RESPONDER, url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with channel_to(url) as channel:
            answers: list[bytes] = []
            channel.basic_consume(REPLY_TO, lambda *delivery: answers.append(delivery[3]), auto_ack=True)
            properties = pika.BasicProperties(reply_to=REPLY_TO, correlation_id='1')
            started = time.perf_counter()
            for number in range(count):
                channel.basic_publish('', QUEUE, BODY, properties)
                while len(answers) <= number:
                    channel.connection.process_data_events(None)
            return count / (time.perf_counter() - started)
    finally:
        process.terminate()
        process.communicate()


def life() -> float:
    """Seconds to start a broker in this process, and to stop it."""
    from postage.testing import Broker

    started = time.perf_counter()
    with Broker():
        pass
    return time.perf_counter() - started


SCENARIOS: dict[str, tuple[Callable[[str, int], float], int]] = {
    'publish': (publish, 20_000),
    'consume': (consume, 20_000),
    'rpc': (rpc, 2000),
}


# What is printed


def report(rates: dict[str, dict[str, list[float]]], lives: list[float], seed: int, rounds: int) -> None:
    """Print a table of medians."""
    names = list(rates['publish'])
    ours = next(name for name in names if 'RabbitMQ' not in name)
    theirs = next(name for name in names if name != ours)
    lines = [
        f'through BlockingConnection, {len(BODY)}-byte messages, medians of {rounds} shuffled rounds, seed {seed}',
        f'{"":<12}{theirs:>22}{ours:>22}{"ratio":>10}',
    ]
    for scenario, by_broker in rates.items():
        mine, other = (statistics.median(by_broker[name]) for name in (ours, theirs))
        judged = '' if mine / other >= GOAL else f'   below {GOAL:g}'
        lines.append(f'{scenario:<12}{other:>20,.0f}/s{mine:>20,.0f}/s{mine / other:>10.2f}{judged}')
    milliseconds = 1000 * statistics.median(lives)
    judged = '' if milliseconds < GOAL_MILLISECONDS else f'   above {GOAL_MILLISECONDS:g}'
    lines.append(
        f'starting and stopping a broker in a test: {milliseconds:.2f} ms (worst {1000 * max(lives):.2f}){judged}'
    )
    sys.stdout.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
    sys.exit(main())
