"""Microthreads beside asyncio tasks: what a turn costs, what ten thousand parked ones cost, a thousand concurrent RPCs.

    python benchmarks/microthreads.py [--rounds 5] [--json FILE] [--aio-pika PYTHON] [--only NAME …]

Everything is measured in one run, in rounds that take the contenders in turn, each time in another order; the figures
are medians. The RPC handlers run on the embedded broker, or on the RabbitMQ that POSTAGE_URL names; the contender is
aio-pika where this Python, or the one given by --aio-pika, has it installed. Each contender of it is a process of its
own; who answers is the same for all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

TURNS = 100_000
PARKED = 10_000
HANDLERS = 1_000
ANSWER_SECONDS = 0.2

Figures = dict[str, float]
"""What one contender measured in one round, by the name of the figure."""


# Turns: a microthread that yields nothing, a task that awaits sleep(0)


def turns_of_microthreads() -> Figures:
    from postage.microthreads import MicroScheduler

    scheduler = MicroScheduler(autoquit=True)
    for _ in range(10):
        scheduler.add_microthread(_microthread(_yielding(TURNS // 10)))
    began = time.perf_counter()
    for _ in scheduler.main():
        pass
    return {'µs a turn': 1e6 * (time.perf_counter() - began) / TURNS}


def turns_of_tasks() -> Figures:
    async def yields() -> None:
        for _ in range(TURNS // 10):
            await asyncio.sleep(0)

    async def main() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(yields() for _ in range(10)))
        return time.perf_counter() - began

    return {'µs a turn': 1e6 * asyncio.run(main()) / TURNS}


# Futures: one waits for a future, another one finishes it, again and again


def futures_of_microthreads() -> Figures:
    from postage.microthreads import MicroScheduler

    waiting: list[Future[None]] = []

    def waits() -> Iterator[Any]:
        for _ in range(TURNS // 10):
            waiting.append(Future())
            yield waiting[-1]

    def finishes() -> Iterator[Any]:
        for _ in range(TURNS // 10):
            while not waiting:
                yield
            waiting.pop().set_result(None)

    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(_microthread(waits()))
    scheduler.add_microthread(_microthread(finishes()))
    began = time.perf_counter()
    for _ in scheduler.main():
        pass
    return {'µs a future': 1e7 * (time.perf_counter() - began) / TURNS}


def futures_of_tasks() -> Figures:
    waiting: list[asyncio.Future[None]] = []

    async def waits() -> None:
        for _ in range(TURNS // 10):
            waiting.append(asyncio.get_running_loop().create_future())
            await waiting[-1]

    async def finishes() -> None:
        for _ in range(TURNS // 10):
            while not waiting:
                await asyncio.sleep(0)
            waiting.pop().set_result(None)

    async def main() -> float:
        began = time.perf_counter()
        await asyncio.gather(waits(), finishes())
        return time.perf_counter() - began

    return {'µs a future': 1e7 * asyncio.run(main()) / TURNS}


# Parked ones: what they cost to park, to keep while another one runs, and to wake


def parked_microthreads() -> Figures:
    from postage.microthreads import MicroScheduler

    future: Future[None] = Future()
    times: list[float] = []
    memory = _resident_kilobytes()

    def waits() -> Iterator[Any]:
        yield future

    def runs() -> Iterator[Any]:
        yield
        yield
        times.append(time.perf_counter())
        sizes.append(_resident_kilobytes())
        times.append(time.perf_counter())
        for _ in range(TURNS // 10):
            yield
        times.append(time.perf_counter())
        future.set_result(None)

    sizes: list[int] = []
    scheduler = MicroScheduler(autoquit=True)
    times.append(time.perf_counter())
    for _ in range(PARKED):
        scheduler.add_microthread(_microthread(waits()))
    scheduler.add_microthread(_microthread(runs()))
    for _ in scheduler.main():
        pass
    times.append(time.perf_counter())
    return _parked_figures(times, sizes[0] - memory)


def parked_tasks() -> Figures:
    times: list[float] = []
    memory = _resident_kilobytes()
    sizes: list[int] = []

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def waits() -> None:
            await future

        times.append(time.perf_counter())
        tasks = [asyncio.create_task(waits()) for _ in range(PARKED)]
        await asyncio.sleep(0)
        times.append(time.perf_counter())
        sizes.append(_resident_kilobytes())
        times.append(time.perf_counter())
        for _ in range(TURNS // 10):
            await asyncio.sleep(0)
        times.append(time.perf_counter())
        future.set_result(None)
        await asyncio.gather(*tasks)
        times.append(time.perf_counter())

    asyncio.run(main())
    return _parked_figures(times, sizes[0] - memory)


def _parked_figures(times: Sequence[float], kilobytes: float) -> Figures:
    begun, parked, looked, ran, woken = times
    return {
        'ms to park 10,000': 1e3 * (parked - begun),
        'µs a turn beside them': 1e7 * (ran - looked) / TURNS,
        'ms to wake 10,000': 1e3 * (woken - ran),
        'KB each': kilobytes / PARKED,
    }


def _microthread(generator: Iterator[Any]) -> Any:
    from postage.microthreads import MicroThread

    microthread = MicroThread()
    microthread.create = lambda: generator  # type: ignore[method-assign, assignment, return-value]
    return microthread


def _yielding(times: int) -> Iterator[None]:
    for _ in range(times):
        yield


def _resident_kilobytes(peak: bool = False) -> int:
    """Memory of this process in KB, where the system tells it (Linux), else 0."""
    with contextlib.suppress(OSError):
        status = Path('/proc/self/status').read_text()
        if found := re.search(r'VmHWM:\s+(\d+)' if peak else r'VmRSS:\s+(\d+)', status):
            return int(found[1])
    return 0


# A thousand messages, each handled by asking somebody who answers 0.2 s later


def _requests(number: int) -> dict[str, Any]:
    return {
        'type': 'command',
        'name': 'answer',
        'category': 'rpc',
        'version': '2',
        'fingerprint': {},
        'content': {'parameters': number},
        '_reserved': {},
    }


def _postage(queue: str, key: str) -> tuple[Any, Any]:
    """An exchange, and ``eqk`` for one queue of it."""
    from postage import messaging

    exchange = type('BenchmarkExchange', (messaging.Exchange,), {'name': 'postage-benchmark-microthreads'})
    return exchange, [(exchange, [({'name': queue, 'flags': {'durable': False, 'exclusive': False}}, key)])]


def run_answering() -> None:
    """The process that answers everybody, until its input ends."""
    from postage import messaging, microthreads

    class Answering(messaging.MessageProcessor):
        concurrency = 10 * HANDLERS

        @messaging.RpcHandler('command', 'answer')
        def rpc_answer(self, content: Any, reply_func: Any) -> Any:
            yield microthreads.sleep(ANSWER_SECONDS)
            return content['parameters']

    _, eqk = _postage('benchmark-answer', 'answer')
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(Answering({}, eqk))

    def await_end() -> None:
        say('ready')
        sys.stdin.read()
        scheduler.stop()

    threading.Thread(target=await_end, daemon=True).start()
    scheduler.run()


def run_postage() -> Figures:
    """A thousand generator handlers of one processor."""
    from postage import messaging, microthreads

    exchange, eqk = _postage('benchmark-work', 'work')
    answered: list[Any] = []

    class Asking(messaging.MessageProcessor):
        concurrency = HANDLERS

        @messaging.MessageHandler('command', 'work')
        def msg_work(self, content: Any) -> Any:
            answer = yield producer.rpc_future_answer(content['parameters'])
            answered.append(answer.body['content']['value'])
            if len(answered) == HANDLERS:
                self.scheduler.stop()

    producer = type('Producer', (messaging.GenericProducer,), {'eks': [(exchange, 'answer')]})()
    asking = Asking({}, eqk)
    for number in range(HANDLERS):
        producer.message_work(number, _key='work')
    producer.flush()
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(asking)
    with _Clock() as clock:
        for _ in scheduler.main():
            pass
    assert sorted(answered) == list(range(HANDLERS))
    asking.close()
    producer.close()
    return clock.figures


def run_aio_pika() -> Figures:
    """The same with a task for each message, through direct reply-to."""
    import aio_pika

    async def main() -> Figures:
        connection = await aio_pika.connect(os.environ['POSTAGE_URL'])
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(HANDLERS)
        exchange = await channel.get_exchange('postage-benchmark-microthreads')
        work = await channel.declare_queue('benchmark-work', durable=False)
        await work.bind(exchange, 'work')
        replies = await channel.get_queue('amq.rabbitmq.reply-to')
        waiting: dict[str, asyncio.Future[Any]] = {}
        answered: list[Any] = []
        all_answered = asyncio.Event()

        def on_reply(message: Any) -> None:
            waiting.pop(message.correlation_id).set_result(json.loads(message.body))

        async def on_work(message: Any) -> None:
            async with message.process():
                number = json.loads(message.body)['content']['parameters']
                correlation_id = uuid.uuid4().hex
                future = waiting[correlation_id] = asyncio.get_running_loop().create_future()
                request = aio_pika.Message(
                    json.dumps(_requests(number)).encode(),
                    content_type='application/json',
                    correlation_id=correlation_id,
                    reply_to='amq.rabbitmq.reply-to',
                )
                await exchange.publish(request, 'answer')
                answered.append((await future)['content']['value'])
            if len(answered) == HANDLERS:
                all_answered.set()

        await replies.consume(on_reply, no_ack=True)
        for number in range(HANDLERS):
            await exchange.publish(aio_pika.Message(json.dumps(_requests(number)).encode()), 'work')
        while (await channel.declare_queue('benchmark-work', passive=True)).declaration_result.message_count < HANDLERS:
            await asyncio.sleep(0.01)
        with _Clock() as clock:
            await work.consume(on_work)
            await all_answered.wait()
        assert sorted(answered) == list(range(HANDLERS))
        await connection.close()
        return clock.figures

    return asyncio.run(main())


def run_asyncio() -> Figures:
    """Tasks that only sleep that long: no broker, no messages, what is the least that can be."""

    async def main() -> Figures:
        with _Clock() as clock:
            await asyncio.gather(*(asyncio.sleep(ANSWER_SECONDS) for _ in range(HANDLERS)))
        return clock.figures

    return asyncio.run(main())


class _Clock:
    """Takes the time of a block, and how much memory it needed at most.

    :ivar figures: what it has taken
    """

    def __enter__(self) -> _Clock:
        self._memory = _resident_kilobytes()
        self._cpu, self._began = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.figures: Figures = {
            's for 1,000': time.perf_counter() - self._began,
            's of CPU': time.process_time() - self._cpu,
            'MB grown': max(0, _resident_kilobytes(peak=True) - self._memory) / 1024,
        }


ROLES: dict[str, Callable[[], Any]] = {
    'postage': run_postage,
    'aio-pika': run_aio_pika,
    'asyncio': run_asyncio,
    'parked-microthreads': parked_microthreads,
    'parked-tasks': parked_tasks,
}


def in_process(role: str, python: str = sys.executable) -> Figures:
    """Let a process of its own play a role, and return the figures that it prints."""
    done = subprocess.run(
        [python, __file__, '--role', role], check=True, stdout=subprocess.PIPE, text=True, timeout=120
    )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[str]:
    """A Python program for the length of a ``with``; gives the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline()
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(10)
        process.stdout.close()


