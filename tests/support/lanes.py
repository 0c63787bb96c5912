"""The four ways in which Postage moves bytes, and which of them the tests run in."""

from __future__ import annotations

import os

import pytest

from postage.settings import FastLane

LANES = [lane.value for lane in FastLane]

# Read here: what a test sets is its own affair.
LANE = os.environ.get('POSTAGE_FAST_LANE') or FastLane.FULL.value
"""The lane of tests that choose none."""

needs_own_decoder = pytest.mark.skipif(
    LANE == 'off', reason="by pika's public API, headers are what pika makes of them: see postage/amqp/fallback.py"
)
