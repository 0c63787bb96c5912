"""Whether this is ``make soak``, and which seeds and how many runs were asked for."""

from __future__ import annotations

import os
import random

IS_SOAK = os.environ.get('POSTAGE_SOAK', '') not in ('', '0')

# Read here: no test sees a variable of Postage's.
SEED = int(os.environ.get('SEED') or random.randrange(1_000_000))
"""The seed of the first run; each run after it has the next number."""


def runs(short: int, long: int) -> int:
    """Return how many runs there are to be: as ``RUNS`` says, or by default so many."""
    return int(os.environ.get('RUNS') or (long if IS_SOAK else short))
