"""SIGTERM and Ctrl-C end ``run()``, at whatever moment they come."""

from __future__ import annotations

import signal
from collections.abc import Callable

from support.programs import Program

BEFORE_THE_FIRST_STEP = """
import signal
from postage.microthreads import MicroScheduler, MicroThread, Signal

class Early(MicroScheduler):
    def main(self, block=None):
        signal.raise_signal(signal.SIGTERM)
        return super().main(block)

class Waits(MicroThread):
    def main(self):
        print('began')
        yield Signal()

scheduler = Early()
scheduler.add_microthread(Waits())
scheduler.at_end(lambda: print('at the end'))
scheduler.run(grace=5)
print('on with the program')
"""


def test_a_signal_before_the_first_step_ends_the_loop_in_good_order(run_program: Callable[..., Program]) -> None:
    program = run_program(BEFORE_THE_FIRST_STEP)
    assert program.wait() == 0
    assert program.lines == ['at the end', 'on with the program']


GRACE_OVER_AT_THE_END = """
import signal, threading
from postage.microthreads import MicroScheduler, MicroThread, signals

ended, sent = threading.Event(), threading.Event()

class LateWatch(signals.Ending):
    # The time of grace ends when the loop has ended, just before its watch is cancelled.
    def give_signals_back(self):
        ended.set()
        assert sent.wait(10)
        super().give_signals_back()

    def _interrupt(self, number):
        assert ended.wait(10)
        super()._interrupt(number)
        sent.set()

signals.Ending = LateWatch

class Ends(MicroThread):
    def main(self):
        signal.raise_signal(signal.SIGTERM)
        yield

scheduler = MicroScheduler()
scheduler.add_microthread(Ends())
before = signal.getsignal(signal.SIGTERM)
scheduler.run(grace=0.001)
assert signal.getsignal(signal.SIGTERM) is before
print('on with the program')
"""


def test_a_time_of_grace_that_ends_with_the_loop_interrupts_nothing(run_program: Callable[..., Program]) -> None:
    program = run_program(GRACE_OVER_AT_THE_END)
    assert program.wait() == 0
    assert program.lines == ['on with the program']


HANGS = """
import signal, time
from postage.microthreads import MicroScheduler, MicroThread, Signal

class Hangs(MicroThread):
    def main(self):
        signal.raise_signal(signal.SIGTERM)
        try:
            yield
            time.sleep(60)
        finally:
            print('closed')

    @property
    def is_busy(self):
        return True

class Waits(MicroThread):
    def main(self):
        try:
            yield Signal()
        finally:
            print('closed as well')

scheduler = MicroScheduler()
scheduler.add_microthread(Hangs())
scheduler.add_microthread(Waits())
scheduler.run(grace=0.2)
print('on with the program')
"""


def test_what_hangs_is_interrupted_when_the_grace_is_over_and_all_are_closed(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(HANGS)
    assert program.wait() == 0
    assert sorted(program.lines[:2]) == ['closed', 'closed as well']
    assert program.lines[-1] == 'on with the program'


HANGS_IN_THE_END = HANGS.replace('time.sleep(60)', 'pass').replace(
    "print('closed')\n", "print('closing', flush=True); time.sleep(60)\n", 1
)


def test_a_second_signal_while_it_closes_ends_the_process(run_program: Callable[..., Program]) -> None:
    program = run_program(HANGS_IN_THE_END.replace('grace=0.2', 'grace=60').replace('return True', 'return False'))
    program.expect('closing')
    program.send_signal(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM
