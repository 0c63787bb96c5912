"""What the tests of Missive share: a private Redis, adapters that run, and a log to wait for.

Where ``redis-server`` is not installed the tests that need it skip; see ``support/missing_servers.py``.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from postage import missive
from postage.missive.adapters.running import RunnableAdapter
from support.fixtures import bench  # noqa: F401
from support.messaging import LogBook, Seen
from support.ports import free_ports

NOT_INSTALLED = 'redis-server is not installed'
TIMEOUT = 20.0

AnyProcessor = missive.Processor[Any]


def slow_program(module: str, adapter: str, *arguments: str) -> str:
    """The text of a program whose messages say how many seconds they take, and which tells what it does.

    :param module: where its adapter is
    :param adapter: the class of that
    :param arguments: for the adapter, beside message class and processor
    """
    return f"""
import time
from postage import missive
from postage.missive.adapters.{module} import {adapter}

processor = missive.Processor()
processor.after_processing(lambda ctx: print('shutdown', flush=True))

@processor.handle_for(lambda message: True)
def handle(message, ctx):
    print('begin', flush=True)
    time.sleep(float(message.raw_data))
    ctx.ack()
    print('end', flush=True)

{adapter}({', '.join(('missive.RawMessage', 'processor', *arguments))}).run()
"""


class RedisServer:
    """A Redis of the test's own on 127.0.0.1, without persistence.

    :ivar url: its address; it stays the same from start to start
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (self.port,) = free_ports(1)
        self.url = f'redis://127.0.0.1:{self.port}/0'
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        arguments = ['--port', str(self.port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']
        self._process = subprocess.Popen(
            ['redis-server', *arguments], cwd=self._directory, stdout=subprocess.DEVNULL, start_new_session=True
        )
        with self.client() as client:
            wait_until(lambda: answers(client), 'redis-server does not answer')

    def stop(self) -> None:
        """End it; its connections are closed."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(TIMEOUT)
            self._process = None

    def client(self) -> redis.Redis:
        """A client of it."""
        return redis.Redis.from_url(self.url)

    def await_subscriber(self, number: int = 1) -> None:
        """Wait until so many clients have subscribed to a pattern."""
        with self.client() as client:
            wait_until(lambda: answers(client) and client.pubsub_numpat() >= number, 'nobody subscribes')


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


def wait_until(condition: Callable[[], Any], complaint: str) -> None:
    """Wait for what nothing can tell us of but asking."""
    deadline = time.monotonic() + TIMEOUT
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, complaint
        pause.wait(0.01)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may stop and start."""
    if shutil.which('redis-server') is None:
        pytest.skip(NOT_INSTALLED)
    server = RedisServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Run:
    """An adapter that runs in a thread of its own.

    :ivar error: what left ``run()``
    """

    def __init__(self, adapter: RunnableAdapter[Any], *arguments: Any) -> None:
        self.adapter = adapter
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=arguments, name='adapter-of-a-test', daemon=True)
        self._thread.start()

    def _run(self, *arguments: Any) -> None:
        try:
            self.adapter.run(*arguments)
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        """Wait until it has ended by itself; what left ``run()`` is raised."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), 'the adapter still runs'
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End it in good order."""
        self.adapter.stop()
        self.wait()


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    """A function that runs an adapter until the end of the test."""
    runs: list[Run] = []

    def start(adapter: RunnableAdapter[Any], *arguments: Any) -> Run:
        runs.append(Run(adapter, *arguments))
        return runs[-1]

    with contextlib.ExitStack() as stack:
        yield start
        for each in runs:
            if each.error is None:
                stack.callback(each.stop)


@pytest.fixture
def log() -> Iterator[LogBook]:
    """What the logger ``postage`` is given."""
    import logging

    logger, book = logging.getLogger('postage'), LogBook()
    level = logger.level
    logger.addHandler(book)
    logger.setLevel(logging.DEBUG)
    yield book
    logger.removeHandler(book)
    logger.setLevel(level)


@pytest.fixture
def processor() -> AnyProcessor:
    """A processor without handlers."""
    return missive.Processor()


@pytest.fixture
def seen(processor: AnyProcessor) -> Seen:
    """What the handler of the processor gets."""
    seen = Seen()

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        seen.put(message)
        ctx.ack()

    return seen
