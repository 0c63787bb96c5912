"""A processor and another microthread in one scheduler.

Better: they take turns; the processor blocked the other one for ever.
"""

from postage import microthreads
from stage import Processor, note, processor, producer

turns = []


class Counting(microthreads.MicroThread):
    def step(self):
        turns.append(1)
        if len(turns) == 3:
            producer().message_quit()


class Late(Processor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.add_timeout(1, self.give_up)

    def give_up(self):
        if not turns:
            producer().message_quit()


scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(processor(Late))
scheduler.add_microthread(Counting())
for _ in scheduler.main():
    pass
note(len(turns) >= 3)  # true
