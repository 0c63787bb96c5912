"""A program's own loop beside a test: its microthreads, in a scheduler, in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar, overload

from postage.microthreads import MicroScheduler, MicroThread

TIMEOUT = 10.0

M = TypeVar('M', bound=MicroThread)


@overload
def running(component: M | Callable[[], M], /, *, timeout: float = TIMEOUT) -> contextlib.AbstractContextManager[M]: ...


@overload
def running(
    *components: MicroThread | Callable[[], MicroThread], timeout: float = TIMEOUT
) -> contextlib.AbstractContextManager[tuple[Any, ...]]: ...


@contextlib.contextmanager
def running(*components: Any, timeout: float = TIMEOUT) -> Iterator[Any]:
    """A ``with`` for whose length components run in a scheduler, in a thread.

    ::

        with running(shop.Shipper) as shipper:
            producer.message_order('a book')

    It begins once all of them consume. At its end they are stopped in good order, and closed.

    :param components: processors or other microthreads. A class, or a function without arguments, is called in the
        thread that runs the scheduler, so that a connection to SQLite which a constructor opens serves its handlers
    :param timeout: seconds for the beginning, and for the end
    :return: what gives the component; where there are several, a tuple of them
    :raises TimeoutError: a component does not begin, or does not end, in time
    :raises Exception: what a component raised, in its constructor or in its ``main()``, be it at the end
    """
    loop = _Loop(components)
    try:
        made = loop.begin(timeout)
        yield made[0] if len(made) == 1 else made
    except BaseException:
        with contextlib.suppress(Exception):  # the test has failed already, and that is what it tells
            loop.end(timeout)
        raise
    loop.end(timeout)


class _Loop:
    """The thread, and what goes on in it."""

    def __init__(self, components: tuple[Any, ...]) -> None:
        self._scheduler = MicroScheduler()
        self._components = components
        self._made: list[MicroThread] = []
        self._begun: Future[None] = Future()
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name='postage-running', daemon=True)
        self._thread.start()

    def begin(self, timeout: float) -> tuple[MicroThread, ...]:
        self._begun.result(timeout)
        return tuple(self._made)

    def end(self, timeout: float) -> None:
        self._scheduler.stop()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f'a handler still runs after {timeout:g} s, of {", ".join(map(repr, self._made))}')
        if self._failures:
            raise self._failures[0]

    def _run(self) -> None:
        try:
            for component in self._components:
                if not isinstance(component, MicroThread) and not callable(component):
                    raise TypeError(f'running() takes components, or what makes one, not {component!r}')
                microthread = component if isinstance(component, MicroThread) else component()
                self._made.append(microthread)
                self._scheduler.add_microthread(microthread)
            # Its turn comes after the first one of each, in which a processor begins to consume.
            self._scheduler.add_microthread(_Marker(self._begun))
            for _ in self._scheduler.main():
                pass
        except BaseException as error:
            self._failures.append(error)
        finally:
            for microthread in self._made:
                task = microthread._task
                if task is not None and task.failure is not None and task.failure not in self._failures:
                    self._failures.append(task.failure)
                self._close(microthread)
            if not self._begun.done():
                at_once = RuntimeError('the scheduler ended at once')
                self._begun.set_exception(self._failures.pop(0) if self._failures else at_once)

    def _close(self, microthread: MicroThread) -> None:
        try:
            getattr(microthread, 'close', lambda: None)()
        except Exception as error:
            self._failures.append(error)


class _Marker(MicroThread):
    """Says that it has had its first turn."""

    def __init__(self, begun: Future[None]) -> None:
        self._begun = begun

    def main(self) -> Generator[Any, Any, None]:
        self._begun.set_result(None)
        return
        yield
