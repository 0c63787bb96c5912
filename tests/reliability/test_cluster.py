"""Programs on a cluster of three nodes that are killed, stand still and come back, one fault after the other by a seed.

The queues are quorum queues, and each program knows the address of every node. Ten minutes in ``make soak``, less than
two in ``make versions BROKER=4.3``. The seed is in the last lines of the output; ``SEED=…`` repeats its faults.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.chaos import Chain
from support.cluster import Cluster
from support.evidence import Evidence
from support.rabbitmq_node import RabbitMQNode
from support.rabbitmq_versions import find_server, not_installed
from support.soak import IS_SOAK, SEED

VERSION = '4.3'
SECONDS = 540 if IS_SOAK else 45
"""How long faults begin."""

RECOVERY = 15.0
"""Seconds within which everything works again, from the moment on at which a majority runs."""

NOTICED = 30.0
"""Seconds more where a node stands still. It takes connections and does not answer, for which Pika waits 15 seconds,
and a program has two connections."""

STANDS_STILL = 20.0
DOWN = 5.0
QUEUES = ('a', 'b', 'c')

Fault = Callable[[Chain, Cluster, random.Random], None]

pytestmark = [pytest.mark.on_rabbitmq, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if not IS_SOAK and os.environ.get('POSTAGE_TEST_BROKER') != VERSION:
        pytest.skip(f'a minute and a half in make versions BROKER={VERSION}, ten minutes in make soak')
    if find_server(VERSION) is None:
        pytest.skip(not_installed(VERSION))
    with Cluster(VERSION) as cluster:
        yield cluster


def recover(chain: Chain, limit: float = RECOVERY) -> None:
    """See that everybody is back in time."""
    chain.tell(f'all is well after {chain.await_everybody(limit):.1f} s')


def complete(chain: Chain, cluster: Cluster) -> None:
    """See that everybody is back when all nodes are. The next fault finds a majority among those that it leaves."""
    recover(chain)
    cluster.await_members()


def kill(chain: Chain, cluster: Cluster, node: RabbitMQNode) -> None:
    """Kill a node, see that the others do without it, and start it again."""
    node.kill()
    recover(chain)
    node.start()
    complete(chain, cluster)


def serving_killed(chain: Chain, cluster: Cluster, chance: random.Random) -> None:
    kill(chain, cluster, cluster.serving())


def leader_killed(chain: Chain, cluster: Cluster, chance: random.Random) -> None:
    kill(chain, cluster, cluster.leader(chance.choice(QUEUES)))


def follower_killed(chain: Chain, cluster: Cluster, chance: random.Random) -> None:
    leader = cluster.leader(chance.choice(QUEUES))
    kill(chain, cluster, chance.choice([node for node in cluster.nodes if node is not leader]))


def node_stands_still(chain: Chain, cluster: Cluster, chance: random.Random) -> None:
    node = chance.choice([cluster.serving(), cluster.leader(chance.choice(QUEUES))])
    begin = time.monotonic()
    node.suspend()
    try:
        recover(chain, RECOVERY + NOTICED)
        chain.await_progress(10**9, max(0.0, STANDS_STILL - (time.monotonic() - begin)))
    finally:
        node.resume()
    complete(chain, cluster)


def node_restarted(chain: Chain, cluster: Cluster, chance: random.Random) -> None:
    chance.choice(cluster.nodes).restart()
    complete(chain, cluster)


def two_nodes_killed(chain: Chain, cluster: Cluster, chance: random.Random) -> None:
    """Without a majority nothing is confirmed; with it everything is as before."""
    nodes = chance.sample(cluster.nodes, 2)
    for node in nodes:
        node.kill()
    chain.await_progress(10**9, DOWN)
    cluster.start(nodes)
    complete(chain, cluster)


FAULTS: tuple[Fault, ...] = (
    serving_killed,
    leader_killed,
    follower_killed,
    node_stands_still,
    node_restarted,
    two_nodes_killed,
)


def plan(seed: int) -> Iterator[tuple[Fault, random.Random]]:
    """Yield faults for ever, each kind once before any comes again, with the chance that each has."""
    chance = random.Random(seed)
    while True:
        for fault in chance.sample(FAULTS, len(FAULTS)):
            yield fault, random.Random(chance.random())


def test_nothing_is_lost_while_the_nodes_of_a_cluster_fail(
    cluster: Cluster, tmp_path: Path, record_note: Callable[[str], None]
) -> None:
    title, outcome, count = f'SEED={SEED} (cluster of three, RabbitMQ {VERSION})', 'failed', 0
    print(title)
    try:
        with Chain(cluster, tmp_path, has_retries=False) as chain:
            recover(chain)
            end = time.monotonic() + SECONDS
            for fault, chance in plan(SEED):
                if time.monotonic() > end:
                    break
                chain.tell(fault.__name__.replace('_', ' '))
                fault(chain, cluster, chance)
                count += 1
            chain.finish()
        print(chain.logs())
        evidence = Evidence(chain)
        assert not evidence.faults, '\n'.join(evidence.faults)
        outcome = str(evidence)
    finally:
        record_note(f'{title}: {count} faults, {outcome}')
