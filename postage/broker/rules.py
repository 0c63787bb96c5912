"""Where versions of RabbitMQ differ, and which of them a broker follows.

Without more it follows 3.10. ``strict='4.3'`` follows the documented changes up to RabbitMQ 4.3, so that a program can
be tried against them before its broker is upgraded: https://github.com/rabbitmq/rabbitmq-server/releases/tag/v4.3.0,
https://www.rabbitmq.com/docs/4.3/nack and https://www.rabbitmq.com/docs/4.3/quorum-queues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from postage.broker.replies import INTERNAL_ERROR, Refusal


@dataclass(frozen=True)
class Rules:
    """What one version allows.

    :ivar version: what clients are told
    :ivar denied_features: deprecated features whose use is refused
    :ivar nack_counts: True where ``basic.nack`` counts towards the delivery limit, as ``basic.reject`` does
    :ivar delivery_limit: the limit of a quorum queue that names none
    :ivar classic_queues_time_out: True where acknowledgements to classic queues have a time limit too
    """

    version: str = '3.10'
    denied_features: frozenset[str] = frozenset()
    nack_counts: bool = True
    delivery_limit: int | None = None
    classic_queues_time_out: bool = True

    def check_global_prefetch(self) -> None:
        """Make sure that a channel may have a prefetch count that its consumers share.

        :raises Refusal: 541
        """
        self._check_permitted('global_qos')

    def check_queue(self, durable: bool, exclusive: bool, arguments: Mapping[str, Any]) -> None:
        """Make sure that a queue may be declared so.

        :raises Refusal: 541
        """
        if not durable and not exclusive:
            self._check_permitted('transient_nonexcl_queues')
        if 'x-queue-master-locator' in arguments:
            self._check_permitted('queue_master_locator')
        if 'x-queue-mode' in arguments or arguments.get('x-queue-version') == 1:
            self._check_permitted('classic_queue_v1')

    def _check_permitted(self, feature: str) -> None:
        if feature in self.denied_features:
            text = f'Feature `{feature}` is deprecated.\nBy default, this feature is not permitted anymore.'
            raise Refusal(INTERNAL_ERROR, text)


RULES: Final[dict[str | None, Rules]] = {
    None: Rules(),
    '4.3': Rules(
        version='4.3',
        denied_features=frozenset(
            ('transient_nonexcl_queues', 'global_qos', 'queue_master_locator', 'classic_queue_v1')
        ),
        nack_counts=False,
        delivery_limit=20,
        classic_queues_time_out=False,
    ),
}


def rules_of(version: str | None) -> Rules:
    """Return the rules of a version.

    :raises ValueError: where there are none
    """
    try:
        return RULES[version]
    except KeyError:
        known = ', '.join(repr(each) for each in RULES if each)
        raise ValueError(f'strict={version!r}: what is known is {known}') from None
