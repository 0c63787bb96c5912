"""What becomes of a dead message: the record of its deaths, and whether it has been round in a circle.

See https://www.rabbitmq.com/docs/dlx: deaths by queue and reason, counted, the latest first. Old versions read the
record from the message's headers, where a publisher may have put what it likes; new ones keep it apart and only write
it there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from postage.broker import arguments as args
from postage.broker import tables
from postage.broker.messages import ContentHeader, Message
from postage.broker.replies import PRECONDITION_FAILED, Refusal
from postage.broker.rules import Rules

Deaths = Sequence[Mapping[str, Any]]


def deaths_of(message: Message, rules: Rules) -> Deaths | None:
    """Return the deaths that count, the latest first; ``None`` where this would be the first."""
    if not rules.trusts_death_header:
        return message.deaths or None
    recorded = message.header.header(b'x-death')
    return [death for death in recorded if isinstance(death, dict)] if isinstance(recorded, list) else None


def dead_letter_of(
    message: Message,
    queue: str,
    arguments: Mapping[str, Any],
    exchange: str,
    reason: str,
    rules: Rules,
    failures: int = 0,
) -> Message:
    """Return the message that a dead one becomes, its death recorded.

    The expiration goes, so that it does not die again at once; it is kept in the record.

    :param arguments: those of the queue that it died in
    :param exchange: where it goes
    :param failures: how often it was delivered in vain
    """
    header = message.header
    death: dict[str, Any] = {
        'reason': reason,
        'queue': queue,
        'time': datetime.now(timezone.utc).replace(microsecond=0),
        'exchange': message.exchange,
        'routing-keys': [_encodable(key) for key in (message.routing_key, *carbon_copies(header, b'CC'))],
    }
    expiration = header.text('expiration')
    if expiration is not None:
        death['original-expiration'] = expiration
    this = {'reason': reason, 'queue': queue, 'exchange': message.exchange}
    recorded = deaths_of(message, rules)
    deaths = _with_death(recorded or (), death)
    changes: dict[str, Any] = {'x-death': deaths}
    if recorded is None:
        changes.update({f'x-first-death-{what}': value for what, value in this.items()})
    if rules.records_last_death:
        changes.update({f'x-last-death-{what}': value for what, value in this.items()})
    key = arguments.get('x-dead-letter-routing-key')
    if key is not None and not rules.records_last_death:
        changes['CC'] = None
    changed = header.replace(expiration=None, headers=tables.merge(header.headers, changes))
    keys = message.routing_keys if key is None else (key,)
    return Message(
        exchange,
        keys[0],
        changed,
        message.body,
        routing_keys=keys,
        deaths=deaths,
        memory=message.memory,
        failures=failures if rules.carries_failures else 0,
    )


def carbon_copies(header: ContentHeader, key: bytes) -> list[str]:
    """Return the further routing keys of a CC or BCC header.

    See https://www.rabbitmq.com/docs/sender-selected

    :raises Refusal: 406, where the header is not a list; what is not text in the list is passed over
    """
    value = header.header(key)
    if value is None:
        return []
    if not isinstance(value, list):
        wrong = f'{{unacceptable_type_in_header,"{key.decode()}",{args.type_name(value)}}}'
        raise Refusal(PRECONDITION_FAILED, f'invalid message: {wrong}')
    return [name for name in value if isinstance(name, str)]


def _encodable(text: str) -> str:
    return text.encode('utf-8', 'replace').decode()


def _with_death(recorded: Deaths, death: dict[str, Any]) -> list[Mapping[str, Any]]:
    same = [old for old in recorded if (old.get('queue'), old.get('reason')) == (death['queue'], death['reason'])]
    others = [old for old in recorded if old not in same]
    if not same:
        return [{'count': tables.Long(1), **death}, *others]
    count = same[0].get('count')
    return [{**same[0], 'count': tables.Long(count + 1 if isinstance(count, int) else 1)}, *others]


def is_cycle(queue: str, deaths: Deaths) -> bool:
    """Tell whether a message has been through this queue already, with no rejection on the way round."""
    for death in deaths:
        if death.get('reason') == 'rejected':
            return False
        if death.get('queue') == queue:
            return True
    return False
