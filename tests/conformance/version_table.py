"""What differs between the versions of RabbitMQ: one row for each rule, measured on 3.10.8, 4.0.5 and 4.3.6.

A row has what the rule's experiment in ``test_version_table.py`` comes to on each version. Tests of other files that
meet such a rule read their expectation here, by :func:`says`; nothing else in the tests asks for a version. The
embedded broker follows 3.10 and 4.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from support.brokers import Broker


class Row(NamedTuple):
    """What comes of one rule's experiment on each version.

    :ivar on_3_10: on 3.10.8
    :ivar on_4_0: on 4.0.5
    :ivar on_4_3: on 4.3.6
    """

    on_3_10: Any
    on_4_0: Any
    on_4_3: Any


def since_4_0(before: Any, after: Any) -> Row:
    """Return the row of a rule that 4.0 has changed."""
    return Row(before, after, after)


def since_4_3(before: Any, after: Any) -> Row:
    """Return the row of a rule that 4.0 still has as 3.10 had it."""
    return Row(before, before, after)


def says(broker: Broker, rule: str) -> Any:
    """Return what a rule comes to on the version that a broker follows."""
    row = TABLE[rule]
    return {'3.10': row.on_3_10, '4.0': row.on_4_0, '4.3': row.on_4_3}[broker.rules]


ACCEPTED = 'accepted'
INVALID = "PRECONDITION_FAILED - invalid arg '{}' for queue 'q' in vhost '{{vhost}}'"
INEQUIVALENT = "PRECONDITION_FAILED - inequivalent arg '{}' for queue 'q' in vhost '{{vhost}}'"
NOT_OF_CLASSIC = ' of queue type rabbit_classic_queue'
LOCKED = (
    "RESOURCE_LOCKED - cannot obtain access to locked queue 'q' in vhost '{{vhost}}'. basic.get operations are not "
    'supported by {} queues with single active consumer'
)
LATE = (
    'PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: {} ms. '
    'This timeout value can be configured, see consumers doc guide to learn more'
)
DENIED = (
    'INTERNAL_ERROR - Feature `{}` is deprecated.\nBy default, this feature is not permitted anymore.\n'
    'The feature will be removed from a future major RabbitMQ version, regardless of the configuration; '
    'actual version to be determined.'
)
CHOSEN = (
    'INTERNAL_ERROR - Feature `{0}` is deprecated.\n'
    'Its use is not permitted per the configuration (overriding the default, which is permitted):\n'
    '    "deprecated_features.permit.{0} = false"'
)
NO_FEATURES = 'there is nothing to permit or deny'
SHARED, EACH_ALONE = [2, 4], [4, 6]
FIRST_DEATH = {'x-first-death-reason': 'rejected', 'x-first-death-queue': 'q', 'x-first-death-exchange': ''}
LAST_DEATH = {'x-last-death-reason': 'rejected', 'x-last-death-queue': 'q', 'x-last-death-exchange': ''}


def counts(*deliveries: int) -> list[dict[str, int]]:
    """Return the headers of deliveries that count the earlier ones."""
    return [{'x-delivery-count': each} for each in deliveries]


def both_counts(*deliveries: tuple[int, int]) -> list[dict[str, int]]:
    """Return the headers of deliveries that count how often a message was handed out, and how often that failed."""
    pairs = [{'x-acquired-count': acquired, 'x-delivery-count': failed} for acquired, failed in deliveries]
    return [{name: count for name, count in pair.items() if count} for pair in pairs]


TABLE: dict[str, Row] = {
    # Connections
    'a client of another protocol is answered with the header': since_4_0(b'AMQP\0\0\x09\x01', b'AMQP\x03\x01\0\0'),
    'a client of AMQP 0-8 is answered with': since_4_0(b'\x01\0\0\0\0', b'AMQP\x03'),
    'the smallest frame_max is': since_4_3(4096, 8192),
    'a body of 16 MiB and one byte is': since_4_0(
        ACCEPTED, (406, 'PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216')
    ),
    # Permissions
    'a refusal says which right is missing': since_4_0('access', '{right} access'),
    'a passive declaration without the right to configure is': since_4_3(
        [ACCEPTED, ACCEPTED],
        [
            (403, "ACCESS_REFUSED - configure access to queue 'o-q' in vhost '{vhost}' refused for user 'bob'"),
            (403, "ACCESS_REFUSED - configure access to exchange 'o-x' in vhost '{vhost}' refused for user 'bob'"),
        ],
    ),
    # Declarations
    'an unknown exchange type is': since_4_0(
        (503, "COMMAND_INVALID - unknown exchange type 'odd'"),
        (406, "PRECONDITION_FAILED - unknown exchange type 'odd'"),
    ),
    'an empty exchange type is': since_4_0(
        (503, "COMMAND_INVALID - invalid exchange type ''"), (406, "PRECONDITION_FAILED - invalid exchange type ''")
    ),
    'another queue type is': since_4_0(
        (
            406,
            INEQUIVALENT.format('x-queue-type') + ": received the value 'quorum' of type 'longstr' but current is none",
        ),
        (406, INEQUIVALENT.format('x-queue-type') + ": received 'quorum' but current is 'classic'"),
    ),
    'an odd x-queue-mode is': since_4_3(
        (406, INVALID.format('x-queue-mode') + ': "unsupported queue mode \'odd\'"'), ACCEPTED
    ),
    'x-queue-version 1 is': since_4_3(
        ACCEPTED, (406, INVALID.format('x-queue-version') + ': "unsupported queue version \'1\'"')
    ),
    'x-queue-master-locator is': since_4_3(ACCEPTED, (541, DENIED.format('queue_master_locator'))),
    'x-queue-leader-locator on a classic queue is': since_4_0(
        (406, INVALID.format('x-queue-leader-locator') + NOT_OF_CLASSIC), ACCEPTED
    ),
    'x-consumer-timeout on a classic queue is': since_4_3(
        ACCEPTED, (406, INVALID.format('x-consumer-timeout') + NOT_OF_CLASSIC)
    ),
    'another x-consumer-timeout on a quorum queue is': since_4_3(
        ACCEPTED,
        (
            406,
            INEQUIVALENT.format('x-consumer-timeout')
            + ": received none but current is the value '5000' of type 'signedint'",
        ),
    ),
    'x-delayed-retry-type on a classic queue is': since_4_3(
        ACCEPTED, (406, INVALID.format('x-delayed-retry-type') + NOT_OF_CLASSIC)
    ),
    'another x-delayed-retry-min is': since_4_3(
        ACCEPTED, (406, INEQUIVALENT.format('x-delayed-retry-min') + ": received '700' but current is '500'")
    ),
    # Messages
    'a get from a quorum queue with a single active consumer is': since_4_3(
        (405, LOCKED.format('quorum')), (405, LOCKED.format('<<"quorum">>'))
    ),
    'a mandatory reply is': since_4_3('returned', 'not returned'),
    'a global prefetch count of 2 lets two consumers have, before and after they acknowledge that': since_4_3(
        SHARED, EACH_ALONE
    ),
    'a consumer of a quorum queue on a channel with a global prefetch count is': since_4_3(
        (540, "NOT_IMPLEMENTED - queue 'q' in vhost '{vhost}' does not support global qos"), ACCEPTED
    ),
    # Deprecated features, and what a configuration makes of them
    'deprecated features are, and are permitted by default': Row(
        {},
        {'transient_nonexcl_queues': True, 'global_qos': True, 'queue_master_locator': True},
        {'transient_nonexcl_queues': True, 'global_qos': False, 'queue_master_locator': False},
    ),
    'a queue neither durable nor exclusive is, where that is denied,': since_4_0(
        NO_FEATURES, (541, CHOSEN.format('transient_nonexcl_queues'))
    ),
    'x-queue-master-locator is, where that is denied,': Row(
        NO_FEATURES, (541, CHOSEN.format('queue_master_locator')), (541, DENIED.format('queue_master_locator'))
    ),
    'x-queue-master-locator is, where that is permitted,': since_4_0(NO_FEATURES, ACCEPTED),
    'a global prefetch count of 2 lets two consumers have, where that is denied,': since_4_0(NO_FEATURES, EACH_ALONE),
    'a global prefetch count of 2 lets two consumers have, where that is permitted,': since_4_0(NO_FEATURES, SHARED),
    # Acknowledgements that are late, where the limit is 300 ms
    'late, got from a classic queue': since_4_3(('Channel.Close', LATE.format(300)), 'nothing'),
    'late, consumed from a classic queue': since_4_3(('Channel.Close', LATE.format(300)), 'nothing'),
    'late, got from a quorum queue': since_4_3(('Channel.Close', LATE.format(300)), ('Channel.Close', LATE.format(-1))),
    'late, consumed from a quorum queue': since_4_3(('Channel.Close', LATE.format(300)), ('Basic.Cancel', 't')),
    'late, by a client that hears of no cancellation': since_4_3(
        ('Channel.Close', LATE.format(300)), ('Channel.Close', LATE.format(-1))
    ),
    'the tag of a consumer that was late is': since_4_3(
        'the channel is closed', (530, "NOT_ALLOWED - attempt to reuse consumer tag 't'")
    ),
    'the limit of x-consumer-timeout': Row('is passed over', 'counts', 'counts'),
    # Quorum queues: what a message says of its earlier deliveries
    'got, and returned by nack': Row(counts(0, 1, 2), [{}, *counts(1, 2)], both_counts((0, 0), (1, 0), (2, 0))),
    'got, and returned by reject': Row(counts(0, 1, 2), [{}, *counts(1, 2)], both_counts((0, 0), (1, 1), (2, 2))),
    'got, and returned by recover': Row(counts(0, 1, 2), [{}, *counts(1, 2)], both_counts((0, 0), (1, 0), (2, 0))),
    'got, and returned by the end of the channel': Row(
        counts(0, 1, 2), [{}, *counts(1, 2)], both_counts((0, 0), (1, 1), (2, 2))
    ),
    'consumed, and returned by reject': since_4_3([{}, *counts(1, 2)], both_counts((0, 0), (1, 1), (2, 2))),
    # Quorum queues: how often a message is delivered, of 25 times
    'rejected, with no limit set': since_4_0(25, 21),
    'nacked, with no limit set': Row(25, 21, 25),
    'nacked, with a limit of 2': since_4_3(3, 25),
    'rejected, with a limit of -1': since_4_0(1, 25),
    'rejected, with a limit that is text': since_4_3(25, 21),
    # Quorum queues: order
    'of 0 to 5, where 2 and then 0 return and 1 and 3 do not': since_4_0('4,5,2,0', '2,0,4,5'),
    'the same, where the limit is -1': Row('4,5', '4,5,2,0', '2,0,4,5'),
    'messages of priorities 0, 5, 4, 9, 1 and none come': Row('0,5,4,9,1,none', '5,9,0,4,1,none', '9,5,4,none,1,0'),
    'delayed retries come after times 200 ms': since_4_3([0, 0, 0, 0], [0, 1, 2, 2]),
    'delayed retries of what is nacked come after times 200 ms': since_4_3([0, 0, 0, 0], [0, 1, 1, 1]),
    # Dead letters
    'a dead letter has, beside x-death': since_4_0(
        {'mine': 1, **FIRST_DEATH}, {'mine': 1, 'CC': ['copy'], **FIRST_DEATH, **LAST_DEATH}
    ),
    'a dead letter that is published again and dies again has died': since_4_0(2, 1),
    'a message whose publisher says that it died 3 times before has died': since_4_0(4, 1),
    # each time: whether it is redelivered, and what its headers count
    'the letter of a message that was rejected twice comes to a quorum queue': Row(
        [(False, {'x-delivery-count': 0}), (True, {'x-delivery-count': 1})],
        [(True, {'x-delivery-count': 1}), (True, {'x-delivery-count': 1})],
        [(True, counted) for counted in both_counts((2, 2), (1, 2))],
    ),
    'the letter of a message that was rejected twice comes to a classic queue': since_4_3(
        [(False, {}), (True, {})], [(True, {}), (True, {})]
    ),
    'the letter of a message that was nacked twice comes to a quorum queue': Row(
        [(False, {'x-delivery-count': 0}), (True, {'x-delivery-count': 1})],
        [(True, {'x-delivery-count': 1}), (True, {'x-delivery-count': 1})],
        [(False, {}), (True, {'x-acquired-count': 1})],
    ),
    'the letter of a message that was rejected 3 times comes, where the limit is 3, so often': since_4_3(4, 1),
}
