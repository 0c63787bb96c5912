"""A program steps the scheduler by ``next()``, and adds microthreads meanwhile."""

from postage import microthreads
from stage import note


class Counting(microthreads.MicroThread):
    def __init__(self, name):
        self.name = name
        self.turns = 0

    def step(self):
        self.turns += 1


scheduler = microthreads.MicroScheduler()
first, second = Counting('first'), Counting('second')
scheduler.add_microthread(first)
loop = scheduler.main()
while first.turns < 3:
    next(loop)
scheduler.add_microthread(second)
while second.turns < 3:
    next(loop)
note(first.turns > second.turns, second.turns)
