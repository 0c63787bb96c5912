"""``('command', 'restart')`` acknowledges and runs the program again; ``restart()`` may be overridden."""

import os

from postage import messaging, microthreads
from stage import Processor, handle, loop, note, processor, producer


class Staying(Processor):
    def restart(self):
        note('restart')
        raise microthreads.ExitScheduler


class Again(Processor):
    @messaging.MessageHandler('command', 'again')
    def msg_again(self, content):
        note('again', content)
        raise messaging.AckAndRestart


if 'SECOND' not in os.environ:
    sending = producer()
    staying = processor(Staying)
    sending.message_restart()
    loop(staying)
    os.environ['SECOND'] = 'yes'
    again = processor(Again)
    sending.message_again(1)
    loop(again)
note('second')
handle(Again, lambda producer: None)
