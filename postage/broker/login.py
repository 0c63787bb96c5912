"""Which user a client is: the two mechanisms of RabbitMQ that need no more than a name and a password; and guessing."""

# pika.data has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pika import data

from postage.broker.clock import Clock
from postage.broker.replies import COMMAND_INVALID, Refusal
from postage.broker.users import Users
from postage.secret import Secret


class Login(NamedTuple):
    """The user that a client says it is, with a password."""

    user: str
    password: Secret[bytes]


FREE_FAILURES: Final = 3  # which cost nothing: people mistype
SHORTEST_WAIT: Final = 0.1  # seconds, twice as many after each failure that follows
LONGEST_WAIT: Final = 5.0
PATIENCE: Final = 8.0  # seconds that a login waits for its turn; a handshake may take little longer
FORGIVEN: Final = 60.0  # seconds without a failure
REMEMBERED: Final = 1000  # addresses with users


@dataclass
class _Failures:
    count: int = 0
    last: float = 0.0
    free_at: float = 0.0  # when the next login may be looked at


class Guard:
    """Slows down guessing: after a few failures, logins as that user from that address are looked at one by one.

    The right password waits its turn, too, or several connections at once would tell it from the wrong ones. Users that
    do not exist count as one, so that no guess tells which do; other addresses and other users wait for nothing.
    """

    def __init__(self, clock: Clock, users: Users) -> None:
        self._clock = clock
        self._users = users
        self._failures: OrderedDict[tuple[str, str | None], _Failures] = OrderedDict()

    def seconds_to_wait(self, address: str, user: str) -> float | None:
        """Take a turn, and tell how long it is until then; ``None`` where too many wait already."""
        key, now = self._key(address, user), self._clock.now()
        failures = self._failures.get(key)
        if failures is None:
            return 0.0
        if now - failures.last > FORGIVEN:
            del self._failures[key]
            return 0.0
        wait = max(0.0, failures.free_at - now)
        if wait > PATIENCE:
            return None
        failures.free_at = now + wait + _pause(failures.count)
        return wait

    def failed(self, address: str, user: str) -> None:
        """Hear that a login was refused."""
        key, now = self._key(address, user), self._clock.now()
        failures = self._failures.setdefault(key, _Failures())
        failures.count += 1
        failures.last = now
        failures.free_at = max(failures.free_at, now + _pause(failures.count))
        self._failures.move_to_end(key)
        if len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)

    def _key(self, address: str, user: str) -> tuple[str, str | None]:
        return address, user if self._users.knows(user) else None


def _pause(failures: int) -> float:
    if failures < FREE_FAILURES:
        return 0.0
    return float(min(LONGEST_WAIT, SHORTEST_WAIT * 2 ** min(failures - FREE_FAILURES, 30)))


def login_of(mechanism: str, response: Secret[str]) -> Login:
    """Return the user that a client says it is; a response that cannot be read names none.

    :raises Refusal: 503 for another mechanism
    """
    if mechanism not in ('PLAIN', 'AMQPLAIN'):
        raise Refusal(COMMAND_INVALID, f"unknown authentication mechanism '{mechanism}'")
    name, password = (_read_plain if mechanism == 'PLAIN' else _read_amqplain)(response)
    return Login(name.decode('utf-8', 'replace'), password)


def _read_plain(response: Secret[str]) -> tuple[bytes, Secret[bytes]]:
    parts = Secret([*response.reveal().encode('utf-8', 'surrogateescape').split(b'\0', 2), b'', b''])
    return parts.reveal()[1], Secret(parts.reveal()[2])


def _read_amqplain(response: Secret[str]) -> tuple[bytes, Secret[bytes]]:
    """Return user and password of RabbitMQ's AMQPLAIN, a table without its length."""
    try:
        raw = Secret(response.reveal().encode('utf-8', 'surrogateescape'))
        table = Secret(data.decode_table(struct.pack('>I', len(raw.reveal())) + raw.reveal(), 0)[0])
        return _as_bytes(table.reveal()['LOGIN']), Secret(_as_bytes(table.reveal()['PASSWORD']))
    except Exception:
        return b'', Secret(b'')


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
