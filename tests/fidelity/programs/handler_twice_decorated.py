"""A method that is decorated as the handler of two messages.

Better: it handles both; the decorator nearest to it was forgotten.
"""

from postage import messaging
from stage import Processor, handle, note


class Both(Processor):
    @messaging.MessageHandler('command', 'echo')
    @messaging.MessageHandler('command', 'repeat')
    def msg_echo(self, content):
        note(content['parameters'])  # 1


handle(Both, lambda producer: producer.message_repeat(1))
