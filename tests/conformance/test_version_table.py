"""Each version of RabbitMQ, and the embedded broker under its rules, does what the table of versions says."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker, UnroutableError

from conformance.version_table import ACCEPTED, NO_FEATURES, TABLE, says
from postage.broker.server import BrokerServer
from postage.broker.users import Permissions
from support.brokers import Broker, Embedded, RabbitMQ, connect
from support.canary import canary
from support.channels import (
    PATIENCE,
    PROTOCOL_HEADER,
    RawClient,
    Reader,
    await_message,
    bodies,
    content_frames,
    publish,
    wait_until,
)
from support.powers import acknowledgements_within
from support.rabbitmq_node import RabbitMQNode
from support.users import add_user, delete_user

Experiment = Callable[[Broker], Any]
EXPERIMENTS: dict[str, Experiment] = {}


def experiment(rule: str) -> Callable[[Experiment], Experiment]:
    """Say which rule of the table a function looks at."""

    def remember(function: Experiment) -> Experiment:
        EXPERIMENTS[rule] = function
        return function

    return remember


@pytest.mark.parametrize('rule', [rule for rule in TABLE if not rule.endswith(',')])
def test_each_version_does_what_the_table_says(broker: Broker, rule: str) -> None:
    assert EXPERIMENTS[rule](broker) == in_vhost(says(broker, rule), broker.vhost)


def test_every_rule_has_its_experiment() -> None:
    assert {*EXPERIMENTS, *CONFIGURED} == set(TABLE)


def test_no_other_test_asks_for_a_version() -> None:
    folder = Path(__file__).parent.parent
    asking = [path.name for path in folder.rglob('test_*.py') if '.rules ==' in path.read_text()]
    assert asking == [Path(__file__).name]  # in the line above


def in_vhost(value: Any, vhost: str) -> Any:
    """Return an expectation with the name of the virtual host where a text asks for it."""
    if isinstance(value, str):
        return value.replace('{vhost}', vhost)
    if isinstance(value, (tuple, list)):
        return type(value)(in_vhost(each, vhost) for each in value)
    return value


# Means


@contextlib.contextmanager
def channel_to(broker: Broker) -> Iterator[BlockingChannel]:
    """A channel on which a publish returns once the message is in its queues."""
    with connect(broker) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def outcome(action: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return with which code and text a broker refuses, or that it accepts."""
    try:
        action(*args, **options)
    except (ChannelClosedByBroker, ConnectionClosedByBroker) as error:
        # RabbitMQ goes on to say how a feature is permitted, for as long as the text may be.
        return error.reply_code, re.split('\n(?:To con|Its use will)', error.reply_text)[0]
    return ACCEPTED


def declared(broker: Broker, *declarations: dict[str, Any]) -> Any:
    """Return what comes of declaring a durable queue with these arguments, one after the other."""
    with channel_to(broker) as channel:
        for arguments in declarations:
            found = outcome(channel.queue_declare, 'q', durable=True, arguments=arguments)
    return found


@contextlib.contextmanager
def quorum_queue(broker: Broker, *messages: bytes, **arguments: Any) -> Iterator[BlockingChannel]:
    """A channel to a broker with a quorum queue ``q`` in which messages are."""
    named = {name.replace('_', '-'): value for name, value in arguments.items()}
    with channel_to(broker) as channel:
        channel.queue_declare('q', durable=True, arguments={'x-queue-type': 'quorum', **named})
        publish(channel, 'q', *messages)
        yield channel


def counted(properties: pika.BasicProperties) -> dict[str, int]:
    return {name: int(value) for name, value in (properties.headers or {}).items()}


# Connections


def answer_to(broker: Broker, header: bytes, size: int) -> bytes:
    with socket.create_connection((broker.host, broker.port), timeout=PATIENCE) as client:
        client.sendall(header)
        answer = b''
        while len(answer) < size:
            answer += client.recv(size - len(answer)) or b'nothing'
        return answer


@experiment('a client of another protocol is answered with the header')
def other_protocol(broker: Broker) -> bytes:
    answers = {answer_to(broker, header, 8) for header in (b'AMQP\0\1\0\0', b'AMQP\5\1\0\0', b'GET / HTTP/1.1\r\n\r\n')}
    assert len(answers) == 1
    return answers.pop()


