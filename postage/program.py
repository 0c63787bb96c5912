"""What a program sets on :mod:`postage.messaging` at run time, such as ``messaging.global_vhost``.

The attributes live on that package because programs set them there. They are looked up here when they are asked for,
and without an import, since the package imports the modules that ask for them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Literal

from postage.errors import ConfigurationError
from postage.printable import shown, shown_half_built
from postage.secret import Secret, revealed
from postage.settings import HUP_KEYS, BrokerSettings, broker_settings

NAMES = ('global_hup', 'global_vhost', 'global_user', 'global_password', 'debug_mode')
SECRET_NAMES = ('global_hup', 'global_password')


class ProgramHup(MutableMapping[str, Any]):
    """``messaging.global_hup``: reads as the HUP that counts where no argument and no class says otherwise.

    What a program sets in it counts from then on; what it deletes is what the environment says again.

    :ivar changes: what the program has set
    """

    def __init__(self) -> None:
        self.changes: dict[str, Any] = {}

    def _effective(self) -> dict[str, Any]:
        settings = effective_settings()
        endpoints = settings.endpoints
        hup: dict[str, Any] = {'host': ','.join(endpoint.host for endpoint in endpoints)}
        if broker_settings(hup, program=program_settings()).endpoints != endpoints:  # such as those of a URL
            hup['host'] = ','.join(map(str, endpoints))
            tls = next((endpoint.ssl_options for endpoint in endpoints if endpoint.ssl_options), None)
            if tls is not None:
                hup['ssl'] = tls
        return {**hup, 'user': settings.user, 'password': settings.password.reveal(), **self.changes}

    def __getitem__(self, key: str) -> Any:
        return self._effective()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key in HUP_KEYS:
            self.changes[key] = value
            return
        del value  # which may be a password, by a name that was misspelt
        raise ConfigurationError(f'messaging.global_hup has the keys {", ".join(HUP_KEYS)}, not {shown(key)}')

    def __delitem__(self, key: str) -> None:
        del self.changes[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._effective())

    def __len__(self) -> int:
        return len(self._effective())

    @shown_half_built
    def __repr__(self) -> str:
        return repr({key: value for key, value in self.items() if key != 'password'})

    def copy(self) -> dict[str, Any]:
        """A dictionary with what it reads as now."""
        return dict(self)


global_hup = ProgramHup()


def program_settings() -> dict[str, Any]:
    """Return the run-time settings as a new dictionary, ``None`` where the program set nothing.

    Its keys are :data:`NAMES`: what :func:`broker_settings` takes as ``program``, the HUP and the password as secrets.
    Does not block; safe in any thread.
    """
    messaging = sys.modules.get('postage.messaging')
    given = dict.fromkeys(NAMES)
    if messaging is not None:
        given |= {name: Secret.of(vars(messaging).get(name)) for name in SECRET_NAMES}
        given |= {name: vars(messaging).get(name) for name in NAMES if name not in SECRET_NAMES}
    hup = revealed(given['global_hup'])
    if isinstance(hup, ProgramHup):
        given['global_hup'] = Secret(dict(hup.changes)) if hup.changes else None
    return given


def effective_settings() -> BrokerSettings:
    """The broker that counts where no argument and no class says otherwise.

    :raises ConfigurationError: where a setting is malformed
    """
    return broker_settings(program=program_settings())


def effective(name: Literal['global_vhost', 'global_user', 'global_password']) -> str:
    """One of these settings as it counts."""
    return str(revealed(getattr(effective_settings(), name.removeprefix('global_'))))


GONE: Mapping[str, str] = {
    'MessageHandlerType': 'processors need no metaclass: handlers of every base class count',
    'ExchangeType': 'exchanges need no metaclass: their class attributes count',
    'pika': 'import pika where it is needed',
}
"""Names of ``postage.messaging`` that there were, and what to do instead."""
