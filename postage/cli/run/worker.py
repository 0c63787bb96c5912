"""One worker process of ``postage run``: it makes the components and runs them in one scheduler."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from postage.cli.components import components_of, is_of_program
from postage.cli.run import logs
from postage.cli.run.line import CUT, FAILED, SIGNALLED, Line
from postage.cli.run.message_fields import MessageFields
from postage.cli.run.options import Options
from postage.cli.run.process import OF_TERMINALS
from postage.errors import PostageError
from postage.messaging import Fingerprint, MessageProcessor, health
from postage.messaging.metrics import samples
from postage.microthreads import ExitScheduler, MicroScheduler, MicroThread
from postage.microthreads.signals import Ending
from postage.printable import printable

logger = logging.getLogger('postage.run')

KINDS = (MicroThread,)
WHAT = 'processor, application or other microthread'


def main(arguments: Sequence[str]) -> int:
    """Run the components until the supervisor, or a signal, says otherwise. Returns the exit status.

    :param arguments: the file descriptor that leads to the supervisor, and the options as JSON
    """
    options = Options.of_json(arguments[1])
    fields: list[logs.Fields] = []
    logs.configure(options.log_format, options.log_level, fields)
    worker = Worker(Line(socket.socket(fileno=int(arguments[0]))), options)
    try:
        worker.make(options.components)
    except PostageError as error:
        if is_of_program(error):
            logger.error('the program raised as it was loaded', exc_info=error.__cause__)
        worker.line.say(failed=printable(str(error)))
        return FAILED
    fields.append(MessageFields(worker.components))
    return worker.run()


class Worker:
    """The components of this process, and how they end.

    A thread of its own hears what the supervisor says: ``drain``, ``stop`` and ``cut``, of which each goes further than
    those before it. Where the supervisor is gone, that counts as ``stop``.

    :ivar line: leads to the supervisor
    :ivar components: what is run
    """

    def __init__(self, line: Line, options: Options) -> None:
        self.line = line
        self.components: list[Any] = []
        self._options = options
        self._scheduler = MicroScheduler()
        self._ending = Ending(self._scheduler.stop, options.grace, obeys=True)
        self._lock = threading.Lock()  # of the one step from loading to running
        self._is_running = False
        self._has_failed = False
        self._orders: dict[str, Callable[[], None]] = {
            'drain': self._drain,
            'stop': self._stop,
            'cut': self._cut,
            'report': self._report,
        }
        for number in OF_TERMINALS:
            signal.signal(number, lambda *_: None)  # not SIG_IGN: children inherit that
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_TERMINALS)
        threading.Thread(target=self._listen, name='postage-run', daemon=True).start()

    def make(self, targets: Sequence[str]) -> None:
        """Import and make the components.

        :raises errors.ConfigurationError: that is not possible; it says why
        """
        sys.path.insert(0, os.getcwd())  # for good: a handler may import something later
        for target in targets:
            made = components_of(target, KINDS, WHAT, {'fingerprint': self._fingerprint_of})
            self.components += made
        for component in self.components:
            if self._options.concurrency is not None and isinstance(component, MessageProcessor):
                component.concurrency = self._options.concurrency

    @staticmethod
    def _fingerprint_of(cls: Any) -> Fingerprint:
        """For a class that cannot do without: a component named like it."""
        return Fingerprint(name=getattr(cls, '__name__', None), type='component')

    def run(self) -> int:
        """Run them to their end. Blocks; returns the exit status."""
        scheduler = self._scheduler
        for component in self.components:
            scheduler.add_microthread(component)
        for component in self.components:
            scheduler.add_microthread(_Watch(component, self._on_end))
        # In the round of its first turn every component has had its own, and consumes.
        scheduler.add_microthread(_Once(lambda: self.line.say(ready=True)))
        self._left = len(self.components)
        with self._lock:
            self._is_running = True
        self._ending.run(self._run_scheduler)
        self._report()  # its last figures
        self._name_threads()
        if self._has_failed or self._ending.was_cut:
            return FAILED if self._has_failed else CUT
        return SIGNALLED if self._ending.was_signalled else 0

    def _name_threads(self) -> None:
        """Say what the interpreter waits for before it ends."""
        others = [each for each in threading.enumerate() if each is not threading.current_thread()]
        names = [each.name for each in others if not each.daemon]
        if names:
            logger.warning('it waits for threads of the program that are no daemons: %s', printable(', '.join(names)))

    def _run_scheduler(self) -> None:
        for _ in self._scheduler.main():
            pass
        for callback in self._scheduler.callbacks_at_end():
            callback()

    def _on_end(self, failure: BaseException | None) -> None:
        """A component has ended. In the scheduler's thread."""
        self._left -= 1
        if failure is not None:
            self._has_failed = True
            self._ending.begin()
        elif not self._left:
            raise ExitScheduler

    # What the supervisor says: on the thread that hears it

    def _listen(self) -> None:
        while not self.line.has_ended:
            for message in self.line.hear():
                order = self._orders.get(message.get('order', ''))
                if order is not None:
                    order()
        self._stop()

    def _begins_to_end(self) -> None:
        """Where nothing runs yet nothing is in hand either, and what is being loaded need not be waited for."""
        with self._lock:
            if not self._is_running:
                os._exit(0)

    def _drain(self) -> None:
        self._begins_to_end()
        self._scheduler.add_microthread(_Once(self._drain_all))

    def _drain_all(self) -> None:
        for processor in self._processors():
            processor.drain()
        self._ending.begin()

    def _stop(self) -> None:
        self._begins_to_end()
        for processor in self._processors():
            processor.end_drain()
        self._ending.begin()
        self._scheduler.stop()  # looks again at what is to be handed back, where it drained before

    def _cut(self) -> None:
        self._stop()
        self._ending.cut()

    def _report(self) -> None:
        """Say how it is, and what it has counted."""
        state = health(self._options.confirm_time, self._options.handler_time)
        self.line.say(health=state.as_dict(), samples=samples())

    def _processors(self) -> list[MessageProcessor]:
        return [each for each in self.components if isinstance(each, MessageProcessor)]


class _Once(MicroThread):
    """One call, in the scheduler's thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def main(self) -> Generator[Any, Any, None]:
        self._call()
        yield from ()


class _Watch(MicroThread):
    """Waits for the end of a component."""

    def __init__(self, component: Any, on_end: Callable[[BaseException | None], None]) -> None:
        self._component = component
        self._on_end = on_end

    def main(self) -> Generator[Any, Any, None]:
        failure: BaseException | None = None
        try:
            yield self._component
        except Exception as error:
            failure = error
        self._on_end(failure)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
