"""``scheduler.shutdown = True`` ends the loop after the round; ``ExitScheduler`` does the same."""

from postage import microthreads
from stage import note


class Ending(microthreads.MicroThread):
    def __init__(self, scheduler, name):
        self.own_scheduler = scheduler
        self.name = name
        self.turn = 0

    def step(self):
        self.turn += 1
        note(self.name, self.turn)
        if self.name == 'first' and self.turn == 2:
            self.own_scheduler.shutdown = True
        if self.name == 'raising' and self.turn == 2:
            raise microthreads.ExitScheduler


for names in (['first', 'second'], ['before', 'raising', 'after']):
    scheduler = microthreads.MicroScheduler()
    note(scheduler.shutdown, scheduler.autoquit)
    for name in names:
        scheduler.add_microthread(Ending(scheduler, name))
    for _ in scheduler.main():
        pass
    note(scheduler.shutdown)
