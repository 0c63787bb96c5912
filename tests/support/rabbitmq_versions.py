"""Which RabbitMQ the tests run on: the installed one, or one of those that ``make brokers`` prepares.

``POSTAGE_TEST_BROKER`` names it (``make test BROKER=4.3``). A prepared one is a small Debian in a folder of its own
below ``POSTAGE_BROKERS``. Its node runs there by ``chroot``, in a mount namespace of its own: what is mounted for it is
gone with the node, however that ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Called directly: the script of the same name in /usr/sbin of Debian changes the user.
DEBIAN_SERVER = '/usr/lib/rabbitmq/bin/rabbitmq-server'

INSTALLED = '3.10'
"""The name of the installed one; that is the version which Debian 12 has."""
PREPARED = ('4.0', '4.3')

# Read when the tests begin: each of them runs without the variables of Postage.
WANTED = os.environ.get('POSTAGE_TEST_BROKER') or INSTALLED
HOME = Path(os.environ.get('POSTAGE_BROKERS') or '/var/cache/postage/brokers')

# The folders' names are the same on both sides, so that paths may be handed over. Nodes need the machine's own name.
ENTER = """
root=$1 shared=$2
shift 2
mkdir -p "$root$shared" && touch "$root/etc/hosts" || exit
for each in /proc /dev /etc/hosts "$shared"; do
    mount --rbind "$each" "$root$each" || exit
done
exec chroot "$root" "$@"
"""


class Server(NamedTuple):
    """A RabbitMQ that can be started.

    :ivar path: of the script that starts it
    :ivar root: the folder that it takes for the whole machine, or ``None``
    """

    path: str
    root: Path | None = None

    def command(self, *command: str) -> Sequence[str]:
        """Return the command that runs another one where the server is installed."""
        if self.root is None:
            return command
        return ['unshare', '--mount', '/bin/sh', '-c', ENTER, 'sh', str(self.root), tempfile.gettempdir(), *command]


def find_server(version: str = WANTED) -> Server | None:
    """Return the RabbitMQ of a version, or ``None`` where it cannot be started here.

    :raises ValueError: for a version that the tests do not know
    """
    if version in PREPARED:
        root = HOME / version
        # Without root there is no chroot.
        can_start = os.geteuid() == 0 and os.access(f'{root}{DEBIAN_SERVER}', os.X_OK)
        return Server(DEBIAN_SERVER, root) if can_start else None
    if version != INSTALLED:
        raise ValueError(f'RabbitMQ {version!r}: the tests know {INSTALLED} and {", ".join(PREPARED)}')
    path = DEBIAN_SERVER if os.access(DEBIAN_SERVER, os.X_OK) else shutil.which('rabbitmq-server')
    return None if path is None else Server(path)


def not_installed(version: str = WANTED) -> str:
    """Return the sentence that says what is missing where :func:`find_server` finds nothing."""
    name = f'rabbitmq-server {version}' if version in PREPARED else 'rabbitmq-server'
    return f'{name} is not installed'
