"""systemd as the first process of namespaces of its own, with the units of a test and no others.

The machine's own files are all there, but for ``/srv``, ``/run`` and the folder of units. The network is its own, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.messaging import eventually

SYSTEMD = '/lib/systemd/systemd'
NAMESPACES = ('--mount', '--pid', '--cgroup', '--uts', '--ipc')
TARGET = 'test.target'
HIERARCHIES = [Path('/sys/fs/cgroup', name) for name in ('', 'systemd', 'unified')]
"""Where systemd may have its cgroups: version 2 alone, and version 1 with or without that."""

BOOT = """
set -e
mount --make-rprivate /
for each in /etc/systemd/system /srv /run; do mount -t tmpfs tmpfs $each; done
mount -t proc proc /proc
cp -r "$1"/units/. /etc/systemd/system/
cp -r "$1"/srv/. /srv/
while read -r target source; do mkdir -p "$target"; mount --bind "$source" "$target"; done <"$1"/binds
mount --make-rshared /
exec env -i container=other PATH="$PATH" "$2" --system --unit="$3" --log-target=console --show-status=no
"""


def why_not() -> str:
    """Why that cannot be done here; empty where it can."""
    if sys.platform != 'linux' or os.geteuid() != 0:
        return 'namespaces need root, on Linux'
    if not os.access(SYSTEMD, os.X_OK) or shutil.which('nsenter') is None or not _hierarchies():
        return 'systemd is not installed, or there are no cgroups'
    tried = subprocess.run(['unshare', *NAMESPACES, '--fork', 'mount', '--make-rprivate', '/'], capture_output=True)
    return '' if tried.returncode == 0 else 'no namespaces can be made'


def _hierarchies() -> list[Path]:
    return [each for each in HIERARCHIES if os.access(each / 'cgroup.procs', os.W_OK)]


class Systemd:
    """A systemd that runs, as :func:`booted` makes it."""

    def __init__(self, pid: int) -> None:
        self._enter = ['nsenter', '--target', str(pid), *NAMESPACES]

    def run(self, *command: str) -> str:
        """Run a command in its namespaces, and return what that prints.

        :raises AssertionError: it fails
        """
        done = subprocess.run([*self._enter, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
        return done.stdout.strip()

    def shows(self, unit: str, name: str) -> str:
        """What a property of a unit is."""
        return self.run('systemctl', 'show', '--value', '--property', name, unit)


@contextlib.contextmanager
def booted(folder: Path, units: Mapping[str, str], binds: Mapping[str, Path]) -> Iterator[Systemd]:
    """Boot systemd for the length of a ``with``, and start units.

    :param folder: for its files; what is in its ``srv`` is in ``/srv`` there
    :param units: the text of each
    :param binds: folders of the machine that are to be seen in others as well, whose names have no spaces
    """
    (folder / 'units').mkdir()
    wants = ' '.join(units)
    for name, text in {**units, TARGET: f'[Unit]\nDefaultDependencies=no\nWants={wants}\n'}.items():
        (folder / 'units' / name).write_text(text)
    (folder / 'binds').write_text(''.join(f'{target} {source}\n' for target, source in binds.items()))
    groups = [each / f'postage-{uuid.uuid4().hex}' for each in _hierarchies()]
    for group in groups:
        group.mkdir()
    enter = [f'echo $$ > {group}/cgroup.procs;' for group in groups]
    script = [*enter, 'exec unshare "$@"']
    boot = ['--fork', '--kill-child', '/bin/sh', '-c', BOOT, 'sh', str(folder), SYSTEMD, TARGET]
    with (folder / 'boot.log').open('w') as log:
        process = subprocess.Popen(
            ['/bin/sh', '-c', ' '.join(script), 'sh', *NAMESPACES, *boot],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
        systemd = Systemd(int(eventually(lambda: children.read_text().split())[0]))
        eventually(lambda: _is_up(systemd))
        yield systemd
    finally:
        process.kill()
        process.wait()
        for group in groups:
            eventually(lambda group=group: _is_removed(group))


def _is_up(systemd: Systemd) -> bool:
    with contextlib.suppress(AssertionError):
        return systemd.shows(TARGET, 'ActiveState') == 'active'
    return False


def _is_removed(group: Path) -> bool:
    """Remove a cgroup, which is possible once its processes have gone."""
    try:
        for path, *_ in os.walk(group, topdown=False):
            os.rmdir(path)
    except OSError:
        return False
    return True
