"""A microthread that raises something else.

Better: it ends alone, and the log has the traceback; it ended the loop of all.
"""

from postage import microthreads
from stage import note


class Failing(microthreads.MicroThread):
    def step(self):
        raise KeyError('broken')


class Counting(microthreads.MicroThread):
    turns = 0

    def step(self):
        self.turns += 1
        if self.turns == 3:
            raise microthreads.ExitScheduler


scheduler = microthreads.MicroScheduler()
counting = Counting()
scheduler.add_microthread(Failing())
scheduler.add_microthread(counting)
try:
    for _ in scheduler.main():
        pass
except KeyError:
    counting.turns = 'KeyError'
note(counting.turns)  # 3
