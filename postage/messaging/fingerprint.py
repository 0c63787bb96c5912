"""Fingerprints: which program sends a message, and from where."""

from __future__ import annotations

import os
import socket
from collections.abc import KeysView, Mapping
from typing import Any

from postage.errors import ConfigurationError
from postage.printable import shown, shown_half_built
from postage.program import program_settings
from postage.settings import default_vhost

_KEYS = ('name', 'type', 'pid', 'host', 'user', 'vhost')


class Fingerprint:
    """Identifies a component on the network.

    What is not given is looked up when the object is made, not at import, so that a forked child has its own
    pid. Mutable; a fingerprint is accepted wherever its dictionary is. All values but ``None`` are kept as text, the
    form in which they travel.

    :param name: the name of the component
    :param type: a rough category of it
    :param pid: the process, by default this one
    :param host: by default the name of this host
    :param user: by default the operating system's user who runs this process
    :param vhost: by default the virtual host that ``messaging.global_vhost`` or the environment names
    :raises ConfigurationError: where the virtual host is looked up and a setting is malformed; a value has no text
    """

    def __init__(
        self,
        name: object = None,
        type: object = None,
        pid: object = None,
        host: object = None,
        user: object = None,
        vhost: object = None,
    ) -> None:
        self.name = None if name is None else _text(name, 'name')
        self.type = None if type is None else _text(type, 'type')
        self.pid = _text(os.getpid() if pid is None else pid, 'pid')
        self.host = _text(socket.gethostname() if host is None else host, 'host')
        self.user = _text(_current_user() if user is None else user, 'user')
        self.vhost = _text(default_vhost(program_settings()) if vhost is None else vhost, 'vhost')

    def as_tuple(self) -> tuple[str | None, str | None, str, str, str, str]:
        """Return name, type, pid, host, user and virtual host."""
        return self.name, self.type, self.pid, self.host, self.user, self.vhost

    def as_dict(self) -> dict[str, str | None]:
        """Return a new dictionary: ``name``, ``type``, ``pid``, ``host``, ``user`` and ``vhost``."""
        return dict(zip(_KEYS, self.as_tuple(), strict=True))

    def keys(self) -> KeysView[str]:
        """The keys of its dictionary: ``dict(fingerprint)`` and ``**fingerprint`` are that."""
        return self.as_dict().keys()

    def __getitem__(self, key: str) -> str | None:
        return self.as_dict()[key]

    def __eq__(self, other: object) -> bool:
        return self.as_tuple() == other.as_tuple() if isinstance(other, Fingerprint) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    @shown_half_built
    def __repr__(self) -> str:
        fields = ', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())
        return f'{type(self).__name__}({fields})'


def as_fingerprint_dict(value: Any = None, vhost: str | None = None) -> dict[str, Any]:
    """Return the dictionary form of what a constructor was given as its fingerprint, always a new one.

    A dictionary is laid over the fingerprint of this process: all six keys are there, and any others that it has.

    :param value: a :class:`Fingerprint`, its dictionary, any object with ``as_dict()``, or ``None`` for a bare
        fingerprint
    :param vhost: the virtual host, where ``value`` does not name one; by default that of a bare fingerprint
    :raises ConfigurationError: where it is something else
    """
    if value is None:
        return Fingerprint(vhost=vhost).as_dict()
    as_dict = getattr(value, 'as_dict', None)
    fingerprint = as_dict() if callable(as_dict) and not isinstance(value, type) else value
    if not isinstance(fingerprint, Mapping):
        raise ConfigurationError(
            'a fingerprint must be a Fingerprint, a dictionary or an object whose as_dict() returns one, '
            f'not {_description(value)}'
        )
    if fingerprint.keys() >= set(_KEYS):
        return dict(fingerprint)
    return {**Fingerprint(vhost=fingerprint.get('vhost', vhost)).as_dict(), **fingerprint}


def _text(value: object, part: str) -> str:
    try:
        return str(value)
    except Exception:
        raise ConfigurationError(f'the {part} of a fingerprint must be text, not {shown(value)}') from None


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
