"""``FilterError`` from a filter, or from a handler, drops the message for that handler alone."""

from postage import messaging
from stage import Processor, handle, note


def refuse(content):
    raise messaging.FilterError('not this one')


class Filtering(Processor):
    @messaging.MessageFilter(refuse)
    @messaging.MessageHandler('command', 'echo')
    def msg_filtered(self, content):
        note('never')

    @messaging.MessageHandler('command', 'echo')
    def msg_refusing(self, content):
        note('refusing')
        raise messaging.FilterError('nor this one')

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note('echo', content)


handle(Filtering, lambda producer: producer.message_echo('text'))
