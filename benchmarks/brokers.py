"""The broker that contenders are measured on, and the harness's own hand in its queues."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
from contenders import common

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tests'))
from support.rabbitmq_node import RabbitMQNode
from support.rabbitmq_versions import find_server, not_installed

PATIENCE = 20.0


@dataclass(frozen=True)
class Broker:
    """A running broker.

    :ivar pid: its process, whose CPU counts as the broker's
    :ivar tls_port: where it speaks TLS, 0 for nowhere
    :ivar authority: file with the certificate to trust there
    """

    name: str
    port: int
    pid: int
    host: str = '127.0.0.1'
    vhost: str = '/'
    tls_port: int = 0
    authority: str = ''

    def cpu_seconds(self) -> float:
        """CPU seconds of the broker so far, in user and system mode; 0 where /proc does not tell."""
        try:
            stat = Path(f'/proc/{self.pid}/stat').read_text()
        except OSError:
            return 0.0
        # The second field is the program's name in parentheses, and may itself contain spaces.
        fields = stat.rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@contextlib.contextmanager
def rabbitmq() -> Iterator[Broker]:
    """A private RabbitMQ node, as the tests have it."""
    if find_server() is None:
        sys.exit(f'{not_installed()}. `make rabbitmq` installs it (Debian, Ubuntu).')
    node = RabbitMQNode()
    try:
        node.start()
        pid = int(node.evaluate('os:getpid()'))
        with tempfile.TemporaryDirectory(prefix='postage-benchmark-') as folder:
            tls_port, authority = listen_with_tls(node, Path(folder))
            yield Broker(f'RabbitMQ {node.version}', node.port, pid, tls_port=tls_port, authority=authority)
    finally:
        node.close()


def listen_with_tls(node: RabbitMQNode, folder: Path) -> tuple[int, str]:
    """Have a node speak TLS, too, with certificates made up for it; not where what makes them is not installed.

    :return: the port, and the file with the certificate to trust
    """
    try:
        import trustme
    except ImportError:
        return 0, ''
    made_up, authority, certificate = trustme.CA(), folder / 'authority.pem', folder / 'server.pem'
    made_up.cert_pem.write_to_path(authority)
    made_up.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.write_to_path(certificate)
    return node.listen_with_tls(certificate), str(authority)


@contextlib.contextmanager
def embedded() -> Iterator[Broker]:
    """Postage's broker in memory: good enough to try the harness, not to measure anything."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'postage.broker', '--port', '0'], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        address = re.search(r':(\d+)/', process.stdout.readline())
        if address is None:
            raise RuntimeError('the embedded broker did not start')
        yield Broker('the embedded broker', int(address[1]), process.pid)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


BROKERS = {'rabbitmq': rabbitmq, 'embedded': embedded}


class Administrator:
    """Declares, loads, counts and removes queues. On a connection of its own, which is quiet while others are timed."""

    def __init__(self, broker: Broker) -> None:
        # Nobody reads the connection during a run.
        self._connection = pika.BlockingConnection(
            pika.ConnectionParameters(broker.host, broker.port, broker.vhost, heartbeat=0)
        )
        self._channel: Any = self._connection.channel()
        self._channel.exchange_declare(common.EXCHANGE, 'direct', durable=True)

    def declare(self, queues: Sequence[str]) -> None:
        """Declare empty queues, each bound by its own name."""
        self.remove(queues)
        for queue in queues:
            self._channel.queue_declare(queue, durable=True)
            self._channel.queue_bind(queue, common.EXCHANGE, queue)

    def load(self, queue: str, body: bytes, messages: int) -> None:
        """Put that many messages into a queue, and return when they are in it."""
        properties = pika.BasicProperties(content_type='application/json', content_encoding='utf-8', delivery_mode=1)
        for _ in range(messages):
            self._channel.basic_publish(common.EXCHANGE, queue, body, properties)
        deadline = time.monotonic() + PATIENCE
        while self._state(queue)[0] != messages:
            if time.monotonic() > deadline:
                raise RuntimeError(f'{messages} messages did not get into queue {queue}')
            time.sleep(0.01)

    def count(self, queues: Sequence[str]) -> int:
        """How many messages are in the queues, once those who consumed from them have gone."""
        deadline = time.monotonic() + PATIENCE
        while any(self._state(queue)[1] for queue in queues) and time.monotonic() < deadline:
            time.sleep(0.01)
        return sum(self._state(queue)[0] for queue in queues)

    def _state(self, queue: str) -> tuple[int, int]:
        method = self._channel.queue_declare(queue, passive=True).method
        return method.message_count, method.consumer_count

    def remove(self, queues: Sequence[str]) -> None:
        """Delete queues, which need not exist."""
        for queue in queues:
            self._channel.queue_delete(queue)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
