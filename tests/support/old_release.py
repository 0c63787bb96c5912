"""Postage 1.2.1 and Missive 0.8.1, carried to Python 3, in an environment of their own.

The test run downloads the releases and converts them; nothing of them is in this repository. The environment is made
once, and kept below ``.tox``. What it takes:

- fissix, lib2to3 as a package, for Python 3.13 has none any more;
- pika 0.13.1, the last one before 1.0: 1.2.1 calls ``add_timeout`` and ``basic_consume(callback, queue)``;
- Missive as it is, with kombu for its RabbitMQ adapter.

What no converter can know is in ``tests/fidelity/carried.py``. ``make old-releases`` runs this file.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / '.tox' / f'old-releases-{platform.python_version()}'
RELEASE = 'postage==1.2.1'
PACKAGES = ('pika==0.13.1', 'fissix==24.4.24', 'kombu>=5.3')
MISSIVE = 'missive==0.8.1'

NOT_INSTALLED = 'Postage 1.2.1 is not installed'


class NotAvailable(Exception):
    """The environment cannot be made; the text says why."""


def prepare() -> Path:
    """Make the environment unless it is there, and return its interpreter. Takes half a minute the first time.

    :raises NotAvailable: the package index cannot be reached, or lacks something
    """
    python = FOLDER / 'bin' / 'python'
    stamp = FOLDER / 'complete'
    if not stamp.exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.parent.mkdir(exist_ok=True)
        _run(sys.executable, '-m', 'venv', str(FOLDER))
        pip = [str(python), '-m', 'pip', '--quiet', '--disable-pip-version-check']
        _run(*pip, 'install', *PACKAGES)
        _run(*pip, 'install', '--no-deps', MISSIVE)
        with tempfile.TemporaryDirectory() as download:
            _run(*pip, 'download', '--no-deps', '--no-binary', ':all:', '--dest', download, RELEASE)
            _convert(python, next(Path(download).iterdir()))
        stamp.touch()
    return python


def _convert(python: Path, archive: Path) -> None:
    """Unpack the release, carry it to Python 3, and move it to where the environment imports it from."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as packed:
            # Debian's 3.11.2, an optimised build, has no filters yet.
            packed.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
        package = next(Path(folder).glob('*/postage'))
        _run(str(python), '-m', 'fissix', '--nobackups', '--write', '--no-diffs', str(package))
        (site_packages,) = FOLDER.glob('lib/python*/site-packages')
        shutil.move(package, site_packages / 'postage')


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise NotAvailable(f'{NOT_INSTALLED}: {" ".join(command[1:5])} … failed: {" ".join(last)}')


if __name__ == '__main__':
    print(prepare())