@experiment('a client of AMQP 0-8 is answered with')
def older_protocol(broker: Broker) -> bytes:
    return answer_to(broker, b'AMQP\1\1\x08\0', 5)


@experiment('the smallest frame_max is')
def smallest_frame(broker: Broker) -> int:
    return next(size for size in (4095, 4096, 8191, 8192) if is_tuned(broker, size))


def is_tuned(broker: Broker, frame_max: int) -> bool:
    with contextlib.closing(RawClient(broker)) as client:
        client.send(PROTOCOL_HEADER)
        client.read()
        client.send_method(0, spec.Connection.StartOk({}, 'PLAIN', '\0guest\0guest', 'en_US'))
        tune = client.read().method
        client.send_method(0, spec.Connection.TuneOk(tune.channel_max, frame_max, 0))
        client.send_method(0, spec.Connection.Open(broker.vhost))
        return client.read() is not None


@experiment('a body of 16 MiB and one byte is')
def large_body(broker: Broker) -> Any:
    with channel_to(broker) as channel:
        channel.queue_declare('q', exclusive=True)
        assert outcome(channel.basic_publish, '', 'q', bytes(2**24)) == ACCEPTED
        return outcome(channel.basic_publish, '', 'q', bytes(2**24 + 1))


# Permissions


@contextlib.contextmanager
def bob(broker: Broker) -> Iterator[pika.BlockingConnection]:
    """A connection of a user who may do nothing with the queue ``o-q`` and the exchange ``o-x``."""
    with channel_to(broker) as channel:
        channel.queue_declare('o-q', durable=True)
        channel.exchange_declare('o-x')
    add_user(broker, 'bob', Permissions('^c-', '^w-', '^r-'))
    parameters = pika.URLParameters(broker.url)
    parameters.credentials = pika.PlainCredentials('bob', canary('bob'))
    try:
        with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
            yield connection
    finally:
        delete_user(broker, 'bob')


@experiment('a refusal says which right is missing')
def missing_right(broker: Broker) -> str:
    with bob(broker) as connection:
        refusals = {
            right: outcome(getattr(connection.channel(), action), 'o-q')[1].split(' - ')[1].partition(' to ')[0]
            for right, action in (('configure', 'queue_delete'), ('read', 'basic_get'))
        }
    texts = {text.replace(right, '{right}') for right, text in refusals.items()}
    assert len(texts) == 1
    return texts.pop()


@experiment('a passive declaration without the right to configure is')
def passive_declaration(broker: Broker) -> list[Any]:
    with bob(broker) as connection:
        return [
            outcome(connection.channel().queue_declare, 'o-q', passive=True),
            outcome(connection.channel().exchange_declare, 'o-x', passive=True),
        ]


# Declarations


@experiment('an unknown exchange type is')
def unknown_exchange_type(broker: Broker) -> Any:
    with channel_to(broker) as channel:
        return outcome(channel.exchange_declare, 'x', 'odd')


@experiment('an empty exchange type is')
def empty_exchange_type(broker: Broker) -> Any:
    with channel_to(broker) as channel:
        return outcome(channel.exchange_declare, 'x', '')


QUORUM = {'x-queue-type': 'quorum'}
DELAYED = {**QUORUM, 'x-delayed-retry-type': 'all'}
DECLARATIONS: dict[str, tuple[dict[str, Any], ...]] = {
    'another queue type is': ({}, QUORUM),
    'an odd x-queue-mode is': ({'x-queue-mode': 'odd'},),
    'x-queue-version 1 is': ({'x-queue-version': 1},),
    'x-queue-master-locator is': ({'x-queue-master-locator': 'client-local'},),
    'x-queue-leader-locator on a classic queue is': ({'x-queue-leader-locator': 'client-local'},),
    'x-consumer-timeout on a classic queue is': ({'x-consumer-timeout': 5000},),
    'another x-consumer-timeout on a quorum queue is': ({**QUORUM, 'x-consumer-timeout': 5000}, QUORUM),
    'x-delayed-retry-type on a classic queue is': ({'x-delayed-retry-type': 'all'},),
    'another x-delayed-retry-min is': (
        {**DELAYED, 'x-delayed-retry-min': 500},
        {**DELAYED, 'x-delayed-retry-min': 700},
    ),
}
for _rule, _declarations in DECLARATIONS.items():
    experiment(_rule)(lambda broker, declarations=_declarations: declared(broker, *declarations))


