"""Generator-based microthreads, and the scheduler that drives them.

A microthread is a generator that gives control back by ``yield``. What it yields says what it waits for; these
are the only things that ever park one:

``concurrent.futures.Future``
    resumed with its result, or its exception raised at the ``yield``
:class:`sleep`
    resumed after that many seconds
:class:`Signal`
    resumed once another microthread, or any thread, has set it
:class:`MicroThread`
    resumed when that one has ended, with what it returned, or with its exception

Anything else, ``None`` above all, means "go on with me in the next round". A parked microthread costs nothing while
it waits, and a scheduler with nothing to run sleeps until a future, a signal or a timer wakes it.

This package knows nothing of messages and imports nothing else of Postage.

``alarm.py``
    how an idle loop sleeps and is woken
``parking.py``
    what waits for what, and why no wake-up is lost or goes to another wait: the page to read before the others
``traps.py``
    what a microthread may wait for
``timers.py``
    calls that are made later
``turns.py``
    one turn of one microthread, and what it yields
``workers.py``
    coroutines, and functions that block, beside the loop
``signals.py``
    SIGTERM and SIGINT, for ``run()``
``scheduler.py``
    microthreads, and the loop
``asyncio_bridge.py``
    an asyncio loop beside a scheduler, and a scheduler inside asyncio; not imported before it is needed

Each of them imports only what stands above it, but for ``asyncio_bridge.py``, which imports the alarm alone.
"""

from postage.microthreads.scheduler import MicroScheduler, MicroThread, running_scheduler
from postage.microthreads.timers import Timer
from postage.microthreads.traps import ExitScheduler, Signal, sleep

__all__ = ['ExitScheduler', 'MicroScheduler', 'MicroThread', 'Signal', 'Timer', 'running_scheduler', 'sleep']
