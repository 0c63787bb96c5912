"""A filter that raises something else.

Better: it drops the message for that handler, and the log says so; an ``AttributeError`` let the message pass
unfiltered, any other exception rejected it.
"""

from postage import messaging
from stage import Processor, handle, note


def broken(content):
    return content.missing


class Filtering(Processor):
    @messaging.MessageFilter(broken)
    @messaging.MessageHandler('command', 'echo')
    def msg_filtered(self, content):
        note('never')

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note('echo')  # "echo"


handle(Filtering, lambda producer: producer.message_echo('text'))
