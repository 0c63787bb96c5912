"""How components are addressed on :class:`ControlExchange`: by name, by host, by process, by group, or all of them.

=======================  ========================================  ===========================
address                  reaches                                   routing key
=======================  ========================================  ===========================
nothing                  every component                           ``all``
``{name}``               those of that name                        ``name.{name}``
``@{host}``              those on that host                        ``host.{host}``
``{name}@{host}``        those of that name on that host           ``at.{host}.{name}``
``{pid}@{host}``         those of that process                     ``at.{host}.{pid}``
``{name}:{pid}@{host}``  the one of that name in that process      ``one.{host}.{pid}.{name}``
``{name}#{group}``       those of that name in the group           ``group.{group}.{name}``
=======================  ========================================  ===========================

Each part is one word of the key: what a topic exchange would read in it is written as ``%`` and two digits, as in URLs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from postage import errors
from postage.messaging.exchanges import Exchange
from postage.printable import shown

ALL = 'all'


class ControlExchange(Exchange):
    """The exchange on which components answer questions about themselves, reserved for that."""

    name = 'postage-control'
    exchange_type = 'topic'
    durable = True
    auto_delete = False


def control_key(address: str) -> str:
    """The routing key of an address, see above.

    :raises errors.ConfigurationError: it is none
    """
    if not address:
        return ALL
    who, at, host = address.partition('@')
    if at and host and '#' not in address:
        name, _, pid = who.rpartition(':')
        if name and pid.isdecimal():
            return f'one.{_word(host)}.{_word(pid)}.{_word(name)}'
        return f'at.{_word(host)}.{_word(who)}' if who else f'host.{_word(host)}'
    name, number_sign, group = address.partition('#')
    if name and not at and not number_sign:
        return f'name.{_word(name)}'
    if name and not at and group:
        return group_key(name, group)
    raise errors.ConfigurationError(
        f'an address is name, @host, name@host, pid@host, name:pid@host or name#group, and not {shown(address)}'
    )


def group_key(name: str, group: str) -> str:
    """The key of a group."""
    return f'group.{_word(group)}.{_word(name)}'


def keys_of(fingerprint: Mapping[str, Any], groups: Iterable[str] = ()) -> list[str]:
    """The keys by which a component is reached."""
    name, pid, host = (fingerprint.get(part) for part in ('name', 'pid', 'host'))
    keys = [ALL]
    if name:
        keys.append(f'name.{_word(name)}')
        keys.extend(group_key(name, group) for group in groups)
    if host:
        keys.append(f'host.{_word(host)}')
        keys.extend(f'at.{_word(host)}.{_word(part)}' for part in (name, pid) if part)
        if name and pid:
            keys.append(f'one.{_word(host)}.{_word(pid)}.{_word(name)}')
    return keys


def _word(text: object) -> str:
    return re.sub('[%.*#]', lambda found: f'%{ord(found.group()):02x}', str(text))
