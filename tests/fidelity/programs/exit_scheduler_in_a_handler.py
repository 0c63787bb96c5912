"""``raise ExitScheduler`` in a handler acknowledges, and ends the loop; the program runs on."""

from postage import messaging, microthreads
from stage import Processor, loop, note, processor, producer


class Ending(Processor):
    @messaging.MessageHandler('command', 'end')
    def msg_end(self, content):
        note('end')
        raise microthreads.ExitScheduler

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note('echo', content)


ending = processor(Ending)
sending = producer()
sending.message_echo(1)
sending.message_end()
loop(ending)
note('the loop has ended')