# Messages


@experiment('a get from a quorum queue with a single active consumer is')
def get_from_single_active(broker: Broker) -> Any:
    with quorum_queue(broker, x_single_active_consumer=True) as channel:
        return outcome(channel.basic_get, 'q')


@experiment('a mandatory reply is')
def mandatory_reply(broker: Broker) -> str:
    with channel_to(broker) as channel:
        asking, replies = channel.connection.channel(), []
        asking.basic_consume('amq.rabbitmq.reply-to', lambda *delivery: replies.append(delivery[3]), auto_ack=True)
        channel.queue_declare('q', exclusive=True)
        asking.basic_publish('', 'q', b'', pika.BasicProperties(reply_to='amq.rabbitmq.reply-to'))
        address = await_message(channel, 'q')[1].reply_to
        try:
            channel.basic_publish('', address, b'reply', mandatory=True)
            found = 'not returned'
        except UnroutableError:
            found = 'returned'
        wait_until(channel.connection, lambda: replies == [b'reply'])
        return found


@experiment('a global prefetch count of 2 lets two consumers have, before and after they acknowledge that')
def global_prefetch(broker: Broker) -> list[int]:
    with channel_to(broker) as channel:
        channel.queue_declare('q', durable=True)
        publish(channel, 'q', *[b'x'] * 6)
        consuming = channel.connection.channel()
        consuming.basic_qos(prefetch_count=2, global_qos=True)
        readers = [Reader(consuming, 'q') for _ in range(2)]
        found = []
        for _ in range(2):
            channel.connection.sleep(0.3)  # more would come in this time, if it were to come
            found.append(sum(len(reader.bodies) for reader in readers))
            consuming.basic_ack(0, multiple=True)
        return found


@experiment('a consumer of a quorum queue on a channel with a global prefetch count is')
def global_prefetch_of_quorum(broker: Broker) -> Any:
    with quorum_queue(broker) as channel:
        channel.basic_qos(prefetch_count=1, global_qos=True)
        return outcome(channel.basic_consume, 'q', print)


# Deprecated features


@pytest.fixture(scope='module')
def node_with() -> Iterator[Callable[[str], RabbitMQNode]]:
    """A function that returns a running node with lines in its configuration; it starts one for each such text."""
    nodes: dict[str, RabbitMQNode] = {}

    def node(configuration: str) -> RabbitMQNode:
        if configuration not in nodes:
            nodes[configuration] = RabbitMQNode(configuration=configuration)
            nodes[configuration].start()
        return nodes[configuration]

    try:
        yield node
    finally:
        for each in nodes.values():
            each.close()


@contextlib.contextmanager
def configured(
    broker: Broker, node_with: Callable[[str], RabbitMQNode], features: Mapping[str, bool], permitted: bool
) -> Iterator[Broker]:
    """A broker like another, which permits, or denies, all deprecated features."""
    if isinstance(broker, Embedded):
        with BrokerServer(rules=broker.rules, **{'permit' if permitted else 'deny': tuple(features)}) as server:
            yield Embedded(server, broker.rules)
        return
    value = 'true' if permitted else 'false'
    node = node_with(''.join(f'deprecated_features.permit.{feature} = {value}\n' for feature in features))
    with node.new_vhost() as vhost:
        yield RabbitMQ(node, vhost)


@experiment('deprecated features are, and are permitted by default')
def deprecated_features(broker: Broker) -> dict[str, bool]:
    if isinstance(broker, Embedded):
        return dict(broker.server.rules.permitted)
    assert isinstance(broker, RabbitMQ)
    listing = 'maps:to_list(maps:map(fun(_, Of) -> maps:get(deprecation_phase, Of) end, {}))'
    called = 'rabbit_deprecated_features:list(all)'
    # The module is younger than 3.10.
    known = f'case code:which(rabbit_deprecated_features) of non_existing -> []; _ -> {listing.format(called)} end'
    pairs = broker.node.evaluate(
        f'lists:join(" ", [io_lib:format("~s=~s", [Name, Phase]) || {{Name, Phase}} <- {known}])'
    ).split()
    phases = dict(pair.split('=') for pair in pairs)
    concerned = ('transient_nonexcl_queues', 'global_qos', 'queue_master_locator')
    return {name: phases[name] == 'permitted_by_default' for name in concerned if name in phases}


