"""The threads in which a scheduler runs functions that block."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')


class Pool(ThreadPoolExecutor):
    """A pool of threads, in which a function sees the context variables of what submits it.

    So a handler that leaves a part of its work to a thread is the same handler there: with its delivery, its deadline
    and its trace.
    """

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have a function called in a thread, as :class:`concurrent.futures.ThreadPoolExecutor` does. Any thread."""
        context = contextvars.copy_context()
        return super().submit(context.run, fn, *args, **kwargs)  # type: ignore[arg-type]
