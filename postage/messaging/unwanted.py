"""Requests whose answer is not waited for any more: they are dropped before their handlers."""

from __future__ import annotations

import time
from typing import Any

from postage.amqp.cancelled import cancelled

UNWANTED = 'its caller wants no answer any more'


def why_unwanted(header: Any, tolerance: float, cancel_id: str | None) -> str:
    """Why a request is not worth to be handled, in words; empty where it is.

    :param header: of its properties, those that an answer depends on
    :param tolerance: seconds by which its deadline may have passed, for the clock of its sender may be another
    :param cancel_id: what it is called where it is cancelled
    """
    if cancel_id in cancelled.until:
        return UNWANTED
    deadline = header.deadline
    if deadline is None:
        return ''
    late = time.time() - deadline / 1000
    return f'its deadline passed {late:.2f} s ago' if late > tolerance else ''