def transient_queue(broker: Broker) -> Any:
    with channel_to(broker) as channel:
        return outcome(channel.queue_declare, 'q')


def master_locator(broker: Broker) -> Any:
    return declared(broker, *DECLARATIONS['x-queue-master-locator is'])


CONFIGURED: dict[str, tuple[Experiment, bool]] = {
    'a queue neither durable nor exclusive is, where that is denied,': (transient_queue, False),
    'x-queue-master-locator is, where that is denied,': (master_locator, False),
    'x-queue-master-locator is, where that is permitted,': (master_locator, True),
    'a global prefetch count of 2 lets two consumers have, where that is denied,': (global_prefetch, False),
    'a global prefetch count of 2 lets two consumers have, where that is permitted,': (global_prefetch, True),
}


@pytest.mark.parametrize('rule', CONFIGURED)
def test_a_configuration_decides_on_deprecated_features(
    broker: Broker, node_with: Callable[[str], RabbitMQNode], rule: str
) -> None:
    features = says(broker, 'deprecated features are, and are permitted by default')
    look, permitted = CONFIGURED[rule]
    if features:
        with configured(broker, node_with, features, permitted) as other:
            found = look(other)
    else:
        found = NO_FEATURES
    assert found == in_vhost(says(broker, rule), broker.vhost)


# Acknowledgements that are late


def late(
    broker: Broker, by_get: bool, arguments: dict[str, Any], is_told: bool = True, limit: int = 300
) -> tuple[RawClient, Any]:
    """Let a delivery wait for its acknowledgement, and return the client and what it is told."""
    with acknowledgements_within(broker, limit):
        client = RawClient(broker)
        client.open(broker, capabilities={'consumer_cancel_notify': is_told})
        for method in (
            spec.Channel.Open(),
            spec.Queue.Declare(queue='q', durable=True, arguments=arguments),
            spec.Confirm.Select(),
        ):
            client.send_method(1, method)
            client.read()
        client.send(content_frames(1, spec.Basic.Publish(exchange='', routing_key='q'), pika.BasicProperties(), b'x'))
        client.read()
        client.send_method(1, spec.Basic.Get(queue='q') if by_get else spec.Basic.Consume(queue='q', consumer_tag='t'))
        client.set_timeout(1.5)
        try:
            while True:
                method = getattr(client.read(), 'method', None)
                if isinstance(method, spec.Channel.Close):
                    return client, (method.NAME, method.reply_text)
                if isinstance(method, spec.Basic.Cancel):
                    return client, (method.NAME, method.consumer_tag)
        except TimeoutError:
            return client, 'nothing'


def what_is_late(broker: Broker, **options: Any) -> Any:
    client, found = late(broker, **options)
    client.close()
    return found


experiment('late, got from a classic queue')(lambda broker: what_is_late(broker, by_get=True, arguments={}))
experiment('late, consumed from a classic queue')(lambda broker: what_is_late(broker, by_get=False, arguments={}))
experiment('late, got from a quorum queue')(lambda broker: what_is_late(broker, by_get=True, arguments=QUORUM))
experiment('late, consumed from a quorum queue')(lambda broker: what_is_late(broker, by_get=False, arguments=QUORUM))
experiment('late, by a client that hears of no cancellation')(
    lambda broker: what_is_late(broker, by_get=False, arguments=QUORUM, is_told=False)
)


@experiment('the tag of a consumer that was late is')
def tag_of_late_consumer(broker: Broker) -> Any:
    client, (event, _) = late(broker, by_get=False, arguments=QUORUM)
    if event == 'Channel.Close':
        client.close()
        return 'the channel is closed'
    client.set_timeout(PATIENCE)
    client.send_method(1, spec.Basic.Consume(queue='q', consumer_tag='t'))
    close = client.read().method
    client.close()
    return close.reply_code, close.reply_text


@experiment('the limit of x-consumer-timeout')
def own_limit(broker: Broker) -> str:
    found = what_is_late(broker, by_get=False, arguments={**QUORUM, 'x-consumer-timeout': 300}, limit=60_000)
    return 'is passed over' if found == 'nothing' else 'counts'


# Quorum queues


