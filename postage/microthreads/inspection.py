"""Where microthreads are: what each of them waits for, and the line of each generator on its way to that."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any

from postage.microthreads.parking import Task
from postage.microthreads.scheduler import MicroScheduler
from postage.microthreads.timers import Timer
from postage.microthreads.traps import Signal


def where_they_are(scheduler: MicroScheduler) -> list[dict[str, Any]]:
    """Say of each microthread of a scheduler what it is at. Any thread; never blocks.

    A microthread may have an attribute ``label``, which names it, and ``inner``, the generator or coroutine that it
    drives by itself.

    :return: for each ``microthread``, ``state`` (``'running'``, ``'ready'``, ``'waiting'``), ``waits_for``, and
        ``stack``, its lines, the innermost last
    """
    turns = scheduler._turns
    return [_described(task, task is turns.current) for task in list(turns.tasks)]


def _described(task: Task, is_running: bool) -> dict[str, Any]:
    microthread = task.microthread
    reason, is_parked = task.reason, task.wait is not None
    frames = [*_frames(task.generator), *_frames(getattr(microthread, 'inner', None))]
    label = getattr(microthread, 'label', '')
    return {
        'microthread': f'{type(microthread).__name__} {label}'.rstrip(),
        'state': 'running' if is_running else 'waiting' if is_parked else 'ready',
        'waits_for': _reason(reason) if is_parked and not is_running else None,
        'stack': [line_of(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name) for frame in frames],
    }


def _frames(driven: Any) -> Iterator[FrameType]:
    """The frames of a generator or a coroutine, and of those that it waits in, the innermost last."""
    while driven is not None:
        frame = getattr(driven, 'gi_frame', None) or getattr(driven, 'cr_frame', None)
        if frame is not None:
            yield frame
        driven = getattr(driven, 'gi_yieldfrom', None) or getattr(driven, 'cr_await', None)


def _reason(reason: object) -> str:
    if isinstance(reason, Signal):
        return 'a signal'
    if isinstance(reason, Timer):
        return 'sleep'
    if isinstance(reason, Task):
        return f'the end of {type(reason.microthread).__name__}'
    if reason is None:
        return 'its first turn'
    if type(reason) is Future:
        return 'a future'
    return f'a future, {type(reason).__name__}'


def line_of(file: str, number: int, function: str) -> str:
    """One line of a stack: where it is, and its code, where that can be read."""
    code = linecache.getline(file, number).strip()
    return f'{file}:{number} in {function}' + (f': {code}' if code else '')
