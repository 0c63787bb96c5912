"""A scheduler is a microthread of another one."""

from postage import microthreads
from stage import note


class Counting(microthreads.MicroThread):
    def __init__(self, name, count):
        self.name = name
        self.count = count

    def step(self):
        note(self.name, self.count)
        self.count -= 1
        if not self.count:
            raise StopIteration


inner = microthreads.MicroScheduler(autoquit=True)
inner.add_microthread(Counting('inner', 2))
outer = microthreads.MicroScheduler(autoquit=True)
outer.add_microthread(inner)
for _ in outer.main():
    pass
note('the end')