@contextlib.contextmanager
def scene() -> Iterator[None]:
    """A broker, and who answers."""
    with contextlib.ExitStack() as stack:
        if 'POSTAGE_URL' not in os.environ:
            line = stack.enter_context(started('-u', '-m', 'postage.broker', '--port', '0'))
            found = re.search(r'amqp://\S+', line)
            assert found, f'the embedded broker did not start: {line}'
            os.environ['POSTAGE_URL'] = found[0]
            stack.callback(os.environ.pop, 'POSTAGE_URL')
        stack.enter_context(started('-u', __file__, '--role', 'answering'))
        yield


# The run

Contenders = dict[str, Callable[[], Figures]]

SCENARIOS: dict[str, Contenders] = {
    'turns': {'microthreads': turns_of_microthreads, 'asyncio': turns_of_tasks},
    'futures': {'microthreads': futures_of_microthreads, 'asyncio': futures_of_tasks},
    'parked': {
        'microthreads': lambda: in_process('parked-microthreads'),
        'asyncio': lambda: in_process('parked-tasks'),
    },
}


def rpc_contenders(aio_pika: str | None) -> Contenders:
    contenders: Contenders = {'microthreads': lambda: in_process('postage')}
    if aio_pika:
        contenders['aio-pika'] = lambda: in_process('aio-pika', aio_pika)
    contenders['asyncio.sleep'] = lambda: in_process('asyncio')
    return contenders


