"""The RabbitMQ versions that the tests may run on are prepared once, and what cannot be prepared is said."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support import rabbitmq_versions
from support.rabbitmq_node import NodeFailed, RabbitMQNode
from support.rabbitmq_versions import DEBIAN_SERVER, Server, find_server

SCRIPT = Path(rabbitmq_versions.__file__).with_name('prepare_brokers.sh')

# In place of what takes a network and a minute. Each is asked in the way that the script asks it.
DEBOOTSTRAP = f"""#!/bin/sh
echo "$@" >>"$POSTAGE_BROKERS/calls"
case $3 in
$FAILING) exit 1 ;;
esac
mkdir -p "$4{DEBIAN_SERVER[: DEBIAN_SERVER.rindex('/')]}"
echo >"$4{DEBIAN_SERVER}"
chmod +x "$4{DEBIAN_SERVER}"
"""
CHROOT = """#!/bin/sh
case $1 in
*/4.0.unfinished) echo 4.0.5-6 ;;
*/4.3.unfinished) echo "$FOUND" ;;
esac
"""

on_debian = pytest.mark.skipif(not Path('/etc/debian_version').exists(), reason='debootstrap takes a Debian')


def prepare(folder: Path, user: int = 0, failing: str = 'none', found: str = '4.3.6-1') -> tuple[int, list[str]]:
    """Run the script with stand-ins for what it calls; return its status and the lines that it prints."""
    programs = folder / 'bin'
    programs.mkdir(exist_ok=True)
    stand_ins = {'debootstrap': DEBOOTSTRAP, 'chroot': CHROOT, 'id': f'#!/bin/sh\necho {user}\n'}
    stand_ins['wget'] = '#!/bin/sh\nexit 4\n'
    for name, text in stand_ins.items():
        (programs / name).write_text(text.replace('$FAILING', failing))
        (programs / name).chmod(0o755)
    environment = {'PATH': f'{programs}:{os.environ["PATH"]}', 'POSTAGE_BROKERS': str(folder / 'brokers')}
    done = subprocess.run(
        ['/bin/sh', SCRIPT], env={**environment, 'FOUND': found}, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ''
    return done.returncode, done.stdout.splitlines()


@on_debian
def test_what_is_prepared_is_left_alone(tmp_path: Path) -> None:
    status, _ = prepare(tmp_path)
    assert status == 0
    calls = (tmp_path / 'brokers' / 'calls').read_text()
    assert [call.split()[2] for call in calls.splitlines()] == ['trixie', 'sid']
    status, lines = prepare(tmp_path)
    assert status == 0
    assert lines == [f'RabbitMQ {each} is in {tmp_path}/brokers/{each}' for each in ('4.0', '4.3')]
    assert (tmp_path / 'brokers' / 'calls').read_text() == calls


@on_debian
def test_without_4_3_the_last_line_says_so_and_4_0_is_enough(tmp_path: Path) -> None:
    status, lines = prepare(tmp_path, failing='sid')
    assert status == 0
    assert lines[-1] == f'RabbitMQ 4.3 is not prepared: debootstrap failed, see {tmp_path}/brokers/4.3.log'
    assert (tmp_path / 'brokers' / '4.0').is_dir()


@on_debian
def test_another_version_is_not_taken_for_4_3(tmp_path: Path) -> None:
    status, lines = prepare(tmp_path, found='4.4.0-1')
    assert status == 0
    assert lines[-1] == "RabbitMQ 4.3 is not prepared: Debian's sid has rabbitmq-server 4.4.0-1 by now"
    assert not (tmp_path / 'brokers' / '4.3').exists()


@on_debian
def test_without_4_0_the_status_is_1(tmp_path: Path) -> None:
    status, lines = prepare(tmp_path, failing='trixie')
    assert status == 1
    assert lines[-1] == f'RabbitMQ 4.0 is not prepared: debootstrap failed, see {tmp_path}/brokers/4.0.log'


@on_debian
def test_without_root_one_line_says_what_it_takes(tmp_path: Path) -> None:
    status, lines = prepare(tmp_path, user=1000)
    assert status == 1
    assert lines == ['make brokers: debootstrap and chroot take root; without it the tests have the installed RabbitMQ']


def test_an_unknown_version_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"RabbitMQ '5': the tests know 3\.10 and 4\.0, 4\.3"):
        find_server('5')


def test_a_node_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / 'rabbitmq-server'
    script.write_text('#!/bin/sh\necho the port is taken\n')
    script.chmod(0o755)
    monkeypatch.setattr('support.rabbitmq_node.find_server', lambda version: Server(str(script)))
    node = RabbitMQNode()
    try:
        with pytest.raises(NodeFailed, match='the port is taken'):
            node.start()
    finally:
        node.close()
