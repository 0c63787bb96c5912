"""``raise StopIteration`` in a handler acknowledges, and ends that microthread."""

from postage import messaging, microthreads
from stage import Processor, note, processor, producer


class Ending(Processor):
    @messaging.MessageHandler('command', 'end')
    def msg_end(self, content):
        note('end')
        raise StopIteration


ending = processor(Ending)
producer().message_end()
scheduler = microthreads.MicroScheduler(autoquit=True)
scheduler.add_microthread(ending)
for _ in scheduler.main():
    pass
note('the loop has ended')
