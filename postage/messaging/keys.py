"""The keys that messages are signed with: where they come from, and what they have to be.

A frame holds a key in a :class:`postage.secret.Secret` only, but for one that raises nothing.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any, Final

from postage.errors import ConfigurationError
from postage.printable import shown, shown_half_built
from postage.secret import Secret

VARIABLE: Final = 'POSTAGE_SIGNING_KEYS'
FILE_VARIABLE: Final = 'POSTAGE_SIGNING_KEYS_FILE'
SHORTEST: Final = 16  # bytes; half of what HMAC-SHA256 can make use of (RFC 2104, section 3)

_ID: Final = re.compile('[A-Za-z0-9_.-]{1,64}')


class Key:
    """One key.

    :ivar id: by which it is named in a signature
    """

    __slots__ = ('_secret', 'id')

    def __init__(self, id: str, secret: Secret[bytes]) -> None:
        self.id = id
        self._secret = secret

    @shown_half_built
    def __repr__(self) -> str:
        return f'<Key {self.id}>'

    def __reduce__(self) -> Any:
        raise TypeError('a key is not pickled')

    def mac(self, data: bytes) -> bytes:
        """The HMAC-SHA256 of some bytes."""
        return hmac.digest(self._secret.reveal(), data, 'sha256')


def keys_of(where: str, given: Any, environ: Mapping[str, str] | None = None) -> tuple[Key, ...]:
    """The keys that a class names, or else the environment: the first one signs, each of them verifies.

    :param where: what names them, for errors
    :param given: text or bytes, a list of these, pairs of an id and a key, or a dictionary of keys by their ids;
        ``None`` for what the environment says, ``False`` for no keys whatever that is
    :param environ: the environment, ``os.environ`` by default
    :return: none where nothing is to be signed
    :raises ConfigurationError: what is there are no keys, or one of them is too short, or two have one id
    """
    given, variables, fault = Secret.of(given), Secret(os.environ if environ is None else environ), ''
    del environ
    if given is None:
        where, given, fault = _of_environment(variables)
        if given is None and not fault:
            return ()
    elif given.reveal() is False:
        return ()
    keys, fault = _read(given) if not fault else ((), fault)
    if fault:
        raise ConfigurationError(f'{where} {fault}')
    return keys


def _of_environment(environ: Secret[Any]) -> tuple[str, Secret[str] | None, str]:
    """Which variable there is, what it says, and what is wrong with it."""
    if VARIABLE in environ.reveal():
        return VARIABLE, Secret(environ.reveal()[VARIABLE]), ''
    path = environ.reveal().get(FILE_VARIABLE)
    if not path:
        return FILE_VARIABLE, None, ''
    try:
        with open(path, encoding='utf-8') as file:
            found = os.stat(file.fileno())
            # As other programs have it: 0600, or 0640 where the administrator has given it to a group.
            for_others = 0o037 if found.st_uid == 0 else 0o077
            if stat.S_IMODE(found.st_mode) & for_others:
                return FILE_VARIABLE, None, 'names a file that others than its owner may read; its mode must be 0600'
            return FILE_VARIABLE, Secret(file.read()), ''
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'it is not UTF-8'
    return FILE_VARIABLE, None, f'names a file that cannot be read: {reason}'


def _read(given: Secret[Any]) -> tuple[tuple[Key, ...], str]:
    """The keys, and what is wrong with them. Raises nothing, for its frame knows them."""
    keys: dict[str, Key] = {}
    for number, (id, secret) in enumerate(_entries(given.reveal()), 1):
        if isinstance(secret, str):
            secret = secret.encode('utf-8', 'surrogatepass')
        if not isinstance(secret, (bytes, bytearray)):
            return (), f'has to be keys, as text or bytes, each with an id or without; number {number} is none'
        if id is not None and not (isinstance(id, str) and _ID.fullmatch(id)):
            return (), f'has a key, number {number}, whose id is not 1 to 64 letters, digits, or one of "._-"'
        if len(secret) < SHORTEST:
            what = 'is empty' if not secret else f'has {len(secret)} bytes'
            return (), f'has a key that {what}, number {number}; a key has {SHORTEST} bytes or more'
        key = Key(id or _id_of(bytes(secret)), Secret(bytes(secret)))
        if key.id in keys:
            return (), f'has two keys with the id {shown(key.id)}'
        keys[key.id] = key
    if not keys:
        return (), 'is empty; a key has 16 bytes or more. Leave it out, or say False, where nothing is to be signed'
    return tuple(keys.values()), ''


def _entries(given: Any) -> Iterator[tuple[Any, Any]]:
    """Ids, ``None`` for those that are left out, and keys, as far as they look like that."""
    if isinstance(given, str):
        for word in re.split(r'[\s,]+', given.strip()):
            if word:
                id, colon, secret = word.partition(':')
                yield (id, secret) if colon else (None, word)
    elif isinstance(given, (bytes, bytearray)):
        yield None, given
    elif isinstance(given, Mapping):
        yield from given.items()
    elif isinstance(given, (list, tuple)):
        for entry in given:
            if isinstance(entry, (list, tuple)):
                id, secret = entry if len(entry) == 2 else (None, None)
                yield id, secret
            elif isinstance(entry, str):
                yield from _entries(entry) if entry.strip() else ((None, ''),)
            else:
                yield None, entry
    else:
        yield None, None


def _id_of(secret: bytes) -> str:
    """The id of a key that was given none: the same in all programs that have the key, and no way back to it."""
    return hmac.digest(secret, b'postage key id', 'sha256').hex()[:8]
