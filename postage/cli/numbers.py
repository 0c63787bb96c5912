"""Numbers on a command line."""

from __future__ import annotations

from typing import Any

import click

MOST = 1e9  # seconds, which is thirty years: what waits cannot be told much more


class Number(click.FloatRange):
    """A number from a least one on, and no infinite one: of seconds, or of things a second."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not number <= MOST:  # nor is one that is no number, which compares with none
            self.fail(f'{value} is no number up to {MOST:g}.', param, ctx)
        return number
