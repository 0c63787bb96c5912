"""All handlers of a message run, in their order."""

from postage import messaging
from stage import Processor, handle, note


class Many(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_first(self, content):
        note('first', content)

    @messaging.MessageHandlerFullBody('command', 'echo')
    def msg_second(self, body):
        note('second', body['content'])

    @messaging.MessageHandler('status', 'echo')
    def msg_status(self, content):
        note('never')


handle(Many, lambda producer: producer.message_echo('text'), lambda producer: producer.message_unknown())
