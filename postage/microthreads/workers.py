"""What a scheduler runs elsewhere: coroutines on an asyncio loop, and functions that block in a pool of threads."""

from __future__ import annotations

from collections.abc import Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from postage.microthreads.asyncio_bridge import AsyncioThread


class Workers:
    """Made when they are first needed, and ended with the scheduler's loop. From the scheduler's own thread.

    :ivar loop: the asyncio loop that drives the scheduler; ``None`` where none does
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._asyncio: AsyncioThread | None = None
        self._threads: ThreadPoolExecutor | None = None

    def run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the loop that drives the scheduler, else on one in a thread of its own."""
        import asyncio

        loop = self.loop
        if loop is None:
            if self._asyncio is None:
                from postage.microthreads.asyncio_bridge import AsyncioThread

                self._asyncio = AsyncioThread()
            loop = self._asyncio.loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def executor(self, threads: int) -> ThreadPoolExecutor:
        """The pool, of so many threads when it is made."""
        if self._threads is None:
            from postage.microthreads.pool import Pool

            self._threads = Pool(threads, 'postage-worker')
        return self._threads

    def close(self) -> None:
        """Cancel the coroutines, and drop the functions that no thread has begun. Blocks for the coroutines' end."""
        if self._asyncio is not None:
            self._asyncio.close()
            self._asyncio = None
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
