"""Ctrl-C at each moment at which it can come.

Python looks for signals behind a call, at a jump back and where a function begins, and nowhere else. So an interruption
there, one after the other, is every one that there can be.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Collection
from types import CodeType, FrameType
from typing import Any


@functools.lru_cache(maxsize=1000)
def moments(code: CodeType) -> frozenset[int]:
    """The offsets of the instructions before which Python looks for signals."""
    found: set[int] = set()
    looks = True  # where it begins
    for instruction in dis.get_instructions(code):
        if looks and instruction.opname != 'CACHE':
            found.add(instruction.offset)
            looks = False
        if instruction.opname.startswith(('CALL', 'RESUME', 'JUMP_BACKWARD', 'JUMP_ABSOLUTE')):
            looks = True
        if instruction.opname.startswith(('JUMP_BACKWARD', 'JUMP_ABSOLUTE')):
            found.add(instruction.argval)
    return frozenset(found)


class Interruption:
    """A ``KeyboardInterrupt`` at one of the moments in some files. Use it in a ``with``.

    :param files: names of the files
    :param after: how many moments are let pass
    :ivar has_come: whether there was such a moment
    """

    def __init__(self, files: Collection[str], after: int) -> None:
        self.has_come = False
        self._files = files
        self._after = after
        self._outer: Any = None

    def __enter__(self) -> Interruption:
        self._outer = sys.gettrace()
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._outer)

    def _on_call(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in self._files or self.has_come:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._on_opcode

    def _on_opcode(self, frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        if event == 'opcode' and not self.has_come and frame.f_lasti in moments(frame.f_code):
            if not self._after:
                self.has_come = True
                raise KeyboardInterrupt
            self._after -= 1
        return self._on_opcode


def at_each_moment(files: Collection[str], attempt: Callable[[Interruption], None]) -> int:
    """Make an attempt again and again, interrupted a moment later each time, until it comes to its end before.

    :param attempt: gets the interruption, to be used round what is to be interrupted
    :return: how often it was interrupted
    """
    times = 0
    while True:
        interruption = Interruption(files, times)
        attempt(interruption)
        if not interruption.has_come:
            return times
        times += 1
