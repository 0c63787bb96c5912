"""A microthread overrides ``main()``; so does anything else that has one which gives a generator."""

from postage import microthreads
from stage import note


class Own(microthreads.MicroThread):
    def main(self):
        note('own')
        yield 1
        for number in range(3):
            note('own', number)
            yield 1


class Bare:
    def main(self):
        note('bare')
        yield 'anything'
        for number in range(2):
            note('bare', number)
            yield None


class WithCreate(microthreads.MicroThread):
    def create(self):
        note('created')

    def main(self):
        for _ in super().main():
            note('a turn')
            yield 1
            break


scheduler = microthreads.MicroScheduler(autoquit=True)
scheduler.add_microthread(WithCreate())
scheduler.add_microthread(Own())
scheduler.add_microthread(Bare())
for _ in scheduler.main():
    pass
