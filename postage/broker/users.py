"""Users, and what each may do (https://www.rabbitmq.com/docs/access-control).

A right is a regular expression for the names of the resources that it covers; the default exchange is called
``amq.default``. A user without configured permissions may do everything in every virtual host.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from postage.broker.replies import ACCESS_REFUSED, Refusal
from postage.secret import Secret

_DEFAULT_EXCHANGE: Final = 'amq.default'


class Permissions(NamedTuple):
    """Three regular expressions, searched in names as RabbitMQ does; an empty one covers nothing."""

    configure: str = '.*'
    write: str = '.*'
    read: str = '.*'


class Grant:
    """What one user may do in one virtual host.

    :param names_rights: whether a refusal says which right is missing
    """

    def __init__(self, user: str, vhost: str, permissions: Permissions, names_rights: bool = False) -> None:
        self._user = user
        self._names_rights = names_rights
        self._vhost = vhost
        self._patterns = {
            right: re.compile(pattern or '^$') for right, pattern in Permissions(*permissions)._asdict().items()
        }

    def check(self, right: str, kind: str, name: str) -> None:
        """Make sure that the user has a right.

        :param right: ``configure``, ``write`` or ``read``
        :param kind: ``queue`` or ``exchange``
        :raises Refusal: 403
        """
        if kind == 'exchange' and not name:
            name = _DEFAULT_EXCHANGE
        if not self._patterns[right].search(name):
            resource = f"{kind} '{name}' in vhost '{self._vhost}'"
            missing = f'{right} access' if self._names_rights else 'access'
            raise Refusal(ACCESS_REFUSED, f"{missing} to {resource} refused for user '{self._user}'")


class Users:
    """The users of a broker.

    :param passwords: passwords by user name, as text or as secrets; the mapping may be one, too
    :param permissions: by user name and virtual host; a user that is not in it may do everything everywhere, one that
        is may enter those virtual hosts only
    :param names_rights: see :class:`Grant`
    :raises re.error: where a permission is not a regular expression
    """

    def __init__(
        self,
        passwords: Any,
        permissions: Mapping[str, Mapping[str, Permissions]] | None = None,
        names_rights: bool = False,
    ) -> None:
        passwords = Secret.of(passwords)
        if not isinstance(passwords.reveal(), Mapping):
            raise TypeError(f'users must be a mapping of names to passwords, not {type(passwords.reveal()).__name__}')
        self._names_rights = names_rights
        self._passwords: dict[str, Secret[str]] = {}
        self._grants: dict[str, dict[str, Grant]] = {}
        for user in passwords.reveal():
            self.add(user, Secret.of(passwords.reveal()[user]), (permissions or {}).get(user))

    def add(self, user: str, password: Any, permissions: Mapping[str, Permissions] | None = None) -> None:
        """Add a user, or change one for connections to come.

        :param permissions: by virtual host; ``None`` for everything everywhere
        """
        password = Secret.of(password)
        if not isinstance(password.reveal(), str):
            raise TypeError(f'the password of {user!r} must be text, not {type(password.reveal()).__name__}')
        self._passwords[user] = password
        self._grants.pop(user, None)
        if permissions is not None:
            self._grants[user] = {
                vhost: Grant(user, vhost, each, self._names_rights) for vhost, each in permissions.items()
            }

    def knows(self, user: str) -> bool:
        """Tell whether there is such a user."""
        return user in self._passwords

    def is_password(self, user: str, password: Secret[bytes]) -> bool:
        """Tell whether there is such a user and this is the password. How long it takes does not tell more."""
        known = self._passwords.get(user)
        expected = Secret(b'' if known is None else known.reveal().encode())
        return hmac.compare_digest(expected.reveal(), password.reveal()) and known is not None

    def may_enter(self, user: str, vhost: str) -> bool:
        """Tell whether a user may open a virtual host."""
        return user not in self._grants or vhost in self._grants[user]

    def grant(self, user: str, vhost: str) -> Grant | None:
        """Return what a user may do in a virtual host; ``None`` stands for everything."""
        return self._grants[user][vhost] if user in self._grants else None
