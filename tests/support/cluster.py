"""A cluster of three private RabbitMQ nodes on the loopback interface, each at an address of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from support.ports import free_ports
from support.rabbitmq_node import (
    COMMAND_TIMEOUT,
    SHARED_EPMD_SCRIPT,
    START_TIMEOUT,
    Member,
    NodeFailed,
    RabbitMQNode,
    binary,
)
from support.rabbitmq_versions import find_server, not_installed

SIZE = 3

# Heartbeats are what tells a client that a node stands still, ticks what tells the other nodes: until then they hand
# messages to consumers there. By default they take a minute.
CONFIGURATION = """
heartbeat = 2
net_ticktime = 8
cluster_formation.peer_discovery_backend = classic_config
"""


class Cluster:
    """Three nodes of one cluster. Use it in a ``with``, and in one thread.

    :param version: which RabbitMQ, see :mod:`support.rabbitmq_versions`
    :ivar nodes: all of them, whether or not they run
    :ivar port: for AMQP, the same at each node's address
    :raises NodeFailed: where there is no such RabbitMQ here, or the nodes do not come together
    """

    name = 'rabbitmq'

    def __init__(self, version: str) -> None:
        server = find_server(version)
        if server is None:
            raise NodeFailed(not_installed(version))
        self.port, epmd_port = free_ports(2)
        cookie = secrets.token_hex(16)
        self._epmd = subprocess.Popen(
            server.command('/bin/sh', '-c', SHARED_EPMD_SCRIPT),
            env={'PATH': os.environ['PATH'], 'ERL_EPMD_PORT': str(epmd_port), 'TMPDIR': tempfile.gettempdir()},
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        RabbitMQNode.running.add(self._epmd.pid)
        members = [
            Member(f'postage-{number}@localhost', f'127.0.0.{number}', self.port, epmd_port, cookie)
            for number in range(1, SIZE + 1)
        ]
        # They find each other when they start for the first time.
        peers = ''.join(
            f'cluster_formation.classic_config.nodes.{number} = {member.name}\n'
            for number, member in enumerate(members, 1)
        )
        self.nodes = [RabbitMQNode(version, CONFIGURATION + peers, member) for member in members]
        try:
            self.start(self.nodes)
            self.await_members()
            self.vhost = self.nodes[0].add_vhost()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all nodes and their epmd, and remove what they have written."""
        for node in self.nodes:
            node.close()
        assert self._epmd.stdin is not None
        self._epmd.stdin.close()
        try:
            self._epmd.wait(COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._epmd.pid, signal.SIGKILL)
            self._epmd.wait()
        RabbitMQNode.running.discard(self._epmd.pid)

    def await_members(self) -> None:
        """Wait until all nodes, which have been started or resumed, know each other."""
        count = 'integer_to_list(length(rabbit_nodes:list_running()))'
        deadline = time.monotonic() + START_TIMEOUT
        while any(node.evaluate(count) != str(SIZE) for node in self.nodes):
            if time.monotonic() > deadline:
                raise NodeFailed(f'the nodes do not come together within {START_TIMEOUT:g} s')
            time.sleep(0.1)  # nothing tells it

    @staticmethod
    def start(nodes: list[RabbitMQNode]) -> None:
        """Start nodes at the same time: one alone, without a majority, would wait for the others."""
        with ThreadPoolExecutor(len(nodes)) as threads:
            for started in [threads.submit(node.start) for node in nodes]:
                started.result()

    # What it does for a :class:`support.chaos.Chain`

    @property
    def hosts(self) -> str:
        """The nodes' addresses as ``POSTAGE_HOST`` takes them."""
        return ','.join(node.host for node in self.nodes)

    def messages(self) -> dict[str, int]:
        """Return the name of every queue, with the number of all its messages."""
        return self.running[0].queues(self.vhost, 'messages')

    # Who is who

    @property
    def running(self) -> list[RabbitMQNode]:
        """The nodes that run."""
        return [node for node in self.nodes if node.is_running]

    def leader(self, queue: str) -> RabbitMQNode:
        """Return the node that leads a quorum queue."""
        resource = f'rabbit_misc:r({binary(self.vhost)}, queue, {binary(queue)})'
        name = self.running[0].evaluate(
            f'{{ok, Q}} = rabbit_amqqueue:lookup({resource}), {{_, Node}} = amqqueue:get_pid(Q), atom_to_list(Node)'
        )
        return next(node for node in self.nodes if node.name == name)

    def serving(self) -> RabbitMQNode:
        """Return the node that most clients are connected to."""
        return max(self.running, key=self._connections)

    @staticmethod
    def _connections(node: RabbitMQNode) -> int:
        return int(node.evaluate('integer_to_list(length(rabbit_networking:local_connections()))'))
