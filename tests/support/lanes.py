"""The two ways in which Postage moves bytes."""

from postage.settings import FastLane

LANES = [lane.value for lane in FastLane]
