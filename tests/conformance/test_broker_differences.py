"""Random operations on the embedded broker and on RabbitMQ at once, for each version that both know.

Every outcome, delivery, header and count has to be the same: what differs between versions is a matter of rules. An
operation is done on the embedded broker first, where everything that it sets off is done when the answer comes.
RabbitMQ is then given the time to arrive at the same; a difference is what it does not arrive at.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import pika
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from pika import spec

from postage.broker.rules import RULES
from postage.broker.server import BrokerServer
from support.brokers import Embedded, RabbitMQ
from support.rabbitmq_node import RabbitMQNode
from support.rabbitmq_versions import WANTED, find_server, not_installed
from support.soak import IS_SOAK
from support.twins import Client, Outcome

SEQUENCES = int(os.environ.get('POSTAGE_SEQUENCES') or (2000 if IS_SOAK else 20))
SEQUENCES_AT_ONCE = 20
STEPS = 50
PATIENCE = 5.0

QUEUES = ('q1', 'q2', 'q3')
EXCHANGES = ('x1', 'x2', 'x3')

queues = st.sampled_from(QUEUES)
exchanges = st.sampled_from(EXCHANGES)
sources = st.sampled_from((*EXCHANGES, 'amq.topic', 'amq.fanout', 'missing', ''))
keys = st.sampled_from(('a', 'a.b', 'b', '', *QUEUES))
patterns = st.sampled_from(('a', 'a.*', '#', '*', ''))
tags = st.sampled_from(('t1', 't2', 't3'))
seldom = st.integers(0, 5).map(lambda number: number == 0)
QUORUM = {'x-queue-type': 'quorum'}
TO_Q3 = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'q3'}
queue_arguments = st.sampled_from(
    (
        {},
        {},
        {'x-max-length': 2},
        {'x-max-length': 1, 'x-overflow': 'reject-publish'},
        {'x-max-length': 1, 'x-overflow': 'reject-publish-dlx', 'x-dead-letter-exchange': 'x2'},
        {'x-max-priority': 3},
        {'x-max-priority': 3, 'x-max-length': 2, **TO_Q3},
        TO_Q3,
        {'x-dead-letter-exchange': 'x1', 'x-max-length': 1},
        {'x-dead-letter-exchange': 'x1', 'x-message-ttl': 0},
        {'x-single-active-consumer': True},
        {'x-message-ttl': -1},
        QUORUM,
        {**QUORUM, 'x-delivery-limit': 1, **TO_Q3},
        {**QUORUM, 'x-max-length': 2, **TO_Q3},
        {**QUORUM, 'x-max-length': 1, 'x-overflow': 'reject-publish'},
        {**QUORUM, 'x-single-active-consumer': True},
    )
)


class Twins(RuleBasedStateMachine):
    """Two clients on each broker, who do the same."""

    embedded: ClassVar[Embedded]
    rabbitmq: ClassVar[RabbitMQ]
    steps: ClassVar[int] = 0
    sequences: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        # The virtual hosts have one name, so that the texts are the same.
        self.sides = [[Client(broker) for _ in range(2)] for broker in (self.embedded, self.rabbitmq)]
        self.queues: set[str] = set()
        self.messages = 0
        type(self).sequences += 1

    def do(self, who: int, action: Callable[[Client], Outcome]) -> None:
        """Do the same on both brokers, and compare what comes of it."""
        type(self).steps += 1
        ours, theirs = (action(side[who]) for side in self.sides)
        assert ours == theirs
        self.compare_news()
        # RabbitMQ removes exclusive and auto-delete queues some time after it has answered.
        queues, self.queues = self.queues, set(self.embedded.server.queues(self.embedded.vhost))
        self.compare_counts(self.queues if queues <= self.queues else QUEUES)

    def ask(self, who: int, method: Any) -> None:
        self.do(who, lambda client: client.ask(method))

    def compare_news(self) -> None:
        for ours, theirs in zip(*self.sides, strict=True):
            ours.catch_up()
            with contextlib.suppress(TimeoutError):
                theirs.await_news(ours.news_count)
            assert ours.take_news() == theirs.take_news()

    def compare_counts(self, names: Iterable[str]) -> None:
        embedded, rabbitmq = self.sides
        expected = self.counts_of(embedded, names)
        deadline = time.monotonic() + PATIENCE
        while (counts := self.counts_of(rabbitmq, names)) != expected and time.monotonic() < deadline:
            time.sleep(0.002)
        assert expected == counts

    @staticmethod
    def counts_of(side: list[Client], names: Iterable[str]) -> dict[str, Outcome]:
        """Ask the first client; a queue that is locked for it belongs to the second."""
        first, second = side
        counts = first.counts(names)
        return counts | second.counts(name for name, count in counts.items() if count == (405,))

    def teardown(self) -> None:
        for side in self.sides:
            for client in side:
                client.close_channel()
            for queue in QUEUES:
                for client in side:
                    client.ask(spec.Queue.Delete(queue=queue))
            for exchange in EXCHANGES:
                side[0].ask(spec.Exchange.Delete(exchange=exchange))
            for client in side:
                client.close()

    # --- topology ---

    @rule(
        who=st.integers(0, 1),
        queue=queues,
        durable=st.booleans(),
        exclusive=seldom,
        auto_delete=seldom,
        arguments=queue_arguments,
    )
    def declare_queue(
        self, who: int, queue: str, durable: bool, exclusive: bool, auto_delete: bool, arguments: dict[str, Any]
    ) -> None:
        self.ask(
            who,
            spec.Queue.Declare(
                queue=queue, durable=durable, exclusive=exclusive, auto_delete=auto_delete, arguments=arguments
            ),
        )

    @rule(who=st.integers(0, 1), queue=queues)
    def look_for_queue(self, who: int, queue: str) -> None:
        self.ask(who, spec.Queue.Declare(queue=queue, passive=True))

    @rule(who=st.integers(0, 1), queue=queues, if_unused=st.booleans(), if_empty=st.booleans())
    def delete_queue(self, who: int, queue: str, if_unused: bool, if_empty: bool) -> None:
        self.ask(who, spec.Queue.Delete(queue=queue, if_unused=if_unused, if_empty=if_empty))

    @rule(who=st.integers(0, 1), queue=queues)
    def purge(self, who: int, queue: str) -> None:
        self.ask(who, spec.Queue.Purge(queue=queue))

    @rule(
        who=st.integers(0, 1),
        exchange=exchanges,
        kind=st.sampled_from(('direct', 'fanout', 'topic', 'headers')),
        auto_delete=seldom,
        internal=seldom,
        alternate=st.sampled_from((None, None, 'x3', 'amq.fanout')),
    )
    def declare_exchange(
        self, who: int, exchange: str, kind: str, auto_delete: bool, internal: bool, alternate: str | None
    ) -> None:
        arguments = {} if alternate is None else {'alternate-exchange': alternate}
        self.ask(
            who,
            spec.Exchange.Declare(
                exchange=exchange, type=kind, auto_delete=auto_delete, internal=internal, arguments=arguments
            ),
        )

    @rule(who=st.integers(0, 1), exchange=exchanges, if_unused=st.booleans())
    def delete_exchange(self, who: int, exchange: str, if_unused: bool) -> None:
        self.ask(who, spec.Exchange.Delete(exchange=exchange, if_unused=if_unused))

    @rule(who=st.integers(0, 1), queue=queues, exchange=sources, key=patterns)
    def bind(self, who: int, queue: str, exchange: str, key: str) -> None:
        self.ask(who, spec.Queue.Bind(queue=queue, exchange=exchange, routing_key=key))

    @rule(who=st.integers(0, 1), queue=queues, exchange=sources, key=patterns)
    def unbind(self, who: int, queue: str, exchange: str, key: str) -> None:
        self.ask(who, spec.Queue.Unbind(queue=queue, exchange=exchange, routing_key=key))

    @rule(who=st.integers(0, 1), destination=exchanges, source=sources, key=patterns)
    def bind_exchange(self, who: int, destination: str, source: str, key: str) -> None:
        self.ask(who, spec.Exchange.Bind(destination=destination, source=source, routing_key=key))

    @rule(who=st.integers(0, 1), destination=exchanges, source=sources, key=patterns)
    def unbind_exchange(self, who: int, destination: str, source: str, key: str) -> None:
        self.ask(who, spec.Exchange.Unbind(destination=destination, source=source, routing_key=key))

    # --- messages ---

    @rule(
        who=st.integers(0, 1),
        exchange=sources,
        key=keys,
        mandatory=st.booleans(),
        priority=st.sampled_from((None, 1, 5)),
        copy=st.sampled_from((None, None, 'q1', 'q2')),
        expiration=st.sampled_from((None, None, None, '0')),
    )
    def publish(
        self,
        who: int,
        exchange: str,
        key: str,
        mandatory: bool,
        priority: int | None,
        copy: str | None,
        expiration: str | None,
    ) -> None:
        self.messages += 1
        body = b'%d' % self.messages
        headers = None if copy is None else {'CC': [copy]}
        properties = pika.BasicProperties(priority=priority, headers=headers, expiration=expiration)
        method = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
        self.do(who, lambda client: client.publish(method, properties, body))

    @rule(who=st.integers(0, 1), queue=queues, count=st.integers(1, 3))
    def publish_to_queue(self, who: int, queue: str, count: int) -> None:
        for _ in range(count):
            self.publish(who, '', queue, True, None, None, None)

    @rule(who=st.integers(0, 1), queue=queues, no_ack=st.booleans())
    def get(self, who: int, queue: str, no_ack: bool) -> None:
        self.ask(who, spec.Basic.Get(queue=queue, no_ack=no_ack))

    @rule(who=st.integers(0, 1), queue=queues, tag=tags, no_ack=seldom, exclusive=seldom)
    def consume(self, who: int, queue: str, tag: str, no_ack: bool, exclusive: bool) -> None:
        method = spec.Basic.Consume(queue=queue, consumer_tag=tag, no_ack=no_ack, exclusive=exclusive)
        self.do(who, lambda client: client.consume(method))

    @rule(who=st.integers(0, 1), tag=tags)
    def cancel(self, who: int, tag: str) -> None:
        self.ask(who, spec.Basic.Cancel(consumer_tag=tag))

    @rule(who=st.integers(0, 1), count=st.integers(0, 3))
    def limit(self, who: int, count: int) -> None:
        self.ask(who, spec.Basic.Qos(prefetch_count=count))

    @precondition(lambda self: any(client.unsettled for client in self.sides[0]))
    @rule(
        which=st.integers(0, 100),
        how=st.sampled_from((spec.Basic.Ack, spec.Basic.Nack, spec.Basic.Reject)),
        requeue=st.booleans(),
        multiple=seldom,
    )
    def settle(self, which: int, how: Any, requeue: bool, multiple: bool) -> None:
        who = next(number for number, client in enumerate(self.sides[0]) if client.unsettled)
        keys = sorted(self.sides[0][who].unsettled)
        key = keys[which % len(keys)]
        multiple = multiple and how is not spec.Basic.Reject
        chosen = []
        for side in self.sides:
            last = side[who].unsettled[key][0]
            chosen.append(side[who].tags_up_to(last) if multiple else [last])
        if len({tuple(side[who].keys_of(each)) for side, each in zip(self.sides, chosen, strict=True)}) > 1:
            return  # messages of several queues came in another order, which RabbitMQ leaves open
        options: dict[str, Any] = {} if how is spec.Basic.Ack else {'requeue': requeue}
        if how is not spec.Basic.Reject:
            options['multiple'] = multiple
        by_client = {id(side[who]): each for side, each in zip(self.sides, chosen, strict=True)}

        def settle(client: Client) -> Outcome:
            each = by_client[id(client)]
            return client.settle(how(delivery_tag=each[-1], **options), each)

        self.do(who, settle)

    @rule(who=st.integers(0, 1))
    def recover(self, who: int) -> None:
        def ask(client: Client) -> Outcome:
            client.unsettled.clear()
            return client.ask(spec.Basic.Recover(requeue=True))

        self.do(who, ask)

    @rule(who=st.integers(0, 1), tag=st.integers(1000, 1001), multiple=st.booleans())
    def settle_what_is_unknown(self, who: int, tag: int, multiple: bool) -> None:
        self.ask(who, spec.Basic.Ack(delivery_tag=tag, multiple=multiple))

    # --- the end of things ---

    @rule(who=st.integers(0, 1))
    def close_channel(self, who: int) -> None:
        self.do(who, Client.close_channel)

    @rule(who=st.integers(0, 1))
    def close_connection(self, who: int) -> None:
        self.do(who, Client.close_connection)


@pytest.fixture(params=RULES)
def brokers(request: pytest.FixtureRequest) -> Iterator[str]:
    """The embedded broker under rules and a RabbitMQ of that version, with a virtual host of the same name."""
    version: str = request.param
    if find_server(version) is None:
        pytest.skip(not_installed(version))
    with contextlib.ExitStack() as end:
        if version == WANTED:
            node: RabbitMQNode = request.getfixturevalue('rabbitmq_node')
        else:
            node = RabbitMQNode(version)
            end.callback(node.close)
            node.start()
        if node.rules != version:
            pytest.skip(f'the installed RabbitMQ is {node.version}, for which the embedded broker has no rules')
        with node.new_vhost() as vhost, BrokerServer(virtual_hosts=[vhost], rules=version) as server:
            Twins.embedded, Twins.rabbitmq = Embedded(server, version), RabbitMQ(node, vhost)
            Twins.embedded.vhost = vhost
            Twins.steps = Twins.sequences = 0
            yield version


@pytest.mark.on_rabbitmq
@pytest.mark.timeout(60 + 3 * SEQUENCES)
def test_random_operations_have_the_same_outcome_on_both_brokers(
    brokers: str, record_note: Callable[[str], None]
) -> None:
    first = number = int(os.environ.get('SEED') or 0) or random.randrange(2**32)
    print(f'SEED={first}')
    rules = settings(
        max_examples=SEQUENCES_AT_ONCE,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        while Twins.sequences < SEQUENCES:
            run_state_machine_as_test(seed(number)(Twins), settings=rules)
            number += 1
    finally:
        record_note(
            f'SEED={first} (embedded and RabbitMQ {brokers}): {Twins.sequences} sequences, {Twins.steps} operations'
        )