def in_rounds(contenders: Contenders, rounds: int, shuffle: random.Random) -> dict[str, Figures]:
    """Run contenders in turn, and return the median of each figure of each contender."""
    taken: dict[str, list[Figures]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in shuffle.sample(list(contenders), len(contenders)):
            taken[name].append(contenders[name]())
    return {
        name: {figure: statistics.median(each[figure] for each in figures) for figure in figures[0]}
        for name, figures in taken.items()
    }


def measure(rounds: int = 5, aio_pika: str | None = None, only: Sequence[str] = ()) -> dict[str, dict[str, Figures]]:
    """Run all scenarios, or those that are named.

    :param aio_pika: a Python that has aio-pika
    :return: medians by scenario, contender and figure
    """
    shuffle = random.Random()
    results = {}
    for name, contenders in SCENARIOS.items():
        if not only or name in only:
            results[name] = in_rounds(contenders, rounds, shuffle)
    if not only or 'rpc' in only:
        with scene():
            results['rpc'] = in_rounds(rpc_contenders(aio_pika), rounds, shuffle)
    return results


def report(results: dict[str, dict[str, Figures]]) -> Iterator[str]:
    """A line for each figure: the contenders' medians, and how ours compares with the first other one."""
    for scenario, contenders in results.items():
        first, second, *_ = contenders
        for figure in contenders[first]:
            values = '   '.join(f'{name} {figures[figure]:9.3f}' for name, figures in contenders.items())
            other = contenders[second][figure]
            ratio = f'   {contenders[first][figure] / other:5.2f} times {second}' if other else ''
            yield f'{scenario:8} {figure:22} {values}{ratio}'


def say(line: str) -> None:
    sys.stdout.write(f'{line}\n')
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--rounds', type=int, default=5, help='how often each contender runs (default 5)')
    parser.add_argument('--json', metavar='FILE', help='write the figures there, too')
    parser.add_argument('--aio-pika', metavar='PYTHON', help='a Python that has aio-pika installed')
    parser.add_argument('--only', nargs='+', default=[], choices=[*SCENARIOS, 'rpc'], help='leave out the others')
    parser.add_argument('--role', help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.role == 'answering':
        run_answering()
        return 0
    if options.role:
        say(json.dumps(ROLES[options.role]()))
        return 0
    aio_pika = options.aio_pika or (sys.executable if importlib.util.find_spec('aio_pika') else None)
    results = measure(options.rounds, aio_pika, options.only)
    for line in report(results):
        say(line)
    if options.json:
        Path(options.json).write_text(json.dumps({'rounds': options.rounds, 'medians': results}, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
