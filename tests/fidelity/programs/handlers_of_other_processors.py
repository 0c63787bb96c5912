"""Two processor classes in one program.

Better: each has its own handlers and its parents'; all of them shared one table.
"""

from postage import messaging
from stage import Processor, handle, note

seen = []


class One(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        seen.append('one')


class Other(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        seen.append('other')


handle(One, lambda producer: producer.message_echo())
note(seen)  # ["one"]
