"""Fingerprints: who sends a message, and from where."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from postage.errors import ConfigurationError
from postage.printable import shown_half_built
from postage.settings import default_vhost, program_settings


class Fingerprint:
    """Identifies a component on the network.

    What is not given is looked up when the object is made, not at import, so that a forked child has its own
    pid. Mutable; a fingerprint is accepted wherever its dictionary is.

    :param name: the name of the component
    :param type: a rough category of it
    :param pid: the process, by default this one; kept as text, for so it travels
    :param host: by default the name of this host
    :param user: by default the operating system's user who runs this process
    :param vhost: by default the virtual host that ``messaging.global_vhost`` or the environment names
    :raises ConfigurationError: where the virtual host is looked up and a setting is malformed
    """

    __slots__ = ('host', 'name', 'pid', 'type', 'user', 'vhost')

    def __init__(
        self,
        name: str | None = None,
        type: str | None = None,
        pid: int | str | None = None,
        host: str | None = None,
        user: str | None = None,
        vhost: str | None = None,
    ) -> None:
        self.name = name
        self.type = type
        self.pid = str(os.getpid() if pid is None else pid)
        self.host = socket.gethostname() if host is None else host
        self.user = _current_user() if user is None else user
        self.vhost = default_vhost(program_settings()) if vhost is None else vhost

    def as_tuple(self) -> tuple[str | None, str | None, str, str, str, str]:
        """Return name, type, pid, host, user and virtual host."""
        return self.name, self.type, self.pid, self.host, self.user, self.vhost

    def as_dict(self) -> dict[str, str | None]:
        """Return a new dictionary: ``name``, ``type``, ``pid``, ``host``, ``user`` and ``vhost``."""
        return {
            'name': self.name,
            'type': self.type,
            'pid': self.pid,
            'host': self.host,
            'user': self.user,
            'vhost': self.vhost,
        }

    def __eq__(self, other: object) -> bool:
        return self.as_tuple() == other.as_tuple() if isinstance(other, Fingerprint) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    @shown_half_built
    def __repr__(self) -> str:
        fields = ', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())
        return f'{type(self).__name__}({fields})'


def as_fingerprint_dict(value: Any = None) -> dict[str, Any]:
    """Return the dictionary form of what a constructor was given as its fingerprint, always a new one.

    :param value: a :class:`Fingerprint`, its dictionary, any object with ``as_dict()``, or ``None`` for a bare
        fingerprint
    :raises ConfigurationError: where it is something else
    """
    if value is None:
        return Fingerprint().as_dict()
    as_dict = getattr(value, 'as_dict', None)
    fingerprint = as_dict() if callable(as_dict) and not isinstance(value, type) else value
    if not isinstance(fingerprint, Mapping):
        raise ConfigurationError(
            'a fingerprint must be a Fingerprint, a dictionary or an object whose as_dict() returns one, '
            f'not {_description(value)}'
        )
    return dict(fingerprint)


def _description(value: object) -> str:
    return f'the class {value.__name__}' if isinstance(value, type) else type(value).__name__


def _current_user() -> str:
    """Return the user who runs this process; the number where the container's image has no name for it."""
    try:
        import pwd
    except ImportError:  # there is none on Windows
        import getpass

        return getpass.getuser()
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
