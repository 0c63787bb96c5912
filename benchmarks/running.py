"""One run: the contender's processes, the conversation with them, and the count of the queues afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brokers import Administrator, Broker
from environments import command_of_role
from scenarios import TLS, Task, body_of, reply_of

TIMEOUT = 180.0
SETTLE = 0.1
"""Seconds that the broker has to itself after the queues have been prepared."""


class RunFailed(Exception):
    """A run has no figures; the text says why."""


class Contender:
    """A process that says when it is ready, goes when told to, and prints its figures.

    The other side of the conversation is ``contenders/common.py``.
    """

    def __init__(
        self,
        command: Sequence[str],
        options: dict[str, Any],
        further_environment: Mapping[str, str],
        timeout: float = TIMEOUT,
    ) -> None:
        self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115  (closed by close())
        self._process = subprocess.Popen(
            [*command, *(f'{name}={value}' for name, value in options.items())],
            env={**environment(), **further_environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._timer = threading.Timer(timeout, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def await_ready(self) -> None:
        """Wait until it has connected and prepared."""
        if self._read() != 'ready':
            raise RunFailed(f'it did not get ready: {self._last_words()}')

    def go(self) -> None:
        """Have it begin."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write('go\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunFailed(f'it has ended: {self._last_words()}') from None

    def figures(self) -> dict[str, float]:
        """Wait until it is done, and return what it measured."""
        line = self._read()
        if not line.startswith('{'):
            raise RunFailed(f'it printed no figures: {self._last_words()}')
        return dict(json.loads(line))

    def await_end(self) -> None:
        """Wait until it has closed its connection and ended."""
        self._process.wait()
        self.check()

    def check(self) -> None:
        """Say so if it has ended in an error."""
        if self._process.poll():
            raise RunFailed(f'it ended with status {self._process.returncode}: {self._last_words()}')

    def end_if_it_fails(self, other: Contender) -> None:
        """End it as soon as another one ends in an error, without whom it would wait in vain."""

        def wait() -> None:
            if other._process.wait() != 0:
                self._process.kill()

        threading.Thread(target=wait, daemon=True).start()

    def close(self) -> None:
        """End it where it still runs."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read().strip()[-1500:] or 'no error message'


def environment() -> dict[str, str]:
    """The harness's environment variables, less what would change a contender's behaviour."""
    foreign = ('POSTAGE_', 'PYTHONDONTWRITEBYTECODE', 'PYTHONDEVMODE', 'PYTHONASYNCIODEBUG')
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def run(task: Task, command: list[str], broker: Broker, administrator: Administrator) -> dict[str, Any]:
    """Run a task, and return its figures, or why there are none.

    :return: ``seconds``, ``cpu``, ``broker_cpu`` (seconds both), ``messages`` and what else the contender measured;
        or ``failure``
    """
    administrator.declare(task.queues)
    try:
        with message_files(task) as files:
            options = {'host': broker.host, 'port': broker.port, 'vhost': broker.vhost, **task.options, **files}
            if task.contender == TLS:
                options |= tls_options(broker)
            for queue in task.queues if task.loaded else ():
                administrator.load(queue, body_of(options), task.loaded)
            time.sleep(SETTLE)
            figures = converse(command_of_role(command, task.role), options, task.environment, broker)
        count = administrator.count(task.queues)
        if count != task.left:
            raise RunFailed(f'{count:,} messages in the queue afterwards, and {task.left:,} should be')
        return figures
    except RunFailed as failure:
        return {'failure': str(failure)}
    finally:
        administrator.remove([*task.queues, *task.further_queues])


def tls_options(broker: Broker) -> dict[str, Any]:
    """Where to connect with TLS, and whom to trust."""
    if not broker.tls_port:
        raise RunFailed(f'{broker.name} has no port for TLS here')
    return {'port': broker.tls_port, 'authority': broker.authority}


@contextlib.contextmanager
def message_files(task: Task) -> Iterator[dict[str, str]]:
    """Files with a ready message and a ready reply, for the program in C."""
    if task.contender != 'rabbitmq-c':
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix='postage-benchmark-') as folder:
        files = {'body': Path(folder) / 'body', 'reply': Path(folder) / 'reply'}
        files['body'].write_bytes(body_of(task.options))
        files['reply'].write_bytes(reply_of(task.options))
        yield {name: str(path) for name, path in files.items()}


def converse(
    command: list[str], options: dict[str, Any], further_environment: Mapping[str, str], broker: Broker
) -> dict[str, Any]:
    """Have the contender, and its responder for RPC, do the work; the broker's CPU is read before and after."""
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> Contender:
            return stack.enter_context(
                contextlib.closing(Contender(command, {**options, **changes}, further_environment))
            )

        responder = start(role='respond') if options['role'] == 'call' else None
        if responder is not None:
            responder.await_ready()
            responder.go()
        contender = start()
        if responder is not None:
            contender.end_if_it_fails(responder)
        contender.await_ready()
        broker_before = broker.cpu_seconds()
        contender.go()
        try:
            figures: dict[str, Any] = contender.figures()
        except RunFailed:
            if responder is not None:
                responder.check()
            raise
        figures['broker_cpu'] = broker.cpu_seconds() - broker_before
        if responder is not None:
            figures['responder_cpu'] = responder.figures()['cpu']
            responder.await_end()
        contender.await_end()
        return figures
