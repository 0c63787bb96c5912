"""What the Python contenders share: what they are asked to do, what they send, and how the time is taken.

A contender is a program: ``with_NAME.py role=publish messages=20000 …``. It connects and prepares, prints ``ready``,
waits for a line on its standard input, does what is timed, prints one line of JSON and ends. Standard library only,
since every contender has an environment of its own.
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

EXCHANGE = 'postage-benchmark'
NOWHERE = 'warm-up'
"""A routing key that no queue is bound with: what is sent to warm up is dropped by the broker."""

WARM_UP = 100
WARM_UP_CALLS = 20
WINDOW = 4096
"""Messages that may wait for their confirms; Postage has the same window."""

BODY_SIZE = 270
FINGERPRINT = {
    'name': 'benchmark',
    'type': 'application',
    'pid': '4711',
    'host': 'localhost',
    'user': 'benchmark',
    'vhost': '/',
}


@dataclass(frozen=True)
class Options:
    """What a run is to do.

    :ivar role: ``publish``, ``consume``, ``call`` (RPC) or ``respond``; Postage has a few more
    :ivar messages: how many, or how many calls
    :ivar prefetch: messages that the broker sends ahead; 0 is the contender's default
    :ivar in_flight: RPC requests under way at a time
    :ivar size: bytes of text in a message; 0 for an envelope of 270 bytes
    :ivar count: handlers, processors or threads, in scenarios about how cost grows
    :ivar stretches: how many times that many messages, where calls are counted
    :ivar authority: file with the certificate to trust where the port is one for TLS; empty for plain text
    """

    role: str
    host: str = '127.0.0.1'
    port: int = 5672
    vhost: str = '/'
    queue: str = 'benchmark'
    messages: int = 1
    confirms: int = 0
    persistent: int = 0
    prefetch: int = 0
    in_flight: int = 1
    size: int = 0
    count: int = 1
    seconds: float = 1.0
    stretches: int = 1
    authority: str = ''

    @property
    def delivery_mode(self) -> int:
        """AMQP's delivery mode: 2 is persistent."""
        return 2 if self.persistent else 1

    @property
    def calls_to_answer(self) -> int:
        """What a responder answers before it ends: the caller's warm-up counts."""
        return self.messages + WARM_UP_CALLS


def parse(arguments: list[str]) -> Options:
    """Read ``name=value`` words, of which those that :class:`Options` does not know are left out."""
    given = dict(word.split('=', 1) for word in arguments)
    types: dict[str, Callable[[str], Any]] = {'int': int, 'str': str, 'float': float}
    return Options(**{f.name: types[str(f.type)](given[f.name]) for f in fields(Options) if f.name in given})


# What is sent


def encode(message: Mapping[str, Any]) -> bytes:
    """JSON without spaces, so that all contenders send the same bytes."""
    return json.dumps(message, separators=(',', ':')).encode()


def text(size: int, category: str = 'message') -> str:
    """The text that a message carries: of that many bytes, or what makes an envelope of 270 bytes."""
    return 'x' * (size or BODY_SIZE - len(encode(envelope('', category))))


def envelope(parameters: str, category: str = 'message') -> dict[str, Any]:
    """A Postage command as the dictionary that travels; the same that Postage makes."""
    return {
        'type': 'command',
        'name': 'echo',
        'category': category,
        'version': '2',
        'fingerprint': FINGERPRINT,
        'content': {'parameters': parameters},
        '_reserved': {},
    }


def result(value: str) -> dict[str, Any]:
    """A Postage result as the dictionary that travels."""
    return {
        'type': 'result',
        'name': 'result',
        'category': 'message',
        'version': '2',
        'fingerprint': {},
        'content': {'type': 'success', 'value': value, 'message': ''},
        '_reserved': {},
    }


class Caller(Protocol):
    """A contender's side of RPC, which blocks for its answers."""

    def call(self) -> None:
        """Send a request, and wait for the reply."""

    def call_many(self, messages: int, in_flight: int) -> None:
        """Send so many requests, some of them under way at a time, and wait for all replies."""


def measure_calls(caller: Caller, options: Options, measure: Measure) -> None:
    """Warm up; then call, one after the other or many at a time."""
    for _ in range(WARM_UP_CALLS):
        caller.call()
    with measure:
        if options.in_flight > 1:
            caller.call_many(options.messages, options.in_flight)
        else:
            for _ in range(options.messages):
                began = time.perf_counter()
                caller.call()
                measure.latencies.append(time.perf_counter() - began)


def check_result(reply: Mapping[str, Any]) -> None:
    """Look at a reply as a caller would."""
    if reply['content']['type'] != 'success':
        raise ValueError(f'an RPC failed: {reply}')


Handlers = dict[tuple[str, str], Callable[[Mapping[str, Any]], Any]]


def dispatch(handlers: Handlers, body: Mapping[str, Any]) -> Any:
    """Call the handler of a decoded message: the dispatch of contenders that bring none."""
    return handlers[body['type'], body['name']](body['content'])


# How the time is taken


class Measure:
    """The clock of a run. What lies between :meth:`start` and :meth:`stop` is timed; ``with`` calls both.

    CPU is that of the whole process, all threads, in user and system mode.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.latencies: list[float] = []
        self.figures: dict[str, float] = {}

    def start(self) -> None:
        """Say that all is prepared, wait to be told to go, and start the clock."""
        self.get_ready()
        self.start_clock()

    def get_ready(self) -> None:
        """Say that all is prepared, and wait to be told to go."""
        gc.collect()
        tell('ready')
        if not sys.stdin.readline():
            raise SystemExit('the harness has gone')

    def start_clock(self) -> None:
        """Start the clock."""
        self._cpu = cpu_seconds()
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock and print the figures."""
        seconds = time.perf_counter() - self._began
        figures = {'seconds': seconds, 'cpu': cpu_seconds() - self._cpu, 'messages': self.options.messages}
        if self.latencies:
            figures['p50'] = statistics.median(self.latencies)
        tell(json.dumps({**figures, **self.figures}))

    def __enter__(self) -> Measure:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None:
            self.stop()


def cpu_seconds() -> float:
    """CPU seconds of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def tell(line: str) -> None:
    """Print a line for the harness."""
    sys.stdout.write(line + '\n')
    sys.stdout.flush()


def main(roles: Mapping[str, Callable[[Options, Measure], Any]]) -> None:
    """Do what the command line asks for."""
    options = parse(sys.argv[1:])
    roles[options.role](options, Measure(options))
