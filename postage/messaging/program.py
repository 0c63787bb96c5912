"""What a program set on :mod:`postage.messaging` at run time, such as ``messaging.global_vhost``.

The attributes live on the package because that is where programs set them. They are looked up here, at call
time and without an import, since the package itself imports the modules that ask for them.
"""

from __future__ import annotations

import sys
from typing import Any

NAMES = ('global_hup', 'global_vhost', 'global_user', 'global_password', 'debug_mode')


def program_settings() -> dict[str, Any]:
    """Return the run-time settings as a new dictionary, ``None`` where the program set nothing.

    Its keys are ``global_hup``, ``global_vhost``, ``global_user``, ``global_password`` and ``debug_mode``: what
    :func:`postage.settings.broker_settings` takes as ``program``. Does not block; safe in any thread.
    """
    messaging = sys.modules.get('postage.messaging')
    return {name: getattr(messaging, name, None) for name in NAMES}
