"""A scheduler inside an asyncio loop, and an asyncio loop beside a scheduler.

Imported when it is first needed, for the sake of programs that use microthreads alone: asyncio takes longer to
import than all that they need. Where there is a broker it makes no difference, for pika imports asyncio anyway.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from postage.microthreads.alarm import Alarm

SLICE = 0.002  # seconds for which microthreads run before asyncio's own tasks get their turn


class Driven(Protocol):
    """What :func:`drive` needs of a scheduler."""

    is_idle: bool

    def main(self, block: bool | None = ...) -> Generator[Any, None, None]:
        """The loop, one turn at a time."""

    def inside(self, loop: asyncio.AbstractEventLoop, alarm: Alarm) -> AbstractContextManager[None]:
        """Be driven by an asyncio loop, and be woken by its alarm, for the length of a ``with``."""

    async def wait_with(self, wait: Callable[[float | None], Awaitable[None]]) -> None:
        """Sleep by awaiting."""

    def callbacks_at_end(self) -> Iterator[Callable[[], None]]:
        """What is to be called when the loop has ended."""


class AsyncAlarm(Alarm):
    """The same for a scheduler inside an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bell = asyncio.Event()

    def ring(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._bell.set)
        except RuntimeError:
            pass  # the loop is closed, so no scheduler sleeps in it

    async def wait_async(self, timeout: float | None) -> None:
        """Sleep until it rings, or for so many seconds, while the loop goes on."""
        try:
            await asyncio.wait_for(self._bell.wait(), timeout)
        except asyncio.TimeoutError:
            pass
        # A ring may have come since the wait ended. It is not lost: after each wait the scheduler looks at everything.
        self._bell.clear()


class AsyncioThread:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name='postage-asyncio', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._is_over:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # Of a coroutine: what waits for its end is given it, and the others go on.
                continue
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def close(self) -> None:
        """Cancel the coroutines that run on it, and end it. Blocks until their ``finally`` clauses have run."""
        self.loop.call_soon_threadsafe(self._end)
        self._thread.join()

    def _end(self) -> None:
        self._is_over = True
        self.loop.stop()


async def drive(scheduler: Driven) -> None:
    """Step a scheduler from the running loop until it ends: the whole of ``run_async()``."""
    loop = asyncio.get_running_loop()
    alarm = AsyncAlarm(loop)
    turns = scheduler.main(block=False)
    with scheduler.inside(loop, alarm):
        try:
            until = loop.time() + SLICE
            for _ in turns:
                if scheduler.is_idle:
                    await scheduler.wait_with(alarm.wait_async)
                elif loop.time() < until:
                    continue
                else:
                    await asyncio.sleep(0)
                until = loop.time() + SLICE
        finally:
            turns.close()
    for callback in scheduler.callbacks_at_end():
        await loop.run_in_executor(None, callback)
