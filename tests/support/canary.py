"""What a test uses for a password or a key: text that can be told from anything else.

Apart from :mod:`support.canaries`, which searches for it: the benchmarks start nodes without pytest.
"""

from __future__ import annotations

CANARY = 'canary-7f3a'
"""What every password and key of a test begins with."""


def canary(name: str = '') -> str:
    """A password or key for a test."""
    return f'{CANARY}{name}'


GUEST = canary('-guest')
"""What the brokers of the tests take for the password of ``guest``, beside ``guest`` itself."""
