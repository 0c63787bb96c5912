"""What a call without a builder sends: nothing, one value, ``parameters=``."""

from postage import messaging
from stage import Processor, handle, note


class Listening(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note(content)


handle(
    Listening,
    lambda producer: producer.message_echo(),
    lambda producer: producer.message_echo('text'),
    lambda producer: producer.message_echo(None),
    lambda producer: producer.message_echo([1, 2]),
    lambda producer: producer.message_echo({'a': (1, 2)}),
    lambda producer: producer.message_echo(parameters={'a': 1}),
)
