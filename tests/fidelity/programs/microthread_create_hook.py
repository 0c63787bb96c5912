"""``MicroThread.create()`` is called once, when it is added, and returns nothing; then ``step()`` in turns."""

from postage import microthreads
from stage import note


class Counting(microthreads.MicroThread):
    def __init__(self, name, count):
        self.name = name
        self.count = count

    def create(self):
        note('create', self.name)

    def step(self):
        note(self.name, self.count)
        self.count -= 1
        if not self.count:
            raise StopIteration


scheduler = microthreads.MicroScheduler(autoquit=True)
scheduler.add_microthread(Counting('a', 2))
scheduler.add_microthread(Counting('b', 3))
note('added')
for _ in scheduler.main():
    pass
note('the end')
