"""Where versions of RabbitMQ differ, and which of them a broker follows.

There are two sets, of the oldest and of the newest RabbitMQ that the tests run on: 3.10 and 4.3. Each value here was
measured on a node of that version; ``tests/conformance/version_table.py`` has the rules one by one, with what 4.0 does.

The default is 4.3. RabbitMQ supports its newest series alone, so that this is what a new installation is today; and
what works on it works on the older ones, with few exceptions, while the reverse is not so.

Some things are "deprecated features" of RabbitMQ 4, which a node permits or denies by its configuration
(``deprecated_features.permit.NAME``, https://www.rabbitmq.com/docs/deprecated-features). A broker's own choice of these
is an argument of :func:`rules_of`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from postage.broker.arguments import RULES_OF_3_10, RULES_OF_4_3, ArgumentRules
from postage.broker.replies import COMMAND_INVALID, INTERNAL_ERROR, PRECONDITION_FAILED, Refusal


@dataclass(frozen=True)
class Rules:
    """What one version does.

    :ivar version: the whole version of the RabbitMQ that was measured
    :ivar arguments: which arguments of queues are valid, and which have to be equal
    :ivar protocol_headers: those that are served, with the version that they are told
    :ivar other_protocol: the protocol header that a client of another protocol is answered with
    :ivar smallest_frame: the least ``frame_max`` that a client may ask for
    :ivar largest_message: bytes of a body
    :ivar unknown_exchange_type: the reply code for an exchange type that does not exist
    :ivar names_rights: True where a refusal says which right is missing
    :ivar passive_needs_configure: True where a passive declaration asks for the right to configure
    :ivar replies_are_routed: True where a message to a reply address counts as routed
    :ivar quorum_in_get: how the refusal of a get from a quorum queue calls the type
    :ivar counts_first_get: True where ``basic.get`` from a quorum queue says that a message came 0 times before
    :ivar counts_acquired: True where quorum queues count how often a message was handed out, too
    :ivar nack_counts: True where ``basic.nack`` and ``basic.recover`` count towards the delivery limit
    :ivar delivery_limit: the limit of a quorum queue that names none
    :ivar negative_limit_is_none: True where a negative delivery limit stands for none, False where it is one
    :ivar returns_to_front: True where a message always returns to the front of a quorum queue, False where it goes to
        the end of one without a limit if the client returns it
    :ivar quorum_priorities: True where quorum queues know priorities
    :ivar delayed_retries: True where a quorum queue may wait before it delivers again what came back
    :ivar timeout_cancels: True where only quorum queues ask for acknowledgements in time, and take back what comes late
    :ivar trusts_death_header: True where a publisher's own ``x-death`` counts as the broker's
    :ivar records_last_death: True where a dead letter says how it died last, and keeps its ``CC``
    :ivar carries_failures: True where a dead letter goes on with the count of its deliveries in vain
    :ivar permitted: deprecated features, and whether they may be used
    """

    version: str
    arguments: ArgumentRules
    protocol_headers: Mapping[bytes, tuple[int, int]]
    other_protocol: bytes
    smallest_frame: int
    largest_message: int
    unknown_exchange_type: int
    names_rights: bool
    passive_needs_configure: bool
    replies_are_routed: bool
    quorum_in_get: str
    counts_first_get: bool
    counts_acquired: bool
    nack_counts: bool
    delivery_limit: int | None
    negative_limit_is_none: bool
    returns_to_front: bool
    quorum_priorities: bool
    delayed_retries: bool
    timeout_cancels: bool
    trusts_death_header: bool
    records_last_death: bool
    carries_failures: bool
    permitted: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    @property
    def shares_global_prefetch(self) -> bool:
        """Whether a ``global`` prefetch count is one for the channel; it limits each consumer alone where it is not."""
        return self.permitted.get('global_qos', True)

    def check_queue(self, durable: bool, exclusive: bool, arguments: Mapping[str, Any]) -> None:
        """Make sure that a queue uses no feature that is denied.

        :raises Refusal: 541
        """
        if not durable and not exclusive:
            self._check_permitted('transient_nonexcl_queues')
        if 'x-queue-master-locator' in arguments:
            self._check_permitted('queue_master_locator')

    def _check_permitted(self, feature: str) -> None:
        if self.permitted.get(feature, True):
            return
        text = f'Feature `{feature}` is deprecated.\n'
        if _DENIED_OF_4_3[feature]:
            text += (
                'By default, this feature is not permitted anymore.\nThe feature will be removed from a future major '
                'RabbitMQ version, regardless of the configuration; actual version to be determined.\nTo continue'
            )
        else:
            text += (
                'Its use is not permitted per the configuration (overriding the default, which is permitted):\n'
                f'    "deprecated_features.permit.{feature} = false"\nIts use will not be permitted by default in a '
                'future minor'
            )
        raise Refusal(INTERNAL_ERROR, text)


_DENIED_OF_4_3: Final = {'transient_nonexcl_queues': False, 'global_qos': True, 'queue_master_locator': True}
# That of 0-9-1 and, as older clients send it, of 0-9.
_HEADERS: Final = {b'AMQP\x00\x00\x09\x01': (0, 9), b'AMQP\x01\x01\x00\x09': (0, 9)}
FEATURES: Final = tuple(_DENIED_OF_4_3)

RULES: Final[dict[str, Rules]] = {
    '3.10': Rules(
        version='3.10.8',
        arguments=RULES_OF_3_10,
        protocol_headers={**_HEADERS, b'AMQP\x01\x01\x08\x00': (8, 0)},
        other_protocol=b'AMQP\x00\x00\x09\x01',
        smallest_frame=4096,
        largest_message=134_217_728,
        unknown_exchange_type=COMMAND_INVALID,
        names_rights=False,
        passive_needs_configure=False,
        replies_are_routed=False,
        quorum_in_get='quorum',
        counts_first_get=True,
        counts_acquired=False,
        nack_counts=True,
        delivery_limit=None,
        negative_limit_is_none=False,
        returns_to_front=False,
        quorum_priorities=False,
        delayed_retries=False,
        timeout_cancels=False,
        trusts_death_header=True,
        records_last_death=False,
        carries_failures=False,
    ),
    '4.3': Rules(
        version='4.3.6',
        arguments=RULES_OF_4_3,
        protocol_headers=_HEADERS,
        other_protocol=b'AMQP\x03\x01\x00\x00',
        smallest_frame=8192,
        largest_message=16_777_216,
        unknown_exchange_type=PRECONDITION_FAILED,
        names_rights=True,
        passive_needs_configure=True,
        replies_are_routed=True,
        quorum_in_get='<<"quorum">>',
        counts_first_get=False,
        counts_acquired=True,
        nack_counts=False,
        delivery_limit=20,
        negative_limit_is_none=True,
        returns_to_front=True,
        quorum_priorities=True,
        delayed_retries=True,
        timeout_cancels=True,
        trusts_death_header=False,
        records_last_death=True,
        carries_failures=True,
        permitted={feature: not denied for feature, denied in _DENIED_OF_4_3.items()},
    ),
}
DEFAULT: Final = '4.3'


def rules_of(version: str = DEFAULT, permit: Collection[str] = (), deny: Collection[str] = ()) -> Rules:
    """Return the rules of a version, with a configuration's choice of deprecated features.

    :param permit: those that are permitted
    :param deny: those that are denied
    :raises ValueError: where there is no such version or feature, or a feature is in both
    """
    rules = RULES.get(version)
    if rules is None:
        raise ValueError(f'rules={version!r}: what is known is {_listed(RULES)}')
    for name in (*permit, *deny):
        if name not in FEATURES:
            raise ValueError(f'{name!r} is no deprecated feature: these are {_listed(FEATURES)}')
        if name not in rules.permitted:
            raise ValueError(f'{name!r} cannot be chosen: RabbitMQ {version} has no deprecated features')
        if name in permit and name in deny:
            raise ValueError(f'{name!r} is both permitted and denied')
    chosen = dict.fromkeys(permit, True) | dict.fromkeys(deny, False)
    return dataclasses.replace(rules, permitted={**rules.permitted, **chosen})


def _listed(names: Collection[str]) -> str:
    return ', '.join(map(repr, names))
