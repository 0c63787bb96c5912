"""Generator-based microthreads, and the scheduler that drives them.

A microthread is a generator that gives control back by ``yield``. What it yields says what it waits for; these
are the only things that ever park one:

``concurrent.futures.Future``
    resumed with its result, or its exception raised at the ``yield``
:class:`sleep`
    resumed after that many seconds
:class:`Signal`
    resumed once somebody, in any thread, has set it
:class:`MicroThread`
    resumed when that one has ended, with what it returned, or with its exception

Anything else, ``None`` above all, means "go on with me in the next round". A parked microthread costs nothing while
it waits, and a scheduler with nothing to run sleeps until a future, a signal or a timer wakes it.

This package knows nothing of messages and imports nothing else of Postage.

``traps.py``
    what a microthread may wait for
``scheduler.py``
    microthreads, and the loop
``alarm.py``
    how an idle loop sleeps and is woken
``signals.py``
    SIGTERM and SIGINT, for ``run()``
``asyncio_bridge.py``
    coroutines, and a scheduler inside asyncio; not imported before it is needed
"""

from postage.microthreads.scheduler import MicroScheduler, MicroThread, running_scheduler
from postage.microthreads.traps import ExitScheduler, Signal, Timer, sleep

__all__ = ['ExitScheduler', 'MicroScheduler', 'MicroThread', 'Signal', 'Timer', 'running_scheduler', 'sleep']
