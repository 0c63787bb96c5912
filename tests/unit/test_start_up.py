"""What a component imports before it does anything: its start costs no more than it needs."""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
import msgspec, pika
before = set(sys.modules)
import postage.messaging
print(*sorted(set(sys.modules) - before))
"""

FROM_PYTHON = {'bisect', 'dataclasses', 'fnmatch', 'hashlib', 'hmac', 'json', 'random'}
"""What `postage.messaging` imports of the standard library itself, or what that imports in turn. pika has much more."""

PARTS = {
    'amqp',
    'errors',
    'living',
    'messaging',
    'microthreads',
    'printable',
    'program',
    'secret',
    'settings',
    'sparingly',
}


def test_a_component_imports_what_it_needs_alone() -> None:
    found = subprocess.run([sys.executable, '-c', LOADED], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in found if name.partition('.')[0] == 'postage'}
    assert {name.split('.')[1] for name in ours if '.' in name} == PARTS
    # Modules that begin with an underscore are those that another one is made of.
    others = {name.partition('.')[0] for name in found if name not in ours and not name.startswith('_')}
    assert others <= FROM_PYTHON
