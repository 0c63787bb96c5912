"""A call without a builder, with several values or keywords.

Better: they are packed as one would write them; it was a ``TypeError``.
"""

from postage import messaging
from stage import Processor, handle, note, raised

seen = []


class Listening(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        seen.append(content['parameters'])


handle(
    Listening,
    lambda producer: raised(producer.message_echo, 1, 2),
    lambda producer: raised(producer.message_echo, a=1),
)
note(seen)  # [[1, 2], {"a": 1}]
