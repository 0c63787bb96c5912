"""Runs a program on Postage 1.2.1 that was carried to Python 3: ``python carried.py PROGRAM``.

The converter changes syntax. What else Python 2 did, and 1.2.1 relies on, is restored here, from outside:

- ``collections.Mapping`` and its kin, which pika 0.13 wants as well, and ``file`` are there;
- ``raise StopIteration`` ends a generator (PEP 479 makes it a ``RuntimeError``);
- a message with ``__eq__`` has a hash, and ``str(message)`` ends (there, ``unicode()`` did the work).

And one name that 1.2.1 misspelled, without which no ``GenericApplication`` could be made at all; and the port of a
broker, for which 1.2.1 has no setting.
"""

import builtins
import collections
import collections.abc
import importlib
import os
import sys

for name in collections.abc.__all__:
    setattr(collections, name, getattr(collections.abc, name))
builtins.file = open

import pika  # noqa: E402

pika.ConnectionParameters.DEFAULT_PORT = int(os.environ['POSTAGE_PORT'])

import postage  # noqa: E402
from postage import generic_application, messaging, microthreads  # noqa: E402


def next_of_python_2(generator):
    """The next value of a generator, in which StopIteration may have been raised."""
    try:
        return builtins.next(generator)
    except RuntimeError as error:
        if isinstance(error.__cause__, StopIteration):
            raise StopIteration from None
        raise


def carry_scheduler(main):
    """``MicroScheduler.main``, which ends where StopIteration is raised in it."""

    def carried_main(self):
        loop = main(self)
        while True:
            try:
                value = next_of_python_2(loop)
            except StopIteration:
                return
            yield value

    return carried_main


microthreads.next = next_of_python_2
microthreads.MicroScheduler.main = carry_scheduler(microthreads.MicroScheduler.main)
messaging.Message.__str__ = lambda self: str(self.body)
messaging.Message.__hash__ = object.__hash__
generic_application.GenericApplicationConsumerMicroThread = generic_application.GenericApplication

for name in ('missive', 'missive.state', 'missive.shutdown_handler', 'missive.dlq.sqlite', 'missive.adapters.rabbitmq'):
    sys.modules[f'postage.{name}'] = importlib.import_module(name)
postage.missive = sys.modules['missive']

if __name__ == '__main__':
    # sys.argv stays as it is: restart() runs the same command again.
    with open(sys.argv[1]) as program:
        exec(compile(program.read(), sys.argv[1], 'exec'))