def counts_after(broker: Broker, give_back: Callable[[BlockingChannel, int], BlockingChannel | None]) -> list[Any]:
    with quorum_queue(broker, b'x') as channel:
        found = []
        for _ in range(3):
            method, properties, _ = await_message(channel, 'q', auto_ack=False)
            found.append(counted(properties))
            channel = give_back(channel, method.delivery_tag) or channel
    return found


def reopened(channel: BlockingChannel) -> BlockingChannel:
    channel.close()
    return channel.connection.channel()


experiment('got, and returned by nack')(
    lambda broker: counts_after(broker, lambda channel, tag: channel.basic_nack(tag))  # type: ignore[func-returns-value]
)
experiment('got, and returned by reject')(
    lambda broker: counts_after(broker, lambda channel, tag: channel.basic_reject(tag))  # type: ignore[func-returns-value]
)
experiment('got, and returned by recover')(
    lambda broker: counts_after(broker, lambda channel, tag: channel.basic_recover(requeue=True))  # type: ignore[func-returns-value]
)
experiment('got, and returned by the end of the channel')(
    lambda broker: counts_after(broker, lambda channel, tag: reopened(channel))
)


@experiment('consumed, and returned by reject')
def counts_of_consumer(broker: Broker) -> list[Any]:
    found: list[Any] = []

    def refuse(channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        found.append(counted(properties))
        channel.basic_reject(method.delivery_tag)

    with quorum_queue(broker, b'x') as channel:
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume('q', refuse)
        wait_until(channel.connection, lambda: len(found) >= 3)
        return found[:3]


def deliveries(broker: Broker, how: str, **arguments: Any) -> int:
    """Return how often a message is got and returned until it is gone, 25 times at most."""
    with quorum_queue(broker, b'x', **arguments) as channel:
        for count in range(25):
            method, _, _ = channel.basic_get('q')
            if method is None:
                channel.connection.sleep(0.05)  # nothing tells that a message is gone, and not on its way back
                method, _, _ = channel.basic_get('q')
            if method is None:
                return count
            getattr(channel, how)(method.delivery_tag)
        return 25


experiment('rejected, with no limit set')(lambda broker: deliveries(broker, 'basic_reject'))
experiment('nacked, with no limit set')(lambda broker: deliveries(broker, 'basic_nack'))
experiment('nacked, with a limit of 2')(lambda broker: deliveries(broker, 'basic_nack', x_delivery_limit=2))
experiment('rejected, with a limit of -1')(lambda broker: deliveries(broker, 'basic_reject', x_delivery_limit=-1))
experiment('rejected, with a limit that is text')(
    lambda broker: deliveries(broker, 'basic_reject', x_delivery_limit='a')
)


def order(broker: Broker, **arguments: Any) -> str:
    with quorum_queue(broker, *(b'%d' % number for number in range(6)), **arguments) as channel:
        tags = [await_message(channel, 'q', auto_ack=False)[0].delivery_tag for _ in range(4)]
        channel.basic_nack(tags[2])
        channel.basic_nack(tags[0])
        return b','.join(bodies(channel, 'q')).decode()


experiment('of 0 to 5, where 2 and then 0 return and 1 and 3 do not')(order)
experiment('the same, where the limit is -1')(lambda broker: order(broker, x_delivery_limit=-1))


@experiment('messages of priorities 0, 5, 4, 9, 1 and none come')
def quorum_priorities(broker: Broker) -> str:
    with quorum_queue(broker) as channel:
        for priority in (0, 5, 4, 9, 1, None):
            publish(channel, 'q', b'none' if priority is None else b'%d' % priority, priority=priority)
        return b','.join(bodies(channel, 'q')).decode()


def retries(broker: Broker, how: str) -> list[int]:
    """Return after how many times 200 ms, rounded down, each delivery comes that follows another."""
    found = []
    delays = {'x_delayed_retry_type': 'all', 'x_delayed_retry_min': 200, 'x_delayed_retry_max': 400}
    with quorum_queue(broker, b'x', **delays) as channel:
        for _ in range(4):
            before = time.monotonic()
            method, _, _ = await_message(channel, 'q', auto_ack=False)
            found.append(int((time.monotonic() - before + 0.02) / 0.2))
            getattr(channel, how)(method.delivery_tag)
    return found


experiment('delayed retries come after times 200 ms')(lambda broker: retries(broker, 'basic_reject'))
experiment('delayed retries of what is nacked come after times 200 ms')(lambda broker: retries(broker, 'basic_nack'))


# Dead letters


@contextlib.contextmanager
def dying(broker: Broker) -> Iterator[Callable[..., pika.BasicProperties]]:
    """A function that publishes a message, rejects it, and returns the properties of the dead letter."""
    with channel_to(broker) as channel:
        channel.queue_declare('dead', exclusive=True)
        arguments = {'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'dead'}
        channel.queue_declare('q', exclusive=True, arguments=arguments)

        def die(headers: dict[str, Any]) -> pika.BasicProperties:
            publish(channel, 'q', b'x', headers=headers)
            channel.basic_reject(await_message(channel, 'q', auto_ack=False)[0].delivery_tag, requeue=False)
            return await_message(channel, 'dead')[1]

        yield die


@experiment('a dead letter has, beside x-death')
def dead_letter(broker: Broker) -> dict[str, Any]:
    with dying(broker) as die:
        headers = die({'mine': 1, 'CC': ['copy']}).headers
    return {name: value for name, value in headers.items() if name != 'x-death'}


@experiment('a dead letter that is published again and dies again has died')
def dead_letter_again(broker: Broker) -> int:
    with dying(broker) as die:
        return int(die(die({}).headers).headers['x-death'][0]['count'])


@experiment('a message whose publisher says that it died 3 times before has died')
def said_to_be_dead(broker: Broker) -> int:
    death = {'count': 3, 'reason': 'rejected', 'queue': 'q', 'exchange': '', 'routing-keys': ['q']}
    with dying(broker) as die:
        return int(die({'x-death': [death]}).headers['x-death'][0]['count'])


DEAD_LETTERING = {'x_dead_letter_exchange': '', 'x_dead_letter_routing_key': 'dead'}


def letter_of_what_failed(broker: Broker, *ends: str, target: dict[str, Any]) -> list[Any]:
    """Return whether a dead letter is redelivered, and what its headers count, when it comes and after a nack.

    :param ends: how the deliveries before ended, the last of them for good
    :param target: arguments of the queue to which it goes
    """
    found = []
    with quorum_queue(broker, b'x', **DEAD_LETTERING) as channel:
        channel.queue_declare('dead', durable=True, arguments=target)
        for number, end in enumerate(ends, 1):
            tag = await_message(channel, 'q', auto_ack=False)[0].delivery_tag
            give_back = channel.basic_nack if end == 'nack' else channel.basic_reject
            give_back(tag, requeue=number < len(ends))
        for _ in range(2):
            method, properties, _ = await_message(channel, 'dead', auto_ack=False)
            counts = {name: int(count) for name, count in properties.headers.items() if name in COUNTS}
            found.append((method.redelivered, counts))
            channel.basic_nack(method.delivery_tag)
    return found


COUNTS = ('x-acquired-count', 'x-delivery-count')


@experiment('the letter of a message that was rejected twice comes to a quorum queue')
def rejected_twice(broker: Broker) -> list[Any]:
    return letter_of_what_failed(broker, 'reject', 'reject', target=QUORUM)


@experiment('the letter of a message that was rejected twice comes to a classic queue')
def rejected_twice_to_classic(broker: Broker) -> list[Any]:
    return letter_of_what_failed(broker, 'reject', 'reject', target={})


@experiment('the letter of a message that was nacked twice comes to a quorum queue')
def nacked_twice(broker: Broker) -> list[Any]:
    return letter_of_what_failed(broker, 'nack', 'nack', target=QUORUM)


@experiment('the letter of a message that was rejected 3 times comes, where the limit is 3, so often')
def letter_with_a_limit(broker: Broker) -> int:
    with quorum_queue(broker, b'x', **DEAD_LETTERING) as channel:
        channel.queue_declare('over', durable=True)
        limited = {**QUORUM, 'x-delivery-limit': 3, 'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'over'}
        channel.queue_declare('dead', durable=True, arguments=limited)
        for number in range(3):
            channel.basic_reject(await_message(channel, 'q', auto_ack=False)[0].delivery_tag, requeue=number < 2)
        count = 0
        while not channel.queue_declare('over', passive=True).method.message_count:
            method, *_ = channel.basic_get('dead')
            if method is not None:
                count += 1
                channel.basic_reject(method.delivery_tag)
    return count
