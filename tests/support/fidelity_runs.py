"""What the programs of :mod:`support.fidelity` come to, on Postage 1.2.1 and on this one.

1.2.1 stays what it is, so what its programs come to is recorded, in ``tests/fidelity/recorded.json``. The record has
the digests of the programs and of what they are run with: where one of these has changed since, ``make table`` makes a
new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import Any

import pika

from support import old_release
from support.fidelity import FOLDER, Row, rows
from support.rabbitmq_node import RabbitMQNode, binary

RECORDED = FOLDER / 'recorded.json'
RUN_WITH = (Path(__file__), Path(old_release.__file__), FOLDER / 'carried.py', FOLDER / 'stage.py')
EVERY, PROGRAM = 'run with', 'program'  # whose digests these are
TIMEOUT = 15.0

TRACE = 'amq.rabbitmq.trace'
CANCELS = 'postage.cancel'
OURS = (sys.executable, '-X', 'faulthandler')


# What a run comes to


@dataclass
class Run:
    """What one run of a program came to.

    :ivar notes: what it noted
    :ivar wire: what it published: exchange, routing key, content type and the decoded body of each message
    :ivar left: how many messages it left in which queue
    :ivar rejected: the bodies of those that it rejected
    :ivar status: its exit status; ``None`` where it had to be killed
    :ivar errors: what it wrote to its standard error
    """

    notes: list[Any] = field(default_factory=list)
    wire: dict[str, list[Any]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    rejected: list[Any] = field(default_factory=list)
    status: int | None = None
    errors: str = ''

    @property
    def outcome(self) -> dict[str, Any]:
        """What two runs are compared by."""
        own = {'notes': self.notes, 'wire': self.wire, 'left': self.left, 'rejected': self.rejected}
        return {**own, 'ended': self.status == 0}


@contextlib.contextmanager
def stage(node: RabbitMQNode) -> Iterator[Stage]:
    """A stage on a node, for the length of a ``with``."""
    with node.new_vhost() as vhost:
        yield Stage(node, vhost)


class Stage:
    """A virtual host in which programs run one after the other. The broker tells there of all that is published."""

    def __init__(self, node: RabbitMQNode, vhost: str) -> None:
        self._node = node
        self._vhost = vhost
        # What is rejected from any queue of a program ends in another one, where it is looked at.
        node.evaluate(
            f'rabbit_trace:start({binary(vhost)}), '
            f'rabbit_policy:set({binary(vhost)}, <<"rejected">>, <<"^(?!tap|rejected)">>, '
            '[{<<"dead-letter-exchange">>, <<"rejected">>}], 0, <<"queues">>, <<"tests">>), ""'
        )

    def run(self, row: Row, *command: str) -> Run:
        """Run a program until it has ended and the broker has done what it asked for.

        :param command: the interpreter, with what stands before the program
        """
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self._node.url(self._vhost)))) as tap:
            channel = tap.channel()
            channel.queue_declare('tap', exclusive=True)
            channel.queue_bind('tap', TRACE, 'publish.#')
            channel.exchange_declare('rejected', 'fanout')
            channel.queue_declare('rejected', exclusive=True)
            channel.queue_bind('rejected', 'rejected')
            run = self._run(channel, [*command, str(row.path)])
        assert self._node.empty(self._vhost), f'{row.name} left what cannot be removed'
        return run

    def _run(self, channel: Any, command: list[str]) -> Run:
        run = Run()
        process = subprocess.Popen(
            command,
            env={**os.environ, **self._environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding='utf-8',
        )
        try:
            output, run.errors = process.communicate(timeout=TIMEOUT)
            run.status = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            output, run.errors = process.communicate()
        self._await_broker()
        reader = _Reader(
            {'pid': str(process.pid), 'vhost': self._vhost, 'host': socket.gethostname(), 'user': getuser()}
        )
        run.notes = [json.loads(line[5:]) for line in output.splitlines() if line.startswith('note ')]
        queues = self._node.queues(self._vhost, 'messages')
        run.left = {name: count for name, count in queues.items() if count and name not in ('tap', 'rejected')}
        run.rejected = [
            reader.decoded(body)
            for properties, body in taken(channel, 'rejected')
            if properties.headers['x-death'][0]['reason'] == 'rejected'  # what has expired comes here, too
        ]
        for properties, body in taken(channel, 'tap'):
            exchange, key, content = reader.seen(properties, body)
            if exchange != CANCELS:  # 1.2.1 has none
                run.wire.setdefault(f'{exchange} {key}', []).append(content)
        return run

    def _environment(self) -> dict[str, str]:
        return {
            'POSTAGE_HOST': 'localhost',
            'POSTAGE_PORT': str(self._node.port),
            'POSTAGE_VHOST': self._vhost,
            'PYTHONPATH': str(FOLDER),
            'PYTHONUNBUFFERED': '1',
        }

    def _await_broker(self) -> None:
        """Wait until the broker has noticed that the program is gone, and so has read all that it sent."""
        deadline = time.monotonic() + TIMEOUT
        while self._node.connections(self._vhost) != 1:
            assert time.monotonic() < deadline, 'the connections of a program outlive it'
            time.sleep(0.01)  # nothing tells


def taken(channel: Any, queue: str) -> Iterator[tuple[Any, bytes]]:
    """Take what is in a queue, message by message."""
    while True:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return
        yield properties, body


@dataclass
class _Reader:
    """Reads messages without what another run has in another way, such as addresses to answer to, and process ids.

    :ivar own: what the program's own fingerprint says
    """

    own: dict[str, str]

    def seen(self, properties: Any, body: bytes) -> tuple[str, str, Any]:
        """A message on the wire: its exchange, its key, and its content type with its body."""
        headers = properties.headers
        key = re.sub(r'^(amq\.|postage\.rpc).*', 'the caller', headers['routing_keys'][0])
        content_type = headers['properties'].get('content_type', '')
        decoded = self.decoded(body)
        if not headers['exchange_name']:
            # An answer has a content type, a fingerprint and its duration here: that is a row of its own.
            content_type, decoded = '', {**decoded, 'fingerprint': {}, '_reserved': {}}
        return headers['exchange_name'], key, [content_type, decoded]

    def decoded(self, body: bytes) -> Any:
        try:
            return self._reworded(json.loads(body))
        except ValueError:
            return body.decode('latin-1')

    def _reworded(self, value: Any, name: str = '') -> Any:
        if isinstance(value, dict):
            return {key: self._reworded(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [self._reworded(item) for item in value]
        return f'the {name}' if name in self.own and value == self.own[name] else value


# What 1.2.1 came to


def run_old(row: Row, stage: Stage) -> Run:
    """Run a program on 1.2.1.

    :raises NotAvailable: 1.2.1 cannot be prepared here
    """
    return stage.run(row, str(old_release.prepare()), str(FOLDER / 'carried.py'))


def recorded(row: Row) -> dict[str, Any]:
    """The outcome of a program on 1.2.1, from the record.

    :raises AssertionError: the program, or what it is run with, is not what it was then
    """
    record = json.loads(RECORDED.read_text())
    outcome: dict[str, Any] = record.get(row.name, {})
    is_current = record[EVERY] == digest(*RUN_WITH) and outcome.pop(PROGRAM, '') == digest(row.path)
    assert is_current, f'{row.name} has changed: `make table` records what it does on 1.2.1'
    return outcome


def recorded_names() -> set[str]:
    """The names of the programs of which there is a record."""
    return set(json.loads(RECORDED.read_text())) - {EVERY}


def digest(*paths: Path) -> str:
    """The digest of some files."""
    return hashlib.sha256(b'\0'.join(path.read_bytes() for path in paths)).hexdigest()


def record() -> None:
    """Record anew what every program does on 1.2.1."""
    node = RabbitMQNode()
    try:
        node.start()
        with stage(node) as on:
            records = {row.name: {PROGRAM: digest(row.path), **run_old(row, on).outcome} for row in rows()}
    finally:
        node.close()
    lines = [f'{json.dumps(name)}: {json.dumps(each)}' for name, each in {EVERY: digest(*RUN_WITH), **records}.items()]
    RECORDED.write_text('\n'.join(['{', ',\n'.join(lines), '}', '']))


if __name__ == '__main__':
    record()
