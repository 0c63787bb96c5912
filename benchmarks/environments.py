"""An environment for each contender, made once and kept in ``.environments``."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from builds import build_of
from scenarios import SIGNED, TRACED, WAYS

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
FOLDER = HERE / '.environments'
CONTENDERS = HERE / 'contenders'
C_SOURCE = CONTENDERS / 'rabbitmq_c.c'

# Installed as their newest releases; remove the folder to have them anew.
REQUIREMENTS = {
    'harness': ['matplotlib', 'pika', 'trustme'],
    'postage': ['--editable', str(CHECKOUT)],
    'traced': ['--editable', str(CHECKOUT), 'opentelemetry-sdk'],
    'pika': ['pika'],
    'kombu': ['kombu'],
    'aio-pika': ['aio-pika'],
}
ENVIRONMENT_OF = {
    **dict.fromkeys(('blocking', 'select'), 'pika'),
    **dict.fromkeys((*WAYS, SIGNED), 'postage'),
    **dict.fromkeys(TRACED, 'traced'),
}
PROGRAMS = {
    'postage': 'with_postage.py',
    'blocking': 'with_blocking_connection.py',
    'select': 'with_select_connection.py',
    'kombu': 'with_kombu.py',
    'aio-pika': 'with_aio_pika.py',
    **dict.fromkeys((*WAYS, SIGNED, *TRACED), 'with_postage.py'),
}


class NotAvailable(Exception):
    """A contender cannot run here; the text says why."""


def prepare_command(contender: str, base: Path | None) -> list[str]:
    """Return the command that runs a contender, having prepared what it needs.

    :param base: the interpreter that environments are made with; ``None`` to use this one, which has what it needs
    :raises NotAvailable: it cannot be prepared
    """
    if contender == 'rabbitmq-c':
        return [str(compile_c())]
    python = Path(sys.executable) if base is None else prepare(ENVIRONMENT_OF.get(contender, contender), base)
    return [str(python), str(CONTENDERS / PROGRAMS[contender])]


def command_of_role(command: list[str], role: str) -> list[str]:
    """The command for a role, one of which has a program of its own."""
    return [command[0], str(CONTENDERS / 'import_postage.py')] if role == 'import' else command


def python_of(name: str) -> Path:
    """Where an environment's interpreter is."""
    return FOLDER / name / 'bin' / 'python'


def prepare(name: str, base: Path) -> Path:
    """Make a virtual environment unless it is there as it should be, and return its interpreter.

    :param base: the interpreter that it is made with
    :raises NotAvailable: its packages cannot be installed
    """
    stamp = FOLDER / name / 'stamp.json'
    wanted = {'python': f'{base}: {build_of(base)}', 'requirements': _requirements_text(name)}
    if stamp.exists() and json.loads(stamp.read_text())['wanted'] == wanted:
        return python_of(name)
    sys.stderr.write(f'preparing the environment of {name}\n')
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    python = str(python_of(name))
    _run([str(base), '-m', 'venv', str(FOLDER / name)])
    pip = [python, '-m', 'pip', '--disable-pip-version-check']
    _run([*pip, 'install', '--quiet', *REQUIREMENTS[name]])
    packages = json.loads(_run([*pip, 'list', '--format', 'json']))
    versions = {package['name']: package['version'] for package in packages}
    stamp.write_text(json.dumps({'wanted': wanted, 'versions': versions}, indent=2))
    return python_of(name)


def _requirements_text(name: str) -> str:
    text = ' '.join(REQUIREMENTS[name])
    if str(CHECKOUT) in REQUIREMENTS[name]:
        text += ' ' + hashlib.sha256((CHECKOUT / 'pyproject.toml').read_bytes()).hexdigest()
    return text


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotAvailable(f'{" ".join(command[:4])} … failed: {(done.stderr or done.stdout).strip()[-500:]}')
    return done.stdout


def compile_c() -> Path:
    """Compile the C contender unless that has been done, and return the program.

    :raises NotAvailable: there is no compiler, or no rabbitmq-c
    """
    program = FOLDER / 'rabbitmq-c' / hashlib.sha256(C_SOURCE.read_bytes()).hexdigest()[:16]
    if program.exists():
        return program
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None:
        raise NotAvailable('there is no C compiler')
    program.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [compiler, '-O2', '-o', str(program), str(C_SOURCE), '-lrabbitmq'], capture_output=True, text=True
    )
    if done.returncode:
        if 'amqp.h' in done.stderr or 'lrabbitmq' in done.stderr:
            raise NotAvailable('rabbitmq-c is not installed (Debian, Ubuntu: apt-get install librabbitmq-dev)')
        raise NotAvailable(f'it does not compile: {done.stderr.strip()[-500:]}')
    return program


def versions(contender: str, command: list[str]) -> dict[str, str]:
    """The packages that a contender runs with, by name; empty where the harness did not install them."""
    if contender == 'rabbitmq-c':
        return {'rabbitmq-c': _run([*command, 'role=version']).strip()}
    stamp = Path(command[0]).parents[1] / 'stamp.json'
    return dict(json.loads(stamp.read_text())['versions']) if stamp.exists() else {}
