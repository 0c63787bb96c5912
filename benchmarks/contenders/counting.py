"""How many Python functions a process calls, exactly, by thread and function: ``sys.setprofile`` in every thread.

What counts is each event of the kind ``call``: a Python function that is entered, or a generator that is resumed, of
Postage, of pika, of the standard library or of the program itself. Functions in C do not count. Up to Python 3.11 a
comprehension is a function of its own, and counts. Calls within this module are left out.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from types import CodeType, FrameType
from typing import Any

Calls = dict[str, Counter[str]]
"""By the name of a thread: how often each function was called, by its module, first line and name."""

Mark = list[tuple[str, dict[CodeType, int]]]
"""The name of each thread, and how often it had called each function."""


class CallCounter:
    """Counts the calls of the present thread, and of all that are started from now on."""

    def __init__(self) -> None:
        self._calls: Mark = []
        self._marks: list[Mark] = []
        self._messages = 0
        threading.setprofile(self._begin)
        sys.setprofile(self._begin)

    def _begin(self, frame: FrameType, event: str, argument: Any) -> None:
        """The first event of a thread: its calls are counted in a dictionary of its own, and so without a lock."""
        calls: dict[CodeType, int] = {}

        def count(frame: FrameType, event: str, argument: Any) -> None:
            if event == 'call':
                calls[frame.f_code] = calls.get(frame.f_code, 0) + 1

        self._calls.append((threading.current_thread().name, calls))
        sys.setprofile(count)
        count(frame, event, argument)

    def mark(self) -> None:
        """End a stretch and begin the next one; the first mark only begins. Any thread."""
        now = []
        for thread, calls in self._calls:
            now.append((thread, dict(calls)))  # copied in one go: no other thread adds to it meanwhile
        self._marks.append(now)

    def message(self, stretch: int) -> int:
        """One more message has been handled: mark where that ends a stretch of that many. In one thread.

        :return: how many stretches have been counted
        """
        self._messages += 1
        if self._messages % stretch == 0:
            self.mark()
        return len(self._marks) - 1

    def stop(self) -> None:
        """Count no more in the present thread, nor in new ones."""
        sys.setprofile(None)
        threading.setprofile(None)

    def stretches(self) -> list[Calls]:
        """What was called between one mark and the next."""
        modules = {getattr(module, '__file__', None): name for name, module in sys.modules.items()}
        return [self._between(*pair, modules) for pair in zip(self._marks, self._marks[1:], strict=False)]

    def _between(self, before: Mark, after: Mark, modules: dict[str | None, str]) -> Calls:
        between: Calls = {}
        for number, (thread, calls) in enumerate(after):
            known = before[number][1] if number < len(before) else {}
            for code, times in calls.items():
                more = times - known.get(code, 0)
                if more and code.co_filename != __file__:
                    name = getattr(code, 'co_qualname', code.co_name)
                    where = f'{modules.get(code.co_filename, code.co_filename)}:{code.co_firstlineno} {name}'
                    between.setdefault(thread, Counter())[where] += more
        return between
